"""transformers' `ExportableState` breaks resuming and leaks arguments into trainer_state.json."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.trainer_callback import ExportableState

WEBHOOK = {"kind": "webhook", "url": "https://127.0.0.1/hook", "secret": "swordfish"}


def test_a_checkpoint_holds_the_run_and_no_arguments(
    begin: Callable[..., Any], tmp_path: Path
) -> None:
    """What resuming needs is beside the checkpoint; the Trainer's own state knows no settings."""
    run = begin(run="one", notifiers=[WEBHOOK])
    run.step()
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    run.tell("on_save")
    run.trainer.state.save_to_json(str(checkpoint / "trainer_state.json"))
    run.callback.monitor.close()
    assert not isinstance(run.callback, ExportableState)
    assert json.loads((checkpoint / "wvmonitor.json").read_text())["run"] == "one"
    text = "".join(path.read_text() for path in checkpoint.glob("*.json"))
    assert "swordfish" not in text
    assert "WVMonitorCallback" not in text
