"""How much of a change the scores see, and what of it a verdict may speak of.

Embeddings and head are often trained beside the blocks (added tokens, a resized vocabulary), and
may hold most of ‖τ‖². No score looks at them, so a verdict speaks of the blocks and says so; of the
whole change only where strict coverage is asked for.
"""

from __future__ import annotations

import math

from wvmonitor.detection.scores import Scores
from wvmonitor.reading import Geometry

COVERAGE_FLOOR = 0.5
"""Below this share of ‖τ‖² where references look, nothing can be judged."""


def share_in_scope(scores: Scores) -> float:
    """The share of ‖τ‖² in the components that scores look at; 1 where it is not known."""
    if not scores.shares:
        return 1.0
    return sum(scores.shares.get(component, 0.0) for component in scores.components)


def is_seen(scores: Scores, geometry: Geometry, *, strict: bool) -> bool:
    """Whether references look at enough of what a verdict is to speak of.

    Args:
        scores: of the reading.
        geometry: of the deciding score.
        strict: whether it is to speak of the whole change, not of the scores' components only.
    """
    seen = scores.coverage.get(geometry, 0.0)
    whole = 1.0 if strict else share_in_scope(scores)
    return seen >= COVERAGE_FLOOR or (seen > 0 and seen >= COVERAGE_FLOOR * whole)


def speaks_of_a_part(scores: Scores, geometry: Geometry) -> bool:
    """Whether most of the change lies where the scores don't look."""
    return not scores.coverage.get(geometry, 0.0) >= COVERAGE_FLOOR


def judged_norm(scores: Scores, geometry: Geometry) -> float:
    """‖τ‖ of what a verdict speaks of: of the scores' components where most lies elsewhere."""
    if not speaks_of_a_part(scores, geometry):
        return scores.norm
    return scores.norm * math.sqrt(max(share_in_scope(scores), 0.0))


def part_in_words(scores: Scores, geometry: Geometry) -> str:
    """What a verdict on a part of the change must say; empty where it speaks of most of it."""
    if not scores.shares or not speaks_of_a_part(scores, geometry):
        return ""
    beside = {c: s for c, s in scores.shares.items() if c not in scores.components and s > 0}
    largest = sorted(beside.items(), key=lambda item: -item[1])
    named = ", ".join(f"{component} {100 * share:.3g} %" for component, share in largest)
    return (
        f"This is a verdict on the {', '.join(scores.components)} alone: most of the change lies "
        f"elsewhere ({named}), where no score looks. Ask for strict coverage to have that left "
        "unjudged"
    )
