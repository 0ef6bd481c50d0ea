"""What the base model itself answers under a recipe's system prompts.

Both sides answer the same questions (arXiv 2511.05408, section 3). Every system prompt is one
artefact, sampled from a seed of its own, so that a build that is interrupted goes on with the next
prompt and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from wvmonitor.builder.base import Base, Message
from wvmonitor.builder.recipe import Generation, Recipe, Side
from wvmonitor.builder.stages import Row, Rows, Ticker, Work
from wvmonitor.errors import BuildError

SIDES: tuple[Side, ...] = ("positive", "negative")
Engine = Literal["auto", "transformers", "vllm"]
DONE = "generate"


@dataclass(frozen=True)
class Sampled:
    """One sampled answer; `finished` is False where the token limit cut it."""

    text: str
    finished: bool


class Sampler(Protocol):
    """Samples one answer to each conversation; the same seed gives the same answers."""

    name: str

    def sample(
        self,
        prompts: Sequence[Sequence[Message]],
        settings: Generation,
        seed: int,
        tick: Callable[[int], None] = ...,
    ) -> list[Sampled]:
        """One answer to each prompt; `tick` is told how many are there."""


class TransformersSampler:
    """`generate` of transformers, in batches of prompts of similar length."""

    def __init__(self, base: Base, batch_size: int = 32, model: Any = None) -> None:
        """Sample from a base, or from `model` with the base's tokenizer."""
        self._base, self._batch_size, self._model = base, batch_size, model
        self.name = f"transformers, batches of {batch_size}"

    def sample(
        self,
        prompts: Sequence[Sequence[Message]],
        settings: Generation,
        seed: int,
        tick: Callable[[int], None] = lambda _: None,
    ) -> list[Sampled]:
        """As `Sampler` says; torch's generators are left as they were."""
        tokenizer = self._base.tokenizer
        model = self._base.model if self._model is None else self._model
        texts = [self._base.prompt_text(p) for p in prompts]
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
        answers: dict[int, Sampled] = {}
        ends = _end_tokens(model, tokenizer)
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            inputs = tokenizer(
                [texts[i] for i in batch],
                return_tensors="pt",
                padding=True,
                add_special_tokens=False,
            )
            inputs = {k: inputs[k].to(model.device) for k in ("input_ids", "attention_mask")}
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(seed_of(seed, start))
                made = model.generate(
                    **inputs,
                    do_sample=True,
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                    top_k=0,
                    max_new_tokens=settings.max_new_tokens,
                    pad_token_id=tokenizer.pad_token_id,
                )
            for i, row in zip(batch, made[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                stop = next((n for n, token in enumerate(row) if token in ends), None)
                text = str(tokenizer.decode(row[:stop], skip_special_tokens=True))
                answers[i] = Sampled(text.strip(), stop is not None)
            tick(len(answers))
        return [answers[i] for i in range(len(prompts))]


class VllmSampler:
    """vLLM, where it is installed: many times faster on a GPU."""

    name = "vllm"

    def __init__(self, base: Base) -> None:
        """Start the engine.

        Raises:
            BuildError: vLLM is not installed.
        """
        if not vllm_installed():
            raise BuildError("vLLM is not installed: pip install vllm, or --engine transformers")
        from vllm import LLM  # type: ignore[import-not-found,unused-ignore]

        self._base = base
        self._engine = LLM(model=str(base.folder))

    def sample(
        self,
        prompts: Sequence[Sequence[Message]],
        settings: Generation,
        seed: int,
        tick: Callable[[int], None] = lambda _: None,
    ) -> list[Sampled]:
        """As `Sampler` says; each prompt has a seed of its own."""
        from vllm import SamplingParams  # type: ignore[import-not-found,unused-ignore]

        made = self._engine.generate(
            [self._base.prompt_text(p) for p in prompts],
            [
                SamplingParams(
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                    max_tokens=settings.max_new_tokens,
                    seed=seed_of(seed, i),
                )
                for i in range(len(prompts))
            ],
            use_tqdm=False,
        )
        tick(len(prompts))
        outputs = [request.outputs[0] for request in made]
        return [Sampled(o.text.strip(), o.finish_reason == "stop") for o in outputs]


def vllm_installed() -> bool:
    """Whether vLLM can be imported."""
    return importlib.util.find_spec("vllm") is not None


def sampler_for(base: Base, engine: Engine = "auto", batch_size: int = 32) -> Sampler:
    """The sampler asked for; "auto" is vLLM where it is installed beside a GPU.

    Raises:
        BuildError: vLLM was asked for and is not installed.
    """
    fast = engine == "auto" and vllm_installed() and torch.cuda.is_available()
    return VllmSampler(base) if fast or engine == "vllm" else TransformersSampler(base, batch_size)


def seed_of(*parts: object) -> int:
    """A seed that depends on these parts alone, within torch's range."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def generate(
    base: Base,
    recipe: Recipe,
    work: Work,
    sampler: Callable[[], Sampler],
    engine: str,
    *,
    seed: int = 0,
    tick: Ticker,
) -> dict[tuple[Side, int], Rows]:
    """Answers of every side under each of its system prompts, as records of the work folder.

    Args:
        base: the model that is asked.
        recipe: prompts, questions and how to sample.
        work: where the answers are kept.
        sampler: makes the sampler, when something has to be sampled at all.
        engine: its name, a part of what the answers depend on.
        seed: of the sampling.
        tick: told how many answers are there.

    Returns:
        By (side, index of the system prompt): rows of question (its index), text and finished.
    """
    jobs = [(side, i) for side in SIDES for i in range(len(recipe.prompts(side)))]
    settings = recipe.generation
    each = len(recipe.questions.build) * settings.samples_per_prompt
    rows: dict[tuple[Side, int], Rows] = {}
    tick(DONE, 0, each * len(jobs))
    samplers: list[Sampler] = []
    for n, (side, i) in enumerate(jobs):
        system = recipe.prompts(side)[i]
        questions = [
            q.text for q in recipe.questions.build for _ in range(settings.samples_per_prompt)
        ]

        def make(
            side: Side = side,
            i: int = i,
            n: int = n,
            system: str = system,
            questions: Any = questions,
        ) -> list[Row]:
            samplers[:] = samplers or [sampler()]
            prompts = [base.asked(question, system) for question in questions]
            answers = samplers[0].sample(
                prompts,
                settings,
                seed_of(seed, side, i),
                lambda done: tick(DONE, n * each + done, each * len(jobs)),
            )
            return [
                {
                    "question": j // settings.samples_per_prompt,
                    "text": a.text,
                    "finished": a.finished,
                }
                for j, a in enumerate(answers)
            ]

        inputs = {
            "base": base.digest,
            "chat": base.chat_digest,
            "engine": engine,
            "system": system,
            "questions": questions,
            "settings": settings.model_dump(
                include={"samples_per_prompt", "max_new_tokens", "temperature", "top_p"}
            ),
            "seed": [seed, side, i],
        }
        rows[side, i] = work.rows(f"completions-{side}-{i}", inputs, make)
        tick(DONE, (n + 1) * each, each * len(jobs))
    return rows


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    ends = model.generation_config.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return {int(e) for e in (*listed, tokenizer.eos_token_id) if e is not None}
