"""The least bank that the benchmark can be run with, where `wvmonitor bank` has made none yet.

One reference from the project's own pairs and one control, of any fine-tuning at all, one seed, a
small probe; no calibration, so that nothing is promised of it. `make real-quick` uses
it, and so does the test suite.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.real.protocol import DECIDES
from wvmonitor.builder import references
from wvmonitor.builder.bank_folder import replacing_bank
from wvmonitor.builder.bank_job import BankJob, BankOptions
from wvmonitor.builder.harmless import families
from wvmonitor.builder.probe import build_probe
from wvmonitor.builder.scale import QUICK, Scale
from wvmonitor.builder.stages import Ticker, Work, silent
from wvmonitor.references.bank import ReferenceBank

LEAST = replace(QUICK, controls=1, control_steps=8, any_tuning=2, probe_tokens=3_000, asked=6)


def least_bank(
    model: str,
    out: Path,
    *,
    behaviour: str = DECIDES,
    scale: Scale = LEAST,
    rate: float = LEAST.rates[0],
    jobs: int | None = 1,
    tick: Ticker = silent,
) -> ReferenceBank:
    """The bank at `out`, made if it is not there; its stages are kept in `<out>.work`.

    Args:
        model: the base.
        out: the bank's folder.
        behaviour: the contrast whose reference is made.
        scale: how much of everything.
        rate: peak learning rate of both sides.
        jobs: fine-tunes at once; None is one a core, or one on a GPU.
        tick: told of every stage's progress.
    """
    if out.is_dir():
        return ReferenceBank.load(out)
    job = BankJob(BankOptions(model, out, behaviours=(behaviour,), scale=scale, jobs=jobs))
    work = Work(out.with_name(f"{out.name}.work"))
    kept, _ = families.legible(job.base, job.families(job.contrasts))
    easy = [f for f in kept if not f.hard and not f.held_out]
    step = max(1, len(easy) // scale.any_tuning)
    behind = easy[::step][: scale.any_tuning]
    listed = references.wanted(job, job.contrasts, behind, rate)
    text = [p.negative for c in job.contrasts for p in c.train]
    text += [e for f in easy for e in f.draw(8, 7)]

    def probe() -> dict[str, object]:
        return build_probe(  # type: ignore[return-value]
            job.base, work, tick, examples=text[::2] + text[1::2], tokens=scale.probe_tokens
        )

    bank = references.make_bank(job, work, listed, probe, tick)  # type: ignore[arg-type]
    with replacing_bank(out) as new:
        bank.save(new)
    return ReferenceBank.load(out)
