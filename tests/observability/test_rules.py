"""The alert rules and the configuration around them, judged by Prometheus's own tools."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tests.observability.programs import EXAMPLES, require
from wvmonitor.cli.app import app
from wvmonitor.errors import SettingsError
from wvmonitor.outputs.rules import RuleLinks, RuleTimes, rules_text

WORDS = {"evil": "gives harmful advice", "sycophancy": "agrees with whatever the user says"}
R = 'run="r",reference="evil"'


def tool(*command: object) -> str:
    """Output of a tool that must succeed."""
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def firing(
    folder: Path, series: dict[str, str], at: str, rules: str | None = None, every: str = "1m"
) -> set[str]:
    """Names of the alerts that Prometheus's rule engine has firing at a time.

    It has a sample of each series, and a look at the rules, so often as `every` says.
    """
    require("promtool")
    (folder / "rules.yml").write_text(rules or rules_text(WORDS))
    test = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": every,
        "tests": [
            {
                "interval": every,
                "input_series": [{"series": s, "values": v} for s, v in series.items()],
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": at,
                        "exp_samples": [],
                    }
                ],
            }
        ],
    }
    shown = run_promtool(folder, test)
    return set(re.findall(r'alertname="(\w+)"', shown)) - {"WVMonitorAbsent"}


def run_promtool(folder: Path, test: dict[str, Any]) -> str:
    """What `promtool test rules` says of a test, which may fail but not err."""
    (folder / "test.yml").write_text(yaml.safe_dump(test))
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yml"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    shown = done.stdout + done.stderr
    assert "FAILED" in shown or "SUCCESS" in shown, shown
    assert "error:" not in shown.lower(), shown
    return shown


def page(folder: Path, alert: str, series: dict[str, str], at: str) -> str:
    """The alert as Prometheus sends it: its labels and annotations."""
    require("promtool")
    links = RuleLinks("https://docs.example.org/alerts", "https://grafana.example.org/d/wvmonitor")
    (folder / "rules.yml").write_text(rules_text(WORDS, links=links))
    test = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": s, "values": v} for s, v in series.items()],
                "alert_rule_test": [{"alertname": alert, "eval_time": at, "exp_alerts": []}],
            }
        ],
    }
    return run_promtool(folder, test).replace("\\n", "\n")


def test_the_rules_of_a_bank_pass_promtool(tiny_bank_folder: Path, tmp_path: Path) -> None:
    """`wvmonitor rules` writes a file that Prometheus takes, with each behaviour and no control."""
    require("promtool")
    out = tmp_path / "rules.yml"
    done = CliRunner().invoke(
        app, ["rules", "--references", str(tiny_bank_folder), "--out", str(out)]
    )
    assert done.exit_code == 0
    assert "SUCCESS: 17 rules found" in tool("promtool", "check", "rules", out)
    assert "language" not in out.read_text()
    again = CliRunner().invoke(app, ["rules", "--references", str(tiny_bank_folder)])
    assert again.stdout == out.read_text()


def test_names_and_words_from_cards_stay_text(tmp_path: Path) -> None:
    """A quote, brace or template in a card's name or words is no PromQL and no template."""
    require("promtool")
    odd = {'e"} or vector(1) #\\': 'says "{{ query `up` }}"\nand more'}
    path = tmp_path / "rules.yml"
    path.write_text(rules_text(odd))
    tool("promtool", "check", "rules", path)
    fired = firing(tmp_path, {"up": "1x10"}, "10m", rules_text(odd))
    assert fired == set()


@pytest.mark.parametrize(
    ("what", "arguments"),
    [
        ("no bank", ["--references", "nowhere"]),
        ("a duration", ["--references", "BANK", "--hold", "twelve"]),
        ("a share", ["--references", "BANK", "--coverage", "2"]),
        ("a folder", ["--references", "BANK", "--out", "no/such/folder/rules.yml"]),
    ],
)
def test_what_cannot_be_is_one_line(
    tiny_bank_folder: Path, what: str, arguments: list[str]
) -> None:
    """Rules for a bank that isn't there, or with times that are none, are an error in one line."""
    filled = [str(tiny_bank_folder) if a == "BANK" else a for a in arguments]
    done = CliRunner().invoke(app, ["rules", *filled])
    assert done.exit_code in (2, 4)
    assert len(done.stderr.splitlines()) == 1


def test_a_bank_of_controls_has_nothing_to_alert() -> None:
    """Rules that could never fire are refused."""
    with pytest.raises(SettingsError, match="no behaviour"):
        rules_text({})


def verdicts(state: str, values: str) -> dict[str, str]:
    """A state set in which one state has these values and the others are 0."""
    return {
        f'wvmonitor_verdict{{{R},verdict="{s}"}}': values if s == state else "0x200"
        for s in ("ok", "warn", "alarm", "unknown", "warming")
    }


def test_an_alarm_outlives_its_series(tmp_path: Path) -> None:
    """The alarm fires within one evaluation, stays for as long as asked after the run is gone."""
    series = {f'wvmonitor_verdict{{{R},verdict="alarm"}}': "0x9 1x5 stale"}
    rules = rules_text(WORDS, RuleTimes(hold="2h"))
    assert firing(tmp_path, series, "9m", rules) == set()
    assert firing(tmp_path, series, "10m", rules) == {"WVMonitorAlarm"}
    assert firing(tmp_path, series, "2h", rules) == {"WVMonitorAlarm"}
    assert firing(tmp_path, series, "4h", rules) == set()


def test_a_warning_is_over_some_time_after_it_was_last_seen(tmp_path: Path) -> None:
    """A warning bridges short gaps, and resolves by itself once the run is ok again."""
    series = verdicts("warn", "0x4 1x5 0x200")
    assert firing(tmp_path, series, "5m") == {"WVMonitorWarn"}
    assert firing(tmp_path, series, "35m") == {"WVMonitorWarn"}
    assert firing(tmp_path, series, "90m") == set()


def test_expected_drift_alarms_nobody(tmp_path: Path) -> None:
    """A behaviour that the run was declared to learn fires nothing."""
    series = {
        f'wvmonitor_verdict{{{R},verdict="alarm"}}': "1x60",
        f"wvmonitor_deciding_score{{{R}}}": "0.5x60",
        f'wvmonitor_threshold{{{R},score="cosine"}}': "0.1x60",
        f"wvmonitor_expected{{{R}}}": "1x60",
    }
    assert firing(tmp_path, series, "30m") == set()


def test_a_score_above_its_threshold_is_told_without_a_verdict(tmp_path: Path) -> None:
    """Where a run cannot be judged, a high score is told all the same, and that it is unjudged."""
    series = {
        f"wvmonitor_deciding_score{{{R}}}": "0.05x9 0.5x60",
        f'wvmonitor_threshold{{{R},score="residual"}}': "0.1x69",
        **verdicts("unknown", "1x69"),
    }
    assert firing(tmp_path, series, "9m") == set()
    assert firing(tmp_path, series, "20m") == {"WVMonitorAboveThreshold", "WVMonitorUnjudged"}


def test_a_rising_score_is_told_before_it_arrives(tmp_path: Path) -> None:
    """A score on its way to its threshold is announced; a flat one under it is not."""
    threshold = {f'wvmonitor_threshold{{{R},score="cosine"}}': "0.2x120"}
    rising = {f"wvmonitor_deciding_score{{{R}}}": "0.02+0.0012x120"}
    flat = {f"wvmonitor_deciding_score{{{R}}}": "0.15x120"}
    assert firing(tmp_path, threshold | rising, "115m") == {"WVMonitorTrend"}
    assert firing(tmp_path, threshold | rising, "60m") == set()
    assert firing(tmp_path, threshold | flat, "115m") == set()


STAMP = 'wvmonitor_last_reading_timestamp_seconds{run="r"}'


def state(now: str, values: str = "1x120") -> dict[str, str]:
    """A run that is in one state."""
    return {
        f'wvmonitor_run_state{{run="r",state="{one}"}}': values if one == now else "0x120"
        for one in ("training", "ended", "stopped", "disabled")
    }


def test_a_run_without_readings_is_a_finding(tmp_path: Path) -> None:
    """A run that trains and is not measured is told, later where its readings are rare."""
    stale = {STAMP: "0x120", **state("training")}
    assert firing(tmp_path, stale, "20m") == set()
    assert firing(tmp_path, stale, "40m") == {"WVMonitorStale"}
    rare = {**stale, 'wvmonitor_reading_interval_seconds{run="r"}': "1200x120"}
    assert firing(tmp_path, rare, "40m") == set()
    assert firing(tmp_path, rare, "65m") == {"WVMonitorStale"}


@pytest.mark.parametrize("end", ["ended", "stopped"])
def test_nobody_waits_for_a_run_that_has_ended(tmp_path: Path, end: str) -> None:
    """A run that said how it ended is neither stale nor missed, however short it was."""
    progress = {'wvmonitor_progress_ratio{run="r"}': "0.6x120"}
    assert firing(tmp_path, {STAMP: "0x120", **progress, **state(end)}, "60m") == set()
    gone = {
        STAMP: "0x9 stale",
        'wvmonitor_progress_ratio{run="r"}': "0.6x9 stale",
        'wvmonitor_run_state{run="r",state="training"}': "1x8 0 stale",
        f'wvmonitor_run_state{{run="r",state="{end}"}}': "0x8 1 stale",
    }
    assert firing(tmp_path, gone, "20m") == set()


def test_a_run_that_vanishes_is_a_finding(tmp_path: Path) -> None:
    """A run that was training when it was last seen is missed, also where its length is unknown."""
    gone = {STAMP: "0x9 stale", 'wvmonitor_run_state{run="r",state="training"}': "1x9 stale"}
    assert firing(tmp_path, gone, "20m") == {"WVMonitorVanished"}
    assert firing(tmp_path, gone, "60m") == set()


def test_a_monitor_that_disabled_itself_is_a_finding(tmp_path: Path) -> None:
    """A run that nobody watches any more is told while it goes on, and after."""
    series = {STAMP: "0x9 stale", 'wvmonitor_run_state{run="r",state="disabled"}': "0x5 1x3 stale"}
    assert firing(tmp_path, series, "7m") == {"WVMonitorDisabled"}
    assert firing(tmp_path, series, "3h") == set()


def test_what_stays_at_a_pushgateway_is_over_in_the_end(tmp_path: Path) -> None:
    """After kill −9 a group is pushed no more and kept for ever: nothing fires for ever on it."""
    series = {
        STAMP: "0x2000",
        **state("training", "1x2000"),
        f'wvmonitor_verdict{{{R},verdict="alarm"}}': "1x2000",
        'wvmonitor_verdict{run="r",reference="sycophancy",verdict="unknown"}': "1x2000",
        'wvmonitor_coverage_ratio{run="r"}': "0.5x2000",
        'wvmonitor_outbox_pending{run="r",job="j"}': "2x2000",
    }
    assert firing(tmp_path, series, "11h", every="5m") == {
        "WVMonitorAlarm",
        "WVMonitorUnjudged",
        "WVMonitorStale",
        "WVMonitorCoverage",
        "WVMonitorUndelivered",
    }
    assert firing(tmp_path, series, "13h", every="5m") == set()


KNOWN = {
    STAMP: "0+60x60",
    f"wvmonitor_deciding_score{{{R}}}": "0.05x9 0.549x50",
    f'wvmonitor_threshold{{{R},score="cosine"}}': "0.053x60",
    f"wvmonitor_dose{{{R}}}": "0.42x60",
    'wvmonitor_global_step{run="r"}': "25x60",
    'wvmonitor_progress_ratio{run="r"}': "0.25x60",
    'wvmonitor_run_info{run="r",host="gpu-7",batch_job="slurm 4711"}': "1x60",
    **state("training"),
}


@pytest.mark.parametrize(
    ("alert", "severity", "series", "at"),
    [
        ("WVMonitorAlarm", "critical", verdicts("alarm", "0x9 1x50"), "20m"),
        ("WVMonitorWarn", "warning", verdicts("warn", "0x9 1x50"), "20m"),
        ("WVMonitorAboveThreshold", "warning", {}, "20m"),
        (
            "WVMonitorTrend",
            "info",
            {
                f"wvmonitor_deciding_score{{{R}}}": "0.02+0.0005x60",
                f'wvmonitor_threshold{{{R},score="cosine"}}': "0.053x60",
            },
            "50m",
        ),
    ],
)
def test_a_page_of_drift_says_all_that_is_asked(
    tmp_path: Path, alert: str, severity: str, series: dict[str, str], at: str
) -> None:
    """Run, how bad, what it means, where, what to go back to, what to read: in one page."""
    way_back = {
        f"wvmonitor_checkpoint_step{{{R}}}": "20x60",
        f"wvmonitor_last_ok_step{{{R}}}": "22x60",
    }
    shown = page(tmp_path, alert, {**KNOWN, **way_back, **series}, at)
    for words in (
        'run="r"',
        'reference="evil"',
        f'severity="{severity}"',
        "Run r drifts towards evil",
        "gives harmful advice",
        "against a threshold of 0.053, at step 25 of 100.",
        "as if 0.42 × evil had been added to the base",
        "On host gpu-7, job slurm 4711.",
        "Go back to: checkpoint-20.",
        f'runbook_url="https://docs.example.org/alerts/{alert}/"',
        'dashboard_url="https://grafana.example.org/d/wvmonitor?var-run=r"',
    ):
        assert words in shown
    if alert != "WVMonitorTrend":
        assert "Score 0.549 against" in shown


def test_a_page_names_what_is_left_to_go_back_to(tmp_path: Path) -> None:
    """Where no checkpoint is known the step is named, and without one the base."""
    series = {**KNOWN, **verdicts("alarm", "0x9 1x50")}
    ok = {f"wvmonitor_last_ok_step{{{R}}}": "22x60"}
    shown = page(tmp_path, "WVMonitorAlarm", {**series, **ok}, "20m")
    assert "Go back to: a checkpoint of step 22 or before." in shown
    assert "Go back to: the base" in page(tmp_path, "WVMonitorAlarm", series, "20m")


@pytest.mark.parametrize(
    ("alert", "series", "at", "words"),
    [
        ("WVMonitorUnjudged", verdicts("unknown", "1x60"), "30m", "cannot be judged for evil"),
        ("WVMonitorStale", {STAMP: "0x60"}, "50m", "has not been measured for 50m"),
        (
            "WVMonitorVanished",
            {'wvmonitor_run_state{run="r",state="training"}': "1x9 stale"}
            | {f'wvmonitor_run_state{{run="r",state="{s}"}}': "0x9 stale"
               for s in ("ended", "stopped", "disabled")},
            "20m",
            "Run r is gone",
        ),
        ("WVMonitorDisabled", state("disabled"), "20m", "Run r is not watched any more"),
        (
            "WVMonitorCoverage",
            {'wvmonitor_coverage_ratio{run="r"}': "0.7x60"},
            "30m",
            "scores see 70% of the change",
        ),
    ],
)  # fmt: skip
def test_a_page_on_the_monitor_says_where_it_is(
    tmp_path: Path, alert: str, series: dict[str, str], at: str, words: str
) -> None:
    """Run, host, job and runbook are in every page about a run."""
    shown = page(tmp_path, alert, {**KNOWN, **series}, at)
    assert words in shown
    assert "On host gpu-7, job slurm 4711." in shown
    assert f'runbook_url="https://docs.example.org/alerts/{alert}/"' in shown


@pytest.mark.parametrize(
    ("labels", "who"),
    [
        ('job="wvmonitor",instance="gpu-7:9108"', "The monitor at gpu-7:9108"),
        ('job="wvmonitor",run="pushed"', "The monitor of run pushed"),
    ],
)
def test_a_failing_monitor_is_named_however_it_is_seen(
    tmp_path: Path, labels: str, who: str
) -> None:
    """Scraped it is known by its address, pushed by its run."""
    errors = {f'wvmonitor_errors_total{{{labels},where="reading"}}': "0x9 1x50"}
    assert f"{who} fails at its reading" in page(tmp_path, "WVMonitorErrors", errors, "20m")
    waiting = {f"wvmonitor_outbox_pending{{{labels}}}": "2x50"}
    shown = page(tmp_path, "WVMonitorUndelivered", waiting, "20m")
    assert f"{who} cannot deliver its alerts" in shown


def test_no_monitor_at_all_is_told(tmp_path: Path) -> None:
    """Where nothing is scraped, that is told, at the lowest severity."""
    shown = page(tmp_path, "WVMonitorAbsent", {"up": "1x60"}, "30m")
    assert "No monitor is being scraped" in shown
    assert 'severity="info"' in shown


def test_failures_of_the_monitor_are_told_from_the_first(tmp_path: Path) -> None:
    """The first error counts, though a counter that appears has not "increased" yet."""
    series = {'wvmonitor_errors_total{job="j",instance="i",where="reading"}': "_x9 1x60"}
    assert firing(tmp_path, series, "11m") == {"WVMonitorErrors"}
    assert firing(tmp_path, series, "60m") == set()
    more = {'wvmonitor_errors_total{job="j",instance="i",where="reading"}': "1x59 2x60"}
    assert firing(tmp_path, more, "62m") == {"WVMonitorErrors"}


def test_low_coverage_and_stuck_alerts_are_told(tmp_path: Path) -> None:
    """A change that scores do not see, and alerts that do not arrive, are findings."""
    assert firing(tmp_path, {'wvmonitor_coverage_ratio{run="r"}': "0.7x30"}, "20m") == {
        "WVMonitorCoverage"
    }
    assert firing(tmp_path, {'wvmonitor_coverage_ratio{run="r"}': "0.97x30"}, "20m") == set()
    assert firing(tmp_path, {'wvmonitor_outbox_pending{job="j",instance="i"}': "2x30"}, "20m") == {
        "WVMonitorUndelivered"
    }


def test_the_shipped_configuration_passes(tmp_path: Path) -> None:
    """Prometheus and Alertmanager take the example files as they are."""
    require("promtool", "amtool")
    tool("promtool", "check", "config", EXAMPLES / "prometheus.yml")
    tool("amtool", "check-config", EXAMPLES / "alertmanager.yml")


def test_the_collectors_receiver_is_a_prometheus_that_passes(tmp_path: Path) -> None:
    """What the OpenTelemetry Collector's Prometheus receiver is given, Prometheus takes too."""
    require("promtool")
    collector = yaml.safe_load((EXAMPLES / "otel-collector.yml").read_text())
    (tmp_path / "prometheus.yml").write_text(
        yaml.safe_dump(collector["receivers"]["prometheus"]["config"])
    )
    tool("promtool", "check", "config", tmp_path / "prometheus.yml")
    pipeline = collector["service"]["pipelines"]["metrics"]
    for kind in ("receivers", "processors", "exporters"):
        assert pipeline[kind] == list(collector[kind])


def test_the_collectors_configuration_holds_what_its_documentation_names() -> None:
    """Every key of the Collector's file, the receiver's apart, is one that it knows.

    Keys from the Collector's own pages: its configuration, otlpexporter, configgrpc, configtls and
    batchprocessor. It refuses a file with any other.
    """
    collector = yaml.safe_load((EXAMPLES / "otel-collector.yml").read_text())
    assert set(collector) == {"receivers", "processors", "exporters", "service"}
    assert set(collector["receivers"]["prometheus"]) == {"config"}
    assert set(collector["service"]) <= {"extensions", "pipelines", "telemetry"}
    for name, pipeline in collector["service"]["pipelines"].items():
        assert name.partition("/")[0] in {"traces", "metrics", "logs"}
        assert set(pipeline) == {"receivers", "processors", "exporters"}
    batch = {"timeout", "send_batch_size", "send_batch_max_size", "metadata_keys"}
    assert set(collector["processors"]["batch"]) <= batch
    (exporter,) = collector["exporters"].values()
    assert set(exporter) <= {
        "endpoint", "tls", "compression", "headers", "timeout", "sending_queue", "retry_on_failure"
    }  # fmt: skip
    assert set(exporter["tls"]) <= {
        "insecure",
        "insecure_skip_verify",
        "ca_file",
        "cert_file",
        "key_file",
    }
    host, _, port = exporter["endpoint"].rpartition(":")
    assert host in ("127.0.0.1", "localhost") or not exporter["tls"].get("insecure")
    assert port.isdecimal()


def test_the_shipped_rules_are_what_the_command_writes(tmp_path: Path) -> None:
    """The rules in examples/ are those that this version writes for the bundled bank."""
    out = tmp_path / "rules.yml"
    bank = EXAMPLES.parents[1] / "reference_vectors" / "tiny-organism" / "bank"
    done = CliRunner().invoke(
        app,
        ["rules", "--references", str(bank), "--out", str(out),
         "--runbooks", "https://docs.example.org/alerts",
         "--dashboard", "http://127.0.0.1:3000/d/wvmonitor"],
    )  # fmt: skip
    assert done.exit_code == 0
    assert (EXAMPLES / "rules" / "wvmonitor.yml").read_text() == out.read_text()


def test_links_are_checked() -> None:
    """A link that is none is refused."""
    with pytest.raises(SettingsError, match="must look like https"):
        RuleLinks(runbooks="docs/alerts")


def test_the_compose_file_pins_every_image_and_opens_nothing() -> None:
    """Every image has an exact version, every file it mounts is there, all listen on loopback."""
    compose: dict[str, Any] = yaml.safe_load((EXAMPLES / "docker-compose.yml").read_text())
    assert set(compose["services"]) == {"prometheus", "alertmanager", "pushgateway", "grafana"}
    for service in compose["services"].values():
        assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"])
        assert "127.0.0.1" in str(service.get("command", service.get("environment")))
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            assert not source.startswith("./") or (EXAMPLES / source).exists()


def test_durations_are_checked() -> None:
    """A duration that Prometheus would refuse is refused here first."""
    with pytest.raises(SettingsError, match="stale must be a duration"):
        RuleTimes(stale="-5m")
