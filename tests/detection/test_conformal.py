"""The band's arithmetic, and its promise checked by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from wvmonitor.detection import conformal
from wvmonitor.detection.conformal import Trajectory
from wvmonitor.errors import CalibrationError

GRID = np.linspace(0, 1, 41)


@pytest.mark.parametrize(
    ("n", "alpha", "k"), [(19, 0.05, 19), (99, 0.01, 99), (39, 0.05, 38), (18, 0.05, 19)]
)
def test_which_maximum_is_the_band(n, alpha, k):
    """K = ⌈(n+1)(1−α)⌉: the largest of 19 at 5 %, the largest of 99 at 1 %, without float slips."""
    assert conformal.rank(n, alpha) == k


@pytest.mark.parametrize(
    ("alpha", "behaviours", "runs"), [(0.05, 1, 19), (0.05, 2, 39), (0.01, 3, 299), (0.25, 1, 3)]
)
def test_runs_needed(alpha, behaviours, runs):
    """5 % needs 19 benign runs for each behaviour but one more: one fewer cannot set the level."""
    assert conformal.runs_needed(alpha, behaviours) == runs
    share = alpha / behaviours
    assert conformal.order_statistic(np.arange(float(runs))[::-1], share) == runs - 1
    with pytest.raises(CalibrationError, match=f"{runs} are needed"):
        conformal.order_statistic(np.arange(float(runs - 1)), share)


@pytest.mark.parametrize(("n", "alpha", "bound"), [(19, 0.05, 0.146), (99, 0.01, 0.030)])
def test_bound_of_the_realised_rate(n, alpha, bound):
    """With 19 band runs the realised rate is below 14.6 % (95 %), with 99 below 3.0 %."""
    found = conformal.realised_rate_bound(n, alpha)
    assert round(found, 3) == bound
    k = conformal.rank(n, alpha)
    assert found == pytest.approx(1 - 0.05 ** (1 / n), rel=1e-9)
    assert found == pytest.approx(stats.beta(n + 1 - k, k).ppf(0.95), rel=1e-9)


def test_the_bound_over_several_behaviours_holds():
    """Of three behaviours the realised rate is below the bound at least as often as it says."""
    rng = np.random.default_rng(1)
    n, alpha, r = 59, 0.05, 3
    maxima = np.sort(rng.uniform(size=(5000, n, r)), axis=1)
    within = maxima[:, conformal.rank(n, alpha / r) - 1]
    realised = 1 - within.prod(axis=1)
    assert np.mean(realised <= conformal.realised_rate_bound(n, alpha, r)) >= 0.95
    assert conformal.realised_rate_bound(11, 0.25, 3) < 1


def test_realised_rate_is_beta_distributed():
    """The bound is a true one: 95 % of calibrations with n = 39 have a realised rate below it."""
    rng = np.random.default_rng(0)
    n, alpha = 39, 0.05
    maxima = np.sort(rng.uniform(size=(20_000, n)), axis=1)
    realised = 1 - maxima[:, conformal.rank(n, alpha) - 1]
    share = np.mean(realised <= conformal.realised_rate_bound(n, alpha))
    assert share == pytest.approx(0.95, abs=0.006)
    assert realised.mean() == pytest.approx(0.05, abs=0.002)


def test_exceedance_by_hand():
    """(s − μ)/σ, with μ and σ interpolated at the reading's progress."""
    centre = conformal.Centre(
        grid=np.array([0.0, 1.0]),
        mu=np.array([[0.0, 1.0], [0.2, 1.0]]),
        sigma=np.array([[0.1, 0.05], [0.3, 0.05]]),
    )
    run = Trajectory(np.array([0.5, 1.0]), np.array([[0.5, 1.1], [0.5, 0.9]]))
    # At 0.5: μ = 0.1, σ = 0.2 -> 2; 0.1/0.05 = 2. At 1: 0.3/0.3 = 1; −0.1/0.05.
    np.testing.assert_allclose(conformal.exceedance(run, centre), [[2, 2], [1, -2]])


def test_fit_is_mean_and_spread_over_runs():
    """μ and σ are over runs, each held constant before its first and after its last reading."""
    runs = [
        Trajectory(np.array([0.5, 1.0]), np.array([[1.0], [2.0]])),
        Trajectory(np.array([0.25, 0.75]), np.array([[3.0], [5.0]])),
    ]
    centre = conformal.fit(runs, np.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(centre.mu[:, 0], [2.0, 2.5, 3.5])
    np.testing.assert_allclose(centre.sigma[:, 0], np.array([2.0, 3.0, 3.0]) / np.sqrt(2))
    flat = conformal.floored(np.array([[0.1, 3.0], [4.0, 3.0], [4.0, 0.0]]))
    np.testing.assert_allclose(flat, [[1.0, 3.0], [4.0, 3.0], [4.0, 0.75]])


def test_agreeing_runs_do_not_make_a_band_of_no_width():
    """Identical benign runs leave a floor of width, not a division by zero."""
    run = Trajectory(np.array([0.5, 1.0]), np.array([[0.1], [0.1]]))
    centre = conformal.fit([run, run], GRID)
    assert (centre.sigma == conformal.SIGMA_FLOOR).all()
    assert np.isfinite(conformal.exceedance(run, centre)).all()


def test_what_a_run_has_gained_by_hand():
    """(s·‖τ‖ now − s·‖τ‖ a tenth of the run ago)/‖τ‖ now; a run starts at 0."""
    run = Trajectory(np.array([0.05, 0.5, 0.55, 1.0]), np.array([[0.2], [-0.3], [0.1], [0.1]]))
    norms = np.array([1.0, 2.0, 4.0, 4.0])
    # s·‖τ‖ is 0.2, −0.6, 0.4, 0.4; at 0.4 it was −0.6 + 0.8·0.1/0.45, at 0.45 −0.6 + 0.8·0.05/0.45.
    steep = 0.8 / 0.45
    expected = [0.2, -0.1 * steep / 2, (1.0 - 0.05 * steep) / 4, 0.0]
    found = conformal.gains(run, norms)
    np.testing.assert_allclose(found.values[:, 0], expected, atol=1e-12)
    at_start = Trajectory(np.array([0.0, 0.1]), np.array([[0.4], [0.4]]))
    np.testing.assert_allclose(
        conformal.gains(at_start, np.array([1.0, 2.0])).values[:, 0], [0, 0.2]
    )


def test_what_came_before_does_not_delay_a_gain():
    """Thirty readings against the reference dilute a score for long, and a gain not at all."""
    direction = np.repeat([-1.0, 1.0], 30)  # each step moves by one, along the reference or against
    along, norms = np.cumsum(direction), np.arange(1.0, 61.0)
    run = Trajectory(norms / 60, (along / norms)[:, None])
    gained = conformal.gains(run, norms).values[:, 0]
    np.testing.assert_allclose(gained[35:], 6 / norms[35:], rtol=1e-9)
    assert run.values[35, 0] < -0.5
    assert (gained[6:30] < 0).all()


def gained_of(rng, run):
    """The gains of a stream whose ‖τ‖ grows as a run's does, faster in one than in another."""
    return conformal.gains(run, rng.lognormal(sigma=0.5) * np.sqrt(run.progress))


def benign(rng, count, references=3, rho=0.95):
    """`count` AR(ρ) runs with run effects and correlated behaviours, of unequal density and length.

    Steps differ (40 to 80 of them), so do the cadences (every 1 to 4) and the noise of early
    readings; every run is read to its end.
    """
    longest = 80
    shocks = rng.normal(size=(count, longest, references)) * np.sqrt(1 - rho**2)
    shocks[:, 0] /= np.sqrt(1 - rho**2)
    shocks[..., 1:] += 0.7 * shocks[..., :1]
    series = np.empty_like(shocks)
    series[:, 0] = shocks[:, 0]
    for t in range(1, longest):
        series[:, t] = rho * series[:, t - 1] + shocks[:, t]
    effects = rng.standard_t(4, size=(count, 1, references))
    runs = []
    for own, effect in zip(series, effects, strict=True):
        length, every = rng.integers(40, 81), rng.integers(1, 5)
        steps = np.arange(length, 0, -every)[::-1]
        progress = steps / length
        drift = np.sin(3 * progress)[:, None]
        runs.append(
            Trajectory(progress, drift + effect + (1 + 1 / steps[:, None]) * own[steps - 1])
        )
    return runs


def realised(rng, alpha, n, calibrations, held_out, references=3):
    """Of cross-fitted calibrations, the share of new benign runs that alarm for any behaviour."""
    rates = []
    for _ in range(calibrations):
        runs = benign(rng, n + held_out, references)
        gained = [gained_of(rng, r) for r in runs]
        maxima = conformal.cross_fitted(runs[:n], gained[:n], GRID)
        limits = [conformal.order_statistic(m, alpha / references) for m in maxima.T]
        centres = conformal.fit_both(runs[:n], gained[:n], GRID)
        new = zip(runs[n:], gained[n:], strict=True)
        rates.append(np.mean([(conformal.farthest(r, g, *centres) > limits).any() for r, g in new]))
    return np.mean(rates), np.std(rates) / np.sqrt(calibrations)


@pytest.mark.parametrize(
    ("alpha", "references", "calibrations", "held_out"),
    [(0.05, 3, 40, 50), (0.05, 1, 150, 30), (0.25, 2, 150, 20)],
)
def test_the_promise_holds_on_correlated_streams(alpha, references, calibrations, held_out):
    """On benign AR(0.95) runs no more than α ever alarm, for any behaviour, by score or by gain.

    With as few runs as α allows, and the fit crossed over them.
    """
    rng = np.random.default_rng(20)
    n = conformal.runs_needed(alpha, references)
    rate, error = realised(rng, alpha, n, calibrations, held_out, references)
    assert rate <= alpha + 2.6 * error
    # It is not idle either; behaviours go together here, so their shares overlap.
    assert rate >= 0.5 * alpha - 2.6 * error


def test_a_gain_counts_only_above_the_harmless_runs_mean():
    """A run that comes back from far below gains much, and is no further out than its score."""
    grid = np.array([0.0, 1.0])
    flat = conformal.Centre(grid, np.zeros((2, 1)), np.ones((2, 1)))
    progress = np.array([0.5, 1.0])
    below, above = (Trajectory(progress, np.array([[-2.0], [end]])) for end in (-0.5, 0.5))
    gained = Trajectory(progress, np.array([[0.0], [7.0]]))
    assert conformal.farthest(below, gained, flat, flat) == [-0.5]
    assert conformal.farthest(above, gained, flat, flat) == [7.0]


def test_the_promise_does_not_hold_for_seeds_of_one_dataset():
    """Seeds clustered in few datasets break the promise: this is why only one of each is taken."""
    rng = np.random.default_rng(21)
    alarms, total = 0, 0
    for _ in range(150):
        datasets = rng.normal(size=6)  # four to calibrate on, two new ones
        seeds = 0.1 * rng.normal(size=(6, 10))
        maxima = datasets[:, None] + seeds
        band = conformal.order_statistic(np.sort(maxima[2:4].ravel()), 0.05)
        alarms += int((maxima[4:] > band).sum())
        total += 20
    assert alarms / total > 0.15
