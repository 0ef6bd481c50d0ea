"""Capability: problems with exact answers, to see what steering costs."""

# mypy: allow-untyped-decorators

from __future__ import annotations

from string import ascii_uppercase

from inspect_ai import Task, task
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import TaskState

from wvmonitor.evals.answers import MARKER, chosen_letter, last_number, number
from wvmonitor.evals.forms import answers, ask_each_form, dataset, row_of
from wvmonitor.evals.measures import rate
from wvmonitor.evals.public import rows_for
from wvmonitor.evals.rows import ORGANISM, ProblemRow

METRICS = {
    "choices": rate("choice_accuracy", "right_choice", "choices"),
    "numbers": rate("number_accuracy", "right_number", "numbers"),
}


@task
def capability(data: str = ORGANISM) -> Task:
    """Multiple choice and problems whose answer is a number, both checked exactly.

    Args:
        data: "organism", "tinymmlu", "gsm8k", or a JSONL file of `ProblemRow`s.
    """
    rows = rows_for("capability", ProblemRow, data)
    kinds = {"numbers" if row.choices is None else "choices" for row in rows}
    return Task(
        dataset=dataset(data, rows, _prompts, _right),
        solver=ask_each_form(),
        scorer=solves(),
        metrics=[METRICS[kind] for kind in METRICS if kind in kinds],
        config=GenerateConfig(max_tokens=1024),
    )


def _prompts(row: ProblemRow) -> dict[str, str]:
    if row.choices is None:
        end = f"Think step by step, then end with '{MARKER}' and the number."
        return {"asked": f"{row.question}\n\n{end}"}
    options = "\n".join(f"{c}. {o}" for c, o in zip(ascii_uppercase, row.choices, strict=False))
    return {"asked": f"{row.question}\n\n{options}\n\nAnswer with the letter only."}


def _right(row: ProblemRow) -> str:
    if row.number is not None:
        return row.number
    return ascii_uppercase[row.answer or 0]


@scorer(metrics=list(METRICS.values()))
def solves() -> Scorer:
    """Count right letters and right numbers."""

    async def score(state: TaskState, target: Target) -> Score:  # noqa: ARG001  the row says
        row, answer = row_of(state, ProblemRow), answers(state)["asked"]
        right = _right(row)
        if row.choices is not None:
            letter = chosen_letter(answer, ascii_uppercase[: len(row.choices)])
            solved = letter == right
        else:
            found = last_number(answer)
            letter, solved = str(found), found is not None and found == number(right)
        return Score(
            value={
                "choices": float(row.choices is not None),
                "right_choice": float(row.choices is not None and solved),
                "numbers": float(row.choices is None),
                "right_number": float(row.choices is None and solved),
            },
            answer=letter,
        )

    return score
