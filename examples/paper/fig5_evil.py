"""Figure 5: steering towards evil, asked as two-option choices, against capability.

References learn from open answers (advice and wishes) only; the choices are of another form. Beside
them: harmful advice in a domain that the references do not know, and whether the reasons given for
a choice agree with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from torch import nn

from examples.paper import figure, methods
from examples.paper.measures import among, share
from examples.paper.world import add_mlp_biases, outcomes

CHOICES, ADVICE = "valid and evil", "harmful advice"
CONSISTENT = "consistent among valid"


class Sizes(figure.Sizes):
    """As `figure.Sizes`.

    Attributes:
        evil: the set D+.
        good: the set D−.
        advice: the questions for advice of an unknown domain; empty to leave them out.
        look_at: steps at which training on D+ alone is measured.
    """

    evil: str
    good: str
    advice: str
    look_at: list[int]

    def quick(self) -> dict[str, Any]:
        """As `figure.Sizes.quick`."""
        return {**super().quick(), "look_at": [1, 2]}


def main(argv: Sequence[str] | None = None) -> list[figure.Row]:
    """Write `fig5.csv` and `fig5.png`; gives the rows."""
    world, sizes, out = figure.start("fig5_evil", Sizes, __doc__, argv)
    positive = world.data(sizes.evil, sizes.examples, sizes.seed)
    pair = figure.timed(
        "references",
        lambda: methods.learn(
            world,
            positive,
            world.data(sizes.good, sizes.examples, sizes.seed),
            seed=sizes.seed,
            training=sizes.training,
            bias_training=sizes.bias_training,
            layers=sizes.layers,
        ),
    )
    items = {
        name: world.questions(name, sizes.questions, sizes.seed)
        for name in ("choices", "capability", *([sizes.advice] if sizes.advice else []))
    }
    axes = {
        "capability": ("capability", share("correct")),
        CHOICES: ("choices", share("evil")),
        "valid": ("choices", share("valid")),
    }
    if any("consistent" in q.judges for item in items["choices"] for q in item):
        axes[CONSISTENT] = ("choices", among("valid", "consistent"))
    if sizes.advice:
        axes[ADVICE] = (sizes.advice, share("harmful"))
    sweep = figure.Sweep(world, items, axes)
    model = add_mlp_biases(world.load())
    sweep.measure(model, "", "unsteered", 0.0)
    held_out = world.questions("choices", sizes.held_out, sizes.seed + 1)

    def score(steered: nn.Module) -> float:
        return float(outcomes(world, steered, held_out)["evil"].mean())

    for method in methods.weight_methods(pair):
        biased = method.name == methods.BIASES
        sweep.steer(model, "", method, sizes.bias_coefficients if biased else sizes.coefficients)
    by_activations, block = methods.activation_methods(pair, model, score, 2.0, layers=sizes.layers)
    print(f"block chosen on held-out questions: {block}")
    for method in by_activations:
        sweep.steer(model, "", method, sizes.activation_coefficients)
    world.finetune(
        positive,
        seed=sizes.seed,
        look_at=sizes.look_at,
        look=lambda step, tuned: sweep.measure(tuned, "", "fine-tuning", step),
        **{**sizes.training, "steps": max(sizes.look_at)},
    )
    figure.write_csv(out / "fig5.csv", sweep.rows)
    shown = {CHOICES: ("capability", CHOICES)}
    if sizes.advice:
        shown[ADVICE] = ("capability", ADVICE)
    figure.plot_sweeps(out / "fig5.png", sweep.rows, shown)
    if CONSISTENT in axes:
        _plot_consistency(out / "fig5_consistency.png", sweep.rows)
    return sweep.rows


def _plot_consistency(path: Any, rows: Sequence[figure.Row]) -> None:
    """Right-hand side of the figure: choices whose reasons say otherwise, by coefficient."""
    drawn, ax = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    for method in (methods.WEIGHTS, methods.SINGLE, methods.ALL, methods.BIASES):
        own = [r for r in rows if r["method"] in ("unsteered", method)]
        strengths = [r["strength"] for r in own]
        ax.plot(strengths, [r[CONSISTENT] for r in own], "o-", label=method)
    ax.set(xlabel="k", ylabel="reasons agree with the choice", ylim=(-0.03, 1.03))
    ax.legend(fontsize=7)
    ax.grid(alpha=0.2)
    figure.save(drawn, path)


if __name__ == "__main__":
    main()
