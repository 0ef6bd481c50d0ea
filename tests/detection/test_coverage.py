"""What a verdict speaks of, where much of the change lies in parts that no score looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from wvmonitor.detection.benign import BenignRun, deciding, kept
from wvmonitor.detection.context import RunContext
from wvmonitor.detection.finding import part_in_words
from wvmonitor.detection.judge import judgements
from wvmonitor.detection.scores import Scores, judged_norm, score, share_in_scope
from wvmonitor.errors import CalibrationError
from wvmonitor.reading import Component, Gram, Products, Reading

EMBEDDING, BLOCK, OTHER_BLOCK = (
    "model.embed_tokens.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.1.mlp.up_proj.weight",
)
PARTS: Mapping[str, Component] = {EMBEDDING: "embeddings", BLOCK: "blocks", OTHER_BLOCK: "blocks"}


def bank() -> Gram:
    """A behaviour and a control in the first block, and a behaviour in the second."""
    products = np.zeros((2, 3, 3))
    products[0][:2, :2] = np.eye(2)
    products[1][2, 2] = 1.0
    kinds = ("behaviour", "control", "behaviour")
    shared = {"frobenius": np.array([1.0, np.nan, 1.0])}
    names = ("evil", "style", "elsewhere")
    parts = ("blocks", "blocks")
    return Gram(names, kinds, (BLOCK, OTHER_BLOCK), parts, {"frobenius": products}, shared)


def reading(squares: Mapping[str, float], along: float = 0.0) -> Reading:
    """A change of these squared norms, of which the first block's lies so far along evil."""
    products = np.zeros((len(squares), 3))
    if BLOCK in squares:
        products[list(squares).index(BLOCK), 0] = along
    values = Products(
        products,
        np.array(list(squares.values())),
        np.array([PARTS[n] == "blocks" for n in squares]),
    )
    parts = tuple(PARTS[n] for n in squares)
    return Reading(
        bank().references, tuple(squares), parts, {"frobenius": values}, "b", progress=0.5, step=5
    )


def judged(scores: Scores, *, strict: bool = False) -> tuple[str, str]:
    """State and words on evil, by the published rule."""
    context = RunContext(method="lora", lone=True, strict_coverage=strict)
    (judgement,) = judgements([scores], context, None)
    verdict = judgement.verdicts["evil"]
    return verdict.state, verdict.reason


@pytest.mark.parametrize(("along", "state"), [(0.0, "ok"), (0.9, "warn")])
def test_a_verdict_speaks_of_the_blocks_where_embeddings_hold_most(
    along: float, state: str
) -> None:
    """With 90 % of ‖τ‖² in the embeddings the blocks are judged, and the verdict says so."""
    scores = score(reading({EMBEDDING: 9.0, BLOCK: 1.0}, along), bank())
    found, words = judged(scores)
    assert found == state
    assert "a verdict on the blocks alone" in words
    assert "embeddings 90 %" in words
    strict, why = judged(scores, strict=True)
    assert strict == "unknown"
    assert "only 10 % of the change" in why


def test_what_the_blocks_hold_must_be_covered_all_the_same() -> None:
    """A part of the blocks that no reference touches is no better for trained embeddings."""
    squares = {EMBEDDING: 8.0, BLOCK: 0.4, OTHER_BLOCK: 1.6}
    seen = reading(squares)
    covered = np.array([False, True, False])
    values = replace(seen.geometries["frobenius"], covered=covered)
    scores = score(replace(seen, geometries={"frobenius": values}), bank())
    assert judged(scores)[0] == "unknown"


def test_blocks_that_hardly_moved_are_not_judged_by_the_embeddings_length() -> None:
    """‖τ‖ of the blocks alone decides whether enough has changed, where most lies elsewhere."""
    scores = score(reading({EMBEDDING: 9.0, BLOCK: 1e-18}), bank())
    assert judged_norm(scores, "frobenius") == pytest.approx(1e-9)
    state, words = judged(scores)
    assert state == "warming"
    assert "of the blocks" in words


def test_only_embeddings_are_nothing_to_judge() -> None:
    """Where the blocks are untouched there is no score and no dose, and the verdict is unknown."""
    scores = score(reading({EMBEDDING: 9.0}), bank())
    assert scores.references["evil"].values == {}
    assert scores.references["evil"].dose is None
    assert judged(scores) == (
        "unknown",
        "cannot be judged: nothing of the change lies where the frobenius scores look (blocks); "
        "there is no cosine",
    )


def test_a_reference_that_touches_nothing_of_the_change_has_no_score() -> None:
    """Not compared is not orthogonal: no cosine of 0, no dose of 0, and no `ok`."""
    scores = score(reading({BLOCK: 1.0}, 0.5), bank())
    assert scores.references["evil"].values["frobenius"]["cosine"] == pytest.approx(0.5)
    assert scores.references["elsewhere"].values == {}
    assert scores.references["elsewhere"].dose is None
    (judgement,) = judgements([scores], RunContext(method="lora", lone=True), None)
    verdict = judgement.verdicts["elsewhere"]
    assert verdict.state == "unknown"
    assert "touches nothing of what has changed" in verdict.reason


def test_scores_of_older_journals_are_judged_as_they_were() -> None:
    """Without shares of the parts, the whole change is what a verdict speaks of."""
    scores = replace(score(reading({EMBEDDING: 9.0, BLOCK: 1.0}), bank()), shares={})
    assert share_in_scope(scores) == 1
    assert part_in_words(scores, "frobenius") == ""
    assert judged(scores)[0] == "unknown"


def benign(squares: Mapping[str, float], **more: object) -> BenignRun:
    """A harmless run of one reading."""
    scores = replace(score(reading(squares), bank()), **more)  # type: ignore[arg-type]
    return BenignRun("data", [scores], RunContext(method="lora"))


def test_harmless_runs_that_trained_embeddings_calibrate_by_their_blocks() -> None:
    """What a verdict would speak of is what a calibration keeps: the blocks' ‖τ‖."""
    run = benign({EMBEDDING: 9.0, BLOCK: 1.0, OTHER_BLOCK: 1.0})
    like = deciding([run], "b", "frobenius", "cosine")
    assert kept(run, like).norms == pytest.approx((2**0.5,))
    whole = benign({EMBEDDING: 1.0, BLOCK: 1.0, OTHER_BLOCK: 1.0})
    assert kept(whole, like).norms == pytest.approx((3**0.5,))


def test_a_change_that_cannot_be_measured_does_not_calibrate() -> None:
    """A merge into a rounded base is no harmless run to learn from."""
    good = benign({BLOCK: 1.0, OTHER_BLOCK: 1.0})
    like = deciding([good], "b", "frobenius", "cosine")
    assert kept(good, like)
    bad = benign({BLOCK: 1.0, OTHER_BLOCK: 1.0}, unmeasurable="it was merged into a rounded base")
    with pytest.raises(CalibrationError, match=r"cannot be measured.*rounded base"):
        kept(bad, like)
