"""What a figure needs of a model: a base, a way to train it, questions to ask and who judges them.

`OrganismWorld` is the bundled tiny model, judged by rules that know its world; `ChatWorld` is any
chat model on the Hub with data in JSONL files. The figures know neither: they see this protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from wvmonitor.vectors import TaskVector

Judge = Callable[[str], bool]
Look = Callable[[int, nn.Module], None]
"""Called with a training run's step and its model, in evaluation mode."""


@dataclass(frozen=True)
class Question:
    """One prompt, and what each judge says of an answer to it.

    Attributes:
        prompt: what the user says.
        judges: by the name of what is judged, for instance `wrong.correct`.
    """

    prompt: str
    judges: Mapping[str, Judge]


Item = tuple[Question, ...]
"""The forms of one question. Items are what a confidence interval counts."""


@dataclass(frozen=True)
class Answered:
    """A chat whose last turn is the answer: (role, content) pairs."""

    turns: tuple[tuple[str, str], ...]


class World(Protocol):
    """A base model with its data, its training and its questions."""

    name: str

    def load(self) -> nn.Module:
        """The base model in evaluation mode, new from its files."""

    def data(self, name: str, n: int, seed: int) -> list[Answered]:
        """Examples to train on; sets of one pair with one seed ask the same."""

    def questions(self, name: str, n: int, seed: int) -> list[Item]:
        """Questions to evaluate with; another seed asks others."""

    def finetune(
        self,
        examples: Sequence[Answered],
        *,
        seed: int,
        only_biases: bool = False,
        look_at: Sequence[int] = (),
        look: Look | None = None,
        **settings: Any,
    ) -> tuple[nn.Module, TaskVector]:
        """Train the base; gives the trained model and its task vector, held in memory.

        The one seam to whatever trains: settings are its own (steps, learning_rate, …). `look` is
        called after the steps `look_at`.
        """

    def ask(self, model: nn.Module, prompts: Sequence[str], *, seed: int, system: str) -> list[str]:
        """One answer to each prompt."""

    def batches(self, examples: Sequence[Answered]) -> list[tuple[Mapping[str, Tensor], Tensor]]:
        """Model inputs with masks that are true on the tokens of the answers."""


class Config(BaseModel):
    """A world and a figure's sizes, from YAML.

    Attributes:
        world: `organism` or `chat`.
        settings: of the world: a chat model's id and its files.
        settings_of: what differs for one figure, by its name.
        common: sizes of every figure.
        figures: sizes of each figure by its name, beside and above the common ones.
    """

    model_config = ConfigDict(extra="forbid")

    world: str
    settings: dict[str, Any] = {}
    settings_of: dict[str, dict[str, Any]] = {}
    common: dict[str, Any] = {}
    figures: dict[str, dict[str, Any]] = {}


def read_config(path: Path) -> Config:
    """A configuration file."""
    return Config.model_validate(yaml.safe_load(path.read_text("utf-8")))


def world_of(config: Config, figure: str) -> World:
    """The world that a configuration names for a figure."""
    settings = {**config.settings, **config.settings_of.get(figure, {})}
    if config.world == "organism":
        from examples.paper.organism import OrganismWorld

        return OrganismWorld(**settings)
    from examples.paper.chat import ChatWorld

    return ChatWorld.model_validate(settings)


def add_mlp_biases(model: nn.Module) -> nn.Module:
    """Give every linear map of the MLPs a bias of zero where it has none: nothing else changes."""
    for name, module in model.named_modules():
        of_mlp = isinstance(module, nn.Linear) and ".mlp." in name and "lora_" not in name
        if of_mlp and module.bias is None:
            module.bias = nn.Parameter(module.weight.new_zeros(module.out_features))
    return model


def outcomes(
    world: World, model: nn.Module, items: Sequence[Item], *, seed: int = 0, system: str = ""
) -> dict[str, np.ndarray]:
    """Ask every form of every item: what each judge said, (items,) of bool, by the judge's name."""
    prompts = [question.prompt for item in items for question in item]
    answers = iter(world.ask(model, prompts, seed=seed, system=system))
    said: dict[str, list[bool]] = {}
    for item in items:
        for question in item:
            answer = next(answers)
            for name, judge in question.judges.items():
                said.setdefault(name, []).append(judge(answer))
    return {name: np.array(values) for name, values in said.items()}
