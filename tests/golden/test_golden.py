"""What the product says of fixed weights does not change unless somebody means it to."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.golden import corpus

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
CLOSE = 1e-3
"""Relative: machines add up in another order, which twelve steps of training make larger."""
ROUNDED = 2e-2
"""The same of numbers within sentences, which have three digits."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The corpus as the code at hand makes it."""
    return corpus.made(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("name", ["adapters", "runs", "demo"])
def test_it_still_says_what_it_said(name: str, made: dict[str, dict[str, Any]]) -> None:
    """Scans, journals and metrics are those of the corpus, number by number and word by word.

    Where a change is meant, `python -m tests.golden.corpus` writes the corpus anew.
    """
    golden = json.loads((corpus.FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert list(differences(golden, json.loads(corpus.text_of(made[name])))) == []


def test_a_difference_is_found() -> None:
    """The comparison sees another word, another number, and what is missing or new."""
    pairs = [
        ({"a": "at 0.30 ok"}, {"a": "at 0.30 warn"}),
        ({"a": "at 0.30 ok"}, {"a": "at 0.40 ok"}),
        ({"a": [1.0]}, {"a": [1.1]}),
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": [1]}, {"a": []}),
        ({"a": None}, {"a": 0.0}),
    ]
    assert all(list(differences(x, y)) and list(differences(y, x)) for x, y in pairs)
    assert list(differences({"a": ["at 0.300 ok", 1.0]}, {"a": ["at 0.301 ok", 1.0001]})) == []


def differences(golden: Any, found: Any, where: str = "") -> Iterator[str]:
    """Where two documents differ, in words."""
    if isinstance(golden, dict) and isinstance(found, dict):
        for key in {**golden, **found}:
            if key not in golden or key not in found:
                yield f"{where}/{key} is {'new' if key in found else 'missing'}"
            else:
                yield from differences(golden[key], found[key], f"{where}/{key}")
    elif isinstance(golden, list) and isinstance(found, list):
        if len(golden) != len(found):
            yield f"{where}: {len(golden)} entries, now {len(found)}"
        for index, (one, other) in enumerate(zip(golden, found, strict=False)):
            yield from differences(one, other, f"{where}/{index}")
    elif not _same(golden, found):
        yield f"{where}: {golden!r}, now {found!r}"


def _same(golden: Any, found: Any) -> bool:
    if isinstance(golden, str) and isinstance(found, str):
        numbers = zip(NUMBER.findall(golden), NUMBER.findall(found), strict=False)
        return NUMBER.sub("#", golden) == NUMBER.sub("#", found) and all(
            math.isclose(float(a), float(b), rel_tol=ROUNDED, abs_tol=1e-3) for a, b in numbers
        )
    if isinstance(golden, float) and isinstance(found, (int, float)):
        return math.isclose(golden, found, rel_tol=CLOSE, abs_tol=1e-6)
    return type(golden) is type(found) and bool(golden == found)


def test_it_stays_small() -> None:
    """The corpus is small enough to be read when it changes."""
    assert sum(path.stat().st_size for path in Path(corpus.FOLDER).glob("*.json")) <= 400_000
