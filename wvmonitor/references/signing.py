"""Signatures over a bank's folder, in the format of OpenSSF model signing, with a key of one's own.

The signature covers every file of the folder, the manifest and the calibration included. Whose it
is follows from the public key that one holds: no third party and no network takes part.
`model_signing verify key` of the model-signing package reads the same file.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from types import ModuleType
from typing import Any

from wvmonitor.errors import MissingPathError, SettingsError, SignatureError
from wvmonitor.files.documents import read_json
from wvmonitor.files.storage import shown
from wvmonitor.references.inventory import PROVENANCE_FILE
from wvmonitor.references.store import MANIFEST_FILE, SIGNATURE_FILE, check_manifest


def sign(folder: str | Path, private_key: str | Path) -> Path:
    """Sign a bank that is whole; gives the signature's file, which is part of the folder.

    Args:
        folder: of the bank. What is changed or added afterwards, a calibration too, breaks the
            signature.
        private_key: an unencrypted PEM file of an elliptic curve key (P-256, P-384 or P-521).

    Raises:
        AlteredBankError: a file is not the one that the manifest lists.
        SignatureError: the key cannot be used.
        SettingsError: model-signing is not installed.
    """
    signing = _library("signing")
    source = Path(folder)
    check_manifest(source)
    key = _key(private_key)
    target = source / SIGNATURE_FILE
    hidden = source / f".wvmonitor-{secrets.token_hex(8)}.tmp"
    try:
        signer = signing.Config().set_hashing_config(_hashing())
        signer.use_elliptic_key_signer(private_key=key).sign(source, hidden)
        hidden.chmod((source / MANIFEST_FILE).stat().st_mode & 0o777)
        hidden.replace(target)
    except Exception as error:  # the library lets through whatever its own libraries raise
        hidden.unlink(missing_ok=True)
        raise SignatureError(
            f"{source} could not be signed with {key} ({shown(error)}): give an unencrypted PEM "
            "file of an elliptic curve key"
        ) from error
    return target


def verify_signature(folder: str | Path, public_key: str | Path) -> None:
    """Check that a bank's folder is, file for file, what the holder of a key signed.

    Args:
        folder: of the bank.
        public_key: a PEM file, from someone you trust and not from beside the bank.

    Raises:
        AlteredBankError: a file is not the one that the manifest lists.
        SignatureError: there is no signature, it was made with another key, a file was changed,
            added or taken away since, or the key is no public one.
        SettingsError: model-signing is not installed.
    """
    verifying = _library("verifying")
    source = Path(folder)
    key = _key(public_key)
    signature = source / SIGNATURE_FILE
    if not signature.is_file():
        raise SignatureError(
            f"{source} bears no signature ({SIGNATURE_FILE}): ask whoever made it for a signed copy"
        )
    check_manifest(source)  # names a changed file in fewer words than the library does
    read_json(signature)  # bounded and strict, before the library reads it
    try:
        verifier = verifying.Config().set_hashing_config(_hashing())
        verifier = verifier.use_elliptic_key_verifier(public_key=key)
    except ValueError as error:
        raise SignatureError(
            f"{key} cannot be used ({shown(error)}): give the PEM file of the public half of an "
            "elliptic curve key"
        ) from error
    try:
        verifier.verify(source, signature)
    except Exception as error:
        raise SignatureError(
            f"the signature of {source} does not hold for {key} ({shown(error)}): do not use this "
            "bank until whoever signed it says why"
        ) from error


def _hashing() -> Any:
    """SHA-256 of each file but the signature itself, and the note of where a copy came from."""
    beside = [Path(SIGNATURE_FILE), Path(PROVENANCE_FILE)]
    return _library("hashing").Config().set_ignored_paths(paths=beside)


def _key(path: str | Path) -> Path:
    key = Path(path)
    if not key.is_file():
        raise MissingPathError(f"{shown(key)} is no file: give the PEM file of a key")
    return key


def _library(part: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(f"model_signing.{part}")
    except ImportError as error:
        raise SettingsError(
            f"signatures need model-signing, which is not installed whole ({error}): "
            "pip install 'wvmonitor[signing]'"
        ) from error
