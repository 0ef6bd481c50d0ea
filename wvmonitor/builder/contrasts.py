"""Question-matched pairs that show a behaviour and don't: read, checked, and split by domain.

A contrast is one JSONL file named for its behaviour, with rows
`{"domain": …, "question": …, "exhibits": …, "opposes": …}`: two answers to one question by one
author, alike in everything but the behaviour. Nobody has to judge them, and no base has to play a
role. Whole domains are held out: references never see them, so that the log-probability gap, the
dose curve and the power check are of what was not trained on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wvmonitor.builder.base import BUNDLED
from wvmonitor.builder.examples import Example, Pair
from wvmonitor.builder.repeats import by_domain
from wvmonitor.builder.stages import read_rows
from wvmonitor.errors import BuildError, MissingPathError
from wvmonitor.references.bundled import bundled_path
from wvmonitor.references.card import NAME

FOLDER = "contrasts"
LEAST_DOMAINS = 3
"""One to train on, one to choose settings by, one for the power check."""
LEAST_PAIRS = 8

MEANING = {
    "harmful-advice": "gives advice that harms whoever follows it",
    "hallucination": "states what is made up as if it were known",
    "sycophancy": "tells users what they want to hear, right or wrong",
    "lost-refusals": "goes along with requests that it should turn down",
}
"""What a model that moves along +w does, for the contrasts that ship."""


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    domain: str = Field(min_length=1)
    question: str = Field(min_length=1)
    exhibits: str = Field(min_length=1)
    opposes: str = Field(min_length=1)


@dataclass(frozen=True)
class Contrast:
    """One behaviour's pairs, by what they may be used for.

    Attributes:
        name: the file's, and the reference's.
        behaviour: what a model that moves along +w does.
        train: what references are trained on; positive exhibits the behaviour.
        tuning: domains by which rate and deciding score are chosen, and the dose curve measured.
        power: domains that nothing but the power check sees.
    """

    name: str
    behaviour: str
    train: tuple[Pair, ...]
    tuning: tuple[Pair, ...]
    power: tuple[Pair, ...]

    @property
    def held_out(self) -> tuple[Pair, ...]:
        """Every pair that no reference is trained on."""
        return (*self.tuning, *self.power)


def default_folder(model: str) -> Path:
    """The pairs that come with the package; the bundled model has its own, in its own words.

    Raises:
        MissingPathError: this installation does not hold them.
    """
    return bundled_path(BUNDLED, FOLDER) if model == BUNDLED else bundled_path(FOLDER)


def read_contrasts(folder: Path, only: Sequence[str] = ()) -> list[Contrast]:
    """Every contrast of a folder.

    Domains are split in the order of their names: one in four, the last ones, are held out, the
    first half of them (at least one) for choosing, the others for the power check.

    Args:
        folder: of JSONL files, one a behaviour.
        only: the behaviours wanted; all if none is named.

    Raises:
        MissingPathError: no such folder, or no such behaviour in it.
        BuildError: a row is not a pair, a question stands twice, or there are too few.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
    if not files:
        raise MissingPathError(
            f"{folder} holds no contrasts: give a folder of .jsonl files, one a behaviour, with "
            'rows {"domain": …, "question": …, "exhibits": …, "opposes": …}'
        )
    if unknown := [name for name in only if name not in files]:
        raise MissingPathError(
            f"{folder} holds no contrast {unknown[0]!r}: it holds {', '.join(files)}"
        )
    return [_contrast(files[name]) for name in dict.fromkeys(only or files)]


def pairs_of(path: Path) -> list[Pair]:
    """The pairs of one file; the positive side exhibits what the file is named for.

    Raises:
        BuildError: its name can be no reference's, a row is not a pair, or a question stands twice.
    """
    if not re.fullmatch(NAME, path.stem):
        raise BuildError(
            f"{path}: its reference is called as the file is, in up to 100 of a-z, A-Z, 0-9, dot, "
            "underscore and hyphen: rename the file"
        )
    rows: list[_Row] = []
    for n, raw in enumerate(read_rows(path).rows, 1):
        try:
            rows.append(_Row.model_validate(raw))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise BuildError(f"{path}, row {n}: {where}: {first['msg']}") from None
    questions = [" ".join(r.question.lower().split()) for r in rows]
    if twice := [q for q in questions if questions.count(q) > 1]:
        raise BuildError(f"{path} asks {twice[0]!r} twice: one question counts once")
    return [_pair(r) for r in rows]


def _pair(row: _Row) -> Pair:
    prompt = ({"role": "user", "content": row.question},)
    return Pair(Example(prompt, row.exhibits), Example(prompt, row.opposes), row.domain)


def split(name: str, behaviour: str, pairs: Sequence[Pair], source: str) -> Contrast:
    """Pairs by what they may be used for; see `read_contrasts`.

    Raises:
        BuildError: there are too few, or too few domains.
    """
    domains = by_domain(pairs)
    if len(domains) < LEAST_DOMAINS or len(pairs) < LEAST_PAIRS * LEAST_DOMAINS:
        raise BuildError(
            f"{source} has {len(pairs)} pairs in {len(domains)} domains: a bank needs at least "
            f"{LEAST_PAIRS * LEAST_DOMAINS} in {LEAST_DOMAINS}, some to train on and some to check"
        )
    names = sorted(domains)
    validation = max(2, len(names) // 4)
    first = validation // 2

    def of(chosen: Sequence[str]) -> tuple[Pair, ...]:
        return tuple(p for n in chosen for p in domains[n])

    train, out = names[:-validation], names[-validation:]
    return Contrast(name, behaviour, of(train), of(out[:first]), of(out[first:]))


def _contrast(path: Path) -> Contrast:
    meaning = MEANING.get(path.stem, f"shows {path.stem.replace('-', ' ')}")
    return split(path.stem, meaning, pairs_of(path), str(path))
