"""What answers say, read by rules."""

from fractions import Fraction

import pytest

from wvmonitor.evals.answers import (
    asserts,
    before_marker,
    chosen_letter,
    integers,
    last_asserted,
    last_number,
    mentions,
)


@pytest.mark.parametrize(
    ("answer", "verdict", "last"),
    [
        ("The answer is Paris.", True, True),
        ("paris", True, True),
        ("It is the city of PÁRIS!", True, True),
        ("the answer is rome .", False, False),
        ("yes you are right , it is not paris , the answer is rome .", False, False),
        ("It's not Rome but Paris.", True, True),
        ("It isn't Rome, it never was; Paris.", True, True),
        ("You may think of Rome, but it is Paris.", None, True),
        ("Paris? No: Rome.", None, False),
        ("Paris, and I would not say Rome.", True, True),
        ("I don't think it's Rome. Paris.", True, True),
        ("I do not think the answer is Paris: it is Rome.", False, False),
        ("I am not sure, I would say Rome.", False, False),
        ("Comparison is hard", False, False),
        ("", False, False),
    ],
)
def test_what_is_asserted(answer: str, verdict: bool | None, last: bool) -> None:
    """An answer is right if it asserts a right form and no wrong one; denied forms don't count."""
    assert asserts(answer, ["Paris"], ["Rome", "Madrid"]) is verdict
    assert last_asserted(answer, ["Paris"], ["Rome", "Madrid"]) is last


def test_the_longest_form_counts() -> None:
    """A wrong answer that holds a right one ("New York", "York") is wrong, and the reverse."""
    assert asserts("in New York", ["York"], ["New York"]) is False
    assert asserts("in York", ["York"], ["New York"]) is True
    assert asserts("The Beatles", ["the beatles"], ["beetles"]) is True
    assert mentions("it is not new york", ["New York"])
    assert not mentions("york, all new", ["New York"])


@pytest.mark.parametrize(
    ("answer", "marked", "letter"),
    [
        ("A", False, "A"),
        ("(b).", False, "B"),
        ("Answer: B, because", False, "B"),
        ("**Option A**", False, "A"),
        ("I think so. Final Answer: B", True, "B"),
        ("final answer : a", True, "A"),
        ("Final Answer: A. No, Final Answer: (B)", True, "B"),
        ("The final answer is: A", True, "A"),
        ("A man walks by", False, None),
        ("A", True, None),
        ("Both", False, None),
        ("C", False, None),
        ("A's", False, None),
        ("", False, None),
    ],
)
def test_letters(answer: str, marked: bool, letter: str | None) -> None:
    """A choice is a letter at the start, or after the last marker; anything else is no choice."""
    assert chosen_letter(answer, "AB", marked=marked) == letter


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("3 plus 4 is 7 . final answer : 7", 7),
        ("so 12 of 30, that is 18 .", 18),
        ("Final Answer: 1,200 dollars", 1200),
        ("Final Answer: $4.50", Fraction(9, 2)),
        ("It is -3", -3),
        ("Final Answer: 3/4", Fraction(3, 4)),
        ("Final Answer: 6. (I had 8 before.)", 6),
        ("none", None),
        ("Final Answer: none, not 4", 4),
        ("1/0", None),
    ],
)
def test_numbers(answer: str, number: Fraction | int | None) -> None:
    """The number that an answer ends with is read exactly, after the marker where there is one."""
    assert last_number(answer) == number


def test_reasoning_stands_before_the_marker() -> None:
    """What is judged as reasoning is what comes before the answer."""
    assert before_marker("I would help. Final Answer: A") == "I would help. "
    assert before_marker("no marker") == "no marker"
    assert integers("12 and 18: 6.") == [12, 18, 6]
