"""A bank on disk: a folder of references, a manifest of digests, and nothing that was not checked.

```
bank/
  manifest.json             SHA-256 of every file below; its own digest is the bank's fingerprint
  gram.safetensors          inner products among the references, by parameter and geometry
  probe.safetensors         optional: the probe of the response geometry, float16
  <name>/reference.safetensors, card.json, README.md
  calibration.json          optional, bound to the fingerprint; not in the manifest
  trust.json, report.html   optional: what was tried on the bank, for programs and for people
  model.sig                 optional: a signature over all of the above
```
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wvmonitor.errors import (
    AlteredBankError,
    BankError,
    FormatVersionError,
    MalformedFileError,
    MissingPathError,
    NonFiniteError,
)
from wvmonitor.files.digests import sha256_file
from wvmonitor.files.documents import read_json, write_json
from wvmonitor.files.safetensors import SafetensorsFile, write_safetensors
from wvmonitor.reading import GEOMETRIES, Float64, Geometry, Gram, component_of
from wvmonitor.references.reference import FILES, Reference

MANIFEST_FILE = "manifest.json"
GRAM_FILE = "gram.safetensors"
PROBE_FILE = "probe.safetensors"
CALIBRATION_FILE = "calibration.json"
TRUST_FILE = "trust.json"
REPORT_FILE = "report.html"
BESIDE = (CALIBRATION_FILE, TRUST_FILE, REPORT_FILE)
"""What is about a bank and no part of it: not in the manifest."""
SIGNATURE_FILE = "model.sig"  # the name that the model-signing command line looks for
MANIFEST_FORMAT = 1


def write_manifest(folder: Path, *, mode: int = 0o644) -> str:
    """Write the manifest of everything in a bank's folder; gives the bank's fingerprint."""
    files = {name: sha256_file(folder / name) for name in _bank_files(folder)}
    write_json(
        folder / MANIFEST_FILE, {"format_version": MANIFEST_FORMAT, "files": files}, mode=mode
    )
    return sha256_file(folder / MANIFEST_FILE)


def check_manifest(folder: Path) -> tuple[str, list[str]]:
    """Check every file of a bank against its manifest.

    Returns:
        The bank's fingerprint and the names of its references.

    Raises:
        MissingPathError: there is no bank at this path.
        AlteredBankError: a file is missing, was changed, or was added after the fact.
        FormatVersionError: the manifest was written by a newer version.
    """
    listed = read_manifest(folder)
    present = set(_bank_files(folder))
    for name in sorted(listed.keys() | present):
        if name not in listed:
            raise _altered(folder, name, "was added after the manifest was written")
        if name not in present:
            raise _altered(folder, name, "is missing")
        check_file(folder, name, listed)
    return sha256_file(folder / MANIFEST_FILE), reference_names(listed)


def read_manifest(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a bank by name, as its manifest says; nothing else is opened.

    Raises:
        MissingPathError: there is no bank at this path.
        FormatVersionError: the manifest was written by a newer version.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        why = f"{MANIFEST_FILE} is missing" if folder.is_dir() else "there is no such folder"
        raise MissingPathError(
            f"{folder} is no bank of references ({why}): give a folder that `wvmonitor build` or "
            "`ReferenceBank.save` made, hf://ORG/NAME for one that was pulled, or none at all for "
            "the bundled bank"
        )
    document = read_json(path)
    version = document.get("format_version")
    if not isinstance(version, int) or version > MANIFEST_FORMAT:
        raise FormatVersionError(
            f"{path} has format {version!r}, this version reads up to {MANIFEST_FORMAT}: "
            "upgrade wvmonitor"
        )
    return _listed_files(path, document)


def check_file(folder: Path, name: str, listed: Mapping[str, str]) -> None:
    """Raise `AlteredBankError` where a file of a bank is not the one its manifest lists."""
    if sha256_file(folder / name) != listed[name]:
        raise _altered(folder, name, "was changed after the manifest was written")


def reference_names(listed: Iterable[str]) -> list[str]:
    """The names of the references among a manifest's files."""
    return sorted({PurePosixPath(n).parts[0] for n in listed if n.count("/") == 1})


def refuse_other_files(folder: Path, names: list[str], *, probe: bool) -> None:
    """Raise `BankError` where a folder holds files that a bank of these references would not."""
    own = {
        GRAM_FILE,
        *([PROBE_FILE] if probe else []),
        *(f"{name}/{file}" for name in names for file in FILES),
    }
    other = sorted(set(_bank_files(folder)) - own)
    if other:
        raise BankError(
            f"{folder} holds {other[0]}, which is no part of this bank: save into a folder of its "
            "own, or remove the old one first"
        )


def _listed_files(path: Path, document: dict[str, Any]) -> dict[str, str]:
    files = document.get("files")
    if not isinstance(files, dict):
        raise MalformedFileError(f"{path}: 'files' must map file names to SHA-256 digests")
    for name, digest in files.items():
        parts = PurePosixPath(name).parts
        if not isinstance(digest, str) or len(parts) > 2 or ".." in parts or name.startswith("/"):
            raise MalformedFileError(
                f"{path}: {name!r} is not a file of this folder with its SHA-256: "
                "download the bank again"
            )
    return files


def _bank_files(folder: Path) -> list[str]:
    """Names of a bank's files relative to its folder: at most one folder down, none hidden."""
    own = {MANIFEST_FILE, *BESIDE, SIGNATURE_FILE}
    files = []
    for path in [*folder.glob("*"), *folder.glob("*/*")]:
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not hidden and relative.as_posix() not in own:
            files.append(relative.as_posix())
    return sorted(files)


def _altered(folder: Path, name: str, what: str) -> AlteredBankError:
    return AlteredBankError(
        f"{name} of the bank {folder} {what}: download or build the bank again, and do not trust "
        "verdicts made with it"
    )


def save_gram(path: Path, gram: Gram, mode: int) -> None:
    """Write the inner products among a bank's references."""
    layout = {"references": gram.references, "parameters": gram.parameters}
    tensors: dict[str, Tensor] = {
        g: torch.from_numpy(np.ascontiguousarray(v)) for g, v in gram.products.items()
    }
    write_safetensors(path, tensors, {"layout": json.dumps(layout)}, mode=mode)


def load_gram(path: Path, references: list[Reference]) -> Gram:
    """Read the inner products among a bank's references.

    Raises:
        AlteredBankError: it was made from other references.
    """
    by_name = {r.name: r for r in references}
    with SafetensorsFile(path) as file:
        try:
            layout = json.loads(file.metadata["layout"])
            names, parameters = tuple(layout["references"]), tuple(layout["parameters"])
            products: dict[Geometry, Float64] = {
                g: file.read(g).to(torch.float64).numpy() for g in GEOMETRIES if g in file.tensors
            }
        except (KeyError, TypeError, ValueError) as error:
            raise MalformedFileError(f"{path}: unreadable layout ({error!r})") from None
    shape = (len(parameters), len(names), len(names))
    if set(names) != set(by_name) or any(v.shape != shape for v in products.values()):
        raise AlteredBankError(f"{path} was not made from the references beside it")
    shapes = {n: r.vector.shape(n) for r in references for n in r.vector.names()}
    if set(shapes) != set(parameters):
        raise AlteredBankError(f"{path} covers other parameters than the references beside it")
    cards = [by_name[n].card for n in names]
    return Gram(
        references=names,
        kinds=tuple(c.kind for c in cards),
        parameters=parameters,
        components=tuple(component_of(n, shapes[n]) for n in parameters),
        products=products,
        shared={g: np.array([c.shared(g) for c in cards]) for g in products},
    )


def save_probe(path: Path, probe: Mapping[str, Tensor], mode: int) -> None:
    """Write each distinct probe once; parameters that share one are listed in the metadata."""
    first: dict[tuple[torch.Size, bytes], str] = {}
    owners: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    for name, rows in probe.items():
        half = rows.to("cpu", torch.float16).contiguous()
        content = hashlib.sha256(half.numpy().tobytes()).digest()
        owners[name] = first.setdefault((half.shape, content), name)
        if owners[name] == name:
            tensors[name] = half
    write_safetensors(path, tensors, {"shared": json.dumps(owners)}, mode=mode)


def as_stored(probe: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A probe in float32, rounded as its file rounds it; parameters that share one still do.

    So a bank measures the same before it is saved and after it is loaded.

    Raises:
        NonFiniteError: a probe is not finite in float16.
    """
    done: dict[int, Tensor] = {}
    for name, rows in probe.items():
        if id(rows) not in done:
            rounded = rows.to(torch.float16).to(torch.float32)
            if not bool(torch.isfinite(rounded).all()):
                raise NonFiniteError(
                    f"the probe of {name} is not finite in float16: leave the tokens with massive "
                    "activations out of it"
                )
            done[id(rows)] = rounded
    return {name: done[id(rows)] for name, rows in probe.items()}


def load_probe(path: Path) -> dict[str, Tensor]:
    """Read a probe: (rows, inputs) float32 by parameter name."""
    with SafetensorsFile(path) as file:
        try:
            owners: dict[str, str] = dict(json.loads(file.metadata["shared"]))
        except (KeyError, TypeError, ValueError) as error:
            raise MalformedFileError(f"{path}: unreadable metadata ({error!r})") from None
        rows = {name: file.read(name).to(torch.float32) for name in file.tensors}
    try:
        return {name: rows[owner] for name, owner in owners.items()}
    except KeyError as missing:
        raise MalformedFileError(f"{path}: no probe {missing} in the file") from None
