"""Provisional calibrations: the arithmetic, what they aim at by simulation, and how they grow."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from benchmarks import provisional as experiment
from wvmonitor.detection import conformal, provisional
from wvmonitor.detection.band import Calibration
from wvmonitor.detection.calibration import calibrate
from wvmonitor.detection.conformal import Trajectory
from wvmonitor.detection.growing import calibrate_as_far_as_possible, with_more
from wvmonitor.detection.provisional import Prior, bundled_prior, calibrate_provisionally
from wvmonitor.detection.verdict import JudgeState, judge
from wvmonitor.errors import CalibrationError

GRID = np.linspace(0, 1, 41)
FLAT = Prior(
    grid=GRID,
    score=np.ones(41),
    gain=np.ones(41),
    gain_unit=2.0,
    levels=np.array([0.01, 0.025, 0.05, 0.1, 0.25]),
    maxima=stats.norm.isf([0.01, 0.025, 0.05, 0.1, 0.25]),
)
"""Of runs that are one normal number each, all their life."""


def begun(run, progress):
    """The beginning of a benign run."""
    return replace(run, scores=[s for s in run.scores if s.progress <= progress + 1e-9])


@pytest.fixture(scope="module")
def short(benign_runs):
    """Ten harmless runs, read for a third of their length."""
    return [begun(r, 0.35) for r in benign_runs(10)]


@pytest.fixture(scope="module")
def made(short):
    """What they give."""
    return calibrate_provisionally(short, bank="bank")


def test_one_number_a_run_gives_students_interval():
    """Where a run is one normal number, the aim is met exactly: it is the t prediction interval."""
    rng = np.random.default_rng(3)
    n, share, trials = 10, 0.05, 1000
    passed = 0
    for _ in range(trials):
        values = rng.normal(0.3, 7.0, size=n + 1)
        runs = [Trajectory(np.array([0.5, 1.0]), np.array([[v], [v]])) for v in values]
        still = [Trajectory(r.progress, np.zeros((2, 1))) for r in runs]
        score, gain = provisional.fitted(runs[:n], still[:n], FLAT, 1.0)
        limit = provisional.multiplier(n, share, FLAT)
        mean, s = values[:n].mean(), values[:n].std(ddof=1)
        by_hand = mean + stats.t.isf(share, n - 1) * s * np.sqrt(1 + 1 / n)
        assert score.mu[0, 0] + limit * score.sigma[0, 0] == pytest.approx(by_hand)
        passed += conformal.farthest(runs[n], still[n], score, gain)[0] > limit
    assert stats.binom(trials, share).cdf(passed) > 0.001
    assert stats.binom(trials, share).sf(passed - 1) > 0.001


def test_the_scale_comes_from_the_runs_and_the_shape_from_the_prior():
    """Half a run's readings set σ there; beyond them it goes on as the prior says, and μ stays."""
    prior = replace(FLAT, score=1 + GRID)
    times = np.linspace(0.05, 0.5, 10)
    rng = np.random.default_rng(4)
    own = rng.normal(size=12)
    runs = [Trajectory(times, (0.1 * times + 3 * v * (1 + times))[:, None]) for v in own]
    still = [Trajectory(times, np.zeros((10, 1))) for _ in own]
    score, _ = provisional.fitted(runs, still, prior, 0.5)
    seen = (GRID >= 0.05) & (GRID <= 0.5)
    values = np.stack([np.interp(GRID, times, r.values[:, 0]) for r in runs])
    np.testing.assert_allclose(score.mu[seen, 0], values.mean(axis=0)[seen])
    np.testing.assert_allclose(score.mu[GRID > 0.5, 0], values.mean(axis=0)[20])
    np.testing.assert_allclose(score.sigma[:, 0] / score.sigma[0, 0], 1 + GRID)
    assert score.sigma[20, 0] == pytest.approx(1.5 * 3 * own.std(ddof=1), rel=0.02)


def test_no_harmless_run_at_hand_would_have_alarmed(short):
    """The threshold is at least what any of the runs reached, held against the others."""
    wild = [*short[:-1], shifted(short[-1], 0.4)]
    before, after = (calibrate_provisionally(r, bank="bank") for r in (short, wild))
    assert after.multiplier["evil"] == after.maxima["evil"][-1] > before.multiplier["evil"]


def shifted(run, by):
    """The run with larger scores of evil."""
    scores = []
    for s in run.scores:
        evil = s.references["evil"]
        values = {"response": {"residual": evil.values["response"]["residual"] + by}}
        scores.append(replace(s, references={**s.references, "evil": replace(evil, values=values)}))
    return replace(run, scores=scores)


def test_it_says_what_it_is_and_is_kept(made, tmp_path):
    """Status, runs and reach are in the record; no rate is promised; it survives the file."""
    assert (made.status, made.rate_bound, made.n_band) == ("provisional", None, 10)
    assert made.support.reach == 3.0
    assert made.support.planned_steps == (35, 35)
    made.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json", bank="bank") == made
    with pytest.raises(ValueError, match="promises no rate"):
        Calibration.model_validate(json.loads(made.model_dump_json()) | {"rate_bound": 0.1})


def test_it_may_alarm_and_never_claims_a_guarantee(made, make_scores, context):
    """Beyond its threshold a whole run alarms; what the verdict says of it is that it is rough."""
    high = make_scores(0.9, evil=made.threshold("evil", 0.9) + 0.01, flattery=0.02)
    verdicts, _ = judge(high, context, made, JudgeState())
    assert (verdicts["evil"].state, verdicts["flattery"].state) == ("alarm", "ok")
    for verdict in verdicts.values():
        assert verdict.calibration == "provisional"
        assert "Provisional, approximate, from 10 harmless runs" in verdict.reason
        assert "with 39 of full length it is calibrated" in verdict.reason
        assert "at most" not in verdict.reason


def test_it_covers_runs_three_times_as_long(made, make_scores, context):
    """A run of three times the steps that were read is judged; a longer one is not calibrated."""
    verdicts, _ = judge(make_scores(1.0, evil=0.0, flattery=0.0), context, made, JudgeState())
    assert verdicts["evil"].state == "ok"
    longer = replace(context, planned_steps=400)
    verdicts, _ = judge(make_scores(0.5, evil=0.0, flattery=0.0), longer, made, JudgeState())
    assert "400 planned steps" in verdicts["evil"].reason
    assert verdicts["evil"].state != "ok"


def test_what_cannot_be_provisional_is_refused(short, benign_runs):
    """Too few runs, too small a rate, too short a run, one dataset twice: each in words."""
    with pytest.raises(CalibrationError, match="needs 8 harmless runs"):
        calibrate_provisionally(short[:7], bank="bank")
    with pytest.raises(CalibrationError, match="needs 199 benign runs"):
        calibrate_provisionally(short, bank="bank", alpha=0.01)
    cut = [*short[:-1], begun(short[-1], 0.2)]
    with pytest.raises(CalibrationError, match=f"{short[-1].dataset} was read for 20%"):
        calibrate_provisionally(cut, bank="bank")
    with pytest.raises(CalibrationError, match="keep one of each"):
        calibrate_provisionally([*short, short[0]], bank="bank")


# --- growing -----------------------------------------------------------------------------------


def test_it_becomes_calibrated_when_the_counts_allow(benign_runs, made):
    """Whole runs added to short ones make it calibrated with the 39th, as if made of them alone."""
    whole = benign_runs(39, seed=8)
    almost = with_more(made, whole[:38])
    assert (almost.status, len(almost.datasets)) == ("provisional", 48)
    grown = with_more(almost, whole[38:])
    assert grown == calibrate(whole, bank="bank")


def test_enough_runs_are_calibrated_at_once(benign_runs, made, short):
    """Which of the two a set of runs gives follows from their number and length alone."""
    assert calibrate_as_far_as_possible(benign_runs(39), bank="bank").status == "calibrated"
    assert calibrate_as_far_as_possible(benign_runs(38), bank="bank").status == "provisional"
    assert calibrate_as_far_as_possible(short, bank="bank") == made


def test_a_guarantee_is_not_given_up_for_longer_runs(benign_runs, context):
    """Runs of another length are refused where the calibration would be provisional again."""
    made = calibrate(benign_runs(39), bank="bank")
    longer = [
        replace(r, context=replace(context, planned_steps=900)) for r in benign_runs(20, seed=3)
    ]
    with pytest.raises(CalibrationError, match="provisional again"):
        with_more(made, longer)


def test_what_cannot_be_added_is_refused(made, short, benign_runs):
    """A dataset that is there, other scores, and calibrations that keep no runs."""
    with pytest.raises(CalibrationError, match=f"a run of {short[2].dataset} already"):
        with_more(made, [short[2]])
    other = benign_runs(1, seed=4)[0]
    other = replace(other, scores=[replace(s, ridge={"response": 3.0}) for s in other.scores])
    with pytest.raises(CalibrationError, match="scored otherwise"):
        with_more(made, [other])
    with pytest.raises(CalibrationError, match="older version"):
        with_more(made.model_copy(update={"runs": ()}), benign_runs(1, seed=4))


# --- the bundled prior, and its experiment -----------------------------------------------------


@pytest.fixture(scope="module")
def suite():
    """The organism suite's committed readings."""
    return experiment.suite()


def test_a_prior_says_what_it_was_made_from_and_nothing_held_against_it_is_in_it(suite):
    """The package's prior is of another base; one that is fitted here shares no run with a draw."""
    kept = json.loads(provisional.PRIOR.read_text("utf-8"))
    assert "another language, base and bank" in kept["from"]
    runs = experiment.for_the_prior(suite)
    fitted = experiment.as_kept(experiment.fit_prior(runs), len(runs))
    assert fitted.keys() == kept.keys()
    assert np.allclose(fitted["score"], kept["score"], rtol=0.6)
    held = experiment.held_out(suite)
    others = [*experiment.to_draw_from(suite), *held.harmless, *held.hard]
    assert not {r.name for r in runs} & {r.name for r in others}


def test_what_is_written_of_the_suite_is_what_its_readings_give(suite):
    """A prior of another base, ten runs of a third of the length: the experiment's own code."""
    prior, held = bundled_prior(), experiment.held_out(suite)
    kept = replace(held, hard=held.hard[:2], bad={"evil": held.bad["evil"]})

    def way(runs, alpha):
        return experiment.by_prior(runs, alpha, prior=prior)

    pool = [r for r in suite if r.split == "calibration" and r.harmless]
    found = experiment.rehearse(way, pool, kept, draws=6)
    written = json.loads((experiment.RESULTS / "provisional.json").read_text())["headline"]
    assert abs(found["false_alarms"]["mean"] - written["false_alarms"]["mean"]) < 0.06
    assert abs(found["caught"]["evil"]["mean"] - written["caught"]["evil"]["mean"]) < 0.1
