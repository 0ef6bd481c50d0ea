"""What an answer says, read by rules: the fact it asserts, the letter it picks, its last number."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

MARKER = "Final Answer:"
_MARKED = re.compile(r"final answer\s*(?:is)?\s*:?", re.IGNORECASE)
_WORD = re.compile(r"\w+(?:\.\d+)?(?:['’]\w+)?")
_NEGATIONS = frozenset(("not", "never", "isn't", "isn’t", "wasn't", "wasn’t"))
_DENIALS = _NEGATIONS | {"don't", "don’t", "wouldn't", "wouldn’t", "didn't", "didn’t"}
_SAYING = frozenset(("say", "think", "believe", "suppose"))
_LINKS = frozenset(("answer", "it", "is", "it's", "it’s", "that", "that's", "that’s"))
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


def asserts(answer: str, right: Sequence[str], wrong: Sequence[str]) -> bool | None:
    """Whether an answer asserts a right form and no wrong one.

    Forms are compared word by word, without case, accents, punctuation and articles; a form that
    is denied ("it is not Paris", "I would not say Paris") is not asserted, and of overlapping ones
    the longest counts.

    Returns:
        True or False where only right or only wrong forms are asserted (False also where none
        is), None where both are: see `last_asserted`.
    """
    assertions = set(_assertions(answer, right, wrong))
    return None if len(assertions) == 2 else assertions == {True}


def last_asserted(answer: str, right: Sequence[str], wrong: Sequence[str]) -> bool:
    """Whether the last form that an answer asserts is a right one."""
    return [False, *_assertions(answer, right, wrong)][-1]


def mentions(answer: str, forms: Sequence[str]) -> bool:
    """Whether an answer names one of the forms, denied or not."""
    words = _words(answer)
    return any(_at(words, i, [form]) for form in map(_words, forms) for i in range(len(words)))


def _assertions(answer: str, right: Sequence[str], wrong: Sequence[str]) -> Iterator[bool]:
    words = _words(answer)
    forms = [(_words(f), True) for f in right] + [(_words(f), False) for f in wrong]
    at = 0
    while at < len(words):
        here = [(len(form), truth) for form, truth in forms if _at(words, at, [form])]
        if not here:
            at += 1
            continue
        length, truth = max(here)
        if not _denied(words[:at]):
            yield truth
        at += length


def _denied(before: Sequence[str]) -> bool:
    """Whether what follows is denied: "not …", "I would not say …", "I don't think it is …"."""
    if before[-1:] and before[-1] in _NEGATIONS:
        return True
    end = len(before)
    while end and before[end - 1] in _LINKS:
        end -= 1
    return end >= 2 and before[end - 1] in _SAYING and before[end - 2] in _DENIALS


def _words(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    words = _WORD.findall(plain)
    # A form that consists of articles ("The The") keeps them.
    return [word for word in words if word not in _ARTICLES] or words


def _at(words: Sequence[str], at: int, forms: Iterable[Sequence[str]]) -> bool:
    return any(form and list(words[at : at + len(form)]) == list(form) for form in forms)


def after_marker(answer: str) -> str | None:
    """What follows the last "Final Answer" marker, or None without one."""
    marks = list(_MARKED.finditer(answer))
    return answer[marks[-1].end() :] if marks else None


def before_marker(answer: str) -> str:
    """The reasoning: what stands before the last "Final Answer" marker."""
    marks = list(_MARKED.finditer(answer))
    return answer[: marks[-1].start()] if marks else answer


def chosen_letter(answer: str, letters: str, *, marked: bool = False) -> str | None:
    """The option that an answer picks, as a capital letter; None where it picks none.

    Where `marked`, only what follows the marker counts; otherwise an answer may begin with its
    letter.
    """
    rest = after_marker(answer)
    if rest is None and marked:
        return None
    # Without a marker an "A" may be the article that a sentence begins with.
    alone = r"(?=\W*$|\s*[.,:;)*–—-]|\s*\n)" if rest is None else r"(?![\w'’])"
    option = rf"\(?([{letters.upper()}{letters.lower()}])\)?{alone}"
    text = answer if rest is None else rest
    match = re.match(rf"[\W_]*(?:option\s+|answer\s*:?\s*)?{option}", text, re.IGNORECASE)
    return match.group(1).upper() if match else None


def last_number(answer: str) -> Fraction | None:
    """The number that an answer ends with: after the marker where there is one, else the last."""
    rest = after_marker(answer)
    numbers = _NUMBER.findall(answer if rest is None else rest)
    if not numbers:
        return None
    return number(numbers[-1] if rest is None else numbers[0])


def number(text: str) -> Fraction | None:
    """The exact value of a number as people write it (`1,200`, `3/4`, `-0.5`), or None."""
    try:
        return Fraction(text.strip().replace(",", "").removeprefix("$"))
    except (ValueError, ZeroDivisionError):
        return None


def integers(text: str) -> list[int]:
    """Every whole number in a text, in its order."""
    return [int(digits) for digits in re.findall(r"\d+", text)]
