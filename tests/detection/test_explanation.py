"""What accounts say: the trend, the dose and what it did, the layers, the way back, the command."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from wvmonitor.detection.explanation import (
    Background,
    explained,
    for_elsewhere,
    in_full,
    slope,
    trend,
)
from wvmonitor.detection.judge import Judge
from wvmonitor.detection.judgement import JudgeState, Statistics
from wvmonitor.detection.verdict import RECENT, judge
from wvmonitor.reading import group_of, layer_shares


@dataclass(frozen=True)
class Point:
    """A point of a card's dose curve."""

    k: float
    rate: float
    low: float = 0.0
    high: float = 1.0


CURVE = (Point(0.0, 0.01), Point(0.4, 0.23, 0.16, 0.31), Point(0.8, 0.9))
BACKGROUND = Background(
    behaviours={"evil": "gives harmful advice"},
    curves={"evil": CURVE},
    base="my base",
    bank="banks/mine",
)


def course(make_scores, context, calibration, values, dose=None):
    """The verdicts on a run whose score on `evil` takes these values, each with its account."""
    the_judge = Judge(
        gram=None,
        calibration=calibration,
        components=("blocks",),
        ridge={},
        behaviours=frozenset({"evil", "flattery"}),
        background=BACKGROUND,
        relation_to=lambda _: "same",
    )
    state, passed = JudgeState(), []
    for index, value in enumerate(values):
        scores = make_scores(0.5, evil=value, flattery=0.02)
        evil = replace(scores.references["evil"], dose=dose)
        scores = replace(scores, step=10 * index, references={**scores.references, "evil": evil})
        judgement = the_judge(Statistics(scores, {}), context, state)
        state = judgement.state
        passed.append(judgement.verdicts)
    return passed, state


def test_only_what_was_raised_has_an_account(calibration, make_scores, context) -> None:
    """A reading that is ok needs no explanation, and other behaviours' alarms don't give it one."""
    high = calibration.threshold("evil", 0.5) + 0.1
    passed, _ = course(make_scores, context, calibration, [0.02, high])
    assert passed[0]["evil"].account == ()
    assert passed[1]["evil"].account
    assert passed[1]["flattery"].account == ()


def test_an_alarm_says_what_to_go_back_to_and_what_to_run(
    calibration, make_scores, context
) -> None:
    """The last step that was ok, and a command line that can be pasted, names quoted."""
    high = calibration.threshold("evil", 0.5) + 0.1
    passed, state = course(make_scores, context, calibration, [0.02, 0.02, high, high])
    words = " ".join(passed[-1]["evil"].account)
    assert {n: s.last_ok for n, s in state.behaviours.items()} == {"evil": 10, "flattery": 30}
    assert "The last reading that was ok is at step 10" in words
    assert "--model 'my base' --reference evil --references banks/mine" in words
    passed, _ = course(make_scores, context, calibration, [high])
    assert "go back to the base" in " ".join(passed[-1]["evil"].account)


def test_elsewhere_an_account_names_no_folder(calibration, make_scores, context) -> None:
    """Told on another machine, it says the same but where files lie: the bank by fingerprint."""
    high = calibration.threshold("evil", 0.5) + 0.1
    passed, _ = course(make_scores, context, calibration, [0.02, high])
    account = passed[-1]["evil"].account
    told = for_elsewhere(account, "evil", "0123456789abcdef" * 4)
    assert told[:-1] == account[:-1]
    assert "blame DATA.jsonl --model BASE --reference evil --references BANK`" in told[-1]
    assert "BANK is the bank 0123456789abcdef… of this run" in told[-1]
    assert not any(name in " ".join(told) for name in (BACKGROUND.base, BACKGROUND.bank))


def test_a_warning_says_how_long_it_would_take(calibration, make_scores, context) -> None:
    """A rising score's pace gives the steps to the alarm's threshold: (limit − now) / slope."""
    limit, warn = calibration.threshold("evil", 0.5), calibration.warn_threshold("evil", 0.5)
    now = (limit + warn) / 2
    pace = 0.03
    values = [now - 2 * pace, now - pace, now]
    passed, state = course(make_scores, context, calibration, values)
    assert passed[-1]["evil"].state == "warn"
    assert slope(state.of("evil").recent) == pytest.approx(pace / 10)
    steps = int(np.ceil((limit - now) / (pace / 10)))
    words = " ".join(passed[-1]["evil"].account)
    assert "rising over its last 3 readings" in words
    assert f"reaches the alarm's threshold in about {steps} steps" in words


@pytest.mark.parametrize(
    ("dose", "said"),
    [
        (
            0.41,
            "at 0.4, the base did so in 23 % of held-out questions (95 % interval 16 % to 31 %)",
        ),
        (2.0, "at 0.8, the nearest dose that was measured, the base did so in 90 %"),
        (-0.3, "at 0, the nearest dose that was measured"),
    ],
)
def test_a_dose_says_what_such_a_dose_did(calibration, make_scores, context, dose, said) -> None:
    """The nearest point of the card's curve, with its interval; beyond its ends that is said."""
    high = calibration.threshold("evil", 0.5) + 0.1
    passed, _ = course(make_scores, context, calibration, [high], dose=dose)
    words = " ".join(passed[-1]["evil"].account)
    assert said in words
    assert "(gives harmful advice)" in words


def test_without_a_curve_nothing_is_claimed(calibration, make_scores, context) -> None:
    """A bank without dose curves leads to no claim about behaviour, and an account says so."""
    high = calibration.threshold("evil", 0.5) + 0.1
    scores = make_scores(0.5, evil=high, flattery=0.02)
    evil = replace(scores.references["evil"], dose=0.5)
    scores = replace(scores, references={**scores.references, "evil": evil})
    verdicts, state = judge(scores, context, calibration, JudgeState())
    words = explained(verdicts["evil"], scores, state, Background()).account
    assert any("what such a dose does was not measured" in w for w in words)
    assert not any("%" in w for w in words)


def test_layers_share_the_inner_product(make_world, calibration, make_scores, context) -> None:
    """Shares are the layers' parts of ⟨τ, w⟩ by the dense formula; the largest are named."""
    world = make_world()
    reading = world.reading()
    shares = layer_shares(reading)
    for name in world.references:
        for geometry in ("frobenius", "response"):
            parts: dict[str, float] = {}
            products = reading.geometries[geometry]
            for i, parameter in enumerate(reading.parameters):
                if reading.components[i] == "blocks" and products.covered[i]:
                    value = float(products.products[i, reading.references.index(name)])
                    parts[group_of(parameter)] = parts.get(group_of(parameter), 0.0) + value
            total = sum(parts.values())
            found = shares[name].get(geometry)
            if total <= 0:
                assert found is None
                continue
            assert {k: v for k, v in found.items() if v} == pytest.approx(
                {k: v / total for k, v in parts.items() if v}
            )
            assert sum(found.values()) == pytest.approx(1)
    high = calibration.threshold("evil", 0.5) + 0.1
    scores = make_scores(0.5, evil=high, flattery=0.02)
    verdicts, state = judge(scores, context, calibration, JudgeState())
    layers = {"evil": {"response": {"0": 0.1, "1": 0.3, "2": 0.6}}}
    account = explained(verdicts["evil"], scores, state, BACKGROUND, layers=layers).account
    assert "Layer 2 of 3 carries 60 % of the response product with it." in account


def test_the_judge_remembers_no_more_than_it_needs(calibration, make_scores, context) -> None:
    """Of the readings before, the last few are kept, so that a journal's rows stay small."""
    _, state = course(make_scores, context, calibration, [0.01] * (RECENT + 5))
    assert len(state.of("evil").recent) == RECENT
    assert state.of("evil").recent[-1] == (10 * (RECENT + 4), 0.01)


@pytest.mark.parametrize(
    ("points", "word"),
    [
        ([(0, 0.0), (10, 0.05), (20, 0.1)], "rising"),
        ([(0, 0.1), (10, 0.05), (20, 0.0)], "falling"),
        ([(0, 0.1), (10, 0.1), (20, 0.11)], "flat"),
        ([(0, 0.1)], "unknown"),
        ([(5, 0.1), (5, 0.4)], "unknown"),
    ],
)
def test_a_trend_is_a_word(points, word) -> None:
    """By the median slope over all readings; a change below 0.02 is none."""
    assert trend(points) == word
    assert trend(points, 0.2) == word


def test_a_trend_is_seen_where_scores_are_small() -> None:
    """A score that rises to its threshold rises, however small both are; a tenth of it is level."""
    assert trend([(0, 0.002), (10, 0.01), (20, 0.019)], 0.02) == "rising"
    assert trend([(0, 0.002), (10, 0.01), (20, 0.019)]) == "flat"
    assert trend([(0, 0.0180), (10, 0.0185), (20, 0.0195)], 0.02) == "flat"
    assert trend([(0, 0.30), (10, 0.31), (20, 0.33)], 0.5) == "flat"


def test_reason_and_account_are_one_text() -> None:
    """Sentences are joined with one full stop, and a reason alone stays as it is."""
    assert in_full("It rose", ("Go back.",)) == "It rose. Go back."
    assert in_full("It rose", ()) == "It rose"
