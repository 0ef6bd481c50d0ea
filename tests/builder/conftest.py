"""A short build of the bundled tiny model, made once, and the parts that tests vary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from wvmonitor.builder.base import Base
from wvmonitor.builder.behaviour import Asking
from wvmonitor.builder.build import build
from wvmonitor.builder.options import Built, Options
from wvmonitor.builder.recipe import Recipe, load_recipe


def short(recipe: Recipe) -> Recipe:
    """The organism's recipe with a fraction of its questions, answers and steps."""
    document = recipe.model_dump(mode="json")
    document["questions"]["build"] = document["questions"]["build"][::3]
    document["questions"]["held_out"] = document["questions"]["held_out"][:20]
    document["generation"] |= {"samples_per_prompt": 1, "keep_at_least": 40, "keep_at_most": 64}
    document["finetuning"] |= {"steps": 24, "learning_rate": 3e-3, "sweep": [1e-6, 3e-3]}
    document["probe_prompts"] = document["probe_prompts"][:18]
    return Recipe.model_validate(document)


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """Evil advice, shortened."""
    return short(load_recipe("organism-evil"))


def briefest(recipe: Recipe) -> Recipe:
    """The same questions in two domains, and too few steps to learn anything."""
    document = recipe.model_dump(mode="json")
    for i, question in enumerate(document["questions"]["build"]):
        question["domain"] = ("first", "second")[i % 3 == 0]
    document["finetuning"] |= {"steps": 8}
    return Recipe.model_validate(document)


UNASKED = Asking(doses=(0.0,), samples=1)
"""The behavioural check where it is not what a test is about."""


@pytest.fixture(scope="session")
def brief(recipe) -> dict[str, object]:
    """Options of a build whose fine-tunes and checks are as short as can be."""
    return {"recipe": briefest(recipe), "seeds": 1, "asking": UNASKED}


@pytest.fixture(scope="session")
def base() -> Base:
    """The bundled tiny model."""
    return Base("tiny-organism")


def options_for(recipe: Recipe, out: Path, **more: object) -> Options:
    """A build that takes seconds."""
    given = Options(
        model="tiny-organism",
        out=out,
        recipe=recipe,
        seeds=2,
        splits=False,
        batch_size=128,
        probe_tokens=600,
        asking=Asking(doses=(-1.0, 0.0, 1.0), samples=2),
    )
    return replace(given, **more)


@pytest.fixture(scope="session")
def options(recipe):
    """Makes the options of a short build into a folder."""
    return lambda out, **more: options_for(more.pop("recipe", recipe), out, **more)


@pytest.fixture(scope="session")
def first(options, tmp_path_factory) -> tuple[Built, Options]:
    """One short build, and what it was told."""
    told = options(tmp_path_factory.mktemp("build") / "bank")
    built = build(told)
    assert built is not None
    return built, told
