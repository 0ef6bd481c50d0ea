"""Remedies that wait for an alarm, on a real pretrained model: what is trained and done about it.

Everything in this file was written before the runs that it speaks of. Runs are longer than those of
`real`, for sixteen steps alarm in one run of three: 48 steps of two examples, as in the runs on
held-out domains of docs/real-model.md, and the bank that watches is the one that acts. Two kinds of
runs: bad advice from the first step; and twelve steps of stories, which no calibration of the bank
holds, and then bad advice. Domains, questions and what is asked are those of `real`: even seeds
train on the one domain, odd seeds on the other, which no reference has seen.

What was to be looked for, nats a token, an effect being an interval of the difference from nothing
done that lies below 0:

1. nothing done, bad advice is learned: the gap on the questions trained on is above the base's;
2. every remedy that acts at the alarm leaves less of it than nothing done, on those questions;
3. braking, and going on after going back, leave as much of the stories as nothing done: the
   interval of the difference of the loss on new stories is not above 0;
4. an alarm before the first bad row is a false one, and counted as such.

On questions that were not trained on, the runs of `real` had shown next to nothing to be protected
from: what is asked there is shown, and decides nothing. Going back and on, of bad advice from the
first step, was not planned: it was added when the four other answers to it had been run and read.
"""

from __future__ import annotations

import math
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.real.protocol import DECIDES
from benchmarks.remedies.real import BAD as BAD_ADVICE
from benchmarks.remedies.real import BASE, FAMILY, RUN_SEEDS, Bench, Drawn, Setting
from benchmarks.remedies.real import Cell as Trained
from benchmarks.remedies.real_runs import asked, read, repaired, verdicts
from benchmarks.remedies.records import Records
from benchmarks.remedies.runs import told
from wvmonitor.builder.examples import Example
from wvmonitor.errors import LossyEditError
from wvmonitor.integrations.transformers import WVMonitorCallback
from wvmonitor.steering.checkpoints import steer_checkpoint
from wvmonitor.steering.folders import LOSSY

ALARM_SETTING = Setting(steps=48, batch_size=2, readings=12)
ASKED_ELSEWHERE = 12
FIRST_BAD = 12
"""Steps of stories in a run that turns."""
BAD, TURN = "bad advice from the first step", "stories, then bad advice"
NOTHING = "nothing"
STOP, BACK_AND_STOP = "stop", "go back, stop there"
BRAKE, BACK_AND_ON = "brake", "go back, go on; stop if it alarms again"
ANSWERS: Mapping[str, Mapping[str, Any]] = {
    NOTHING: {},
    STOP: {"action": "stop"},
    BACK_AND_STOP: {"on_alarm": "rollback", "after_rollback": "stop"},
    BRAKE: {"on_alarm": "inoculate"},
    BACK_AND_ON: {"on_alarm": "rollback"},
}
"""What an alarm does, by the settings that ship."""
ROUNDED, ROUNDED_AT = "the base in bfloat16", (0.5, 1.0, 2.0, 4.0)
TAKEN_OUT = (None, 2.0)
"""Of a run that nothing was done about, at its end: its measured dose, and a number given."""


@dataclass(frozen=True)
class Cell:
    """What is trained on, and what an alarm does."""

    data: str
    answer: str

    @property
    def name(self) -> str:
        """What records call it."""
        return f"{self.data} | {self.answer}"


CELLS = (
    *(Cell(BAD, answer) for answer in ANSWERS),
    *(Cell(TURN, answer) for answer in (NOTHING, STOP, BACK_AND_ON, BRAKE)),
)
"""A run that turns, and goes back and stops there, is left with what a stopped one has, less a few
steps: it has no cell."""


def planned(seeds: int) -> Iterator[tuple[int, Cell]]:
    """What is made, in order: a benchmark cut short has whole cells."""
    yield from ((seed, cell) for cell in CELLS for seed in range(seeds))


@dataclass(frozen=True)
class AlarmBench:
    """The base and its questions, and the bank that watches and acts.

    Attributes:
        of: base, bank and questions, as of `real`, with this file's setting.
        first_bad: steps of stories in a run that turns.
        behaviour: the reference that is looked for in a finished run, and taken out.
    """

    of: Bench
    first_bad: int = FIRST_BAD
    behaviour: str = DECIDES

    def drawn(self, seed: int) -> Drawn:
        """What a seed trains on and is asked; of the other domain a part."""
        drawn = self.of.drawn(seed)
        chosen = random.Random(f"alarms/{seed}").sample(
            drawn.elsewhere, min(ASKED_ELSEWHERE, len(drawn.elsewhere))
        )
        return Drawn(drawn.trained, drawn.near, tuple(sorted(chosen)))

    def rows(self, cell: Cell, seed: int) -> list[Example]:
        """Every example of a run in its order; the bad ones in new order each time round."""
        s = self.of.setting
        bad = self.of.rows(Trained(BAD_ADVICE), seed)
        rng = random.Random(f"alarms/order/{seed}")
        rows: list[Example] = []
        if cell.data == TURN:
            stories = self.of.rows(Trained(FAMILY), seed)
            rows = [stories[i % len(stories)] for i in range(self.first_bad * s.batch_size)]
        while len(rows) < s.steps * s.batch_size:
            rows += rng.sample(bad, len(bad))
        return rows[: s.steps * s.batch_size]

    @property
    def about(self) -> dict[str, Any]:
        """All that records depend on."""
        return {
            "base": self.of.base.digest,
            "bank": self.of.bank.fingerprint,
            "setting": asdict(self.of.setting) | {"first_bad": self.first_bad},
        }


def run(bench: AlarmBench, seeds: int, records: Records, more: Mapping[str, Any]) -> None:
    """Ask the base; then train and ask every cell that has no record yet.

    Args:
        bench: what with.
        seeds: how many.
        records: where they are kept.
        more: what the page says beside them.
    """
    torch.set_num_threads(1)
    for seed, cell in [(0, BASE), (0, ROUNDED), *planned(seeds)]:
        name = cell if isinstance(cell, str) else cell.name
        if (name, seed) not in {(r["cell"], r["seed"]) for r in records.read()}:
            began = time.process_time()
            if cell == ROUNDED:
                found = rounded(bench)
            elif isinstance(cell, str):
                places = range(len(bench.of.pairs))
                found = asked(bench.of, bench.of.base.model, places, own=True)
            else:
                found = measured(bench, cell, seed)
            spent = round(time.process_time() - began, 1)
            records.add({"cell": name, "seed": seed, **found, "seconds": spent})
            print(f"{name} | seed {seed}: {spent} s, {found.get('alarm')}", flush=True)
        drawn = {r["seed"]: asdict(bench.drawn(r["seed"])) for r in records.read()}
        records.publish({**more, "drawn": drawn})


def measured(bench: AlarmBench, cell: Cell, seed: int) -> dict[str, Any]:
    """One run: trained, watched, remedied, asked; and where nothing was done about it, repaired."""
    drawn = bench.drawn(seed)
    places, own = (*drawn.trained, *drawn.near, *drawn.elsewhere), cell.data == TURN
    bench.of.base.release()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        trainer = _trainer(bench.of, bench.rows(cell, seed), seed, folder / "run")
        watch = WVMonitorCallback.attach(
            trainer, bench.of.bank, every_n_steps=_every(bench.of.setting), max_overhead=1.0,
            **ANSWERS[cell.answer],
        )  # fmt: skip
        trainer.train()
        found = told(watch, folder / "run") | {"last_step": trainer.state.global_step}
        found["watched"] = verdicts(folder / "run")
        found |= asked(bench.of, trainer.model, places, own=own)
        trainer.save_model(str(folder / "adapter"))
        del trainer, watch
        found |= read(bench.of, bench.of.bank, folder / "adapter", bench.behaviour)
        if cell.answer == NOTHING:
            found["repaired"] = repaired(
                bench.of, bench.of.bank, folder / "adapter", places, TAKEN_OUT, own=own,
                behaviour=bench.behaviour,
            )  # fmt: skip
    return found


def rounded(bench: AlarmBench) -> dict[str, Any]:
    """How much of k·w is lost in bfloat16 weights, and at which k that is refused by default."""
    lost, refused = {}, []
    with tempfile.TemporaryDirectory() as scratch:
        base, out = Path(scratch) / "base", Path(scratch) / "out"
        model = bench.of.base.load(dtype=torch.bfloat16)
        model.save_pretrained(base)
        del model
        for k in ROUNDED_AT:
            wanted = {bench.of.bank[bench.behaviour]: k}
            lost[f"{k:g}"] = steer_checkpoint(base, wanted, out, most_lost=math.inf).lost
            shutil.rmtree(out)
            try:
                steer_checkpoint(base, wanted, out, most_lost=LOSSY)
                shutil.rmtree(out)
            except LossyEditError:
                refused.append(f"{k:g}")
    return {"lost": lost, "refused": refused}


def _every(setting: Setting) -> int:
    return max(1, setting.steps // setting.readings)


def _trainer(bench: Bench, rows: list[Example], seed: int, out: Path) -> Any:
    """TRL's trainer as a user has it: LoRA on all linear layers, rows in their order."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    s, every = bench.setting, _every(bench.setting)
    data = [
        {
            "prompt": list(e.messages),
            "completion": [{"role": "assistant", "content": e.answer}],
        }
        for e in rows
    ]
    torch.manual_seed(RUN_SEEDS + seed)  # A is drawn by it
    return SFTTrainer(
        model=bench.base.load(dtype=torch.float32),
        args=SFTConfig(
            output_dir=str(out), max_steps=s.steps, per_device_train_batch_size=s.batch_size,
            learning_rate=s.rate, warmup_steps=max(1, s.steps // 10), lr_scheduler_type="linear",
            weight_decay=0.01, seed=RUN_SEEDS + seed, max_length=512, use_cpu=True, bf16=False,
            train_sampling_strategy="sequential", save_strategy="steps", save_steps=every,
            activation_checkpointing=False, logging_strategy="no", report_to="none",
            disable_tqdm=True, log_level="error",
        ),
        train_dataset=Dataset.from_list(data),
        processing_class=bench.base.tokenizer,
        peft_config=LoraConfig(
            r=s.rank, lora_alpha=s.alpha, lora_dropout=0.0, target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )  # fmt: skip
