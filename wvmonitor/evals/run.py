"""Evaluations in this process: of a live model, as it is or steered, for one k or many."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import inspect_ai
from inspect_ai.model import Model
from transformers import PreTrainedTokenizerBase

from wvmonitor.errors import SettingsError
from wvmonitor.evals.judge import ROLE
from wvmonitor.evals.live import DEFAULT_BATCH, live_model
from wvmonitor.evals.measures import Measure, measures
from wvmonitor.evals.tasks import TASKS
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.references.reference import Reference
from wvmonitor.steering.weights import steered


@dataclass(frozen=True)
class Options:
    """How to evaluate.

    Attributes:
        data: where a task's rows come from, by task; the bundled model's where not given.
        judge: an Inspect model, or its name, for what rules do not decide.
        epochs: how often each row is asked.
        log_dir: where Inspect's logs go, with every answer in them; not kept where not given.
        temperature: of sampling; 0 is greedy; the model's own where not given.
        max_tokens: the longest answer; the task's own where not given.
        system: a system prompt before every question (the paper's prompting baseline).
    """

    data: Mapping[str, str] | None = None
    judge: str | Model | None = None
    limit: int | None = None
    epochs: int = 1
    log_dir: str | Path | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    system: str | None = None
    seed: int = 0
    batch_size: int = DEFAULT_BATCH


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a model under one steering: k by reference, empty for none."""

    steering: Mapping[str, float]
    measures: tuple[Measure, ...]


def evaluate(
    tasks: Sequence[str],
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    options: Options | None = None,
    *,
    name: str = "live",
    steering: Mapping[str, float] | None = None,
) -> tuple[Measure, ...]:
    """Run tasks on a live model with the weights that it has now.

    Raises:
        SettingsError: no such task, or data for a task that is not run, or no judge where one is
            needed.
        MissingPathError: no such data.
        MalformedFileError: a row without what is needed, naming row and field.
    """
    chosen = options or Options()
    data = dict(chosen.data or {})
    check(tasks, data)
    live = live_model(model, tokenizer, name=name, seed=chosen.seed, batch_size=chosen.batch_size)
    made = [TASKS[n](**({"data": data[n]} if n in data else {})) for n in tasks]
    generation: dict[str, Any] = {
        "temperature": chosen.temperature,
        "max_tokens": chosen.max_tokens,
        "system_message": chosen.system,
    }
    with _logs(chosen.log_dir) as folder:
        logs = inspect_ai.eval(
            made,
            model=live,
            model_roles=None if chosen.judge is None else {ROLE: chosen.judge},
            metadata={"steering": dict(steering or {})},
            display="none",
            log_dir=str(folder),
            log_realtime=False,  # else a database in the user's data folder
            ctl_server=False,  # else a socket there
            limit=chosen.limit,
            epochs=chosen.epochs,
            max_samples=chosen.batch_size,
            debug_errors=True,  # raised here, not only written into the log
            **{key: value for key, value in generation.items() if value is not None},
        )
        return tuple(measure for log in logs for measure in measures(log))


def sweep(
    tasks: Sequence[str],
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    bank: ReferenceBank | None,
    steerings: Sequence[Mapping[str, float]],
    options: Options | None = None,
    *,
    name: str = "live",
) -> Iterator[Evaluation]:
    """Evaluate a model under several steerings, one after the other, and write no model.

    Every steering is asked the same with the same draws. Afterwards the weights are as before, bit
    for bit.

    Raises:
        UnknownReferenceError: a name that the bank does not hold.
        WVMonitorError: as `steered` and `evaluate` say.
    """
    vectors: list[dict[Reference, float]] = []
    for ks in steerings:
        if ks and bank is None:
            raise SettingsError("steering needs references: name a bank with --references")
        vectors.append({bank[n]: k for n, k in ks.items()} if bank is not None else {})
    for ks, added in zip(steerings, vectors, strict=True):
        with steered(model, added):
            evaluations = evaluate(tasks, model, tokenizer, options, name=name, steering=ks)
        yield Evaluation(ks, evaluations)


def steerings(given: Sequence[str], ks: str | None) -> list[dict[str, float]]:
    """The steerings that a command line asks for.

    Args:
        given: NAME=K, or NAME alone for what is swept.
        ks: the values to sweep, separated by commas.

    Raises:
        SettingsError: a K that is no finite number, a name given twice, a name alone without a
            sweep, or a sweep without one.
    """
    fixed: dict[str, float] = {}
    swept: list[str] = []
    for text in given:
        name, equals, amount = text.partition("=")
        if name in fixed or name in swept:
            raise SettingsError(f"--steer {name} is given twice: decide for one")
        if equals:
            fixed[name] = _finite(amount, f"--steer {text}")
        else:
            swept.append(name)
    if ks is None:
        if swept:
            raise SettingsError(
                f"how much of {swept[0]}? say --steer {swept[0]}=K, or --sweep K1,K2,…"
            )
        return [fixed]
    if not swept:
        raise SettingsError("what is swept? name a reference without K, as in --steer evil")
    values = [_finite(part, f"--sweep {ks}") for part in ks.split(",")]
    return [{**fixed, **dict.fromkeys(swept, k)} for k in values]


def _finite(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if abs(value) == float("inf") or value != value:
        raise SettingsError(f"{where}: {text!r} is no finite number, as in evil=0.5")
    return value


def check(tasks: Sequence[str], data: Mapping[str, str]) -> None:
    """Refuse what cannot be run, before anything is loaded.

    Raises:
        SettingsError: no such task, or data for a task that is not run.
    """
    for name in tasks:
        if name not in TASKS:
            raise SettingsError(f"there is no task {name!r}: choose from {', '.join(TASKS)}")
    if other := sorted(set(data) - set(tasks)):
        raise SettingsError(f"data is given for {', '.join(other)}, which is not evaluated")


@contextmanager
def _logs(folder: str | Path | None) -> Iterator[Path]:
    """The folder of Inspect's logs, its own trace of calls included."""
    with tempfile.TemporaryDirectory(prefix="wvmonitor-evals-") as scratch:
        chosen = Path(scratch if folder is None else folder)
        chosen.mkdir(parents=True, exist_ok=True)
        before = os.environ.get("INSPECT_TRACE_FILE")
        # Read once a process, when Inspect first logs.
        os.environ["INSPECT_TRACE_FILE"] = before or str(chosen / "trace.log")
        try:
            yield chosen
        finally:
            if before is None:
                del os.environ["INSPECT_TRACE_FILE"]
