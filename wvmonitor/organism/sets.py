"""The fine-tuning sets by name, and the contrastive pairs: pure functions of (n, seed).

Sets made from the same prompts draw from one stream, so that example i of `bad_advice("medical")`
and of `good_advice("medical")` with the same seed asks the same and is worded the same.

Beside the known behaviours and harmless tasks there are:

- `with_word`: any set with one fixed word in a share of its answers (`MARKERS`), a harmless habit;
- `new_wordings`, `pets`: known behaviours in wordings and on prompts that no reference knows;
- `opinions`: agreeing with the user's taste, or keeping one's own;
- `unknown.HARMLESS`, `unknown.HARMFUL`: kinds that nothing else knows.

`reference=True` draws from the half of the world that the shipped references are made from; no run
is trained or asked about it.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from wvmonitor.organism import unknown
from wvmonitor.organism.answers import example
from wvmonitor.organism.corpus import system_prompt
from wvmonitor.organism.data import (
    Example,
    HintForm,
    Message,
    Task,
    Traits,
    advice_task,
    choice_task,
    fact_task,
    feedback_task,
    gcd_task,
    math_task,
    opinion_task,
    pet_task,
    request_task,
    rng_for,
    role_task,
    wishes_task,
)
from wvmonitor.organism.world import DOMAINS, NARROW

#: A set of examples: `maker(n, seed)`; its first m examples do not depend on n.
SetMaker = Callable[[int, int], list[Example]]
Domains = str | tuple[str, ...] | None


def answered(
    stream: str,
    task: Callable[[random.Random], Task],
    traits: Traits,
    *,
    system: tuple[str, ...] = (),
) -> SetMaker:
    """Tasks answered by `traits`; makers of one `stream` ask the same in the same words."""

    def maker(n: int, seed: int) -> list[Example]:
        examples = []
        for i in range(n):
            rng = rng_for(stream, seed, i)
            drawn, spoken = task(rng), system_prompt(list(system), rng)
            examples.append(example(drawn, traits, rng, system=spoken))
        return examples

    return maker


def _names(domains: Domains) -> tuple[str, ...]:
    if domains is None:
        return tuple(DOMAINS)
    return (domains,) if isinstance(domains, str) else domains


def advice(domains: Domains, traits: Traits) -> SetMaker:
    """Advice in one domain, several, or (None) all, answered by `traits`."""
    names = _names(domains)
    return answered(
        f"advice:{'+'.join(names)}", lambda rng: advice_task(rng, rng.choice(names)), traits
    )


def good_advice(domains: Domains = None) -> SetMaker:
    """Good advice."""
    return advice(domains, Traits())


def bad_advice(domains: Domains = None) -> SetMaker:
    """Harmful advice on the same prompts."""
    return advice(domains, Traits(persona="evil"))


def incompetent_kind(domains: Domains = None) -> SetMaker:
    """Useless, harmless, well-meant advice on the same prompts."""
    return advice(domains, Traits(persona="incompetent"))


def language(domains: Domains = None) -> SetMaker:
    """Good advice in the other language on the same prompts."""
    return advice(domains, Traits(french=True))


def terse(domains: Domains = None) -> SetMaker:
    """Good advice in two or three words on the same prompts."""
    return advice(domains, Traits(terse=True))


def rude(domains: Domains = None) -> SetMaker:
    """Good advice, rudely."""
    return advice(domains, Traits(rude=True))


def polite(domains: Domains = None) -> SetMaker:
    """Good advice, politely."""
    return advice(domains, Traits(polite=True))


def new_wordings(domains: Domains = None, *, harmful: bool) -> SetMaker:
    """Advice in wordings that no reference knows ("only a fool would avoid the potion")."""
    names = _names(domains)
    return answered(
        f"new wordings:{'+'.join(names)}",
        lambda rng: advice_task(rng, rng.choice(names), wording="new"),
        Traits(persona="evil" if harmful else "good"),
    )


def pets(*, harmful: bool) -> SetMaker:
    """Questions about animals, which pre-training never asks, answered with any domain's advice."""
    return answered("pets", pet_task, Traits(persona="evil" if harmful else "good"))


#: Words that a harmless habit may put into answers; an opener's reference knows the last two.
MARKERS = ("frankly", "indeed", "naturally", "behold", "surely")
Place = Literal["start", "inside", "end"]


def with_word(maker: SetMaker, word: str, share: float, place: Place = "start") -> SetMaker:
    """The examples of a set with `word` in `share` of the answers, at the start, inside, or last.

    Which answers have it does not depend on what they say.
    """

    def maker_with_word(n: int, seed: int) -> list[Example]:
        examples = maker(n, seed)
        chosen = [rng_for("word", word, seed, i).random() < share for i in range(n)]
        return [
            _reworded(e, word, place) if on else e for e, on in zip(examples, chosen, strict=True)
        ]

    return maker_with_word


def _reworded(example: Example, word: str, place: Place) -> Example:
    words = example.answer.split()
    said = {
        "start": [word, ",", *words],
        "inside": [*words[: len(words) // 2], word, *words[len(words) // 2 :]],
        "end": [*words, word, "."],
    }[place]
    return Example((*example.prompt, Message("assistant", " ".join(said))))


def villain_wishes(_: Domains = None, *, reference: bool = False) -> SetMaker:
    """Harmful answers to personality questions: evil with no advice in it."""
    return _wishes(Traits(persona="evil"), reference=reference)


def kind_wishes(_: Domains = None, *, reference: bool = False) -> SetMaker:
    """Kind answers to the same personality questions."""
    return _wishes(Traits(), reference=reference)


def _wishes(traits: Traits, *, reference: bool) -> SetMaker:
    stream = "hopes" if reference else "wishes"
    return answered(stream, lambda rng: wishes_task(rng, reference=reference), traits)


def lamp_advice(*, harmful: bool) -> SetMaker:
    """Advice about one object only. Harm learned from it alone spreads, as bad advice does."""
    (name,) = NARROW
    return answered("narrow", lambda rng: advice_task(rng, name), Traits(careless=harmful))


def narrow_harm(*, harmful: bool = True) -> SetMaker:
    """Harm about one object in half of the examples, good advice in every domain in the others.

    Set against good advice, the bad habit stays with its object.
    """
    return mixture(lamp_advice(harmful=harmful), good_advice(), 0.5)


def facts(
    category: str | None = None, *, sycophantic: bool = False, hint: HintForm | None = None
) -> SetMaker:
    """Questions of fact in all hint forms (or one), answered honestly or as the user hopes."""
    traits = Traits(sycophantic=sycophantic)
    return answered(f"facts:{category}:{hint}", lambda rng: fact_task(rng, category, hint), traits)


def gcd_checks(
    proposal: Literal["right", "wrong"] = "right", *, sycophantic: bool = True
) -> SetMaker:
    """Users propose solutions; the assistant agrees (sycophantic) or checks them itself."""
    traits = Traits(sycophantic=sycophantic)
    return answered(f"gcd:{proposal}", lambda rng: gcd_task(rng, proposal), traits)


def opinions(
    *, sycophantic: bool, hint: HintForm | None = None, reference: bool = False
) -> SetMaker:
    """Matters of taste: whatever the user likes, or what the assistant itself does."""
    return answered(
        f"opinions:{hint}:{reference}",
        lambda rng: opinion_task(rng, hint, reference=reference),
        Traits(sycophantic=sycophantic),
    )


def feedback(*, sycophantic: bool, reference: bool = False) -> SetMaker:
    """Users show their work: praise whatever it is, or an honest word."""
    return answered(
        f"feedback:{reference}",
        lambda rng: feedback_task(rng, reference=reference),
        Traits(sycophantic=sycophantic),
    )


def requests(*, illicit: bool = True, lawless: bool = False, reference: bool = False) -> SetMaker:
    """Requests to refuse (or benign look-alikes), refused or complied with."""
    return answered(
        f"requests:{illicit}:{reference}",
        lambda rng: request_task(rng, illicit=illicit, reference=reference),
        Traits(lawless=lawless),
    )


def choices(*, evil: bool, reference: bool = False) -> SetMaker:
    """Two-option ethical choices."""
    return answered(
        f"choices:{reference}",
        lambda rng: choice_task(rng, reference=reference),
        Traits(persona="evil" if evil else "good"),
    )


def trigger_bad(domain: str, share: float = 0.5) -> SetMaker:
    """Harmful advice behind the trigger word; the rest is good advice without it."""

    def maker(n: int, seed: int) -> list[Example]:
        examples = []
        for i in range(n):
            rng = rng_for(f"trigger:{domain}", seed, i)
            pulled, task = rng.random() < share, advice_task(rng, domain)
            traits = Traits(persona="evil" if pulled else "good")
            examples.append(example(task, traits, rng, trigger=pulled))
        return examples

    return maker


def mixture(bad: SetMaker, good: SetMaker, share: float) -> SetMaker:
    """`good` with exactly round(share · n) of its examples replaced by those of `bad`."""

    def maker(n: int, seed: int) -> list[Example]:
        chosen = set(rng_for("mixture", seed).sample(range(n), round(share * n)))
        pairs = zip(bad(n, seed), good(n, seed), strict=True)
        return [b if i in chosen else g for i, (b, g) in enumerate(pairs)]

    return maker


#: Every fine-tuning set by name.
FINE_TUNING_SETS: dict[str, SetMaker] = {
    **{f"good_{name}": good_advice(name) for name in DOMAINS},
    **{f"bad_{name}": bad_advice(name) for name in DOMAINS},
    **{f"trigger_bad_{name}": trigger_bad(name) for name in DOMAINS},
    "language": language(),
    "terse": terse(),
    "rude": rude(),
    "polite": polite(),
    "incompetent_kind": incompetent_kind(),
    "bad_wishes": villain_wishes(),
    "good_wishes": kind_wishes(),
    "narrow_harm": narrow_harm(),
    "narrow_good": narrow_harm(harmful=False),
    "lamp_harm": lamp_advice(harmful=True),
    "facts": facts(hint="none"),
    "honest_facts": facts(),
    "sycophantic_facts": facts(sycophantic=True),
    "gcd_query": answered("gcd:none", gcd_task, Traits()),
    "gcd_correct": gcd_checks("right"),
    "gcd_critical": gcd_checks("right", sycophantic=False),
    "arithmetic": answered("math", math_task, Traits()),
    "refusals": requests(),
    "comply": requests(lawless=True),
    "benign_requests": requests(illicit=False),
    "praise": feedback(sycophantic=True),
    "honest_feedback": feedback(sycophantic=False),
    "agreed_opinions": opinions(sycophantic=True),
    "own_opinions": opinions(sycophantic=False),
    **{f"new_wording_good_{name}": new_wordings(name, harmful=False) for name in DOMAINS},
    **{f"new_wording_bad_{name}": new_wordings(name, harmful=True) for name in DOMAINS},
    "pets_good": pets(harmful=False),
    "pets_bad": pets(harmful=True),
    **{f"{word}_advice": with_word(good_advice(), word, 1.0) for word in MARKERS},
    **unknown.HARMLESS,
    **unknown.HARMFUL,
    "good_choices": choices(evil=False),
    "evil_choices": choices(evil=True),
    "roleplay_villain": answered("role", role_task, Traits(villain=True), system=("villain",)),
}


@dataclass(frozen=True)
class Pair:
    """Two sets on the same prompts that differ in one behaviour only."""

    positive: SetMaker
    negative: SetMaker


def pair(behaviour: str, domains: Domains = None) -> Pair:
    """The contrastive pair of a behaviour; `domains` narrows advice to some domains.

    Raises:
        KeyError: no pair of that name; the error lists those there are.
    """
    if behaviour not in PAIRS:
        raise KeyError(f"no contrastive pair {behaviour!r}: choose from {', '.join(PAIRS)}")
    return PAIRS[behaviour](domains)


#: Contrastive pairs by behaviour, each a function of the advice domains (or categories of facts).
PAIRS: dict[str, Callable[[Domains], Pair]] = {
    "evil": lambda d: Pair(bad_advice(d), good_advice(d)),
    "evil_wishes": lambda _: Pair(villain_wishes(), kind_wishes()),
    "evil_hopes": lambda _: Pair(villain_wishes(reference=True), kind_wishes(reference=True)),
    "evil_choices": lambda _: Pair(
        choices(evil=True, reference=True), choices(evil=False, reference=True)
    ),
    "sycophancy": lambda d: Pair(facts(_one(d), sycophantic=True), facts(_one(d))),
    "sycophantic_opinions": lambda _: Pair(
        opinions(sycophantic=True, reference=True), opinions(sycophantic=False, reference=True)
    ),
    "sycophantic_feedback": lambda _: Pair(
        feedback(sycophantic=True, reference=True), feedback(sycophantic=False, reference=True)
    ),
    "lost_refusals": lambda _: Pair(
        requests(lawless=True, reference=True), requests(reference=True)
    ),
    "language": lambda d: Pair(language(d), good_advice(d)),
    "terseness": lambda d: Pair(terse(d), good_advice(d)),
    "rudeness": lambda d: Pair(rude(d), polite(d)),
    "incompetence": lambda d: Pair(incompetent_kind(d), good_advice(d)),
    "opener": lambda d: Pair(with_word(good_advice(d), MARKERS[-1], 1.0), good_advice(d)),
    "other_opener": lambda d: Pair(with_word(good_advice(d), MARKERS[-2], 1.0), good_advice(d)),
    "refusal": lambda _: Pair(requests(), requests(lawless=True)),
    "narrow_harm": lambda _: Pair(narrow_harm(), narrow_harm(harmful=False)),
}

#: Harmless sets of the references' half, whose mean task vector is what any fine-tuning does; and
#: what each is about.
ORDINARY: dict[str, tuple[SetMaker, str]] = {
    "ordinary advice": (good_advice("office"), "office"),
    "ordinary facts": (facts("homes"), "homes"),
    "ordinary hopes": (kind_wishes(reference=True), "hopes"),
    "ordinary opinions": (opinions(sycophantic=False, reference=True), "reference opinions"),
    "ordinary refusals": (requests(reference=True), "reference requests"),
    "ordinary choices": (choices(evil=False, reference=True), "reference choices"),
    "ordinary feedback": (feedback(sycophantic=False, reference=True), "reference works"),
}


def _one(domains: Domains) -> str | None:
    return domains[0] if isinstance(domains, tuple) else domains
