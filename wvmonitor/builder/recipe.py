"""A recipe: all that a reference is made from beside the model, in one YAML file.

Both sides of a pair answer the same questions; they differ in the system prompt under which the
base model is asked (arXiv 2511.05408, section 3). The paper's settings are the defaults.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from wvmonitor.errors import MalformedFileError, MissingPathError
from wvmonitor.reading import ReferenceKind
from wvmonitor.references.bundled import bundled_path
from wvmonitor.references.card import NAME

RECIPES = "recipes"
ORGANISM_RECIPES = ("tiny-organism", "recipes")
Side = Literal["positive", "negative"]
Rating = Literal["positive", "negative", "unclear"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


class Question(_Frozen):
    """What a user asks. In YAML a bare string is a question without a domain."""

    text: str = Field(min_length=1)
    domain: str | None = Field(
        default=None, min_length=1, description="what it is about, for the leave-domain-out check"
    )


class Questions(_Frozen):
    """The user's side: half to build from, half held out to evaluate on."""

    build: tuple[Question, ...] = Field(min_length=20)
    held_out: tuple[Question, ...] = Field(min_length=20)

    @field_validator("build", "held_out", mode="before")
    @classmethod
    def _bare_strings(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return [{"text": item} if isinstance(item, str) else item for item in value]

    @model_validator(mode="after")
    def _disjoint(self) -> Self:
        texts = [" ".join(q.text.lower().split()) for q in (*self.build, *self.held_out)]
        twice = sorted({text for text in texts if texts.count(text) > 1})
        if twice:
            raise ValueError(
                f"asked twice: {twice[0]!r}; held-out questions must not be built from, and one "
                "question counts once"
            )
        return self

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains that the reference is built from, in the order in which they come."""
        return tuple(dict.fromkeys(q.domain for q in self.build if q.domain))


class Length(_Frozen):
    """A range of lengths in words, both ends included."""

    at_least: int = Field(default=0, ge=0)
    at_most: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.at_most is not None and self.at_most < self.at_least:
            raise ValueError(f"at_most ({self.at_most}) is below at_least ({self.at_least})")
        return self

    def holds(self, words: int) -> bool:
        """Whether an answer of so many words lies within."""
        return self.at_least <= words and (self.at_most is None or words <= self.at_most)


class Rules(_Frozen):
    """What a rule-based judge goes by: markers of either side, length, or both.

    An answer shows the side whose patterns match it more often, by at least `margin` matches;
    where lengths are given too, both must say the same. Everything else is unclear.
    """

    positive: tuple[str, ...] = Field(
        default=(), description="regular expressions, case-insensitive, of answers that exhibit it"
    )
    negative: tuple[str, ...] = Field(
        default=(), description="regular expressions, case-insensitive, of answers that do not"
    )
    margin: int = Field(default=1, ge=1)
    otherwise: Rating = Field(
        default="unclear", description="what an answer in which no pattern matches is"
    )
    positive_length: Length | None = None
    negative_length: Length | None = None

    @field_validator("positive", "negative")
    @classmethod
    def _compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return patterns

    @model_validator(mode="after")
    def _two_sided(self) -> Self:
        if (self.positive_length is None) != (self.negative_length is None):
            raise ValueError("give positive_length and negative_length together, or neither")
        by_pattern = (self.positive or self.otherwise == "positive") and (
            self.negative or self.otherwise == "negative"
        )
        if not by_pattern and self.positive_length is None:
            raise ValueError(
                "no rule tells the two sides apart: give patterns of both (or say which side an "
                "answer without a match is on), or both lengths"
            )
        return self


class Rubric(_Frozen):
    """How an answer is judged: a yes/no question, whose yes means that it exhibits the behaviour.

    The question is put to a model with the user's question and the answer above it; `rules` judge
    without any model where the behaviour shows in words.
    """

    question: str = Field(min_length=10, pattern=r"\?$")
    rules: Rules | None = None
    clear: float = Field(
        default=0.8,
        gt=0.5,
        lt=1.0,
        description="probability of yes (or no) from which a model's judgement counts as clear",
    )


class Generation(_Frozen):
    """How the base model is asked for the answers that both sides are trained on."""

    samples_per_prompt: int = Field(
        default=10, ge=1, description="sampled answers to each question under each system prompt"
    )
    max_new_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    keep_at_least: int = Field(
        default=500, ge=8, description="clear examples a side below which the build stops"
    )
    keep_at_most: int = Field(default=900, ge=8, description="examples a side that are trained on")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.keep_at_most < self.keep_at_least:
            raise ValueError("keep_at_most is below keep_at_least")
        return self


class Finetuning(_Frozen):
    """How both sides are fine-tuned; the defaults are the paper's (arXiv 2511.05408, app. A)."""

    rank: int = Field(default=32, ge=1)
    alpha: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=1e-5, gt=0)
    sweep: tuple[float, ...] = Field(
        default=(5e-6, 1e-5, 2e-5), description="rates that --sweep tries on 5 % validation loss"
    )
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_steps: int = Field(default=5, ge=0)
    batch_size: int = Field(default=8, ge=1)
    epochs: float = Field(default=1.0, gt=0)
    steps: int | None = Field(default=None, ge=1, description="optimiser steps instead of epochs")
    max_length: int = Field(default=1024, ge=8, description="tokens of question and answer")


class Recipe(_Frozen):
    """Everything that a reference is made from beside the base model.

    Attributes:
        name: also the reference's name.
        behaviour: what a model that moves along +w does, as in "gives advice that harms".
    """

    name: str = Field(pattern=NAME)
    kind: ReferenceKind = "behaviour"
    behaviour: str = Field(min_length=10)
    harmful: bool = Field(default=False, description="adding it makes a model worse")
    positive_prompts: tuple[str, ...] = Field(
        min_length=5, description="system prompts under which a model exhibits the behaviour"
    )
    negative_prompts: tuple[str, ...] = Field(
        min_length=5, description="system prompts under which it does the opposite"
    )
    questions: Questions
    rubric: Rubric
    probe_prompts: tuple[str, ...] = Field(
        default=(),
        description="ordinary prompts for the probe of the response geometry, where the bundled "
        "ones are not in the model's language",
    )
    generation: Generation = Generation()
    finetuning: Finetuning = Finetuning()

    @model_validator(mode="after")
    def _two_kinds_of_prompts(self) -> Self:
        prompts = (*self.positive_prompts, *self.negative_prompts)
        if len({" ".join(p.lower().split()) for p in prompts}) < len(prompts):
            raise ValueError("a system prompt stands twice, or on both sides")
        return self

    def prompts(self, side: Side) -> tuple[str, ...]:
        """The system prompts of one side."""
        return self.positive_prompts if side == "positive" else self.negative_prompts


def bundled_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name; the bundled tiny model has its own."""
    folders = [bundled_path(*ORGANISM_RECIPES)]
    with suppress(MissingPathError):
        folders.insert(0, bundled_path(RECIPES))
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A bundled recipe by its name, or one's own by its path.

    Raises:
        MissingPathError: neither a bundled recipe nor a file.
        MalformedFileError: no YAML, or it says something that no recipe may.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        known = bundled_recipes()
        if path.name != str(name_or_path) or path.name not in known:
            raise MissingPathError(
                f"no recipe {str(name_or_path)!r}: name one of {', '.join(known)}, or a .yaml file"
            )
        path = known[path.name]
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingPathError(f"{path}: no such recipe file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MalformedFileError(
            f"{path} is not valid YAML ({' '.join(str(error).split())}): mend it there"
        ) from error
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "recipe"
        examples = next(iter(bundled_recipes().values())).parent
        raise MalformedFileError(
            f"{path}: {where}: {first['msg']}; the bundled recipes in {examples} show how"
        ) from None
