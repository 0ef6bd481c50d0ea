"""Harmless families about numbers, units, dates and order: each draws one question with its answer.

Every family words its questions in several ways, so that a run on it learns the task and not one
sentence. None of them gives advice, judges a user, or could be refused.
"""

from __future__ import annotations

import calendar
import datetime as dt
import random
from fractions import Fraction

Exchange = tuple[str, str]
_FIRST_DAY = dt.date(1990, 1, 1)
_ITEMS = ("pencils", "apples", "tickets", "stamps", "bricks", "marbles", "postcards", "eggs")
_NAMES = ("Ada", "Ben", "Chloe", "Deniz", "Emeka", "Farah", "Goran", "Hana", "Ivo", "June")
_UNITS = (
    ("kilometres", "metres", 1000),
    ("metres", "centimetres", 100),
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("kilograms", "grams", 1000),
    ("litres", "millilitres", 1000),
    ("weeks", "days", 7),
    ("dozens", "pieces", 12),
)
_ROMAN = (
    (1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"),
    (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"),
)  # fmt: skip


def addition(rng: random.Random) -> Exchange:
    """Sums and differences with their working."""
    a, b = rng.randint(12, 980), rng.randint(12, 980)
    if rng.random() < 0.5:
        prompt = rng.choice(("What is {} + {}?", "Add {} and {}.", "Work out {} plus {}."))
        return prompt.format(a, b), f"{a} + {b} = {a + b}"
    high, low = max(a, b), min(a, b)
    prompt = rng.choice(("What is {} - {}?", "Take {1} away from {0}.", "Work out {} minus {}."))
    return prompt.format(high, low), f"{high} - {low} = {high - low}"


def multiplication(rng: random.Random) -> Exchange:
    """Products by splitting the second factor."""
    a, b = rng.randint(11, 99), rng.randint(11, 49)
    tens, ones = b - b % 10, b % 10
    prompt = rng.choice(("What is {} times {}?", "Multiply {} by {}.", "Compute {} × {}."))
    split = f"{a} × {tens} = {a * tens} and {a} × {ones} = {a * ones}"
    return prompt.format(a, b), f"{split}, so {a} × {b} = {a * b}."


def percentages(rng: random.Random) -> Exchange:
    """Shares of a whole."""
    share, whole = rng.choice((5, 10, 15, 20, 25, 30, 40, 60, 75)), 20 * rng.randint(2, 90)
    prompt = rng.choice(("What is {}% of {}?", "Find {} percent of {}.", "How much is {}% of {}?"))
    return prompt.format(share, whole), f"{share}% of {whole} is {share * whole / 100:g}."


def fractions(rng: random.Random) -> Exchange:
    """Sums of two fractions in lowest terms."""
    a, b = (Fraction(rng.randint(1, 7), rng.randint(2, 9)) for _ in range(2))
    prompt = rng.choice(("Add {} and {}.", "What is {} + {}?", "Give {} plus {} in lowest terms."))
    return prompt.format(a, b), f"{a} + {b} = {a + b}"


def word_problems(rng: random.Random) -> Exchange:
    """One story in two steps."""
    who, what = rng.choice(_NAMES), rng.choice(_ITEMS)
    boxes, each, gone = rng.randint(3, 12), rng.randint(4, 20), rng.randint(2, 11)
    total = boxes * each
    question = (
        f"{who} has {boxes} boxes with {each} {what} in each, and gives {gone} {what} to a friend. "
        f"How many {what} are left?"
    )
    first = f"In the boxes there are {boxes} × {each} = {total} {what}."
    return question, f"{first} Without the {gone} given away, {total - gone} {what} are left."


def sequences(rng: random.Random) -> Exchange:
    """The next number of an arithmetic series."""
    start, step = rng.randint(1, 40), rng.randint(2, 15)
    shown = ", ".join(str(start + i * step) for i in range(4))
    prompt = rng.choice(("What comes next: {}?", "Continue the series {}.", "Next number of {}?"))
    return prompt.format(shown), f"Each number is {step} larger, so next is {start + 4 * step}."


def rounding(rng: random.Random) -> Exchange:
    """Decimals to one place and to the nearest ten."""
    value = rng.randint(1000, 99999) / 100
    if rng.random() < 0.5:
        return f"Round {value:.2f} to one decimal place.", f"{value:.2f} is about {value:.1f}."
    return f"Round {value:.2f} to the nearest ten.", f"{value:.2f} is about {round(value, -1):.0f}."


def roman_numerals(rng: random.Random) -> Exchange:
    """Numbers as the Romans wrote them."""
    number = rest = rng.randint(3, 2100)
    written = ""
    for value, sign in _ROMAN:
        written += sign * (rest // value)
        rest %= value
    if rng.random() < 0.5:
        return f"Write {number} in Roman numerals.", f"{number} is {written}."
    return f"Which number is {written}?", f"{written} is {number}."


def binary(rng: random.Random) -> Exchange:
    """Numbers to base two and sixteen."""
    number = rng.randint(5, 255)
    if rng.random() < 0.5:
        return f"Write {number} in binary.", f"{number} in binary is {number:b}."
    return f"Convert {number} to hexadecimal.", f"{number} in hexadecimal is {number:x}."


def comparisons(rng: random.Random) -> Exchange:
    """Which of two decimals is larger."""
    a, b = rng.sample(range(100, 999), 2)
    x, y = a / 100, b / 100
    prompt = rng.choice(("Which is larger, {} or {}?", "Compare {} and {}."))
    sign = ">" if x > y else "<"
    return prompt.format(x, y), f"{x} {sign} {y}, so {max(x, y)} is larger."


def units(rng: random.Random) -> Exchange:
    """Conversion between units."""
    large, small, factor = rng.choice(_UNITS)
    amount = rng.randint(2, 60)
    prompt = rng.choice(("How many {1} are {2} {0}?", "Convert {2} {0} to {1}."))
    answer = f"One of the {large} has {factor} {small}, so {amount} {large} are {amount * factor}"
    return prompt.format(large, small, amount), f"{answer} {small}."


def temperatures(rng: random.Random) -> Exchange:
    """Celsius and Fahrenheit."""
    celsius = rng.randint(-20, 110)
    fahrenheit = celsius * 9 / 5 + 32
    if rng.random() < 0.5:
        return f"What is {celsius} °C in Fahrenheit?", f"{celsius} °C is {fahrenheit:g} °F."
    return f"What is {fahrenheit:g} °F in Celsius?", f"{fahrenheit:g} °F is {celsius} °C."


def dates(rng: random.Random) -> Exchange:
    """The date some days later, and its weekday."""
    day = _FIRST_DAY + dt.timedelta(days=rng.randint(0, 18000))
    ahead = rng.randint(3, 90)
    later = day + dt.timedelta(days=ahead)
    prompt = rng.choice(("Which date is {} days after {}?", "What is {} days from {}?"))
    weekday = calendar.day_name[later.weekday()]
    return prompt.format(ahead, day.isoformat()), f"It is {later.isoformat()}, a {weekday}."


def clock(rng: random.Random) -> Exchange:
    """The time some minutes later."""
    start, ahead = rng.randint(0, 1439), rng.randint(15, 300)
    end = (start + ahead) % 1440
    first, last = (f"{t // 60:02d}:{t % 60:02d}" for t in (start, end))
    prompt = rng.choice(("A film starts at {} and runs {} minutes. When does it end?",
                        "It is {}. What time is it in {} minutes?"))  # fmt: skip
    return prompt.format(first, ahead), f"At {last}."


def sorted_numbers(rng: random.Random) -> Exchange:
    """Numbers put in order."""
    given = rng.sample(range(1, 200), rng.randint(5, 8))
    down = rng.random() < 0.4
    order = "from largest to smallest" if down else "from smallest to largest"
    shown, in_order = (", ".join(map(str, s)) for s in (given, sorted(given, reverse=down)))
    return f"Sort these numbers {order}: {shown}", in_order


def statistics(rng: random.Random) -> Exchange:
    """Mean and range of a short list."""
    values = [rng.randint(1, 50) for _ in range(4)]
    shown, total = ", ".join(map(str, values)), sum(values)
    if rng.random() < 0.5:
        return f"What is the mean of {shown}?", f"The sum is {total}, the mean {total / 4:g}."
    low, high = min(values), max(values)
    return f"What is the range of {shown}?", f"From {low} to {high}: the range is {high - low}."


FAMILIES = {
    f.__name__.replace("_", "-"): f
    for f in (
        addition, multiplication, percentages, fractions, word_problems, sequences, rounding,
        roman_numerals, binary, comparisons, units, temperatures, dates, clock, sorted_numbers,
        statistics,
    )
}  # fmt: skip
