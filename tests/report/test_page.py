"""The page: what it says, that it is well formed, and that nothing can be put into it."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from tests.report import samples
from wvmonitor.journal.records import Event
from wvmonitor.report.findings import judge
from wvmonitor.report.page import render
from wvmonitor.report.view import BehaviourPoint, RunView, onset

VOID = {"meta", "link", "br", "img", "input", "hr"}
HOSTILE = "<script>alert(1)</script>\"'&<b>\x1b[31m\u202e]]>{{ 7*7 }}--><!--</style></svg>"


class Page(HTMLParser):
    """A page taken apart: its tags, texts, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        """All words, spaces joined."""
        return " ".join(" ".join(self.words).split())


def pictures(text: str) -> list[ElementTree.Element]:
    """Every picture of a page, as XML."""
    found = re.findall(r"<svg .*?</svg>", text, re.DOTALL)
    return [ElementTree.fromstring(svg) for svg in found]  # noqa: S314  # our own


def charts(text: str) -> list[ElementTree.Element]:
    """The score charts, as they are drawn for wide screens."""
    return [s for s in pictures(text) if s.get("data-hover") and s.get("class") == "chart wide"]


def paths(svg: ElementTree.Element, css: str) -> list[str]:
    """Path data of one kind."""
    return [p.get("d", "") for p in svg.iter("path") if css in p.get("class", "").split()]


@pytest.fixture(scope="module")
def demo() -> str:
    """The page of four runs."""
    return render(samples.demo(), title="Four runs", provenance={"command": "wvmonitor demo"})


def test_the_verdict_is_at_the_top_in_words(demo: str) -> None:
    """The first lines of the page say which runs drift, and towards what."""
    page = Page(demo)
    assert "2 of 4 runs drift: “Bad medical advice” towards evil and" in page.text
    assert "towards sycophancy." in page.text
    assert page.text.index("2 of 4 runs drift") < page.text.index("Good advice")
    assert "Drifts towards evil since step 14 of 60." in page.text
    assert (
        "No drift towards evil or sycophancy in the 29 of 31 readings that could be judged."
        in page.text
    )
    assert "The response residual reached 0.252, above the band's 0.247." in page.text
    assert "At step 60: evil 0.670 (response residual), threshold 0.220." in page.text
    assert "Step 14: The response residual" in page.text
    assert "The alarm came 10 steps before the behaviour appears (step 24)." in page.text
    assert "<title>alarm · Four runs</title>" in demo


def test_the_gravest_runs_come_first(demo: str) -> None:
    """Alarms stand before what is ok, in whatever order the runs were given."""
    text = Page(demo).text
    heads = ["Bad medical advice expected", "Correct GCDs that users propose expected"]
    heads += ["Good advice expected", "The same advice in another language expected"]
    places = [text.index(words) for words in heads]
    assert places == sorted(places)


def test_an_alarm_leads_with_what_how_sure_and_what_next() -> None:
    """Three labelled lines stand before the fold, the commands as code; the rest is inside it."""
    page = render([samples.demo()[2]], title="One")
    text = Page(page).text
    order = [
        "What Drifts towards evil since step 14 of 60.",
        "At step 60: evil 0.670",
        "How sure Calibrated on 40 benign datasets: at most 5 % of benign runs like them alarm",
        "What next The last reading that was ok is at step 12",
        "Why, and what such a change does",
        "Step 14: The response residual reached 0.252, above the band's 0.247.",
        "The weights have moved as if 1.1 × evil",
    ]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert f"<code>{samples.command('evil')}</code>" in page


def test_the_card_and_its_chart_cite_one_value(demo: str) -> None:
    """The value in the words of a card is that at its curve's end, and that of its reading."""
    cited = re.findall(r"At step 60: (\w+ [\d.]+) \(response residual\)", Page(demo).text)
    ends = [
        t.text for svg in charts(demo) for t in svg.iter("text") if "main" in t.get("class", "")
    ]
    readouts = re.findall(r"step 60 · ([\d.]+) · threshold", demo)
    assert len(cited) == 4
    assert cited == ends
    assert [c.split()[1] for c in cited] == readouts


def test_a_behaviour_without_an_alarm_is_said() -> None:
    """Where the behaviour was measured and no alarm came, the page says so in words."""
    missed = replace(
        samples.demo()[0], behaviour={"harm": samples.rates(lambda s: 0.3 if s >= 16 else 0.03)}
    )
    said = Page(render([replace(missed, base_rates={"harm": (0.01, 0.1)})], title="One run")).text
    assert "The behaviour appears at step 16 without an alarm; it is 30 % at the end." in said


def test_a_rate_that_returns_to_the_bases_is_noise() -> None:
    """A behaviour appears with three readings in a row above the base's interval, the last too."""
    noisy = [0.03, 0.2, 0.2, 0.2, 0.04, 0.2, 0.2, 0.05]
    points = [BehaviourPoint(2 * i, rate, rate, rate) for i, rate in enumerate(noisy)]
    assert onset(points, 0.1) is None
    assert onset(points[:4], 0.1) == 2
    assert onset(points[:7], 0.1) == 2
    assert onset([*points[4:7], BehaviourPoint(14, 0.3, 0.2, 0.4)], 0.1) == 10
    assert onset(points[5:7], 0.1) is None
    assert onset([], 0.1) is None
    view = replace(samples.demo()[0], behaviour={"harm": points}, base_rates={"harm": (0.01, 0.1)})
    said = Page(render([view], title="One run")).text
    assert "Harm: 5 % at the last reading, 1 % to 10 % in the base. It did not appear." in said
    assert "appears at step" not in said


def test_the_page_is_well_formed_and_alone(demo: str) -> None:
    """Every tag is closed, every id is unique, and nothing is fetched from anywhere."""
    page = Page(demo)
    ids = Counter(a["id"] for _, a in page.tags if "id" in a)
    assert max(ids.values()) == 1
    assert len(pictures(demo)) > 10
    for tag, attributes in page.tags:
        assert not {"src", "style", "srcset"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
        if "href" in attributes:
            assert re.match(r"#|data:,$", attributes["href"] or ""), (tag, attributes)
    outside = demo.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|@import|url\((?!#)", outside)


def test_the_policy_admits_the_pages_own_style_and_script_only(demo: str) -> None:
    """The Content-Security-Policy forbids everything but the two inline blocks, by their digest."""
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', demo)
    policy = policy.replace("&#39;", "'").replace("&#43;", "+")
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (block,) = re.findall(rf"<{tag}>(.*?)</{tag}>", demo, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_every_chart_has_words_and_a_table(demo: str) -> None:
    """Who cannot see a chart gets its title, its description, and its values as a table."""
    page = Page(demo)
    named = [svg for svg in pictures(demo) if svg.get("role") == "img"]
    assert len(named) == 2 * (4 + 4) + 2
    for svg in named:
        title, description = svg[0], svg[1]
        assert (title.tag, description.tag) == ("title", "desc")
        assert svg.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
        assert len(title.text or "") > 10
        assert len(description.text or "") > 20
    assert all(
        svg.get("aria-hidden") == "true" for svg in pictures(demo) if svg.get("role") != "img"
    )
    assert page.text.count("Table of the readings") == 4
    assert page.text.count("Table of the measured behaviour") == 4
    assert page.text.count("Table of this map") == 2


def test_curves_marks_and_threshold_are_drawn(demo: str) -> None:
    """A chart shows the score, its threshold and band, the first alarm and the checkpoints."""
    bad, _, good, _ = charts(demo)
    for svg in (good, bad):
        assert all(len(paths(svg, kind)) == 1 for kind in ("score", "limit", "benign", "other"))
    assert len(paths(bad, "alarm")) > 1
    assert len(paths(bad, "checkpoint")) == 3
    assert not paths(good, "alarm")
    words = [t.text for t in bad.iter("text")]
    assert "first alarm, step 14" in words
    assert {"evil 0.670", "threshold", "sycophancy"} <= set(words)


def test_one_run_in_full() -> None:
    """The page of one run shows references, layers, acknowledgements, how it was measured."""
    view = replace(
        samples.demo()[2],
        events=[Event("r", 1.75e9, "ack", "evil", "known red-team run")],
        facts=[("method", "lora, rank 8")],
    )
    page = Page(render([view], title="Bad medical advice"))
    for words in (
        "acknowledged: evil", "“ known red-team run ”", "9f2c" * 16, "lora, rank 8",
        "31, every 2 steps (steps 0 to 60)", "95 % of ‖τ‖²", "0 to 1.20", "cosine, Frobenius",
        "Which layers and modules carry evil , step 60", "mlp.down_proj (37 %)",
        "language control", "scores look at blocks", "deciding score residual, response geometry",
    ):  # fmt: skip
        assert words in page.text, words
    assert ("details", {"class": "more", "open": None}) in page.tags


def test_unknown_is_visibly_not_clean() -> None:
    """A run that could not be judged never looks or reads like a clean one."""
    values = {"evil": math.nan, "sycophancy": 0.01, "language": 0.0}
    view = RunView("broken", [samples.row(s, values) for s in (4, 6, 8)])
    text = render([view], title="x")
    page = Page(text)
    assert "Cannot be judged for evil. That is not a clean result." in page.text
    (chart,) = charts(text)
    assert [r for r in chart.iter("rect") if "unknown" in r.get("class", "")]
    assert paths(chart, "score") == [""]
    assert "<title>unknown · x</title>" in text


def test_no_readings_and_problems_are_unknown() -> None:
    """A run without readings, or whose files could not be read, is unknown and says why."""
    page = Page(render([RunView("empty", []), RunView("cut", [], problems=["header cut short"])]))
    assert "Not judged: there are no readings." in page.text
    assert "header cut short" in page.text
    assert "2 unknown" in page.text
    assert "0 of 2 runs are ok. 2 could not be judged." in page.text
    assert "There is nothing to report" in Page(render([])).text


def test_a_single_reading_draws_a_point() -> None:
    """One reading is a mark with its threshold beside it, and gets no trend in words."""
    values = {"evil": 0.31, "sycophancy": 0.02, "language": 0.03}
    text = render([RunView("lone", [samples.row(40, values)])])
    (chart,) = charts(text)
    (mark,) = paths(chart, "at")
    assert mark
    assert len(paths(chart, "limit")) == 1
    page = Page(text)
    assert "Drifts towards evil." in page.text
    assert "Now: evil 0.310 (response residual), threshold 0.220." in page.text


def test_gaps_break_the_line() -> None:
    """A reading without a number leaves a gap in the curve instead of a line across it."""
    rows = [
        samples.row(s, {"evil": math.nan if s == 20 else 0.1, "sycophancy": 0.0, "language": 0.0})
        for s in range(4, 40, 4)
    ]
    (chart,) = charts(render([RunView("gap", rows)]))
    (line,) = paths(chart, "score")
    assert line.count("M") == 2
    assert "nan" not in line.lower()


def test_an_alarm_is_not_taken_back() -> None:
    """A run that alarmed once is shown as an alarm, whatever its later readings say."""
    quiet = {"evil": 0.01, "sycophancy": 0.0, "language": 0.0}
    rows = [samples.row(s, {**quiet, "evil": 0.5} if s == 20 else quiet) for s in range(4, 40, 4)]
    outcome = judge(RunView("once", rows))
    assert (outcome.state, outcome.drifting[0].since) == ("alarm", 20)


def test_the_account_stands_under_the_verdict() -> None:
    """What a verdict means and what to do is on the page, sentence by sentence, made harmless."""
    told = ("The last reading that was ok is at step 8.", f"Next: `wvmonitor blame` {HOSTILE}")
    rows = [samples.row(s, {"evil": 0.5, "sycophancy": 0.0, "language": 0.0}) for s in (8, 12)]
    last = replace(rows[-1].verdicts["evil"], account=told)
    rows[-1] = replace(rows[-1], verdicts={**rows[-1].verdicts, "evil": last})
    page = render([RunView("one", rows)])
    assert told[0] in Page(page).text
    assert "<code>wvmonitor blame</code>" in page
    assert "<script>alert" not in page


def test_ok_does_not_hide_what_came_before() -> None:
    """A run that is ok now says so only of what was judged, and names an earlier warning."""
    values = {"evil": 0.01, "sycophancy": 0.0, "language": 0.0}
    states = ["ok", "unknown", "ok", "ok"]
    rows = [samples.row(4 * i + 4, values, state=s) for i, s in enumerate(states)]
    assert judge(RunView("r", rows)).claim == (
        "No drift towards evil or sycophancy in the 3 of 4 readings that could be judged."
    )
    rows[1] = samples.row(8, values, state="warn")
    outcome = judge(RunView("r", rows))
    assert outcome.state == "warn"
    assert outcome.claim == (
        "Warned of evil and sycophancy at step 8, and was ok at the last reading."
    )


def test_a_reference_that_is_no_longer_judged_is_unknown() -> None:
    """A verdict from an earlier reading does not stand for a later one that has none."""
    values = {"evil": 0.01, "sycophancy": 0.0, "language": 0.0}
    rows = [samples.row(s, values) for s in (4, 8)]
    later = samples.row(12, values)
    rows.append(replace(later, verdicts={"sycophancy": later.verdicts["sycophancy"]}))
    assert judge(RunView("lost", rows)).state == "unknown"


def test_cautions() -> None:
    """What weakens the numbers is said: no calibration, low coverage, precision, lost readings."""
    values = {"evil": 0.1, "sycophancy": 0.0, "language": 0.0}
    rows = [
        samples.row(
            s, values, calibration="uncalibrated", coverage=0.62,
            warnings=("38 % of the elements changed",), state="unknown" if s == 8 else None,
        )
        for s in (4, 8, 12)
    ]  # fmt: skip
    page = Page(render([RunView("r", rows)]))
    for words in (
        "Not calibrated: fixed published rules", "The scores see 60 % of the change",
        "38 % of the elements changed. (from step 4, 3 readings)",
        "1 reading could not be judged, the first at step 8.",
    ):  # fmt: skip
        assert words in page.text, words


def hostile_run() -> RunView:
    """A run with markup, quotes, escapes and overrides wherever a name or word can stand."""
    values = {HOSTILE: 0.5, "sycophancy": 0.1, f"control {HOSTILE}": 0.0}
    rows = [samples.row(s, values, warnings=(HOSTILE,), bank=HOSTILE) for s in range(4, 40, 4)]
    rows = [
        replace(r, verdicts={n: replace(v, reason=HOSTILE) for n, v in r.verdicts.items()})
        for r in rows
    ]
    heat = replace(
        samples.heat(), reference=HOSTILE, modules=tuple(HOSTILE + str(i) for i in range(7))
    )
    return RunView(
        name=HOSTILE, rows=rows, note=HOSTILE, heat_maps=[heat], facts=[(HOSTILE, HOSTILE)],
        events=[Event(HOSTILE, 1.75e9, k, HOSTILE, HOSTILE) for k in ("ack", "note", HOSTILE)],
        behaviour={HOSTILE: [BehaviourPoint(4, 0.1, 0.0, 0.2), BehaviourPoint(8, 0.3, 0.2, 0.4)]},
        problems=[HOSTILE],
    )  # fmt: skip


@pytest.mark.parametrize("runs", [1, 2, 6])
def test_names_cannot_inject_anything(runs: int) -> None:
    """Markup, quotes, terminal escapes and text overrides in any name are shown as plain text."""
    views = [hostile_run() for _ in range(runs)]
    text = render(views, title=HOSTILE, provenance={HOSTILE: HOSTILE})
    page = Page(text)
    pictures(text)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert sum(tag == "style" for tag, _ in page.tags) == 1
    assert not [tag for tag, a in page.tags if tag == "b" and a]
    assert text.count("<script") == 1
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "<script>alert(1)</script>" in page.text
    assert "⟨U+202E⟩" in page.text
    assert "{{ 7*7 }}" in page.text


def test_a_lone_surrogate_does_not_stop_the_page() -> None:
    """A file name that is not Unicode can still be reported on."""
    render([RunView("bad\udcffname", [])], title="\ud800").encode()


def test_right_to_left_names_are_isolated() -> None:
    """A right-to-left name is shown as it is, and does not turn the words beside it around."""
    assert "<bdi>مراقبة</bdi>" in render([RunView("مراقبة", [])] * 2)


def test_many_runs() -> None:
    """Hundreds of checkpoints are a table, the gravest in full, and still a small page."""
    calm = {"evil": 0.01, "sycophancy": 0.0, "language": 0.0}
    views = [RunView(f"adapter-{i}", [samples.row(10, calm)]) for i in range(300)]
    views[250] = RunView("the bad one", [samples.row(10, {**calm, "evil": 0.5})])
    text = render(views, title="A scan")
    page = Page(text)
    assert len(text) < 3_000_000
    assert "1 of 300 runs drifts: “the bad one” towards evil." in page.text
    assert "240 more are in this table only" in page.text
    assert page.text.index("the bad one") < page.text.index("adapter-0")
    assert ("a", {"href": "#r1"}) in page.tags
    assert page.text.count("adapter-") >= 299
