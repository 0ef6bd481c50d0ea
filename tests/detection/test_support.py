"""What kind of run a calibration speaks of: limits, and what is said beside a verdict."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wvmonitor.detection.calibration import BenignRun, calibrate

GRID = tuple(i / 40 for i in range(41))
TRAINED = {
    "objective": "sft",
    "schedule": "linear",
    "target_modules": ("q_proj", "v_proj"),
    "weight_decay": 0.01,
}


@pytest.fixture(scope="module")
def support(benign_runs, context):
    """Of 39 runs that say how they were trained."""
    told = replace(context, **TRAINED)
    runs = [BenignRun(r.dataset, r.scores, told) for r in benign_runs(39, readings=4)]
    return calibrate(runs, bank="bank").support


@pytest.fixture
def trained(context):
    """The context of such a run."""
    return replace(context, **TRAINED)


def test_a_run_of_the_calibrated_kind_has_nothing_said_of_it(support, trained):
    """Neither a limit nor a caveat."""
    assert support.objections(trained, 0.5, 1) == []
    assert support.caveats(trained, 0.1, 0.5, GRID) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"objective": "dpo"}, "the objective dpo is not among the calibrated ones (sft)"),
        ({"schedule": "cosine"}, "the learning-rate schedule cosine is not among"),
        ({"target_modules": ("up_proj",)}, "set of target modules up_proj is not among"),
        ({"planned_steps": 400}, "400 planned steps are more than the calibration covers (110)"),
    ],
)
def test_another_kind_of_training_is_a_limit(support, trained, change, words):
    """The calibration does not speak of such a run, and the reason names what differs."""
    (found,) = support.objections(replace(trained, **change), 0.5, 1)
    assert words in found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight_decay": 1.0}, "weight decay 1 is outside the calibrated 0.01"),
        ({"learning_rate": 1.0}, "learning rate 1 is outside the calibrated 0.0001"),
        ({"planned_steps": 20}, "20 planned steps are fewer than any benign run had (100)"),
        ({"objective": None}, "the objective is not known, taken to be sft"),
        ({"target_modules": None}, "target modules is not known, taken to be q_proj + v_proj"),
    ],
)
def test_what_may_matter_is_said_beside_the_verdict(support, trained, change, words):
    """Such a run is judged all the same, with a note that names what is unlike, or not known."""
    run = replace(trained, **change)
    assert support.objections(run, 0.5, 1) == []
    (found,) = support.caveats(run, 0.1, 0.5, GRID)
    assert words in found


def test_calibrations_that_do_not_say_object_to_nothing(calibration, trained):
    """Older files, and runs read from checkpoints, know no objective: no run is refused for it."""
    assert calibration.support.objectives == ()
    assert calibration.support.objections(replace(trained, objective="dpo"), 0.5, 1) == []
