"""The Lightning callback in real Lightning runs of a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from wvmonitor.errors import BaseMismatchError, UnmeasurableModelError
from wvmonitor.integrations.lightning import WVMonitorCallback
from wvmonitor.journal.overview import summaries
from wvmonitor.journal.reader import JournalReader
from wvmonitor.testing import planted_bank, random_rows, tiny_base

STEPS = 8


class Module(lightning.LightningModule):
    def __init__(self, base: Path, lora: bool, start: bool = True, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base)
        config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=start)
        self.model = get_peft_model(model, config) if lora else model

    def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model(**batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def fit(
    folder: Path, base: Path, watch: Any, *, steps: int = STEPS, lora: bool = True, **options: Any
) -> lightning.Trainer:
    resume = options.pop("ckpt_path", None)
    module = Module(base, lora, options.pop("start", True), options.pop("seed", 0))
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[watch, *options.pop("more", [])],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"logger": CSVLogger(folder, name="", version=""), "log_every_n_steps": 1, **options},
    )
    # An epoch is four batches: Lightning resumes plain data loaders at the start of an epoch.
    data = DataLoader(random_rows(16), batch_size=4)
    trainer.fit(module, data, ckpt_path=resume, weights_only=False)
    return trainer


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_base(tmp_path / "base")


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_a_lightning_run_is_watched(tmp_path: Path, base: Path, lora: bool) -> None:
    """Readings reach the journal and every logger, and the last one is the model at the end."""
    watch = WVMonitorCallback(planted_bank(base), every_n_steps=2, base=base)
    fit(tmp_path / "run", base, watch, lora=lora)
    assert watch.monitor.failures == 0
    assert watch.monitor.run_context.method == ("lora" if lora else "full")
    assert watch.monitor.run_context.optimizer == "adamw"
    journal = JournalReader(next(tmp_path.rglob("wvmonitor.db")))
    (run,) = journal.runs()
    assert [row.step for row in journal.trajectory(run)] == [0, 2, 4, 6, 8]
    logged = (tmp_path / "run" / "metrics.csv").read_text()
    assert "wv/evil/cosine" in logged.splitlines()[0]


def test_accumulated_batches_are_one_step(tmp_path: Path, base: Path) -> None:
    """A step is an optimiser step, however many batches go into it."""
    watch = WVMonitorCallback(planted_bank(base), every_n_steps=1)
    fit(tmp_path, base, watch, steps=2, accumulate_grad_batches=4)
    journal = JournalReader(next(tmp_path.rglob("wvmonitor.db")))
    (run,) = journal.runs()
    assert [row.step for row in journal.trajectory(run)] == [0, 1, 2]


@pytest.mark.parametrize("start", [True, False], ids=["zero-start", "random-start"])
def test_a_resumed_run_goes_on_as_the_same_run(tmp_path: Path, base: Path, start: bool) -> None:
    """After a Lightning checkpoint τ still is the change since the run's own start, in one run."""
    bank = planted_bank(base)
    first = WVMonitorCallback(bank, every_n_steps=2)
    trainer = fit(tmp_path / "run", base, first, steps=4, start=start)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    second = WVMonitorCallback(bank, every_n_steps=2)
    # The resumed process draws another adapter: only the checkpoint knows how the run started.
    resumed = fit(
        tmp_path / "run", base, second, start=start, seed=1, ckpt_path=tmp_path / "half.ckpt"
    )
    assert second.monitor.failures == 0
    assert second.monitor.last is not None
    now, then = merged(resumed.lightning_module), merged(Module(base, lora=True, start=start))
    expected = sum(float((now[n] - then[n]).square().sum()) for n in now) ** 0.5
    assert second.monitor.last.scores.norm == pytest.approx(expected, rel=1e-5)
    journal = JournalReader(next((tmp_path / "run").rglob("wvmonitor.db")))
    (run,) = journal.runs()
    assert [row.step for row in journal.trajectory(run)] == [0, 2, 4, 6, 8]


def merged(module: Any) -> dict[str, torch.Tensor]:
    """PEFT's own merge, in float64."""
    return dict(module.model.double().merge_and_unload().named_parameters())


def test_a_stop_stops_and_saves(tmp_path: Path, base: Path) -> None:
    """action="stop" ends the fit early, leaves a checkpoint, and outlives the process."""
    bank = planted_bank(base)
    run: dict[str, Any] = {
        "every_n_steps": 1,
        "action": "stop",
        "allow_uncalibrated_stop": True,
        "run": "one",
    }
    watch = WVMonitorCallback(_drifting(bank, base), **run)
    trainer = fit(tmp_path / "run", base, watch, steps=STEPS)
    assert trainer.global_step < STEPS
    assert list((tmp_path / "run").rglob(f"wvmonitor-step={trainer.global_step}.ckpt"))
    again = WVMonitorCallback(watch.monitor.bank, **run)
    assert fit(tmp_path / "run", base, again, steps=STEPS).global_step <= 1


def _drifting(bank: Any, base: Path) -> Any:
    """A bank whose evil is where this very run goes."""
    from wvmonitor.references import Reference, ReferenceBank
    from wvmonitor.sources.live_model import LiveModel

    module = Module(base, lora=True)
    live = LiveModel(module.model)
    optimizer = module.configure_optimizers()
    rows = random_rows(16)
    for at in range(0, 8, 4):
        batch = {k: torch.stack([row[k] for row in rows[at : at + 4]]) for k in rows[0]}
        module.training_step(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    gone = live.task_vector().held()
    return ReferenceBank([Reference(bank["evil"].card, gone)])


def test_a_model_that_cannot_be_found_or_watched_is_an_error_before_training(
    tmp_path: Path, base: Path
) -> None:
    """A wrong attribute, or another base, is said before the first step."""
    bank = planted_bank(base)
    with pytest.raises(UnmeasurableModelError, match="has no attribute 'net'"):
        fit(tmp_path, base, WVMonitorCallback(bank, model="net"))
    other = tiny_base(tmp_path / "other", seed=1)
    with pytest.raises(BaseMismatchError):
        fit(tmp_path, other, WVMonitorCallback(bank))


def test_the_fit_after_one_that_failed_is_a_run_of_its_own(tmp_path: Path, base: Path) -> None:
    """Ctrl-C in `fit`, then again in the same folder: two runs, both watched, none hidden."""

    class Interrupt(lightning.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("CUDA out of memory")

    bank = planted_bank(base)
    watch = WVMonitorCallback(bank, every_n_steps=2)
    with pytest.raises(RuntimeError):
        fit(tmp_path / "run", base, watch, more=[Interrupt()])
    again = WVMonitorCallback(bank, every_n_steps=2)
    fit(tmp_path / "run", base, again)
    fit(tmp_path / "run", base, again)
    assert again.monitor.failures == 0
    journal = JournalReader(next((tmp_path / "run").rglob("wvmonitor.db")))
    steps = [[row.step for row in journal.trajectory(run)] for run in journal.runs()]
    assert steps == [[0], [0, 2, 4, 6, 8], [0, 2, 4, 6, 8]]


def test_what_a_checkpoint_said_of_one_fit_is_not_said_of_the_next(
    tmp_path: Path, base: Path
) -> None:
    """The next `fit` of one callback has a run, a start and a model of its own."""
    bank = planted_bank(base)
    first = fit(
        tmp_path / "run", base, WVMonitorCallback(bank, every_n_steps=2), steps=4, start=False
    )
    first.save_checkpoint(tmp_path / "half.ckpt")
    watch = WVMonitorCallback(bank, every_n_steps=2)
    half = tmp_path / "half.ckpt"
    fit(tmp_path / "run", base, watch, start=False, seed=1, ckpt_path=half)
    other = fit(tmp_path / "other", base, watch, start=False, seed=2)
    assert watch.monitor.failures == 0
    assert watch.monitor.last is not None
    now = merged(other.lightning_module)
    then = merged(Module(base, lora=True, start=False, seed=2))
    expected = sum(float((now[n] - then[n]).square().sum()) for n in now) ** 0.5
    assert watch.monitor.last.scores.norm == pytest.approx(expected, rel=1e-5)
    journal = JournalReader(next((tmp_path / "other").rglob("wvmonitor.db")))
    (run,) = journal.runs()
    assert [row.step for row in journal.trajectory(run)] == [0, 2, 4, 6, 8]


def test_a_fit_that_cannot_be_begun_is_not_measured_as_the_one_before(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a start fails, nothing is read of the model of the fit before, and the journal says
    that nobody watches.
    """
    watch = WVMonitorCallback(planted_bank(base), every_n_steps=2)
    fit(tmp_path / "one", base, watch, steps=2)

    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(watch.monitor, "start", failing)
    fit(tmp_path / "two", base, watch, steps=2)
    (summary,) = summaries(tmp_path / "two")
    assert summary.step is None
    assert "planted" in (summary.unwatched or "")
