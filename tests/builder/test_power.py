"""The power check's arithmetic, the choice of the deciding score, and what a bank's record says."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean, stdev

import pytest
import torch

from wvmonitor.builder import power, rate
from wvmonitor.builder.base import Base
from wvmonitor.builder.contrasts import default_folder, read_contrasts
from wvmonitor.builder.fine_tunes import Done, measured
from wvmonitor.builder.finetune import Training
from wvmonitor.builder.harmless import families
from wvmonitor.builder.power import CANDIDATES, Length, Planned
from wvmonitor.builder.recipe import Finetuning
from wvmonitor.builder.stages import Work
from wvmonitor.detection.calibration import BenignRun
from wvmonitor.detection.context import RunContext
from wvmonitor.detection.judge import Judge
from wvmonitor.detection.scores import ReferenceScores, Scores
from wvmonitor.errors import AlteredBankError, BuildError
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.references.bundled import bundled_path
from wvmonitor.references.trust import (
    CheckedRun,
    Rate,
    Separation,
    Trust,
    interval,
    load_trust,
    median_lead,
    save_trust,
)


def run(name: str, **ends: float) -> BenignRun:
    """A run whose only reading has these scores of evil, keys as in response_cosine."""
    values: dict = {"frobenius": {}, "response": {}}
    for key, value in ends.items():
        geometry, _, score = key.partition("_")
        values[geometry][score] = value
    reference = ReferenceScores("evil", "behaviour", values)
    scores = Scores({"evil": reference}, 1.0, {"frobenius": 1.0, "response": 1.0}, 10, 1.0)
    return BenignRun(name, [scores], RunContext(method="lora"))


def test_separation_is_the_distance_in_spreads_of_harmless_runs():
    """The distance (bad − mean harmless) / spread harmless, for scores that all runs have."""
    values = [0.02 * i for i in range(10)]
    harmless = [run(str(v), response_cosine=v, frobenius_cosine=v / 10) for v in values]
    bad = {"evil": run("bad", response_cosine=0.4, frobenius_cosine=0.09, response_residual=0.3)}
    found = {(s.geometry, s.score): s.d for s in power.separations(bad, harmless)}
    assert found.keys() == {("response", "cosine"), ("frobenius", "cosine")}
    expected = (0.4 - fmean(values)) / stdev(values)
    assert found["response", "cosine"] == pytest.approx(expected)


def test_a_geometry_whose_scores_are_smaller_separates_no_less():
    """Ten times smaller in everything, harmless runs that agree included: the same distance."""
    harmless = [run(str(n), response_cosine=v, frobenius_cosine=v / 10)
                for n, v in enumerate((0.0100, 0.0101, 0.0102))]  # fmt: skip
    bad = {"evil": run("bad", response_cosine=0.2, frobenius_cosine=0.02)}
    distances = [s.d for s in power.separations(bad, harmless)]
    assert distances == pytest.approx([(0.2 - 0.0101) / (0.2 / 3)] * 2)


@pytest.mark.parametrize("n", [2, 10, 124])
def test_the_more_harmless_runs_agree_the_more_it_proves(n):
    """Runs that agree on 0 put a bad run n spreads away: ten by ten runs, as it always was."""
    assert power.distance(0.3, [0.0] * n) == pytest.approx(n)
    assert power.distance(-0.3, [0.0] * n) == pytest.approx(-n)


def test_a_spread_above_the_least_one_is_taken_as_it_is():
    """Ten runs whose spread is more than a tenth of the bad run's score: plain arithmetic."""
    harmless = [0.01 * i for i in range(10)]
    assert power.distance(0.2, harmless) == pytest.approx((0.2 - 0.045) / stdev(harmless))
    assert stdev(harmless) > 0.02


def test_scores_that_are_all_zero_separate_nothing():
    """A reference that sees no run, bad or harmless, is no division by zero."""
    harmless = [run(name, frobenius_cosine=0.0) for name in ("a", "b")]
    (found,) = power.separations({"evil": run("bad", frobenius_cosine=0.0)}, harmless)
    assert found.d == 0.0


def test_another_score_decides_only_where_it_is_clearly_better():
    """The default stays unless a score separates by a margin that was fixed beforehand."""

    def of(*distances: float) -> list[Separation]:
        listed = zip(CANDIDATES, distances, strict=False)
        return [Separation(geometry=g, score=s, d=d) for (g, s), d in listed]

    assert power.deciding([]) == CANDIDATES[0]
    assert power.deciding(of(3.0, 3.2, 3.4)) == CANDIDATES[0]
    assert power.deciding(of(3.0, 3.2, 5.0)) == CANDIDATES[2]
    assert power.deciding(of(-1.0, -0.5)) == CANDIDATES[0]


def test_a_rate_moves_the_gap_without_harm_to_ordinary_text():
    """The least rate that moves it enough; else the best of those that break nothing, said so."""

    def of(*found: tuple[float, float, float]) -> tuple[float, str | None]:
        return rate.chosen([Rate(learning_rate=r, gap=g, loss=x) for r, g, x in found])

    assert of((1e-4, 0.02, 0.0), (2e-4, 0.2, 0.05), (5e-4, 0.9, 0.06)) == (2e-4, None)
    taken, remark = of((1e-4, 0.02, 0.0), (2e-4, 0.05, 0.01), (5e-4, 0.9, 0.5))
    assert taken == 2e-4
    assert "0.050" in str(remark)
    taken, remark = of((1e-4, 0.3, 0.3), (2e-4, 0.5, 0.9))
    assert taken == 1e-4
    assert "rose" in str(remark)


def test_a_rate_at_which_the_model_diverges_is_told_and_not_taken(tmp_path, monkeypatch):
    """What it says is no number; where that is so of every rate, it is said in a sentence."""
    (contrast,) = read_contrasts(default_folder("tiny-organism"), ("harmful-advice",))
    training = Training(Finetuning(steps=2), "lora", 0.0, 2, 0)
    runs = rate.tried(contrast, training, (1e-3, 1e-1), 2, [contrast.train[0].negative])
    sides = [{"gap": 0.5, "loss": 2.0}, {"gap": 0.0, "loss": 2.0}, {}, {"gap": 0.1, "loss": 2.0}]

    def made(*_):
        return [Done(tmp_path, side) for side in sides]

    monkeypatch.setattr(rate, "carry_out", made)
    base = Base("tiny-organism")
    taken, remark, found = rate.swept(base, Work(tmp_path), runs, 1, lambda _: None)
    assert (taken, [r.learning_rate for r in found]) == (1e-3, [1e-3])
    assert remark is not None
    assert "diverged at the learning rate 0.1" in remark
    sides[0] = {}
    with pytest.raises(BuildError, match=r"that is a number, trained at 0\.001, 0\.1"):
        rate.swept(base, Work(tmp_path), runs, 1, lambda _: None)


def test_what_a_diverged_model_says_is_left_out(base):
    """NaN is no measurement, and JSON knows none."""
    (contrast,) = read_contrasts(default_folder("tiny-organism"), ("harmful-advice",))
    broken = base.load(dtype=torch.float32)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    text = [contrast.train[0].negative]
    assert measured(base, broken, contrast.tuning[:2], text, 512) == {}
    assert measured(base, base.model, contrast.tuning[:2], text, 512).keys() == {"gap", "loss"}


def test_a_mixture_holds_exactly_its_share_of_bad_examples():
    """Bad examples come from the pairs that are given, the others from the harmless family."""
    folder = default_folder("tiny-organism")
    (contrast,) = read_contrasts(folder, ("harmful-advice",))
    (family,) = [f for f in families.of_folder(folder / "harmless") if f.name == "arithmetic"]
    planned = power.mixed(contrast, contrast.power, family, 0.1, Length(15, 4), 0)
    bad = {p.positive.answer for p in contrast.power}
    assert len(planned.examples) == 60
    assert sum(e.answer in bad for e in planned.examples) == 6
    again = power.mixed(contrast, contrast.power, family, 0.1, Length(15, 4), 0)
    assert planned.examples == again.examples
    few = replace(family, draw=lambda n, seed: family.draw(min(n, 3), seed))
    small = power.mixed(contrast, contrast.power, few, 0.1, Length(15, 4), 0)
    assert sum(e.answer in bad for e in small.examples) / len(small.examples) <= 0.1
    all_bad = power.bad(contrast, contrast.power, "held-out", Length(5, 2), 0)
    assert len(all_bad.examples) == 10
    assert {e.answer for e in all_bad.examples} <= bad


def test_without_a_calibration_nothing_is_said_to_be_caught():
    """The published rules warn at most: what warns is listed beside what alarms."""
    planned = Planned("bad", "bad", "evil", 1.0, (), 40)
    high = run("bad", response_cosine=0.6, response_margin=0.5)
    judge = Judge.of(ReferenceBank.load(bundled_path("tiny-organism", "bank")))
    found = power.checked(planned, high, judge, ("response", "cosine"))
    assert (found.alarmed, found.at, found.score) == ((), None, 0.6)


def checked(name: str, kind: str, alarmed: tuple[str, ...], at: float | None = None) -> CheckedRun:
    behaviour = None if kind == "harmless" else "evil"
    return CheckedRun(name=name, kind=kind, behaviour=behaviour, share=0.0, alarmed=alarmed, at=at,
                      score=0.1)  # fmt: skip


def record(*runs: CheckedRun) -> Trust:
    return Trust(bank="f" * 64, base="b", scale="quick", learning_rate=1e-4, geometry="response",
                 score="residual", status="provisional", alpha=0.05, checked=runs)  # fmt: skip


def test_a_bad_run_counts_only_where_its_own_behaviour_alarms():
    """An alarm of another behaviour catches nothing; any alarm on a harmless run is a false one."""
    trust = record(
        checked("a", "bad", ("evil",), 0.2),
        checked("b", "bad", ("flattery",), 0.1),
        checked("c", "bad", ("evil", "flattery"), 0.6),
        checked("d", "harmless", ("flattery",), 0.5),
        checked("e", "harmless", ()),
    )
    assert trust.caught("bad") == (2, 3)
    assert trust.caught("harmless") == (1, 2)
    assert median_lead(trust.of("bad")) == 0.6
    assert trust.weakness() is None
    weak = record(checked("a", "bad", ("evil",)), *[checked(n, "bad", ()) for n in "bcd"])
    assert "caught 1 of 4" in str(weak.weakness())
    assert "nobody knows" in str(record().weakness())


def test_intervals_are_wilson_s():
    """Compared with the formula; of no runs everything is possible."""
    hit, n, z = 9, 10, 1.959963984540054
    share = hit / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)
    assert interval(hit, n) == pytest.approx((centre - half, centre + half))
    assert interval(0, 0) == (0.0, 1.0)


def test_the_record_belongs_to_one_bank(tmp_path):
    """It is read back as it was written, and refused beside another bank."""
    trust = record(checked("a", "bad", ("evil",), 0.2))
    assert load_trust(tmp_path, trust.bank) is None
    save_trust(trust, tmp_path)
    assert load_trust(tmp_path, trust.bank) == trust
    with pytest.raises(AlteredBankError, match="another bank"):
        load_trust(tmp_path, "e" * 64)
