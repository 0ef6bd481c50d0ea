"""WVMonitorCallback inside a real `Trainer`, with a real adapter."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from wvmonitor import WVMonitorCallback
from wvmonitor.errors import BaseMismatchError, MonitorFailedError, UnsupportedAdapterError
from wvmonitor.journal.reader import JournalReader
from wvmonitor.testing import random_rows
from wvmonitor.testing import tiny_base as make_base


def lora(base: Path) -> Any:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return get_peft_model(
        model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    )


def trainer(
    base: Path, out: Path, *, model: Any = None, callbacks: Any = (), **arguments: Any
) -> Trainer:
    settings = {
        "output_dir": str(out),
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **arguments,
    }
    return Trainer(
        model=lora(base) if model is None else model,
        args=TrainingArguments(**settings),
        train_dataset=random_rows(16),
        eval_dataset=random_rows(4, seed=1),
        callbacks=list(callbacks),
    )


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.state_dict().items()}


def test_scores_reach_tensorboard_and_the_loss_survives(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """Attached, the monitor's values are in TensorBoard's own rows, beside every loss."""
    run = trainer(tiny_base, tmp_path, report_to="tensorboard")
    WVMonitorCallback.attach(run, tiny_bank_folder, every_n_steps=2)
    run.train()
    folder = next(p.parent for p in tmp_path.rglob("events.out.tfevents*"))
    events = EventAccumulator(str(folder))
    events.Reload()
    scores = {e.step: e.value for e in events.Scalars("train/wv/evil/response_cosine")}
    losses = [e.step for e in events.Scalars("train/loss")]
    assert set(scores) == {2, 4, 6}
    assert losses == [2, 4, 6]
    rows = {r["step"]: r for r in run.state.log_history if "loss" in r}
    assert {s: rows[s]["wv/evil/response_cosine"] for s in scores} == pytest.approx(
        scores, rel=1e-5
    )


def test_scores_reach_trainer_state_json_as_plain_numbers(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """A saved checkpoint's `trainer_state.json` holds the scores and is valid, finite JSON."""
    run = trainer(tiny_base, tmp_path, save_strategy="steps", save_steps=4)
    WVMonitorCallback.attach(run, tiny_bank_folder, every_n_steps=2)
    run.train()
    text = (tmp_path / "checkpoint-4" / "trainer_state.json").read_text()
    assert "NaN" not in text
    rows = [r for r in json.loads(text)["log_history"] if "wv/evil/response_cosine" in r]
    assert [r["step"] for r in rows] == [2, 4]
    assert all(isinstance(v, (int, float)) for r in rows for v in r.values())
    assert "wvmonitor" not in json.dumps(json.loads(text)["stateful_callbacks"]).lower()


def test_in_the_callbacks_list_it_works_too_and_says_what_is_missing(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`callbacks=[...]` fills log_history and says once that trackers need `attach`."""
    watched = WVMonitorCallback(tiny_bank_folder, every_n_steps=2)
    run = trainer(tiny_base, tmp_path, callbacks=[watched])
    with caplog.at_level(logging.WARNING):
        run.train()
    assert sum("WVMonitorCallback.attach" in r.message for r in caplog.records) == 1
    assert [r["step"] for r in run.state.log_history if "wv/evil/response_cosine" in r] == [2, 4, 6]


def test_watching_does_not_change_the_training(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """A watched run ends with bit-identical weights."""
    plain = trainer(tiny_base, tmp_path / "a")
    plain.train()
    watched = trainer(tiny_base, tmp_path / "b")
    WVMonitorCallback.attach(watched, tiny_bank_folder, every_n_steps=1)
    watched.train()
    left, right = weights(plain.model), weights(watched.model)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[n], right[n]) for n in left)


def test_full_fine_tuning_is_measured_against_the_base_folder(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """Without an adapter, τ is the live weights minus the base's files."""
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    run = trainer(tiny_base, tmp_path, model=model)
    watched = WVMonitorCallback.attach(run, tiny_bank_folder, base=tiny_base, every_n_steps=3)
    run.train()
    last = watched.monitor.last
    assert last is not None
    start = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float64)
    begin = dict(start.named_parameters())
    square = sum(
        float((p.detach().double() - begin[n]).square().sum()) for n, p in model.named_parameters()
    )
    assert last.scores.norm == pytest.approx(square**0.5, rel=1e-5)
    assert last.scores.coverage["frobenius"] < 1


def test_a_resumed_run_continues_its_journal(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """Resuming gives the readings of the uninterrupted run, same run id, next attempt."""
    whole = trainer(tiny_base, tmp_path / "whole")
    WVMonitorCallback.attach(whole, tiny_bank_folder, every_n_steps=1)
    whole.train()
    expected = JournalReader(tmp_path / "whole").trajectory(
        JournalReader(tmp_path / "whole").runs()[0]
    )

    class Interrupt(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                raise KeyboardInterrupt

    parted = tmp_path / "parted"
    first = trainer(tiny_base, parted, save_strategy="steps", save_steps=3)
    callback = WVMonitorCallback.attach(first, tiny_bank_folder, every_n_steps=1)
    first.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        first.train()
    callback.monitor.close()
    second = trainer(tiny_base, parted, save_strategy="steps", save_steps=3)
    WVMonitorCallback.attach(second, tiny_bank_folder, every_n_steps=1)
    second.train(resume_from_checkpoint=str(parted / "checkpoint-3"))
    reader = JournalReader(parted)
    (run,) = reader.runs()
    rows = reader.trajectory(run)
    assert [r.step for r in rows] == [r.step for r in expected]
    assert [r.attempt for r in rows] == [1, 1, 1, 1, 2, 2, 2]
    for mine, theirs in zip(rows, expected, strict=True):
        assert mine.scores.norm == theirs.scores.norm
        assert (
            mine.scores.references["evil"].values == theirs.scores.references["evil"].values
            or mine.step == 0
        )


def test_an_alarm_stops_the_run_and_it_stays_stopped(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """`action="stop"` ends training, and the next start ends at once until the stop is lifted."""
    steps = []

    class Count(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            steps.append(state.global_step)

    def attempt() -> WVMonitorCallback:
        steps.clear()
        run = trainer(tiny_base, tmp_path, callbacks=[Count()], max_steps=30)
        callback = WVMonitorCallback.attach(
            run,
            tiny_bank_folder,
            run="one",
            every_n_steps=2,
            action="stop",
            allow_uncalibrated_stop=True,
        )
        plant_drift(run, callback)
        run.train()
        return callback

    attempt()
    assert steps[-1] < 30
    attempt()
    assert len(steps) == 1


def plant_drift(run: Trainer, callback: WVMonitorCallback) -> None:
    """Move the adapter along the evil reference after every step."""
    updates = dict(callback.monitor.bank["evil"].vector.updates())

    class Drift(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            model: PeftModel = kwargs["model"]
            with torch.no_grad():
                for name, module in model.named_modules():
                    target = name.removeprefix("base_model.model.") + ".weight"
                    if target in updates and hasattr(module, "lora_A"):
                        update = updates[target]
                        module.lora_A["default"].weight.copy_(update.right)
                        module.lora_B["default"].weight.copy_(update.left)

    run.add_callback(Drift())


def test_an_adapter_without_a_task_vector_is_an_error_before_training(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """Activated LoRA does what it does by its input: that is said when the callback is attached."""
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    config = LoraConfig(
        r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", alora_invocation_tokens=[1]
    )
    run = trainer(tiny_base, tmp_path, model=get_peft_model(model, config))
    with pytest.raises(UnsupportedAdapterError, match="depends on the input"):
        WVMonitorCallback.attach(run, tiny_bank_folder)


def test_a_model_of_another_base_is_an_error_before_training(
    tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """A wrong base is said when the callback is attached, not in the middle of a run."""
    run = trainer(make_base(tmp_path / "other", seed=9), tmp_path / "out")
    with pytest.raises(BaseMismatchError):
        WVMonitorCallback.attach(run, tiny_bank_folder)


@pytest.mark.parametrize("policy", ["continue", "stop"])
def test_an_error_inside_never_stops_training_unless_asked_to(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path, policy: str
) -> None:
    """A monitor that breaks in the middle of a run leaves the run alone by default."""
    run = trainer(tiny_base, tmp_path)
    callback = WVMonitorCallback.attach(
        run, tiny_bank_folder, every_n_steps=1, on_monitor_failure=policy
    )

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("planted")

    callback.monitor.bank.measure = broken  # type: ignore[method-assign]
    if policy == "stop":
        with pytest.raises(MonitorFailedError, match="planted"):
            run.train()
    else:
        run.train()
        assert run.state.global_step == 6
        assert callback.monitor.disabled
