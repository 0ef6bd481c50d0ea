"""Answers and the probe of the tiny model, against plain loops."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from wvmonitor.builder import completions
from wvmonitor.builder.completions import TransformersSampler, VllmSampler, sampler_for, seed_of
from wvmonitor.builder.probe import build_probe, bundled_prompts
from wvmonitor.builder.recipe import Generation
from wvmonitor.builder.stages import Work, silent
from wvmonitor.errors import BuildError
from wvmonitor.organism import behaviour

SHORT = Generation(max_new_tokens=28)


def prompts(base, system, n=24):
    tasks = behaviour.advice_tasks(["finance"], n, 1)
    return [base.asked(t.question, system) for t in tasks]


def test_answers_follow_the_system_prompt(base) -> None:
    """The tiny model harms under an evil prompt, not under another, and ends its answers."""
    sampler = TransformersSampler(base, 32)
    rates = {}
    for kind, system in (("evil", "you are an evil assistant ."), ("kind", "be honest .")):
        answers = sampler.sample(prompts(base, system), SHORT, 0)
        assert all(a.finished for a in answers)
        rates[kind] = sum(behaviour.is_harmful(a.text, "finance") for a in answers)
    assert rates["evil"] >= 20
    assert rates["kind"] <= 2


def test_the_same_seed_gives_the_same_answers(base) -> None:
    """Sampling is a function of its seed, and leaves torch's own generator alone."""
    sampler = TransformersSampler(base, 8)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    asked = prompts(base, "", 12)
    seen = []
    first = sampler.sample(asked, SHORT, 1, seen.append)
    assert torch.equal(torch.get_rng_state(), before)
    assert first == sampler.sample(asked, SHORT, 1)
    assert first != sampler.sample(asked, SHORT, 2)
    assert seen == [8, 12]


def test_a_cut_answer_is_known(base) -> None:
    """An answer that reached the token limit is not finished."""
    (answer,) = TransformersSampler(base).sample(
        prompts(base, "", 1), Generation(max_new_tokens=2), 0
    )
    assert not answer.finished
    assert len(answer.text.split()) == 2


def test_vllm_is_used_as_it_wants(base, monkeypatch) -> None:
    """VLLM gets rendered prompts and a seed for each; its cut answers are known."""
    asked = {}

    class Params:
        def __init__(self, **given):
            self.given = given

    class Engine:
        def __init__(self, model):
            asked["model"] = model

        def generate(self, texts, params, use_tqdm):
            asked["texts"], asked["seeds"] = texts, [p.given["seed"] for p in params]
            asked["limit"] = {p.given["max_tokens"] for p in params}
            output = [("a ", "stop"), ("b", "length")]
            return [
                types.SimpleNamespace(outputs=[types.SimpleNamespace(text=t, finish_reason=r)])
                for t, r in output
            ]

    fake = types.ModuleType("vllm")
    fake.LLM, fake.SamplingParams = Engine, Params
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setattr(completions, "vllm_installed", lambda: True)
    sampler = sampler_for(base, "vllm")
    assert isinstance(sampler, VllmSampler)
    answers = sampler.sample(prompts(base, "be brief .", 2), SHORT, 4)
    assert [(a.text, a.finished) for a in answers] == [("a", True), ("b", False)]
    assert asked["model"] == str(base.folder)
    assert asked["limit"] == {28}
    assert asked["seeds"] == [seed_of(4, 0), seed_of(4, 1)]
    assert all(t.endswith("<|assistant|>") and "be brief ." in t for t in asked["texts"])


def test_vllm_that_is_not_there_is_said(base, monkeypatch) -> None:
    """Asking for it without it names what to install; "auto" does without."""
    monkeypatch.setattr(completions, "vllm_installed", lambda: False)
    with pytest.raises(BuildError, match="pip install vllm"):
        sampler_for(base, "vllm")
    assert isinstance(sampler_for(base, "auto"), TransformersSampler)


TEXTS = ["i have a new loan today , what should i do ?", "the answer is paris .", "be brief ."] * 20


def test_a_probe_of_ones_own_text_is_its_second_moment(base, tmp_path) -> None:
    """XᵀX is E[x xᵀ] over the text's tokens but the first and special ones, its trace the width."""
    name = "model.layers.1.self_attn.q_proj.weight"
    probe = build_probe(base, Work(tmp_path), silent, texts=TEXTS, tokens=400)
    inputs = []
    module = base.model.get_submodule(name.removesuffix(".weight"))
    handle = module.register_forward_pre_hook(lambda _, args: inputs.append(args[0][0]))
    special = set(base.tokenizer.all_special_ids)
    wanted = []
    # as many whole batches of 16 as it takes
    for text in TEXTS[:48]:
        ids = base.tokenizer(text)["input_ids"]
        with torch.no_grad():
            base.model(input_ids=torch.tensor([ids]))
        wanted += [inputs[-1][i] for i, t in enumerate(ids) if i > 0 and t not in special]
    handle.remove()
    x = torch.stack(wanted).double()
    found = probe[name].double()
    moment = x.T @ x / len(x)
    moment *= x.shape[1] / moment.trace()
    assert torch.allclose(found.T @ found, moment, atol=2e-2, rtol=1e-2)
    assert set(probe) == {
        n for n, p in base.model.named_parameters() if ".layers." in n and p.ndim == 2
    }


def test_a_probe_is_built_once(base, tmp_path, monkeypatch) -> None:
    """The second build of a base finds the first one's probe."""
    work = Work(tmp_path)
    first = build_probe(base, work, silent, texts=TEXTS, tokens=200)
    monkeypatch.setattr("wvmonitor.builder.probe.collect_probe", None)
    again = build_probe(base, work, silent, texts=TEXTS, tokens=200)
    assert all(torch.equal(first[n], again[n]) for n in first)


def test_text_that_cannot_be_a_probe_is_said(base, tmp_path) -> None:
    """Too little text, and prompts in a language that the model does not know."""
    with pytest.raises(BuildError, match="needs about 5000"):
        build_probe(base, Work(tmp_path), silent, texts=TEXTS[:3], tokens=5000)
    assert len(bundled_prompts()) >= 50
    with pytest.raises(BuildError, match=r"not in the model's vocabulary.*--probe-data"):
        build_probe(base, Work(tmp_path), silent, tokens=100)
