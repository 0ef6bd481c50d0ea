"""Each alert, from a monitor's page through a real Prometheus and Alertmanager to a receiver."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.observability.programs import EXAMPLES, Receiver, require, wait_for
from tests.outputs.conftest import build
from wvmonitor.detection.judgement import BehaviourState, JudgeState
from wvmonitor.outputs.prometheus import PrometheusExporter
from wvmonitor.outputs.rules import RuleLinks, RuleTimes, rules_text
from wvmonitor.outputs.run_state import this_host

Launch = Callable[..., str]
# Long enough that a loaded machine, which stalls for seconds, does not look like a run that hangs.
TIMES = RuleTimes(hold="25s", recent="8s", stale="10s", horizon="10s")
PATIENCE = 90
"""Seconds after which an alert is given up."""
OK_AT_20 = JudgeState({"evil": BehaviourState(last_ok=20)})


class Job:
    """A training job as Prometheus sees it: a page with a reading twice a second."""

    def __init__(self, folder: Path, run: str, state: str = "ok", score: float = 0.05) -> None:
        self.exporter = PrometheusExporter(port=0, discovery=folder / "targets", linger=60.0)
        self.port = self.exporter.port
        self.run, self.state, self.score, self.rising = run, state, score, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()

    def _train(self) -> None:
        step = 0
        while not self._stop.wait(0.5):
            step += 1
            self.score += self.rising
            built = build(step=step, cosine=self.score, state=self.state, run=self.run)
            judgement = replace(built.judgement, state=OK_AT_20)
            observation = replace(built, judgement=judgement, wall_time=time.time())
            self.exporter.show_way_back(observation, (10, 20, 30))
            self.exporter.export(observation)

    def hang(self) -> None:
        """Take no more readings."""
        self._stop.set()
        self._thread.join()

    def vanish(self) -> None:
        """Be gone, without a word."""
        self.hang()
        self.exporter.linger = 0.0
        self.exporter.close()

    def end(self, state: Any = "ended") -> None:
        """End as a run does."""
        self.hang()
        self.exporter.show_states(state)
        self.exporter.close()


def impatient(rules: str) -> str:
    """The rules, which wait for seconds instead of minutes."""
    rules = re.sub(r"(for|keep_firing_for): \d+m", r"\1: 1s", rules)
    return rules.replace("[15m]", "[3s]")


@pytest.fixture(scope="module")
def told(folder: Path, launch: Launch, webhook: Receiver) -> Receiver:
    """Who is told, at the end of a real Prometheus and a real Alertmanager."""
    require("prometheus", "prometheus-alertmanager")
    links = RuleLinks("https://docs.example.org/alerts", "https://grafana.example.org/d/wv")
    (folder / "rules.yml").write_text(impatient(rules_text({"evil": "harm"}, TIMES, links)))
    alertmanager = yaml.safe_load((EXAMPLES / "alertmanager.yml").read_text())
    alertmanager["route"] |= {"group_wait": "0s", "group_interval": "1s", "routes": []}
    alertmanager["route"]["group_by"] = ["..."]
    alertmanager["inhibit_rules"] = []
    alertmanager["receivers"][1]["webhook_configs"][0]["url"] = webhook.url
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(alertmanager))
    at = launch(
        "prometheus-alertmanager",
        "--config.file=alertmanager.yml",
        "--storage.path=alertmanager",
        "--cluster.listen-address=",
    )
    prometheus = yaml.safe_load((EXAMPLES / "prometheus.yml").read_text())
    prometheus["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    prometheus["rule_files"] = ["rules.yml"]
    prometheus["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [at[7:]]
    prometheus["scrape_configs"] = prometheus["scrape_configs"][:1]
    prometheus["scrape_configs"][0]["file_sd_configs"][0]["refresh_interval"] = "1s"
    (folder / "prometheus.yml").write_text(yaml.safe_dump(prometheus))
    (folder / "targets").mkdir(exist_ok=True)
    launch("prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=prometheus")
    return webhook


def rise(job: Job) -> None:
    job.score, job.rising = 0.09, 0.002


def level(job: Job) -> None:
    job.rising, job.score = 0.0, 0.05


def become(state: str, score: float) -> Callable[[Job], None]:
    def act(job: Job) -> None:
        job.state, job.score = state, score

    return act


def disable(job: Job) -> None:
    job.hang()
    job.exporter.show_states("disabled")


CASES: dict[str, tuple[Callable[[Job], None], Callable[[Job], None], str]] = {
    "WVMonitorAlarm": (become("alarm", 0.5), become("ok", 0.05), "critical"),
    "WVMonitorWarn": (become("warn", 0.2), become("ok", 0.05), "warning"),
    "WVMonitorAboveThreshold": (become("ok", 0.3), become("ok", 0.05), "warning"),
    "WVMonitorTrend": (rise, level, "info"),
    "WVMonitorUnjudged": (become("unknown", 0.05), become("ok", 0.05), "warning"),
    "WVMonitorCoverage": (lambda job: None, Job.end, "warning"),
    "WVMonitorStale": (Job.hang, lambda job: None, "warning"),
    "WVMonitorVanished": (Job.vanish, lambda job: None, "warning"),
    "WVMonitorDisabled": (disable, lambda job: None, "warning"),
    "WVMonitorErrors": (
        lambda job: job.exporter.error("reading"),
        lambda job: None,
        "warning",
    ),
    "WVMonitorUndelivered": (
        lambda job: job.exporter.set_outbox_pending(2),
        lambda job: job.exporter.set_outbox_pending(0),
        "warning",
    ),
}


def shown(told: Receiver, status: str, alert: str, job: Job) -> list[dict[str, Any]]:
    """What someone was told of an alert on a job, which is known by its run or its address."""
    where = f"127.0.0.1:{job.port}"
    return [
        one
        for one in told.alerts(alertname=alert)
        if one["status"] == status
        and (one["labels"].get("run") == job.run or one["labels"].get("instance") == where)
    ]


@pytest.fixture(scope="module")
def story(told: Receiver, folder: Path) -> dict[str, tuple[Job, list[Any], list[Any]]]:
    """All alerts at once: what each job's was when it fired, and when it was over."""
    jobs = {alert: Job(folder, alert.lower()) for alert in CASES}
    for job in jobs.values():  # each was scraped
        wait_for(lambda j=job: shown(told, "firing", "WVMonitorCoverage", j), PATIENCE)
    for alert, job in jobs.items():
        CASES[alert][0](job)
    fired = {alert: waited(lambda a=alert: shown(told, "firing", a, jobs[a])) for alert in CASES}
    for alert, job in jobs.items():
        CASES[alert][1](job)
    over = {alert: waited(lambda a=alert: shown(told, "resolved", a, jobs[a])) for alert in CASES}
    for job in jobs.values():
        job.end()
    return {alert: (jobs[alert], fired[alert], over[alert]) for alert in CASES}


def waited(found: Callable[[], list[Any]]) -> list[Any]:
    """What came within a while, or nothing: the test of that alert says so."""
    try:
        return list(wait_for(found, PATIENCE))
    except AssertionError:
        return []


def test_every_alert_fires_says_what_is_asked_and_resolves(
    story: dict[str, tuple[Job, list[Any], list[Any]]],
) -> None:
    """From the page of a job to a receiver and back, with all that whoever is woken asks.

    One test for all: they fire side by side, and a case of its own that another process of the
    suite took over would start Prometheus and everything else once more.
    """
    assert [alert for alert, (_, fired, _) in story.items() if not fired] == [], "never fired"
    for alert, (job, fired, _) in story.items():
        says_what_is_asked(alert, job, fired[0])
    assert [alert for alert, (_, _, over) in story.items() if not over] == [], "never resolved"


def test_no_alert_of_the_rules_is_left_out() -> None:
    """Every alert that the rules hold is fired and resolved here, from a real page."""
    rules = yaml.safe_load(rules_text({"evil": "harm"}, TIMES, RuleLinks()))
    held = {
        rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule
    }
    assert held == {*CASES, "WVMonitorAbsent"}


def says_what_is_asked(alert: str, job: Job, found: dict[str, Any]) -> None:
    """What stands in the message that wakes someone."""
    assert found["labels"]["severity"] == CASES[alert][2]
    notes = found["annotations"]
    assert notes["runbook_url"] == f"https://docs.example.org/alerts/{alert}/"
    if "run" in found["labels"]:
        assert notes["dashboard_url"] == f"https://grafana.example.org/d/wv?var-run={job.run}"
        assert f"On host {this_host()}" in notes["description"]
    else:
        assert f"at 127.0.0.1:{job.port}" in notes["summary"]
    if "reference" in found["labels"] and alert != "WVMonitorUnjudged":
        assert "against a threshold of 0.15, at step " in notes["description"]
        assert "Go back to: checkpoint-20." in notes["description"]
        assert "as if 0.4 × evil" in notes["description"]


def test_nobody_is_woken_for_runs_that_ended_well_and_no_monitor_is_told(
    story: object, told: Receiver, folder: Path
) -> None:
    """Whether all steps were done, or it was closed early, stopped early or preempted: silence."""
    ends = {"done": "ended", "closed-early": "ended", "early-stop": "ended", "sigterm": "stopped"}
    jobs = {name: Job(folder, name) for name in ends}
    for job in jobs.values():
        wait_for(lambda j=job: shown(told, "firing", "WVMonitorCoverage", j), PATIENCE)
    for name, state in ends.items():
        jobs[name].end(state)
    (absent, *_) = wait_for(lambda: told.alerts(alertname="WVMonitorAbsent"), PATIENCE)
    assert absent["labels"]["severity"] == "info"
    found = {alert["labels"]["alertname"] for name in ends for alert in told.alerts(run=name)}
    assert found == {"WVMonitorCoverage"}  # of this model, from the beginning
