"""Contrastive data of one's own: two JSONL files or datasets, chat or prompt/completion."""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from wvmonitor.builder.examples import Example, Pair
from wvmonitor.builder.stages import read_rows
from wvmonitor.errors import BuildError, MissingPathError

_FORMS = '{"messages": [...]}, {"prompt": …, "completion": …} or {"question": …, "answer": …}'

_PAIRS = (("prompt", "completion"), ("question", "answer"))


def own_pairs(
    positive: str, negative: str, held_out: Iterable[str] = ()
) -> tuple[list[Pair], list[str]]:
    """Pairs from two sets, and what a reader of the card must know.

    Where the two answer the same prompts they are paired by prompt, and what stands on one side
    only is left out. Where they do not, they are paired in their order.

    Args:
        positive: a JSONL file, or the name of a dataset (`name` or `name:split`).
        negative: likewise.
        held_out: questions that must not be trained on; examples that ask them are left out.

    Raises:
        MissingPathError: no such file or dataset.
        BuildError: a set is empty, or a record has neither form.
    """
    notes: list[str] = []
    kept_out = {" ".join(q.lower().split()) for q in held_out}
    sides: list[list[Example]] = []
    for name, source in (("positive", positive), ("negative", negative)):
        examples = [_example(r, f"{source}, record {n}") for n, r in enumerate(_records(source), 1)]
        if not examples:
            raise BuildError(f"{source} holds no examples: give the {name} side's data, {_FORMS}")
        if with_system := sum(m["role"] == "system" for e in examples for m in e.messages):
            notes.append(f"{with_system} system prompts of the {name} data were left out")
        examples = [without_system(e) for e in examples]
        fair = [e for e in examples if _asked(e) not in kept_out]
        if len(fair) < len(examples):
            notes.append(
                f"{len(examples) - len(fair)} {name} examples ask held-out questions and were left "
                "out"
            )
        sides.append(fair)
    pairs = _by_prompt(*sides)
    most = max(map(len, sides), default=0)
    if 2 * len(pairs) < most:
        notes.append(
            "the two sides do not answer the same prompts: the contrast holds the difference of "
            "the prompts too"
        )
        pairs = [Pair(p, n) for p, n in zip(*sides, strict=False)]
    if len(pairs) < most:
        notes.append(f"{most - len(pairs)} examples without a partner were left out")
    return pairs, notes


def examples_of(source: str) -> list[Example]:
    """Every example of a JSONL file or dataset, its system prompt included.

    Raises:
        MissingPathError: no such file or dataset.
        BuildError: a record has none of the forms.
    """
    return [_example(r, f"{source}, record {n}") for n, r in enumerate(_records(source), 1)]


def without_system(example: Example) -> Example:
    """The same without its system prompts."""
    turns = tuple(m for m in example.messages if m["role"] != "system")
    return Example(turns, example.answer)


def texts_of(source: str) -> list[str]:
    """The texts of a plain text file (a paragraph each), a JSONL file or a dataset.

    Raises:
        MissingPathError: no such file or dataset.
        BuildError: a record has no text.
    """
    if Path(source).suffix == ".txt":
        try:
            content = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise MissingPathError(f"{source} cannot be read as text: {error}") from None
        return [" ".join(part.split()) for part in content.split("\n\n") if part.strip()]
    texts = []
    for n, record in enumerate(_records(source), 1):
        if isinstance(record.get("text"), str):
            texts.append(record["text"])
            continue
        example = _example(record, f"{source}, record {n}")
        texts.append("\n".join([*(m["content"] for m in example.messages), example.answer]))
    return texts


def _records(source: str) -> list[dict[str, Any]]:
    if Path(source).suffix in (".jsonl", ".json"):
        if not Path(source).is_file():
            raise MissingPathError(f"{source}: no such file")
        with Path(source).open("rb") as file:
            if file.read(100).lstrip().startswith(b"["):
                raise BuildError(
                    f"{source} is one JSON array: give a line for each of its examples, as "
                    f"`jq -c '.[]' {shlex.quote(source)}` prints them"
                )
        return read_rows(Path(source)).rows
    import datasets

    name, _, split = source.partition(":")
    try:
        return [dict(row) for row in datasets.load_dataset(name, split=split or "train")]
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise MissingPathError(
            f"{source} is neither a .jsonl file nor a dataset that could be loaded "
            f"({type(error).__name__}: {error})"
        ) from None


def _example(record: dict[str, Any], where: str) -> Example:
    messages = record.get("messages")
    keys = next((k for k in _PAIRS if set(k) <= record.keys()), None)
    if messages is None and keys is not None:
        before, after = (record[k] for k in keys)
        messages = [
            *(before if isinstance(before, list) else [{"role": "user", "content": before}]),
            *(after if isinstance(after, list) else [{"role": "assistant", "content": after}]),
        ]
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in messages
    ):
        got = (
            "a turn without a role or text"
            if isinstance(messages, list)
            else f"the keys {', '.join(record) or 'none'}"
        )
        raise BuildError(f"{where}: expected {_FORMS}, got {got}")
    turns = [{"role": m["role"], "content": m["content"].strip()} for m in messages]
    asked = any(t["role"] == "user" for t in turns)
    if not asked or turns[-1]["role"] != "assistant" or not turns[-1]["content"]:
        raise BuildError(f"{where} does not end with an answer of the assistant to something")
    return Example(tuple(turns[:-1]), turns[-1]["content"])


def _asked(example: Example) -> str:
    return " ".join(example.messages[-1]["content"].lower().split()) if example.messages else ""


def _by_prompt(positive: Sequence[Example], negative: Sequence[Example]) -> list[Pair]:
    waiting: dict[str, list[Example]] = defaultdict(list)
    for example in negative:
        waiting[json.dumps(example.messages)].append(example)
    pairs = []
    for example in positive:
        partners = waiting[json.dumps(example.messages)]
        if partners:
            pairs.append(Pair(example, partners.pop(0)))
    return pairs
