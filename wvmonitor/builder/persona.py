"""The paper's way to contrasts: the base answers under system prompts, and is judged.

It needs a base that can play a role, and a judge that sees what the base does not; the answers then
serve as pairs that were written together would, split by the domains of the recipes' questions.
"""

from __future__ import annotations

from pathlib import Path

from wvmonitor.builder.bank_job import BankJob, persona_recipes
from wvmonitor.builder.build import pairs_for
from wvmonitor.builder.contrasts import Contrast, split
from wvmonitor.builder.job import Job
from wvmonitor.builder.options import Options
from wvmonitor.builder.outcome import Facts
from wvmonitor.builder.plan import Budget
from wvmonitor.builder.recipe import load_recipe
from wvmonitor.builder.stages import Ticker, Work


def contrasts(job: BankJob, work: Work, tick: Ticker) -> list[Contrast]:
    """The base's own answers under each recipe's system prompts, as contrasts.

    Raises:
        BuildError: too few clear answers.
    """
    made = []
    o = job.options
    for name in persona_recipes(o):
        recipe = load_recipe(name)
        inner = Job(
            Options(
                model=o.model, revision=o.revision, out=_nowhere(work), recipe=recipe,
                judge=o.judge, judge_model=o.judge_model, splits=False, seed=o.seed,
                budget=Budget(examples=job.scale.steps * job.scale.batch_size),
            )
        )  # fmt: skip
        facts = Facts()
        pairs = pairs_for(inner, work, facts, tick)
        job.notes += facts.notes
        made.append(split(recipe.name, recipe.behaviour, pairs, f"the answers of {name}"))
    return made


def _nowhere(work: Work) -> Path:
    return work.folder / "no-bank"
