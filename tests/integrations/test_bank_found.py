"""Attach without references: the bank made for the model's base, or the command that makes one."""

from __future__ import annotations

import shutil

import pytest
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from wvmonitor import WVMonitorCallback
from wvmonitor.errors import SettingsError
from wvmonitor.references.bundled import bundled_path


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """Trains nothing yet; nothing was pulled on this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("WVMONITOR_REFERENCES", raising=False)
    model = AutoModelForCausalLM.from_pretrained(bundled_path("tiny-organism", "base"))
    args = TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none")
    return Trainer(model=model, args=args, train_dataset=[{"input_ids": [1, 2]}])


def test_the_bank_of_the_model_s_base_is_found(trainer, tmp_path):
    """By the base's digest, whatever the folder is called."""
    banks = tmp_path / "banks"
    shutil.copytree(bundled_path("tiny-organism", "bank"), banks / "some" / "name")
    callback = WVMonitorCallback.attach(trainer, banks=banks)
    assert callback.monitor.bank.folder == banks / "some" / "name"


def test_without_one_the_command_that_makes_it_is_named(trainer):
    """The error is the next step: which command, for which model."""
    with pytest.raises(SettingsError, match=r"wvmonitor bank .*tiny-organism.* --out DIR"):
        WVMonitorCallback.attach(trainer)
