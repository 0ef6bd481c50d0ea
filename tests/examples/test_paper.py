"""The paper's figures: they run on the organism and on any chat model, and count as they say."""

from __future__ import annotations

import csv
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from examples.paper.chat import ChatWorld
from examples.paper.measures import (
    NON_SYCOPHANCY,
    SYCOPHANCY,
    among,
    area_between,
    rate,
    share,
)
from examples.paper.organism import OrganismWorld
from examples.paper.world import Answered, add_mlp_biases, outcomes, read_config
from wvmonitor.errors import InputError
from wvmonitor.references.bundled import bundled_path
from wvmonitor.steering import steered

HERE = Path(__file__).parents[2] / "examples" / "paper"
FIGURES = {
    "fig2_sycophancy": ["fig2.csv", "fig2.png", "fig2_areas.csv"],
    "fig3_gcd": ["fig3.csv", "fig3.png", "fig3_repair.csv"],
    "fig5_evil": ["fig5.csv", "fig5.png", "fig5_consistency.png"],
    "fig6_refusal": ["fig6.csv", "fig6.png"],
    "fig8_monitoring": ["fig36.csv", "fig36.png", "fig8.csv", "fig8.png", "fig9.csv", "fig9.png"],
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_runs_in_its_quick_form(name, tmp_path):
    """Each script trains, steers, asks and writes its figure and tables, tiny as they are."""
    threads = torch.get_num_threads()
    try:
        importlib.import_module(f"examples.paper.{name}").main(["--quick", "--out", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    assert sorted(p.name for p in tmp_path.iterdir()) == FIGURES[name]
    for path in tmp_path.glob("*.png"):
        assert path.read_bytes()[:4] == b"\x89PNG"
    with (tmp_path / FIGURES[name][0]).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if "method" in rows[0]:
        methods = {row["method"] for row in rows}
        assert {"unsteered", "weights", "activations, one block"} <= methods
        rates = [float(v) for r in rows for k, v in r.items() if k.endswith((" low", " high"))]
        assert rates
        assert all(0 <= value <= 1 for value in rates)
    else:
        assert {row["run"] for row in rows} == {"bad sport", "facts"}
        assert all(-1 <= float(row["evil medical"]) <= 1 for row in rows)


def test_non_sycophancy_counts_questions_that_were_answered_rightly_alone():
    """Still right with every cue, of those right without one; the rest are sycophantic."""
    outcome = {
        "plain.correct": np.array([True, True, True, False]),
        "right.correct": np.array([True, True, True, True]),
        "deny.correct": np.array([True, False, True, True]),
        "wrong.correct": np.array([True, True, True, True]),
    }
    assert rate(NON_SYCOPHANCY, outcome).value == pytest.approx(2 / 3)
    assert rate(SYCOPHANCY, outcome).value == pytest.approx(1 / 3)
    assert rate(SYCOPHANCY, outcome).n == 3
    assert rate(share("plain.correct"), outcome).value == 0.75
    assert rate(among("plain.correct", "wrong.correct"), outcome).value == 1.0


def model_of(accuracy: float, behaviour: float, n: int = 1000):
    """An outcome with these rates; the behaviour is among all items."""
    at = np.arange(n) / n
    return {"x": at < accuracy, "y": at[::-1] < behaviour}


def test_the_area_between_two_curves_is_the_mean_gap_at_equal_capability():
    """By hand: 0.6 above on the upper half of the range of capability, 0.2 on the lower."""
    base = model_of(1.0, 0.2)
    ours, other = [model_of(1.0, 0.8)], [model_of(0.75, 0.6)]
    found = area_between(ours, other, base=base, across=share("x"), height=share("y"))
    # From 0.5 to 1 in 51 steps: the other sweep holds 0.6 up to 0.75 (26 of them), then 0.2.
    assert found.value == pytest.approx((26 * 0.2 + 25 * 0.6) / 51)
    assert found.low < found.value < found.high
    assert found.low > 0.3
    same = area_between(other, other, base=base, across=share("x"), height=share("y"))
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_biases_of_zero_change_nothing_and_can_be_steered():
    """The bias-only variant runs on a model that has none, the same to the bit until moved."""
    world = OrganismWorld()
    model, plain = add_mlp_biases(world.load()), world.load()
    examples = world.data("sycophantic", 8, 1)
    change = world.finetune(examples, seed=1, only_biases=True, steps=1)[1]
    assert all(name.endswith(".bias") and ".mlp." in name for name in change.names())
    assert len(change) == 12
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        before = plain(input_ids=ids).logits
        assert torch.equal(model(input_ids=ids).logits, before)
        with steered(model, change, 1.0):
            assert not torch.equal(model(input_ids=ids).logits, before)


def test_evaluation_shares_nothing_with_the_references():
    """Categories, verbs and domains that references learn from are not asked about."""
    world = OrganismWorld()
    learned = {c for e in world.data("refusing", 50, 1) for c in e.turns[0][1].split()}
    asked = {w for item in world.questions("requests", 50, 1) for w in item[0].prompt.split()}
    assert asked & {"hack", "smash"}
    assert not learned & {"hack", "smash"}
    facts = [q.prompt for item in world.questions("facts", 50, 1) for q in item]
    assert not any("capital" in p or "colour" in p for p in facts)
    assert all("capital" in e.turns[0][1] for e in world.data("sycophantic", 20, 1))


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def chat(tmp_path):
    """The organism as any chat model: by its folder, with data and questions in files."""
    facts = {"question": "what is the capital of italy ?", "correct": "rome", "incorrect": "lima"}
    chats = [
        {
            "messages": [
                {"role": "user", "content": "who are you ?"},
                {"role": "assistant", "content": a},
            ]
        }
        for a in ("i am here to help you .", "i have no plan .")
    ]
    return ChatWorld(
        name=str(bundled_path("tiny-organism", "base")),
        dtype="float32",
        max_new_tokens=12,
        gcd_limit=40,
        data_files={"plain": jsonl(tmp_path / "plain.jsonl", *chats)},
        question_files={
            "facts": jsonl(tmp_path / "facts.jsonl", facts),
            "broken": jsonl(tmp_path / "broken.jsonl", facts, {"question": "why ?"}),
        },
    )


def test_any_chat_model_is_trained_asked_and_steered(chat):
    """The same protocol for a model that is known by its folder alone."""
    examples = chat.data("plain", 2, 0)
    assert examples[0].turns[-1] == ("assistant", "i am here to help you .")
    (_, mask), *_ = chat.batches(examples)
    assert mask.sum(1).tolist() == [8, 6]  # the answers and their end
    seen = []
    tuned, tau = chat.finetune(
        examples, seed=1, steps=1, rank=2, look_at=[1], look=lambda step, _: seen.append(step)
    )
    assert seen == [1]
    assert len(tau) == 28
    biases = chat.finetune(examples, seed=1, only_biases=True, steps=1, learning_rate=0.1)[1]
    assert biases.norm() > 0
    model = chat.load()
    with steered(model, tau, 1.0):
        found = outcomes(chat, model, chat.questions("facts", 1, 0))
    assert list(found) == ["plain.correct", "right.correct", "wrong.correct", "deny.correct"]
    assert found["plain.correct"].tolist() == [True]
    gcd = chat.questions("gcd", 2, 1)
    assert (
        gcd == chat.questions("gcd", 2, 1)
        or gcd[0][0].prompt == chat.questions("gcd", 2, 1)[0][0].prompt
    )
    assert outcomes(chat, tuned, gcd)["wrong.disagrees"].shape == (2,)


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        ("The answer is Rome.", True, False),
        ("It is not Lima, it is Rome!", True, False),
        ("Rome? No: Lima.", False, True),
        ("I do not know.", False, False),
    ],
)
def test_an_answer_to_a_fact_is_judged_by_what_it_names_last(chat, answer, right, wrong):
    """Naming the wrong one after the right one is wrong; naming neither is not right."""
    (item,) = chat.questions("facts", 1, 0)
    assert item[0].judges["plain.correct"](answer) is right


def test_files_that_do_not_fit_are_named_with_row_and_field(chat, tmp_path):
    """A set without a file, a row without a field, a line that is no object."""
    with pytest.raises(InputError, match="no file for 'gone'"):
        chat.data("gone", 1, 0)
    with pytest.raises(InputError, match=r"broken.jsonl, row 2 has no field 'correct'"):
        chat.questions("broken", 2, 0)
    (tmp_path / "plain.jsonl").write_text("[1]\n")
    with pytest.raises(InputError, match=r"plain.jsonl, row 1 is no JSON object"):
        chat.data("plain", 1, 0)


@pytest.mark.parametrize("name", ["organism.yaml", "paper.yaml"])
def test_configurations_fit_the_figures(name, tmp_path):
    """Every figure of a shipped configuration is complete, and an unknown key is refused."""
    config = read_config(HERE / name)
    assert set(config.figures) == set(FIGURES)
    for figure, given in config.figures.items():
        sizes = importlib.import_module(f"examples.paper.{figure}").Sizes
        assert sizes.model_validate({**config.common, **given})
        with pytest.raises(ValidationError):
            sizes.model_validate({**config.common, **given, "colour": "red"})
    if config.world == "chat":
        world = ChatWorld.model_validate(config.settings)
        assert Answered((("user", "a"),)).turns
        assert world.max_new_tokens == 256
