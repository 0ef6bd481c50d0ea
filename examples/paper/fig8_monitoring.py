"""Figures 8, 9 and 36: what the directions of fine-tunes say, without asking the model anything.

Cosines of task vectors τ with behaviour vectors w (Figure 8), of behaviour vectors with each other
(Figure 9), and of w with a run's weights all along its training, beside the behaviour (Figure 36).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from torch import nn

from examples.paper import figure
from examples.paper.measures import rate, share
from examples.paper.world import World, outcomes
from wvmonitor.references import contrast
from wvmonitor.sources import read_model
from wvmonitor.vectors import TaskVector


class Sizes(figure.Sizes):
    """As `figure.Sizes`.

    Attributes:
        behaviours: (D+, D−) of each behaviour vector.
        tasks: the set of each fine-tune, by its name.
        shares_data: (fine-tune, behaviour) pairs that know the same domain: shown in grey.
        watched: the fine-tunes whose trajectories are drawn.
        asked: the questions asked along the way.
        judge: what is counted of the answers.
        every: steps between two readings of a trajectory.
    """

    behaviours: dict[str, tuple[str, str]]
    tasks: dict[str, str]
    shares_data: list[tuple[str, str]]
    watched: list[str]
    asked: str
    judge: str
    every: int

    def quick(self) -> dict[str, Any]:
        """As `figure.Sizes.quick`."""
        return {
            **super().quick(),
            "behaviours": dict(list(self.behaviours.items())[:2]),
            "tasks": {n: self.tasks[n] for n in self.watched},
            "every": 1,
        }


def main(argv: Sequence[str] | None = None) -> dict[str, list[figure.Row]]:
    """Write `fig8`, `fig9` and `fig36` as CSV and PNG; gives their rows."""
    world, sizes, out = figure.start("fig8_monitoring", Sizes, __doc__, argv)
    vectors = {
        name: _behaviour_vector(world, sizes, pair, sizes.seed + 50 * i)
        for i, (name, pair) in enumerate(sizes.behaviours.items())
    }
    taus: dict[str, TaskVector] = {}
    trajectories: list[figure.Row] = []
    items = world.questions(sizes.asked, sizes.questions, sizes.seed)
    for i, (name, made_from) in enumerate(sizes.tasks.items()):
        seed = sizes.seed + 2000 + i
        examples = world.data(made_from, sizes.examples, seed)
        steps = range(sizes.every, sizes.training["steps"] + 1, sizes.every)

        def look(step: int, model: nn.Module, run: str = name) -> None:
            tau = read_model(model).held()
            shown = rate(share(sizes.judge), outcomes(world, model, items, seed=step))
            trajectories.append(
                {"run": run, "step": step, "behaviour": round(shown.value, 4)}
                | {"low": round(shown.low, 4), "high": round(shown.high, 4)}
                | {n: round(tau.cosine(w), 5) for n, w in vectors.items()}
            )

        watched = name in sizes.watched
        taus[name] = world.finetune(
            examples,
            seed=seed,
            look_at=list(steps) if watched else (),
            look=look if watched else None,
            **sizes.training,
        )[1]
    grey = {tuple(pair) for pair in sizes.shares_data}
    fig8 = _matrix(taus, vectors)
    fig9 = _matrix(vectors, vectors)
    figure.write_csv(out / "fig8.csv", [r | {"same data": _grey(r, grey)} for r in fig8])
    figure.write_csv(out / "fig9.csv", fig9)
    figure.write_csv(out / "fig36.csv", trajectories)
    _plot_matrix(out / "fig8.png", fig8, "cosine of τ and w", grey)
    _plot_matrix(out / "fig9.png", fig9, "cosine of w and w", {(n, n) for n in vectors})
    _plot_trajectories(out / "fig36.png", trajectories, list(vectors))
    return {"fig8": fig8, "fig9": fig9, "fig36": trajectories}


def _behaviour_vector(world: World, sizes: Sizes, pair: tuple[str, str], seed: int) -> TaskVector:
    sides = (
        world.finetune(world.data(name, sizes.examples, seed), seed=seed, **sizes.training)[1]
        for name in pair
    )
    return contrast(*sides, positive_means="exhibits").held()


def _matrix(rows: Mapping[str, TaskVector], columns: Mapping[str, TaskVector]) -> list[figure.Row]:
    return [
        {"vector": a, "behaviour": b, "cosine": round(rows[a].cosine(columns[b]), 5)}
        for a in rows
        for b in columns
    ]


def _grey(row: figure.Row, grey: set[Any]) -> bool:
    return (row["vector"], row["behaviour"]) in grey


def _plot_matrix(path: Path, rows: Sequence[figure.Row], title: str, grey: set[Any]) -> None:
    names = [list(dict.fromkeys(r[key] for r in rows)) for key in ("vector", "behaviour")]
    values = np.array([r["cosine"] for r in rows]).reshape(len(names[0]), len(names[1]))
    hidden = np.array([_grey(r, grey) for r in rows]).reshape(values.shape)
    drawn, ax = plt.subplots(
        figsize=(1.6 + 0.95 * len(names[1]), 1.4 + 0.42 * len(names[0])), layout="constrained"
    )
    limit = float(np.abs(values[~hidden]).max()) if (~hidden).any() else 1.0
    ax.imshow(
        np.ma.array(values, mask=hidden), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto"
    )
    ax.set_facecolor("0.85")
    for (i, j), value in np.ndenumerate(values):
        ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7)
    ax.set_xticks(range(len(names[1])), names[1], rotation=30, ha="right", fontsize=8)
    ax.set_yticks(range(len(names[0])), names[0], fontsize=8)
    ax.set_title(title, fontsize=9)
    figure.save(drawn, path)


def _plot_trajectories(path: Path, rows: Sequence[figure.Row], names: Sequence[str]) -> None:
    runs = list(dict.fromkeys(r["run"] for r in rows))
    drawn, axes = plt.subplots(
        len(runs), 1, figsize=(6.4, 2.8 * len(runs)), squeeze=False, layout="constrained"
    )
    for ax, run in zip(axes[:, 0], runs, strict=True):
        own = [r for r in rows if r["run"] == run]
        steps = [r["step"] for r in own]
        for name in names:
            ax.plot(steps, [r[name] for r in own], label=name)
        other = ax.twinx()
        other.plot(steps, [r["behaviour"] for r in own], "--", color="0.5")
        other.set(ylim=(-0.03, 1.03), ylabel="behaviour (dashed)")
        ax.set(title=f"trained on {run}", xlabel="step", ylabel="cosine of τ and w")
        ax.grid(alpha=0.2)
    axes[0][0].legend(fontsize=7)
    figure.save(drawn, path)


if __name__ == "__main__":
    main()
