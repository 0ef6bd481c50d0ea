"""`wvmonitor doctor`: it finds what is wrong, and says so with its exit code."""

import json
import re
import shutil
from importlib.metadata import PackageNotFoundError, metadata

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from wvmonitor.cli.app import app
from wvmonitor.organism import doctor
from wvmonitor.references.bundled import bundled_path

EXTRA = re.compile(r"wvmonitor\[(\w+)\]")


def findings(*arguments):
    result = CliRunner().invoke(app, ["doctor", "--json", *arguments])
    return result.exit_code, {c["topic"]: c for c in json.loads(result.stdout)}


def test_a_sound_installation_passes_and_names_versions():
    code, checks = findings()
    assert code == 0
    assert torch.__version__.startswith(checks["torch"]["detail"].split("+")[0])
    assert checks["exactness"]["outcome"] == "ok"
    assert "evil" in checks["bundled bank"]["detail"]


def test_an_altered_bank_of_the_users_own_is_found(tmp_path):
    bank = tmp_path / "bank"
    shutil.copytree(bundled_path("tiny-organism", "bank"), bank)
    card = bank / "evil" / "card.json"
    card.write_text(card.read_text().replace("evil", "kind", 1))
    code, checks = findings("--references", str(bank))
    assert code == 2
    assert checks[f"bank {bank}"]["outcome"] == "failed"
    assert checks["bundled bank"]["outcome"] == "ok"


def test_wrong_sums_are_found(monkeypatch):
    read = doctor.read_adapter
    monkeypatch.setattr(doctor, "read_adapter", lambda *a: read(*a) * 1.001)
    with pytest.raises(ArithmeticError, match="do not trust"):
        doctor.self_test()


def test_sums_that_are_not_numbers_are_found(monkeypatch):
    monkeypatch.setattr(doctor, "to_dense", lambda update: torch.full(update.shape, np.nan))
    code, checks = findings()
    assert code == 2
    assert checks["exactness"]["outcome"] == "failed"


def test_what_is_missing_is_installed_by_the_command_that_is_named(monkeypatch):
    """The advice names an extra of the package where there is one: some need more packages."""
    declared = set(metadata("wvmonitor").get_all("Provides-Extra"))
    advised = [extra for _, wanted in doctor.OPTIONAL.values() for extra in EXTRA.findall(wanted)]
    assert len(advised) >= 7
    assert set(advised) <= declared

    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", absent)
    signing = next(c for c in doctor.examine() if c.topic == "model-signing")
    assert signing.outcome == "missing"
    assert signing.detail.endswith("pip install 'wvmonitor[signing]'")
