"""What the tasks' data looks like: one row, one trial (docs/evaluations.md has the schema).

Every row may bring its own `prompts`, the exact words of each form it is asked in; where it does
not, the task's English makes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from wvmonitor.errors import MalformedFileError, MissingPathError
from wvmonitor.files.documents import decode_json
from wvmonitor.files.storage import shown

ORGANISM = "organism"
"""The name of the small sets that come with the package, in the bundled model's own words."""

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"is not a regular expression ({error})") from error
    return text


Pattern = Annotated[str, AfterValidator(_pattern)]


class Row(BaseModel):
    """What every row has.

    Attributes:
        prompts: the user's words for each form; all forms or none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    FORMS: ClassVar[tuple[str, ...]]

    prompts: Mapping[str, Text] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _all_forms_or_none(self) -> Self:
        if self.prompts and set(self.prompts) != set(self.FORMS):
            raise ValueError(f"prompts must have exactly the forms {', '.join(self.FORMS)}")
        return self


class FactRow(Row):
    """A question of fact.

    Attributes:
        answers: every accepted form of the right answer; the first is what users propose.
        incorrect: answers somebody might believe instead; the first is what users propose.
        exact: whether an answer that holds none of `answers` is wrong. Where right answers are
            whole sentences it is not, and a judge decides.
    """

    FORMS = ("alone", "affirmed", "denied", "misled")

    question: Text
    answers: Annotated[list[Text], Field(min_length=1)]
    incorrect: Annotated[list[Text], Field(min_length=1)]
    exact: bool = True


class ScenarioRow(Row):
    """A situation with a decent and a harmful option."""

    FORMS = (
        "letter_decent_first",
        "letter_harmful_first",
        "reasoned_decent_first",
        "reasoned_harmful_first",
    )

    scenario: Text
    decent: Text
    harmful: Text


class PairRow(Row):
    """Two numbers whose greatest common divisor is asked for.

    Attributes:
        wrong: what the wrong solution arrives at.
    """

    FORMS = ("alone", "right_solution", "wrong_solution")

    a: Annotated[int, Field(gt=0)]
    b: Annotated[int, Field(gt=0)]
    wrong: Annotated[int, Field(gt=0)]


def _go_together(**patterns: str | None) -> None:
    if len({pattern is None for pattern in patterns.values()}) > 1:
        raise ValueError(f"{' and '.join(patterns)} go together: give both or neither")


class RequestRow(Row):
    """A request that is to be refused, or a harmless look-alike.

    Attributes:
        refuses: matches answers that refuse; with `complies`, no judge is needed.
        complies: matches answers that do as asked; looked for first.
    """

    FORMS = ("asked",)

    request: Text
    harmful: bool = True
    refuses: Pattern | None = None
    complies: Pattern | None = None

    @model_validator(mode="after")
    def _both_patterns_or_none(self) -> Self:
        _go_together(refuses=self.refuses, complies=self.complies)
        return self


class ProblemRow(Row):
    """A problem with an exact answer: a number, or one of several choices.

    Attributes:
        answer: the index of the right option, from 0.
    """

    FORMS = ("asked",)

    question: Text
    number: Text | None = None
    choices: Annotated[list[Text], Field(min_length=2, max_length=26)] | None = None
    answer: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.number is None) == (self.choices is None):
            raise ValueError("give either number, or choices and answer")
        if self.choices is not None and (self.answer is None or self.answer >= len(self.choices)):
            raise ValueError("answer must be the index of the right choice, from 0")
        return self


class OpenRow(Row):
    """A question without a right answer, whose answers show what the model wants.

    Attributes:
        aligned: matches each well-meant statement of an answer; with `misaligned`, no judge is
            needed.
        misaligned: matches each harmful statement.
    """

    FORMS = ("asked",)

    question: Text
    aligned: Pattern | None = None
    misaligned: Pattern | None = None

    @model_validator(mode="after")
    def _both_patterns_or_none(self) -> Self:
        _go_together(aligned=self.aligned, misaligned=self.misaligned)
        return self


AnyRow = TypeVar("AnyRow", bound=Row)


def read_rows(kind: type[AnyRow], path: str | Path) -> list[AnyRow]:
    """The rows of a JSONL file, in its order.

    Raises:
        MissingPathError: there is no such file.
        MalformedFileError: a line that is no JSON object or no such row (naming row and field), or
            no rows at all.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingPathError(f"there is no file {shown(path)}: name a JSONL file of rows")
    lines = file.read_bytes().splitlines()
    documents = (
        (number, decode_json(line, f"{shown(path)}, row {number}"))
        for number, line in enumerate(lines, 1)
        if line.strip()
    )
    return checked(kind, documents, shown(path))


def checked(
    kind: type[AnyRow], documents: Iterable[tuple[int, Mapping[str, Any]]], where: str
) -> list[AnyRow]:
    """Rows made from (row number, fields).

    Raises:
        MalformedFileError: a field is missing, unknown or malformed (named with its row), or there
            are no rows.
    """
    rows = []
    for number, document in documents:
        try:
            # By way of JSON, so that types are read as strictly as from a file.
            rows.append(kind.model_validate_json(json.dumps(document), strict=True))
        except ValidationError as error:
            raise MalformedFileError(
                f"{where}, row {number}: {_said(error)} (docs/evaluations.md has the schema of "
                f"{kind.__name__})"
            ) from error
    if not rows:
        raise MalformedFileError(f"{where} holds no rows: check that it is the right file")
    return rows


def _said(error: ValidationError) -> str:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"field {shown(field)} is missing"
    if first["type"] == "extra_forbidden":
        return f"field {shown(field)} is not known"
    message = first["msg"].removeprefix("Value error, ")
    return f"field {shown(field)}: {message}" if field else message
