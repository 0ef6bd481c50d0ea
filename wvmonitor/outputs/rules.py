"""Alert rules for Prometheus, made for the behaviours of one's own bank.

| alert | severity | fires when |
|---|---|---|
| `WVMonitorAlarm` | critical | the verdict on a behaviour is, or lately was, alarm |
| `WVMonitorWarn` | warning | the verdict is, or lately was, warn |
| `WVMonitorAboveThreshold` | warning | the deciding score is above its threshold, judged or not |
| `WVMonitorTrend` | info | the deciding score rises, and is due to pass its threshold |
| `WVMonitorUnjudged` | warning | a behaviour cannot be judged: unknown is never ok |
| `WVMonitorStale` | warning | a run is being scraped, and takes no readings any more |
| `WVMonitorVanished` | warning | a run's series ended before its planned steps were done |
| `WVMonitorAbsent` | info | no monitor is being scraped at all |
| `WVMonitorCoverage` | warning | part of the change lies where no score looks |
| `WVMonitorErrors` | warning | the monitor itself has failed |
| `WVMonitorUndelivered` | warning | alerts that the monitor sends itself do not arrive |

A run's series vanish when it ends, and an alert on them would resolve just when someone comes to
look. So drift is looked for in the last hours (`max_over_time`), and `keep_firing_for` bridges
restarts of the training job. Behaviours that are `expected` or acknowledged raise no alert.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from wvmonitor.errors import SettingsError

_DURATION = re.compile(r"[1-9][0-9]{0,5}[smhdw]")

HEADER = """\
# Alert rules for wvmonitor, written by `wvmonitor rules`: write them again rather than edit them.
# Check with `promtool check rules FILE`; Prometheus 2.42 or later (keep_firing_for).
"""

Rule = dict[str, Any]


@dataclass(frozen=True)
class RuleTimes:
    """How patient the rules are; durations as Prometheus writes them ("15m").

    Attributes:
        hold: how long an alarm goes on firing after its series are gone.
        recent: how long a warning, or a score above its threshold, does.
        stale: time without a reading after which a run counts as silent.
        horizon: how far ahead a trend is drawn, from as much time behind.
        coverage: least share of ‖τ‖² that must lie where scores look. Below one half the verdict
            is unknown; full fine-tunes leave a few per cent in embeddings and norms.
    """

    hold: str = "12h"
    recent: str = "30m"
    stale: str = "30m"
    horizon: str = "1h"
    coverage: float = 0.9

    def __post_init__(self) -> None:
        for name in ("hold", "recent", "stale", "horizon"):
            value = getattr(self, name)
            if not _DURATION.fullmatch(value):
                raise SettingsError(f"{name} must be a duration like 30m or 12h, got {value!r}")
        if not 0 <= self.coverage <= 1:
            raise SettingsError(f"coverage must lie in [0, 1], got {self.coverage}")


def alert_rules(behaviours: Mapping[str, str], times: RuleTimes | None = None) -> dict[str, Any]:
    """The rules as Prometheus's file holds them: one group a behaviour, and one for the monitor.

    Args:
        behaviours: what each reference stands for, in words, by its name.
        times: how patient the rules are.

    Raises:
        SettingsError: there is no behaviour to watch for.
    """
    if not behaviours:
        raise SettingsError("the bank holds no behaviour, only controls: there is nothing to alert")
    times = times or RuleTimes()
    groups = [
        {"name": f"wvmonitor {name}", "rules": _drift(name, words, times)}
        for name, words in behaviours.items()
    ]
    return {"groups": [*groups, {"name": "wvmonitor itself", "rules": _health(times)}]}


def rules_text(behaviours: Mapping[str, str], times: RuleTimes | None = None) -> str:
    """The rules as the text of a YAML file."""
    rules = alert_rules(behaviours, times)
    return HEADER + yaml.dump(rules, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Promql(str):
    """An expression, which YAML shows as it is rather than folded into prose."""


class _Dumper(yaml.SafeDumper):
    """Writes expressions as literal blocks."""


_Dumper.add_representer(
    _Promql, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|")
)


def _drift(name: str, words: str, times: RuleTimes) -> list[Rule]:
    """The rules on one behaviour."""
    which = f"reference={json.dumps(name, ensure_ascii=False)}"
    score = f"wvmonitor_deciding_score{{{which}}}"
    threshold = f"wvmonitor_threshold{{{which}}}"
    ahead = times.horizon
    told = f"Run {{{{ $labels.run }}}} drifts towards {_literal(name)}"
    look = (
        f"The reference stands for: {_literal(words)}. Look at "
        "`wvmonitor report` for the run; `wvmonitor ack` or `expected` if this is wanted."
    )

    def state(verdict: str, window: str) -> str:
        series = f'wvmonitor_verdict{{{which},verdict="{verdict}"}}'
        return f"{_each(f'max_over_time({series}[{window}])')} == 1"

    above = f"{_each(_over(score, times.recent))} > {_each(_over(threshold, times.recent))}"
    rising = (
        f"{_each(f'predict_linear({score}[{ahead}], {_seconds(ahead)})')} > {_each(threshold)}\n"
        f"and {_each(f'deriv({score}[{ahead}])')} > 0\n"
        f"and {_each(score)} > 0.5 * {_each(threshold)}\n"
        f"and {_each(score)} <= {_each(threshold)}"
    )
    rules = [
        _rule(
            "WVMonitorAlarm",
            "critical",
            _wanted(state("alarm", times.hold), times.hold),
            f"{told}: alarm",
            look,
            keep="15m",
        ),
        _rule(
            "WVMonitorWarn",
            "warning",
            _wanted(state("warn", times.recent), times.recent),
            f"{told}: warning",
            look,
            keep="15m",
        ),
        _rule(
            "WVMonitorAboveThreshold",
            "warning",
            _wanted(above, times.recent),
            f"{told}: its score {{{{ $value | printf `%.3g` }}}} is above the threshold",
            f"{look} The verdict may say less: a control that fits better, or a run that the "
            "calibration does not speak of.",
            wait="5m",
            keep="15m",
        ),
        _rule(
            "WVMonitorTrend",
            "info",
            _wanted(rising, times.recent),
            f"{told}: its score would pass the threshold within {ahead}",
            f"{look} This is a straight line through the last {ahead}, no verdict.",
            wait="10m",
        ),
        _rule(
            "WVMonitorUnjudged",
            "warning",
            f'{_each(f"""wvmonitor_verdict{{{which},verdict="unknown"}}""")} == 1',
            f"Run {{{{ $labels.run }}}} cannot be judged for {_literal(name)}",
            "Unknown is not ok. The verdict's reason is in the log, in `wvmonitor report` and in "
            "`wvmonitor journal export`.",
            wait="15m",
        ),
    ]
    for rule in rules:  # the series have it already: so that no two rules look the same to promtool
        rule["labels"]["reference"] = name.replace("{{", '{{"{{"}}')
    return rules


def _health(times: RuleTimes) -> list[Rule]:
    """The rules on the monitor itself."""
    stamp = "wvmonitor_last_reading_timestamp_seconds"
    progress = "wvmonitor_progress_ratio"
    errors = "wvmonitor_errors_total"
    run = "Run {{ $labels.run }}"
    return [
        _rule(
            "WVMonitorStale",
            "warning",
            f"time() - {_each(stamp, 'run')} > {_seconds(times.stale)}\n"
            f"unless on (run) {_each(progress, 'run')} >= 1",
            f"{run} has not been measured for {{{{ $value | humanizeDuration }}}}",
            "Training hangs, or the monitor has switched itself off after failures: see its log.",
            wait="1m",
        ),
        _rule(
            "WVMonitorVanished",
            "warning",
            f"{_each(_over(progress, times.recent), 'run')} < 1\n"
            f"unless on (run) {_each(progress, 'run')}",
            f"{run} is gone at {{{{ $value | humanizePercentage }}}} of its steps",
            "It was stopped or killed, or its metrics cannot be reached any more. What it was "
            "doing until then is in its journal.",
            wait="5m",
        ),
        _rule(
            "WVMonitorAbsent",
            "info",
            "absent(wvmonitor_build_info)",
            "No monitor is being scraped",
            "Either nothing is being trained, or the monitors cannot be reached. Route this where "
            "training is meant to run around the clock, and nowhere else.",
            wait="15m",
        ),
        _rule(
            "WVMonitorCoverage",
            "warning",
            f"min by (run) (wvmonitor_coverage_ratio) < {times.coverage:g}",
            f"{run}: scores see {{{{ $value | humanizePercentage }}}} of the change",
            "The rest of the change lies in parameters that no reference touches, or outside the "
            "components that scores look at. Below 50 % no verdict is passed.",
            wait="10m",
        ),
        _rule(
            "WVMonitorErrors",
            "warning",
            # `increase` alone misses a counter's first value, which has nothing before it
            f"sum by (job, instance, where) (increase({errors}[{times.recent}])) > 0\n"
            f"or sum by (job, instance, where) ({errors} unless {errors} offset {times.recent}) "
            "> 0",
            "The monitor at {{ $labels.instance }} fails at its {{ $labels.where }}",
            "Training goes on unwatched while this lasts: see the training job's log.",
        ),
        _rule(
            "WVMonitorUndelivered",
            "warning",
            "min_over_time(wvmonitor_outbox_pending[15m]) > 0",
            "The monitor at {{ $labels.instance }} cannot deliver its alerts",
            "{{ $value }} deliveries of its own notifiers wait: see the training job's log for "
            "the cause. They are kept in the journal and tried again.",
            wait="1m",
        ),
    ]


def _rule(
    name: str,
    severity: str,
    expression: str,
    summary: str,
    description: str,
    *,
    wait: str | None = None,
    keep: str | None = None,
) -> Rule:
    rule: Rule = {"alert": name, "expr": _Promql(expression)}
    if wait is not None:
        rule["for"] = wait
    if keep is not None:
        rule["keep_firing_for"] = keep
    rule["labels"] = {"severity": severity}
    rule["annotations"] = {"summary": summary, "description": description}
    return rule


def _wanted(expression: str, window: str) -> str:
    """The expression, but for behaviours that the run was declared to drift towards."""
    expected = _each(_over("wvmonitor_expected", window))
    return f"({expression})\nunless on (run, reference) {expected} == 1"


def _each(expression: str, *by: str) -> str:
    """One value a run and reference, wherever it was scraped from."""
    return f"max by ({', '.join(by or ('run', 'reference'))}) ({expression})"


def _over(series: str, window: str) -> str:
    return f"max_over_time({series}[{window}])"


def _seconds(duration: str) -> int:
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}[duration[-1]]
    return int(duration[:-1]) * unit


def _literal(text: str) -> str:
    """Words of a card inside an annotation, where braces would be a template."""
    return " ".join(text.split()).rstrip(".").replace("{{", '{{"{{"}}')
