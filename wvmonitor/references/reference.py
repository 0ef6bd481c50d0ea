"""Reference: one contrastive weight vector w = θ_positive − θ_negative with its card."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from wvmonitor.errors import BankError, BaseMismatchError, FormatVersionError, MalformedFileError
from wvmonitor.files.atomic import replacing, write_all
from wvmonitor.files.documents import read_json, write_json
from wvmonitor.files.safetensors import SafetensorsFile, write_safetensors
from wvmonitor.files.updates import as_tensors, open_updates
from wvmonitor.references.card import CARD_FORMAT, Card, model_card
from wvmonitor.vectors.task_vector import Origin, TaskVector

WEIGHTS_FILE = "reference.safetensors"
CARD_FILE = "card.json"
README_FILE = "README.md"
_SMALL = 1 << 18  # bytes: what is no larger is held in memory
FILES = (WEIGHTS_FILE, CARD_FILE, README_FILE)


@dataclass(frozen=True, eq=False)
class Reference:
    """A direction in weight space that stands for a behaviour (or a harmless control).

    Compared and hashed by identity, so that `{reference: k}` says how much of which to add.
    """

    card: Card
    vector: TaskVector

    @property
    def name(self) -> str:
        """The reference's name within its bank."""
        return self.card.name

    def save(self, folder: str | Path, *, private: bool = False) -> None:
        """Write `reference.safetensors`, `card.json` and `README.md` into a folder.

        Args:
            folder: made if it is not there.
            private: True gives the files mode 0600: who holds a reference can train around it.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        mode = 0o600 if private else 0o644
        tensors, layout = as_tensors(self.vector.updates())
        metadata = {"format": "wvmonitor.reference", **layout}
        write_safetensors(target / WEIGHTS_FILE, tensors, metadata, mode=mode)
        write_json(target / CARD_FILE, self.card.model_dump(mode="json"), mode=mode)
        with replacing(target / README_FILE, mode) as descriptor:
            write_all(descriptor, model_card(self.card).encode())

    @classmethod
    def load(cls, folder: str | Path) -> Reference:
        """Read a reference's folder.

        Low-rank updates are read into memory. Dense ones stay in their file, which is held open,
        and are read block by block whenever they are measured: they are as large as the model.

        Raises:
            MissingPathError: a file is missing.
            MalformedFileError: the card or the tensors break their format.
            FormatVersionError: the card was written by a newer version.
        """
        opened = open_reference(folder)
        return replace(
            opened, vector=TaskVector.of(dict(opened.vector.updates()), opened.vector.origin)
        )


def open_reference(folder: str | Path) -> Reference:
    """A reference whose updates are read from its folder whenever they are asked for.

    Raises:
        InputError: as `Reference.load` says.
    """
    source = Path(folder)
    card = read_card(source / CARD_FILE)
    shapes, produce = open_updates(
        SafetensorsFile(source / WEIGHTS_FILE), "build or download the reference again", held=_SMALL
    )
    origin = Origin(
        source=str(source),
        base_digest=card.base.digest,
        base_name=card.base.id,
        method=card.built.method,
        rank=card.rank,
        kept=card.kept,
    )
    return Reference(card, TaskVector(shapes, produce, origin))


def read_card(path: Path) -> Card:
    """Read and check one `card.json`."""
    document = read_json(path)
    version = document.get("format_version")
    if isinstance(version, int) and version > CARD_FORMAT:
        raise FormatVersionError(
            f"{path} has format {version}, this version reads up to {CARD_FORMAT}: "
            "upgrade wvmonitor"
        )
    try:
        return Card.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise MalformedFileError(
            f"{path}: {where}: {first['msg']}; build or download the reference again"
        ) from None


def contrast(
    positive: TaskVector, negative: TaskVector, *, positive_means: Literal["exhibits", "opposes"]
) -> TaskVector:
    """The contrast w = θ_positive − θ_negative, turned so that +w exhibits the behaviour.

    Args:
        positive: task vector of the side called positive by whoever made the pair.
        negative: task vector of the other side, from the same base.
        positive_means: whether that positive side exhibits or opposes the behaviour.

    Raises:
        BaseMismatchError: the two sides started from different bases.
    """
    digests = {positive.origin.base_digest, negative.origin.base_digest} - {None}
    if len(digests) > 1:
        raise BaseMismatchError(
            f"{positive.origin.source} and {negative.origin.source} were trained from different "
            "bases: a contrastive pair needs one base"
        )
    if positive_means not in ("exhibits", "opposes"):
        raise BankError(f"positive_means must be 'exhibits' or 'opposes', got {positive_means!r}")
    return positive - negative if positive_means == "exhibits" else negative - positive


def mean_reference(repeats: list[TaskVector], *, rank: int) -> TaskVector:
    """The plain (not normalised) mean of independent repeats, compressed to `rank`.

    Raises:
        BankError: there is no repeat.
    """
    if not repeats:
        raise BankError("the mean of no repeats is no reference: give at least one task vector")
    total = repeats[0]
    for other in repeats[1:]:
        total = total + other
    return (total / len(repeats)).compress(rank)
