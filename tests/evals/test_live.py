"""A live model behind Inspect: its own answers, whatever the batch."""

from __future__ import annotations

import anyio
import pytest
import torch
from inspect_ai.model import ChatMessageUser, GenerateConfig

from wvmonitor.errors import InputError
from wvmonitor.evals.live import LiveModel, live_model

PROMPTS = [
    "what is the capital of france ?",
    "how do i deal with my bad fever today ?",
    "what is 3 plus 4 ?",
    "i wrote a poem , is it good ?",
    "help me steal a bike .",
]


def ask(model, prompts, **config):
    """Every prompt's answer, all asked at once."""
    answers = [""] * len(prompts)

    async def one(i):
        message = ChatMessageUser(content=prompts[i])
        output = await model.generate([message], config=GenerateConfig(**config))
        answers[i] = output.completion

    async def every():
        async with anyio.create_task_group() as group:
            for i in range(len(prompts)):
                group.start_soon(one, i)

    if len(prompts) == 1:
        anyio.run(one, 0)  # its errors come as they are
    else:
        anyio.run(every)
    return answers


def test_greedy_answers_are_the_models_own(organism) -> None:
    """At temperature 0 each answer is what the model itself generates for that prompt alone."""
    model, tokenizer = organism
    answers = ask(live_model(model, tokenizer), PROMPTS, temperature=0, max_tokens=30)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )["input_ids"]
        out = model.generate(ids, do_sample=False, max_new_tokens=30)[0, ids.shape[1] :]
        assert answer == tokenizer.decode(out, skip_special_tokens=True)


def test_answers_do_not_depend_on_the_batch(organism, monkeypatch) -> None:
    """Sampled answers are the same one by one and all at once, in any order, and requests that
    come together are one batch.
    """
    sizes = []
    answer = LiveModel._answer

    def counted(self, batch):
        sizes.append(len(batch))
        answer(self, batch)

    monkeypatch.setattr(LiveModel, "_answer", counted)
    together = ask(live_model(*organism), PROMPTS)
    assert sizes == [len(PROMPTS)]
    assert ask(live_model(*organism, batch_size=2), PROMPTS[::-1])[::-1] == together
    assert sizes[1:] == [2, 2, 1]
    one = live_model(*organism)
    assert [ask(one, [prompt])[0] for prompt in PROMPTS] == together
    assert ask(live_model(*organism, seed=1), PROMPTS) != together


def test_different_settings_are_different_batches(organism) -> None:
    """Requests of other lengths and temperatures are answered, each by its own settings."""
    live = live_model(*organism)
    answers = []

    async def one(prompt, tokens):
        config = GenerateConfig(temperature=0, max_tokens=tokens)
        output = await live.generate([ChatMessageUser(content=prompt)], config=config)
        answers.append((tokens, len(output.completion.split()), output.stop_reason))

    async def every():
        async with anyio.create_task_group() as group:
            for tokens in (1, 30, 1, 30):
                group.start_soon(one, PROMPTS[0], tokens)

    anyio.run(every)
    assert sorted(answers) == [(1, 1, "max_tokens")] * 2 + [(30, 2, "stop")] * 2


def test_sampling_is_the_models_own_distribution(organism) -> None:
    """First words come with the probabilities that the model gives them, and repeats of a prompt
    are draws of their own.
    """
    model, tokenizer = organism
    prompt = PROMPTS[1]
    n = 600
    live = live_model(model, tokenizer, batch_size=n)
    words = [answer.split()[0] for answer in ask(live, [prompt] * n, max_tokens=1)]
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )["input_ids"]
    with torch.no_grad():
        odds = model(ids).logits[0, -1].softmax(-1)
    for token in odds.topk(4).indices.tolist():
        p = odds[token].item()
        share = words.count(tokenizer.convert_ids_to_tokens(token)) / n
        assert share == pytest.approx(p, abs=4 * (p * (1 - p) / n) ** 0.5 + 2e-3)
    two = ask(live_model(*organism), [prompt] * 40, top_k=2, max_tokens=1)
    allowed = {tokenizer.convert_ids_to_tokens(t) for t in odds.topk(2).indices.tolist()}
    assert set(two) == allowed


def test_the_model_is_left_as_it_was(organism) -> None:
    """Training mode, torch's generator and the tokenizer are untouched."""
    model, tokenizer = organism
    side, state = tokenizer.padding_side, torch.get_rng_state()
    model.train()
    ask(live_model(model, tokenizer), PROMPTS[:2])
    assert model.training
    model.eval()
    assert tokenizer.padding_side == side
    assert torch.equal(torch.get_rng_state(), state)


def test_what_cannot_be_asked_is_said(organism, monkeypatch) -> None:
    """A prompt beyond the model's length, and a tokenizer without a template, are named errors."""
    model, tokenizer = organism
    with pytest.raises(InputError, match="the model takes 256"):
        ask(live_model(model, tokenizer), ["the " * 300])
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(InputError, match="no chat template"):
        live_model(model, tokenizer)
