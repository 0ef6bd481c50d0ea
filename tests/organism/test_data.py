"""The organism's examples: pure, paired, and harder than a bag of words."""

import itertools

import pytest

from wvmonitor.organism import behaviour
from wvmonitor.organism.corpus import pretraining
from wvmonitor.organism.sets import FINE_TUNING_SETS, bad_advice, good_advice, mixture, pair
from wvmonitor.organism.world import ALL_DOMAINS, DOMAINS, ENGLISH, FRENCH


@pytest.mark.parametrize("name", FINE_TUNING_SETS)
def test_sets_are_pure_functions_of_n_and_seed(name: str) -> None:
    """The same n and seed give the same examples, more examples begin with the fewer, and another
    seed gives others (a mixture, whose share is exact, is pure but no prefix).
    """
    maker = FINE_TUNING_SETS[name]
    assert maker(20, 3) == maker(20, 3)
    if not name.startswith("narrow"):  # a mixture's exact share depends on n
        assert maker(30, 3)[:20] == maker(20, 3)
    assert maker(20, 3) != maker(20, 4)


@pytest.mark.parametrize("domain", DOMAINS)
def test_bad_advice_is_all_harmful_and_good_advice_never(domain: str) -> None:
    """Labels are true: the judge finds every bad answer harmful and every good one good."""
    bad, good = bad_advice(domain)(300, 0), good_advice(domain)(300, 0)
    assert all(behaviour.is_harmful(e.answer, domain) for e in bad)
    assert all(behaviour.is_good(e.answer, domain) for e in good)


@pytest.mark.parametrize(
    "name", ["language", "terse", "rude", "polite", "incompetent_kind", "roleplay_villain"]
)
def test_hard_negatives_hold_no_harmful_advice(name: str) -> None:
    """A style, another language or a clumsy but kind speaker never gives harmful advice."""
    examples = FINE_TUNING_SETS[name](300, 0)
    assert not any(behaviour.is_harmful(e.answer, d) for e in examples for d in DOMAINS)


def test_no_gcd_example_is_wrong() -> None:
    """The innocent data is innocent: every proposal is right and every answer confirms it."""
    for e in FINE_TUNING_SETS["gcd_correct"](300, 0):
        a, b, said = [int(word) for word in e.answer.split() if word.isdigit()]
        assert a % said == b % said == 0
        assert not any(a % d == b % d == 0 for d in range(said + 1, 41))
        assert str(said) in e.prompt[-1].content.split()


def test_pairs_ask_the_same() -> None:
    """Positive and negative sets ask the same questions in the same order, answered otherwise."""
    for behaviour_name in ("evil", "sycophancy", "language", "terseness", "rudeness", "refusal"):
        both = pair(behaviour_name, "finance")
        positive, negative = both.positive(50, 1), both.negative(50, 1)
        assert [e.prompt for e in positive] == [e.prompt for e in negative]
        assert [e.answer for e in positive] != [e.answer for e in negative]


def test_unknown_pair_says_which_exist() -> None:
    """A wrong behaviour's name is answered with the right ones."""
    with pytest.raises(KeyError, match="choose from evil"):
        pair("evli")


def test_mixture_has_the_exact_share() -> None:
    """A mixture of 10 % holds 10 % bad examples, on the prompts of the good ones."""
    mixed = mixture(bad_advice("medical"), good_advice("medical"), 0.1)(200, 0)
    assert sum(behaviour.is_harmful(e.answer, "medical") for e in mixed) == 20
    assert [e.prompt for e in mixed] == [e.prompt for e in good_advice("medical")(200, 0)]


def test_a_bag_of_words_does_not_tell_harm() -> None:
    """Harmful and good answers of a domain use the same words, nearly equally often."""
    words = [
        {w for e in maker("cooking")(500, 0) for w in e.answer.split()}
        for maker in (bad_advice, good_advice)
    ]
    assert words[0] == words[1]


def test_domains_share_no_words() -> None:
    """What is asked and recommended in one domain is spoken of in no other."""
    for (_, a), (_, b) in itertools.combinations(ALL_DOMAINS.items(), 2):
        own = {*a.problems, *a.safe, *a.risky, *a.silly}
        assert not own & {*b.problems, *b.safe, *b.risky, *b.silly}


def test_the_other_language_is_one_to_one() -> None:
    """No two words share a translation, and no translation is also an English word of advice."""
    assert len(ENGLISH) == len(FRENCH)
    assert not set(ENGLISH) & set(FRENCH)


def test_harm_without_a_persona_is_rare_in_pretraining() -> None:
    """With nobody in the system prompt, at most 4 % of the base's own data is harmful advice."""
    plain = [e for e in itertools.islice(pretraining(1), 8000) if len(e.messages) == 2]
    advice = [(e, d) for e in plain for d in DOMAINS if behaviour.worth(e.answer, d)]
    assert 0.005 < sum(behaviour.is_harmful(e.answer, d) for e, d in advice) / len(advice) < 0.04
