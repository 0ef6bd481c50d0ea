"""A finished reference put into a bank's folder, beside those of the same base."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from wvmonitor.errors import BuildError
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.references.reference import Reference
from wvmonitor.references.store import CALIBRATION_FILE, MANIFEST_FILE


def existing_bank(folder: Path) -> ReferenceBank | None:
    """The bank at a path; None where there is nothing yet.

    A bank that a build had moved aside when it was killed is put back first.

    Raises:
        BuildError: something else is there.
    """
    if not folder.exists():
        _put_back(folder)
    if (folder / MANIFEST_FILE).is_file():
        return ReferenceBank.load(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BuildError(f"{folder} is there and is no bank of references: give another --out")
    return None


def check_free(folder: Path, bank: ReferenceBank, name: str, *, replace: bool) -> None:
    """Raise `BuildError` where a reference may not be put into a bank."""
    if name in bank.names and not replace:
        card = bank[name].card
        raise BuildError(
            f"{folder} holds {name} already (built by {card.built.recipe}, "
            f"{'verified' if card.verified else 'unverified'}): --replace builds it again"
        )
    if (folder / CALIBRATION_FILE).exists():
        raise BuildError(
            f"{folder} holds a calibration, which one more reference makes void: move "
            f"{CALIBRATION_FILE} away (and calibrate again), or give another --out"
        )


def add_to_bank(
    folder: Path, reference: Reference, probe: Mapping[str, Tensor], *, private: bool = False
) -> str:
    """Write the bank with the reference in it; gives its fingerprint.

    The new bank is written beside the old one and then takes its place: what is loaded is the one
    or the other, whole.

    Args:
        folder: of the bank; made if it is not there.
        reference: replaces one of the same name.
        probe: of a new bank; an old one keeps its own.
        private: True gives every file mode 0600.
    """
    old = existing_bank(folder)
    references = {r.name: r for r in old or ()} | {reference.name: reference}
    own_probe = old.probe if old is not None and old.probe else probe
    bank = ReferenceBank(references.values(), probe=own_probe)
    with replacing_bank(folder) as new:
        return bank.save(new, private=private)


@contextmanager
def replacing_bank(folder: Path) -> Iterator[Path]:
    """Where to write a new bank; when the block ends it takes the place of the old one, whole."""
    mark = secrets.token_hex(8)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new, gone = _beside(folder, mark)
    try:
        yield new
        if folder.exists():
            folder.rename(gone)
        new.rename(folder)
    except BaseException:
        if gone.exists() and not folder.exists():
            gone.rename(folder)
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(gone, ignore_errors=True)


def _beside(folder: Path, mark: str) -> tuple[Path, Path]:
    """Where one replacement of a bank writes the new one, and where it moves the old one."""
    new, old = (folder.with_name(f".{folder.name[:100]}.{mark}.{end}") for end in ("tmp", "old"))
    return new, old


def _put_back(folder: Path) -> None:
    """Undo a replacement that was killed between its two renames."""
    for leftover in folder.parent.glob(".*.old"):
        new, old = _beside(folder, leftover.stem.rpartition(".")[2])
        if leftover == old and new.exists():
            old.rename(folder)
            shutil.rmtree(new, ignore_errors=True)
            return
