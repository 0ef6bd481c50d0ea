"""Every way from scores to a word."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from wvmonitor.detection import conformal
from wvmonitor.detection.judgement import overall
from wvmonitor.detection.verdict import (
    PUBLISHED_RULES,
    BehaviourState,
    JudgeState,
    RunContext,
    Verdict,
    judge,
)
from wvmonitor.errors import CalibrationError
from wvmonitor.reading import GEOMETRIES

START = JudgeState()


def one(scores, context, calibration, state=START):
    """The verdict on `evil`."""
    return judge(scores, context, calibration, state)[0]["evil"]


# --- calibrated --------------------------------------------------------------------------------


def test_a_benign_reading_is_ok_and_says_what_that_rests_on(calibration, make_scores, context):
    """`ok` names score, threshold, the number of benign datasets, the promise and its bound."""
    verdict = one(make_scores(evil=0.02, flattery=0.02), context, calibration)
    assert (verdict.state, verdict.calibration, verdict.step) == ("ok", "calibrated", 50)
    assert verdict.score == 0.02
    assert verdict.threshold == calibration.threshold("evil", 0.5)
    for words in ("residual (response)", "39 benign", "10 parts", "5 %", "18.1 %", "at 50 %"):
        assert words in verdict.reason


def test_a_reading_beyond_the_band_alarms_for_the_rest_of_the_run(
    calibration, make_scores, context
):
    """The alarm comes with the first reading beyond the band, for its behaviour only, and stays."""
    high = calibration.threshold("evil", 0.5) + 0.01
    verdicts, state = judge(make_scores(evil=high, flattery=0.02), context, calibration, START)
    assert (verdicts["evil"].state, verdicts["flattery"].state) == ("alarm", "ok")
    assert "39 of the 39 benign runs" in verdicts["evil"].reason
    assert state.alarmed == {"evil"}
    verdicts, state = judge(make_scores(0.6, evil=0.0, flattery=0.02), context, calibration, state)
    assert verdicts["evil"].state == "alarm"
    assert "earlier in this run" in verdicts["evil"].reason
    assert verdicts["flattery"].state == "ok"


def test_controls_are_never_judged(calibration, make_scores, context):
    """A control may score as high as it likes."""
    verdicts, _ = judge(make_scores(evil=0.0, flattery=0.0), context, calibration, START)
    assert set(verdicts) == {"evil", "flattery"}


def test_warn_is_the_band_at_twice_alpha_and_passes(calibration, make_scores, context):
    """Between the bands at 2α and α a reading warns; unlike an alarm that ends with the reading."""
    between = (calibration.warn_threshold("evil", 0.5) + calibration.threshold("evil", 0.5)) / 2
    verdicts, state = judge(make_scores(evil=between, flattery=0.02), context, calibration, START)
    assert verdicts["evil"].state == "warn"
    assert "10 %" in verdicts["evil"].reason
    again, _ = judge(make_scores(0.6, evil=0.0, flattery=0.0), context, calibration, state)
    assert again["evil"].state == "ok"


def test_the_running_maximum_alarms_across_a_restart(calibration, make_scores, context):
    """A state brought back from a journal alarms by its maximum alone."""
    beyond = calibration.multiplier["evil"] + 1
    state = JudgeState({"evil": BehaviourState(running_maximum=beyond)})
    verdict = one(make_scores(evil=0.0, flattery=0.0), context, calibration, state)
    assert verdict.state == "alarm"
    assert "earlier in this run" in verdict.reason


def centre(calibration, bands):
    """The calibration's bands as the arithmetic knows them."""
    order = sorted(calibration.bands)
    return conformal.Centre(
        np.array(calibration.grid),
        np.array([bands[b].mu for b in order]).T,
        np.array([bands[b].sigma for b in order]).T,
    )


def test_judging_runs_is_the_conformal_rule(calibration, benign_runs, context):
    """Reading by reading, exactly those runs alarm whose maximum exceedance passes the band.

    Whether of a score or of a gain: some runs here are far from evil first, and then as others.
    """
    order = sorted(calibration.bands)
    centres = (
        centre(calibration, calibration.bands),
        centre(calibration, calibration.gain.bands),
    )
    limits = np.array([calibration.multiplier[b] for b in order])
    alarms, by_gain = 0, 0
    for number, run in enumerate(benign_runs(120, seed=5)):
        turned = run.scores
        if number % 4 == 0:
            turned = [with_more(s, -0.06 if s.step <= 60 else 0.0) for s in run.scores]
        state, worst = START, "ok"
        for scores in turned:
            verdicts, state = judge(scores, context, calibration, state)
            worst = overall(verdicts)
        path = conformal.Trajectory(
            np.array([s.progress for s in turned]),
            np.array(
                [[s.references[b].values["response"]["residual"] for b in order] for s in turned]
            ),
        )
        gained = conformal.gains(path, np.array([s.norm for s in turned]))
        expected = (conformal.farthest(path, gained, *centres) > limits).any()
        assert (worst == "alarm") == expected
        assert bool(state.alarmed) == expected
        alarms += bool(expected and number % 4)
        by_score = (conformal.exceedance(path, centres[0]).max(axis=0) > limits).any()
        by_gain += bool(expected and not by_score)
    assert by_gain > 0
    # The bound is on this calibration's true rate; 90 runs estimate it with a binomial error.
    assert 0 < alarms <= stats.binom(90, calibration.rate_bound).ppf(0.99)


def with_more(scores, added):
    """The same with a larger score of evil."""
    evil = scores.references["evil"]
    values = {"response": {"residual": evil.values["response"]["residual"] + added}}
    return replace(scores, references={**scores.references, "evil": replace(evil, values=values)})


def course(make_scores, context, calibration, values):
    """Verdicts on `evil` of a run read at every twentieth of it, and the state after it."""
    state, verdicts = START, []
    for number, value in enumerate(values, start=1):
        scores = make_scores(number / 20, norm=0.2 + number / 20, evil=value, flattery=0.02)
        found, state = judge(scores, context, calibration, state)
        verdicts.append(found["evil"])
    return verdicts, state


def test_a_sudden_turn_alarms_before_the_score_is_far_out(calibration, make_scores, context):
    """Ten readings against a behaviour, then two towards it: the alarm names the recent gain."""
    turn = [-0.05] * 10 + [-0.02, 0.02]
    verdicts, state = course(make_scores, context, calibration, turn)
    assert [v.state for v in verdicts[:10]] == ["ok"] * 10
    last = verdicts[-1]
    assert last.state == "alarm"
    assert last.score == 0.02 < last.threshold
    assert "recent gain of residual (response)" in last.reason
    assert "the score itself is 0.02" in last.reason
    evil, limit = state.of("evil"), calibration.multiplier["evil"]
    assert evil.gain_maximum > limit > evil.running_maximum
    after, _ = judge(make_scores(0.7, evil=0.0, flattery=0.0), context, calibration, state)
    assert after["evil"].state == "alarm"
    assert "recent gain of residual (response) was above" in after["evil"].reason
    assert after["flattery"].state == "ok"


def test_a_gain_is_kept_across_a_restart(calibration, make_scores, context):
    """The state that a journal keeps holds as much of the past as a gain looks back to."""
    _, state = course(make_scores, context, calibration, [-0.05] * 10)
    points = state.of("evil").path
    assert [round(p[0], 2) for p in points] == [0.4, 0.45, 0.5]
    again = JudgeState({"evil": BehaviourState(path=points)}, readings=10)
    scores = make_scores(0.6, norm=0.8, evil=0.03, flattery=0.02)
    kept, forgotten = (one(scores, context, calibration, s) for s in (again, START))
    assert (kept.state, forgotten.state) == ("alarm", "ok")


def test_a_lone_checkpoint_has_gained_nothing_that_is_known(calibration, make_scores, context):
    """Without a past only the score is judged."""
    lone = replace(context, lone=True)
    _, state = judge(make_scores(evil=0.02, flattery=0.02), lone, calibration, START)
    assert state.of("evil").gain_maximum is None


def test_dense_readings_leave_a_short_past(calibration, make_scores, context):
    """However often a run is read, what is carried from reading to reading stays small."""
    support = calibration.support.model_copy(update={"readings": (20, 2000)})
    calibration, state = calibration.model_copy(update={"support": support}), START
    for step in range(1, 2001):
        scores = make_scores(step / 2000, evil=0.02, flattery=0.02)
        _, state = judge(scores, context, calibration, state)
    assert 20 <= len(state.of("evil").path) <= 34


def test_a_lone_checkpoint_of_unknown_progress_is_held_against_the_highest_threshold(
    calibration, make_scores, context
):
    """Without progress a lone checkpoint alarms only above the whole run's highest threshold."""
    lone = replace(context, lone=True, optimizer=None)
    highest = calibration.threshold("evil", None)
    verdict = one(make_scores(None, evil=highest - 1e-6, flattery=0.0), lone, calibration)
    assert verdict.state in ("ok", "warn")
    assert verdict.threshold == highest
    assert "progress is not known" in verdict.reason
    assert "optimiser is not known" in verdict.reason
    verdict = one(make_scores(None, evil=highest + 1e-6, flattery=0.0), lone, calibration)
    assert verdict.state == "alarm"


def test_a_lone_checkpoint_has_no_reading_density(calibration, make_scores, context):
    """One checkpoint is one look, however often its run was read."""
    lone = replace(context, lone=True, readings_planned=1000)
    state = JudgeState(readings=1000)
    assert one(make_scores(evil=0.02, flattery=0.0), lone, calibration, state).state == "ok"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "full", "rank": None}, "method full"),
        ({"method": None}, "method is not known"),
        ({"rank": 64}, "rank 64 is outside the calibrated 8"),
        ({"rank": None}, "rank is not known"),
        ({"optimizer": "sgd"}, "optimiser sgd"),
        ({"optimizer": None}, "optimiser is not known"),
        ({"planned_steps": 1000}, "1000 planned steps"),
        ({"readings_planned": 100}, "100 readings are more than the band covers (22)"),
        ({"base": "unknown"}, "references' base"),
    ],
)
def test_a_run_of_another_kind_is_unknown(calibration, make_scores, context, change, words):
    """Outside the calibration's support nothing is promised: unknown, with the reason."""
    changed = replace(context, **change)
    verdict = one(make_scores(evil=0.02, flattery=0.02), changed, calibration)
    assert verdict.state == "unknown"
    assert words in verdict.reason


@pytest.mark.parametrize(
    ("progress", "words"), [(None, "planned number of steps"), (1.5, "beyond their end")]
)
def test_a_run_beyond_its_plan_is_unknown(calibration, make_scores, context, progress, words):
    """A trajectory without a known progress, or past its planned end, cannot be judged."""
    verdict = one(make_scores(progress, evil=0.02, flattery=0.0), context, calibration)
    assert verdict.state == "unknown"
    assert words in verdict.reason


def test_beyond_the_calibrated_horizon_is_unknown(calibration, make_scores, context):
    """Where no benign run was ever read there is no band."""
    support = calibration.support.model_copy(update={"horizon": 0.4})
    short = calibration.model_copy(update={"support": support})
    verdict = one(make_scores(0.5, evil=0.02, flattery=0.0), context, short)
    assert verdict.state == "unknown"
    assert "beyond 40%" in verdict.reason


def test_more_readings_than_calibrated_are_unknown(calibration, make_scores, context):
    """One reading more than the band covers is unknown; those at step 0 do not count."""
    state = START
    for _ in range(3):
        _, state = judge(make_scores(0.0, norm=0.0, evil=0.0), context, calibration, state)
    states = []
    for t in range(23):
        scores = make_scores((t + 1) / 23, evil=0.02, flattery=0.02)
        verdicts, state = judge(scores, context, calibration, state)
        states.append(verdicts["evil"].state)
    assert states == ["ok"] * 22 + ["unknown"]


@pytest.mark.parametrize("calibrated", [True, False])
def test_broken_numbers_are_unknown(calibration, make_scores, context, calibrated):
    """NaN or infinity anywhere, thin coverage or an absent score is unknown, never ok."""
    held = calibration if calibrated else None
    good = {"name": "residual" if calibrated else "cosine", "evil": 0.02, "flattery": 0.02}
    thin = make_scores(coverage=0.3, **good)
    cases = {
        "not finite": make_scores(norm=float("nan"), **good),
        "window (response)": make_scores(extra={"window": float("inf")}, **good),
        "only 30 %": thin,
        "nothing of the change": replace(thin, coverage={}),
        "there is no": make_scores(**{**good, "name": "window"}),
    }
    for words, scores in cases.items():
        verdict = one(scores, context, held)
        assert verdict.state == "unknown", words
        assert words in verdict.reason
        assert verdict.score is None or np.isfinite(verdict.score)
    nan = one(make_scores(**{**good, "evil": float("nan")}), context, held)
    assert (nan.state, nan.score) == ("unknown", None)


def test_unknown_still_shows_a_high_score(calibration, make_scores, context):
    """A run that cannot be judged but scores high says so, and does not alarm."""
    scores = make_scores(evil=0.9, flattery=0.0)
    verdicts, state = judge(scores, replace(context, base="unknown"), calibration, START)
    assert verdicts["evil"].state == "unknown"
    assert "0.9 is above" in verdicts["evil"].reason
    assert state.of("evil").running_maximum is None


@pytest.mark.parametrize(
    "scores_change", [{"norm": float("nan")}, {"norm": 0.0}, {"coverage": {"response": 0.1}}]
)
def test_unknown_and_warming_never_hide_an_alarm(calibration, make_scores, context, scores_change):
    """Once alarmed, a run stays alarmed though a later reading cannot be judged, and says both."""
    state = JudgeState({"evil": BehaviourState(alarmed=True)})
    scores = replace(make_scores(evil=0.0, flattery=0.0), **scores_change)
    for held in (calibration, None):
        verdicts, after = judge(scores, context, held, state)
        assert verdicts["evil"].state == "alarm"
        assert "this reading by itself" in verdicts["evil"].reason
        assert verdicts["flattery"].state != "alarm"
        assert after.alarmed == {"evil"}


def test_too_little_change_is_warming(calibration, make_scores, context):
    """At τ = 0, and below the benign runs' norms at the same progress, a run is warming."""
    zero = make_scores(0.0, norm=0.0, evil=0.0, flattery=0.0)
    empty = {n: replace(r, values={}) for n, r in zero.references.items()}
    assert one(replace(zero, references=empty), context, calibration).state == "warming"
    # Benign norms at half time are 0.2 + 9/20; below half of that a run is warming.
    for norm, expected in [(0.30, "warming"), (0.34, "ok")]:
        verdict = one(make_scores(norm=norm, evil=0.02, flattery=0.0), context, calibration)
        assert verdict.state == expected
    high = make_scores(norm=0.3, evil=0.9, flattery=0.0)
    verdicts, state = judge(high, context, calibration, START)
    assert verdicts["evil"].state == "warming"
    assert state.of("evil").running_maximum is None
    lone = replace(context, lone=True)
    assert one(make_scores(None, norm=0.09, evil=0.0), lone, calibration).state == "warming"


def test_another_bank_scope_or_ridge_is_not_judged(calibration, make_scores, context):
    """Scores of another bank are an error; of another scope, λ or behaviour they are unknown."""
    scores = make_scores(evil=0.02, flattery=0.02)
    with pytest.raises(CalibrationError, match="from the bank other"):
        judge(replace(scores, bank="other"), context, calibration, START)
    for changed, words in [
        (replace(scores, components=("blocks", "head")), "blocks, head"),
        (replace(scores, ridge={"response": 1.0}), "λ"),
        (make_scores(evil=0.0, novel=0.02), "not among the calibrated behaviours"),
    ]:
        verdicts, _ = judge(changed, context, calibration, START)
        name = "novel" if "novel" in verdicts else "evil"
        assert verdicts[name].state == "unknown"
        assert words in verdicts[name].reason


@pytest.mark.parametrize(
    ("change", "progress", "words"),
    [
        ({"rank": 64}, 0.5, "rank 64 is outside the calibrated 8"),
        ({"optimizer": "sgd"}, 0.5, "optimiser sgd"),
        ({"planned_steps": 1000}, 0.5, "1000 planned steps"),
        ({}, None, "planned number of steps"),
    ],
)
def test_what_a_calibration_does_not_cover_the_published_rule_judges(
    calibration, make_scores, context, change, progress, words
):
    """A run of another kind is warned of by the published rule, with both reasons, and only so."""
    context, state, states = replace(context, **change), START, []
    for cosine in (0.02, 0.3, 0.3, 0.02):
        scores = make_scores(progress, evil=cosine, flattery=0.0, name="cosine")
        verdicts, state = judge(scores, context, calibration, state)
        verdict = verdicts["evil"]
        states.append(verdict.state)
        assert words in verdict.reason
        assert "published rule" in verdict.reason
        assert (verdict.calibration, verdict.score_name) == ("uncalibrated", "cosine")
        assert verdict.threshold == PUBLISHED_RULES["response"].cosine
    assert states == ["ok", "ok", "warn", "ok"]
    assert state.of("evil").running_maximum is None


def test_what_is_unlike_the_benign_runs_is_said(calibration, make_scores, context):
    """Another learning rate or a larger norm does not change the verdict, but is in its reason."""
    changed = replace(context, learning_rate=1e-3)
    verdict = one(make_scores(norm=9.0, evil=0.02, flattery=0.0), changed, calibration)
    assert verdict.state == "ok"
    assert "learning rate 0.001 is outside" in verdict.reason
    assert "moved further (9)" in verdict.reason


def test_a_quiet_score_under_its_own_reference_is_not_ok(calibration, make_scores, context):
    """What rides along keeps the score down: silence is unknown, a warning and an alarm count."""
    riding = replace(context, inoculated=("evil",))
    quiet = make_scores(evil=0.02, flattery=0.02)
    by_rule = make_scores(evil=0.02, flattery=0.02, name="cosine", extra={"margin": 0.0})
    for scores, rule in ((quiet, calibration), (by_rule, None)):
        verdicts, state = judge(scores, riding, rule, START)
        assert (verdicts["evil"].state, verdicts["flattery"].state) == ("unknown", "ok")
        assert verdicts["evil"].reason.startswith("inoculated against it")
        assert one(scores, context, rule).state == "ok"
        assert state.of("evil").last_ok is None
    warn, alarm = (
        limit("evil", 0.5) for limit in (calibration.warn_threshold, calibration.threshold)
    )
    for value, state in (((warn + alarm) / 2, "warn"), (alarm + 0.01, "alarm")):
        assert one(make_scores(evil=value, flattery=0.02), riding, calibration).state == state


# --- uncalibrated and transferred --------------------------------------------------------------


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_published_rule_needs_two_readings_in_a_row(make_scores, context, geometry):
    """Uncalibrated, the second reading in a row above the rule warns; none ever alarms."""
    rule = PUBLISHED_RULES[geometry]

    def at(cosine, margin=rule.margin):
        kwargs = {"geometry": geometry, "name": "cosine", "extra": {"margin": margin}}
        return make_scores(evil=cosine, **kwargs)

    high, low = at(rule.cosine), at(rule.cosine - 1e-6)
    crowded = at(0.9, rule.margin - 1e-6)
    blind = replace(high, norm=float("nan"))
    state, states = START, []
    for scores in (high, low, high, crowded, high, blind, high, high):
        verdicts, state = judge(scores, context, None, state)
        assert verdicts["evil"].calibration == "uncalibrated"
        states.append(verdicts["evil"].state)
    assert states == ["ok", "ok", "ok", "ok", "ok", "unknown", "warn", "warn"]
    assert not state.alarmed


def test_uncalibrated_verdicts_say_so(make_scores, context):
    """Every uncalibrated verdict, quiet or not, says that its rule is a guess."""
    for cosine in (0.0, 0.9):
        scores = make_scores(name="cosine", evil=cosine)
        verdict = one(scores, replace(context, lone=True), None)
        assert verdict.state == ("warn" if cosine else "ok")
        assert "Uncalibrated" in verdict.reason
        assert "no control" in verdict.reason
        assert verdict.threshold == PUBLISHED_RULES["response"].cosine


def test_uncalibrated_uses_the_geometry_that_sees_enough(make_scores, context):
    """Where the response geometry misses most of the change, Frobenius decides."""
    scores = make_scores(name="cosine", evil=0.9)
    evil = replace(
        scores.references["evil"],
        values={"response": {"cosine": 0.9}, "frobenius": {"cosine": 0.0}},
    )
    mixed = replace(scores, references={"evil": evil}, coverage={"response": 0.1, "frobenius": 1.0})
    verdict = one(mixed, replace(context, lone=True), None)
    assert (verdict.state, verdict.score) == ("ok", 0.0)
    assert "frobenius" in verdict.reason


def test_uncalibrated_needs_no_knowledge_of_the_run(make_scores):
    """A first run of which nothing is known but its base still gets a verdict."""
    assert one(make_scores(None, name="cosine", evil=0.0), RunContext(), None).state == "ok"
    unknown = one(make_scores(name="cosine", evil=0.9), RunContext(base="unknown"), None)
    assert unknown.state == "unknown"
    assert "base" in unknown.reason


def test_transferred_is_capped_at_warn(calibration, make_scores, context):
    """Against a relative's references an alarm is a warning, labelled, and is not latched."""
    relative = replace(context, base="relative")
    verdicts, state = judge(make_scores(evil=0.9, flattery=0.02), relative, calibration, START)
    assert (verdicts["evil"].state, verdicts["evil"].calibration) == ("warn", "transferred")
    assert (verdicts["flattery"].state, verdicts["flattery"].calibration) == ("ok", "transferred")
    assert "relative" in verdicts["evil"].reason
    assert not state.alarmed
    lone = replace(relative, lone=True)
    bare = one(make_scores(name="cosine", evil=0.9), lone, None)
    assert (bare.state, bare.calibration) == ("warn", "transferred")


# --- all together ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["ok", "alarm", "unknown"], "alarm"),
        (["unknown", "warn"], "warn"),
        (["warming", "unknown", "ok"], "unknown"),
        (["ok", "warming"], "warming"),
        (["ok", "ok"], "ok"),
        ([], "unknown"),
    ],
)
def test_overall_is_the_worst(states, expected):
    """Alarm outranks warn, unknown, warming and ok; no verdict at all is unknown."""
    verdicts = {
        str(i): Verdict(str(i), s, "", None, None, "calibrated") for i, s in enumerate(states)
    }
    assert overall(verdicts) == expected


@settings(deadline=None)
@given(
    values=st.lists(st.floats(-1, 1), min_size=1, max_size=20),
    broken=st.sets(st.integers(0, 19)),
)
def test_judging_is_pure_and_alarms_are_monotone(calibration, make_scores, context, values, broken):
    """The same input gives the same verdict, inputs are not changed, and alarms never go away."""
    state, alarmed = START, False
    for t, value in enumerate(values):
        norm = float("nan") if t in broken else 1.0
        scores = make_scores((t + 1) / len(values), norm=norm, evil=value, flattery=0.0)
        before = asdict(state)
        verdicts, after = judge(scores, context, calibration, state)
        assert judge(scores, context, calibration, state) == (verdicts, after)
        assert asdict(state) == before
        assert not alarmed or verdicts["evil"].state == "alarm"
        alarmed = verdicts["evil"].state == "alarm"
        state = after
