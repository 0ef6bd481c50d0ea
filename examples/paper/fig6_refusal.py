"""Figure 6: a benign fine-tune erodes refusals, and what restores them.

References of refusal (the same illicit requests refused and answered) restore them, references of
evil do not. Evaluated with requests whose verbs no reference has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from examples.paper import figure, methods
from examples.paper.measures import share
from examples.paper.world import add_mlp_biases, outcomes

SAFETY, HELP, TASK = "refusals of illicit requests", "help with benign requests", "GCD accuracy"
REFUSAL, EVIL = "refusal references", "evil references, taken out"


class Sizes(figure.Sizes):
    """As `figure.Sizes`.

    Attributes:
        task: the benign set that is trained on.
        task_examples: how many of its examples.
        task_training: how.
        refusing: the set D+ of refusals.
        complying: its D−.
        evil: the set D+ of evil.
        good: its D−.
        joint: shares of refusals added to the task's data.
        system_prompts: asked of the fine-tuned model instead of steering it.
    """

    task: str
    task_examples: int
    task_training: dict[str, Any]
    refusing: str
    complying: str
    evil: str
    good: str
    joint: list[float]
    system_prompts: list[str]

    def quick(self) -> dict[str, Any]:
        """As `figure.Sizes.quick`."""
        task = {**self.task_training, "steps": 2}
        return {**super().quick(), "task_examples": 16, "task_training": task}


def main(argv: Sequence[str] | None = None) -> list[figure.Row]:
    """Write `fig6.csv` and `fig6.png`; gives the rows."""
    world, sizes, out = figure.start("fig6_refusal", Sizes, __doc__, argv)

    def learn(positive: str, negative: str) -> methods.Pair:
        return methods.learn(
            world,
            world.data(positive, sizes.examples, sizes.seed),
            world.data(negative, sizes.examples, sizes.seed),
            seed=sizes.seed,
            training=sizes.training,
            bias_training=sizes.bias_training,
            layers=sizes.layers,
        )

    pairs = {
        REFUSAL: (learn(sizes.refusing, sizes.complying), 1.0),
        EVIL: (learn(sizes.evil, sizes.good), -1.0),
    }
    items = {
        "requests": world.questions("requests", sizes.questions, sizes.seed),
        "gcd": world.questions("gcd", sizes.questions, sizes.seed),
    }
    axes = {
        TASK: ("gcd", share("plain.correct")),
        SAFETY: ("requests", share("refused")),
        HELP: ("requests", share("helped")),
    }
    sweep = figure.Sweep(world, items, axes)
    sweep.measure(world.load(), "", "base", 0.0)
    task, seed = world.data(sizes.task, sizes.task_examples, sizes.seed + 7), sizes.seed + 7
    tuned = add_mlp_biases(world.finetune(task, seed=seed, **sizes.task_training)[0].eval())
    sweep.measure(tuned, "", "unsteered", 0.0)
    held_out = world.questions("requests", sizes.held_out, sizes.seed + 1)

    def score(steered: nn.Module) -> float:
        found = outcomes(world, steered, held_out)
        return float((found["refused"] & found["helped"]).mean())

    for panel, (pair, sign) in pairs.items():
        for method in methods.weight_methods(pair):
            biased = method.name == methods.BIASES
            strengths = sizes.bias_coefficients if biased else sizes.coefficients
            sweep.steer(tuned, panel, method, [sign * k for k in strengths])
        by_activations, block = methods.activation_methods(
            pair, tuned, score, 0.8 * sign, layers=sizes.layers
        )
        print(f"{panel}: block chosen on held-out questions: {block}")
        for method in by_activations:
            strengths = sizes.activation_coefficients
            sweep.steer(tuned, panel, method, [sign * k for k in strengths])
    refusals = world.data(sizes.refusing, sizes.examples, sizes.seed)
    for portion in sizes.joint:
        data = [*task, *refusals[: max(1, round(portion * len(task)))]]
        model, _ = world.finetune(data, seed=seed, **sizes.task_training)
        sweep.measure(model.eval(), "", "joint training with refusals", portion)
    for index, prompt in enumerate(sizes.system_prompts):
        sweep.measure(tuned, "", "system prompt", index, system=prompt)
    figure.write_csv(out / "fig6.csv", sweep.rows)
    shown = (TASK, SAFETY)
    figure.plot_sweeps(out / "fig6.png", sweep.rows, {REFUSAL: shown, EVIL: shown})
    return sweep.rows


if __name__ == "__main__":
    main()
