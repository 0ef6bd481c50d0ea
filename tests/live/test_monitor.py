"""Monitor: the one data path, without a framework."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from wvmonitor.detection.verdict import State
from wvmonitor.errors import (
    BaseMismatchError,
    CalibrationError,
    MissingPathError,
    MonitorFailedError,
    SettingsError,
    UnknownReferenceError,
    UnmeasurableModelError,
)
from wvmonitor.journal.overview import summaries
from wvmonitor.journal.reader import JournalReader
from wvmonitor.journal.tools import acknowledge
from wvmonitor.live.monitor import Monitor, Run
from wvmonitor.live.readings import GRACE_SECONDS, MeasurementInterval
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.outputs.exporter import Observation
from wvmonitor.outputs.prometheus import PrometheusExporter
from wvmonitor.references import ReferenceBank
from wvmonitor.sources.live_model import LiveModel
from wvmonitor.testing import CapturingExporter, planted_bank
from wvmonitor.testing import tiny_base as make_base


def lora_model(base: Path) -> Any:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def push(model: Any, size: float = 0.1, seed: int = 0) -> None:
    """Change the adapter as an optimiser step might."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += size * torch.randn(parameter.shape, generator=generator)


def dense_delta(model: Any, base: Path) -> dict[str, np.ndarray[Any, Any]]:
    """θ_t − θ_0 of every parameter in float64, by merging: the oracle."""
    import copy

    start = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).state_dict()
    merged = copy.deepcopy(model).double().merge_and_unload().state_dict()
    return {n: (merged[n] - start[n]).numpy() for n in start}


def test_a_reading_of_a_live_model_is_the_dense_formula(
    tiny_base: Path, tiny_bank_folder: Path
) -> None:
    """Cosines of a model in training equal ⟨τ,w⟩/‖τ‖‖w‖ of dense float64 weights."""
    model = lora_model(tiny_base)
    monitor = Monitor(tiny_bank_folder, every_n_steps=1)
    monitor.start(model, Run(planned_steps=4))
    push(model)
    seen = monitor.observe(model, 1)
    assert seen is not None
    delta = dense_delta(model, tiny_base)
    for name in monitor.bank.names:
        vector = monitor.bank[name].vector
        dense = {
            n: (u.left.double() @ u.right.double()).numpy()  # type: ignore[union-attr]
            for n, u in vector.updates()
        }
        product = sum(float((delta[n] * w).sum()) for n, w in dense.items())
        norms = math.sqrt(sum(float((delta[n] ** 2).sum()) for n in delta))
        length = math.sqrt(sum(float((w**2).sum()) for w in dense.values()))
        cosine = seen.scores.references[name].values["frobenius"]["cosine"]
        assert cosine == pytest.approx(product / (norms * length), rel=1e-5, abs=1e-9)
    assert seen.scores.norm == pytest.approx(norms, rel=1e-5)


def test_readings_are_taken_at_every_nth_step(tiny_base: Path, tiny_bank_folder: Path) -> None:
    """`observe` may be called after every step; a reading is taken at every n-th."""
    capture = CapturingExporter()
    model = lora_model(tiny_base)
    monitor = Monitor(tiny_bank_folder, exporters=[capture], every_n_steps=3)
    monitor.start(model, Run(planned_steps=9))
    for step in range(1, 10):
        push(model, seed=step)
        monitor.observe(model, step)
    monitor.close()
    assert [o.scores.step for o in capture.observations] == [0, 3, 6, 9]
    assert [o.scores.progress for o in capture.observations] == [0, 3 / 9, 6 / 9, 1]
    assert capture.closed


def test_measuring_moves_apart_when_it_costs_too_much() -> None:
    """Beyond its allowance the monitor skips readings until training has caught up."""
    clock = MeasurementInterval(every=1, max_overhead=0.01)
    assert clock.due(1)
    clock.note(GRACE_SECONDS)
    assert not clock.due(2), "the next one would cost ten seconds more than is allowed"
    clock.started -= 1e4
    assert clock.due(3), "1 % of 10,000 s pays for it"


def test_readings_that_are_left_out_are_said_once(
    tiny_base: Path, tiny_bank_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever asked for a reading every two steps and gets fewer hears of it, and what to set."""
    model = lora_model(tiny_base)
    monitor = Monitor(tiny_bank_folder, every_n_steps=2, max_overhead=0.001)
    monitor.start(model, Run(planned_steps=10))
    assert monitor._readings is not None
    monitor._readings.interval.note(2 * GRACE_SECONDS)  # as slow as a base on a network disk
    with caplog.at_level(logging.WARNING):
        seen = [monitor.observe(model, step, force=step == 10) for step in range(1, 11)]
    assert [o is not None for o in seen] == [False] * 9 + [True]
    (said,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert said.startswith("the reading of step 2 is left out")
    assert "20 s" in said
    assert "max_overhead=0.001" in said
    monitor.close()


def test_a_loop_that_is_resumed_never_takes_the_weights_at_hand(
    tiny_base: Path, tiny_bank_folder: Path
) -> None:
    """A full fine-tune that goes on from a checkpoint is measured from its base or from what was
    recorded of it; where neither is given it is an error, and never a small change.
    """
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    recorded = LiveModel(model).initial_state()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    going_on = Run(planned_steps=20, resume_step=10)
    lost = Monitor(tiny_bank_folder, every_n_steps=1)
    with pytest.raises(UnmeasurableModelError, match=r"at step 10 already.*base=FOLDER"):
        lost.start(model, going_on)
    assert lost.observe(model, 11) is None, "nor is a loop that never called start"
    assert lost.failures == 1
    moved = torch.cat([(p.detach() - start[n]).reshape(-1) for n, p in model.named_parameters()])
    for base, initial in ((tiny_base, None), (None, recorded)):
        monitor = Monitor(tiny_bank_folder, every_n_steps=1, base=base)
        live = None if initial is None else LiveModel(model, initial=initial)
        monitor.start(model, going_on, live=live)
        seen = monitor.observe(model, 11)
        assert seen is not None
        assert seen.scores.norm == pytest.approx(float(moved.norm()), rel=1e-5)
        monitor.close()


def test_another_model_than_the_one_that_started_is_refused(
    tiny_base: Path, tiny_bank_folder: Path
) -> None:
    """The cell that makes the model is run again, and `start` is not: that is said, where the old
    model was read and never moved. Wrappers around the same model are the same model.
    """
    model, other = lora_model(tiny_base), lora_model(tiny_base)
    monitor = Monitor(tiny_bank_folder, every_n_steps=1)
    monitor.start(model, Run(planned_steps=9))
    for step, wrapped in enumerate((model, torch.compile(model), torch.nn.DataParallel(model)), 1):
        assert monitor.observe(wrapped, step) is not None
    push(other)
    assert monitor.observe(other, 4) is None
    assert monitor.failures == 1
    monitor.start(other, Run(planned_steps=9))
    seen = monitor.observe(other, 4)
    assert seen is not None
    assert seen.scores.norm > 0
    monitor.close()


def test_the_journal_holds_every_reading(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """What was measured is in the run's journal, with its verdicts, after `close`."""
    model = lora_model(tiny_base)
    monitor = Monitor(tiny_bank_folder, every_n_steps=1, journal_dir=tmp_path, run="r1")
    monitor.start(model, Run(planned_steps=3))
    for step in (1, 2, 3):
        push(model, seed=step)
        monitor.observe(model, step)
    monitor.close()
    rows = JournalReader(tmp_path).trajectory("r1")
    assert [r.step for r in rows] == [0, 1, 2, 3]
    assert rows[0].scores.norm == 0
    assert {v.reference for v in rows[-1].verdicts} == {"evil", "sycophancy"}
    assert {v.calibration for v in rows[-1].verdicts} == {"uncalibrated"}


def test_an_acknowledged_behaviour_is_quiet_everywhere(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """After `wvmonitor ack` the metrics that rules look at, and the actions, leave it alone."""
    model, sent = lora_model(tiny_base), CapturingExporter()
    shown = PrometheusExporter(port=None)
    monitor = Monitor(
        tiny_bank_folder,
        every_n_steps=1,
        journal_dir=tmp_path,
        run="r1",
        action="stop",
        action_level="warn",
        allow_uncalibrated_stop=True,
        exporters=[sent, shown],
    )
    monitor.start(model, Run(planned_steps=9))
    warned = {"evil": "warn"}
    actions = []
    for step in (1, 2):
        push(model, seed=step)
        observation = monitor.observe(model, step)
        assert observation is not None
        verdicts = {
            n: replace(v, state=warned.get(n, v.state))
            for n, v in observation.judgement.verdicts.items()
        }
        judgement = replace(observation.judgement, verdicts=verdicts)
        actions.append(monitor.action(replace(observation, judgement=judgement)))
        assert monitor.journal is not None
        monitor.journal.flush()
        if step == 1:
            acknowledge(tmp_path, "r1", "evil", "we know")
    monitor.close()
    assert actions == ["stop", "none"]
    assert [o.acknowledged for o in sent.observations] == [set(), set(), {"evil"}]
    assert 'wvmonitor_expected{reference="evil",run="r1"} 1.0' in shown.page().decode()


def test_the_window_score_is_the_cosine_of_what_changed_since(
    tiny_base: Path, tiny_bank_folder: Path
) -> None:
    """`window` is the cosine of τ_t − τ_(t−h) with the reference."""
    capture = CapturingExporter()
    model = lora_model(tiny_base)
    monitor = Monitor(tiny_bank_folder, exporters=[capture], every_n_steps=1, window=2)
    monitor.start(model, Run(planned_steps=4))
    deltas = [dense_delta(model, tiny_base)]
    for step in (1, 2, 3, 4):
        push(model, seed=step)
        monitor.observe(model, step)
        deltas.append(dense_delta(model, tiny_base))
    w = {
        n: (u.left.double() @ u.right.double()).numpy()
        for n, u in monitor.bank["evil"].vector.updates()
    }  # type: ignore[union-attr]
    moved = {n: deltas[4][n] - deltas[2][n] for n in w}
    expected = sum(float((moved[n] * w[n]).sum()) for n in w) / math.sqrt(
        sum(float((m**2).sum()) for m in moved.values())
        * sum(float((v**2).sum()) for v in w.values())
    )
    found = capture.observations[4].scores.references["evil"].values["frobenius"]["window"]
    assert found == pytest.approx(expected, rel=1e-4)
    assert "window" not in capture.observations[3].scores.references["evil"].values["frobenius"]


def test_a_failing_monitor_never_reaches_training_and_gives_up(
    tiny_base: Path, tiny_bank_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A monitor that breaks logs it, counts it, and after three failures says so and gives up."""
    model = lora_model(tiny_base)
    monitor = Monitor(tiny_bank_folder, every_n_steps=1)
    monitor.start(model, Run(planned_steps=9))
    monitor.bank.measure = None  # type: ignore[method-assign]
    for step in range(1, 6):
        assert monitor.observe(model, step) is None
    assert monitor.failures == 3
    assert "NOT being watched" in caplog.text


def test_a_run_that_is_not_watched_any_more_is_not_shown_as_fine(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """After the monitor has given up, whatever was ok is unknown: in Python, in the metrics and in
    `wvmonitor runs`; a warning stays one, and the next attempt is watched again.
    """
    model, shown = lora_model(tiny_base), PrometheusExporter(port=None)
    monitor = Monitor(
        tiny_bank_folder, every_n_steps=1, journal_dir=tmp_path, run="r", exporters=[shown]
    )
    monitor.start(model, Run(planned_steps=9))
    assert monitor.last is not None
    first, *others = monitor.last.verdicts
    states = {first.reference: State.WARN, **{v.reference: State.OK for v in others}}
    fine = {n: replace(v, state=states[n]) for n, v in monitor.last.judgement.verdicts.items()}
    judgement = replace(monitor.last.judgement, verdicts=fine)
    monitor.last = replace(monitor.last, judgement=judgement)
    monitor.bank.measure = None  # type: ignore[method-assign]
    for step in range(1, 6):
        monitor.observe(model, step)
    states = [v.state for v in monitor.last.verdicts]
    assert states == ["warn"] + ["unknown"] * len(others)
    page = shown.page().decode()
    for verdict in others:
        series = f'{{reference="{verdict.reference}",run="r",verdict="unknown"}} 1.0'
        assert f"wvmonitor_verdict{series}" in page
    assert "wvmonitor_readings_total 1.0" in page, "nothing was measured anew"
    assert monitor.journal is not None
    monitor.journal.flush()
    (summary,) = summaries(tmp_path)
    assert (
        summary.unwatched
        == "not watched since step 3: the monitor has failed too often and gave up"
    )
    assert {r.state for r in summary.references.values()} <= {"unknown", "warn", "alarm"}
    del monitor.bank.measure
    monitor.start(model, Run(planned_steps=9, retry=True))
    assert monitor.observe(model, 1) is not None
    monitor.close()
    (summary,) = summaries(tmp_path)
    assert summary.unwatched is None


def test_what_fails_beside_the_readings_is_no_reason_to_give_up(
    tiny_base: Path, tiny_bank_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """However many exporters fail at however many readings, the run is watched to its end."""

    class Broken(CapturingExporter):
        def export(self, observation: Observation) -> None:
            raise OSError("planted")

    model, sent = lora_model(tiny_base), CapturingExporter()
    broken = [Broken() for _ in range(3)]
    monitor = Monitor(tiny_bank_folder, every_n_steps=1, exporters=[*broken, sent])
    monitor.start(model, Run(planned_steps=2))
    for step in (1, 2):
        monitor.observe(model, step)
        for _ in range(3):
            monitor.guarded("checkpoint", lambda: (Path("/nowhere") / "x").read_bytes(), b"")
    assert [o.scores.step for o in sent.observations] == [0, 1, 2]
    assert monitor.failures == 15
    assert not monitor.disabled
    assert "NOT being watched" not in caplog.text


def test_a_failing_monitor_stops_training_where_asked(
    tiny_base: Path, tiny_bank_folder: Path
) -> None:
    """`on_monitor_failure="stop"` turns a broken monitor into an error."""
    model = lora_model(tiny_base)
    monitor = Monitor(tiny_bank_folder, every_n_steps=1, on_monitor_failure="stop")
    monitor.start(model, Run(planned_steps=9))
    monitor.bank.measure = None  # type: ignore[method-assign]
    with pytest.raises(MonitorFailedError, match="on_monitor_failure"):
        monitor.observe(model, 1)


def test_stopping_without_a_calibration_must_be_asked_for(tiny_bank_folder: Path) -> None:
    """`action="stop"` on a rule of thumb is refused before training, unless allowed by name."""
    with pytest.raises(SettingsError, match="allow_uncalibrated_stop"):
        Monitor(tiny_bank_folder, action="stop")
    assert Monitor(tiny_bank_folder, action="stop", allow_uncalibrated_stop=True)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"references": "nowhere"}, MissingPathError, "nowhere"),
        ({}, SettingsError, "references"),
        ({"expected": ["evli"]}, UnknownReferenceError, "evil"),
        ({"every_n_step": 3}, SettingsError, "every_n_steps"),
    ],
)
def test_mistakes_are_said_before_training(
    arguments: dict[str, Any], error: type[Exception], match: str, tiny_bank_folder: Path
) -> None:
    """A wrong path, name or setting is an error when the monitor is made, and says what exists."""
    if arguments.keys() & {"expected", "every_n_step"}:
        arguments = {"references": tiny_bank_folder, **arguments}
    with pytest.raises(error, match=match):
        Monitor(**arguments)


def test_a_model_of_another_base_is_refused(tiny_bank_folder: Path, tmp_path: Path) -> None:
    """The digest of the weights, not the name, decides whether references fit a model."""
    other = lora_model(make_base(tmp_path / "other", seed=5))
    with pytest.raises(BaseMismatchError, match="digest"):
        Monitor(tiny_bank_folder).start(other, Run(planned_steps=1))


def test_a_calibration_of_another_bank_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """A calibration speaks of one bank only."""
    from wvmonitor.references.bundled import bundled_path

    planted_bank(tiny_base).save(tmp_path)
    foreign = bundled_path("tiny-organism", "bank", "calibration.json")
    with pytest.raises(CalibrationError):
        Monitor(tmp_path, calibration=foreign)


def test_one_setting_can_be_replaced(tiny_bank_folder: Path) -> None:
    """Keyword arguments win over a settings object."""
    settings = MonitorSettings(references=tiny_bank_folder, every_n_steps=7, window=3)
    monitor = Monitor(settings=settings, every_n_steps=2)
    assert (monitor.settings.every_n_steps, monitor.settings.window) == (2, 3)
    assert isinstance(monitor.bank, ReferenceBank)
