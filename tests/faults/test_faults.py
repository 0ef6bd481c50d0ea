"""Whatever goes wrong beside it, training ends with the weights it would have had alone."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from tests.faults.planted import FAULTS
from tests.faults.runs import Scene, digest, trainer
from tests.receiver import Receiver
from wvmonitor import WVMonitorCallback
from wvmonitor.testing import CapturingExporter


@pytest.fixture(scope="module")
def alone(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of the run that nobody watches."""
    run = trainer(tiny_base, tmp_path_factory.mktemp("alone"))
    run.train()
    return digest(run.model)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_said_and_leaves_training_alone(
    name: str,
    alone: str,
    receiver: Receiver,
    tiny_base: Path,
    tiny_bank_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Under any fault the final weights are bit for bit those of an unwatched run, and the log,
    the journal or a metric says what happened.
    """
    fault = FAULTS[name]
    held = fault.prepare(tmp_path)
    run = trainer(tiny_base, tmp_path, **fault.arguments)
    settings = fault.settings
    if callable(settings):
        settings = settings(tmp_path, receiver)
    exporter = CapturingExporter()
    callback = WVMonitorCallback(
        tiny_bank_folder, exporters=[exporter], every_n_steps=1, max_overhead=1, **settings
    )
    callback.attach_to(run)
    scene = Scene(run, callback, exporter, tmp_path, monkeypatch, receiver)
    fault.plant(scene)
    with caplog.at_level(logging.WARNING):
        run.train()
    assert run.state.global_step == run.state.max_steps
    assert digest(run.model) == alone
    if fault.said is not None:
        assert re.search(fault.said, caplog.text), caplog.text
    fault.after(scene)
    if held is not None:
        held.close()
