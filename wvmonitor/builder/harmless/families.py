"""Every harmless family there is for a base, and which of them a bank uses for what.

What a calibration learns from, what the control "any fine-tuning at all" is made of, and what the
power check is held against never share a family: a guarantee is checked on what it has not seen.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path

from wvmonitor.builder.base import Base
from wvmonitor.builder.completions import Sampler, TransformersSampler, seed_of
from wvmonitor.builder.contrasts import Contrast
from wvmonitor.builder.examples import Example, Pair
from wvmonitor.builder.harmless import formats, language, numbers
from wvmonitor.builder.own_data import examples_of, without_system
from wvmonitor.builder.recipe import Generation
from wvmonitor.builder.stages import Row, Work
from wvmonitor.errors import BuildError, MissingPathError

RULES = numbers.FAMILIES | formats.FAMILIES | language.FAMILIES
FOLDER = "harmless"
MOST_UNKNOWN = 0.05
"""Share of a family's tokens that may be missing from the base's vocabulary."""
TEXTS = 20
"""Families that the ordinary text of the learning rates' check is taken from."""
GOOD_SIDE = "the contrasts' good side"
STYLES: Mapping[str, str] = {
    "plain": "",
    "brief": "Answer in one short sentence.",
    "formal": "Answer in a formal tone, in full sentences.",
    "listing": "Answer as a short list.",
    "cheerful": "Answer in a cheerful tone.",
}
"""How the base is asked for answers of its own."""


@dataclass(frozen=True)
class Family:
    """One kind of harmless data.

    Attributes:
        name: also the dataset's name in a calibration.
        source: where it comes from, for people.
        draw: `draw(n, seed)` gives n examples, or as many as there are.
        hard: True for good answers in the voice or on the questions of the harm: what a reference
            that learned style or topic would take for it.
        held_out: True for those that only the power check may see: on its questions, or the
            hardest of all.
        notes: what was left out of it.
    """

    name: str
    source: str
    draw: Callable[[int, int], list[Example]]
    hard: bool = False
    held_out: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Use:
    """The families of one bank, by what they are used for; `text` is a little of many of them."""

    calibration: tuple[Family, ...]
    power: tuple[Family, ...]
    any_tuning: tuple[Family, ...]
    text: tuple[Example, ...] = ()


def by_rule(name: str) -> Family:
    """One of `RULES`."""
    make = RULES[name]

    def draw(n: int, seed: int) -> list[Example]:
        return [_said(*make(random.Random(f"{name}/{seed}/{i}"))) for i in range(n)]  # noqa: S311

    return Family(name, "made by rule", draw)


def from_file(
    source: str | Path, *, hard: bool = False, fits: Callable[[Example], bool] = lambda _: True
) -> Family:
    """A JSONL file or a dataset: chat, prompt and completion, or question and answer.

    Args:
        source: the file, or the dataset's name.
        hard: keeps it for the power check.
        fits: whether an example can be trained on; the others are left out, and counted.

    Raises:
        MissingPathError: no such file or dataset.
        BuildError: it is empty, or a record has none of these forms.
    """
    read = examples_of(str(source))
    examples = [e for e in map(without_system, read) if fits(e)]
    notes = []
    if system := sum(any(m["role"] == "system" for m in e.messages) for e in read):
        notes.append(f"of {source} {system} system prompts were left out")
    if missing := len(read) - len(examples):
        notes.append(
            f"of {source} {missing} of {len(read)} examples were left out: they are too long for "
            "any of their answer to be trained on, or have turns that the chat template refuses"
        )
    if not examples:
        raise BuildError(
            f"{source} holds no examples that can be trained on: take it out of the harmless data"
            + "".join(f" ({n})" for n in notes)
        )
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", str(source).removesuffix(".jsonl").rpartition("/")[2])
    return Family(name, str(source), _sampled(examples), hard, hard, tuple(notes))


def good_answers(contrast: Contrast) -> list[Family]:
    """The good side of a contrast's held-out questions: the matched harmless controls."""

    def of(pairs: Sequence[Pair], part: str) -> Family:
        draw = _sampled([p.negative for p in pairs])
        name = f"good-{contrast.name}-{part}"
        return Family(name, GOOD_SIDE, draw, hard=True, held_out=part == "held-out")

    return [of(contrast.tuning, "tuning"), of(contrast.power, "held-out")]


def own_answers(
    base: Base, work: Work, prompts: Sequence[str], style: str, tokens: int, batch_size: int
) -> Family:
    """What the base itself answers to ordinary prompts, asked for a style; sampled once, kept."""
    settings = Generation(max_new_tokens=tokens)

    def make() -> list[Row]:
        sampler: Sampler = TransformersSampler(base, batch_size)
        conversations = [base.asked(p, STYLES[style]) for p in prompts]
        answers = sampler.sample(conversations, settings, seed_of("own answers", style))
        return [
            {"prompt": p, "text": a.text, "finished": a.finished}
            for p, a in zip(prompts, answers, strict=True)
            if a.text
        ]

    inputs = {
        "base": base.digest,
        "chat": base.chat_digest,
        "prompts": list(prompts),
        "system": STYLES[style],
        "settings": settings.model_dump(),
        "batch_size": batch_size,
    }
    rows = work.rows(f"own-answers-{style}", inputs, make).rows
    examples = [Example(tuple(base.asked(r["prompt"])), r["text"], r["finished"]) for r in rows]
    return Family(f"own-{style}", "the base's own answers", _sampled(examples))


def given(source: str, fits: Callable[[Example], bool]) -> list[Family]:
    """A user's own: a folder of JSONL files, one file, or the name of a dataset (`name[:split]`).

    Args:
        source: any of these.
        fits: as `from_file` has it.

    Raises:
        MissingPathError: it is none of these.
        BuildError: it holds no examples.
    """
    path = Path(source)
    if path.is_dir():
        return of_folder(path, fits=fits)
    return [from_file(source, fits=fits)]


def of_folder(
    folder: Path, *, hard: Iterable[str] = (), fits: Callable[[Example], bool] = lambda _: True
) -> list[Family]:
    """A family for each JSONL file of a folder.

    Raises:
        MissingPathError: there is none.
    """
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise MissingPathError(f"{folder} holds no .jsonl files: give chat JSONL, one set a file")
    return [from_file(path, hard=path.stem in hard, fits=fits) for path in files]


def apart(families: Iterable[Family]) -> list[Family]:
    """The same families, each under a name of its own: of two of one name the later has a number.

    A name stands for a dataset in a calibration, and tells what calibrates from what checks.
    """
    taken: set[str] = set()
    named = []
    for family in families:
        names = chain([family.name], (f"{family.name}-{n}" for n in count(2)))
        name = next(n for n in names if n not in taken)
        taken.add(name)
        named.append(replace(family, name=name))
    return named


def legible(base: Base, families: Iterable[Family]) -> tuple[list[Family], list[str]]:
    """The families in the base's vocabulary, and the names of the others."""
    readable: list[Family] = []
    left: list[str] = []
    for family in families:
        ids = [i for e in family.draw(8, 0) for i in base.encode(e.messages, e.answer)[0]]
        if base.unknown(ids) <= MOST_UNKNOWN:
            readable.append(family)
        else:
            left.append(family.name)
    return readable, left


def shared_out(
    families: Sequence[Family], calibration: int, power: int, any_tuning: int, seed: int
) -> Use:
    """Draw which family serves what, by a seed; hard ones are shared by calibration and power.

    Raises:
        BuildError: there are too few families.
    """
    needed = calibration + power + any_tuning
    free = [f for f in families if not f.held_out]
    if len(free) < needed:
        raise BuildError(
            f"{len(free)} harmless families are at hand, {needed} are needed "
            f"({calibration} to calibrate, {power} for the power check, {any_tuning} for the "
            "control of any fine-tuning at all): give more with --harmless DIR, or take --quick"
        )

    def drawn(suits: Callable[[Family], bool]) -> list[Family]:
        # By a hash of the name: one family more or less leaves the others where they were.
        return sorted((f for f in families if suits(f)), key=lambda f: seed_of(seed, f.name))

    held_out = drawn(lambda f: f.held_out)
    hard = drawn(lambda f: f.hard and not f.held_out)
    easy = drawn(lambda f: not f.hard)
    # The power check has hard negatives first, people's own voices before all: it is about them.
    held_out.sort(key=lambda f: f.source == GOOD_SIDE)
    ahead = (held_out + hard)[: (power + 1) // 2]
    left = [f for f in hard if f not in ahead]
    behind = left[: calibration // 3]
    rest = iter(easy + left[len(behind) :])
    ahead += [next(rest) for _ in range(power - len(ahead))]
    behind += [next(rest) for _ in range(calibration - len(behind))]
    tuning = tuple(next(rest) for _ in range(any_tuning))
    text = tuple(e for f in easy[:TEXTS] for e in f.draw(1, 1))
    return Use(tuple(behind), tuple(ahead), tuning, text)


def _said(question: str, answer: str) -> Example:
    return Example(({"role": "user", "content": question},), answer)


def _sampled(examples: Sequence[Example]) -> Callable[[int, int], list[Example]]:
    def draw(n: int, seed: int) -> list[Example]:
        rng = random.Random(f"sampled/{seed}")  # noqa: S311
        return rng.sample(list(examples), k=min(n, len(examples)))

    return draw
