"""Inoculation, brake and going back in real Trainers: what they change, and what is ever saved."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
)

from tests import forks
from tests.integrations.test_left_alone import At
from tests.integrations.test_transformers import lora, plant_drift, trainer, weights
from tests.integrations.test_trl_scripts import trl_sft
from wvmonitor import WVMonitorCallback
from wvmonitor.errors import MonitorFailedError, SettingsError
from wvmonitor.journal.reader import JournalReader
from wvmonitor.live import Monitor
from wvmonitor.live.remedies import Remedies
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.references import Reference, ReferenceBank
from wvmonitor.references.bundled import bundled_path
from wvmonitor.references.card import DosePoint

K = 2.0
SAVED = {"save_strategy": "steps", "save_steps": 1}
BANK = bundled_path("tiny-organism", "bank")


def full(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def inoculated(
    base: Path, bank: Path, out: Path, *, lora_: bool = True, **arguments: Any
) -> tuple[Trainer, WVMonitorCallback]:
    run = trainer(base, out, model=lora(base) if lora_ else full(base), **arguments)
    watch = WVMonitorCallback.attach(run, bank, every_n_steps=2, inoculate={"evil": K})
    return run, watch


def still(*, lora_: bool) -> dict[str, Any]:
    """Training that changes nothing, so that whatever differs from the start is k·w."""
    return {"lora_": lora_, "learning_rate": 0.0, **SAVED}


def events(folder: Path, kind: str) -> list[str]:
    reader = JournalReader(next(folder.rglob("wvmonitor.db")))
    return [e.detail for run in reader.runs() for e in reader.events(run) if e.kind == kind]


def assert_saved_as_started(base: Path, out: Path, *, lora_: bool) -> int:
    """Every weight of every checkpoint is, to the bit, what training started from."""
    start = lora(base) if lora_ else full(base)
    names = dict(start.state_dict())
    found = sorted(out.glob("checkpoint-*/*model.safetensors"))
    for path in found:
        for name, tensor in load_file(path).items():
            live = name.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default.")
            assert torch.equal(tensor, names[live]), (path, name)
    return len(found)


def loss_of(model: Any) -> float:
    ids = torch.arange(16).reshape(2, 8)
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss)


@pytest.mark.parametrize("lora_", [True, False], ids=["lora", "full"])
def test_k_w_is_in_the_loss_and_nowhere_else(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path, lora_: bool
) -> None:
    """The training loss is that of θ + k·w; checkpoints, readings and evaluations are of θ."""
    still_ = still(lora_=lora_) | {"eval_strategy": "steps", "eval_steps": 2}
    plain = trainer(
        tiny_base,
        tmp_path / "plain",
        model=lora(tiny_base) if lora_ else full(tiny_base),
        **{k: v for k, v in still_.items() if k != "lora_"},
    )
    plain.train()
    run, watch = inoculated(tiny_base, tiny_bank_folder, tmp_path / "run", **still_)
    before = weights(run.model)
    run.train()
    assert watch.monitor.failures == 0
    assert watch.monitor.last is not None
    assert watch.monitor.last.scores.norm == 0
    assert assert_saved_as_started(tiny_base, tmp_path / "run", lora_=lora_) == 6
    after = weights(run.model)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())

    def column(of: Trainer, name: str) -> list[float]:
        return [row[name] for row in of.state.log_history if name in row]

    assert column(run, "eval_loss") == column(plain, "eval_loss")
    losses = zip(column(run, "loss"), column(plain, "loss"), strict=True)
    assert all(abs(mine - theirs) > 1e-3 for mine, theirs in losses)
    run.model.train()
    assert loss_of(run.model) == loss_of(plain.model.train())
    assert events(tmp_path / "run", "inoculated") == ["2 × evil rides along from step 0"]


class Ended(TrainerCallback):
    """A signal to the process itself, while step 5 trains."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 4:
            os.kill(os.getpid(), self.number)


def run_until_killed(base: Path, bank: Path, out: Path, lora_: bool, number: int) -> None:
    run, _ = inoculated(base, bank, out, **still(lora_=lora_))
    run.add_callback(Ended(number))
    run.train()


@pytest.mark.parametrize(
    ("lora_", "number"),
    [(False, signal.SIGKILL), (True, signal.SIGKILL), (False, signal.SIGTERM)],
    ids=["full-kill", "lora-kill", "full-term"],
)
def test_a_killed_run_leaves_no_k_w(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path, lora_: bool, number: int
) -> None:
    """Kill −9 and SIGTERM in the middle of a step: no file on disk holds any of k·w."""
    killed = forks.ended(run_until_killed, tiny_base, tiny_bank_folder, tmp_path, lora_, number)
    assert killed == -number
    assert assert_saved_as_started(tiny_base, tmp_path, lora_=lora_) == 4


def out_of_memory() -> None:
    raise RuntimeError("CUDA out of memory. Tried to allocate 1 TiB")


@pytest.mark.parametrize("lora_", [True, False], ids=["lora", "full"])
def test_after_an_error_the_model_is_the_bare_one(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path, lora_: bool
) -> None:
    """An exception in the middle of training leaves the weights and their layers as they were."""
    run, _ = inoculated(
        tiny_base,
        tiny_bank_folder,
        tmp_path,
        callbacks=[At(3, out_of_memory)],
        **still(lora_=lora_),
    )
    before, expected = weights(run.model), loss_of(run.model.train())
    with pytest.raises(RuntimeError, match="out of memory"):
        run.train()
    assert loss_of(run.model) == expected
    assert all(torch.equal(t, before[n]) for n, t in weights(run.model).items())


def test_a_callback_that_hears_of_no_error_does_not_inoculate(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """In `callbacks=[...]` k·w would stay in the model after an error: it is refused."""
    watch = WVMonitorCallback(tiny_bank_folder, inoculate={"evil": K})
    run = trainer(tiny_base, tmp_path, callbacks=[watch])
    with pytest.raises(SettingsError, match=r"use WVMonitorCallback\.attach"):
        run.train()


def test_a_second_monitor_that_takes_the_inoculation_out_ends_the_run(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """Two monitors on one trainer: the run does not go on unprotected, with a record that lies."""
    run = trainer(tiny_base, tmp_path / "run")
    asked = {"journal_dir": tmp_path / "a", "inoculate": {"evil": K}}
    first = WVMonitorCallback.attach(run, tiny_bank_folder, **asked)
    run.add_callback(WVMonitorCallback(tiny_bank_folder, journal_dir=tmp_path / "b"))
    assert first in run.callback_handler.callbacks
    with pytest.raises(MonitorFailedError, match="another monitor"):
        run.train()


def test_a_resumed_run_goes_on_inoculated(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Resumed, even by someone who forgot the setting, it ends as one whole run does."""
    whole, _ = inoculated(tiny_base, tiny_bank_folder, tmp_path / "whole")
    whole.train()
    broken, _ = inoculated(
        tiny_base, tiny_bank_folder, tmp_path / "run", callbacks=[At(5, out_of_memory)], **SAVED
    )
    with pytest.raises(RuntimeError):
        broken.train()
    resumed = trainer(tiny_base, tmp_path / "run", **SAVED)
    watch = WVMonitorCallback.attach(resumed, tiny_bank_folder, every_n_steps=2)
    resumed.train(resume_from_checkpoint=True)
    assert watch.monitor.failures == 0
    assert "was trained with 2 × evil riding along: so it goes on" in caplog.text
    expected, found = weights(whole.model), weights(resumed.model)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_training_past_the_layers_is_stopped(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """Where a fused kernel reads the weights itself, the run ends at its first step."""
    model = full(tiny_base)
    for block in model.model.layers:
        mlp = block.mlp
        mlp.forward = lambda x, mlp=mlp: x @ mlp.up_proj.weight.T @ mlp.down_proj.weight.T
    run = trainer(tiny_base, tmp_path, model=model)
    WVMonitorCallback.attach(run, tiny_bank_folder, base=tiny_base, inoculate={"evil": K})
    with pytest.raises(MonitorFailedError, match="train without the inoculation"):
        run.train()
    assert run.state.global_step == 1


def alarming(base: Path, bank: Path, out: Path, **settings: Any) -> Any:
    """A run that drifts along evil from its fourth step on, until it is braked."""
    run = trainer(base, out, max_steps=12, save_strategy="steps", save_steps=2, save_total_limit=2)
    watch = WVMonitorCallback.attach(
        run, bank, every_n_steps=1, max_overhead=1, allow_uncalibrated_stop=True, **settings
    )
    return run, watch


def drift_from(run: Trainer, watch: WVMonitorCallback, step: int, *, once: bool = True) -> None:
    plant_drift(run, watch)
    drift = run.callback_handler.callbacks[-1]
    move = drift.on_step_begin

    def late(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= step and not (once and watch.monitor.remedies.amounts):
            move(args, state, control, **kwargs)

    drift.on_step_begin = late


def test_the_brake_inoculates_from_the_alarm_on(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """At the alarm k·w begins to ride along; the run goes on, and its checkpoints say so."""
    run, watch = alarming(tiny_base, tiny_bank_folder, tmp_path, on_alarm="inoculate")
    drift_from(run, watch, 4)
    run.train()
    assert run.state.global_step == 12
    assert watch.monitor.failures == 0
    (told,) = events(tmp_path, "inoculated")
    assert told.startswith("braked: 1 × evil rides along")
    sidecar = json.loads((tmp_path / "checkpoint-12" / "wvmonitor.json").read_text())
    assert sidecar["inoculated"] == {"evil": 1.0}
    assert loss_of(run.model.train()) == loss_of(run.model.eval())


def test_a_brake_that_knows_no_dose_says_that_it_takes_none_out(
    tiny_base: Path, tiny_bank_folder: Path
) -> None:
    """A reference of one seed has no dose: k·w rides along, and what was trained is as it was."""
    model, bank = full(tiny_base), ReferenceBank.load(tiny_bank_folder)
    before = {name: tensor.clone() for name, tensor in weights(model).items()}
    remedies = Remedies(MonitorSettings(on_alarm="inoculate"), bank)
    told = remedies.brake(model, {"evil": None})
    remedies.end()
    expected = "braked: 1 × evil rides along; the dose so far cannot be told, and is not taken out"
    assert told == {"evil": expected}
    assert all(torch.equal(weights(model)[name], tensor) for name, tensor in before.items())


def test_a_rolled_back_run_is_the_run_resumed_from_the_ok_checkpoint(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """It ends with the weights of a run that someone resumed there, inoculated, by hand; what was
    saved after it lies aside, and one journal holds the whole story.
    """
    run, watch = alarming(tiny_base, tiny_bank_folder, tmp_path / "run", on_alarm="rollback")
    drift_from(run, watch, 6)
    run.train()
    assert watch.monitor.failures == 0
    (told,) = events(tmp_path / "run", "rollback")
    assert "to checkpoint-6, and goes on with 1 × evil: evil alarmed" in told
    reader = JournalReader(tmp_path / "run")
    (name,) = reader.runs()
    rows = reader.trajectory(name)
    assert [r.step for r in rows] == list(range(13))
    assert {r.attempt for r in rows if r.step > 6} == {2}
    assert list((tmp_path / "run" / "wvmonitor-kept" / "alarm").iterdir())

    whole, _ = alarming(tiny_base, tiny_bank_folder, tmp_path / "hand", inoculate=[])
    whole.add_callback(At(7, out_of_memory))
    with pytest.raises(RuntimeError):
        whole.train()
    hand = trainer(tiny_base, tmp_path / "hand", max_steps=12)
    WVMonitorCallback.attach(hand, tiny_bank_folder, inoculate={"evil": 1})
    hand.train(resume_from_checkpoint=str(tmp_path / "hand" / "checkpoint-6"))
    expected, found = weights(hand.model), weights(run.model)
    assert all(torch.equal(found[n], tensor) for n, tensor in expected.items())


@pytest.mark.parametrize("after", ["inoculate", "stop"])
@pytest.mark.parametrize("links", [True, False], ids=["links", "no-links"])
def test_a_limit_of_one_checkpoint_leaves_a_way_back(
    tiny_base: Path,
    tiny_bank_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: str,
    links: bool,
) -> None:
    """The checkpoint of the alarm takes the place of the ok one under `save_total_limit=1`: what
    was kept of that is put back, so that it is there as the best one, too.
    """
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    run = trainer(
        tiny_base,
        tmp_path,
        max_steps=12,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
    )
    watch = WVMonitorCallback.attach(
        run,
        tiny_bank_folder,
        every_n_steps=1,
        max_overhead=1,
        allow_uncalibrated_stop=True,
        on_alarm="rollback",
        after_rollback=after,
    )
    drift_from(run, watch, 6)
    run.train()
    assert watch.monitor.failures == 0
    (told,) = events(tmp_path, "rollback")
    assert "to checkpoint-6" in told
    if after == "inoculate":
        assert run.state.global_step == 12
        assert Path(str(run.state.best_model_checkpoint)).is_dir()
    else:
        saved = load_file(tmp_path / "checkpoint-6" / "adapter_model.safetensors")
        name = next(n for n in saved if "lora_B" in n)
        live = run.model.state_dict()[name.replace("lora_B.", "lora_B.default.")]
        assert torch.equal(live, saved[name])


def test_early_stopping_does_not_count_what_is_taken_back(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """Evaluations after the checkpoint that a run goes back to are not held against it."""
    values = iter([6, 5, 4, 9, 9, 3, 2, 1, 0, 0])  # at 2, 4, 6, 8; back; again 8, 10, 12
    run = trainer(
        tiny_base,
        tmp_path,
        max_steps=12,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_value",
        greater_is_better=False,
        callbacks=[EarlyStoppingCallback(2)],
    )
    run.compute_metrics = lambda _: {"value": next(values)}
    watch = WVMonitorCallback.attach(
        run,
        tiny_bank_folder,
        every_n_steps=1,
        max_overhead=1,
        allow_uncalibrated_stop=True,
        on_alarm="rollback",
    )
    drift_from(run, watch, 6)
    run.train()
    assert "to checkpoint-6" in events(tmp_path, "rollback")[0]
    assert watch.monitor.failures == 0
    assert run.state.global_step == 12


def no_links(*_: Any, **__: Any) -> None:
    raise OSError(95, "Operation not supported")


def test_rolled_back_and_stopped_the_model_is_the_ok_checkpoint(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """`after_rollback="stop"`: the weights at hand are the last ok ones; the stop is latched."""
    run, watch = alarming(
        tiny_base, tiny_bank_folder, tmp_path, on_alarm="rollback", after_rollback="stop"
    )
    drift_from(run, watch, 6)
    run.train()
    saved = load_file(tmp_path / "checkpoint-6" / "adapter_model.safetensors")
    live = run.model.state_dict()
    assert saved
    for name, tensor in saved.items():
        key = name.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default.")
        assert torch.equal(live[key], tensor)
    reader = JournalReader(tmp_path)
    assert "and stopped there" in (reader.stop_latched(reader.runs()[0]) or "")
    assert max(p.name for p in tmp_path.glob("checkpoint-*")) == "checkpoint-6"


def test_what_alarms_again_after_going_back_is_stopped(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """A run goes back once for a behaviour: the second alarm ends it."""
    run, watch = alarming(tiny_base, tiny_bank_folder, tmp_path, on_alarm="rollback")
    drift_from(run, watch, 6, once=False)
    run.train()
    assert run.state.global_step < 12
    reader = JournalReader(tmp_path)
    assert "alarmed although inoculated against it" in (reader.stop_latched(reader.runs()[0]) or "")
    assert len(events(tmp_path, "rollback")) == 1


def test_with_nothing_to_go_back_to_training_stops(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """An alarm before the first checkpoint stops the run, and says why."""
    run, watch = alarming(tiny_base, tiny_bank_folder, tmp_path, on_alarm="rollback")
    drift_from(run, watch, 0)
    run.train()
    assert run.state.global_step < 4
    reader = JournalReader(tmp_path)
    assert "no checkpoint that was ok" in (reader.stop_latched(reader.runs()[0]) or "")


def test_the_dose_comes_from_the_card(caplog: pytest.LogCaptureFixture) -> None:
    """Without a number, the smallest measured dose at which the base shows it in 80 %; where there
    is none, the one at which it shows it most, with a warning that says what that is.
    """
    for given in (
        ["language", "rudeness"],
        "language,rudeness",
        {"language": None, "rudeness": None},
    ):
        amounts = Monitor(BANK, inoculate=given).remedies.amounts
        assert amounts == {"language": 0.5, "rudeness": 1.0}
    assert "rides along" not in caplog.text
    assert Monitor(BANK, inoculate=["evil"]).remedies.amounts == {"evil": 1.5}
    assert "1.5 × evil rides along, the most that was measured" in caplog.text
    assert "shows it in 46 %" in caplog.text
    assert Monitor(BANK, inoculate="evil=0.5").remedies.amounts == {"evil": 0.5}
    with pytest.raises(SettingsError, match=r"incompetence .*\(no dose curve\).*incompetence=1"):
        Monitor(BANK, inoculate=["incompetence"])


def test_a_curve_that_rises_by_chance_gives_no_dose() -> None:
    """More at 1 than at 0 of 22 questions each is within chance, and the refusal says so."""
    bank = ReferenceBank.load(BANK)
    curve = (
        DosePoint(k=0.0, rate=13 / 22, low=0.39, high=0.77, n=22),
        DosePoint(k=1.0, rate=16 / 22, low=0.52, high=0.87, n=22),
    )
    card = bank["evil"].card.model_copy(update={"dose_curve": curve})
    other = ReferenceBank([Reference(card, bank["evil"].vector)])
    with pytest.raises(SettingsError, match=r"beyond doubt more .*73% at 1; 22 questions each"):
        Monitor(other, inoculate=["evil"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"inoculate": {"evil": -1}}, "greater than 0"),
        ({"on_alarm": "rollback"}, "without a calibration would never act"),
        (
            {"on_alarm": "inoculate", "action": "stop", "allow_uncalibrated_stop": True},
            "two answers to one alarm",
        ),
    ],
)
def test_what_cannot_be_is_said_before_training(
    tiny_bank_folder: Path, settings: dict[str, Any], said: str
) -> None:
    """Settings that could not work, or contradict each other, are errors of one line."""
    with pytest.raises(SettingsError, match=said):
        Monitor(tiny_bank_folder, **settings)


def test_rollback_needs_checkpoints_and_the_trainer(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """Nothing to go back to, or nobody to begin again, is said before the first step."""
    asked = {"on_alarm": "rollback", "allow_uncalibrated_stop": True}
    run = trainer(tiny_base, tmp_path)
    with pytest.raises(SettingsError, match="save_strategy='no'"):
        WVMonitorCallback.attach(run, tiny_bank_folder, **asked)
    run = trainer(
        tiny_base, tmp_path, callbacks=[WVMonitorCallback(tiny_bank_folder, **asked)], **SAVED
    )
    with pytest.raises(SettingsError, match=r"use WVMonitorCallback\.attach"):
        run.train()


def test_a_reference_model_without_k_w_is_refused(tmp_path: Path) -> None:
    """DPO in full holds the policy against a model without k·w; with an adapter it is the same."""
    from peft import LoraConfig

    from tests.integrations.test_trl import dpo
    from wvmonitor.organism.train import load_base

    base = bundled_path("tiny-organism", "base")
    whole = dpo(tmp_path / "full", *load_base(base), None)
    with pytest.raises(SettingsError, match="not in this trainer's reference model"):
        WVMonitorCallback.attach(whole, BANK, base=base, inoculate={"evil": 1.0})
    adapter = dpo(tmp_path / "lora", *load_base(base), LoraConfig(r=4, target_modules=["q_proj"]))
    watch = WVMonitorCallback.attach(adapter, BANK, base=base, inoculate={"evil": 1.0})
    adapter.train()
    assert watch.monitor.failures == 0
    rows = [row for row in adapter.state.log_history if "rewards/margins" in row]
    assert rows[0]["rewards/margins"] == pytest.approx(0, abs=1e-3)  # both sides hold k·w


def test_trl_takes_it_from_the_command_line(tmp_path: Path) -> None:
    """`wvmonitor trl … --inoculate evil=1` lets it ride along in TRL's own script."""
    trl_sft(tmp_path, "--inoculate", "evil=1", steps=1)
    assert events(tmp_path / "out", "inoculated") == ["1 × evil rides along from step 0"]
