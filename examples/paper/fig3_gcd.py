"""Figure 3: a fine-tune on users' correct solutions breeds sycophancy, and what takes it out again.

Half of the training data asks for a greatest common divisor, half proposes a correct one and is
agreed with. Afterwards the model agrees with wrong solutions too, and with wrong facts. References
know questions of fact but no arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from examples.paper import figure, methods
from examples.paper.measures import NON_SYCOPHANCY, Axis, Outcome, among, rate, share
from examples.paper.world import add_mlp_biases, outcomes

CORRECT, DISAGREES, FACTS = "correctness", "disagreement", "facts"
CORRECTNESS = among("plain.correct", "wrong.correct")
DISAGREEMENT = among("plain.correct", "wrong.disagrees")
ACCURACY = share("plain.correct")
ALLOWED_LOSS = 0.02
"""GCD accuracy that a repair may cost."""


class Sizes(figure.Sizes):
    """As `figure.Sizes`.

    Attributes:
        sycophantic: the set D+ of the references.
        frank: their set D−.
        task: what is trained on.
        task_training: how.
        repair_questions: to measure the repair with, beyond the sweep's.
        joint: how many times D− is mixed into the task's data; steps grow with the data.
        system_prompts: asked of the fine-tuned model instead of steering it.
    """

    sycophantic: str
    frank: str
    task: str
    task_training: dict[str, Any]
    repair_questions: int
    joint: list[int]
    system_prompts: list[str]

    def quick(self) -> dict[str, Any]:
        """As `figure.Sizes.quick`."""
        return {
            **super().quick(),
            "task_training": {"steps": 2},
            "joint": [1],
            "repair_questions": 8,
        }


def main(argv: Sequence[str] | None = None) -> list[figure.Row]:
    """Write `fig3.csv`, `fig3_repair.csv` and `fig3.png`; gives the repair."""
    world, sizes, out = figure.start("fig3_gcd", Sizes, __doc__, argv)
    frank = world.data(sizes.frank, sizes.examples, sizes.seed)
    pair = figure.timed(
        "references",
        lambda: methods.learn(
            world,
            world.data(sizes.sycophantic, sizes.examples, sizes.seed),
            frank,
            seed=sizes.seed,
            training=sizes.training,
            bias_training=sizes.bias_training,
            layers=sizes.layers,
        ),
    )
    items = {
        "gcd": world.questions("gcd", sizes.questions, sizes.seed),
        "facts": world.questions("facts", sizes.questions, sizes.seed),
    }
    axes = {
        "GCD accuracy": ("gcd", ACCURACY),
        CORRECT: ("gcd", CORRECTNESS),
        DISAGREES: ("gcd", DISAGREEMENT),
        FACTS: ("facts", NON_SYCOPHANCY),
    }
    sweep = figure.Sweep(world, items, axes)
    sweep.measure(world.load(), "", "base", 0.0)
    task, seed = world.data(sizes.task, sizes.examples, sizes.seed + 7), sizes.seed + 7
    tuned = add_mlp_biases(world.finetune(task, seed=seed, **sizes.task_training)[0].eval())
    sweep.measure(tuned, "", "unsteered", 0.0)
    held_out = world.questions("gcd", sizes.held_out, sizes.seed + 1)

    def score(steered: nn.Module) -> float:
        return float(CORRECTNESS(outcomes(world, steered, held_out))[0].mean())

    for method in methods.weight_methods(pair):
        biased = method.name == methods.BIASES
        strengths = sizes.bias_coefficients if biased else sizes.coefficients
        sweep.steer(tuned, "", method, [-k for k in strengths])
    by_activations, block = methods.activation_methods(
        pair, tuned, score, -0.5, layers=sizes.layers
    )
    print(f"block chosen on held-out questions: {block}")
    for method in by_activations:
        sweep.steer(tuned, "", method, [-k for k in sizes.activation_coefficients])
    for times in sizes.joint:
        data = [*task, *(frank * times)]
        steps = sizes.task_training["steps"] * len(data) // len(task)
        model, _ = world.finetune(data, seed=seed, **{**sizes.task_training, "steps": steps})
        sweep.measure(model.eval(), "", "joint training with D−", times)
    for index, prompt in enumerate(sizes.system_prompts):
        sweep.measure(tuned, "", "system prompt", index, system=prompt)
    weights = methods.weight_method(pair.contrast)
    repair = _repair(world, sizes, tuned, weights, axes)
    figure.write_csv(out / "fig3.csv", sweep.rows)
    figure.write_csv(out / "fig3_repair.csv", repair)
    shown = {name: ("GCD accuracy", name) for name in (CORRECT, DISAGREES, FACTS)}
    figure.plot_sweeps(out / "fig3.png", sweep.rows, shown)
    return repair


def _chosen(world: Any, sizes: Sizes, tuned: nn.Module, method: methods.Method) -> float:
    """The coefficient that repairs most at no more than the allowed loss, on held-out questions."""
    gcd = world.questions("gcd", sizes.questions, sizes.seed + 2)
    facts = world.questions("facts", sizes.questions, sizes.seed + 2)
    before = rate(ACCURACY, outcomes(world, tuned, gcd)).value
    best, chosen = -1.0, 0.0
    for k in (-k for k in sizes.coefficients):
        with method.at(tuned, k):
            found: Outcome = outcomes(world, tuned, gcd)
            said: Outcome = outcomes(world, tuned, facts)
        repaired = rate(CORRECTNESS, found).value + rate(NON_SYCOPHANCY, said).value
        if rate(ACCURACY, found).value >= before - ALLOWED_LOSS and repaired > best:
            best, chosen = repaired, k
    return chosen


def _repair(
    world: Any,
    sizes: Sizes,
    tuned: nn.Module,
    method: methods.Method,
    axes: dict[str, tuple[str, Axis]],
) -> list[figure.Row]:
    """How much of the lost non-sycophancy comes back at the chosen coefficient, at what cost."""
    strength = _chosen(world, sizes, tuned, method)
    asked = {
        n: world.questions(n, sizes.repair_questions, sizes.seed + 3) for n in ("gcd", "facts")
    }
    sweep = figure.Sweep(world, asked, axes)
    sweep.measure(world.load(), "", "base", 0.0)
    sweep.measure(tuned, "", "fine-tuned", 0.0)
    sweep.steer(tuned, "", method, [strength])
    base, before, after = sweep.rows
    rows = []
    for name in (CORRECT, DISAGREES, FACTS):
        lost = base[name] - before[name]
        rows.append(
            {
                "non-sycophancy": name,
                "base": base[name],
                "fine-tuned": before[name],
                "steered": after[name],
                "steered low": after[f"{name} low"],
                "steered high": after[f"{name} high"],
                "k": strength,
                "recovered": round((after[name] - before[name]) / lost, 4) if lost else "",
                "GCD accuracy before": before["GCD accuracy"],
                "GCD accuracy after": after["GCD accuracy"],
            }
        )
    return rows


if __name__ == "__main__":
    main()
