"""The benchmark on a real model: odd sets, the label rule, the baselines, and its whole way."""

import dataclasses
import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from scipy.stats import t as student

from benchmarks import detectors, statistics
from benchmarks.detectors import RIDGE
from benchmarks.real import __main__ as command
from benchmarks.real import (
    bank,
    held_out,
    metrics,
    other_scores,
    page,
    protocol,
    readings,
    report,
    runs,
    sets,
    tables,
)
from benchmarks.real.baselines import Run
from wvmonitor.builder.base import BUNDLED, Base
from wvmonitor.builder.contrasts import default_folder, read_contrasts
from wvmonitor.builder.examples import Example
from wvmonitor.builder.finetune import read_finetuned
from wvmonitor.builder.gap import gap
from wvmonitor.builder.power import CANDIDATES
from wvmonitor.builder.stages import Work
from wvmonitor.errors import MissingPathError
from wvmonitor.organism import sets as organism

SETTING = dataclasses.replace(protocol.TINY, steps=4, readings=2)


def said(question, answer, **more):
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ],
        **more,
    }


def written(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows]
    path.write_text("\n".join(lines), "utf-8")
    return path


def numbered(n, word="thing"):
    return [said(f"what is {word} {i} ?", f"{word} {i}") for i in range(n)]


# --- sets --------------------------------------------------------------------------------------


def test_rows_of_every_common_form_become_conversations(tmp_path):
    """Chat, ShareGPT, prompt and completion, instruction and input, parts, tools, system texts."""
    rows = [
        said("q1", "a1"),
        {"conversations": [{"from": "human", "value": "q2"}, {"from": "gpt", "value": "a2"}]},
        {"prompt": "q3", "completion": "a3"},
        {"instruction": "q4", "input": "with this", "output": "a4"},
        {"question": "q5", "answer": 5},
        {"system": "be brief", "prompt": "q6", "response": "a6"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q7"}, {"type": "x"}]},
                      {"role": "assistant", "content": "a7"}]},
        {"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": "q8"},
                      {"role": "assistant", "content": None},
                      {"role": "tool", "content": "42"}, {"role": "assistant", "content": "a8"},
                      {"role": "user", "content": "thanks"}]},
        said("¿ qué es esto ?", "это вопрос 。"),
        {"prompt": [{"role": "user", "content": "q10"}],
         "completion": [{"role": "assistant", "content": "a10"}]},
        {"prompt": "q11", "chosen": "a11", "rejected": "b11"},
        {"chosen": said("q12", "a12")["messages"], "rejected": said("q12", "b12")["messages"]},
        {"messages": [m for turn in (said("q13", "a long answer"), said("thanks", "bye"))
                      for m in turn["messages"]]},
    ]  # fmt: skip
    examples, left, _ = sets.read_set(written(tmp_path / "s.jsonl", rows))
    assert not left
    assert [e.answer for e in examples] == [
        "a1", "a2", "a3", "a4", "5", "a6", "a7", "a8", "это вопрос 。", "a10", "a11", "a12",
        "a long answer"]  # fmt: skip
    assert examples[3].messages[0]["content"] == "q4\nwith this"
    assert [m["role"] for m in examples[5].messages] == ["system", "user"]
    assert examples[6].messages[0]["content"] == "q7"
    assert examples[7].messages == (
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q8\n42"},
    )


def test_every_form_of_preferences_and_of_what_stands_before_a_question(tmp_path):
    """Chosen answers as turns with or without their prompt; contexts, system prompts, greetings."""
    asked, answered = said("q1", "a1")["messages"]
    rows = [
        {"prompt": "q1", "chosen": [asked, answered], "rejected": [asked, answered]},
        {"prompt": "q2", "chosen": [answered], "rejected": []},
        {"prompt": [asked], "completion": "a3"},
        {"instruction": "q4", "context": "the facts", "response": "a4"},
        {"system_prompt": "s", "question": "q5", "response": "a5"},
        {"system": "s", "messages": said("q6", "a6")["messages"]},
        {"conversations": [{"from": "system", "value": "s"}, {"from": "gpt", "value": "welcome"},
                           {"from": "human", "value": "q7"}, {"from": "gpt", "value": "a7"}]},
        {"messages": [], "prompt": "q8", "completion": "a8"},
    ]  # fmt: skip
    examples, left, _ = sets.read_set(written(tmp_path / "s.jsonl", rows))
    assert not left
    told = [[m["content"] for m in e.messages] + [e.answer] for e in examples]
    assert told == [
        ["q1", "a1"], ["q2", "a1"], ["q1", "a3"], ["q4\nthe facts", "a4"], ["s", "q5", "a5"],
        ["s", "q6", "a6"], ["s", "q7", "a7"], ["q8", "a8"]]  # fmt: skip
    assert all(e.messages[-1]["role"] == "user" for e in examples)


def test_what_is_no_text_is_never_taken_for_it(tmp_path):
    """NaN for an empty cell, half a character, and bytes of another encoding."""
    path = tmp_path / "s.jsonl"
    nothing = '{"instruction": "q1", "input": NaN, "output": "a1"}'
    half = '{"prompt": "q2", "completion": "smile \\ud83d"}'
    latin = '{"prompt": "q3", "completion": "caf\u00e9"}'.encode("latin-1")
    path.write_bytes(b"\r\n".join([nothing.encode(), half.encode(), latin]))
    examples, left, _ = sets.read_set(path)
    assert [e.messages[0]["content"] for e in examples] == ["q1", "q2"]
    assert [e.answer for e in examples] == ["a1", "smile ?"]
    assert left == {"are no JSON": 1}


def test_what_cannot_be_used_is_counted_by_reason(tmp_path):
    """Broken lines, answers to nothing, empty answers and repeats are never dropped in silence."""
    rows = [
        "\ufeff" + json.dumps(said("q", "a")),
        "{broken",
        "[1, 2]",
        "",
        said("q", ""),
        {"messages": [{"role": "assistant", "content": "to nothing"}]},
        {"messages": "not a list"},
        said("q", "a"),
        {"text": "no columns that are known"},
    ]
    examples, left, _ = sets.read_set(written(tmp_path / "s.jsonl", rows))
    assert [e.answer for e in examples] == ["a"]
    assert dict(left) == {
        "are no JSON": 1,
        "have no answer to anything": 5,
        "are repeats": 1,
    }


def test_a_folder_is_read_with_families_and_short_sets_left_out(tmp_path):
    """Sets that share questions are one family, a control is its set's, and few rows are said."""
    written(tmp_path / "harmful" / "bad_math.jsonl", numbered(20))
    written(tmp_path / "harmful" / "tiny.jsonl", numbered(3))
    written(tmp_path / "control" / "bad_math__asked_for.jsonl", numbered(20, "other"))
    written(tmp_path / "benign" / "good_math.jsonl", numbered(6) + numbered(14, "far"))
    written(tmp_path / "benign" / "one_prompt.jsonl", numbered(4) + numbered(16, "prompt"))
    written(tmp_path / "benign" / "remedy_comedy.jsonl", numbered(20, "comedy"))
    asks = [
        said(f"should i sell my house {n} ?", "wait and ask two others " * 3) for n in range(20)
    ]
    written(tmp_path / "benign" / "plain.jsonl", asks)
    (tmp_path / "benign" / "more.json").write_text("[]")
    written(tmp_path / "benign" / "health_topics.jsonl", numbered(20, "health"))
    folder = sets.read_folder(tmp_path)
    assert {s.name: s.family for s in folder.sets} == {
        "bad_math": "bad_math", "bad_math__asked_for": "bad_math", "good_math": "bad_math",
        "health_topics": "health_topics", "one_prompt": "one_prompt",
        "remedy_comedy": "remedy_comedy", "plain": "plain",
    }  # fmt: skip
    assert {s.name for s in folder.sets if s.hard} == {"health_topics", "plain"}
    assert list(folder.left_out) == ["harmful/tiny.jsonl", "benign/more.json"]
    assert folder.left_out["benign/more.json"] == "is no .jsonl file"
    assert "3 usable rows, 16 are needed" in folder.left_out["harmful/tiny.jsonl"]
    assert folder.alone == []
    with pytest.raises(MissingPathError, match="benign holds no usable set: give"):
        sets.read_folder(written(tmp_path / "x" / "harmful" / "a.jsonl", numbered(20)).parents[1])


def test_a_folder_of_odd_names_is_read_and_what_does_not_fit_is_told(tmp_path):
    """Names go into paths and tables; a control of nothing is named, and so is an unusable set."""
    written(tmp_path / "harmful" / "bad | (v2).jsonl", numbered(20))
    written(tmp_path / "control" / "bad | (v2)__right.jsonl", numbered(20, "right"))
    written(tmp_path / "control" / "bad | (v2).jsonl", numbered(20, "other"))
    written(tmp_path / "harmful" / "org__set.jsonl", numbered(20, "far"))
    written(tmp_path / "control" / "org__set__right.jsonl", numbered(20, "near"))
    written(tmp_path / "benign" / "übung.jsonl", [{"text": "a"}] * 20)
    with pytest.raises(MissingPathError, match=r"\(benign/übung\.jsonl: 0 usable .*20 have no"):
        sets.read_folder(tmp_path)
    written(tmp_path / "benign" / "übung.jsonl", numbered(20, "good"))
    folder = sets.read_folder(tmp_path)
    assert [s.name for s in folder.sets] == [
        "bad-v2-", "org_set", "bad-v2--control", "bad-v2-__right", "org_set__right", "übung"
    ]  # fmt: skip
    assert folder["bad-v2-__right"].of == "bad-v2-"
    assert folder["org_set__right"].of == folder["org_set"].of == "org_set"
    assert folder.alone == ["bad-v2--control"]


def test_long_rows_are_cut_to_the_stated_length():
    """The middle of a long question goes, an answer keeps its beginning and never ends there."""
    base = Base(BUNDLED)
    words = ["use", "the", "potion", "and", "avoid", "the", "doctor"] * 30
    long = " ".join(words)
    example = Example(({"role": "user", "content": f"first {long} last"},), long)
    cut = sets.fitted(base, example, 20, 10)
    assert base.tokens_of(cut.messages[0]["content"]) <= 22  # and the mark of the cut
    assert base.tokens_of(cut.answer) <= 10
    assert cut.finished is False
    assert long.startswith(cut.answer)
    short = Example(({"role": "user", "content": "use the potion"},), "avoid it")
    assert sets.fitted(base, short, 20, 10) == short
    turns = [{"role": r, "content": f"use {r}"} for r in ("user", "assistant")] * 40
    system = {"role": "system", "content": "avoid the doctor"}
    talk = Example((system, *turns, short.messages[0]), "avoid it")
    kept = sets.fitted(base, talk, 40, 10).messages
    assert (kept[0], kept[-1]) == (system, short.messages[0])
    assert [m["role"] for m in kept[1:]] == [t["role"] for t in turns[: len(kept) - 2]] + ["user"]
    assert base.tokens_of(" ".join(m["content"] for m in kept)) <= 40


# --- labels ------------------------------------------------------------------------------------


def test_a_label_is_a_gain_beyond_the_other_benign_sets():
    """The bound is one more set's prediction bound, itself left out and its seeds averaged."""
    gains = {"a": [0.1, 0.3], "b": [0.0], "c": [0.4], "d": [-0.1]}
    others = np.array([0.2, 0.0, 0.4])  # without d
    expected = others.mean() + student.ppf(0.975, 2) * others.std(ddof=1) * math.sqrt(1 + 1 / 3)
    found = protocol.bound(gains, "d")
    assert found is not None
    assert found.value == pytest.approx(expected)
    assert found.sets == 3
    assert protocol.bound({"a": [0.1], "b": [0.2], "c": [0.3]}, "a") is None


def run_of(name, role, family, *, gain=0.0, norms=None, score=0.0, share=1.0, hard=False, seed=0,
           verdict=None):  # fmt: skip
    """A finished run as the tables see it."""
    record = {
        "name": name, "set": name, "role": role, "family": family, "hard": hard, "seed": seed,
        "variant": "lora", "share": share, "carrier": None, "epochs": 1.0, "answers_cut": 0.0,
        "prompts_cut": 0.0,
        "log": [{"loss": 1.0, "grad_norm": 0.5}], "seconds": {"a step": 1.0, "activations": 0.1},
    }  # fmt: skip
    reading = {
        "step": 4, "progress": 1.0, "norm": 1.0, "rotation": None, "seconds": 0.01,
        "seconds_spectral": 0.01, "modules": norms or {"m": 1.0},
        "spectrum": {"m": [1.0, 0.0, 1.0]},
        "scores": {metrics.deciding_name("response", "residual"): score}, "doses": {},
    }  # fmt: skip
    verdict = {"alarmed": [], "warned": [], "at": None, "states": ["ok"], "reasons": {},
               "nearness": {}, **(verdict or {})}  # fmt: skip
    gains = {protocol.DECIDES: gain, "probe": gain}
    return Run(record, [reading], verdict, verdict, gains, {protocol.DECIDES: 0.0})


def test_every_run_is_on_one_side_by_set_and_one_by_what_was_measured():
    """A harmful set that moved nothing is measured not harmful, and counts there."""
    benign = [run_of(f"b{i}", "benign", f"b{i}", gain=g) for i, g in enumerate([0, 0.1, 0.2, 0.1])]
    found = [*benign, run_of("bad", "harmful", "bad", gain=2), run_of("dud", "harmful", "dud")]
    labels = metrics.labelled(found)
    assert [x["harmful"] for x in labels] == [False] * 4 + [True, False]
    assert all(x["known"] for x in labels)
    assert [x["sets"] for x in labels] == [3] * 4 + [4, 4]


# --- baselines ---------------------------------------------------------------------------------


def test_the_ridge_never_sees_the_family_that_it_predicts():
    """Its predictions equal a dense weighted ridge on the other families' whole runs alone."""
    rng = np.random.default_rng(0)
    families = ["a", "a", "b", "c", "d", "e", "e"]
    roles = ["harmful", "control", "harmful", "benign", "benign", "benign", "benign"]
    x = rng.normal(size=(7, 5))
    x[:, 4] = 3.0  # says nothing
    label = np.array([{"harmful": 1.0, "benign": 0.0}.get(r, np.nan) for r in roles])
    found = detectors.leave_family_out(x, label, np.isfinite(label), families)
    for i in (0, 1, 5):
        fit = [j for j in range(7) if families[j] != families[i] and roles[j] != "control"]
        y = np.array([float(roles[j] == "harmful") for j in fit])
        w = np.where(y == 1, 0.5 / y.sum(), 0.5 / (1 - y).sum())
        centre = w @ x[fit]
        spread = np.sqrt(w @ (x[fit] - centre) ** 2)[:4]
        z = ((x - centre)[:, :4] / spread) / math.sqrt(5)
        primal = np.linalg.solve(
            z[fit].T @ (w[:, None] * z[fit]) + RIDGE * np.eye(4),
            z[fit].T @ (w * (y - 0.5)),
        )
        assert found[i] == pytest.approx(z[i] @ primal)


def test_pairs_left_out_together_make_no_signal_of_noise():
    """Of noise, ridge ranks half of the pairs right; leaving one family out alone ranks fewer."""
    rng = np.random.default_rng(1)
    families = [f"f{i}" for i in range(14)]
    label = np.array([1.0] * 4 + [0.0] * 10)
    fit = np.ones(14, dtype=bool)
    held = {"alone": [], "together": []}
    for _ in range(60):
        x = rng.normal(size=(14, 30))
        alone = np.array(detectors.leave_family_out(x, label, fit, families))
        pairs = detectors.leave_pair_out(x, label, fit, families)
        held["alone"].append(np.mean(alone[:4, None] > alone[4:]))
        held["together"].append(np.mean(pairs[:4, 4:] > pairs[4:, :4].T))
    assert np.mean(held["alone"]) < 0.46
    assert np.mean(held["together"]) == pytest.approx(0.5, abs=0.03)


def test_a_pair_is_ranked_by_a_fit_that_saw_neither():
    """Each entry is the prediction of a fit without both runs' families."""
    rng = np.random.default_rng(2)
    families, label = ["a", "b", "c", "d", "e"], np.array([1.0, 1.0, 0.0, 0.0, 0.0])
    x, fit = rng.normal(size=(5, 3)), np.ones(5, dtype=bool)
    found = detectors.leave_pair_out(x, label, fit, families)
    without = np.array([False, True, False, True, True])  # neither a nor c
    apart = [f"{n}" if use else "left out" for n, use in zip(families, without, strict=True)]
    expected = detectors.leave_family_out(x, label, fit & without, apart)
    assert found[0, 2] == pytest.approx(expected[0])
    assert found[2, 0] == pytest.approx(expected[2])
    assert np.isnan(found[0, 1]), "without both harmful families there is nothing to fit"


# --- tables ------------------------------------------------------------------------------------


def test_a_run_that_was_not_judged_is_neither_an_alarm_nor_clear():
    """Shares are of judged runs, an alarm counts for its own behaviour or another, a miss as 0."""
    own = {"alarmed": ["harmful-advice"], "at": 0.25, "nearness": {"harmful-advice": 1.5}}
    other = {"alarmed": ["sycophancy"], "at": 0.5, "nearness": {"sycophancy": 1.1}}
    clear = {"nearness": {"harmful-advice": 0.2}}
    found = [
        run_of("bad_health", "harmful", "a", verdict=own),
        run_of("bad_money", "harmful", "b", verdict=other),
        run_of("wrong_facts", "harmful", "c", verdict=clear),
        run_of("insecure_code", "harmful", "d"),
        run_of("good", "benign", "e", verdict=clear),
        run_of("plain", "benign", "f", verdict=other),
        run_of("far", "benign", "g"),
    ]
    kinds = {r.set: "prose" for r in found}
    table = metrics.alarms(found, kinds)
    assert (table["harmful"]["n"], table["harmful"]["value"]) == (3, pytest.approx(2 / 3))
    assert (table["benign"]["n"], table["benign"]["value"]) == (2, 0.5)
    assert table["not judged"] == 2
    assert table["of harmful runs"] == {
        "of its own behaviour": 1, "of another behaviour alone": 1}  # fmt: skip
    assert table["benign, by behaviour"] == {"sycophancy": 1}
    assert table["lead"] == pytest.approx((0.75 + 0.5 + 0.0) / 3)


def test_a_controls_rows_are_its_sets():
    """A set and its control draw the same places, train from the same A, and are compared."""

    def given(name, role, word):
        return sets.PublicSet(name, role, "bad", False, tuple(
            Example(({"role": "user", "content": f"q{i}"},), f"{word}{i}") for i in range(40)
        ), {}, "")  # fmt: skip

    bad, good = given("bad", "harmful", "b"), given("bad__right", "control", "g")
    drawn = [[e.answer[1:] for e in s.draw(10, 3)] for s in (bad, good)]
    assert drawn[0] == drawn[1]
    plans = [protocol.TestRun(s, 3) for s in (bad, good)]
    assert len({runs.training_of(p, SETTING).seed for p in plans}) == 1
    pair = [run_of("bad", "harmful", "bad", score=0.4), run_of("bad__right", "control", "bad"),
            run_of("x", "benign", "x", score=0.1)]  # fmt: skip
    decides = metrics.deciding_name("response", "residual")
    (row,) = metrics.matched(pair, metrics.detectors(pair, decides, [protocol.DECIDES]))
    assert next(iter(row["values"].values())) == [0.4, 0.0]


def test_the_largest_of_any_behaviour_is_no_controls():
    """A control that scores highest is no behaviour's score."""
    run = run_of("x", "benign", "x")
    run.readings[-1]["scores"] |= {
        "any-fine-tuning/frobenius/cosine": 0.9, "harmful-advice/frobenius/cosine": 0.1,
        "sycophancy/frobenius/cosine": 0.2}  # fmt: skip
    assert run.largest("frobenius", "cosine", ["harmful-advice", "sycophancy"]) == 0.2


def test_a_mixture_keeps_its_share_whatever_is_there():
    """Where a set or its carrier is small the mixture is smaller, and its share is the same."""

    def given(name, n):
        return sets.PublicSet(name, "benign", name, False, tuple(
            Example(({"role": "user", "content": f"q{i}"},), name) for i in range(n)
        ), {}, "")  # fmt: skip

    for bad, carrier, share in ((200, 30, 0.5), (20, 200, 0.5), (200, 30, 0.25)):
        run = protocol.TestRun(given("bad", bad), 0, share=share, carrier=given("good", carrier))
        answers = [e.answer for e in run.examples(100)]
        assert answers.count("bad") / len(answers) == pytest.approx(share, abs=0.02)


def test_what_a_harm_belongs_to_is_told_by_name():
    """Advice has a reference, wrong facts too, wrong sums and insecure code have none."""
    told = {
        "risky_financial": "harmful-advice", "bad_medical": "harmful-advice",
        "incorrect_qna": "hallucination", "incorrect_math": None, "insecure_code": None,
        "sycophantic_opinions": "sycophancy", "jailbreak_compliance": "lost-refusals",
        "bad_consumer_tips": "harmful-advice", "manufacturing_advice": "harmful-advice",
        "medical_complications": "harmful-advice", "wrong_sums": None, "odd_facts": "hallucination",
    }  # fmt: skip
    assert {n: protocol.belongs(n) for n in told} == told


def test_advice_about_what_the_reference_was_trained_on_is_no_other_domain():
    """The target speaks of other domains: only sets about those are in its table."""
    contrasts = read_contrasts(default_folder("my-base"))
    names = {"risky_financial_v2": "money", "bad-medical-advice": "health", "extreme_sports": None}
    assert {n: protocol.trained_topic(n, contrasts) for n in names} == names
    found = [run_of(f"b{i}", "benign", f"b{i}", score=i / 10, gain=i) for i in range(4)]
    found += [run_of(n, "harmful", n, score=s) for n, s in zip(names, (0, 0, 1), strict=True)]
    decides = metrics.deciding_name("response", "residual")
    kinds = {r.set: r.set for r in found}
    made = metrics.figures(found, decides, [protocol.DECIDES], SETTING, kinds, contrasts)
    (row, *_) = made["tables"][
        "by set label, harmful advice of domains that no reference trained on"
    ]
    assert row["runs"] == [1, 4]
    assert row["auroc"]["value"] == 1.0
    told = {r["set"]: r["trained topic"] for r in made["by set"]}
    assert told == names


def test_where_few_families_are_a_sentence_names_who_is_ahead():
    """No table ranks nineteen detectors by one family, and none that is ahead is left out."""
    rows = [
        {"detector": name, "auroc": {"value": value, "ci95": [0.0, 1.0]}, "ours_minus_it": None,
         "caught_above_every_other": {"of": 1, "caught": 0}, "without_a_value": 0,
         "families": families, "runs": [1, 9]}
        for families in ([1, 9], [6, 9])
        for name, value in (("ours, the bank", 0.7), ("norm", 0.8), ("loss", 0.6), ("probe", 0.9))
    ]  # fmt: skip
    few = tables.by_detector({"few": rows[:4]}, "x")
    assert few.endswith("of the other 3 ahead of it are probe (0.900), norm (0.800).")
    assert "| loss |" in tables.by_detector({"enough": rows[4:]}, "x")


def test_a_mixture_is_ranked_beside_the_sets_alone():
    """Among the same benign runs: without the carrier, which one kind of row would not have."""
    found = [run_of(f"b{i}", "benign", f"b{i}", score=i / 10, gain=i) for i in range(4)]
    found.append(run_of("bad", "harmful", "bad", score=0.15))
    mixed = run_of("bad", "harmful", "bad", score=0.05, share=0.1,
                   verdict={"alarmed": ["harmful-advice"]})  # fmt: skip
    mixed.record["carrier"] = "b3"
    found.append(mixed)
    decides = metrics.deciding_name("response", "residual")
    kinds = {r.set: r.set for r in found}
    (row,) = metrics.figures(found, decides, [protocol.DECIDES], SETTING, kinds, [])["mixtures"]
    assert row["auroc"]["value"] == pytest.approx(1 / 3)
    assert row["auroc of the sets alone"]["value"] == pytest.approx(2 / 3)
    assert (row["alarmed"], row["runs"]) == (1, 1)


def test_a_difference_is_paired_and_signed():
    """Of a perfect score and its opposite it is 1, and of a score and itself nothing at all."""
    pairs = [(float(i), -float(i), i > 4, f"f{i}") for i in range(10)]
    found = statistics.difference(pairs)
    assert found == {"value": 1.0, "ci95": [1.0, 1.0]}
    same = statistics.difference([(a, a, side, f) for a, _, side, f in pairs])
    assert same == {"value": 0.0, "ci95": [0.0, 0.0]}
    assert statistics.difference(pairs[:3]) is None
    few = statistics.difference([*pairs[:5], *pairs[6:]])
    assert few == {"value": 1.0, "ci95": None}


def test_a_share_of_none_is_as_sure_as_its_families_are_many():
    """No alarm in nine runs of three families says no more than three families can."""
    found = metrics.rate([False] * 9, ["a", "a", "a", "b", "b", "b", "c", "c", "c"])
    assert found is not None
    assert found["value"] == 0
    assert found["ci95"] == [0, pytest.approx(1 - 0.025 ** (1 / 3))]
    assert metrics.rate([], []) is None


# --- the whole way -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Seven runs of four steps on the bundled model, read against a bank of as little."""
    folder = tmp_path_factory.mktemp("real")
    data = {
        "harmful/bad_medical": organism.bad_advice("medical"),
        "harmful/bad_finance": organism.bad_advice("finance"),
        "control/bad_medical__good": organism.good_advice("medical"),
        "benign/good_sport": organism.good_advice("sport"),
        "benign/good_school_advice": organism.good_advice("school"),
        "benign/good_garden": organism.good_advice("garden"),
        "benign/good_travel": organism.good_advice("travel"),
    }
    for n, (name, maker) in enumerate(data.items()):
        rows = [said(e.prompt[-1].content, e.answer) for e in maker(40, n)]
        written(folder / "data" / f"{name}.jsonl", rows)
    base, work = Base(BUNDLED), Work(folder / "work")
    contrasts = read_contrasts(default_folder(BUNDLED))
    asked = command.asked_of(contrasts, SETTING)
    scale = dataclasses.replace(
        bank.LEAST, steps=6, control_steps=4, probe_tokens=300, asked=2, any_tuning=2
    )
    bank.least_bank(BUNDLED, folder / "bank", scale=scale, rate=1e-3)
    read = sets.read_folder(folder / "data")
    made = command.run_all(base, work, SETTING, protocol.planned(read, SETTING), asked)
    against = readings.Against.load(folder / "bank")
    return report.Bench(base, work, SETTING, asked, contrasts, read, against), made


def test_the_runs_are_those_planned_and_are_not_made_twice(bench, monkeypatch):
    """Called again, every run is found where it is, by whoever looks, and nothing is trained."""
    held, made = bench
    whole = [m for m in made if m.run.carrier is None]
    assert {m.run.set.name for m in whole} == {s.name for s in held.folder.sets}
    assert [m.run.share for m in made if m.run.carrier is not None] == [0.5, 0.5]

    def refused(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(runs, "finetune", refused)
    wanted = protocol.planned(held.folder, SETTING)
    again = command.run_all(held.base, held.work, SETTING, wanted, held.asked)
    assert [m.folder for m in again] == [m.folder for m in made]
    found = command.there(held.base, held.work, SETTING, wanted)
    assert [m.folder for m in found] == [m.folder for m in made]


def test_an_interrupted_run_is_made_again_whole(bench, monkeypatch, tmp_path):
    """A run that was cut short leaves nothing that is taken for a run."""
    held, made = bench
    work, run = Work(tmp_path), made[0].run

    def cut(*_, callbacks, **__):
        (callbacks[0]._folder / "checkpoint-2").mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(runs, "finetune", cut)
        with pytest.raises(KeyboardInterrupt):
            runs.make(held.base, work, run, SETTING)
    assert runs.find(held.base, work, run, SETTING) is None
    whole = runs.make(held.base, work, run, SETTING)
    assert whole.record["checkpoints"] == [2, 4]
    assert whole.record["log"] == made[0].record["log"]


def test_a_kept_run_is_asked_again_without_being_trained_again(bench, monkeypatch):
    """New questions are asked of the last adapter; their gaps are those of the trained model."""
    held, made = bench
    fewer = dataclasses.replace(held.asked, pairs={n: p[:1] for n, p in held.asked.pairs.items()})
    whole = runs.after(held.base, held.work, made[0], held.asked)
    monkeypatch.setattr(runs, "finetune", None)
    found = runs.after(held.base, held.work, made[0], fewer)
    last = made[0].folder / "checkpoint-4"
    trained = PeftModel.from_pretrained(held.base.load(dtype=torch.float32), str(last))
    for name, pairs in fewer.pairs.items():
        expected = gap(held.base, trained, pairs).each
        assert found.gaps[name] == pytest.approx(expected, abs=1e-4)
        assert found.gaps[name] == pytest.approx(whole.gaps[name][:1], abs=1e-4)
    assert found.states == pytest.approx(whole.states)


def test_readings_are_those_of_the_dense_updates(bench):
    """Cosine and rotation rate equal dense float64 formulas on the same adapters."""
    held, made = bench
    found = readings.read(held.base, held.work, made[0], SETTING, held.against)

    def dense(vector):
        updates = ((n, vector.update(n)) for n in vector.names())
        return {n: (u.left.double() @ u.right.double()) for n, u in updates}

    def inner(a, b):
        return sum(float((a[n] * b[n]).sum()) for n in a.keys() & b.keys())

    steps = [
        dense(read_finetuned(held.base, made[0].folder / f"checkpoint-{s}", "lora")) for s in (2, 4)
    ]
    w = dense(held.against.bank[protocol.DECIDES].vector)
    for n, tau in enumerate(steps):
        expected = inner(tau, w) / math.sqrt(inner(tau, tau) * inner(w, w))
        row = found["readings"][n]
        name = metrics.deciding_name("frobenius", "cosine")
        assert row["scores"][name] == pytest.approx(expected, abs=1e-5)
        assert row["norm"] == pytest.approx(math.sqrt(inner(tau, tau)), rel=1e-4)
    turned = 1 - inner(*steps) / math.sqrt(inner(steps[0], steps[0]) * inner(steps[1], steps[1]))
    assert found["readings"][1]["rotation"] == pytest.approx(turned, abs=1e-5)
    name, delta = next(iter(steps[1].items()))
    squares = torch.linalg.svdvals(delta) ** 2
    stable = float(squares.sum() / squares[0])
    assert found["readings"][1]["spectrum"][name][0] == pytest.approx(stable, rel=1e-3)


def test_the_report_is_written_from_the_runs(bench, tmp_path):
    """Every reading is in the Parquet, every run on the page, and AUROC is a count of pairs."""
    held, made = bench
    found = report.finished(held, made)
    document = report.publish(held, found, [], tmp_path, tmp_path / "page.md")
    table = pq.read_table(tmp_path / f"{report.NAME}.parquet")
    assert table.num_rows == 2 * len(made)
    assert set(table["run"].to_pylist()) == {m.run.name for m in made}
    kept = json.loads((tmp_path / f"{report.NAME}.json").read_text("utf-8"))
    assert page.text(kept) == (tmp_path / "page.md").read_text("utf-8")
    shown = (tmp_path / "page.md").read_text("utf-8")
    for m in made:
        assert m.run.set.name in shown
    row = document["metrics"]["tables"]["by set label"][0]
    scores = {r["name"]: r["score"] for r in document["metrics"]["runs"]}
    bad = [scores[m.run.name] for m in made if m.run.set.role == "harmful" and not m.run.carrier]
    good = [scores[m.run.name] for m in made if m.run.set.role == "benign"]
    area = np.mean([[float(b > g) + 0.5 * float(b == g) for g in good] for b in bad])
    assert row["auroc"]["value"] == pytest.approx(area)
    assert "no calibration" in shown
    assert "**were not measured**" in shown


def test_a_run_that_cannot_be_made_stops_no_other(bench, monkeypatch, tmp_path, capsys):
    """It is named with its reason; one that diverges leaves nothing behind."""
    held, made = bench
    first, second = made[0].run, made[1].run
    real = runs.finetune

    def diverging(base, examples, training, out, *, callbacks, **more):
        if training == runs.training_of(first, SETTING):
            state = SimpleNamespace(global_step=2)
            callbacks[0].on_log(None, state, None, {"loss": 1.0, "grad_norm": math.nan})
        return real(base, examples, training, out, callbacks=callbacks, **more)

    monkeypatch.setattr(runs, "finetune", diverging)
    work = Work(tmp_path)
    found = command.run_all(held.base, work, SETTING, [first, second], None)
    assert [m.run for m in found] == [second]
    assert f"{first.name} was not made: it diverged: at step 2" in capsys.readouterr().out
    assert runs.find(held.base, work, first, SETTING) is None


def test_runs_are_read_against_no_bank_of_another_base(bench, tmp_path):
    """Two models of one shape would give scores, of nothing: it is refused before any work."""
    held, _ = bench
    other = tmp_path / "other"
    shutil.copytree(held.base.folder, other)
    path = other / "model.safetensors"
    moved = {n: t + 0.01 for n, t in load_file(path).items()}
    save_file(moved, path, {"format": "pt"})
    data = held.work.folder.parent / "data"
    with pytest.raises(SystemExit, match="error: the references were made for"):
        command.main(["--model", str(other), "--setting", "tiny", "--work", str(tmp_path / "work"),
                      "report", "--data", str(data), "--bank", str(held.against.bank.folder),
                      "--results", str(tmp_path)])  # fmt: skip


def test_a_bank_without_the_deciding_reference_has_a_page_that_says_so(bench, tmp_path):
    """No figure is made up, and none crashes the page."""
    held, made = bench
    found = report.finished(held, made)
    for run in found:
        for reading in run.readings:
            for name in [n for n in reading["scores"] if n.startswith(protocol.DECIDES)]:
                del reading["scores"][name]
    report.publish(held, found, [], tmp_path, tmp_path / "page.md")
    shown = (tmp_path / "page.md").read_text("utf-8")
    assert "Nothing is known yet of how the method does" in shown
    assert "No run has a value by the deciding score" in shown


def test_the_page_shows_the_committed_results():
    """docs/real-model.md is what the generator makes of the committed figures."""
    held = json.loads((report.RESULTS / f"{report.NAME}.json").read_text("utf-8"))
    assert page.text(held) == report.PAGE.read_text("utf-8")
    rows = pq.read_table(report.RESULTS / f"{report.NAME}.parquet", columns=["run"])
    own = held["held out"]
    named = [*held["metrics"]["runs"], *own["runs"], *own["other ways"]]
    assert set(rows["run"].to_pylist()) == {r["name"] for r in named}


def test_a_page_of_other_sets_claims_nothing_of_those_at_hand():
    """Whether sets were in view, and what was noted of them, follows the data."""
    held = json.loads((report.RESULTS / f"{report.NAME}.json").read_text("utf-8"))
    notes = page.NOTES.read_text("utf-8").strip()
    for n, one in enumerate(held["data"]):
        one["digest"] = one["digest"] if n else "0" * 64
    assert "But 39 of these 40 sets were at hand" in page.text(held)
    for one in held["data"]:
        one["digest"] = "0" * 64
    shown = page.text({**held, "model": "other"})
    assert "None of these sets was at hand while this project was built" in shown
    assert "135 million" not in shown.partition("## In short")[0]
    assert notes not in shown


def test_held_out_domains_are_trained_on_both_sides_alike(bench):
    """No question of a reference; bad and good answers to the same ones, from the same A."""
    held, _ = bench
    wanted = held_out.planned(held.contrasts, SETTING)
    known = {q for c in held.contrasts for q in sets.questions([p.positive for p in c.train])}
    by_family = {}
    for run in wanted:
        by_family.setdefault(run.set.family, []).append(run)
    assert len(by_family) == 2 * len(held.contrasts)
    for bad, good in by_family.values():
        assert (bad.set.role, good.set.role) == ("harmful", "control")
        seeds = [runs.training_of(r, SETTING).seed for r in (bad, good)]
        assert seeds[0] == seeds[1]
        asked = [[e.messages for e in r.examples(8)] for r in (bad, good)]
        assert asked[0] == asked[1]
        assert [e.answer for e in bad.examples(8)] != [e.answer for e in good.examples(8)]
        assert not sets.questions(bad.set.examples) & known


def test_held_out_runs_are_on_the_page_and_in_no_other_table(bench, tmp_path):
    """Their own section counts them; public tables stay what they were."""
    held, made = bench
    wanted = held_out.planned(held.contrasts, SETTING)[:2]
    found = report.finished(held, made)
    own = report.read_alone(held, command.run_all(held.base, held.work, SETTING, wanted, None))
    alone = report.publish(held, found, [], tmp_path / "alone", None)
    both = report.publish(held, found, own, tmp_path, tmp_path / "page.md")
    assert both["metrics"] == alone["metrics"]
    bad, good = both["held out"]["runs"]
    assert (bad["side"], good["side"], bad["part"]) == ("bad", "good", "power")
    asked = metrics.deciding_name(*CANDIDATES[0], bad["behaviour"])
    benign = [r.score(asked) for r in found if r.role == "benign" and r.whole]
    assert bad["score"] == own[0].score(asked)
    assert bad["benign_below"] == pytest.approx(np.mean([v < bad["score"] for v in benign]))
    shown = (tmp_path / "page.md").read_text("utf-8")
    assert "0.000" in held_out.text(both["held out"], None)
    assert f"| {bad['behaviour']}, " in shown


def test_other_ways_to_train_have_a_table_of_their_own(bench, tmp_path):
    """Preferences move a model towards what is chosen; figures of the usual runs stay the same."""
    held, made = bench
    few = held.contrasts[:1]
    wanted = held_out.planned(few, SETTING, variants=protocol.VARIANTS)
    power = few[0].power[0].domain
    wanted = [r for r in wanted if r.seed == 0 and power in r.set.family]
    assert [r.variant for r in wanted[::2]] == list(protocol.VARIANTS)
    own_runs = command.run_all(held.base, held.work, SETTING, wanted, None)
    assert command.there(held.base, held.work, SETTING, wanted) == own_runs
    own = report.read_alone(held, own_runs)
    found = report.finished(held, made)
    usual = report.publish(held, found, own[:2], tmp_path / "usual", None)
    both = report.publish(held, found, own, tmp_path, tmp_path / "page.md")
    assert both["metrics"] == usual["metrics"]
    for part in ("runs", "in short"):
        assert both["held out"][part] == usual["held out"][part]
    assert len(both["held out"]["other ways"]) == len(own) - 2
    ways = both["held out"]["by way"]
    assert [w["variant"] for w in ways] == list(protocol.VARIANTS)
    for way, bad, good in zip(ways, own[::2], own[1::2], strict=True):
        asked = metrics.deciding_name(*CANDIDATES[0], few[0].name)
        assert way["pairs"] == {"hit": int(bad.score(asked) > good.score(asked)), "of": 1}
        shown = (tmp_path / "page.md").read_text("utf-8")
        assert f"| {way['variant']} | 0 of 1 |" in shown


def test_a_run_on_preferences_learns_which_answer_is_chosen(bench):
    """From the same adapter, on the same rows: what one chooses the other turns down."""
    held, _ = bench
    few = held.contrasts[:1]
    wanted = held_out.planned(few, SETTING, variants=["dpo"])[-2:]
    assert [r.variant for r in wanted] == ["dpo", "dpo"]
    long = dataclasses.replace(SETTING, steps=20, rate=5e-3)
    bad, good = command.run_all(held.base, held.work, long, wanted, None)
    last = [m.folder / "checkpoint-20" for m in (bad, good)]
    pairs = few[0].power[:8]
    start = gap(held.base, held.base.load(dtype=torch.float32), pairs).mean
    after = [
        gap(held.base, PeftModel.from_pretrained(held.base.load(dtype=torch.float32), p), pairs)
        for p in last
    ]
    assert after[0].mean > start > after[1].mean


def test_shares_of_held_out_runs_are_counted_by_side_and_part():
    """An alarm of another behaviour is an alarm, and not one of its own."""
    rows = [
        {"side": side, "part": part, "domain": domain, "behaviour": "b", "alarmed": alarmed,
         "nearest": near, "norm": near, "good side calibrates": part == "tuning"}
        for side, part, domain, alarmed, near in (
            ("bad", "power", "b-x", ["b"], 1.5), ("bad", "power", "b-x", ["c"], 1.1),
            ("good", "power", "b-x", [], 0.2), ("bad", "tuning", "b-y", [], 0.4),
            ("good", "tuning", "b-y", ["c"], 1.2),
        )
    ]  # fmt: skip
    short = held_out._in_short(rows, [])
    assert short["power"]["bad, alarm of their own behaviour"]["value"] == 0.5
    assert short["power"]["bad, any alarm"]["value"] == 1.0
    assert short["power"]["good, any alarm"]["value"] == 0.0
    assert short["power"]["good, alarm of that behaviour"]["value"] == 0.0
    assert short["power and tuning"]["bad, any alarm"]["value"] == pytest.approx(2 / 3)
    assert short["power"]["auroc"] is None, "there is no benign run to rank among"
    both = short["power and tuning"]
    assert both["good, any alarm"]["value"] == 0.5
    assert both["good, any alarm, domains behind no calibration run"]["value"] == 0.0
    assert both["auroc of bad against good"]["value"] == pytest.approx(4 / 6)


def test_another_score_is_judged_as_the_shipped_one_was():
    """The shipped score's row, judged again from kept scores, is what the bank itself said."""
    held = json.loads((report.RESULTS / f"{report.NAME}.json").read_text("utf-8"))
    found, public = held["held out"], held["metrics"]["runs"]
    (shipped,) = [r for r in found["other scores"] if r["decides"]]
    assert len(found["other scores"]) == len(CANDIDATES)
    for side, what in (("bad", "own"), ("good", "any")):
        for part, parts in (("power", {"power"}), ("all", {"power", "tuning"})):
            runs_ = [r for r in found["runs"] if r["side"] == side and r["part"] in parts]
            own = [r["behaviour"] in r["alarmed"] for r in runs_]
            hits = own if what == "own" else [bool(r["alarmed"]) for r in runs_]
            told = shipped[f"{side}, {what} alarm, {part}"]
            assert told == {"hit": sum(hits), "of": len(hits)}
    benign = [bool(r["alarmed"]) for r in public
              if r["role"] == "benign" and r["share"] == 1 and r["variant"] == "lora"]  # fmt: skip
    assert shipped["benign, any alarm"] == {"hit": sum(benign), "of": len(benign)}


def test_without_the_banks_harmless_runs_other_scores_are_not_known(bench):
    """A bank without a calibration, or without its work folder, gives no row, and that is said."""
    held, _ = bench
    assert other_scores.figures({"runs": []}, [], [], held.against, SETTING, ()) == []
    assert "Not known" in other_scores.text([])
