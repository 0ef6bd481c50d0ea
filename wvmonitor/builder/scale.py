"""How much of everything a bank is made from, and what that costs on this machine.

A short matrix product says how fast the machine is; operations are counted as in `plan`. The
figures are estimates: the bars of a running bank show the time that is really left.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

import torch

from wvmonitor.builder.rate import RATES
from wvmonitor.errors import BuildError
from wvmonitor.files.safetensors import memory_of_machine
from wvmonitor.vectors.devices import cores

ScaleName = Literal["full", "half", "quick"]
_SHARE = {"cpu": 0.8, "cuda": 0.3}
"""Share of a large matrix product's speed that training a model reaches."""
_OVERHEAD = {"cpu": 8.0, "cuda": 4.0}
"""Seconds beside the steps of one fine-tune: loading, reading, writing."""
_BYTES = 4
_WORKING = 1.6
"""Memory of one fine-tune, in copies of the base: its weights, activations, the adapter."""


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    Attributes:
        name: of the scale.
        seeds: repeats behind each behaviour.
        steps: optimiser steps of a reference's side.
        controls: how many controls are made, the most telling first.
        control_steps: optimiser steps of a control's side.
        rates: learning rates that are tried; one alone is taken as it is.
        rate_steps: optimiser steps of each side at each.
        calibration: harmless runs that calibrate.
        power: harmless runs that only the power check sees.
        any_tuning: harmless runs behind the control of any fine-tuning at all.
        run_steps: optimiser steps of a harmless run that calibrates, and of a development run.
        power_steps: optimiser steps of a run of the power check: as long as the runs that the
            calibration is for.
        mixtures: shares of bad examples in the power check, beside bad runs.
        styles: styles in which the base is asked for answers of its own.
        own_answers: answers in each.
        probe_tokens: ordinary tokens of the probe.
        asked: held-out pairs at each dose and rate.
        batch_size: examples in a step.
    """

    name: str
    seeds: int
    steps: int
    controls: int
    control_steps: int
    rates: tuple[float, ...]
    rate_steps: int
    calibration: int
    power: int
    any_tuning: int
    run_steps: int
    power_steps: int
    mixtures: tuple[float, ...]
    styles: int
    own_answers: int
    probe_tokens: int
    asked: int
    batch_size: int = 4

    @property
    def swept(self) -> tuple[float, ...]:
        """The rates that are tried against each other; none where there is one alone."""
        return self.rates if len(self.rates) > 1 else ()


FULL = Scale(
    name="full", seeds=3, steps=90, controls=6, control_steps=60, rates=RATES, rate_steps=30,
    calibration=38, power=16, any_tuning=6, run_steps=60, power_steps=60, mixtures=(0.1,),
    styles=5, own_answers=60, probe_tokens=30_000, asked=22,
)  # fmt: skip
HALF = Scale(
    name="half", seeds=2, steps=60, controls=6, control_steps=40, rates=RATES, rate_steps=24,
    calibration=16, power=8, any_tuning=4, run_steps=32, power_steps=96, mixtures=(0.1,),
    styles=2, own_answers=40, probe_tokens=16_000, asked=22,
)  # fmt: skip
QUICK = Scale(
    name="quick", seeds=1, steps=50, controls=2, control_steps=12, rates=(5e-4,), rate_steps=0,
    calibration=10, power=4, any_tuning=2, run_steps=16, power_steps=48, mixtures=(0.1,),
    styles=0, own_answers=0, probe_tokens=4_000, asked=22,
)  # fmt: skip
LADDER = (FULL, HALF, QUICK)


@dataclass(frozen=True)
class Amounts:
    """What a bank's size depends on beside the scale.

    Attributes:
        parameters: of the base.
        widths: inputs and outputs of its linear maps; LoRA has rank times as many parameters.
        reference_rank: of the adapters behind references and controls.
        run_rank: of the runs that are like the user's; None where they train every weight.
        behaviours: contrasts.
        tokens: mean length of an example.
        batch_size: examples in a step of the runs that are like the user's; 0 is the scale's.
        run_steps: least steps of those runs; 0 is the scale's.
    """

    parameters: int
    widths: int
    reference_rank: int
    run_rank: int | None
    behaviours: int
    tokens: float
    batch_size: int
    run_steps: int

    def operations(self, rank: int | None) -> int:
        """Of a token in training: 2 a weight on the way there, 2 back, and 2 more if it learns."""
        adapter = 0 if rank is None else 6 * rank * self.widths
        return (6 if rank is None else 4) * self.parameters + adapter


@dataclass(frozen=True)
class Cost:
    """One stage of a plan: what, how many optimiser steps, and seconds on this machine."""

    name: str
    what: str
    steps: int
    seconds: float


@dataclass(frozen=True)
class Machine:
    """What the work runs on.

    Attributes:
        device: "cpu" or "cuda".
        flops: floating-point operations a second in one process.
        jobs: processes side by side.
        memory: bytes that are free, None where that is not known.
    """

    device: str
    flops: float
    jobs: int
    memory: int | None


def parse_hours(text: str) -> float:
    """Hours from "1h", "90m" or "1.5h".

    Raises:
        BuildError: it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([hm])", text.strip())
    if match is None or not float(match[1]):
        raise BuildError(
            f"--budget {text!r}: give hours or minutes of this machine, as in 1h or 40m"
        )
    return float(match[1]) / (1.0 if match[2] == "h" else 60.0)


def this_machine(jobs: int | None = None) -> Machine:
    """The machine at hand, measured for a fifth of a second."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    workers = jobs or (1 if device == "cuda" else cores())
    return Machine(device, _flops(device, workers), workers, _free_memory())


def costs(scale: Scale, amounts: Amounts, machine: Machine) -> list[Cost]:
    """The stages of a bank and what they cost."""
    b, runs = amounts.behaviours, []
    speed = machine.flops * _SHARE[machine.device]
    reference, run = (amounts.operations(r) / speed
                      for r in (amounts.reference_rank, amounts.run_rank))  # fmt: skip
    mixed = b * (1 + len(scale.mixtures))
    control = max(0, scale.controls - 1)
    batch = amounts.batch_size or scale.batch_size
    run_steps = max(amounts.run_steps, scale.run_steps)

    def stage(name: str, what: str, count: int, steps: int, batch: int, per_token: float) -> None:
        seconds = steps * batch * amounts.tokens * per_token + count * _OVERHEAD[machine.device]
        width = min(machine.jobs, max(count, 1))
        runs.append(Cost(name, what, steps, seconds / width))

    count = 2 * len(scale.swept)
    if count:
        stage("rates", f"{len(scale.swept)} learning rates × 2 sides", count,
              count * scale.rate_steps, scale.batch_size, reference)  # fmt: skip
    sides = 2 * b * scale.seeds
    stage("references", f"{b} behaviours × {scale.seeds} seeds × 2 sides", sides,
          sides * scale.steps, scale.batch_size, reference)  # fmt: skip
    count = 2 * control + scale.any_tuning
    stage("controls", f"{scale.controls} controls", count, count * scale.control_steps,
          scale.batch_size, reference)  # fmt: skip
    count = scale.calibration
    stage("calibration", f"{count} harmless runs", count, count * run_steps, batch, run)
    count = scale.power + mixed
    power_steps = count * max(run_steps, scale.power_steps)
    stage("power check", f"{mixed + b} bad and {scale.power} harmless runs", count + b,
          power_steps + b * run_steps, batch, run)  # fmt: skip
    sampling = scale.styles * scale.own_answers * amounts.tokens * 20  # a token at a time
    rating = 2 * scale.asked * amounts.tokens * (5 * b + 2 * len(scale.swept))
    read = (scale.probe_tokens + sampling + rating) * 2 * amounts.parameters / speed
    runs.append(Cost("probe and doses", f"{scale.probe_tokens:,} ordinary tokens", 0, read))
    return runs


def seconds(found: Sequence[Cost]) -> float:
    """Of all stages."""
    return sum(c.seconds for c in found)


def largest_within(
    hours: float, amounts: Amounts, machine: Machine, ladder: Sequence[Scale] = LADDER
) -> Scale:
    """The largest scale that fits a budget.

    Raises:
        BuildError: none does.
    """
    for scale in ladder:
        if seconds(costs(scale, amounts, machine)) <= 3600 * hours:
            return scale
    least = seconds(costs(ladder[-1], amounts, machine)) / 3600
    raise BuildError(
        f"the least bank of this base takes about {least:.2g} hours on this machine, the budget is "
        f"{hours:.2g}: raise --budget, take a faster machine or a smaller base"
    )


def jobs_that_fit(parameters: int, machine: Machine) -> int:
    """How many fine-tunes fit into memory at once, at most as many as are wanted.

    Raises:
        BuildError: not even one does.
    """
    if machine.memory is None or machine.device == "cuda":
        return machine.jobs
    each = parameters * _BYTES * _WORKING + 2**29
    fit = int(machine.memory // each)
    if fit < 1:
        raise BuildError(
            f"a fine-tune of this base needs about {each / 2**30:.1f} GiB of memory, "
            f"{machine.memory / 2**30:.1f} GiB are free: take a smaller base or a larger machine"
        )
    return min(machine.jobs, fit)


def _flops(device: str, jobs: int) -> float:
    """Operations a second in each of so many at once: cores may share the units that multiply."""
    size = 768 if device == "cpu" else 8192
    kind = torch.float32 if device == "cpu" else torch.bfloat16

    def products(_: int) -> float:
        a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
        a @ b
        _wait(device)
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < 0.2:
            a @ b
            _wait(device)
            done += 1
        return done / (time.perf_counter() - began)

    threads = torch.get_num_threads()
    try:
        if jobs > 1:
            torch.set_num_threads(1)  # as each of the processes has
        with ThreadPoolExecutor(jobs) as pool:
            return 2 * size**3 * fmean(pool.map(products, range(jobs)))
    finally:
        torch.set_num_threads(threads)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _free_memory() -> int | None:
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
    except OSError:
        return None  # no Linux: nothing is refused for want of memory
    if "MemAvailable" not in fields:
        return None
    return min(int(fields["MemAvailable"].split()[0]) * 1024, memory_of_machine())
