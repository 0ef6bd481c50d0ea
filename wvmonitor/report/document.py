"""What every page is made of: the templates' environment, inline resources, and the file."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from wvmonitor._version import __version__
from wvmonitor.errors import InputError
from wvmonitor.files.atomic import write_text
from wvmonitor.report.words import clean

LONGEST = 4000
"""Characters of a text from outside that a page shows."""


def page(template: str, *, generated: datetime | None = None, **values: object) -> str:
    """A page as HTML: `template` with what every page has.

    The template is a file of this folder that extends base.html.jinja; the time on the page is now,
    if left out.
    """
    style, script = resource("style.css"), resource("script.js")
    text = (
        environment()
        .get_template(template)
        .render(
            **values,
            generated=stamp(generated),
            version=__version__,
            style=Markup(style),  # noqa: S704  # our own file
            script=Markup(script),  # noqa: S704  # our own file
            style_hash=admitted(style),
            script_hash=admitted(script),
        )
    )
    return text.encode("utf-8", "replace").decode()


def environment() -> Environment:
    """Templates in which everything from outside is escaped and made visible."""
    made = Environment(
        loader=PackageLoader("wvmonitor.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else clean(value, LONGEST),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["coded"] = coded
    return made


def coded(words: str) -> Markup:
    """Words as HTML, what stands between backticks as code that a button copies."""
    parts = [
        Markup("<code>{}</code>{}").format(part, COPY)
        if index % 2
        else Markup("<bdi>{}</bdi>").format(part)
        for index, part in enumerate(re.split("`([^`]+)`", clean(words, LONGEST)))
        if part
    ]
    return Markup().join(parts)


COPY = Markup('<button type="button" class="copy" hidden aria-live="polite">copy</button>')
"""Shown by the page's script, which it needs."""


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
        write_text(path, page)
    except OSError as error:
        raise InputError(
            f"'{path}' cannot be written ({error.strerror}): choose another place with -o"
        ) from None
