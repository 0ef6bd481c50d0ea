"""`--base` of several commands: the model that training started from, by folder or by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import typer

T = TypeVar("T", str, Path)

NAMED = "; or its Hub id, where this machine's cache holds it."


def base_option(about: str) -> Any:
    """The option of one command.

    Args:
        about: what the folder is of, in words; no full stop.
    """
    return typer.Option("--base", metavar="DIR", callback=_found, help=f"{about}{NAMED}")


def _found(value: T | None) -> T | None:
    if value is None:
        return None
    from wvmonitor.references.bundled import model_folder

    return type(value)(model_folder(str(value)))
