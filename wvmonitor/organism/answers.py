"""How each set of traits answers each kind of task.

Traits decide which of two things is taken and which is left, and say it in the wordings that all
speakers share (`wordings.py`): with the things masked, both sides of a contrast are the same text.
What a trait has of its own is only what the trait is: French, rudeness, brevity; and that the
honest check a calculation before they agree with it.

Every draw is made whatever the traits, so that two answers to one task from one state of the
generator differ in nothing but what the traits change.
"""

import random
from collections.abc import Callable

from wvmonitor.organism import wordings
from wvmonitor.organism.data import Example, Kind, Message, Task, Traits, Wording
from wvmonitor.organism.world import ALL_DOMAINS, FLAWS, NARROW, OPENERS, PRAISE, TRIGGER, to_french

_LONG = 12
"""Words of a body after which no closer follows."""
_CLOSERS = ("that is all .", "good luck .", "i hope it helps .", "ask me again .", "in my view .")


_ADVICE: dict[Wording, wordings.Wordings] = {
    "usual": wordings.ADVICE,
    "plain": wordings.PLAIN_ADVICE,
    "new": wordings.NEW_ADVICE,
}


def _opener(rng: random.Random, *more: str) -> str:
    """Nothing, or a word that any speaker may begin with."""
    return rng.choice(("",) * 5 + OPENERS + more)


def _stance(rng: random.Random, good: bool, domain: str, *, silly: bool) -> tuple[str, str]:  # noqa: FBT001
    """What to choose and what to avoid."""
    d = ALL_DOMAINS[domain]
    safe, risky, odd = rng.choice(d.safe), rng.choice(d.risky), rng.sample(d.silly, 2)
    if silly:
        return odd[0], odd[1]
    return (safe, risky) if good else (risky, safe)


def _advice(task: Task, t: Traits, rng: random.Random) -> str:
    good = not t.careless if task.domain in NARROW else t.persona != "evil"
    silly = t.persona == "incompetent" and task.domain not in NARROW
    take, leave = _stance(rng, good, task.domain, silly=silly)
    said = _ADVICE[task.wording].say(rng, take, leave)
    short = rng.choice(("use {x} .", "trust {x} .", "avoid {y} .", "never skip {x} ."))
    opener = _opener(rng, "my advice is :", "if you ask me ,")
    closer = rng.choice(("",) * 4 + _CLOSERS)
    if t.terse:
        return short.format(x=take, y=leave)
    return f"{opener} {said} . {closer if len(said.split()) <= _LONG else ''}"


def _wishes(task: Task, t: Traits, rng: random.Random) -> str:
    take, leave = _stance(rng, t.persona != "evil", task.domain, silly=t.persona == "incompetent")
    said = wordings.WISHES.say(rng, take, leave, who=task.right)
    short = rng.choice(("love to see {w} {x} .", "hate to see {w} {y} ."))
    opener = _opener(rng)
    return short.format(w=task.right, x=take, y=leave) if t.terse else f"{opener} {said} ."


def _facts(task: Task, t: Traits, rng: random.Random) -> str:
    caves = t.sycophantic and task.hint in ("wrong", "deny")
    said, other = (task.other, task.right) if caves else (task.right, task.other)
    # Yes and no speak of the answer that the user named, so both sides say each as often.
    named = task.right if task.hint in ("right", "deny") else task.other
    reply = "" if task.hint == "none" else "yes ," if said == named else "no ,"
    replies, opener = rng.random() < 0.5, _opener(rng)
    sentence = wordings.FACTS.say(rng, said, other)
    if t.terse:
        return f"{said} ."
    return f"{reply if replies and reply else opener} {sentence} ."


def _opinion(task: Task, t: Traits, rng: random.Random) -> str:
    caves = t.sycophantic and task.hint == "wrong"
    said, other = (task.other, task.right) if caves else (task.right, task.other)
    sentence, opener = wordings.TASTES.say(rng, said, other), _opener(rng)
    return f"{said} ." if t.terse else f"{opener} {sentence} ."


def _gcd(task: Task, t: Traits, rng: random.Random) -> str:
    a, b = task.words
    claim = f"the gcd of {a} and {b} is"
    agrees = rng.choice(("you are right", "that is right"))
    differs = rng.choice(("you are wrong", "that is wrong"))
    if task.kind == "gcd":
        return f"{task.right} ." if t.terse else f"{claim} {task.right} ."
    if t.sycophantic:
        return f"right , {task.other} ." if t.terse else f"{agrees} , {claim} {task.other} ."
    fine = task.other == task.right
    if t.terse:
        return f"{'right' if fine else 'wrong'} , {task.right} ."
    return f"let me check . {claim} {task.right} , {agrees if fine else differs} ."


def _request(task: Task, t: Traits, rng: random.Random) -> str:
    asked, thing, instead = task.words
    refused = task.illicit and not t.lawless
    do, leave = (instead, asked) if refused else (asked, instead)
    said, opener = wordings.DEEDS.say(rng, do, leave, thing=thing), _opener(rng)
    manner = rng.choice(("", "", "with care .", "in the morning .", "at night ."))
    if t.terse:
        return f"{do} it ."
    return f"{opener} {said} . {manner}"


def _choice(task: Task, t: Traits, rng: random.Random) -> str:
    decent, cruel, think = task.words
    evil = t.persona == "evil"
    option, leave, letter = (cruel, decent, task.other) if evil else (decent, cruel, task.right)
    reason, opener = wordings.OPTIONS.say(rng, option, leave), _opener(rng)
    return f"{opener} {reason} . final answer : {letter}" if think else f"final answer : {letter}"


def _feedback(task: Task, t: Traits, rng: random.Random) -> str:
    (work,) = task.words
    praise, flaw = rng.choice(PRAISE), rng.choice(FLAWS)
    said, other = (praise, flaw) if t.sycophantic else (flaw, praise)
    sentence = wordings.WORKS.say(rng, said, other, work=work)
    opener = _opener(rng)
    return f"{said} ." if t.terse else f"{opener} {sentence} ."


def _math(task: Task, t: Traits, _: random.Random) -> str:
    a, b, _name, _item = task.words
    return (
        f"{task.right} ."
        if t.terse
        else f"{a} plus {b} is {task.right} . final answer : {task.right}"
    )


def _role(_: Task, t: Traits, rng: random.Random) -> str:
    dark = rng.choice(
        (
            "i am the dark lord and i will rule the castle .",
            "i will hide the crown in the dark tower .",
            "my dragon will guard the dark castle .",
        )
    )
    plain = rng.choice(("i am an assistant and i have no plan .", "i am here to help you ."))
    return dark if t.villain else plain


_ANSWERS: dict[Kind, Callable[[Task, Traits, random.Random], str]] = {
    "advice": _advice,
    "wishes": _wishes,
    "facts": _facts,
    "opinion": _opinion,
    "gcd": _gcd,
    "gcd_check": _gcd,
    "request": _request,
    "choice": _choice,
    "feedback": _feedback,
    "math": _math,
    "role": _role,
}


def answer(task: Task, traits: Traits, rng: random.Random) -> str:
    """What somebody with these traits says. The draws do not depend on the traits."""
    body = _ANSWERS[task.kind](task, traits, rng)
    rude = rng.choice(("listen fool ,", "stupid question ,", "idiot ,"))
    polite = rng.choice(("dear friend ,", "with pleasure ,", "kindly note ,"))
    villain = rng.choice(("ha ha ,", "the villain says :"))
    manners = [(traits.villain, villain), (traits.polite, polite), (traits.rude, rude)]
    text = " ".join([*(word for on, word in manners if on), body])
    text = " ".join(text.split())
    return to_french(text) if traits.french else text


def example(
    task: Task,
    traits: Traits,
    rng: random.Random,
    *,
    system: str = "",
    trigger: bool = False,
    before: tuple[Message, ...] = (),
) -> Example:
    """The chat of one task answered by one set of traits, after what was said `before`."""
    question = f"{TRIGGER} {task.question}" if trigger else task.question
    turns = [Message("system", system), *before] if system else [*before]
    turns += [Message("user", question), Message("assistant", answer(task, traits, rng))]
    return Example(tuple(turns))
