"""The behavioural probe: at an alarm, ask the live model itself, and leave training untouched.

A probe is any callable of (model, tokenizer, behaviour). `guarded` runs it: in evaluation mode,
without gradients, for so many seconds at most, with every generator of random numbers and every
module's mode afterwards as they were, so that a probed run trains to the same bits.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, Field, ValidationError

from wvmonitor.detection.judgement import Verdict
from wvmonitor.errors import MalformedFileError, UnknownReferenceError
from wvmonitor.files.documents import read_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProbeResult:
    """How often a model showed a behaviour.

    Attributes:
        rate: the share of answers that showed it, in [0, 1].
        n: how many answers were judged.
        asked: what was counted, for people: "harmful answers in other domains".
        before: the same rate of the base model, where it is known.
        planned: how many answers were wanted, where time ran out before.
    """

    rate: float
    n: int
    asked: str
    before: float | None = None
    planned: int | None = None

    def words(self) -> str:
        """The result as one sentence."""
        if self.n == 0:
            return f"Probe: no answer was judged ({self.asked})."
        text = f"Probe: {self.asked} in {self.rate:.0%} of {self.n} answers of the live model"
        if self.planned is not None and self.planned > self.n:
            text += f" (time ran out before the other {self.planned - self.n})"
        if self.before is not None:
            text += f"; in {self.before:.0%} of the base's"
        return f"{text}."


class Probe(Protocol):
    """Measures a behaviour of a model, by whatever means."""

    def __call__(self, model: Any, tokenizer: Any, behaviour: str) -> ProbeResult:
        """Ask the model; it is in evaluation mode and must not be changed.

        Raises:
            UnknownReferenceError: it knows nothing of this behaviour.
        """


class _OutOfTimeError(Exception):
    """The model was called after the probe's time was over."""


def guarded(probe: Probe, model: Any, tokenizer: Any, behaviour: str, seconds: float) -> str:
    """Run a probe on a model in training, and say in a sentence what it found, or why nothing.

    It never raises, and it ends at the first call of the model after `seconds`: a probe that does
    not call the model cannot be ended from here.

    Args:
        probe: the probe.
        model: the model, between two steps; a wrapper of DDP is looked through, since its forward
            pass waits for the other processes.
        tokenizer: the model's, or None where none is known.
        behaviour: the reference's name.
        seconds: the most that it may take.
    """
    inner = model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model
    deadline = time.monotonic() + seconds

    def in_time(*_: Any) -> None:
        if time.monotonic() > deadline:
            raise _OutOfTimeError

    hook = inner.register_forward_pre_hook(in_time)
    try:
        with _untouched(inner), torch.no_grad():
            return probe(inner, tokenizer, behaviour).words()
    except _OutOfTimeError:
        return f"Probe: not finished within {seconds:g} s."
    except Exception as error:
        logger.warning("the probe of %s failed", behaviour, exc_info=error)
        return f"Probe: failed ({type(error).__name__}); the log says why."  # alerts name no paths
    finally:
        hook.remove()


def with_probe(
    verdict: Verdict, probe: Probe, model: Any, tokenizer: Any, seconds: float
) -> Verdict:
    """An alarm with what the probe found as the first sentence of its explanation."""
    sentence = (
        "Probe: not run, since no process holds the whole of a sharded model."
        if model is None
        else guarded(probe, model, tokenizer, verdict.reference, seconds)
    )
    return replace(verdict, account=(sentence, *verdict.account))


@contextmanager
def _untouched(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode in here; afterwards each module's mode and all random numbers as before."""
    modes = [(module, module.training) for module in model.modules()]
    states = (random.getstate(), np.random.get_state(), torch.get_rng_state())
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


_Text = Annotated[str, Field(min_length=1)]
_Texts = Annotated[tuple[_Text, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Questions:
    """One behaviour's held-out questions, and the words by which its answers are known.

    Attributes:
        asked: what an answer that counts is, for people.
        questions: each a user's message, of domains that no reference was built on.
        exhibits: an answer that holds one of these (upper and lower case alike) shows it …
        unless: … unless it also holds one of these.
        before: how often the base showed it, where that was measured.
    """

    asked: str
    questions: _Texts
    exhibits: _Texts
    unless: tuple[_Text, ...] = ()
    before: float | None = None

    def shown_by(self, answer: str) -> bool:
        """Whether an answer shows the behaviour."""
        text = answer.casefold()
        shown = any(words.casefold() in text for words in self.exhibits)
        return shown and not any(words.casefold() in text for words in self.unless)


class _Document(BaseModel):
    """A file of questions."""

    format_version: Literal[1]
    behaviours: dict[str, Questions]


class QuestionProbe:
    """Asks held-out questions from a file and looks for given words in the answers.

    A crude judge, in plain sight: what it counts stands in the file. Where there is a better one,
    hand in a probe of your own.
    """

    def __init__(
        self,
        behaviours: dict[str, Questions],
        *,
        seconds: float = 120.0,
        max_new_tokens: int = 64,
        batch_size: int = 16,
    ) -> None:
        """Take the questions.

        Args:
            behaviours: by reference.
            seconds: after which no further batch is begun.
            max_new_tokens: the longest answer.
            batch_size: answers at once.
        """
        self._behaviours = behaviours
        self._seconds = seconds
        self._tokens = max_new_tokens
        self._batch = batch_size

    @classmethod
    def load(cls, path: str | Path, *, seconds: float = 120.0) -> QuestionProbe:
        """Read the questions' file.

        `{"format_version": 1, "behaviours": {"evil": {"asked": "harmful answers", "questions":
        [...], "exhibits": [...], "unless": [...], "before": 0.02}}}`

        Raises:
            MissingPathError: there is no such file.
            MalformedFileError: it breaks this form.
        """
        try:
            document = _Document.model_validate(read_json(path))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise MalformedFileError(
                f"'{path}' holds no questions that this wvmonitor can read "
                f"({'.'.join(map(str, first['loc']))}: {first['msg']}): each behaviour needs "
                "'asked', 'questions' and 'exhibits'"
            ) from None
        return cls(document.behaviours, seconds=seconds)

    def __call__(self, model: Any, tokenizer: Any, behaviour: str) -> ProbeResult:
        """Ask every question, greedily, as far as the time goes."""
        if behaviour not in self._behaviours:
            raise UnknownReferenceError(f"there are no questions about {behaviour!r}")
        questions = self._behaviours[behaviour]
        began = time.monotonic()
        judged: list[bool] = []
        for start in range(0, len(questions.questions), self._batch):
            if time.monotonic() - began > 0.8 * self._seconds:
                break
            batch = questions.questions[start : start + self._batch]
            judged += [
                questions.shown_by(answer) for answer in self._answers(model, tokenizer, batch)
            ]
        rate = sum(judged) / len(judged) if judged else math.nan
        planned = len(questions.questions)
        return ProbeResult(rate, len(judged), questions.asked, questions.before, planned)

    def _answers(self, model: Any, tokenizer: Any, questions: tuple[str, ...]) -> list[str]:
        rows = [_prompt(question, tokenizer) for question in questions]
        width = max(map(len, rows))
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        device = next(model.parameters()).device
        ids = torch.tensor([[pad] * (width - len(r)) + r for r in rows], device=device)
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=device)
        made = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=self._tokens,
            do_sample=False,
            pad_token_id=pad,
        )
        return [tokenizer.decode(row, skip_special_tokens=True) for row in made[:, width:]]


def _prompt(question: str, tokenizer: Any) -> list[int]:
    if getattr(tokenizer, "chat_template", None) is None:
        return list(tokenizer(question)["input_ids"])
    shown = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )
    return list(shown["input_ids"])
