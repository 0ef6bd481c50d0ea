"""A bank's folder while a build replaces it: the old one or the new one, whatever happens."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from wvmonitor.builder.bank_folder import add_to_bank, existing_bank
from wvmonitor.references import ReferenceBank


class KilledError(BaseException):
    """Stands for kill −9: nothing after it runs."""


def test_a_build_killed_between_the_old_bank_and_the_new_one_loses_neither(
    tiny_bank_folder, tmp_path, monkeypatch
) -> None:
    """A bank that was moved aside when the process died is back, whole, at the next start."""
    folder = tmp_path / "bank [1]"
    shutil.copytree(tiny_bank_folder, folder)
    bank = ReferenceBank.load(folder)
    rename = Path.rename

    def killed(path, target=None, **_):
        if path.suffix in (".tmp", ".old"):
            raise KilledError
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KilledError):
        add_to_bank(folder, next(iter(bank)), bank.probe)
    monkeypatch.undo()
    assert not folder.exists()
    found = existing_bank(folder)
    assert found is not None
    assert found.fingerprint == bank.fingerprint
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize("left", [".other.0123.old .other.0123.tmp", ".bank.0123.old"])
def test_what_another_replacement_left_is_not_taken(tiny_bank_folder, tmp_path, left) -> None:
    """Another bank, and the remains of a replacement that was finished, do not come back."""
    for name in left.split():
        shutil.copytree(tiny_bank_folder, tmp_path / name)
    assert existing_bank(tmp_path / "bank") is None
