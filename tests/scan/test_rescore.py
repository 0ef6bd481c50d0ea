"""`wvmonitor rescore`: recorded runs of the bundled organism against references that came later."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wvmonitor.cli.app import app
from wvmonitor.detection.verdict import RunContext
from wvmonitor.errors import InputError
from wvmonitor.integrations.transformers import WVMonitorCallback
from wvmonitor.journal.journal import Journal
from wvmonitor.journal.reader import JournalReader
from wvmonitor.journal.records import JournalRow
from wvmonitor.journal.snapshots import path_of
from wvmonitor.organism import sets
from wvmonitor.organism.train import finetune
from wvmonitor.references import ReferenceBank
from wvmonitor.references.bundled import bundled_path
from wvmonitor.references.calibrated import calibration_of
from wvmonitor.scan.rescore import rescore

BASE = bundled_path("tiny-organism", "base")
BANK = bundled_path("tiny-organism", "bank")


@dataclass(frozen=True)
class Recorded:
    """A run watched with one bank and recorded, and what the full bank said of it live."""

    folder: Path
    live: list[JournalRow]


def watched(folder: Path, method: str) -> Recorded:
    """A real Trainer's run on bad advice, watched by two monitors; one of them records."""
    full = ReferenceBank.load(BANK)
    early = full.select(["sycophancy", "language"])
    recording = WVMonitorCallback(
        early,
        run="r",
        every_n_steps=5,
        max_overhead=1.0,
        journal_dir=folder,
        record=True,
        base=BASE,
    )
    live = WVMonitorCallback(
        full, run="r", every_n_steps=5, max_overhead=1.0, journal_dir=folder / "live", base=BASE
    )
    finetune(
        BASE,
        sets.bad_advice("medical")(80, 5),
        seed=5,
        steps=20,
        method=method,  # type: ignore[arg-type]
        learning_rate=1e-3 if method == "lora" else 5e-4,
        attach=lambda trainer: [recording.attach_to(trainer), live.attach_to(trainer)],
    )
    return Recorded(folder, JournalReader(folder / "live").trajectory("r"))


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A LoRA run."""
    return watched(tmp_path_factory.mktemp("lora"), "lora")


def test_a_recorded_lora_run_scores_as_it_would_have_live(lora: Recorded) -> None:
    """References that the run was not watched with give its live scores to 1e-6, and verdicts."""
    bank = ReferenceBank.load(BANK)
    results = list(rescore(lora.folder, bank, calibration=calibration_of(bank)))
    assert [r.step for r in results] == [0, 5, 10, 15, 20]
    for result, seen in zip(results, lora.live, strict=True):
        assert result.error is None
        assert result.norm == pytest.approx(seen.scores.norm, rel=1e-6)
        live = {v.reference: v.state for v in seen.verdicts}
        assert {n: r.verdict for n, r in result.references.items()} == live
        for name, reference in result.references.items():
            expected = seen.scores.references[name].values
            for geometry, values in reference.scores.items():
                for score, value in values.items():
                    wanted = expected.get(geometry, {}).get(score)
                    assert value == (None if wanted is None else pytest.approx(wanted, abs=1e-6))
    assert results[-1].references["evil"].verdict == "alarm"


def test_a_sketch_says_how_far_it_may_be_off(tmp_path: Path) -> None:
    """Of a full fine-tune the sketch's scores are within 0.02 of the live ones, and it says so."""
    recorded = watched(tmp_path, "full")
    results = list(rescore(recorded.folder, ReferenceBank.load(BANK)))
    for result, seen in zip(results[1:], recorded.live[1:], strict=True):
        (note,) = [w for w in result.warnings if "sketch" in w]
        assert "% of ‖τ‖²" in note
        for name, reference in result.references.items():
            for geometry in ("frobenius", "response"):
                live = seen.scores.references[name].values[geometry]["residual"]
                assert reference.scores[geometry]["residual"] == pytest.approx(live, abs=0.02)


def test_a_reading_without_a_snapshot_is_not_judged(lora: Recorded, tmp_path: Path) -> None:
    """A snapshot that is gone is an unknown verdict with its reason, and exit code 2."""
    copy = tmp_path / "copy"
    shutil.copytree(lora.folder, copy)
    path_of(copy / "wvmonitor.db", "r", 1, 10).unlink()
    arguments = ["--behaviour", "sycophancy", "--format", "json"]
    done = CliRunner().invoke(app, ["rescore", str(copy), *arguments])
    assert done.exit_code == 2
    found = json.loads(done.stdout)["checkpoints"]
    assert [r["step"] for r in found if r["error"]] == [10]
    assert "kept nothing of step 10" in done.stderr


def test_the_command_writes_as_scan_does(lora: Recorded, tmp_path: Path) -> None:
    """A table for people, files for machines, and exit code 1 at what fails."""
    out = tmp_path / "found.csv"
    arguments = ["--behaviour", "evil", "--fail-on", "warn", "--output", str(out)]
    done = CliRunner().invoke(app, ["rescore", str(lora.folder), *arguments])
    assert "evil" in done.stdout
    assert done.exit_code == 1
    assert len(out.read_text().splitlines()) > 5


def test_what_was_not_recorded_cannot_be_rescored(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """A run watched without `record` is an error that says what to do; so is an unknown id."""
    bank = ReferenceBank.load(tiny_bank_folder)
    journal = Journal.open(tmp_path, run="r")
    journal.begin_attempt(RunContext(), bank.fingerprint)
    journal.close()
    with pytest.raises(InputError, match="set record=True"):
        rescore(tmp_path, bank)
    with pytest.raises(InputError, match="no run 'other'"):
        rescore(tmp_path, bank, run="other")
