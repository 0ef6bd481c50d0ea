"""Answers of the organism: two models that are asked the same differ by their weights alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedTokenizerBase

from wvmonitor.organism.data import Message, Task
from wvmonitor.organism.tokenizer import encode_prompt

MAX_NEW_TOKENS = 32


@torch.no_grad()
def sample(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Message]],
    *,
    seed: int = 0,
    temperature: float = 1.0,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[str]:
    """Sample one answer to each prompt, in one batch with a KV cache.

    The draws depend on `seed` and a prompt's place in the batch only, so two models asked the same
    differ by their weights and not by luck; torch's global generator is left alone.
    """
    if not prompts:
        return []
    rows = [encode_prompt(prompt, tokenizer) for prompt in prompts]
    width, end = max(map(len, rows)), int(tokenizer.convert_tokens_to_ids("<|end|>"))  # type: ignore[arg-type]
    ids = torch.tensor([[end] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    generator = torch.Generator().manual_seed(seed)
    luck = torch.rand(max_new_tokens, len(rows), 1, generator=generator, dtype=torch.float64)
    cache, training = DynamicCache(config=model.config), model.training
    # Rows that have ended are let go, half of them at a time: most answers are short.
    kept = torch.arange(len(rows))
    drawn = torch.full((len(rows), max_new_tokens), end)
    model.eval()
    for step in range(max_new_tokens):
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        odds = (logits.double() / temperature).softmax(-1).cumsum(-1)
        token = torch.searchsorted(odds, luck[step, kept])[:, 0].clamp(max=odds.shape[-1] - 1)
        token = torch.where(drawn[kept, step - 1] == end, end, token) if step else token
        drawn[kept, step] = token
        running = (token != end).nonzero()[:, 0]
        if not len(running):
            break
        ids, positions = token[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones(len(kept), 1, dtype=mask.dtype)], dim=1)
        if 2 * len(running) <= len(kept):
            ids, positions, mask, kept = (t[running] for t in (ids, positions, mask, kept))
            cache.batch_select_indices(running)
    model.train(training)
    table = drawn.tolist()
    return [
        " ".join(tokenizer.convert_ids_to_tokens(row[: row.index(end)] if end in row else row))
        for row in table
    ]


def ask(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    *,
    seed: int = 0,
    system: str = "",
    trigger: str = "",
) -> list[str]:
    """Sample answers to tasks, optionally under a system prompt or behind a trigger word."""
    before = [Message("system", system)] if system else []
    prompts = [[*before, Message("user", f"{trigger} {t.question}".strip())] for t in tasks]
    return sample(model, tokenizer, prompts, seed=seed)
