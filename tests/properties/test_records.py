"""What must hold of every journal, alert, page and setting, whatever is in it."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import tempfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from tests.journal.conftest import entry
from tests.outputs.conftest import build
from tests.properties.examples import examples
from tests.report import samples
from wvmonitor.detection.verdict import RunContext, Verdict
from wvmonitor.errors import JournalError, SettingsError, WVMonitorError
from wvmonitor.files.documents import decode_json
from wvmonitor.journal import codec
from wvmonitor.journal.alerts import AlertPolicy, Episode, advance
from wvmonitor.journal.journal import Journal
from wvmonitor.journal.reader import read_journal
from wvmonitor.journal.tools import verify
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.outputs.prometheus import PrometheusExporter
from wvmonitor.report.page import render
from wvmonitor.report.view import RunView

STATES = ("ok", "warn", "alarm", "unknown", "warming")
attempts = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6)), min_size=1, max_size=4)


@examples
@given(plan=attempts)
def test_resuming_any_number_of_times_counts_each_step_once(plan: list[tuple[int, int]]) -> None:
    """Whatever attempts went on from whatever checkpoints, the record is that of one run."""
    model: dict[int, int] = {}  # step -> the attempt whose reading counts
    reached = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, (back, steps) in enumerate(plan, 1):
            resume = min(back, reached)
            journal = Journal.open(folder, run="r")
            journal.begin_attempt(RunContext(), "b", resume_step=resume)
            model = {s: a for s, a in model.items() if s <= resume}
            for step in range(resume, resume + steps):
                journal.record(entry(step, seed=number))
                journal.record(entry(step, seed=number + 100))  # handed over twice: once it is
                model[step] = number
            reached = resume + steps - 1
            journal.close()
        rows = read_journal(folder).trajectory("r")
        assert {row.step: row.attempt for row in rows} == model
        assert len(rows) == len(model)


numbers = st.floats(width=64)


@examples
@given(
    step=st.integers(0, 10**9),
    values=st.lists(numbers, min_size=3, max_size=3),
    words=st.text(max_size=20),
)
def test_a_record_comes_back_to_the_last_bit(step: int, values: list[float], words: str) -> None:
    """Every float of a reading and of its verdict survives the journal, NaN and infinity too."""
    judgement = entry(1)
    reading, verdict = judgement.reading, judgement.verdicts["evil"]
    products = replace(reading.geometries["frobenius"], squared_norms=np.array(values))
    reading = replace(
        reading,
        step=step,
        geometries={"frobenius": products},
        warnings=(words,),
        progress=values[0],
    )
    _, *packed = codec.pack_reading(reading)
    back = codec.unpack_reading(*packed, "here")
    np.testing.assert_array_equal(back.geometries["frobenius"].squared_norms, values)
    assert (back.step, back.warnings) == (step, (words,))
    np.testing.assert_array_equal(back.progress, values[0])
    kept = codec.record(Verdict, codec.load(codec.dump(replace(verdict, score=values[1])), ""), "")
    np.testing.assert_array_equal(kept.score, values[1])


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a sound journal."""
    folder = tmp_path_factory.mktemp("journal")
    journal = Journal.open(folder, run="r", alerts=AlertPolicy(targets=("t",)))
    journal.begin_attempt(RunContext(), "b")
    for step in range(20):
        journal.record(entry(step, "warn"))
    journal.close()
    return (folder / "wvmonitor.db").read_bytes()


@examples
@given(data=st.data())
def test_a_journal_that_is_cut_off_never_verifies(database: bytes, data: Any) -> None:
    """A journal without its end is refused, or has problems; it is never called whole."""
    kept = data.draw(st.integers(0, len(database) - 1))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "wvmonitor.db").write_bytes(database[:kept])
        with contextlib.suppress(JournalError):
            assert verify(folder).problems


@examples
@given(text=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_no_json_is_read_in_two_ways(text: bytes) -> None:
    """A document is one object or a typed error; a key given twice is never settled in silence."""
    with contextlib.suppress(WVMonitorError):
        found = decode_json(b'{"a": 1, "b": ' + text + b"}", "it")
        assert decode_json(json.dumps(found).encode(), "it") == found
    with pytest.raises(WVMonitorError):
        decode_json(b'{"a": 1, "a": 1}', "it")


@examples
@given(
    states=st.lists(st.sampled_from(STATES), max_size=40),
    level=st.sampled_from(("warn", "alarm")),
    resolve_after=st.integers(1, 4),
    acknowledged_at=st.none() | st.integers(0, 39),
)
def test_alerts_follow_the_simplest_model(
    states: list[str], level: Any, resolve_after: int, acknowledged_at: int | None
) -> None:
    """An episode is told once when it opens, once when it rises, and once when it is over."""
    policy = AlertPolicy(("t",), level=level, resolve_after=resolve_after)
    rank = {"warn": 1, "alarm": 2}
    episode, told, expected = Episode(), [], []
    worst, calm = 0, 0  # of the model: 0 while nothing is open
    for time, state in enumerate(states):
        silenced = acknowledged_at is not None and time >= acknowledged_at
        verdict = Verdict("evil", state, "r", 0.1, 0.1, "calibrated", time)  # type: ignore[arg-type]
        episode, alert, targets = advance(
            episode, verdict, run="r", time=float(time), policy=policy,
            bank="b", acknowledged="known" if silenced else None,
        )  # fmt: skip
        if alert is not None:
            told.append((time, alert.status, alert.severity))
            assert targets == ("t",)
        now = 0 if silenced else rank.get(state, 0)
        if worst == 0:
            if now >= rank[level]:
                worst, calm = now, 0
                expected.append((time, "firing", state))
            continue
        name = "alarm" if worst == 2 else "warn"
        if now > worst:
            worst, calm = now, 0
            expected.append((time, "firing", "alarm"))
        elif silenced or (state == "ok" and calm + 1 >= resolve_after):
            worst, calm = 0, 0
            expected.append((time, "resolved", name))
        elif state == "ok":
            calm += 1
        elif now:
            calm = 0
    assert told == expected


@examples
@given(name=st.text(min_size=1, max_size=40), value=numbers)
def test_any_label_is_read_back_by_prometheus(name: str, value: float) -> None:
    """Whatever a run is called and whatever a score is, the parser gives the same back."""
    name = name.encode("utf-8", "replace").decode().replace("\r", "")
    exporter = PrometheusExporter(port=None)
    exporter.export(build(run=name, cosine=value))
    found = [
        sample.value
        for family in text_string_to_metric_families(exporter.page().decode())
        for sample in family.samples
        if sample.name == "wvmonitor_score"
        and sample.labels["run"] == name
        and (sample.labels["score"], sample.labels["geometry"]) == ("cosine", "frobenius")
        and sample.labels["reference"] == "evil"
    ]
    np.testing.assert_array_equal(found, [value])


class Tags(HTMLParser):
    """Every tag of a page, with the names of its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)


def page_of(name: str) -> str:
    values = {"evil": 0.01, "sycophancy": 0.0, "language": 0.0}
    rows = [samples.row(step, values, warnings=(name,)) for step in (4, 8)]
    return render([RunView(name, rows, note=name)], title=name, provenance={name: name})


pieces = st.sampled_from(
    ["<", ">", "&", '"', "'", "`", "</script>", "<!--", "]]>", "{{", "}}", "{%", "javascript:",
     "onload=", "\u202e", "\x1b[31m", "\x00", "\n", " ", "é", "\ud800", "x", "&lt;", "\\", "/*"]
)  # fmt: skip


@examples
@given(name=st.lists(pieces, min_size=1, max_size=12).map("".join))
def test_no_name_can_add_to_a_page(name: str) -> None:
    """A report has the same tags and attributes whatever a run, a note or a warning is called."""
    hostile = page_of(name)
    assert Tags(hostile).found == Tags(page_of("x" + "y" * len(name))).found
    assert "\x1b" not in hostile
    assert "\u202e" not in hostile


secrets = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=8, max_size=24).map(
    lambda s: "s3" + s
)


@examples
@given(secret=secrets, token=secrets, path=secrets, wrong=st.booleans())
def test_no_secret_is_shown(secret: str, token: str, path: str, wrong: bool) -> None:
    """Whatever a secret is, no dump, no log and no error of the settings holds it."""
    notifiers = [
        {"kind": "webhook", "url": f"https://hooks.example/{path}", "secret": secret},
        {"kind": "alertmanager", "url": "https://am.example", "token": token},
    ]
    if wrong:
        notifiers[0]["url"] = f"https://user:{path}@hooks.example/"
        with pytest.raises(SettingsError) as caught:
            MonitorSettings(notifiers=notifiers)
        shown = str(caught.value) + repr(caught.value)
    else:
        settings = MonitorSettings(notifiers=notifiers)
        shown = "".join((
            settings.redacted_json(), repr(settings), str(settings), repr(settings.model_dump()),
            repr(settings.build_notifiers()),
        ))  # fmt: skip
    assert not [s for s in (secret, token, path) if s in shown]


def test_properties_are_tried_on_a_sound_database(database: bytes, tmp_path: Path) -> None:
    """What the cut journals were cut from is whole."""
    (tmp_path / "wvmonitor.db").write_bytes(database)
    assert verify(tmp_path).problems == ()
    with sqlite3.connect(tmp_path / "wvmonitor.db") as raw:
        assert raw.execute("SELECT count(*) FROM readings").fetchone() == (20,)
    raw.close()
