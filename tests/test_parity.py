"""One judge: the same weights get the same verdict, whichever way they come in."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.golden import ways
from tests.golden.ways import Seen, Way
from tests.scan.calibrations import calibration_for
from wvmonitor import Monitor, ReferenceBank
from wvmonitor.errors import SettingsError, UnknownReferenceError
from wvmonitor.journal.tools import acknowledge
from wvmonitor.outputs.prometheus import PrometheusExporter
from wvmonitor.scan.watch import Watcher

AMOUNTS = (0.0, 0.1, 0.4, 0.9, 0.9, 0.2, 2.0)
NUMBER = re.compile(r"-?\d+\.\d+(?:e[+-]?\d+)?")


@pytest.fixture(scope="module")
def way(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Way]:
    """A run of seven readings that drifts to evil, comes back, and goes again; as asked for."""
    vectors = ways.drift(tiny_base, tiny_bank_folder, AMOUNTS, rank=4)
    calibration = tmp_path_factory.mktemp("band") / "calibration.json"
    calibration_for(ReferenceBank.load(tiny_bank_folder)).save(calibration)

    def build(*, calibrated: bool, **more: Any) -> Way:
        given = calibration if calibrated else None
        chosen = vectors[more.pop("vectors", slice(None))]
        return replace(Way(tiny_base, tiny_bank_folder, chosen, given), **more)

    return build


@pytest.mark.parametrize(
    ("calibrated", "options", "states"),
    [
        (True, {}, "ok ok warn alarm alarm alarm alarm"),
        (True, {"optimizer": "lion"}, "ok ok ok warn warn ok warn"),
        (True, {"planned": False, "vectors": slice(6)}, "ok ok ok warn warn ok"),
        (False, {}, "ok ok ok warn warn ok warn"),
        (False, {"planned": False, "vectors": slice(6)}, "ok ok ok warn warn ok"),
        (True, {"rows": 9.0}, "ok ok warn alarm alarm alarm alarm"),
        (False, {"rows": 9.0}, "ok ok ok warn warn ok warn"),
        (True, {"rows": 9.0, "strict_coverage": True}, "unknown " * 6 + "unknown"),
    ],
    ids=[
        *("calibrated", "another optimiser", "open-ended", "uncalibrated", "without a plan"),
        *("token rows", "token rows uncalibrated", "token rows under strict coverage"),
    ],
)
def test_the_same_weights_get_the_same_verdict(
    calibrated: bool, options: Any, states: str, way: Callable[..., Way], tmp_path: Path
) -> None:
    """Live, scanned, watched and rescored: state, words, score and threshold are equal."""
    seen = ways.every_way(way(calibrated=calibrated, **options), tmp_path)
    assert " ".join(ways.states(o.verdicts)["evil"] for o in seen.live) == states
    _assert_equal(seen)
    if options.get("rows"):
        words = [v.reason for o in seen.live for v in o.verdicts]
        strict = options.get("strict_coverage", False)
        part = "of the change lies where" if strict else "a verdict on the blocks alone"
        assert all(part in reason for reason in words)


def test_a_relative_s_references_warn_at_most_on_every_way(
    way: Callable[..., Way], tmp_path: Path
) -> None:
    """Of a declared relative, what would alarm warns and says why, whichever way it comes in."""
    given = way(calibrated=True)
    bank = ways.as_relative(given.bank, tmp_path / "bank")
    calibration = tmp_path / "calibration.json"
    calibration_for(ReferenceBank.load(bank)).save(calibration)
    seen = ways.every_way(replace(given, bank=bank, calibration=calibration), tmp_path / "runs")
    last = {v.reference: v for v in seen.live[-1].verdicts}["evil"]
    assert (last.state, last.calibration) == ("warn", "transferred")
    _assert_equal(seen)


def test_what_is_acknowledged_or_expected_is_quiet_on_both_watched_ways(
    way: Callable[..., Way], tmp_path: Path
) -> None:
    """From the reading after `wvmonitor ack` on, the pages of monitor and sidecar say expected."""
    given = way(calibrated=True, expected=("sycophancy",))

    def acknowledging(page: PrometheusExporter, journal: Path) -> Callable[[Any], None]:
        def between(observation: Any) -> None:
            page.export(observation)
            told.append(page.page().decode())
            if observation.scores.step == given.steps[3]:
                acknowledge(journal, ways.NAME, "evil", "we know")

        return between

    for name, walk, journal in (
        ("live", ways.live, tmp_path / ways.RECORDED / "wvmonitor.db"),
        ("watched", ways.watched, tmp_path / "runs" / ".wvmonitor" / "wvmonitor.db"),
    ):
        page, told = PrometheusExporter(port=None, expected=given.expected), list[str]()
        observations = list(walk(given, tmp_path, acknowledging(page, journal)))
        assert ["evil" in o.acknowledged for o in observations] == [False] * 4 + [True] * 3, name
        flag = f'wvmonitor_expected{{reference="evil",run="{ways.NAME}"}} '
        values = [line for text in told for line in text.splitlines() if line.startswith(flag)]
        assert [v.removeprefix(flag) for v in values[-7:]] == ["0.0"] * 4 + ["1.0"] * 3, name
        assert f'wvmonitor_expected{{reference="sycophancy",run="{ways.NAME}"}} 1.0' in told[-1]


def test_what_a_monitor_refuses_a_sidecar_refuses(way: Callable[..., Way], tmp_path: Path) -> None:
    """A misspelt expected behaviour, or a calibration of other parts, is an error on both ways."""
    misspelt = way(calibrated=True, expected=("evl",)).settings()
    elsewhere = way(calibrated=True).settings(components=("blocks", "embeddings"))
    for settings, error in ((misspelt, UnknownReferenceError), (elsewhere, SettingsError)):
        with pytest.raises(error) as live:
            Monitor(settings=settings)
        with pytest.raises(error) as watched:
            Watcher(tmp_path, settings).close()
        assert str(live.value) == str(watched.value)


def _assert_equal(seen: Seen) -> None:
    assert len(seen.live) == len(seen.scanned) == len(seen.watched) == len(seen.rescored) > 0
    for live, scanned, watched, rescored in zip(
        seen.live, seen.scanned, seen.watched, seen.rescored, strict=True
    ):
        said = {v.reference: v for v in live.verdicts}
        assert live.scores.step == scanned.step == watched.scores.step == rescored.step
        for name, verdict in said.items():
            mine = (verdict.state, verdict.calibration, verdict.score, verdict.threshold)
            beside = {v.reference: v for v in watched.verdicts}[name]
            theirs = (beside.state, beside.calibration, beside.score, beside.threshold)
            _assert_same((*mine, verdict.reason), (*theirs, beside.reason))
            assert len(verdict.account) == len(beside.account)
            for result in (scanned.references[name], rescored.references[name]):
                theirs = (result.verdict, result.calibration, result.score, result.threshold)
                _assert_same((*mine, verdict.reason), (*theirs, result.reason))
                assert len(verdict.account) == len(result.account)


def _assert_same(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    """Equal but for the order in which float32 numbers were added up."""
    for mine, theirs in zip(one, other, strict=True):
        if isinstance(mine, float):
            assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)
        elif isinstance(mine, str):
            assert NUMBER.sub("#", mine) == NUMBER.sub("#", theirs)
            pairs = zip(NUMBER.findall(mine), NUMBER.findall(theirs), strict=True)
            assert all(float(a) == pytest.approx(float(b), rel=0.02, abs=1e-3) for a, b in pairs)
        else:
            assert mine == theirs
