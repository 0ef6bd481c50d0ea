"""Where the reference vectors that come with the package are."""

from __future__ import annotations

from pathlib import Path

from wvmonitor.errors import MissingPathError

FOLDER = "reference_vectors"


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
