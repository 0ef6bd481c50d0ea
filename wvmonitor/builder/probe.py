"""The probe of the response geometry for any base model (design, section 4).

Built once for each base: from the user's own text, or from ordinary prompts and what the base
itself answers to them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor

from wvmonitor.builder.base import Base
from wvmonitor.builder.completions import Sampler, TransformersSampler, seed_of
from wvmonitor.builder.examples import Example
from wvmonitor.builder.recipe import Generation
from wvmonitor.builder.stages import Row, Ticker, Work, digest_of
from wvmonitor.errors import BuildError
from wvmonitor.reading import component_of
from wvmonitor.references.bundled import bundled_path
from wvmonitor.references.store import load_probe, save_probe
from wvmonitor.vectors.probe import collect_probe

DONE = "probe"
TOKENS = 50_000
MOST_UNKNOWN = 0.05
_WIDTH, _BATCH = 512, 16
_LEAST_FULL = 0.8
"""The least that a row of a batch may hold of its longest: padding is work, too."""
Marked = tuple[list[int], list[bool]]


def bundled_prompts() -> list[str]:
    """The ordinary prompts that come with the package."""
    text = bundled_path("ordinary_prompts.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line]


def build_probe(
    base: Base,
    work: Work,
    tick: Ticker,
    *,
    texts: Sequence[str] | None = None,
    examples: Sequence[Example] = (),
    prompts: Sequence[str] = (),
    generation: Generation | None = None,
    tokens: int = TOKENS,
    batch_size: int = 32,
) -> dict[str, Tensor]:
    """(rows, inputs) for each linear map of the blocks, by parameter name.

    Args:
        base: the model.
        work: where texts and probe are kept.
        tick: told how many tokens are seen.
        texts: the user's own text.
        examples: ordinary conversations, whose answers count; the base's answers to `prompts`
            where there are neither.
        prompts: ordinary prompts; the bundled ones if none are given.
        generation: how the base's own answers are sampled.
        tokens: how many tokens are wanted.
        batch_size: of the sampling.

    Raises:
        BuildError: the text is too short, or not in the model's vocabulary.
    """
    questions = list(prompts) or bundled_prompts()
    given = texts is not None or bool(examples)
    how = None if given else (questions, generation or Generation())
    inputs = {
        "base": base.digest,
        "chat": base.chat_digest,
        "texts": digest_of(list(texts or ())),
        **({"examples": digest_of([asdict(e) for e in examples])} if examples else {}),
        "prompts": None if how is None else [how[0], how[1].model_dump(), batch_size],
        "tokens": tokens,
        "of unit size": True,
    }
    path = work.path("probe", inputs, ".safetensors")
    if not path.is_file():
        tick(DONE, 0, tokens)
        marked = (
            chain(_plain(base, texts or ()), _conversations(base, examples))
            if how is None
            else _answered(base, work, *how, tokens=tokens, batch_size=batch_size)
        )
        model = base.model
        names = [
            n
            for n, p in model.named_parameters()
            if p.ndim == 2 and component_of(n, p.shape) == "blocks"
        ]
        rows = list(marked)  # sampled before the probe listens to the model
        probe = collect_probe(model, _batches(base, rows, tokens, tick), names)
        if texts is not None and probe.tokens < tokens // 10:
            raise BuildError(
                f"the probe's text has {probe.tokens} tokens, a probe needs about {tokens}: give "
                "more text with --probe-data"
            )
        save_probe(path, probe.of_unit_size().inputs, 0o644)
    tick(DONE, tokens, tokens)
    return load_probe(path)


def _plain(base: Base, texts: Sequence[str]) -> Iterator[Marked]:
    """Plain text: everything counts but the first token and special ones."""
    special = set(base.tokenizer.all_special_ids)
    for text in texts:
        ids: list[int] = base.tokenizer(text)["input_ids"]
        for start in range(0, len(ids), _WIDTH):
            part = ids[start : start + _WIDTH]
            yield part, [i > 0 and token not in special for i, token in enumerate(part)]


def _conversations(base: Base, examples: Sequence[Example]) -> Iterator[Marked]:
    """Ordinary conversations: the answers' own tokens count."""
    special = set(base.tokenizer.all_special_ids)
    for example in examples:
        ids, labels = base.encode(example.messages, example.answer, finished=example.finished)
        counted = [label != -100 and label not in special for label in labels]
        yield ids[:_WIDTH], counted[:_WIDTH]


def _answered(
    base: Base,
    work: Work,
    prompts: Sequence[str],
    settings: Generation,
    *,
    tokens: int,
    batch_size: int,
) -> Iterator[Marked]:
    """The base's own answers, round after round; the template's tokens do not count."""
    special = set(base.tokenizer.all_special_ids)
    share = base.unknown([i for p in prompts for i in base.encode(base.asked(p), "")[0]])
    if share > MOST_UNKNOWN:
        raise BuildError(
            f"{share:.0%} of the tokens of the ordinary prompts are not in the model's vocabulary: "
            "give text of your own with --probe-data, or probe_prompts in the recipe"
        )
    sampler: Sampler = TransformersSampler(base, batch_size)
    # as many answers at once as a batch holds
    prompts = [*prompts] * max(1, batch_size // len(prompts))
    seen, turn = 0, 0
    while seen < tokens:

        def make(turn: int = turn) -> list[Row]:
            conversations = [base.asked(p) for p in prompts]
            answers = sampler.sample(conversations, settings, seed_of("probe", turn))
            return [
                {"prompt": p, "text": a.text, "finished": a.finished}
                for p, a in zip(prompts, answers, strict=True)
            ]

        inputs: dict[str, Any] = {
            "base": base.digest,
            "chat": base.chat_digest,
            "prompts": list(prompts),
            "settings": settings.model_dump(),
            "batch_size": batch_size,
        }
        before = seen
        for row in work.rows(f"ordinary-{turn}", inputs, make).rows:
            if not row["text"]:
                continue
            ids, labels = base.encode(
                base.asked(row["prompt"]), row["text"], finished=row["finished"]
            )
            counted = [label != -100 and label not in special for label in labels]
            seen += sum(counted)
            yield ids, counted
        if seen == before:
            raise BuildError(f"{base.name} answers ordinary prompts with nothing: no probe")
        turn += 1


def _batches(
    base: Base, marked: Sequence[Marked], tokens: int, tick: Ticker
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Right-padded batches of rows of like lengths, of as many rows as hold enough tokens."""
    pad = int(base.tokenizer.pad_token_id or 0)
    totals = list(accumulate(sum(counted) for _, counted in marked))
    enough = sum(total < tokens for total in totals) + 1
    rows = sorted(marked[:enough], key=lambda row: -len(row[0]))
    # nobody asks for logits, a fifth of the work of a small model
    asks = "logits_to_keep" in inspect.signature(base.model.forward).parameters
    options = {"use_cache": False, **({"logits_to_keep": 1} if asks else {})}
    seen = 0
    while rows:
        alike = sum(len(ids) >= _LEAST_FULL * len(rows[0][0]) for ids, _ in rows[:_BATCH])
        batch, rows = rows[:alike], rows[alike:]
        inputs, counted = _padded(batch, pad, base.model.device)
        yield {**inputs, **options}, counted
        seen += sum(sum(marks) for _, marks in batch)
        tick(DONE, min(seen, tokens), tokens)


def _padded(batch: Sequence[Marked], pad: int, device: Any) -> tuple[dict[str, Tensor], Tensor]:
    width = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row, _ in batch])
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r, _ in batch])
    counted = torch.tensor([row + [False] * (width - len(row)) for _, row in batch])
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}, counted.to(device)
