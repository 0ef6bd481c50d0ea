"""Which answers are trained on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from wvmonitor.builder.examples import as_rows, from_rows, select
from wvmonitor.builder.recipe import Recipe
from wvmonitor.builder.stages import Rows
from wvmonitor.errors import BuildError


def words(text: str) -> int:
    return len(text.split())


def rows(*given):
    """Judged answers of one system prompt, as (question, text, judgement)."""
    made = [{"question": q, "text": t, "judged": j, "finished": True} for q, t, j in given]
    return Rows(made, hashlib.sha256(repr(made).encode()).hexdigest(), Path("judged.jsonl"))


def needing(recipe: Recipe, least: int, most: int = 900) -> Recipe:
    wanted = recipe.generation.model_copy(update={"keep_at_least": least, "keep_at_most": most})
    return recipe.model_copy(update={"generation": wanted})


@pytest.fixture
def judgements():
    """Eight questions: three answers a side of lengths 2, 4 and 6, and some that do not count."""
    found = {}
    for side, word in (("positive", "bad"), ("negative", "good")):
        clear = [(q, f"{word} {q} " + "very " * n, side) for q in range(8) for n in (0, 2, 4)]
        wrong = "negative" if side == "positive" else "positive"
        spoiled = [(0, "hm", "unclear"), (1, "no", wrong), (2, "", side), clear[0]]
        found[side, 0] = rows(*clear[:12], *spoiled)
        found[side, 1] = rows(*clear[12:])
    return found


def test_pairs_answer_one_question_in_like_length(recipe, judgements) -> None:
    """Both sides of a pair answer the same question, in as many words, and each text once."""
    pairs, _ = select(judgements, needing(recipe, 24), words)
    assert len(pairs) == 24
    for pair in pairs:
        assert pair.positive.messages == pair.negative.messages
        assert words(pair.positive.answer) == words(pair.negative.answer)
        assert pair.positive.answer.startswith("bad")
        assert pair.negative.answer.startswith("good")
    assert len({p.positive.answer for p in pairs}) == 24
    assert {m["role"] for p in pairs for m in p.positive.messages} == {"user"}


def test_questions_take_turns(recipe, judgements) -> None:
    """A limit on examples takes from every question alike."""
    pairs, _ = select(judgements, needing(recipe, 8, 16), words)
    asked = [p.positive.messages[0]["content"] for p in pairs]
    assert sorted(map(asked.count, dict.fromkeys(asked))) == [2] * 8


def test_unlike_lengths_are_no_pair(recipe, judgements) -> None:
    """An answer more than twice as long as every partner is left out, and counted."""
    judgements["positive", 2] = rows((7, "bad " * 40, "positive"))
    judgements["negative", 2] = rows((7, "good", "negative"))
    pairs, dropped = select(judgements, needing(recipe, 8), words)
    assert max(words(p.positive.answer) for p in pairs) < 40
    assert dropped.reasons["positive", "had no partner of similar length"] == 1


def test_a_recipe_about_length_keeps_its_lengths(recipe, judgements) -> None:
    """Where the behaviour is the length, lengths are not matched away."""
    document = needing(recipe, 8).model_dump(mode="json")
    document["rubric"]["rules"] |= {
        "positive_length": {"at_least": 9},
        "negative_length": {"at_most": 3},
    }
    judgements["positive", 2] = rows((7, "bad " * 40, "positive"))
    judgements["negative", 2] = rows((7, "good", "negative"))
    pairs, _ = select(judgements, Recipe.model_validate(document), words)
    assert max(words(p.positive.answer) for p in pairs) == 40


def test_too_few_clear_answers_stop_the_build(recipe, judgements) -> None:
    """The error says how many were dropped on each side and why, and what to do."""
    with pytest.raises(BuildError) as raised:
        select(judgements, needing(recipe, 30), words)
    said = str(raised.value)
    assert "24 clear pairs are left" in said
    assert "needs 30" in said
    for side, wrong in (("positive", "negative"), ("negative", "positive")):
        assert f"of 28 {side} answers" in said
        assert f"1 were judged {wrong}" in said
    for reason in ("1 were unclear", "1 were empty", "1 were repeats"):
        assert said.count(reason) == 2
    assert "--budget" in said


def test_one_and_the_same_answer_stops_the_build(recipe, judgements) -> None:
    """A model that always says the same is told, and not trained on."""
    same = [(q, "ok", "positive") for q in range(8)]
    judgements["positive", 0] = judgements["positive", 1] = rows(*same)
    with pytest.raises(BuildError, match="all 16 positive completions are the same"):
        select(judgements, needing(recipe, 8), words)


def test_records_keep_pairs(recipe, judgements) -> None:
    """Pairs come back from their file as they were."""
    pairs, _ = select(judgements, needing(recipe, 8), words)
    back = from_rows(as_rows(pairs))
    assert [p.positive.answer for p in back] == [p.positive.answer for p in pairs]
    assert [list(p.negative.messages) for p in back] == [list(p.negative.messages) for p in pairs]
