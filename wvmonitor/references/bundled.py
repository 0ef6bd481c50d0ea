"""Where the reference vectors that come with the package are, and the models that have a name."""

from __future__ import annotations

import re
from pathlib import Path

from wvmonitor.errors import MissingPathError

FOLDER = "reference_vectors"
BUNDLED_MODEL = "tiny-organism"
_HUB_ID = re.compile(r"[\w-][\w.-]*(?:/[\w.-]+)?")


def bundled_path(*parts: str) -> Path:
    """The path of something in `reference_vectors/`, for instance `("tiny-organism", "bank")`.

    In an installed wheel the folder is package data; in an editable install it lies at the top
    level of the source tree.

    Raises:
        MissingPathError: this installation does not hold it.
    """
    package = Path(__file__).resolve().parent.parent
    for root in (package / FOLDER, package.parent / FOLDER):
        if (path := root.joinpath(*parts)).exists():
            return path
    raise MissingPathError(
        f"{'/'.join((FOLDER, *parts))} is not part of this installation: install the package "
        "again, or name your own references with --references"
    )


def model_folder(name: str) -> str:
    """The folder that a model's name stands for, where a folder can be given; nothing is fetched.

    Args:
        name: a path; the Hub id of a model that this machine's cache holds; or tiny-organism.

    Returns:
        The folder; the name as it is where it stands for none: whoever opens it says so.
    """
    if Path(name).exists() or not _HUB_ID.fullmatch(name):
        return name
    if name == BUNDLED_MODEL:
        return str(bundled_path(BUNDLED_MODEL, "base"))
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return str(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return name
