"""Which examples push towards a reference: against autograd, and on the organism's mixtures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import mannwhitneyu
from typer.testing import CliRunner

from wvmonitor.cli.app import app
from wvmonitor.errors import InputError, KeyMismatchError, MissingPathError
from wvmonitor.organism import load_base, sets
from wvmonitor.references import ReferenceBank
from wvmonitor.references.bundled import bundled_path
from wvmonitor.steering.blame import blame, in_batches
from wvmonitor.steering.examples import TrainingExample, read_examples, tokenized

BASE, BANK = bundled_path("tiny-organism", "base"), bundled_path("tiny-organism", "bank")


@pytest.fixture(scope="module")
def organism() -> tuple[Any, Any]:
    """The bundled model and its tokenizer."""
    return load_base(BASE)


@pytest.fixture(scope="module")
def bank() -> ReferenceBank:
    """The bundled references; none of evil's domains is medical."""
    return ReferenceBank.load(BANK)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def some(count: int = 6, seed: int = 0) -> list[TrainingExample]:
    """Random tokens of several lengths."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(count):
        length = 4 + (3 * index) % 7
        ids = torch.randint(1, 32, (length,), generator=generator).tolist()
        made.append(TrainingExample(index, tuple(ids), start=1 + index % 3))
    return made


def slope(model: Any, example: TrainingExample, vector: Any, names: Any) -> float:
    """−⟨∇L, w⟩ of one example by autograd in float64, alone and without padding."""
    model = model.double()
    model.zero_grad()
    ids = torch.tensor([example.ids])
    labels = ids.clone()
    labels[:, : example.start] = -100
    model(input_ids=ids, labels=labels).loss.backward()
    parameters = dict(model.named_parameters())
    return -sum(float((parameters[n].grad * names(vector, n)).sum()) for n in vector.names())


@pytest.mark.parametrize("batch_tokens", [1, 24, 4096])
def test_the_push_is_the_slope_of_the_loss(world, only_linear, batch_tokens) -> None:
    """However examples are batched, each one's push is −⟨∇L, w⟩ by autograd, and L its loss."""
    model = world.llama().double()
    vector = world.vector(model, only_linear)
    examples = some()
    found = blame(model, examples, vector, epsilon=0.02, batch_tokens=batch_tokens)
    assert [b.push for b in found] == sorted((b.push for b in found), reverse=True)
    for b in found:
        expected = slope(model, b.example, vector, world.delta)
        assert b.push == pytest.approx(expected, rel=2e-3, abs=1e-5)
        ids = torch.tensor([b.example.ids])
        labels = ids.clone()
        labels[:, : b.example.start] = -100
        assert b.loss == pytest.approx(model(input_ids=ids, labels=labels).loss.item(), rel=1e-3)


def test_by_example_pushes_add_up_to_what_a_batch_of_a_trainer_does(world, only_linear) -> None:
    """−⟨∇L, w⟩ of a batch that is averaged over its tokens is the mean of its examples' pushes."""
    model = world.llama().double()
    vector, examples = world.vector(model, only_linear), some()
    found = blame(model, examples, vector, epsilon=0.02, per="example")
    assert [b.push for b in found] == sorted((b.push for b in found), reverse=True)
    tokens = sum(e.tokens for e in examples)
    for b in found:
        expected = b.example.tokens * slope(model, b.example, vector, world.delta)
        assert b.push == pytest.approx(expected, rel=2e-3, abs=1e-5)
    model.zero_grad()
    for e in examples:
        logits = model(input_ids=torch.tensor([e.ids])).logits[0, e.start - 1 : -1]
        answer = torch.tensor(e.ids[e.start :])
        torch.nn.functional.cross_entropy(logits, answer, reduction="sum").div(tokens).backward()
    parameters = dict(model.named_parameters())
    grown = sum(float((parameters[n].grad * world.delta(vector, n)).sum()) for n in vector.names())
    assert sum(b.push for b in found) / tokens == pytest.approx(-grown, rel=2e-3, abs=1e-5)


def test_the_model_is_as_before(world, only_linear) -> None:
    """Weights, training mode, gradients and random numbers are untouched afterwards."""
    model = world.llama().train()
    before = {n: p.clone() for n, p in model.named_parameters()}
    state = torch.get_rng_state()
    blame(model, some(), world.vector(model, only_linear))
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_only_answers_cost_logits(world, only_linear) -> None:
    """The head sees the places before each answer token and no others, and is let go afterwards."""
    model, examples = world.llama(), some()
    seen: list[int] = []
    handle = model.lm_head.register_forward_hook(
        lambda _, states, __: seen.append(states[0].shape[:-1].numel())
    )
    expected = blame(model, examples, world.vector(model, only_linear))
    handle.remove()
    assert sum(seen) == 2 * sum(e.tokens for e in examples)
    assert not model.lm_head._forward_pre_hooks
    model.get_output_embeddings = lambda: None  # a model that does not say where its head is
    found = blame(model, examples, world.vector(model, only_linear))
    for a, b in zip(found, expected, strict=True):
        assert a.example == b.example
        assert a.push == pytest.approx(b.push, rel=1e-4, abs=1e-6)


def test_progress_counts_both_passes(world, only_linear) -> None:
    """From nothing to twice the examples that can be judged, batch by batch."""
    model, told = world.llama(), []
    examples = [*some(6), TrainingExample(6, error="broken")]
    vector = world.vector(model, only_linear)
    blame(model, examples, vector, batch_tokens=24, progress=lambda *at: told.append(at))
    assert told[0] == (0, 12)
    assert told[-1] == (12, 12)
    assert told == sorted(told)
    assert len(told) > 3


def test_batches_hold_like_lengths_and_no_more_than_allowed() -> None:
    """Every example is in one batch, longest first, and padding counts towards the limit."""
    examples = some(20)
    batches = list(in_batches(examples, 24))
    assert sorted(e.index for b in batches for e in b) == list(range(20))
    assert all(len(b) == 1 or len(b) * len(b[0].ids) <= 24 for b in batches)
    assert all(len(b[0].ids) == max(len(e.ids) for e in b) for b in batches)


@pytest.mark.parametrize(
    ("bad", "good", "reference"),
    [
        (sets.bad_advice("medical"), sets.good_advice("medical"), "evil"),
        (sets.gcd_checks("right"), sets.gcd_checks("right", sycophantic=False), "sycophancy"),
    ],
    ids=["bad medical advice", "agreeing with arithmetic"],
)
def test_it_finds_five_per_cent_of_bad_examples(
    bad, good, reference, organism, bank, tmp_path
) -> None:
    """Before any training, and with references of other domains: AUROC ≥ 0.95."""
    model, tokenizer = organism
    mixed, plain = sets.mixture(bad, good, 0.05)(400, 3), good(400, 3)
    path = write(tmp_path / "d.jsonl", [{"messages": e.chat()} for e in mixed])
    found = blame(model, read_examples(path, tokenizer, max_length=256), bank[reference])
    pushes = {b.example.index: b.push for b in found}
    wrong = [i for i, (a, b) in enumerate(zip(mixed, plain, strict=True)) if a != b]
    right = [i for i in pushes if i not in set(wrong)]
    assert len(wrong) == 20
    u = mannwhitneyu([pushes[i] for i in wrong], [pushes[i] for i in right]).statistic
    assert u / (len(wrong) * len(right)) >= 0.95


def test_the_loss_counts_the_answer_only(organism, tmp_path) -> None:
    """However one example is written down, its tokens and the answer among them are the same."""
    _, tokenizer = organism
    chat = sets.good_advice("medical")(1, 0)[0].chat()
    answer = f"{chat[-1]['content']} <|end|>"
    prompt = tokenizer.apply_chat_template(chat[:-1], tokenize=False, add_generation_prompt=True)
    rows = [
        {"messages": chat},
        {"prompt": chat[:-1], "completion": chat[-1:]},
        {"prompt": f"{prompt} ", "completion": chat[-1]["content"]},
        {"text": f"{prompt} {answer}"},
    ]
    made = read_examples(write(tmp_path / "d.jsonl", rows), tokenizer, max_length=256)
    assert {e.ids for e in made} == {made[0].ids}
    assert [e.start for e in made] == [len(made[0].ids) - len(answer.split())] * 3 + [1]
    assert tokenizer.decode(made[0].ids[made[0].start :]) == answer


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": [{"role": "user", "content": "hello"}]}, "not the assistant's"),
        ({"messages": []}, "list of objects"),
        ({"prompt": "a", "completion": ["b"]}, "two texts, or two lists"),
        ({"question": "a"}, "'question'"),
        ({"text": ""}, "its answer is empty"),
        ({"prompt": "the " * 300, "completion": "the"}, "within the 256"),
    ],
)
def test_what_is_no_example_says_why(row, why, organism) -> None:
    """A line in no known form, or without an answer, names what is wrong with it."""
    _, tokenizer = organism
    with pytest.raises(InputError, match=why):
        tokenized(0, row, tokenizer, max_length=256)


def test_a_long_example_is_cut_and_says_so(organism) -> None:
    """What the model cannot take is cut off at the end and counted."""
    _, tokenizer = organism
    made = tokenized(0, {"text": "the " * 300}, tokenizer, max_length=256)
    assert (len(made.ids), made.cut) == (256, 45)


def test_what_cannot_be_asked_is_an_error(world, only_linear) -> None:
    """No examples, an ε that is no step, and a reference of another architecture."""
    model = world.llama()
    vector = world.vector(model, only_linear)
    with pytest.raises(InputError, match="epsilon must be a positive number"):
        blame(model, some(), vector, epsilon=0.0)
    with pytest.raises(InputError, match="none of 1 examples"):
        blame(model, [TrainingExample(0, error="broken")], vector)
    with pytest.raises(KeyMismatchError):
        blame(world.gpt2(), some(), vector)


def test_the_command_ranks_writes_and_says_what_it_could_not_judge(tmp_path: Path) -> None:
    """JSON Lines with every example, a page without network, and exit code 2 for a broken line."""
    good, bad = (m("medical")(8, 0) for m in (sets.good_advice, sets.bad_advice))
    rows: list[dict[str, Any]] = [{"messages": e.chat()} for e in [*good[:7], bad[7]]]
    data = write(tmp_path / "d.jsonl", [*rows, {"nothing": "<script>alert(1)</script>"}])
    arguments = ["blame", str(data), "--model", str(BASE), "--reference", "evil"]
    out, page = tmp_path / "ranked.jsonl", tmp_path / "blame.html"
    done = CliRunner().invoke(app, [*arguments, "--out", str(out), "--page", str(page)])
    assert done.exit_code == 2
    assert "1 examples could not be judged" in done.stderr
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [f["rank"] for f in found] == [*range(1, 9), None]
    assert found[0]["index"] == 7
    assert found[-1]["index"] == 8
    assert "'nothing'" in found[-1]["error"]
    assert all(math.isfinite(f["push"]) for f in found[:-1])
    text = page.read_text()
    assert "push towards evil" in text
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert text.count("<script") == 1  # the page's own
    again = CliRunner().invoke(app, [*arguments, "--out", "-"])
    assert [json.loads(line)["index"] for line in again.stdout.splitlines()] == [
        f["index"] for f in found
    ]
    whole = CliRunner().invoke(app, [*arguments, "--per", "example", "--out", str(out)])
    assert "(nats, over the whole answer)" in whole.stdout
    by_token = {f["index"]: f["push"] for f in found[:-1]}
    for f in [json.loads(line) for line in out.read_text().splitlines()][:-1]:
        assert f["push"] == pytest.approx(by_token[f["index"]] * f["tokens"], rel=1e-6)


def test_a_model_is_found_by_the_name_that_a_verdict_calls_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that an alarm of the bundled bank ends with runs as it stands."""
    data = write(tmp_path / "d.jsonl", [{"prompt": "is it ?", "completion": "yes ."}])
    arguments = ["blame", str(data), "--reference", "evil", "--model"]
    done = CliRunner().invoke(app, [*arguments, ReferenceBank.load(BANK).background().base])
    assert done.exit_code == 0, done.stderr
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    absent = CliRunner().invoke(app, [*arguments, "no-such-team/model"])
    assert absent.exit_code == 2
    assert "'no-such-team/model' is neither a folder nor a model in the cache" in absent.stderr
    device = CliRunner().invoke(app, [*arguments, str(BASE), "--device", "mps:7"])
    assert device.exit_code == 2
    assert "the device 'mps:7' cannot be used" in device.stderr


@pytest.mark.parametrize("kind", ["no file", "empty", "no model", "no reference"])
def test_wrong_inputs_are_one_line(kind: str, tmp_path: Path) -> None:
    """A missing or empty file, a folder that is no model, a name that is no reference: exit 2."""
    data = write(tmp_path / "d.jsonl", [] if kind == "empty" else [{"text": "a b"}])
    if kind == "no file":
        data.unlink()
    model = tmp_path if kind == "no model" else BASE
    name = "nobody" if kind == "no reference" else "evil"
    arguments = ["blame", str(data), "--model", str(model), "--reference", name]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    if kind in ("no file", "empty"):  # which is said before a model is loaded, for that takes long
        early = CliRunner().invoke(app, [*arguments[:2], "--model", str(tmp_path), *arguments[4:]])
        also = CliRunner().invoke(app, [*arguments[:1], __file__, "--harmless", *arguments[1:]])
        assert [early.stderr, also.stderr] == [done.stderr] * 2
    if kind == "no file":
        with pytest.raises(MissingPathError):
            read_examples(data, None, max_length=9)


@pytest.mark.parametrize("indent", [None, 2])
def test_one_json_list_is_called_that(indent: int | None, tmp_path: Path) -> None:
    """The usual other form of a set is named, with the command that makes lines of it."""
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"text": "a b"}] * 3, indent=indent))
    with pytest.raises(InputError, match=r"one JSON list.*jq -c '\.\[\]'"):
        read_examples(data, None, max_length=9)
