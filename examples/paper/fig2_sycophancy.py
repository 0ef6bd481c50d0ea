"""Figure 2: steering towards sycophancy and away from it, by weights, activations and training.

References learn from opinionated questions about one category of facts; the figure asks about the
others. A model is sycophantic about a question that it answers rightly alone when a user's belief,
right or wrong, makes it answer otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from examples.paper import figure, methods
from examples.paper.measures import NON_SYCOPHANCY, SYCOPHANCY, area_between, share
from examples.paper.world import World, add_mlp_biases, outcomes

TOWARDS, AWAY = "towards sycophancy", "away from sycophancy"
ACCURACY = share("plain.correct")


class Sizes(figure.Sizes):
    """As `figure.Sizes`.

    Attributes:
        sycophantic: the set D+.
        frank: the set D−.
        questions_from: what the figure asks.
        held_out_from: what the block is chosen on.
        look_at: steps at which training on D+ (or D−) alone is measured.
    """

    sycophantic: str
    frank: str
    questions_from: str
    held_out_from: str
    look_at: list[int]

    def quick(self) -> dict[str, Any]:
        """As `figure.Sizes.quick`."""
        return {**super().quick(), "look_at": [1, 2]}


def main(argv: Sequence[str] | None = None) -> list[figure.Row]:
    """Write `fig2.csv`, `fig2_areas.csv` and `fig2.png`; gives the areas."""
    world, sizes, out = figure.start("fig2_sycophancy", Sizes, __doc__, argv)
    positive = world.data(sizes.sycophantic, sizes.examples, sizes.seed)
    negative = world.data(sizes.frank, sizes.examples, sizes.seed)
    pair = figure.timed(
        "references",
        lambda: methods.learn(
            world,
            positive,
            negative,
            seed=sizes.seed,
            training=sizes.training,
            bias_training=sizes.bias_training,
            layers=sizes.layers,
        ),
    )
    items = {"facts": world.questions(sizes.questions_from, sizes.questions, sizes.seed)}
    sweep = figure.Sweep(
        world,
        items,
        {"baseline accuracy": ("facts", ACCURACY), "non-sycophancy": ("facts", NON_SYCOPHANCY)},
    )
    model = add_mlp_biases(world.load())
    base = sweep.measure(model, "", "unsteered", 0.0)
    for panel, sign in ((TOWARDS, 1.0), (AWAY, -1.0)):
        for method, strengths in _methods(world, sizes, pair, model, sign):
            figure.timed(
                f"{panel}: {method.name}",
                lambda p=panel, m=method, s=strengths, g=sign: sweep.steer(
                    model, p, m, [g * k for k in s]
                ),
            )
        world.finetune(
            positive if sign > 0 else negative,
            seed=sizes.seed,
            look_at=sizes.look_at,
            look=lambda step, tuned, p=panel: sweep.measure(tuned, p, "fine-tuning", step),
            **{**sizes.training, "steps": max(sizes.look_at)},
        )
    areas = _areas(sweep, base["facts"])
    figure.write_csv(out / "fig2.csv", sweep.rows)
    figure.write_csv(out / "fig2_areas.csv", areas)
    axes = ("baseline accuracy", "non-sycophancy")
    figure.plot_sweeps(out / "fig2.png", sweep.rows, {TOWARDS: axes, AWAY: axes})
    return areas


def _methods(
    world: World, sizes: Sizes, pair: methods.Pair, model: nn.Module, sign: float
) -> list[tuple[methods.Method, list[float]]]:
    held_out = world.questions(sizes.held_out_from, sizes.held_out, sizes.seed + 1)

    def score(steered: nn.Module) -> float:
        """The share of questions that are answered rightly alone and, then, as steered for."""
        found = outcomes(world, steered, held_out)
        successes, _ = (SYCOPHANCY if sign > 0 else NON_SYCOPHANCY)(found)
        return float(successes.mean())

    by_activations, block = methods.activation_methods(
        pair, model, score, sign, layers=sizes.layers
    )
    print(f"block chosen on held-out questions: {block}")
    strengths = {methods.BIASES: sizes.bias_coefficients}
    found = [(m, strengths.get(m.name, sizes.coefficients)) for m in methods.weight_methods(pair)]
    return found + [(m, sizes.activation_coefficients) for m in by_activations]


def _areas(sweep: figure.Sweep, base: Any) -> list[figure.Row]:
    """Contrastive weight steering above each other way, at equal baseline accuracy."""
    rows = []
    for panel, height in ((TOWARDS, SYCOPHANCY), (AWAY, NON_SYCOPHANCY)):
        ours = [o["facts"] for o in sweep.found[panel, methods.WEIGHTS]]
        for (where, method), found in sweep.found.items():
            if where != panel or method == methods.WEIGHTS:
                continue
            area = area_between(
                ours, [o["facts"] for o in found], base=base, across=ACCURACY, height=height
            )
            rows.append(
                {
                    "panel": panel,
                    "weights above": method,
                    "area": round(area.value, 4),
                    "low": round(area.low, 4),
                    "high": round(area.high, 4),
                }
            )
    return rows


if __name__ == "__main__":
    main()
