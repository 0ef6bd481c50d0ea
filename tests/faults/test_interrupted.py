"""Runs that end early: the weights in the end are the same."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import forks
from tests.faults.runs import STEPS, digest, trainer
from wvmonitor import WVMonitorCallback
from wvmonitor.journal import writes
from wvmonitor.journal.reader import JournalReader
from wvmonitor.outputs import checkpoint_record
from wvmonitor.outputs.checkpoint_record import SIDECAR
from wvmonitor.references import ReferenceBank
from wvmonitor.scan.scan import scan

write_reading = writes.reading


@pytest.fixture(scope="module")
def alone(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of the run that nobody watches and nothing interrupts."""
    run = trainer(tiny_base, tmp_path_factory.mktemp("alone"))
    run.train()
    return digest(run.model)


def watched(base: Path, bank: Path, out: Path) -> tuple[Any, WVMonitorCallback]:
    run = trainer(base, out)
    return run, WVMonitorCallback.attach(run, bank, every_n_steps=1)


def resumed(base: Path, bank: Path, out: Path) -> str:
    """Go on from step 3; the digest at the end, once the journal has been looked at."""
    run, callback = watched(base, bank, out)
    run.train(resume_from_checkpoint=str(out / "checkpoint-3"))
    assert callback.monitor.failures == 0
    reader = JournalReader(out)
    (name,) = reader.runs()
    assert [row.step for row in reader.trajectory(name)] == list(range(STEPS + 1))
    return digest(run.model)


def test_a_run_resumed_from_an_older_step_ends_the_same(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path, alone: str
) -> None:
    """A run that went to its end and goes back to step 3 ends there again, each step read once."""
    run, _ = watched(tiny_base, tiny_bank_folder, tmp_path)
    run.train()
    assert digest(run.model) == alone
    assert resumed(tiny_base, tiny_bank_folder, tmp_path) == alone


def killed_while_saving(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def written_slowly(*given: Any) -> Any:
    time.sleep(0.3)
    return write_reading(*given)


def run_until_killed(base: Path, bank: Path, out: Path) -> None:
    """What the process does that is ended in the middle of a save, on a slow disk."""
    checkpoint_record.write_json = killed_while_saving  # type: ignore[assignment]
    writes.reading = written_slowly
    watched(base, bank, out)[0].train()


def test_sigterm_during_a_save_costs_nothing(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path, alone: str
) -> None:
    """Ended while the monitor writes beside a checkpoint, the run goes on from it, whole.

    The reading of the step that was saved is on the disk by then: nobody will read it again.
    """
    killed = forks.ended(run_until_killed, tiny_base, tiny_bank_folder, tmp_path)
    assert killed == -signal.SIGTERM
    assert (tmp_path / "checkpoint-3").is_dir()
    assert not (tmp_path / "checkpoint-3" / SIDECAR).exists()
    assert resumed(tiny_base, tiny_bank_folder, tmp_path) == alone


def test_ctrl_c_reaches_whoever_pressed_it(
    tiny_base: Path,
    tiny_bank_folder: Path,
    tmp_path: Path,
    alone: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An interrupt while the monitor measures ends training, as it would anywhere else."""
    run, callback = watched(tiny_base, tiny_bank_folder, tmp_path)
    real: Callable[..., Any] = callback.monitor.bank.measure

    def measure(tau: Any, **values: Any) -> Any:
        if run.state.global_step == 5:
            raise KeyboardInterrupt
        return real(tau, **values)

    monkeypatch.setattr(callback.monitor.bank, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert callback.monitor.failures == 0
    callback.monitor.close()
    assert resumed(tiny_base, tiny_bank_folder, tmp_path) == alone


def test_a_checkpoint_deleted_during_a_scan_is_an_error_of_its_own(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """What is gone when its turn comes is said to be missing, and the rest is judged."""
    run = trainer(tiny_base, tmp_path)
    run.train()
    last = tmp_path / "checkpoint-6"
    others = [Path(shutil.copytree(last, tmp_path / f"copy-{i}")) for i in range(3)]
    bank = ReferenceBank.load(tiny_bank_folder)
    results = scan(others, bank, base=tiny_base)
    found = [next(results)]
    shutil.rmtree(others[1])
    found += results
    errors = [None if r.error is None else r.error.type for r in found]
    assert errors == [None, "MissingPathError", None]
    assert [bool(r.references) for r in found] == [True, False, True]
