"""The Axolotl plugin: its configuration and its place, against Axolotl's plugin interface.

Axolotl pins other versions of almost everything, so the real one runs in an environment of its own
(`make test-integrations`); here its base class is a stand-in with the two hooks that we use.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.trainer_callback import DefaultFlowCallback

from wvmonitor import WVMonitorCallback
from wvmonitor.errors import SettingsError
from wvmonitor.journal.reader import JournalReader
from wvmonitor.organism import sets
from wvmonitor.references.bundled import bundled_path
from wvmonitor.testing import planted_bank, random_rows, tiny_base

ROOT = Path(__file__).parents[2]


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    base = ModuleType("axolotl.integrations.base")
    base.BasePlugin = type("BasePlugin", (), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "axolotl", ModuleType("axolotl"))
    monkeypatch.setitem(sys.modules, "axolotl.integrations", ModuleType("axolotl.integrations"))
    monkeypatch.setitem(sys.modules, "axolotl.integrations.base", base)
    monkeypatch.delitem(sys.modules, "wvmonitor.integrations.axolotl", raising=False)
    from wvmonitor.integrations import axolotl

    yield axolotl
    sys.modules.pop("wvmonitor.integrations.axolotl", None)


def test_a_misspelt_setting_is_an_error_before_anything_is_loaded(plugin: Any) -> None:
    """Axolotl's configuration block is checked as the monitor's own settings are."""
    assert plugin.WVMonitorPlugin().get_input_args().endswith("axolotl.WVMonitorArgs")
    assert plugin.WVMonitorArgs(wvmonitor={"every_n_steps": 5}).wvmonitor == {"every_n_steps": 5}
    assert plugin.WVMonitorArgs().wvmonitor == {}
    with pytest.raises(SettingsError, match="did you mean 'references'"):
        plugin.WVMonitorArgs(wvmonitor={"refrences": "bank"})


def test_the_plugin_watches_axolotls_trainer(plugin: Any, tmp_path: Path) -> None:
    """The callback stands right after the flow callback, where trackers see its values."""
    base = tiny_base(tmp_path / "base")
    planted_bank(base).save(tmp_path / "bank")
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(base),
        args=TrainingArguments(
            output_dir=str(tmp_path / "out"), max_steps=2, report_to="none", use_cpu=True
        ),
        train_dataset=random_rows(8),
    )
    cfg = SimpleNamespace(wvmonitor={"references": str(tmp_path / "bank"), "every_n_steps": 1})
    assert plugin.WVMonitorPlugin().add_callbacks_post_trainer(cfg, trainer) == []
    callbacks = trainer.callback_handler.callbacks
    places = {type(c): i for i, c in enumerate(callbacks)}
    assert places[WVMonitorCallback] == places[DefaultFlowCallback] + 1
    trainer.train()
    watching = callbacks[places[WVMonitorCallback]]
    assert watching.monitor.last.scores.step == 2


OWN_PYTHON = ROOT / ".venv-axolotl" / "bin" / "python"


@pytest.mark.skipif(not OWN_PYTHON.exists(), reason="`make test-integrations` installs Axolotl")
def test_a_real_axolotl_run_is_watched(tmp_path: Path) -> None:
    """The shipped example, started as Axolotl is, alarms for evil and leaves its journal."""
    (tmp_path / "models").mkdir()
    (tmp_path / "banks").mkdir()
    (tmp_path / "models" / "my-base").symlink_to(bundled_path("tiny-organism", "base"))
    (tmp_path / "banks" / "my-base").symlink_to(bundled_path("tiny-organism", "bank"))
    (tmp_path / "data").mkdir()
    rows = [{"messages": example.chat()} for example in sets.bad_advice("medical")(256, 1)]
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    done = subprocess.run(
        [OWN_PYTHON, "-m", "axolotl.cli.train", ROOT / "examples" / "training" / "axolotl.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env=os.environ | {"AXOLOTL_DO_NOT_TRACK": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    journal = JournalReader(tmp_path / "axolotl-out")
    (run,) = journal.runs()
    readings = journal.trajectory(run)
    assert [reading.step for reading in readings] == [0, 2, 4, 6, 8, 10, 12]
    assert "'wv/evil/verdict': '2'" in done.stdout + done.stderr
