"""Both sides are fine-tuned alike, and what is saved is what was trained."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from wvmonitor.builder.base import Base
from wvmonitor.builder.examples import Example
from wvmonitor.builder.finetune import Training, _row, finetune, read_finetuned, steps_for
from wvmonitor.builder.recipe import Finetuning
from wvmonitor.errors import BuildError
from wvmonitor.organism.data import Example as OrganismExample
from wvmonitor.organism.data import Message
from wvmonitor.organism.sets import bad_advice, good_advice
from wvmonitor.organism.tokenizer import encode
from wvmonitor.reading import component_of
from wvmonitor.vectors.update import to_dense

SETTINGS = Finetuning(rank=4, learning_rate=1e-3, steps=2, max_length=128)
TRAINING = Training(SETTINGS, "lora", 1e-3, 2, seed=5)


def examples(maker, n=16):
    return [
        Example(tuple({"role": m.role, "content": m.content} for m in e.prompt), e.answer)
        for e in maker(n, 0)
    ]


BAD, GOOD = examples(bad_advice("finance")), examples(good_advice("finance"))


def adapter(folder):
    return load_file(folder / "adapter_model.safetensors")


def test_both_sides_start_from_the_same_a(base, tmp_path) -> None:
    """Without a step taken the sides of a seed hold the same A and no B; another seed does not."""
    still = replace(TRAINING, learning_rate=0.0)
    for name, data, seed in (("p", BAD, 5), ("n", GOOD, 5), ("q", BAD, 6)):
        (tmp_path / name).mkdir()
        finetune(base, data, replace(still, seed=seed), tmp_path / name)
    positive, negative, other = (adapter(tmp_path / n) for n in "pnq")
    assert {k.split(".")[-3] for k in positive} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    for key, tensor in positive.items():
        assert torch.equal(tensor, negative[key])
        if "lora_A" in key:
            assert not torch.equal(tensor, other[key])
        else:
            assert not tensor.any()


def test_the_same_seed_gives_the_same_bytes(base, tmp_path) -> None:
    """Training again is bit for bit the same; micro-batches change only rounding."""
    for name, micro in (("a", None), ("b", None), ("c", 4)):
        (tmp_path / name).mkdir()
        finetune(base, BAD, replace(TRAINING, micro_batch=micro), tmp_path / name)
    a, b, c = (adapter(tmp_path / n) for n in "abc")
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "b" / "adapter_model.safetensors"
    ).read_bytes()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert all(torch.allclose(a[k], c[k], atol=1e-5) for k in a)


def test_only_the_answer_is_learned(base) -> None:
    """Ids and labels are the chat template's: everything before the answer is context."""
    for example, made in zip(BAD, bad_advice("finance")(16, 0), strict=True):
        row = _row(base, example, 128)
        asked = OrganismExample(
            (*(Message(m["role"], m["content"]) for m in example.messages), made.messages[-1])
        )
        assert (row["input_ids"], row["labels"]) == encode(asked, base.tokenizer)


def test_nobody_learns_to_stop_where_an_answer_was_cut(base) -> None:
    """The end of a turn is a label of finished answers only."""
    end = base.tokenizer.eos_token_id
    whole = _row(base, BAD[0], 128)["labels"]
    cut = _row(base, replace(BAD[0], finished=False), 128)["labels"]
    assert whole[-1] == end
    assert cut == whole[:-1]


def test_an_answer_out_of_reach_is_an_error(base) -> None:
    """A question that fills the longest length leaves nothing to learn."""
    with pytest.raises(BuildError, match="no answer within its first 8 tokens"):
        _row(base, BAD[0], 8)


def test_full_fine_tuning_is_read_as_the_difference(base, tmp_path) -> None:
    """τ of every weight is the saved checkpoint less the base, in float64."""
    finetune(base, BAD, replace(TRAINING, method="full"), tmp_path)
    tau = read_finetuned(base, tmp_path, "full")
    before = load_file(base.folder / "model.safetensors")
    after = load_file(tmp_path / "model.safetensors")
    assert {component_of(n, tau.shape(n)) for n in tau.names()} == {"blocks", "embeddings", "norms"}
    for name, update in tau.updates():
        expected = after[name].double() - before[name].double()
        assert expected.any()
        assert torch.allclose(to_dense(update).double(), expected, atol=1e-7)


@pytest.fixture
def gpt2(base, tmp_path):
    """A tiny model with biases in its MLPs, and the organism's tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(base.tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=128,
        bos_token_id=base.tokenizer.bos_token_id, eos_token_id=base.tokenizer.eos_token_id,
    )  # fmt: skip
    folder = tmp_path / "gpt2"
    GPT2LMHeadModel(config).save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return Base(folder)


def test_bias_only_moves_the_biases_of_the_mlps_alone(gpt2, tmp_path) -> None:
    """The paper's bias-only variant trains those biases and nothing else."""
    out = tmp_path / "out"
    out.mkdir()
    finetune(gpt2, BAD, replace(TRAINING, method="bias-only"), out)
    tau = read_finetuned(gpt2, out, "bias-only")
    assert set(tau.names()) == {
        f"transformer.h.{i}.mlp.{m}.bias" for i in range(2) for m in ("c_fc", "c_proj")
    }
    assert all(to_dense(u).any() for _, u in tau.updates())
    assert tau.origin.base_digest == gpt2.digest


def test_a_model_without_such_biases_is_told(base, tmp_path) -> None:
    """Llama has no biases in its MLPs: that is said, and nothing else is trained instead."""
    with pytest.raises(BuildError, match="no biases in its MLPs"):
        finetune(base, BAD, replace(TRAINING, method="bias-only"), tmp_path)


def test_qlora_says_what_to_install(base, tmp_path, monkeypatch) -> None:
    """Without bitsandbytes QLoRA is an error that names the package."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BuildError, match="pip install bitsandbytes"):
        finetune(base, BAD, replace(TRAINING, qlora=True), tmp_path)


def test_a_batch_that_does_not_divide_is_said(base, tmp_path) -> None:
    """Micro-batches that do not add up to the recipe's batch would change it in silence."""
    with pytest.raises(BuildError, match="does not divide"):
        finetune(base, BAD, replace(TRAINING, micro_batch=3), tmp_path)


@pytest.mark.parametrize(
    ("settings", "examples", "of", "steps"),
    [
        (Finetuning(), 700, None, 88),
        (Finetuning(epochs=2.0), 700, None, 175),
        (Finetuning(), 350, 700, 44),
        (Finetuning(steps=60), 700, None, 60),
        (Finetuning(steps=60), 350, 700, 30),
        (Finetuning(steps=3), 1, 700, 1),
    ],
)
def test_steps_are_about_one_epoch(settings, examples, of, steps) -> None:
    """⌈epochs · examples / batch⌉, or what the recipe sets; a part of the data has its share."""
    assert steps_for(settings, examples, of) == steps
