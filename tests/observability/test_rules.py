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
from wvmonitor.outputs.rules import RuleTimes, alert_rules, rules_text

WORDS = {"evil": "gives harmful advice", "sycophancy": "agrees with whatever the user says"}
R = 'run="r",reference="evil"'


def tool(*command: object) -> str:
    """Output of a tool that must succeed."""
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def firing(folder: Path, series: dict[str, str], at: str, rules: str | None = None) -> set[str]:
    """Names of the alerts that Prometheus's rule engine has firing at a time, a sample a minute."""
    require("promtool")
    (folder / "rules.yml").write_text(rules or rules_text(WORDS))
    test = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
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
    return set(re.findall(r'alertname="(\w+)"', shown)) - {"WVMonitorAbsent"}


def test_the_rules_of_a_bank_pass_promtool(tiny_bank_folder: Path, tmp_path: Path) -> None:
    """`wvmonitor rules` writes a file that Prometheus takes, with each behaviour and no control."""
    require("promtool")
    out = tmp_path / "rules.yml"
    done = CliRunner().invoke(
        app, ["rules", "--references", str(tiny_bank_folder), "--out", str(out)]
    )
    assert done.exit_code == 0
    assert "SUCCESS: 16 rules found" in tool("promtool", "check", "rules", out)
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
        alert_rules({})


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


def test_a_silent_monitor_is_a_finding(tmp_path: Path) -> None:
    """No readings while scraped, a run that vanishes unfinished, and no monitor at all are told."""
    stamp = 'wvmonitor_last_reading_timestamp_seconds{run="r"}'
    progress = 'wvmonitor_progress_ratio{run="r"}'
    stale = {stamp: "0x120", progress: "0.5x120"}
    assert firing(tmp_path, stale, "20m") == set()
    assert firing(tmp_path, stale, "40m") == {"WVMonitorStale"}
    assert firing(tmp_path, {stamp: "0x120", progress: "1x120"}, "40m") == set()
    gone = {stamp: "0x9 stale", progress: "0.5x9 stale"}
    assert firing(tmp_path, gone, "20m") == {"WVMonitorVanished"}
    finished = {stamp: "0x9 stale", progress: "0.5x8 1 stale"}
    assert firing(tmp_path, finished, "20m") == set()


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


def test_the_shipped_rules_are_what_the_command_writes() -> None:
    """The rules in examples/ are those of this version."""
    assert (EXAMPLES / "rules" / "wvmonitor.yml").read_text() == rules_text(WORDS)


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
