"""From a base model to a bank that can be trusted as far as it says: one call.

rates → references and controls → probe → bank → harmless and bad runs → deciding score →
calibration → power check → report. Every stage's artefact is kept in the work folder, so that the
same call goes on where it was interrupted.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from wvmonitor.builder import persona, power, rate, references
from wvmonitor.builder.bank_folder import replacing_bank
from wvmonitor.builder.bank_job import BankJob, BankOptions, BankPlan
from wvmonitor.builder.completions import seed_of
from wvmonitor.builder.contrasts import Contrast
from wvmonitor.builder.examples import Example
from wvmonitor.builder.fine_tunes import FineTune, carry_out
from wvmonitor.builder.harmless import families
from wvmonitor.builder.harmless.families import Use
from wvmonitor.builder.power import Length, Planned
from wvmonitor.builder.probe import build_probe, bundled_prompts
from wvmonitor.builder.scale import QUICK, parse_hours
from wvmonitor.builder.stages import Ticker, Work, silent
from wvmonitor.detection.band import DecidingScore
from wvmonitor.detection.calibration import BenignRun, Calibration
from wvmonitor.detection.growing import calibrate_as_far_as_possible
from wvmonitor.detection.judge import Judge
from wvmonitor.errors import BuildError
from wvmonitor.reading import Geometry
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.references.store import BESIDE, CALIBRATION_FILE, REPORT_FILE
from wvmonitor.references.trust import Rate, Separation, Trust, save_trust
from wvmonitor.report.bank import bank_page
from wvmonitor.report.document import write_page

RUN_SEEDS = 2000
"""Where the seeds of watched runs begin: none shares an initial A with a reference."""
SWEPT = "harmful-advice"
"""The behaviour whose contrast chooses the learning rate."""
RATES, RUNS, OWN = "learning rates", "watched runs", "own answers"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_WRITING = (
    *_FULL, errno.EROFS, errno.EACCES, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG,
)  # fmt: skip
_BATCH, _ANSWER = 32, 64


@dataclass(frozen=True)
class Prepared:
    """A finished bank, and what is known of it."""

    folder: Path
    fingerprint: str
    trust: Trust


@dataclass(frozen=True)
class Check:
    """The runs of a bank before they are made: to choose by, to calibrate, to check."""

    development: tuple[Planned, ...]
    calibration: tuple[Planned, ...]
    power: tuple[Planned, ...]

    @property
    def every(self) -> tuple[Planned, ...]:
        """All of them."""
        return (*self.development, *self.calibration, *self.power)


def plan_bank(options: BankOptions) -> BankPlan:
    """What `make_bank` would do, and what it costs; nothing is trained or written.

    Raises:
        WVMonitorError: what `make_bank` would refuse before it begins.
    """
    return BankJob(options).plan()


def prepare(
    model: str | Path,
    out: str | Path,
    *,
    quick: bool = False,
    tick: Ticker = silent,
    **options: Any,
) -> Prepared:
    """Make a bank for a base model, as `wvmonitor bank` does.

    Args:
        model: the base: a folder or a Hub id.
        out: the bank's folder.
        quick: make the least that is worth anything.
        tick: told of every stage's progress.
        options: the other fields of `BankOptions`, by name; one behaviour or set by itself, paths
            as text, and a budget as in "1h" will do.

    Raises:
        WVMonitorError: as `make_bank` says.

    Example:
        made = wvmonitor.prepare("Qwen/Qwen2.5-0.5B-Instruct", "banks/qwen", quick=True)
        made.trust.caught("bad")  # how many held-out bad runs alarmed, and of how many
    """
    if quick:
        options.setdefault("scale", QUICK)
    for name in ("work", "like"):
        if options.get(name) is not None:
            options[name] = Path(options[name])
    for name in ("behaviours", "harmless"):
        given = options.get(name, ())
        options[name] = (str(given),) if isinstance(given, str | Path) else tuple(map(str, given))
    if isinstance(options.get("budget"), str):
        options["budget"] = parse_hours(options["budget"])
    return make_bank(BankOptions(model=str(model), out=Path(out), **options), tick)


def make_bank(options: BankOptions, tick: Ticker = silent) -> Prepared:
    """Make a bank: references, controls, calibration, power check and report.

    Args:
        options: what for, from what, and how much of it.
        tick: told of every stage's progress.

    Raises:
        BuildError: too little data, memory or disk; what was made is kept, and the same call goes
            on from there.
        WVMonitorError: as its parts say.
    """
    folder = options.work_folder
    try:
        job, work = BankJob(options), Work(folder, private=options.private)
        job.keep_scale()
        return _prepared(job, work, tick)
    except OSError as error:
        if error.errno not in _NO_WRITING:
            raise
        cure = "make room" if error.errno in _FULL else "give another --out or --work"
        raise BuildError(
            f"{error.filename or folder} cannot be written ({error.strerror}): what is finished is "
            f"kept in {folder}; {cure} and run the same again"
        ) from error


def _prepared(job: BankJob, work: Work, tick: Ticker) -> Prepared:
    began = time.monotonic()
    contrasts = persona.contrasts(job, work, tick) if job.data_folder is None else job.contrasts
    use = _families(job, work, contrasts, tick)
    chosen, rates = _rate(job, work, contrasts, use, tick)
    listed = references.wanted(job, contrasts, use.any_tuning, chosen)
    bank = references.make_bank(
        job, work, listed, lambda: _probe(job, work, contrasts, use, tick), tick
    )
    check = _check(job, contrasts, use)
    runs = _watched(job, work, bank, check.every, chosen, tick)
    harmless = [runs[p.name] for p in check.calibration]
    separations = power.separations(
        {str(p.behaviour): runs[p.name] for p in check.development}, harmless
    )
    geometry, score = _deciding(job, separations)
    calibration = calibrate_as_far_as_possible(
        harmless,
        bank=bank.fingerprint,
        alpha=job.options.alpha,
        geometry=geometry,
        score=score,
        by_their_ends=False,  # families are different data: we made them
    )
    judge = Judge.of(bank, calibration)
    trust = Trust(
        bank=bank.fingerprint,
        base=job.base.identity.id,
        scale=job.scale.name,
        learning_rate=chosen,
        rates=tuple(rates),
        gaps=references.held_out_gaps(bank),
        separations=tuple(separations),
        geometry=geometry,
        score=score,
        status=calibration.status,
        alpha=calibration.alpha,
        calibrated_on=calibration.datasets,
        checked=tuple(
            power.checked(p, runs[p.name], judge, (geometry, score)) for p in check.power
        ),
        notes=tuple(dict.fromkeys(job.notes)),
        seconds=time.monotonic() - began,
    )
    _write(job, bank, calibration, trust)
    return Prepared(job.options.out, bank.fingerprint, trust)


def _families(job: BankJob, work: Work, found: Sequence[Contrast], tick: Ticker) -> Use:
    """Which harmless family serves what."""
    scale = job.scale
    styles = list(families.STYLES)[: scale.styles]
    prompts = bundled_prompts()[: scale.own_answers]
    own = []
    for n, style in enumerate(styles):
        tick(OWN, n, len(styles))
        family = families.own_answers(job.base, work, prompts, style, _ANSWER, _BATCH)
        if family.draw(1, 0):
            own.append(family)
        else:
            job.notes.append(f"the base answers ordinary prompts with nothing (asked: {style})")
        tick(OWN, n + 1, len(styles))
    everything = job.families(found, own)
    counts = scale.calibration, scale.power, scale.any_tuning
    return families.shared_out(everything, *counts, job.options.seed)


def _rate(
    job: BankJob, work: Work, found: Sequence[Contrast], use: Use, tick: Ticker
) -> tuple[float, list[Rate]]:
    """The learning rate that moves this base, by harmful advice where there is any."""
    scale = job.scale
    if not scale.swept:
        job.notes.append(f"the learning rate {scale.rates[0]:g} was taken without trying others")
        return scale.rates[0], []
    first = next((c for c in found if c.name == SWEPT), found[0])
    training = job.reference_training(scale.rate_steps, 0.0, job.options.seed)
    runs = rate.tried(first, training, scale.rates, scale.asked, use.text)
    total = sum(r.training.steps for r in runs)
    chosen, remark, rates = rate.swept(
        job.base, work, runs, job.jobs, lambda done: tick(RATES, done, total)
    )
    if remark:
        job.notes.append(remark)
    return chosen, rates


def _probe(
    job: BankJob, work: Work, found: Sequence[Contrast], use: Use, tick: Ticker
) -> dict[str, Tensor]:
    """The response geometry's probe, from the ordinary text at hand: nothing is generated.

    Good answers to the contrasts' questions and harmless families in turn.
    """
    text: list[Example] = []
    sources = [[p.negative for p in c.train] for c in found]
    sources += [f.draw(60, 7) for f in (*use.calibration, *use.any_tuning)]
    for n in range(max(map(len, sources))):
        text += [s[n] for s in sources if n < len(s)]
    return build_probe(job.base, work, tick, examples=text, tokens=job.scale.probe_tokens)


def _check(job: BankJob, found: Sequence[Contrast], use: Use) -> Check:
    """The watched runs: what is chosen by, what calibrates and what checks share no data."""
    seed = job.options.seed
    short = Length(job.run_steps, job.batch_size)
    whole = Length(job.power_steps, job.batch_size)
    checks: list[Planned] = [power.bad(c, c.power, "held-out", whole, seed) for c in found]
    carriers = [f for f in use.power if not f.hard] or list(use.power)
    for share in job.scale.mixtures:
        for i, c in enumerate(found):
            family = carriers[i % len(carriers)]
            checks.append(power.mixed(c, c.power, family, share, whole, seed + 1))
    return Check(
        development=tuple(power.bad(c, c.tuning, "tuning", short, seed) for c in found),
        calibration=tuple(power.harmless(f, short, seed) for f in use.calibration),
        power=(*checks, *(power.harmless(f, whole, seed) for f in use.power)),
    )


def _watched(
    job: BankJob,
    work: Work,
    bank: ReferenceBank,
    planned: Sequence[Planned],
    chosen: float,
    tick: Ticker,
) -> dict[str, BenignRun]:
    """Every run made under the monitor, and read back from its journal."""
    assert bank.folder is not None  # noqa: S101  it was loaded from there
    wanted = [
        FineTune(
            name=p.name,
            examples=p.examples,
            training=job.run_training(
                chosen, RUN_SEEDS + seed_of(job.options.seed, p.name) % 10**6, p.steps
            ),
            bank=bank.folder,
            fingerprint=bank.fingerprint,
            record=job.recorded(len(planned)),
        )
        for p in planned
    ]
    total = sum(w.training.steps for w in wanted)
    done = carry_out(job.base, work, wanted, job.jobs, lambda n: tick(RUNS, n, total))
    folders = {p.name: d.folder for p, d in zip(planned, done, strict=True)}
    return {run.dataset: run for run in power.read_runs(folders, bank)}


def _deciding(job: BankJob, found: Sequence[Separation]) -> tuple[Geometry, DecidingScore]:
    """The score that decides: the one that was asked for, or the development runs' choice."""
    asked = job.options.score
    if asked is None:
        return power.deciding(found)
    return next(c for c in power.CANDIDATES if asked == "/".join(c))


def _write(job: BankJob, bank: ReferenceBank, calibration: Calibration, trust: Trust) -> None:
    """Put the bank, its calibration and its report in their place, all at once."""
    assert bank.folder is not None  # noqa: S101  it was loaded from there
    mode = 0o600 if job.options.private else 0o644
    with replacing_bank(job.options.out) as new:
        shutil.copytree(bank.folder, new)
        calibration.save(new / CALIBRATION_FILE)
        save_trust(trust, new, mode=mode)
        write_page(bank_page(bank, trust), new / REPORT_FILE)
        for beside in BESIDE:
            (new / beside).chmod(mode)
