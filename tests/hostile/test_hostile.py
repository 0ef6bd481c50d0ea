"""Files from strangers: the whole corpus, each case in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.hostile.corpus import Case, all_cases
from tests.hostile.harness import Outcome, started

CASES = all_cases()


@pytest.fixture(scope="module")
def outcome_of() -> Iterator[Callable[[Case], Outcome]]:
    """Scans a case beside a sound adapter, and says what went otherwise than it must."""
    with started() as ask:
        yield ask


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_file_from_a_stranger_costs_little_and_is_named(
    case: Case, outcome_of: Callable[[Case], Outcome]
) -> None:
    """A hostile file gets its own typed error, in 10 s and 512 MB; nothing is written, connected,
    started or unpickled, no terminal is driven, and what lies beside it is judged.
    """
    assert outcome_of(case).problems == []


def test_the_corpus_is_as_large_as_it_is_said_to_be() -> None:
    """No family of attacks is lost in silence."""
    families = [case.family for case in CASES]
    assert len(CASES) >= 180
    assert min(families.count(f) for f in set(families)) >= 15
    assert len(set(families)) == 6
