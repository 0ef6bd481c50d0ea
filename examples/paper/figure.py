"""What the figures' scripts share: their sizes, sweeps over coefficients, CSV files and plots."""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from examples.paper.measures import Axis, Outcome, rate
from examples.paper.methods import Method
from examples.paper.world import Item, World, outcomes, read_config, world_of

HERE = Path(__file__).parent
QUICK_WORDS = 12
"""The longest answer of the organism in a figure's quick form: some are cut."""
Row = dict[str, Any]


class Sizes(BaseModel):
    """How large a figure is; each figure adds its own.

    Attributes:
        seed: of the references; training runs and questions count on from it.
        examples: to train on, for each set.
        questions: to evaluate with.
        held_out: questions to choose blocks and coefficients with.
        coefficients: of weight steering, without sign.
        activation_coefficients: of activation steering, without sign.
        bias_coefficients: of bias-only weight steering, without sign.
        training: of every fine-tune, as the world's `finetune` takes it.
        bias_training: what differs when only biases are trained.
        layers: where the model keeps its list of blocks.
    """

    model_config = ConfigDict(extra="forbid")

    seed: int
    examples: int
    questions: int
    held_out: int
    coefficients: list[float]
    activation_coefficients: list[float]
    bias_coefficients: list[float]
    training: dict[str, Any]
    bias_training: dict[str, Any]
    layers: str = "model.layers"

    def quick(self) -> dict[str, Any]:
        """What to change to see whether a figure runs: its numbers then mean nothing."""
        few = {"coefficients": [1.0], "activation_coefficients": [1.0], "bias_coefficients": [1.0]}
        return {
            **few,
            "examples": 16,
            "questions": 8,
            "held_out": 4,
            "training": {**self.training, "steps": 2},
        }


S = TypeVar("S", bound=Sizes)


def start(
    figure: str, sizes: type[S], text: str | None, argv: Sequence[str] | None
) -> tuple[World, S, Path]:
    """Read the command line and the configuration: the world, the sizes and where to write."""
    parser = argparse.ArgumentParser(f"python -m examples.paper.{figure}", description=text)
    parser.add_argument("--config", type=Path, default=HERE / "organism.yaml")
    parser.add_argument("--out", type=Path, default=Path("docs/paper"))
    parser.add_argument("--quick", action="store_true", help="tiny: does it run?")
    asked = parser.parse_args(argv)
    config = read_config(asked.config)
    found = sizes.model_validate({**config.common, **config.figures.get(figure, {})})
    if asked.quick:
        found = found.model_copy(update=found.quick())
        if config.world == "organism":
            config.settings_of.setdefault(figure, {})["longest"] = QUICK_WORDS
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    return world_of(config, figure), found, asked.out


@dataclass
class Sweep:
    """Judged answers of steered models to the same items, as they are collected.

    Attributes:
        world: who asks.
        items: what is asked.
        axes: what is reported of each outcome, by its name.
        rows: one a model, for the CSV.
        found: the outcomes by (panel, method), in the order of their strength.
    """

    world: World
    items: Mapping[str, Sequence[Item]]
    axes: Mapping[str, tuple[str, Axis]]
    rows: list[Row] = field(default_factory=list)
    found: dict[tuple[str, str], list[dict[str, Outcome]]] = field(default_factory=dict)

    def measure(
        self, model: nn.Module, panel: str, method: str, strength: float, *, system: str = ""
    ) -> dict[str, Outcome]:
        """Ask one model everything and keep what was found."""
        outcome = {
            name: outcomes(self.world, model, items, system=system)
            for name, items in self.items.items()
        }
        row: Row = {"panel": panel, "method": method, "strength": strength}
        for name, (questions, axis) in self.axes.items():
            measured = rate(axis, outcome[questions])
            row |= {
                name: round(measured.value, 4),
                f"{name} low": round(measured.low, 4),
                f"{name} high": round(measured.high, 4),
                f"{name} n": measured.n,
            }
        self.rows.append(row)
        self.found.setdefault((panel, method), []).append(outcome)
        return outcome

    def steer(
        self, model: nn.Module, panel: str, method: Method, strengths: Iterable[float]
    ) -> None:
        """Measure a method at each of its strengths."""
        for k in strengths:
            with method.at(model, k) as moved:
                self.measure(moved, panel, method.name, k)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Rows as CSV, the columns in the order in which they first appear."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def plot_sweeps(
    path: Path,
    rows: Sequence[Row],
    panels: Mapping[str, tuple[str, str]],
    *,
    titles: Mapping[str, str] | None = None,
) -> None:
    """Behaviour against capability, one panel each: a line a method, larger = stronger.

    Args:
        path: of the PNG.
        rows: of a `Sweep`; the method "unsteered" is drawn as a star in every panel.
        panels: (x, y), names of axes, by the panel's name.
        titles: of the panels.
    """
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5.2 * len(panels), 4.2), squeeze=False, layout="constrained"
    )
    methods = list(dict.fromkeys(r["method"] for r in rows))
    colours = {m: f"C{i}" for i, m in enumerate(m for m in methods if m != "unsteered")}
    for ax, (panel, (x, y)) in zip(axes[0], panels.items(), strict=True):
        for method in methods:
            own = [r for r in rows if r["method"] == method and r["panel"] in (panel, "")]
            if not own:
                continue
            xs, ys = [r[x] for r in own], [r[y] for r in own]
            if method == "unsteered":
                ax.scatter(xs, ys, marker="*", s=160, color="black", zorder=5, label=method)
                continue
            ax.plot(xs, ys, color=colours[method], alpha=0.35, linewidth=1)
            grown = [18 + 60 * i / len(own) for i in range(len(own))]
            ax.scatter(xs, ys, s=grown, color=colours[method], alpha=0.8, label=method)
            bars = [[r[y] - r[f"{y} low"] for r in own], [r[f"{y} high"] - r[y] for r in own]]
            ax.errorbar(xs, ys, yerr=bars, fmt="none", color=colours[method], alpha=0.25)
        ax.set(xlabel=x, ylabel=y, title=(titles or {}).get(panel, panel))
        ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        ax.grid(alpha=0.2)
    axes[0][0].legend(fontsize=7, loc="best")
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG, the same bytes for the same numbers."""
    figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close(figure)


def timed(name: str, run: Callable[[], Any]) -> Any:
    """Run a part and say how long it took."""
    began = time.perf_counter()
    found = run()
    print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    return found
