"""What a build costs, and what a budget takes away."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wvmonitor.builder.plan import Budget, Workload, plan_of, within
from wvmonitor.builder.recipe import Finetuning, Generation
from wvmonitor.errors import BuildError

PAPER = Workload(
    parameters=7_000_000_000, prompts=10, questions=20, held_out=20, doses=7, samples=5,
    generation=Generation(), finetuning=Finetuning(), pairs=None, seeds=3, sides=2, splits=True,
    domains=4, sweep=0, probe_tokens=50_000, method="lora", engine="transformers",
    model_judge=True,
)  # fmt: skip


def test_the_plan_counts_what_will_be_done() -> None:
    """Answers, fine-tunes and steps of the paper's settings, worked out by hand."""
    plan = plan_of(PAPER)
    # 3 seeds of 900 examples: 113 steps; halves of 450: 57; quarters of 225: 29; two sides each
    assert PAPER.answers == 10 * 20 * 10
    assert sorted(PAPER.finetunes) == sorted([113] * 6 + [57] * 4 + [29] * 8)
    stages = {s.name: s for s in plan.stages}
    assert stages["generate"].tokens == 2000 * (256 + 80)
    assert stages["judge"].tokens == (2000 + 7 * 20 * 5) * (256 + 80)
    assert stages["finetune"].tokens == sum(PAPER.finetunes) * 8 * (256 + 80)
    # 4 operations a parameter and token where the base is frozen, at 35 % of 300 TFLOP/s
    seconds = 4 * 7e9 * stages["finetune"].tokens / (0.35 * 300e12)
    assert stages["finetune"].hours == pytest.approx(seconds / 3600)
    assert plan.hours == pytest.approx(sum(s.hours for s in plan.stages))


def test_the_sweep_is_what_the_issue_feared() -> None:
    """Three rates on two sides are six more fine-tunes, and opt-in."""
    plain = replace(PAPER, splits=False)
    assert len(plain.finetunes) == 6
    assert len(replace(plain, sweep=3).finetunes) == 12


def test_a_budget_that_is_enough_changes_nothing() -> None:
    """Nothing is taken away that is paid for."""
    assert within(PAPER, Budget(hours=1e6)) == plan_of(PAPER)
    assert within(PAPER, None) == plan_of(PAPER)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.3])
def test_hours_are_kept_and_what_they_cost_is_said(share) -> None:
    """The plan costs no more than the budget, and names everything that it leaves out."""
    full = plan_of(PAPER)
    made = within(PAPER, Budget(hours=share * full.hours))
    assert made.hours <= share * full.hours
    said = "; ".join(made.reductions)
    load = made.workload
    assert ("split-half" in said) == (not load.splits)
    assert ("seeds instead of 3" in said) == (load.seeds < 3)
    assert ("answers to each question" in said) == (load.generation.samples_per_prompt < 10)
    assert said


def test_examples_are_a_limit_on_each_side() -> None:
    """Fewer examples ask for as many fewer answers, and the card will say so."""
    made = within(PAPER, Budget(examples=180))
    assert made.workload.generation.keep_at_most == 180
    assert made.workload.generation.keep_at_least == 100
    assert made.workload.generation.samples_per_prompt == 2
    assert "100 to 180 examples a side instead of 500 to 900" in made.reductions[0]


def test_data_of_ones_own_is_limited_too() -> None:
    """With data that is given, a budget takes fewer of its pairs and says how many."""
    own = replace(PAPER, prompts=0, pairs=400, domains=0)
    made = within(own, Budget(examples=100))
    assert made.workload.pairs == 100
    assert made.reductions == ("the budget takes 100 of 400 pairs of the data",)
    assert max(made.workload.finetunes) == 13  # ⌈100 / 8⌉


def test_a_budget_below_the_least_plan_is_refused() -> None:
    """An hour that cannot be met is said with what it would take."""
    with pytest.raises(BuildError, match=r"the least plan takes .* GPU-hours"):
        within(PAPER, Budget(hours=1e-6))


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("2h", Budget(hours=2.0)),
        ("0.5 h", Budget(hours=0.5)),
        ("200", Budget(examples=200)),
        ("200 examples", Budget(examples=200)),
    ],
)
def test_budgets_are_hours_or_examples(text, budget) -> None:
    """The unit tells which."""
    assert Budget.parse(text) == budget


@pytest.mark.parametrize("text", ["", "h", "3", "-1h", "lots", "2 days"])
def test_other_budgets_are_refused(text) -> None:
    """What is meant is never guessed."""
    with pytest.raises(BuildError, match="give GPU-hours"):
        Budget.parse(text)
