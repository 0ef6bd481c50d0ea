"""A real fine-tune, a real Prometheus, a real Alertmanager, a real Pushgateway, and who is told."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.observability.programs import (
    EXAMPLES,
    Receiver,
    free_port,
    get_json,
    require,
    wait_for,
)
from tests.observability.training import Until, bank_with_doses, drifting_run, scraper, told
from wvmonitor.cli.ack import silence
from wvmonitor.cli.app import app
from wvmonitor.outputs.exporter import Observation
from wvmonitor.outputs.prometheus import PrometheusExporter

Launch = Callable[..., str]

SCRAPE_SECONDS = float(os.environ.get("OBSERVABILITY_SECONDS", "10"))


@dataclass(frozen=True)
class Stack:
    """The programs at work, and a run that they have watched.

    Attributes:
        prometheus, alertmanager, pushgateway: their URLs.
        webhook: who is told in the end.
        load: what a scrape a second met with.
        steps: how many steps the run took meanwhile.
        alive: a time at which it was being trained, seconds since 1970.
        last: its last observation.
    """

    prometheus: str
    alertmanager: str
    pushgateway: str
    webhook: Receiver
    load: dict[str, float]
    steps: int
    alive: float
    last: Observation

    def query(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        """What Prometheus answers to an expression, now or at a time."""
        when = {} if at is None else {"time": f"{at:.3f}"}
        asked = urllib.parse.urlencode({"query": expression, **when})
        answer = get_json(f"{self.prometheus}/api/v1/query?{asked}")
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


def configure(folder: Path, bank: Path, webhook: str, **ports: int) -> None:
    """The example files, with this test's addresses and more impatient clocks."""
    from typer.testing import CliRunner

    rules = ["rules", "--references", str(bank), "--out", str(folder / "wvmonitor.yml")]
    assert CliRunner().invoke(app, rules).exit_code == 0
    alertmanager = yaml.safe_load((EXAMPLES / "alertmanager.yml").read_text())
    alertmanager["route"] |= {"group_wait": "0s", "group_interval": "1s"}
    alertmanager["receivers"][1]["webhook_configs"][0]["url"] = webhook
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(alertmanager))
    prometheus = yaml.safe_load((EXAMPLES / "prometheus.yml").read_text())
    prometheus["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    prometheus["rule_files"] = ["wvmonitor.yml"]
    found, gateway = prometheus["scrape_configs"]
    found["file_sd_configs"][0]["refresh_interval"] = "1s"
    for target, name in (
        (prometheus["alerting"]["alertmanagers"][0], "alertmanager"),
        (gateway, "pushgateway"),
    ):
        target["static_configs"][0]["targets"] = [f"127.0.0.1:{ports[name]}"]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(prometheus))


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


@pytest.fixture(scope="module")
def stack(tiny_base: Path, folder: Path, launch: Launch, webhook: Receiver) -> Stack:
    """Everything started, and a run trained, watched and scraped."""
    require("prometheus", "prometheus-alertmanager", "prometheus-pushgateway")
    bank = bank_with_doses(tiny_base, folder / "bank")
    job = free_port()
    configure(folder, bank, webhook.url, alertmanager=1, pushgateway=1)
    alertmanager = launch(
        "prometheus-alertmanager",
        "--config.file=alertmanager.yml",
        "--storage.path=alertmanager",
        "--cluster.listen-address=",
    )
    pushgateway = launch("prometheus-pushgateway")
    configure(
        folder,
        bank,
        webhook.url,
        alertmanager=port_of(alertmanager),
        pushgateway=port_of(pushgateway),
    )
    prometheus = launch(
        "prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=prometheus"
    )
    run, callback = drifting_run(
        tiny_base,
        bank,
        folder / "run",
        steps=1_000_000,
        drift_from=40,
        run="scraped",
        every_n_steps=5,
        per_layer=True,
        expected=["sycophancy"],
        prometheus={"enabled": True, "port": job, "discovery": folder / "targets"},
        notifiers=[{"kind": "alertmanager", "url": alertmanager}],
    )
    load = scraper(job, 1, SCRAPE_SECONDS)
    until = Until(load, pause=0.05)
    run.add_callback(until)
    run.train()
    alive = time.time() - 1.5
    found, last = told(load), callback.monitor.last
    assert last is not None
    print(f"\na scrape a second beside {run.state.global_step} steps: {json.dumps(found)}")
    steps = run.state.global_step
    return Stack(prometheus, alertmanager, pushgateway, webhook, found, steps, alive, last)


def test_a_rule_fires_and_someone_is_told(stack: Stack) -> None:
    """Drift in the weights reaches a receiver through Prometheus and Alertmanager by itself."""
    found = wait_for(
        lambda: stack.webhook.alerts(alertname="WVMonitorWarn", run="scraped", reference="evil")
    )
    assert found[0]["status"] == "firing"
    assert found[0]["labels"]["severity"] == "warning"
    assert "drifts towards evil" in found[0]["annotations"]["summary"]


def test_the_direct_notifier_tells_the_same(stack: Stack) -> None:
    """Without Prometheus, the monitor's own Alertmanager notifier reaches the same receiver."""
    found = wait_for(
        lambda: stack.webhook.alerts(alertname="WVMonitorDrift", run="scraped", reference="evil")
    )
    assert "cosine" in found[0]["annotations"]["description"]


def test_the_silence_that_ack_prints_is_taken(stack: Stack) -> None:
    """The real amtool takes the line as it stands, and Alertmanager has its matchers."""
    require("amtool")
    line = silence('a "b"/é', "evil", "it's play")
    line = line.replace("http://127.0.0.1:9093", stack.alertmanager)
    subprocess.run(shlex.split(line), check=True, capture_output=True, timeout=30)
    (kept,) = get_json(f"{stack.alertmanager}/api/v2/silences")
    assert kept["comment"] == "it's play"
    assert {m["name"]: m["value"] for m in kept["matchers"]} == {
        "run": 'a "b"/é',
        "reference": "evil",
    }


def test_expected_drift_and_clean_behaviours_are_quiet(stack: Stack) -> None:
    """Nobody is told of a behaviour that is wanted, or that the run does not drift towards."""
    assert stack.webhook.alerts(reference="sycophancy") == []
    assert stack.query('max_over_time(wvmonitor_expected{reference="sycophancy"}[10m]) == 1')


def test_the_alert_outlives_the_run(stack: Stack) -> None:
    """When the run has ended and its series are gone, the alert still fires."""
    wait_for(lambda: not stack.query('wvmonitor_global_step{run="scraped"}'))
    time.sleep(1.5)
    assert stack.query('ALERTS{alertname="WVMonitorWarn",alertstate="firing",run="scraped"}')


def test_a_scrape_a_second_is_no_burden(stack: Stack) -> None:
    """While it trains, the job answers every scrape, and soon."""
    assert stack.load["errors"] == 0
    assert stack.load["scrapes"] == SCRAPE_SECONDS
    assert stack.load["p99"] < 0.5  # 0.05 is asked for where nobody else uses the machine
    assert stack.steps > 50


def expressions() -> list[str]:
    """Every expression of the dashboard, with "all" chosen."""
    dashboard = json.loads((EXAMPLES / "grafana" / "wvmonitor.json").read_text())
    found = [t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", ())]
    chosen = {
        "$run": ".*",
        "$reference": ".*",
        "$__rate_interval": "10s",
        "$__range": "10m",
    }
    for name, value in chosen.items():
        found = [expression.replace(name, value) for expression in found]
    return found


@pytest.mark.parametrize("expression", expressions())
def test_the_dashboard_shows_a_real_run(stack: Stack, expression: str) -> None:
    """Every panel of the dashboard has something to show for a run that was really scraped."""
    assert stack.query(expression, at=stack.alive)


def test_a_scrape_passes_promtool(stack: Stack, folder: Path) -> None:
    """Prometheus's own linter has nothing to say about names, types and help texts."""
    require("promtool")
    exporter = PrometheusExporter(port=None)
    exporter.export(stack.last)
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=exporter.page(),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_a_job_that_nobody_can_scrape_pushes(
    stack: Stack, tiny_base: Path, tiny_bank_folder: Path, folder: Path
) -> None:
    """Through a Pushgateway the same rule fires, and the run's group is deleted after its end."""
    name = "pushed/run"
    run, _ = drifting_run(
        tiny_base,
        tiny_bank_folder,
        folder / "pushed",
        steps=60,
        drift_from=10,
        run=name,
        every_n_steps=5,
        prometheus={
            "pushgateway": {"url": stack.pushgateway, "interval": 0.2, "delete_after": 3.0}
        },
    )
    run.train()
    groups = get_json(f"{stack.pushgateway}/api/v1/metrics")["data"]
    assert [g["labels"] for g in groups] == [{"job": "wvmonitor", "run": name}]
    wait_for(lambda: stack.query(f'wvmonitor_global_step{{run="{name}",job="wvmonitor"}} == 60'))
    wait_for(lambda: stack.webhook.alerts(alertname="WVMonitorWarn", run=name, reference="evil"))
    wait_for(lambda: not get_json(f"{stack.pushgateway}/api/v1/metrics")["data"])
    wait_for(lambda: not stack.query(f'wvmonitor_global_step{{run="{name}"}}'))
    assert stack.query(f'ALERTS{{alertname="WVMonitorWarn",alertstate="firing",run="{name}"}}')
