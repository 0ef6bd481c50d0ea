"""Alert rules for Prometheus, made for the behaviours of one's own bank.

| alert | severity | fires when |
|---|---|---|
| `WVMonitorAlarm` | critical | the verdict on a behaviour is, or lately was, alarm |
| `WVMonitorWarn` | warning | the verdict is, or lately was, warn |
| `WVMonitorAboveThreshold` | warning | the deciding score is above its threshold, judged or not |
| `WVMonitorTrend` | info | the deciding score rises, and is due to pass its threshold |
| `WVMonitorUnjudged` | warning | a behaviour cannot be judged: unknown is never ok |
| `WVMonitorStale` | warning | a run is being scraped, and takes no readings any more |
| `WVMonitorVanished` | warning | a run's series ended, and it never said that it had ended |
| `WVMonitorDisabled` | warning | a monitor has failed too often, and disabled itself |
| `WVMonitorAbsent` | info | no monitor is being scraped at all |
| `WVMonitorCoverage` | warning | part of the change lies where no score looks |
| `WVMonitorErrors` | warning | the monitor itself has failed |
| `WVMonitorUndelivered` | warning | alerts that the monitor sends itself do not arrive |

A run's series vanish when it ends, and an alert on them would resolve just when someone comes to
look. So drift is looked for in the last hours (`max_over_time`), and `keep_firing_for` bridges
restarts of the training job; nothing fires for longer than that after a run's last reading, also
where a Pushgateway keeps its series for ever. Behaviours that are `expected` or acknowledged raise
no alert, and a run that has said that it ended or was stopped is not missed.

The rules are one template, `rules.yml.jinja`, which promtool checks in the tests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2

from wvmonitor.errors import SettingsError

_DURATION = re.compile(r"[1-9][0-9]{0,5}[smhdw]")

HEADER = """\
# Alert rules for wvmonitor, written by `wvmonitor rules`: write them again rather than edit them.
# Check with `promtool check rules FILE`; Prometheus 2.42 or later (keep_firing_for).
"""

TEMPLATE = Path(__file__).with_name("rules.yml.jinja")


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


@dataclass(frozen=True)
class RuleLinks:
    """What alerts link to.

    Attributes:
        runbooks: base URL of the pages on each alert (docs/alerts); alerts link to BASE/ALERT/.
        dashboard: URL of a dashboard, which is given `var-run`.
    """

    runbooks: str | None = None
    dashboard: str | None = None

    def __post_init__(self) -> None:
        for url in (self.runbooks, self.dashboard):
            if url is not None and not re.fullmatch(r"https?://[\x21-\x7e]+", url):
                raise SettingsError(f"a link must look like https://host/path, got {url!r}")


def rules_text(
    behaviours: Mapping[str, str],
    times: RuleTimes | None = None,
    links: RuleLinks | None = None,
) -> str:
    """The rules as Prometheus's file holds them: one group a behaviour, and one for the monitor.

    Raises:
        SettingsError: there is no behaviour to watch for.
    """
    if not behaviours:
        raise SettingsError("the bank holds no behaviour, only controls: there is nothing to alert")
    environment = jinja2.Environment(
        variable_start_string="<<",
        variable_end_string=">>",
        block_start_string="<%",
        block_end_string="%>",
        comment_start_string="<#",
        comment_end_string="#>",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701  this is YAML: see the filters
    )
    environment.filters |= {"quoted": _quoted, "literal": _literal, "seconds": _seconds}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        header=HEADER,
        behaviours=behaviours,
        times=times or RuleTimes(),
        links=links or RuleLinks(),
    )


def _quoted(text: str) -> str:
    """Text in double quotes, as YAML and PromQL both read them."""
    return '"' + "".join(_escaped(c) for c in text) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    return character if character.isprintable() else f"\\U{ord(character):08x}"


def _literal(text: str) -> str:
    """Words of a card on one line, where braces would be a template of Prometheus's."""
    line = " ".join(text.split()).rstrip(".")
    line = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in line)
    return line.replace("{{", '{{"{{"}}')


def _seconds(duration: str) -> int:
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}[duration[-1]]
    return int(duration[:-1]) * unit
