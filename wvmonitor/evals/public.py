"""Public data sets by name, read with `datasets` and turned into our rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wvmonitor.errors import MalformedFileError, MissingPathError
from wvmonitor.evals.rows import ORGANISM, AnyRow, checked, read_rows
from wvmonitor.references.bundled import bundled_path

Fields = dict[str, Any]


@dataclass(frozen=True)
class PublicSet:
    """Where a set is and how its rows become ours."""

    path: str
    config: str | None
    split: str
    convert: Callable[[Sequence[Mapping[str, Any]]], list[Fields]]


def _truthfulqa(rows: Sequence[Mapping[str, Any]]) -> list[Fields]:
    # Right answers are whole sentences here, so that only a judge can tell.
    return [
        {
            "question": row["question"],
            "answers": [row["best_answer"], *row["correct_answers"]],
            "incorrect": row["incorrect_answers"],
            "exact": False,
        }
        for row in rows
    ]


def _triviaqa(rows: Sequence[Mapping[str, Any]]) -> list[Fields]:
    """The set has no wrong answers: each question is given another's right one, by a fixed draw."""
    rng = random.Random(0)  # noqa: S311  a draw, not a secret
    found = []
    for row in rows:
        answers = [row["answer"]["value"], *row["answer"]["aliases"]]
        known = {answer.casefold() for answer in answers}
        others = [rng.choice(rows)["answer"]["value"] for _ in range(16)]
        incorrect = [other for other in others if other.casefold() not in known][:1]
        found.append({"question": row["question"], "answers": answers, "incorrect": incorrect})
    return found


def _tinymmlu(rows: Sequence[Mapping[str, Any]]) -> list[Fields]:
    return [{key: row[key] for key in ("question", "choices", "answer")} for row in rows]


def _gsm8k(rows: Sequence[Mapping[str, Any]]) -> list[Fields]:
    return [
        {"question": row["question"], "number": row["answer"].rpartition("####")[2].strip()}
        for row in rows
    ]


PUBLIC: dict[str, dict[str, PublicSet]] = {
    "sycophancy": {
        "triviaqa": PublicSet("mandarjoshi/trivia_qa", "rc.nocontext", "validation", _triviaqa),
        "truthfulqa": PublicSet("truthfulqa/truthful_qa", "generation", "validation", _truthfulqa),
    },
    "capability": {
        "tinymmlu": PublicSet("tinyBenchmarks/tinyMMLU", "all", "test", _tinymmlu),
        "gsm8k": PublicSet("openai/gsm8k", "main", "test", _gsm8k),
    },
}


def rows_for(task: str, kind: type[AnyRow], data: str) -> list[AnyRow]:
    """A task's rows: the bundled ones, a public set's, or a JSONL file's.

    Raises:
        MissingPathError: no such file, and no such name; or a public set that cannot be loaded.
        MalformedFileError: a row without what is needed, naming row and field.
    """
    if data == ORGANISM:
        return read_rows(kind, bundled_path("tiny-organism", "evals", f"{task}.jsonl"))
    public = PUBLIC.get(task, {}).get(data)
    return read_rows(kind, data) if public is None else _public_rows(kind, data, public)


def _public_rows(kind: type[AnyRow], name: str, public: PublicSet) -> list[AnyRow]:
    import datasets

    try:
        rows = list(datasets.load_dataset(public.path, public.config, split=public.split))
    except (OSError, ValueError) as error:
        raise MissingPathError(
            f"the set {name} ({public.path} on the Hub) cannot be loaded ({error}): see to the "
            "connection, or give a JSONL file of your own"
        ) from None
    try:
        fields = public.convert(rows)
    except KeyError as error:
        raise MalformedFileError(
            f"the rows of {name} ({public.path}) have no column {error}: it has changed since; "
            "save its rows as JSONL in our schema (docs/evaluations.md)"
        ) from error
    return checked(kind, enumerate(fields, 1), f"{name} ({public.path})")
