"""Making, keeping and refusing calibrations."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wvmonitor.detection.band import FORMAT_VERSION, Calibration
from wvmonitor.detection.calibration import BenignRun, calibrate
from wvmonitor.detection.verdict import JudgeState, judge
from wvmonitor.errors import (
    CalibrationError,
    FormatVersionError,
    MalformedFileError,
    MissingPathError,
)


def test_calibration_is_the_split_conformal_band(calibration, benign_runs):
    """Centre, spread and multiplier are those of the two halves, computed by hand."""
    runs = {r.dataset: r for r in benign_runs(38)}
    order = sorted(calibration.bands)
    grid = np.array(calibration.grid)

    def path(dataset):
        """Progress, scores, and what they gained over the last tenth of the run."""
        scores = runs[dataset].scores
        values = np.array(
            [[s.references[b].values["response"]["residual"] for b in order] for s in scores]
        )
        times, norms = np.array([(s.progress, s.norm) for s in scores]).T
        along = np.vstack([np.zeros(2), values * norms[:, None]])
        before = [
            [np.interp(max(t - 0.1, 0), [0, *times], along[:, i]) for i in range(2)] for t in times
        ]
        return times, values, (along[1:] - before) / norms[:, None]

    def on_grid(which):
        return np.stack(
            [
                np.stack([np.interp(grid, p[0], p[which][:, i]) for i in range(2)], axis=1)
                for p in map(path, calibration.fit_datasets)
            ]
        )

    def exceedances(dataset, which):
        mu, sigma = on_grid(which).mean(0), on_grid(which).std(0, ddof=1)
        least = 0.25 * np.median(sigma)
        times, *values = path(dataset)
        return [
            (s - np.interp(t, grid, mu[:, i])) / max(np.interp(t, grid, sigma[:, i]), least)
            for t, row in zip(times, values[which - 1], strict=True)
            for i, s in enumerate(row)
        ]

    far = [
        np.quantile([max(exceedances(d, which)) for d in calibration.fit_datasets], 0.9)
        for which in (1, 2)
    ]
    unit = 1.5 * far[1] / far[0]
    maxima = sorted(
        max(*exceedances(d, 1), *(z / unit for z in exceedances(d, 2)))
        for d in calibration.band_datasets
    )
    assert calibration.multiplier == pytest.approx(maxima[-1], rel=1e-9)
    assert calibration.warn_multiplier == pytest.approx(maxima[17], rel=1e-9)
    np.testing.assert_allclose(calibration.maxima, maxima, rtol=1e-9)
    np.testing.assert_allclose(calibration.bands["flattery"].mu, on_grid(1).mean(0)[:, 1])
    gain = calibration.gain.bands["evil"]
    np.testing.assert_allclose(gain.mu, on_grid(2).mean(0)[:, 0], atol=1e-12)
    np.testing.assert_allclose(gain.sigma, unit * on_grid(2).std(0, ddof=1)[:, 0], rtol=1e-9)


def test_calibration_says_what_it_rests_on(calibration):
    """n, the promised rate, its honest bound and the support are in the record."""
    assert (calibration.n_fit, calibration.n_band, calibration.alpha) == (19, 19, 0.05)
    assert round(calibration.rate_bound, 3) == 0.146
    assert calibration.warn_alpha == 0.1
    assert len(calibration.datasets) == 38
    assert not set(calibration.fit_datasets) & set(calibration.band_datasets)
    support = calibration.support
    assert support.methods == {"lora": (8, 8)}
    assert support.optimizers == ("adamw",)
    assert support.planned_steps == (100, 100)
    assert support.learning_rates == (1e-4, 1e-4)
    assert support.readings == (20, 20)
    assert support.horizon == 1.0
    assert support.smallest_norm[0] == pytest.approx(0.2)
    assert support.largest_norm[-1] == pytest.approx((0.2 + 19 / 20) * (1 + 37 / 38))


def test_split_depends_on_the_datasets_only(calibration, benign_runs):
    """The halves follow from the datasets' names: no order of the runs changes the calibration."""
    assert calibrate(benign_runs(38)[::-1], bank="bank") == calibration


def test_an_odd_run_goes_to_the_fit(benign_runs):
    """Of an odd number of runs the band gets the smaller half, so n is never overstated."""
    found = calibrate(benign_runs(39, readings=3), bank="bank")
    assert (found.n_fit, found.n_band) == (20, 19)


def test_threshold_by_hand(calibration):
    """The threshold is μ + M·max(σ, σ_min), interpolated between grid points."""
    band, m = calibration.bands["evil"], calibration.multiplier
    middle = (calibration.grid[4] + calibration.grid[5]) / 2
    mu = (band.mu[4] + band.mu[5]) / 2
    sigma = max((band.sigma[4] + band.sigma[5]) / 2, calibration.sigma_min)
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
        broken(sigma_min=0.0),
        broken(warn_multiplier=1e9),
        broken(multiplier=float("nan")),
        broken(gain={"span": 0.1, "bands": {}, "sigma_min": 1.0}),
        lambda document: {**document, "gain": {**document["gain"], "sigma_min": 0.0}},
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


@pytest.mark.parametrize(("alpha", "needed"), [(0.05, 38), (0.01, 198)])
def test_too_few_runs_are_refused_with_the_number_needed(benign_runs, alpha, needed):
    """One run too few for α is refused, and the message says how many are needed."""
    runs = benign_runs(needed, readings=3)
    assert calibrate(runs, bank="bank", alpha=alpha).n_band == needed // 2
    with pytest.raises(CalibrationError, match=f"needs {needed} benign runs .* got {needed - 1}"):
        calibrate(runs[1:], bank="bank", alpha=alpha)


@pytest.mark.parametrize("alpha", [0.0, -0.1, 0.3, float("nan")])
def test_alpha_must_make_sense(benign_runs, alpha):
    """An α outside (0, 0.25] is refused."""
    with pytest.raises(CalibrationError, match="alpha"):
        calibrate(benign_runs(38, readings=3), bank="bank", alpha=alpha)


def test_two_seeds_of_one_dataset_are_refused(benign_runs):
    """Seeds of one dataset are not independent runs, so a second one is an error that names it."""
    runs = benign_runs(38, readings=3)
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
    runs = benign_runs(38, readings=3)
    runs[7] = with_reading(runs[7], **unusable(make_scores)[words])
    first = min(calibrate(benign_runs(38, readings=3), bank="bank").datasets)
    assert first != runs[7].dataset
    with pytest.raises(CalibrationError, match=words) as error:
        calibrate(runs, bank="bank")
    assert runs[7].dataset in str(error.value)


def test_a_run_of_an_unknown_kind_or_without_change_is_refused(benign_runs, context):
    """Calibrations hold runs whose method is known, whose base is the bank's, and which moved."""
    runs = benign_runs(38, readings=3)
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
    for run in benign_runs(38):
        start = replace(run.scores[0], norm=0.0, progress=0.0)
        empty = {n: replace(r, values={}) for n, r in start.references.items()}
        runs.append(
            BenignRun(run.dataset, [replace(start, references=empty), *run.scores], run.context)
        )
    assert calibrate(runs, bank="bank") == calibrate(benign_runs(38), bank="bank")


def test_nothing_heavy_is_imported():
    """Judging needs neither torch nor scipy, so that importing wvmonitor stays light."""
    code = (
        "import sys, wvmonitor.detection.verdict, wvmonitor.detection.groups; "
        "print([m for m in ('torch', 'scipy', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
