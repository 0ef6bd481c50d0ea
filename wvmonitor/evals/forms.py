"""Asking a row in each of its forms, every form in a conversation of its own."""

# mypy: allow-untyped-decorators

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageUser, get_model
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.util import collect

from wvmonitor.evals.rows import Row

AnyRow = TypeVar("AnyRow", bound=Row)


def dataset(
    name: str,
    rows: Sequence[AnyRow],
    prompts: Callable[[AnyRow], Mapping[str, str]],
    target: Callable[[AnyRow], str],
) -> MemoryDataset:
    """One sample a row, numbered from 1 in the rows' order, with the words of every form.

    `prompts` gives a row's forms where it brings none of its own, `target` what the log shows as
    the right answer.
    """
    samples = []
    for number, row in enumerate(rows, 1):
        words = dict(row.prompts or prompts(row))
        ordered = {form: words[form] for form in row.FORMS}
        samples.append(
            Sample(
                id=number,
                input=next(iter(ordered.values())),
                target=target(row),
                metadata={"row": row.model_dump(mode="json"), "prompts": ordered},
            )
        )
    return MemoryDataset(samples, name=name)


@solver
def ask_each_form() -> Solver:
    """Ask all forms at once; the answers are in the sample's store under `answers`."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:  # noqa: ARG001
        prompts: dict[str, str] = state.metadata["prompts"]
        model = get_model()
        outputs = await collect(
            *(model.generate([ChatMessageUser(content=words)]) for words in prompts.values())
        )
        state.messages = [
            message
            for words, output in zip(prompts.values(), outputs, strict=True)
            for message in (ChatMessageUser(content=words), output.message)
        ]
        state.output = outputs[-1]
        replies = zip(prompts, (output.completion for output in outputs), strict=True)
        state.store.set("answers", dict(replies))
        return state

    return solve


def answers(state: TaskState) -> dict[str, str]:
    """What was answered, by form."""
    found: dict[str, str] = state.store.get("answers")
    return found


def row_of(state: TaskState, kind: type[AnyRow]) -> AnyRow:
    """The row that a sample was made from."""
    fields: dict[str, Any] = state.metadata["row"]
    return kind.model_validate(fields)
