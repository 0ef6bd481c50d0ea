"""What every page is made of: the templates' environment, inline resources, and the file."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from wvmonitor.errors import InputError
from wvmonitor.files.atomic import replacing, write_all
from wvmonitor.report.words import clean


def environment() -> Environment:
    """Templates in which everything from outside is escaped and made visible."""
    return Environment(
        loader=PackageLoader("wvmonitor.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else clean(value, 4000),
        trim_blocks=True,
        lstrip_blocks=True,
    )


def resource(name: str) -> str:
    """One of our own files, as text."""
    return files("wvmonitor.report").joinpath(name).read_text(encoding="utf-8")


def admitted(text: str) -> str:
    """The source expression by which the Content-Security-Policy admits one inline block."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def stamp(when: datetime | None) -> str:
    """When a page was made, in UTC; now, if it is not given."""
    return (when or datetime.now(UTC)).astimezone(UTC).strftime("%d %B %Y, %H:%M UTC")


def write_page(page: str, path: str | Path) -> None:
    """Write a page whole or not at all.

    Raises:
        MissingPathError: the folder does not exist.
        InputError: it cannot be written there.
    """
    try:
        with replacing(path) as descriptor:
            write_all(descriptor, page.encode())
    except OSError as error:
        raise InputError(
            f"'{path}' cannot be written ({error.strerror}): choose another place with -o"
        ) from None
