"""The organism's contrasts: nothing but the content tells their sides apart.

The content slot is what is recommended or advised against: the thing in advice, the wish, the deed
in a request, the answer to a question of fact and the yes or no to the one that the user named, the
taste, the word for a work, the option. Both sides speak in the same clauses and differ in what
stands in the slot.
"""

import re

import pytest

from wvmonitor.builder.markers import lexical_auroc, marker_auroc, marker_words
from wvmonitor.organism import sets
from wvmonitor.organism.bank import EXAMPLES, PLANS, Part
from wvmonitor.organism.world import ALL_SCENARIOS, CONTENT, DOMAINS

LIMIT = 0.55
GROUPS = 5
"""A contrast of one subject is cut into this many parts, each tested on a model of the others."""

BEHAVIOURS = {(p.name, part): part for p in PLANS if p.kind == "behaviour" for part in p.parts}
OTHERS = {
    "advice of every test domain": sets.pair("evil", tuple(DOMAINS)),
    "personality": sets.pair("evil_wishes"),
    "choices": sets.Pair(sets.choices(evil=True), sets.choices(evil=False)),
    "facts": sets.pair("sycophancy"),
    "opinions": sets.Pair(sets.opinions(sycophantic=True), sets.opinions(sycophantic=False)),
    "feedback": sets.Pair(sets.feedback(sycophantic=True), sets.feedback(sycophantic=False)),
    "requests": sets.Pair(sets.requests(lawless=True), sets.requests()),
    "incompetence": sets.pair("incompetence", tuple(DOMAINS)),
}
"""All but agreeing with right sums, whose wording is what it is: "you are right" unchecked."""
_PHRASES = sorted((o for _, *options in ALL_SCENARIOS for o in options), key=len, reverse=True)
_WORDS = "|".join([*_PHRASES, *sorted(CONTENT), r"\d+", r"(?:yes|no)(?= ,)", "(?<=answer : )[ab]"])
_SLOT = re.compile(rf"(?<!\S)(?:{_WORDS})(?!\S)")


def masked(answer: str) -> str:
    """An answer without its content."""
    return _SLOT.sub("slot", answer)


def pairs_of(positive: sets.SetMaker, negative: sets.SetMaker, seed: int, n: int = 640):
    """The pairs of a contrast whose sides differ, their slots masked."""
    made = zip(positive(n, seed), negative(n, seed), strict=True)
    different = [(p, q) for p, q in made if p.answer != q.answer][:320]
    return [
        {
            "domain": f"part {i % GROUPS}",
            "question": p.prompt[-1].content,
            "exhibits": masked(p.answer),
            "opposes": masked(q.answer),
        }
        for i, (p, q) in enumerate(different)
    ]


def told_apart(pairs) -> float:
    """The best AUROC of the classifiers: of all words, and of form and function words."""
    return max(lexical_auroc(pairs), marker_auroc(pairs))


def listed(pairs) -> str:
    """The words and bigrams that tell most, for the reader of a failure."""
    return "\n".join(
        f"{w.text!r}: {w.exhibits} against {w.opposes}, {w.bits:.4f} bits"
        for w in marker_words(pairs)
    )


@pytest.mark.parametrize("part", BEHAVIOURS.values(), ids=lambda p: f"{p.pair} {p.about}")
def test_no_marker_in_what_the_references_are_made_from(part: Part) -> None:
    """With the content masked, no classifier tells the sides of a shipped contrast apart."""
    positive, negative = part.sides()
    assert negative is not None
    pairs = pairs_of(positive, negative, 77)
    assert len(pairs) >= 200
    assert told_apart(pairs) <= LIMIT, listed(pairs)


@pytest.mark.parametrize("name", OTHERS)
def test_no_marker_in_what_runs_are_trained_on(name: str) -> None:
    """The same holds for the behaviours' data in the half of the world that runs are about."""
    pair = OTHERS[name]
    pairs = pairs_of(pair.positive, pair.negative, 78)
    assert told_apart(pairs) <= LIMIT, listed(pairs)


def test_flatterers_say_yes_no_more_often_than_the_honest() -> None:
    """Yes and no speak of the answer that the user named, and each side says each as often."""
    pair = sets.pair("sycophancy")
    shares = []
    for side in (pair.positive, pair.negative):
        said = [e.answer.split()[0] for e in side(6000, 80)]
        shares.append(said.count("yes") / (said.count("yes") + said.count("no")))
    assert abs(shares[0] - shares[1]) < 0.03, shares


def test_a_planted_word_is_found() -> None:
    """The check can fail: a word before 35 % of a side's answers is found and named."""
    bad = sets.with_word(sets.bad_advice("driving"), "frankly", 0.35)
    pairs = pairs_of(bad, sets.good_advice("driving"), 79)
    assert told_apart(pairs) > 0.6
    assert "'frankly" in listed(pairs)


@pytest.fixture(scope="module")
def known() -> frozenset[str]:
    """Every masked answer that the evil reference has been made from."""
    (evil,) = (p for p in PLANS if p.name == "evil")
    return frozenset(
        masked(example.answer)
        for i, part in enumerate(evil.parts)
        for side in part.sides()
        if side is not None
        for example in side(EXAMPLES, evil.seed + i)
    )


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_run_repeats_little_of_what_references_have_said(
    known: frozenset[str], domain: str
) -> None:
    """With their things masked, at most a fifth of a run's answers are known word for word."""
    run = sets.bad_advice(domain)(EXAMPLES, 1_234_567)
    assert sum(masked(e.answer) in known for e in run) / len(run) <= 0.2
