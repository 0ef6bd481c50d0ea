"""Attach without references: the bank made for the model's base, or the command that makes one."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from wvmonitor import WVMonitorCallback
from wvmonitor.errors import MalformedFileError, MissingPathError, SettingsError, SignatureError
from wvmonitor.references.bank import ReferenceBank
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


@pytest.fixture
def registry(tmp_path):
    """Writes a registry whose one entry is for the bundled base, or for another."""
    digest = ReferenceBank.load(bundled_path("tiny-organism", "bank")).base.digest

    def write(entry, base=digest):
        path = tmp_path / "team" / "banks.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"banks": {base: entry}}), "utf-8")
        return path

    return write


def test_a_registry_names_the_bank_of_the_base(trainer, registry, tmp_path):
    """By digest, at a path that starts at the registry's own folder."""
    path = registry({"bank": "mine"})
    shutil.copytree(bundled_path("tiny-organism", "bank"), path.parent / "mine")
    callback = WVMonitorCallback.attach(trainer, banks=path)
    assert callback.monitor.bank.folder == path.parent / "mine"
    with pytest.raises(SettingsError, match="wvmonitor bank"):
        WVMonitorCallback.attach(trainer, banks=registry({"bank": "mine"}, base="sha256:0"))


@pytest.mark.parametrize(
    ("entry", "error", "words"),
    [
        ({"bank": "nowhere"}, MissingPathError, "there is no bank at"),
        ({"bank": "hf://team/bank@abc"}, MissingPathError, "references pull team/bank@abc"),
        ({"bank": "mine", "run": "me.py"}, MalformedFileError, "a registry is"),
        ({"bank": "mine", "public_key": "team.pub"}, SignatureError, "bears no signature"),
    ],
)
def test_a_registry_s_bank_is_checked_and_never_fetched(trainer, registry, entry, error, words):
    """A bank that is not there, not pulled, unsigned or oddly described is refused in words."""
    path = registry(entry)
    shutil.copytree(bundled_path("tiny-organism", "bank"), path.parent / "mine")
    (path.parent / "team.pub").write_text("a key", "utf-8")
    with pytest.raises(error, match=words):
        WVMonitorCallback.attach(trainer, banks=path)
