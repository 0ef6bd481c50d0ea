"""Runs of unknown length: the promise by simulation, power, and when nothing can be said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from wvmonitor.detection import edetector
from wvmonitor.detection.calibration import BenignRun, Calibration, calibrate
from wvmonitor.detection.verdict import JudgeState, RunContext, judge
from wvmonitor.references.bundled import bundled_path

BLOCK = 6
OPEN = RunContext(method="lora", rank=8, optimizer="adamw", learning_rate=1e-3)


def streams(rng, runs, windows, *, rho=0.95, behaviours=2):
    """(runs, windows, behaviours) stationary AR(ρ) benign windows, each run with an effect."""
    noise = rng.normal(size=(runs, windows, behaviours)) * np.sqrt(1 - rho**2)
    noise[:, 0] = rng.normal(size=(runs, behaviours))
    for t in range(1, windows):
        noise[:, t] += rho * noise[:, t - 1]
    return 0.02 + 0.01 * rng.normal(size=(runs, 1, behaviours)) + 0.01 * noise


@pytest.mark.parametrize(
    ("n", "alpha", "over"), [(60, 0.05, 3), (19, 0.05, 1), (120, 0.05, 6), (99, 0.01, 1)]
)
def test_how_many_blocks_the_runs_are_good_for(n, alpha, over) -> None:
    """K = ⌊α(n + 1)⌋: one block more would ask for a level that n runs cannot set."""
    assert edetector.blocks(n, alpha) == over
    assert edetector.multiplier(np.arange(float(n)), alpha, over) == n - 1


@pytest.mark.parametrize(("n", "alpha"), [(119, 0.05), (199, 0.01), (39, 0.25)])
def test_a_benign_run_alarms_with_probability_alpha_at_most(n, alpha) -> None:
    """Over the whole open-ended horizon, with AR(0.95) windows, run effects, two behaviours."""
    rng = np.random.default_rng(7)
    calibrations, each, over = 60, 30, edetector.blocks(n, alpha, 2)
    trials, alarms = calibrations * each, 0
    for _ in range(calibrations):
        benign = list(streams(rng, n, BLOCK))
        fitted, maxima = edetector.centre(benign), edetector.cross_fitted(benign)
        limits = [edetector.multiplier(m, alpha, 2 * over) for m in maxima.T]
        for run in streams(rng, each, BLOCK * over):
            blocks = run.reshape(over, BLOCK, 2)
            alarms += any((edetector.block_maxima(b, fitted) > limits).any() for b in blocks)
    # the chance of as many alarms if the true rate were α
    assert stats.binom(trials, alpha).sf(alarms - 1) > 0.001, f"{alarms} of {trials}"
    assert alarms > 0, "a rule that never alarms would pass as well"


def test_the_centre_is_crossed_over_the_runs() -> None:
    """A run's block is held against the windows of the runs outside its own fold."""
    runs = list(streams(np.random.default_rng(5), 20, BLOCK))
    rest = np.concatenate([r for i, r in enumerate(runs) if i % 10 != 3])
    sigma = rest.std(axis=0, ddof=1)
    expected = (runs[13] - rest.mean(axis=0)) / np.maximum(sigma, 0.25 * np.median(sigma))
    np.testing.assert_allclose(edetector.cross_fitted(runs)[13], expected.max(axis=0))


def test_each_block_has_its_share_of_alpha() -> None:
    """A block's E-value K/α·1[M > M_(k)] has a mean of at most 1, and not far below it."""
    rng = np.random.default_rng(8)
    n, alpha, trials = 60, 0.05, 20_000
    over = edetector.blocks(n, alpha)
    maxima = rng.normal(size=(trials, n + 1))
    passed = sum(m[-1] > edetector.multiplier(m[:-1], alpha, over) for m in maxima)
    assert passed / trials * over / alpha == pytest.approx(60 / 61, abs=0.17)


# --- judged ------------------------------------------------------------------------------------


def reading(make_scores, step, window=None, norm=1.0):
    """A reading of unknown progress, at which a window ends or not."""
    scores = make_scores(None, norm=norm, evil=0.02, flattery=0.02)
    references = dict(scores.references)
    for name, value in (window or {}).items():
        values = {"response": {**references[name].values["response"], "window": float(value)}}
        references[name] = replace(references[name], values=values)
    return replace(
        scores, step=step, references=references, lag=100 if window is not None else None
    )


@pytest.fixture(scope="module")
def banded(benign_runs) -> Calibration:
    """120 benign runs with six windows each, α = 5 %: three blocks."""
    rng = np.random.default_rng(3)
    runs = []
    for run, windows in zip(benign_runs(120), streams(rng, 120, BLOCK), strict=True):
        scores = list(run.scores)
        for i, (a, b) in enumerate(windows):
            at = 3 * i + 2
            references = {
                name: replace(r, values={g: {**v, "window": w} for g, v in r.values.items()})
                for (name, r), w in zip(scores[at].references.items(), (a, b, 0, 0), strict=False)
            }
            kept = {**scores[at].references, **references}
            scores[at] = replace(scores[at], references=kept, lag=100)
        runs.append(BenignRun(run.dataset, scores, run.context))
    return calibrate(runs, bank="bank")


def judged(make_scores, calibration, windows, context=OPEN):
    """The states of `evil` after each window, and the last verdict."""
    state, states, verdict = JudgeState(), [], None
    for i, (a, b) in enumerate(windows):
        scores = reading(make_scores, 100 * (i + 1), {"evil": a, "flattery": b})
        verdicts, state = judge(scores, context, calibration, state)
        verdict = verdicts["evil"]
        states.append(verdict.state)
    return states, verdict, state


def test_windows_are_calibrated_with_the_band(banded, tmp_path: Path) -> None:
    """Centre, block, blocks and thresholds are those of the arithmetic, and survive the file."""
    band = banded.windows
    assert band is not None
    assert (band.block, band.blocks, band.lags) == (BLOCK, 3, (100, 100))
    assert band.runs == 120
    for name in ("evil", "flattery"):
        assert band.multiplier[name] == band.maxima[name][-1] >= band.warn_multiplier[name]
    banded.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == banded


def test_calibrations_without_windows_load() -> None:
    """The shipped calibration has no windows, and an open-ended run stays unknown with it."""
    path = bundled_path("tiny-organism", "bank") / "calibration.json"
    assert json.loads(path.read_text())["windows"] is None
    assert Calibration.load(path).windows is None


def test_an_open_ended_run_is_judged_block_by_block(make_scores, banded) -> None:
    """Benign windows are ok for K blocks; after them the verdict is unknown and says why."""
    band = banded.windows
    benign = [(band.mu["evil"], band.mu["flattery"])] * (BLOCK * 3 + 1)
    states, verdict, state = judged(make_scores, banded, benign)
    assert states == ["ok"] * (BLOCK * 3) + ["unknown"]
    assert "18 at most" in verdict.reason
    assert state.windows == BLOCK * 3 + 1


def test_a_drift_that_begins_late_alarms_in_its_first_window(make_scores, banded) -> None:
    """A window beyond the threshold alarms at once, for its behaviour only, and stays."""
    band = banded.windows
    calm = (band.mu["evil"], band.mu["flattery"])
    high = (band.mu["evil"] + (band.multiplier["evil"] + 0.1) * band.sigma["evil"], calm[1])
    states, verdict, state = judged(make_scores, banded, [calm] * 8 + [high] + [calm] * 4)
    assert states == ["ok"] * 8 + ["alarm"] * 5
    assert state.alarmed == {"evil"}
    assert "block 3 of 3" in verdict.reason


def test_power_on_a_drift() -> None:
    """A lasting drift of six benign deviations is found in nine of ten runs, in its first block."""
    rng = np.random.default_rng(9)
    found = 0
    for _ in range(300):
        fitted = edetector.centre(list(streams(rng, 60, BLOCK)))
        maxima = np.array([edetector.block_maxima(r, fitted) for r in streams(rng, 119, BLOCK)])
        run = streams(rng, 1, BLOCK)[0]
        run[:, 0] += 6 * fitted.sigma[0]
        limit = edetector.multiplier(maxima[:, 0], 0.05, 6)
        found += edetector.block_maxima(run, fitted)[0] > limit
    assert found >= 270


def test_between_windows_a_run_keeps_its_state(make_scores, banded) -> None:
    """Before the first window it is warming; between windows neither alarm nor ok is forgotten."""
    band = banded.windows
    state = JudgeState()
    verdicts, state = judge(reading(make_scores, 10), OPEN, banded, state)
    assert verdicts["evil"].state == "warming"
    calm = {"evil": band.mu["evil"], "flattery": band.mu["flattery"]}
    _, state = judge(reading(make_scores, 100, calm), OPEN, banded, state)
    verdicts, state = judge(reading(make_scores, 110), OPEN, banded, state)
    assert verdicts["evil"].state == "ok"
    assert state.windows == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"context": replace(OPEN, method="dora")}, "the method dora"),
        ({"context": replace(OPEN, optimizer="sgd")}, "the optimiser sgd"),
        ({"context": replace(OPEN, optimizer=None)}, "the optimiser is not known"),
        ({"context": replace(OPEN, rank=64)}, "rank 64"),
        ({"lag": 7}, "its window is 7 steps long"),
        ({"coverage": {"response": 0.1}}, "of the change lies where"),
    ],
)
def test_another_kind_of_run_is_unknown(make_scores, banded, change, words) -> None:
    """Method, rank, optimiser, window length and coverage must be those of the benign runs."""
    context = change.pop("context", OPEN)
    scores = replace(reading(make_scores, 100, {"evil": 0.02, "flattery": 0.02}), **change)
    verdicts, _ = judge(scores, context, banded, JudgeState())
    assert verdicts["evil"].state == "unknown"
    assert words in verdicts["evil"].reason


def test_a_run_with_a_plan_is_judged_by_the_band(make_scores, banded, context) -> None:
    """Where progress is known the trajectory band decides, windows or not."""
    verdicts, state = judge(
        make_scores(0.5, evil=0.02, flattery=0.02), context, banded, JudgeState()
    )
    assert verdicts["evil"].state == "ok"
    assert "residual" in verdicts["evil"].reason
    assert state.windows == 0
