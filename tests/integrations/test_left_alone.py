"""The monitor leaves a Trainer's work alone, and no run that it begins goes unwatched."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import (
    AutoModelForCausalLM,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from tests.integrations.test_transformers import lora, plant_drift, trainer
from tests.live.test_monitor import dense_delta
from wvmonitor import WVMonitorCallback
from wvmonitor.errors import BaseMismatchError, JournalError
from wvmonitor.journal.overview import summaries
from wvmonitor.journal.reader import JournalReader
from wvmonitor.testing import planted_bank, random_rows


class At(TrainerCallback):
    """Does something at the end of a step, once."""

    def __init__(self, step: int, work: Callable[[], None]) -> None:
        self.step, self.work = step, work

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.step = -1
            self.work()


def out_of_memory() -> None:
    raise RuntimeError("CUDA out of memory. Tried to allocate 1 TiB")


def interrupted() -> None:
    raise KeyboardInterrupt


def runs_in(folder: Path) -> list[list[int]]:
    """The steps of each run below a folder, in the order of their journals and starts."""
    found = []
    for path in sorted(folder.rglob("wvmonitor.db")):
        reader = JournalReader(path)
        found += [[row.step for row in reader.trajectory(run)] for run in reader.runs()]
    return found


@pytest.mark.parametrize("attached", [True, False], ids=["attach", "callbacks"])
@pytest.mark.parametrize("error", [out_of_memory, interrupted])
def test_the_cell_that_is_run_again_is_watched(
    tiny_base: Path,
    tiny_bank_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    attached: bool,
    error: Callable[[], None],
) -> None:
    """After an error or Ctrl-C in `train()` the next Trainer of that folder is a run of its own,
    with its journal, its planned steps and its optimiser; nothing of the first is lost.
    """

    def cell(*callbacks: TrainerCallback, **arguments: Any) -> tuple[Trainer, WVMonitorCallback]:
        if attached:
            run = trainer(tiny_base, tmp_path, callbacks=callbacks, **arguments)
            return run, WVMonitorCallback.attach(run, tiny_bank_folder, every_n_steps=1)
        watch = WVMonitorCallback(tiny_bank_folder, every_n_steps=1)
        return trainer(tiny_base, tmp_path, callbacks=[watch, *callbacks], **arguments), watch

    first, first_watch = cell(At(3, error))
    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        first.train()
    caplog.clear()
    second, watch = cell(per_device_train_batch_size=1)
    second.train()
    assert watch.monitor.failures == first_watch.monitor.failures == 0
    assert runs_in(tmp_path) == [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6]]
    assert watch.monitor.run_context.planned_steps == 6
    assert watch.monitor.run_context.optimizer == "adamw"
    assert "warm start" not in caplog.text
    assert not any(v.state == "unknown" for v in watch.monitor.verdicts.values())


def test_a_run_without_a_journal_is_judged_all_the_same(
    tiny_base: Path,
    tiny_bank_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A journal that cannot be had costs a run neither its facts, its verdicts nor its stop."""
    from wvmonitor.live import run_journal

    def refused(*_: Any, **__: Any) -> Any:
        raise JournalError("planted")

    monkeypatch.setattr(run_journal.Journal, "open", refused)
    run = trainer(tiny_base, tmp_path, max_steps=30, save_strategy="steps", save_steps=100)
    watch = WVMonitorCallback.attach(
        run, tiny_bank_folder, every_n_steps=2, action="stop", allow_uncalibrated_stop=True
    )
    plant_drift(run, watch)
    run.train()
    assert run.state.global_step < 30
    assert watch.monitor.run_context.planned_steps == 30
    assert watch.monitor.verdicts["evil"].state == "warn"
    assert "without a journal" in caplog.text


def test_a_second_trainer_of_a_folder_has_a_journal_of_its_own(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two that train into one folder at one time, threads or processes, are both watched."""
    trained: list[WVMonitorCallback] = []

    def another() -> None:
        inner = trainer(tiny_base, tmp_path)
        trained.append(WVMonitorCallback.attach(inner, tiny_bank_folder, every_n_steps=3))
        inner.train()

    def beside() -> None:
        thread = threading.Thread(target=another)
        thread.start()
        thread.join(60)

    run = trainer(tiny_base, tmp_path, callbacks=[At(2, beside)])
    watch = WVMonitorCallback.attach(run, tiny_bank_folder, every_n_steps=2)
    run.train()
    assert watch.monitor.failures == trained[0].monitor.failures == 0
    assert runs_in(tmp_path) == [[0, 3, 6], [0, 2, 4, 6]]
    assert (tmp_path / "wvmonitor-2" / "wvmonitor.db").is_file()
    assert "wvmonitor-2" in caplog.text


def test_two_monitors_of_one_trainer_both_keep_their_readings(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """A second bank on the same run takes nothing from the first."""
    run = trainer(tiny_base, tmp_path)
    banks = tiny_bank_folder, planted_bank(tiny_base, ("spite",))
    watched = [WVMonitorCallback.attach(run, bank, every_n_steps=3) for bank in banks]
    run.train()
    assert [w.monitor.failures for w in watched] == [0, 0]
    assert sorted(steps for run in runs_in(tmp_path) for steps in run) == [0, 0, 3, 3, 6, 6]


def search(base: Path, bank: Path | None, out: Path, **settings: Any) -> tuple[Any, Any]:
    """Three trials of the learning rate, as `hyperparameter_search` makes them by default."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def metrics(_: Any) -> dict[str, float]:
        return {"accuracy": float(torch.rand(1, generator=torch.Generator().manual_seed(0)))}

    rates = [1e-5, 3e-3, 1e-3]
    arguments = {"output_dir": str(out), "max_steps": 6, "report_to": "none", "use_cpu": True}
    run = Trainer(
        model_init=lambda: lora(base),
        args=TrainingArguments(
            **arguments,
            per_device_train_batch_size=2,
            logging_steps=4,
            eval_strategy="steps",
            eval_steps=3,
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=random_rows(16),
        eval_dataset=random_rows(4, seed=1),
        compute_metrics=metrics,
    )
    watch = (
        WVMonitorCallback.attach(run, bank, every_n_steps=1, all_scores=True, **settings)
        if bank
        else None
    )
    best = run.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("lr", rates)},
        n_trials=3,
        direction="maximize",
        backend="optuna",
        sampler=optuna.samplers.GridSampler({"lr": rates}, seed=0),
    )
    return best, watch


def test_a_search_picks_the_same_trial_with_and_without_the_monitor(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """The default objective sums up what `evaluate` returns: nothing of ours is in it."""
    plain, _ = search(tiny_base, None, tmp_path / "plain")
    best, watch = search(tiny_base, tiny_bank_folder, tmp_path / "watched")
    assert (best.objective, best.hyperparameters) == (plain.objective, plain.hyperparameters)
    assert watch.monitor.failures == 0
    found = list(summaries(tmp_path / "watched"))
    assert len(found) == 3, "each trial is a run"
    assert [s.step for s in found] == [6, 6, 6]


@pytest.mark.parametrize("attached", [True, False], ids=["attach", "callbacks"])
def test_nothing_of_ours_is_in_what_train_and_evaluate_return(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path, attached: bool
) -> None:
    """Scores are in rows that hold the training loss, or in rows of their own; in no others."""
    watch = WVMonitorCallback(tiny_bank_folder, every_n_steps=1, all_scores=True)
    arguments: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2, "logging_steps": 4}
    run = trainer(tiny_base, tmp_path, callbacks=[] if attached else [watch], **arguments)
    if attached:
        watch.attach_to(run)
    returned = [run.train().metrics, run.evaluate(), run.predict(random_rows(4)).metrics]
    assert not [key for metrics in returned for key in metrics if key.startswith("wv/")]
    for row in run.state.log_history:
        ours = any(key.startswith("wv/") for key in row)
        others = {key for key in row if not key.startswith("wv/")} - {"epoch", "step"}
        assert not ours or not others or "loss" in row, row
    assert "train_runtime" in [r for r in run.state.log_history if "eval_loss" not in r][-1]


def scalars(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(next(p.parent for p in folder.rglob("events.out.tfevents*"))))
    events.Reload()
    return events


def test_a_changed_verdict_is_in_the_tracker_at_once(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """With the Trainer's default of 500 steps between two rows, the first alarm has a row of its
    step, under the tag that a panel asks for; and each value's own step is beside it.
    """
    run = trainer(tiny_base, tmp_path, report_to="tensorboard", logging_steps=500, max_steps=12)
    watch = WVMonitorCallback.attach(run, tiny_bank_folder, every_n_steps=2)
    plant_drift(run, watch)
    run.train()
    verdicts = {e.step: e.value for e in scalars(tmp_path).Scalars("train/wv/evil/verdict")}
    assert verdicts == {2: 0, 4: 1, 12: 1}, "ok, then a warning; and the last reading"
    own = {e.step: e.value for e in scalars(tmp_path).Scalars("train/wv/step")}
    assert own == {2: 2, 4: 4, 12: 12}


def test_what_joins_a_later_row_says_which_step_it_is_of(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """Off the grid of readings, a row of step 10 holds the values of step 8, and says so."""
    run = trainer(tiny_base, tmp_path, logging_steps=5, max_steps=12)
    WVMonitorCallback.attach(run, tiny_bank_folder, every_n_steps=4)
    run.train()
    rows = [(r["step"], r["wv/step"]) for r in run.state.log_history if "wv/step" in r]
    assert rows == [(4, 4), (10, 8), (12, 12)]


@pytest.mark.parametrize("logging_steps", [500, 5], ids=["no-row", "row-written"])
def test_a_run_stopped_off_the_grid_logs_its_last_reading(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path, logging_steps: int
) -> None:
    """However a run ends, its last weights are read and logged, whether a row was due or not."""
    run = trainer(tiny_base, tmp_path, logging_steps=logging_steps, max_steps=12)
    WVMonitorCallback.attach(run, tiny_bank_folder, every_n_steps=4)

    def stop() -> None:
        run.control.should_training_stop = True

    run.add_callback(At(5, stop))
    run.train()
    assert runs_in(tmp_path) == [[0, 4, 5]]
    assert [r["wv/step"] for r in run.state.log_history if "wv/step" in r][-1] == 5
    assert [r["step"] for r in run.state.log_history if "loss" in r][-1] == 5


def norms(folder: Path) -> dict[int, float]:
    reader = JournalReader(folder)
    (run,) = reader.runs()
    return {row.step: row.scores.norm for row in reader.trajectory(run)}


def test_the_last_reading_is_of_the_last_weights_and_the_best_model_has_its_own(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """Early stopping off the grid, the best model loaded: each reading is of the step it names."""
    delta: dict[int, float] = {}

    class Oracle(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            moved = dense_delta(kwargs["model"], tiny_base).values()
            delta[state.global_step] = sum(float((d**2).sum()) for d in moved) ** 0.5

    run = trainer(
        tiny_base,
        tmp_path,
        callbacks=[Oracle(), EarlyStoppingCallback(early_stopping_patience=1)],
        max_steps=12,
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="steps",
        save_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the worst, so that it is not the last
        learning_rate=3e-2,
    )
    watch = WVMonitorCallback.attach(run, tiny_bank_folder, every_n_steps=4)
    run.train()
    assert run.state.global_step < 12
    best = run.state.best_global_step
    assert best is not None
    assert best < run.state.global_step
    found = norms(tmp_path)
    assert list(found) == [0, 4, run.state.global_step]
    for step, norm in list(found.items())[1:]:
        assert norm == pytest.approx(delta[step], rel=1e-5)
    loaded = watch.monitor.loaded
    assert loaded is not None
    assert loaded.scores.step == best
    assert loaded.scores.norm == pytest.approx(delta[best], rel=1e-5)
    assert watch.monitor.last is not None
    assert watch.monitor.last.scores.step == run.state.global_step
    (row,) = [r for r in run.state.log_history if "wv/loaded/step" in r]
    assert row["wv/loaded/step"] == best
    assert "wv/step" not in row
    (event,) = [e for e in JournalReader(tmp_path).events() if e.kind == "loaded"]
    assert f"step {best}" in event.detail


def test_a_stopped_trial_stops_no_other(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """One name for three trials: three lines, and a stop holds for the trial that earned it."""
    model = lora(tiny_base)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    run = trainer(tiny_base, tmp_path, model=model, max_steps=20)
    watch = WVMonitorCallback.attach(
        run,
        tiny_bank_folder,
        run="sweep",
        every_n_steps=2,
        action="stop",
        allow_uncalibrated_stop=True,
    )
    plant_drift(run, watch)
    run.train()
    assert run.state.global_step < 20
    run.callback_handler.callbacks.pop()  # the next trials drift no more
    for _ in range(2):
        model.load_state_dict(start, strict=False)
        run.train()
        assert run.state.global_step == 20
    found = list(summaries(tmp_path))
    assert [s.run for s in found] == ["sweep", "sweep-2", "sweep-3"]
    assert [s.verdict for s in found] == ["warn", "ok", "ok"]
    assert [bool(s.stopped) for s in found] == [True, False, False]


def test_a_name_that_is_used_again_hides_nothing(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """`run="name"` twice from the beginning is two runs; resumed, it is the one it resumes."""
    arguments: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    for steps in (6, 3):
        run = trainer(tiny_base, tmp_path, max_steps=steps, **arguments)
        WVMonitorCallback.attach(run, tiny_bank_folder, run="mine", every_n_steps=1)
        run.train()
    run = trainer(tiny_base, tmp_path, max_steps=5, **arguments)
    WVMonitorCallback.attach(run, tiny_bank_folder, run="mine", every_n_steps=1)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    found = list(summaries(tmp_path))
    assert [(s.run, s.step, s.attempts) for s in found] == [("mine", 6, 1), ("mine-2", 5, 2)]


@pytest.mark.parametrize("links", [True, False], ids=["links", "no-links"])
def test_the_checkpoints_of_an_alarm_survive_a_limit(
    tiny_base: Path,
    tiny_bank_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    links: bool,
) -> None:
    """With `save_total_limit=1` the alarm's checkpoint and the last ok one are there at the end."""

    def refused(*_: Any) -> None:
        raise OSError("no hard links here")

    if not links:
        monkeypatch.setattr("os.link", refused)
    run = trainer(
        tiny_base, tmp_path, max_steps=12, save_strategy="steps", save_steps=3, save_total_limit=1
    )
    watch = WVMonitorCallback.attach(
        run, tiny_bank_folder, every_n_steps=2, action="save", action_level="warn"
    )
    run.add_callback(At(4, lambda: plant_drift(run, watch)))
    run.train()
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-12"]
    kept = tmp_path / "wvmonitor-kept"
    assert [p.name for p in (kept / "ok").iterdir()] == ["checkpoint-6"]
    assert [p.name for p in (kept / "alarm").iterdir()] == ["checkpoint-8"]
    for folder in (kept / "ok" / "checkpoint-6", kept / "alarm" / "checkpoint-8"):
        assert (folder / "adapter_model.safetensors").is_file()
        assert (folder / "wvmonitor.json").is_file()


def random_start(base: Path, seed: int) -> Any:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(model, config)


@pytest.mark.parametrize("attached", [True, False], ids=["attach", "callbacks"])
def test_resuming_into_another_folder_finds_what_the_checkpoint_knows(
    tiny_base: Path,
    tiny_bank_folder: Path,
    tmp_path: Path,
    attached: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The run, how its adapter started and its stop go with the checkpoint, wherever it is resumed;
    where nobody says which checkpoint it is, that is no clean run.
    """
    first = trainer(
        tiny_base,
        tmp_path / "first",
        model=random_start(tiny_base, 1),
        save_strategy="steps",
        save_steps=3,
    )
    watch = WVMonitorCallback.attach(first, tiny_bank_folder, every_n_steps=1)
    begin = dense_delta(first.model, tiny_base)
    first.train()
    name = JournalReader(tmp_path / "first").runs()[0]

    # another process draws another adapter, and writes elsewhere
    again = WVMonitorCallback(tiny_bank_folder, every_n_steps=1)
    second = trainer(
        tiny_base,
        tmp_path / "second",
        model=random_start(tiny_base, 2),
        callbacks=[] if attached else [again],
    )
    if attached:
        again.attach_to(second)
    second.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-3"))
    if not attached:
        assert not again.monitor.verdicts
        assert "how its adapter started is not known" in caplog.text
        return
    end = dense_delta(second.model, tiny_base)
    expected = sum(float(((end[n] - begin[n]) ** 2).sum()) for n in end) ** 0.5
    assert again.monitor.last is not None
    assert again.monitor.last.scores.norm == pytest.approx(expected, rel=1e-5)
    assert JournalReader(tmp_path / "second").runs() == (name,)
    assert watch.monitor.failures == again.monitor.failures == 0


def test_a_stop_goes_with_the_checkpoint(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """A stopped run that is resumed into another folder stays stopped; silenced alarms, silent."""
    first = trainer(tiny_base, tmp_path / "first", save_strategy="steps", save_steps=3)
    watch = WVMonitorCallback.attach(first, tiny_bank_folder, every_n_steps=1)

    def stop() -> None:
        journal = watch.monitor.journal
        assert journal is not None
        journal.latch_stop("drifts towards evil")
        journal.note("we know", kind="ack", reference="sycophancy")

    first.add_callback(At(5, stop))
    first.train()
    second = trainer(tiny_base, tmp_path / "second")
    again = WVMonitorCallback.attach(second, tiny_bank_folder, every_n_steps=1)
    second.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-3"))
    assert second.state.global_step == 4
    assert again.monitor.last is not None
    assert again.monitor.last.acknowledged == {"sycophancy"}


def merged_sft(base: Path) -> Any:
    """A model into which a first fine-tune was merged."""
    model = lora(base)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(3))
    return model.merge_and_unload().requires_grad_(True)


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "full"])
def test_what_was_merged_before_a_run_counts(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path, adapter: bool
) -> None:
    """SFT, merged, then another run: without the original base that is an error with a way out,
    and with it both parts are measured.
    """
    sft = merged_sft(tiny_base)
    if adapter:
        sft = get_peft_model(sft, LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    run = trainer(tiny_base, tmp_path, model=sft)
    with pytest.raises(BaseMismatchError, match=r"base=FOLDER.*relatives.*wvmonitor bank"):
        WVMonitorCallback.attach(run, tiny_bank_folder, every_n_steps=3)
    watch = WVMonitorCallback.attach(run, tiny_bank_folder, base=tiny_base, every_n_steps=3)
    run.train()
    assert watch.monitor.failures == 0
    whole = dense_delta(run.model, tiny_base) if adapter else full_delta(run.model, tiny_base)
    expected = sum(float((d**2).sum()) for d in whole.values()) ** 0.5
    assert watch.monitor.last is not None
    assert watch.monitor.last.scores.norm == pytest.approx(expected, rel=1e-5)
    assert watch.monitor.run_context.method == ("lora+merged" if adapter else "full")


def full_delta(model: Any, base: Path) -> dict[str, Any]:
    """θ_t − θ_0 of every parameter in float64; tied ones once."""
    start = dict(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).named_parameters())
    return {
        n: (p.detach().double() - start[n]).detach().numpy() for n, p in model.named_parameters()
    }


@pytest.mark.parametrize(
    ("make", "family", "rate"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.02), "sgd", 0.02),
        (lambda p: PagedAdamW32bit(p, lr=0.03), "adamw", 0.03),
        (lambda p: torch.optim.Adam(p, lr=0.01), "adam", 0.01),
    ],
)
def test_the_optimiser_is_the_one_that_steps(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path, make: Any, family: str, rate: float
) -> None:
    """A hand-made or paged optimiser goes by its own family and peak rate, not by `optim`."""
    model = lora(tiny_base)
    optimizer = make([p for p in model.parameters() if p.requires_grad])
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=4)
    run = Trainer(
        model=model,
        args=TrainingArguments(
            str(tmp_path), max_steps=2, report_to="none", use_cpu=True, warmup_steps=1
        ),
        train_dataset=random_rows(8),
        optimizers=(optimizer, schedule),
    )
    watch = WVMonitorCallback.attach(run, tiny_bank_folder, every_n_steps=1)
    run.train()
    context = watch.monitor.run_context
    assert (context.optimizer, context.learning_rate) == (family, rate)


class PagedAdamW32bit(torch.optim.AdamW):
    """Named as bitsandbytes names it."""


class Unfreeze(TrainerCallback):
    """Begins with one layer, and trains the rest from a step on."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.at:
            kwargs["model"].requires_grad_(True)


def test_what_is_unfrozen_later_is_measured_from_its_start(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """Gradual unfreezing in a full fine-tune without `base=`: τ is exact before and after."""
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1" in name)
    run = trainer(tiny_base, tmp_path, model=model)
    watch = WVMonitorCallback.attach(run, tiny_bank_folder, every_n_steps=2)
    run.add_callback(Unfreeze(3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    run.optimizer = optimizer
    run.train()
    assert watch.monitor.failures == 0
    moved = full_delta(model, tiny_base)
    assert abs(moved["model.layers.0.mlp.up_proj.weight"]).max() > 0
    expected = sum(float((d**2).sum()) for d in moved.values()) ** 0.5
    assert watch.monitor.last is not None
    assert watch.monitor.last.scores.norm == pytest.approx(expected, rel=1e-5)
    assert not watch.monitor.last.reading.warnings


def test_an_adapter_that_is_added_after_attaching_is_watched(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """`trainer.model.add_adapter()` after `attach`: τ is the adapter's, not zero."""
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    run = trainer(tiny_base, tmp_path, model=model)
    watch = WVMonitorCallback.attach(run, tiny_bank_folder, every_n_steps=2)
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    run.train()
    assert watch.monitor.failures == 0
    expected = 0.0
    for module in model.modules():
        if hasattr(module, "lora_A"):
            delta = module.get_delta_weight("default").double()
            expected += float(delta.detach().square().sum())
    assert watch.monitor.last is not None
    assert watch.monitor.last.scores.norm == pytest.approx(expected**0.5, rel=1e-5)
    assert watch.monitor.last.scores.norm > 0
    assert watch.monitor.run_context.target_modules == ("q_proj", "up_proj")


def test_a_callback_can_be_pickled(tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path) -> None:
    """Ray and `spawn` copy callbacks: a copy watches as the first one does."""
    original = WVMonitorCallback(tiny_bank_folder, every_n_steps=2, run="mine")
    twin = pickle.loads(pickle.dumps(original))  # noqa: S301  our own
    run = trainer(tiny_base, tmp_path, callbacks=[twin])
    run.train()
    assert twin.monitor.settings == original.monitor.settings
    assert twin.monitor.failures == 0
    assert runs_in(tmp_path) == [[0, 2, 4, 6]]


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda trainer: pickle.loads(pickle.dumps(trainer))],  # noqa: S301  our own
    ids=["deepcopy", "pickle"],
)
def test_a_copy_of_a_trainer_trains_itself(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path, copied: Callable[[Trainer], Trainer]
) -> None:
    """A copy of a watched Trainer (Ray's trials are) trains its own model, watched by itself."""
    original = trainer(tiny_base, tmp_path)
    watch = WVMonitorCallback.attach(original, tiny_bank_folder, every_n_steps=2)
    # accelerate's own weak references, of whatever was trained in this process before
    original.accelerator.gradient_state.dataloader_references = [None]
    twin = copied(original)
    twin.train()
    assert watch.monitor.last is None
    assert not any(d.any() for d in dense_delta(original.model, tiny_base).values())
    (own,) = [c for c in twin.callback_handler.callbacks if isinstance(c, WVMonitorCallback)]
    assert own.monitor.last is not None
    expected = sum(float((d**2).sum()) for d in dense_delta(twin.model, tiny_base).values()) ** 0.5
    assert own.monitor.last.scores.norm == pytest.approx(expected, rel=1e-5)
    assert runs_in(tmp_path) == [[0, 2, 4, 6]]


def test_the_calibration_hears_what_kind_of_run_it_is(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """Objective, target modules, schedule and weight decay are known of a Trainer's run."""
    run = trainer(tiny_base, tmp_path, lr_scheduler_type="cosine", weight_decay=0.02)
    watch = WVMonitorCallback.attach(run, tiny_bank_folder, every_n_steps=3)
    run.train()
    context = watch.monitor.run_context
    assert (context.objective, context.schedule) == ("sft", "cosine")
    assert context.weight_decay == 0.02
    assert context.target_modules is not None
    assert {"q_proj", "down_proj"} <= set(context.target_modules)
