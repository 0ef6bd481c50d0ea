"""A registry: one JSON file that names a bank for each base, so that a team's runs find theirs.

    {"banks": {"<digest of the base>": {"bank": "qwen", "public_key": "team.pub"}}}

`bank` is a folder, or `hf://ORG/NAME@REVISION` for a pulled copy; relative paths start at the
registry. Nothing is fetched and nothing is run: whatever is named is checked when it is loaded, and
its signature before, where a public key is given.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wvmonitor.errors import MalformedFileError, MissingPathError
from wvmonitor.files.documents import read_json
from wvmonitor.references.inventory import located
from wvmonitor.references.signing import verify_signature
from wvmonitor.references.store import MANIFEST_FILE

__all__ = ["Entry", "Registry", "registered"]


class Entry(BaseModel):
    """One bank of a registry.

    Attributes:
        bank: a folder, or `hf://ORG/NAME[@REVISION]`.
        public_key: a PEM file; then the bank must bear a signature made with its other half.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bank: str = Field(min_length=1)
    public_key: str | None = None


class Registry(BaseModel):
    """Banks by the digest of the base that they were made for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    banks: dict[str, Entry]


def registered(digest: str | None, registry: Path) -> Path | None:
    """The folder of the bank that a registry names for a base, its signature verified.

    Args:
        digest: of the base's weights.
        registry: the JSON file.

    Returns:
        None where the registry has no bank for this base.

    Raises:
        MalformedFileError: the file is no registry.
        MissingPathError: the bank is not there, or has not been pulled.
        SignatureError: its signature is missing or does not hold.
    """
    try:
        listed = Registry.model_validate(read_json(registry))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise MalformedFileError(
            f"{registry}: {where}: {first['msg']}; a registry is "
            '{"banks": {"<digest of the base>": {"bank": "<folder or hf://ORG/NAME>"}}}'
        ) from None
    entry = listed.banks.get(digest or "")
    if entry is None:
        return None
    named = entry.bank if entry.bank.startswith("hf:") else str(registry.parent / entry.bank)
    folder = located(named)
    if not (folder / MANIFEST_FILE).is_file():
        raise MissingPathError(
            f"{registry} names {entry.bank} for this base, and there is no bank at {folder}: "
            "mend the entry, or put the bank there"
        )
    if entry.public_key is not None:
        verify_signature(folder, registry.parent / entry.public_key)
    return folder
