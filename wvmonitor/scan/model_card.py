"""A block for a model card on the Hub: what was judged, by what, against which base, and when."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path, PurePath
from typing import TextIO

from wvmonitor._version import __version__
from wvmonitor.errors import InputError
from wvmonitor.files.storage import is_url, shown
from wvmonitor.outputs.scan_record import CheckpointResult
from wvmonitor.scan.results import FailOn
from wvmonitor.scan.table import summary
from wvmonitor.scan.text import number, visible

BEGIN, END = "<!-- wvmonitor: begin -->", "<!-- wvmonitor: end -->"
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~&])")
_MOST_BYTES = 10_000_000


def write_card(results: Iterable[CheckpointResult], out: TextIO, fail_on: FailOn) -> None:
    """The block, as Markdown between two marks by which `within_card` finds it again."""
    collected = list(results)
    out.write(
        "\n".join([BEGIN, "## Screened by its weights", "", *_lines(collected, fail_on), END])
    )
    out.write("\n")


def within_card(path: str, block: str) -> str:
    """A model card with the block in it: in place of the one it has, else at its end.

    A card that is not there yet is the block alone.

    Raises:
        InputError: the file is no text, or holds one of the two marks without the other.
    """
    file = Path(path)
    if not file.exists():
        return block
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise InputError(f"{shown(path)} is larger than any model card: name another file")
        before = file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{shown(path)} is no UTF-8 text: name another file") from error
    starts, ends = before.count(BEGIN), before.count(END)
    if not starts and not ends:
        return f"{before.rstrip()}\n\n{block}" if before.strip() else block
    head, _, rest = before.partition(BEGIN)
    _, end_mark, tail = rest.partition(END)
    if (starts, ends) != (1, 1) or not end_mark:
        raise InputError(
            f"{shown(path)} holds the marks of a wvmonitor block more than once, or one without "
            "the other: take them out, then scan again"
        )
    return f"{head}{block.rstrip()}{tail}"


def _lines(results: list[CheckpointResult], fail_on: FailOn) -> Iterable[str]:
    yield "| checkpoint | behaviour | verdict | score | threshold | rests on |"
    yield "|---" * 6 + "|"
    for result in results:
        path = result.path.partition("?")[0] if is_url(result.path) else result.path
        name = _text(PurePath(path).name or path)  # a signed URL's query is a credential
        if result.error is not None:
            why = f"not judged: {result.error.type}: {result.error.message}"
            yield f"| {name} | – | {_text(why)} | – | – | – |"
        for behaviour, r in result.references.items():
            yield (
                f"| {name} | {_text(behaviour)} | **{r.verdict}** | {number(r.score)} "
                f"| {number(r.threshold)} | {r.calibration} |"
            )
        for warning in result.warnings:
            yield f"| {name} | – | note: {_text(warning)} | – | – | – |"
        if result.coverage is not None and result.error is None:
            yield f"| {name} | – | the scores saw {result.coverage:.0%} of the change | – | – | – |"
        for notice in result.notices if result.error is None else ():
            yield f"| {name} | – | not judged: {_text(notice.message)} | – | – | – |"
    yield ""
    banks = dict.fromkeys(r.bank for r in results if r.bank)
    bases = dict.fromkeys((r.base_name, r.base) for r in results if r.base_name)
    now = datetime.now(timezone.utc)  # noqa: UP017  datetime.UTC is this, by a newer name
    yield f"- Outcome: {_text(summary(results, fail_on))}"
    yield f"- References: bank `{'`, `'.join(banks) or 'none'}`"
    for name, digest in bases:
        yield f"- Base: {_text(name)}{'' if digest is None else f', weights `{digest}`'}"
    yield f"- Date: {now:%Y-%m-%d}, wvmonitor {__version__}"
    yield ""
    yield (
        "The weights' change is compared with directions of known behaviours (arXiv 2511.05408). "
        "That finds accidents, not adversaries, and says nothing of behaviours without a reference."
    )


def _text(value: object) -> str:
    """Text of strangers, on one line, and no Markdown or HTML."""
    return _MARKDOWN.sub(r"\\\1", visible(value))
