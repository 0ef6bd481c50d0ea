"""Which banks there are: folders of one's own, and copies pulled from the Hub.

A pulled copy lies in `~/.cache/wvmonitor/references/ORG/NAME/COMMIT` (`XDG_CACHE_HOME` moves it):
its path says which revision it is. Nothing here goes to the network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from wvmonitor.errors import MalformedFileError, MissingPathError, WVMonitorError
from wvmonitor.files.digests import sha256_file
from wvmonitor.files.documents import read_json
from wvmonitor.files.storage import shown
from wvmonitor.references.card import BaseIdentity, Card
from wvmonitor.references.reference import CARD_FILE, read_card
from wvmonitor.references.store import (
    CALIBRATION_FILE,
    MANIFEST_FILE,
    SIGNATURE_FILE,
    check_file,
    read_manifest,
    reference_names,
)

PROVENANCE_FILE = ".wvmonitor-provenance.json"
_HUB_ID = re.compile(
    r"(?P<hub>hf:/{1,2})?"  # a Path makes one slash of two
    r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(@(?P<revision>[\w./-]{1,200}))?"
)


@dataclass(frozen=True)
class HubId:
    """A bank on the Hub, in the form `ORG/NAME[@REVISION]` or `hf://ORG/NAME[@REVISION]`."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"

    @classmethod
    def parse(cls, text: str | Path) -> HubId:
        """Read an id.

        Raises:
            MissingPathError: it has another form.
        """
        match = _HUB_ID.fullmatch(str(text))
        if match is None:
            raise MissingPathError(
                f"{shown(text)} is no repository of the Hub: write ORG/NAME or ORG/NAME@REVISION"
            )
        return cls(match["repo"], match["revision"])


class Provenance(BaseModel):
    """Where a pulled bank came from; beside it, and not part of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repo: str
    revision: str
    fingerprint: str


@dataclass(frozen=True)
class Summary:
    """What a bank's manifest and cards say; its weights have not been read.

    Attributes:
        private: no one but the owner may read the manifest.
        signed: a signature lies beside it, which says nothing before it is verified.
        problem: why the bank cannot be read, where it cannot; then nothing else is known.
    """

    folder: Path
    fingerprint: str = ""
    base: BaseIdentity | None = None
    cards: tuple[Card, ...] = ()
    private: bool = False
    signed: bool = False
    calibrated: bool = False
    provenance: Provenance | None = None
    problem: str | None = None


def cache_folder() -> Path:
    """Where pulled banks are kept."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "wvmonitor" / "references"


def located(bank: str | Path) -> Path:
    """The folder that a bank's name stands for; a folder that exists stands for itself.

    Args:
        bank: a folder, or `hf://ORG/NAME[@REVISION]` (with or without `hf://`) for a pulled copy.

    Raises:
        MissingPathError: a bank of the Hub that was not pulled, or of which several revisions were
            and none is named.
    """
    match = _HUB_ID.fullmatch(str(bank))
    if match is None or Path(bank).is_dir():
        return Path(bank)
    here = cache_folder() / match["repo"]
    revisions = [p for p in _folders(here) if p.name.startswith(match["revision"] or "")]
    if len(revisions) == 1:
        return revisions[0]
    if revisions:
        raise MissingPathError(
            f"several revisions of {match['repo']} were pulled: name one of "
            + ", ".join(f"{match['repo']}@{p.name[:12]}" for p in revisions)
        )
    if match["hub"] is None:
        return Path(bank)  # a folder that is not there, as far as one can tell
    where = HubId.parse(bank)
    raise MissingPathError(
        f"{where} has not been pulled: run `wvmonitor references pull {where}` first"
    )


def banks_in(root: Path) -> Iterator[Path]:
    """Folders of banks at a path or up to four levels below it, hidden folders left out."""
    if (root / MANIFEST_FILE).is_file():
        yield root
        return
    for depth in range(1, 5):
        for manifest in sorted(root.glob("/".join(["*"] * depth + [MANIFEST_FILE]))):
            if not any(p.startswith(".") for p in manifest.relative_to(root).parts):
                yield manifest.parent


def summarise(folder: Path) -> Summary:
    """What the manifest and the cards of a bank say; the cards are checked against the manifest.

    Raises:
        MissingPathError: there is no bank at this path.
        AlteredBankError: a card is not the one that the manifest lists.
        MalformedFileError: a document breaks its format.
    """
    listed = read_manifest(folder)
    cards = []
    for name in reference_names(listed):
        check_file(folder, f"{name}/{CARD_FILE}", listed)
        cards.append(read_card(folder / name / CARD_FILE))
    if not cards:
        raise MalformedFileError(f"{folder / MANIFEST_FILE} lists no reference: pull it again")
    return Summary(
        folder=folder,
        fingerprint=sha256_file(folder / MANIFEST_FILE),
        base=cards[0].base,
        cards=tuple(cards),
        private=is_private(folder),
        signed=(folder / SIGNATURE_FILE).is_file(),
        calibrated=(folder / CALIBRATION_FILE).is_file(),
        provenance=provenance_of(folder),
    )


def inventory(roots: list[Path]) -> list[Summary]:
    """Every bank at or below some folders; one that cannot be read is listed with the reason."""
    summaries = []
    for folder in dict.fromkeys(p for root in roots for p in banks_in(root)):
        try:
            summaries.append(summarise(folder))
        except WVMonitorError as error:
            summaries.append(Summary(folder, problem=str(error)))
    return summaries


def bank_of(digest: str | None, roots: list[Path]) -> Path | None:
    """The bank made for a base, among those at or below some folders; a calibrated one first.

    Manifests and cards are read, nothing else: whatever is taken is checked when it is loaded.
    """
    matching = [s for s in inventory(roots) if s.base is not None and s.base.digest == digest]
    return max(matching, key=lambda s: s.calibrated).folder if matching else None


def is_private(folder: Path) -> bool:
    """Whether a bank is for its owner alone: nobody else may read its manifest."""
    return not (folder / MANIFEST_FILE).stat().st_mode & 0o077


def provenance_of(folder: Path) -> Provenance | None:
    """Where a bank was pulled from, None if it was not.

    Raises:
        MalformedFileError: the record is damaged.
    """
    path = folder / PROVENANCE_FILE
    if not path.is_file():
        return None
    try:
        return Provenance.model_validate(read_json(path))
    except ValidationError as error:
        raise MalformedFileError(
            f"{path}: {error.errors()[0]['msg']}; remove the folder and pull the bank again"
        ) from None


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.glob("*") if p.is_dir() and not p.name.startswith("."))
