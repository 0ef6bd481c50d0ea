"""Making, keeping and refusing calibrations."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from wvmonitor.detection.band import FORMAT_VERSION, Calibration
from wvmonitor.detection.calibration import BenignRun, calibrate
from wvmonitor.detection.verdict import JudgeState, judge
from wvmonitor.errors import (
    CalibrationError,
    FormatVersionError,
    MalformedFileError,
    MissingPathError,
)


def by_hand(runs, grid):
    """Scores and gains of each run by dataset, as (progress, scores, gains)."""
    found = {}
    for run in runs:
        values = np.array(
            [
                [s.references[b].values["response"]["residual"] for b in ("evil", "flattery")]
                for s in run.scores
            ]
        )
        times, norms = np.array([(s.progress, s.norm) for s in run.scores]).T
        along = np.vstack([np.zeros(2), values * norms[:, None]])
        before = [
            [np.interp(max(t - 0.1, 0), [0, *times], along[:, i]) for i in range(2)] for t in times
        ]
        found[run.dataset] = times, values, (along[1:] - before) / norms[:, None]
    return found


def centred(paths, names, which, grid):
    """μ, σ of these runs on the grid, σ with its floor."""
    table = np.stack(
        [
            np.stack([np.interp(grid, paths[d][0], paths[d][which][:, i]) for i in range(2)], 1)
            for d in names
        ]
    )
    sigma = table.std(0, ddof=1)
    return table.mean(0), np.maximum(sigma, 0.25 * np.median(sigma, axis=0))


def out(path, which, mu, sigma, grid):
    """(T, 2) standardised values of one run."""
    times = path[0]
    columns = [
        (path[which][:, i] - np.interp(times, grid, mu[:, i])) / np.interp(times, grid, sigma[:, i])
        for i in range(2)
    ]
    return np.stack(columns, 1)


def test_calibration_is_the_cross_fitted_band(calibration, benign_runs):
    """Centre, spread and multipliers are those of ten folds, computed by hand."""
    grid = np.array(calibration.grid)
    paths = by_hand(benign_runs(39), grid)
    names = sorted(paths, key=lambda d: hashlib.sha256(d.encode()).digest())

    def fitted(chosen):
        score, gain = (centred(paths, chosen, which, grid) for which in (1, 2))
        far = [
            np.quantile([out(paths[d], w, *c, grid).max(0) for d in chosen], 0.9, axis=0)
            for w, c in ((1, score), (2, gain))
        ]
        return score, (gain[0], gain[1] * 1.5 * far[1] / far[0])

    maxima = []
    for i, held in enumerate(names):
        score, gain = fitted([d for j, d in enumerate(names) if j % 10 != i % 10])
        z, g = out(paths[held], 1, *score, grid), out(paths[held], 2, *gain, grid)
        maxima.append(np.maximum(z, np.where(z > 0, g, -np.inf)).max(0))
    maxima = np.sort(maxima, axis=0)
    score, gain = fitted(names)
    for i, name in enumerate(("evil", "flattery")):
        np.testing.assert_allclose(calibration.maxima[name], maxima[:, i], rtol=1e-9)
        # k = ⌈40 · (1 − 0.025)⌉ = 39, and ⌈40 · 0.95⌉ = 38 for the warning.
        assert calibration.multiplier[name] == pytest.approx(maxima[38, i], rel=1e-9)
        assert calibration.warn_multiplier[name] == pytest.approx(maxima[37, i], rel=1e-9)
        for band, (mu, sigma) in (
            (calibration.bands[name], score),
            (calibration.gain.bands[name], gain),
        ):
            np.testing.assert_allclose(band.mu, mu[:, i], atol=1e-12)
            np.testing.assert_allclose(band.sigma, sigma[:, i], rtol=1e-9)


def test_calibration_says_what_it_rests_on(calibration):
    """n, the promised rate, its honest bound and the support are in the record."""
    assert (calibration.n_band, calibration.alpha, calibration.folds) == (39, 0.05, 10)
    assert calibration.rate_bound == pytest.approx(2 * stats.beta(1, 39).ppf(0.975))
    assert (calibration.status, calibration.warn_alpha) == ("calibrated", 0.1)
    assert len(calibration.datasets) == len(calibration.runs) == 39
    support = calibration.support
    assert support.methods == {"lora": (8, 8)}
    assert support.optimizers == ("adamw",)
    assert support.planned_steps == (100, 100)
    assert support.learning_rates == (1e-4, 1e-4)
    assert support.readings == (20, 20)
    assert support.horizon == 1.0
    assert support.smallest_norm[0] == pytest.approx(0.2)
    assert support.largest_norm[-1] == pytest.approx((0.2 + 19 / 20) * (1 + 38 / 39))


def test_the_folds_depend_on_the_datasets_only(calibration, benign_runs):
    """They follow from the datasets' names: no order of the runs changes the calibration."""
    assert calibrate(benign_runs(39)[::-1], bank="bank") == calibration


def test_each_behaviour_has_its_own_threshold(benign_runs):
    """A behaviour whose harmless runs go far out now and then does not widen another's band."""
    runs = benign_runs(39)
    wild = [with_more(r, flattery=0.5) if i % 13 == 0 else r for i, r in enumerate(runs)]
    before, after = (calibrate(r, bank="bank") for r in (runs, wild))
    assert after.bands["evil"] == before.bands["evil"]
    assert after.multiplier["evil"] == before.multiplier["evil"]
    assert after.threshold("flattery", 0.9) > before.threshold("flattery", 0.9) + 0.1


def with_more(run, **added):
    """The run with larger scores from half-way on."""
    scores = [
        replace(
            s,
            references={
                n: replace(
                    r,
                    values={"response": {"residual": r.values["response"]["residual"] + added[n]}},
                )
                if n in added and s.progress > 0.5
                else r
                for n, r in s.references.items()
            },
        )
        for s in run.scores
    ]
    return replace(run, scores=scores)


def test_threshold_by_hand(calibration):
    """The threshold is μ + M·σ, interpolated between grid points."""
    band, m = calibration.bands["evil"], calibration.multiplier["evil"]
    middle = (calibration.grid[4] + calibration.grid[5]) / 2
    mu = (band.mu[4] + band.mu[5]) / 2
    sigma = (band.sigma[4] + band.sigma[5]) / 2
    assert calibration.threshold("evil", middle) == pytest.approx(mu + m * sigma, rel=1e-12)
    assert calibration.warn_threshold("evil", middle) < calibration.threshold("evil", middle)
    value = calibration.threshold("evil", middle)
    assert calibration.exceedance("evil", middle, value) == pytest.approx(m, rel=1e-9)
    with pytest.raises(CalibrationError, match="evil, flattery"):
        calibration.threshold("french", 0.5)


@given(progress=st.floats(0, 1))
def test_unknown_progress_takes_the_largest_threshold(calibration, progress):
    """Without a known progress the threshold is at least that of any progress."""
    assert calibration.threshold("evil", progress) <= calibration.threshold("evil", None) + 1e-12


def test_round_trip(calibration, tmp_path):
    """What is saved is what is loaded, to the last bit, and no partial file stays behind."""
    path = tmp_path / "calibration.json"
    calibration.save(path)
    calibration.save(path)
    assert Calibration.load(path, bank="bank") == calibration
    assert [p.name for p in tmp_path.iterdir()] == ["calibration.json"]
    assert json.loads(path.read_text())["format_version"] == FORMAT_VERSION


def test_failed_save_keeps_the_old_file(calibration, tmp_path, monkeypatch):
    """A crash while saving leaves the old calibration whole."""
    path = tmp_path / "calibration.json"
    calibration.save(path)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        calibration.save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_calibration_belongs_to_one_bank(calibration, tmp_path):
    """A calibration of another bank is refused by name."""
    path = tmp_path / "calibration.json"
    calibration.save(path)
    with pytest.raises(CalibrationError, match="belongs to the bank bank"):
        Calibration.load(path, bank="another")


def test_a_newer_format_is_refused(calibration, tmp_path):
    """A file of a newer version says to upgrade, whatever else it holds."""
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"format_version": FORMAT_VERSION + 1, "novel": True}))
    with pytest.raises(FormatVersionError, match="upgrade"):
        Calibration.load(path)


def test_an_older_file_judges_by_the_score_alone(calibration, make_scores, context, tmp_path):
    """A calibration of format 1 works as it did, and its verdicts say what it does not have."""
    document = json.loads(calibration.model_dump_json()) | {"format_version": 1}
    del document["gain"]
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(document))
    older = Calibration.load(path)
    with pytest.raises(CalibrationError, match="make it again"):
        older.gain_thresholds("evil", 0.5)
    scores = make_scores(evil=older.threshold("evil", 0.5) + 0.01, flattery=0.0)
    verdicts, state = judge(scores, context, older, JudgeState())
    assert verdicts["evil"].state == "alarm"
    assert "no band for recent gains" in verdicts["evil"].reason
    assert state.of("evil").gain_maximum is None
    assert state.of("evil").path == ()


def test_a_file_with_one_threshold_for_all_judges_as_it_did():
    """A file of format 2, as it was once shipped: μ + M·max(σ, σ_min), one M for all behaviours."""
    path = Path(__file__).with_name("calibration-format-2.json")
    document = json.loads(path.read_text())
    assert document["format_version"] == 2
    found = Calibration.load(path)
    assert found.datasets == tuple(sorted(document["fit_datasets"] + document["band_datasets"]))
    assert (found.status, found.folds, found.n_band) == ("calibrated", None, 158)
    for name, band in document["bands"].items():
        for i, progress in enumerate(document["grid"]):
            sigma = max(band["sigma"][i], document["sigma_min"])
            expected = band["mu"][i] + document["multiplier"] * sigma
            assert found.threshold(name, progress) == pytest.approx(expected, rel=1e-12)
        assert found.maxima[name] == tuple(document["maxima"])


def broken(**changes):
    """An edit of the file that sets these keys."""
    return lambda document: {**document, **changes}


@pytest.mark.parametrize(
    "change",
    [
        broken(novel=1),
        broken(alpha="x"),
        broken(alpha=0.0),
        broken(bands={}),
        broken(grid=[0.0, 1.0]),
        broken(grid=[0.0] * 41),
        broken(bands={"evil": {"mu": [0.0] * 41, "sigma": [0.0] * 41}}),
        broken(warn_multiplier=1e9),
        broken(multiplier=float("nan")),
        broken(multiplier={"evil": 3.0}),
        broken(maxima={"evil": [3.0]}),
        broken(status="provisional"),
        broken(rate_bound=None),
        broken(gain={"span": 0.1, "bands": {}, "sigma_min": 1.0}),
        lambda document: {**document, "gain": {**document["gain"], "span": 0.0}},
        lambda document: {k: v for k, v in document.items() if k != "support"},
        lambda document: [document],
        lambda _: "calibration",
    ],
)
def test_an_edited_file_is_refused(calibration, tmp_path, change):
    """A file that is no consistent calibration is refused with its name and what is wrong."""
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(change(json.loads(calibration.model_dump_json()))))
    with pytest.raises(MalformedFileError, match=r"calibration\.json is not a calibration"):
        Calibration.load(path)


@pytest.mark.parametrize("content", ["{", "\x00"])
def test_not_json_is_refused(tmp_path, content):
    """A truncated file is refused as what it is."""
    path = tmp_path / "calibration.json"
    path.write_text(content)
    with pytest.raises(MalformedFileError, match="not JSON"):
        Calibration.load(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    """A path without a file, or that is a folder, is a missing path."""
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(MissingPathError, match="wvmonitor calibrate"):
            Calibration.load(path)


@pytest.mark.parametrize(("alpha", "needed"), [(0.05, 39), (0.01, 199)])
def test_too_few_runs_are_refused_with_the_number_needed(benign_runs, alpha, needed):
    """One run too few for α is refused, and the message says how many are needed."""
    runs = benign_runs(needed, readings=3)
    assert calibrate(runs, bank="bank", alpha=alpha).n_band == needed
    with pytest.raises(CalibrationError, match=f"needs {needed} benign runs .* got {needed - 1}"):
        calibrate(runs[1:], bank="bank", alpha=alpha)


@pytest.mark.parametrize("alpha", [0.0, -0.1, 0.3, float("nan")])
def test_alpha_must_make_sense(benign_runs, alpha):
    """An α outside (0, 0.25] is refused."""
    with pytest.raises(CalibrationError, match="alpha"):
        calibrate(benign_runs(39, readings=3), bank="bank", alpha=alpha)


def test_two_seeds_of_one_dataset_are_refused(benign_runs):
    """Seeds of one dataset are not independent runs, so a second one is an error that names it."""
    runs = benign_runs(39, readings=3)
    runs.append(replace(benign_runs(1, readings=3, seed=9)[0], dataset=runs[4].dataset))
    with pytest.raises(CalibrationError, match=runs[4].dataset):
        calibrate(runs, bank="bank")


def with_reading(run, **changes):
    """The run with its last reading changed."""
    return replace(run, scores=[*run.scores[:-1], replace(run.scores[-1], **changes)])


def unusable(make_scores):
    """Changes of a reading that make it unusable, by words of the error."""
    last = {"norm": 1.2}
    one = make_scores(1.0, evil=0.0, **last).references
    return {
        "another bank": {"bank": "other"},
        "progress": {"progress": None},
        "must lie in": {"progress": 1.2},
        "not finite": {"norm": float("nan")},
        "the others": {"references": one},
        "50%": {"coverage": {"response": 0.4}},
        "it has no residual": {
            "references": make_scores(1.0, name="cosine", evil=0.0, flattery=0.0).references
        },
        "residual of evil is not finite": {
            "references": make_scores(1.0, evil=float("inf"), flattery=0.0).references
        },
        "λ": {"ridge": {"response": 3.0}},
        "over": {"components": ("blocks", "head")},
    }


@pytest.mark.parametrize("words", list(unusable(lambda *_, **__: type("", (), {"references": 0}))))
def test_a_run_that_cannot_be_used_is_named(benign_runs, make_scores, words):
    """A benign run with a reading that cannot be judged is refused by dataset, with the reason."""
    runs = benign_runs(39, readings=3)
    runs[7] = with_reading(runs[7], **unusable(make_scores)[words])
    first = min(calibrate(benign_runs(39, readings=3), bank="bank").datasets)
    assert first != runs[7].dataset
    with pytest.raises(CalibrationError, match=words) as error:
        calibrate(runs, bank="bank")
    assert runs[7].dataset in str(error.value)


def test_a_run_of_an_unknown_kind_or_without_change_is_refused(benign_runs, context):
    """Calibrations hold runs whose method is known, whose base is the bank's, and which moved."""
    runs = benign_runs(39, readings=3)
    still = [replace(s, norm=0.0) for s in runs[7].scores]
    for changed, words in [
        (replace(runs[7], context=replace(context, method=None)), "method"),
        (replace(runs[7], context=replace(context, base="relative")), "base"),
        (replace(runs[7], scores=still), "never moved"),
        (replace(runs[7], scores=[]), "never moved"),
        (replace(runs[7], scores=runs[7].scores[:1]), "let it finish"),
    ]:
        with pytest.raises(CalibrationError, match=words):
            calibrate([*runs[:7], changed, *runs[8:]], bank="bank")


def test_readings_before_the_first_change_do_not_count(benign_runs):
    """A reading at step 0, where τ = 0, neither calibrates nor counts as a reading."""
    runs = []
    for run in benign_runs(39):
        start = replace(run.scores[0], norm=0.0, progress=0.0)
        empty = {n: replace(r, values={}) for n, r in start.references.items()}
        runs.append(
            BenignRun(run.dataset, [replace(start, references=empty), *run.scores], run.context)
        )
    assert calibrate(runs, bank="bank") == calibrate(benign_runs(39), bank="bank")


def test_nothing_heavy_is_imported():
    """Judging needs neither torch nor scipy, so that importing wvmonitor stays light."""
    code = (
        "import sys, wvmonitor.detection.verdict; "
        "print([m for m in ('torch', 'scipy', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
