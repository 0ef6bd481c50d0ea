"""A model in memory, with its tokenizer, as an Inspect model: batched, seeded, weights as they are.

Inspect's own Hugging Face provider loads a model by name. This one wraps the live object, so that
steered and half-trained weights are evaluated without being written.
"""

# mypy: allow-untyped-decorators
# mypy: allow-subclassing-any

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import anyio
import anyio.to_thread
import torch
from inspect_ai.model import (
    ChatMessage,
    GenerateConfig,
    Model,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from wvmonitor.errors import InputError

DEFAULT_BATCH = 64
_DEFAULT_TOKENS = 512
_SETTLED_S = 0.002


def live_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str = "live",
    seed: int = 0,
    batch_size: int = DEFAULT_BATCH,
) -> Model:
    """An Inspect model that answers with the live model's weights as they are at that moment.

    Answers are sampled (greedily at temperature 0). They depend on the seed, the prompt and how
    often it was asked before, and not on what else is in the batch (unless an answer runs into the
    model's length): two models asked the same differ by their weights and not by luck.

    Raises:
        InputError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"the tokenizer of {name} has no chat template: set tokenizer.chat_template to the one "
            "the model was trained with"
        )
    make = cast("Callable[..., ModelAPI]", _live)
    api = make(model_name=name, model=model, tokenizer=tokenizer, seed=seed, batch=batch_size)
    return Model(api, GenerateConfig(max_connections=batch_size))


@dataclass(frozen=True)
class _Settings:
    """What must be equal within a batch."""

    temperature: float
    top_k: int | None
    top_p: float | None
    max_tokens: int
    stop: tuple[str, ...]


@dataclass(eq=False)
class _Request:
    ids: list[int]
    settings: _Settings
    seed: int
    output: tuple[str, int, bool] | None = None
    error: Exception | None = None
    seconds: float = 0.0

    @property
    def open(self) -> bool:
        return self.output is None and self.error is None


class LiveModel(ModelAPI):
    """Inspect's view of a live model."""

    def __init__(
        self,
        model_name: str,
        *,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        batch: int,
    ) -> None:
        super().__init__(model_name)
        self._model = model
        self._tokenizer = tokenizer
        self._seed = seed
        self._batch = batch
        self._longest: int | None = getattr(model.config, "max_position_embeddings", None)
        self._asked: Counter[tuple[int, ...]] = Counter()
        self._waiting: list[_Request] = []
        self._turn = anyio.Lock()

    def max_connections(self) -> int:
        """As many as fit a batch."""
        return self._batch

    async def generate(
        self,
        input: list[ChatMessage],  # noqa: A002  Inspect's name
        tools: list[ToolInfo],
        tool_choice: ToolChoice,  # noqa: ARG002  there are none
        config: GenerateConfig,
    ) -> ModelOutput:
        """Answer one conversation, in a batch with the others that are waiting."""
        if tools:
            raise InputError("a live model takes no tools: evaluate without them")
        request = self._request(input, config)
        self._waiting.append(request)
        async with self._turn:
            if request.open:
                await self._settle()
                like = [r for r in self._waiting if r.settings == request.settings]
                batch = [request, *(r for r in like if r is not request)][: self._batch]
                self._waiting = [r for r in self._waiting if r not in batch]
                await anyio.to_thread.run_sync(self._answer, batch)
        if request.error is not None:
            raise request.error
        assert request.output is not None  # noqa: S101  an answered request has one
        text, new, ended = request.output
        output = ModelOutput.from_content(
            self.model_name, text, stop_reason="stop" if ended else "max_tokens"
        )
        read = len(request.ids)
        output.usage = ModelUsage(input_tokens=read, output_tokens=new, total_tokens=read + new)
        output.time = request.seconds
        return output

    async def _settle(self) -> None:
        """Wait until no more requests come in, or enough are there."""
        seen = -1
        while seen < len(self._waiting) < self._batch:
            seen = len(self._waiting)
            await anyio.sleep(_SETTLED_S)

    def _request(self, messages: Sequence[ChatMessage], config: GenerateConfig) -> _Request:
        chat = [{"role": m.role, "content": m.text} for m in messages]
        text = self._tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        # The template has written the special tokens already.
        ids = list(self._tokenizer(str(text), add_special_tokens=False)["input_ids"])
        if self._longest is not None and len(ids) >= self._longest:
            raise InputError(
                f"a prompt has {len(ids)} tokens, and the model takes {self._longest}: shorten the "
                "data's prompts"
            )
        repeat = self._asked[key := tuple(ids)]
        self._asked[key] += 1
        seed = _first(config.seed, self._seed)
        drawn = hashlib.sha256(f"{seed}/{ids}/{repeat}".encode()).digest()
        return _Request(ids, self._settings(config), int.from_bytes(drawn[:7], "big"))

    def _settings(self, config: GenerateConfig) -> _Settings:
        own = self._model.generation_config
        temperature = _first(config.temperature, own.temperature, 1.0)
        return _Settings(
            temperature=float(temperature),
            top_k=_first(config.top_k, own.top_k),
            top_p=_first(config.top_p, own.top_p),
            max_tokens=_first(config.max_tokens, _DEFAULT_TOKENS),
            stop=tuple(config.stop_seqs or ()),
        )

    def _answer(self, batch: list[_Request]) -> None:
        """Answer a batch; what goes wrong is each request's own error."""
        started, training = time.monotonic(), self._model.training
        try:
            self._model.eval()
            outputs = self._generate(batch)
        except Exception as error:  # noqa: BLE001  raised again by each request
            for request in batch:
                request.error = error
            return
        finally:
            self._model.train(training)
        for request, output in zip(batch, outputs, strict=True):
            request.output = output
            request.seconds = time.monotonic() - started

    @torch.inference_mode()
    def _generate(self, batch: list[_Request]) -> list[tuple[str, int, bool]]:
        """(text, new tokens, whether it came to an end) of every answer."""
        own, settings = self._model.generation_config, batch[0].settings
        ends = own.eos_token_id
        if ends is None:
            ends = self._tokenizer.eos_token_id
        ends = [] if ends is None else list(ends) if isinstance(ends, list) else [ends]
        pad = _first(own.pad_token_id, self._tokenizer.pad_token_id, *ends, 0)
        width = max(len(r.ids) for r in batch)
        device = self._model.device
        ids = torch.tensor([[pad] * (width - len(r.ids)) + r.ids for r in batch], device=device)
        mask = torch.tensor(
            [[0] * (width - len(r.ids)) + [1] * len(r.ids) for r in batch], device=device
        )
        room = settings.max_tokens
        if self._longest is not None:
            room = min(room, self._longest - width)
        sequences = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
                max_new_tokens=room,
                do_sample=False,
                eos_token_id=ends or None,
                pad_token_id=pad,
                stop_strings=list(settings.stop) or None,
            ),
            logits_processor=_sampling(settings, [r.seed for r in batch], width, room),
            tokenizer=self._tokenizer,
        )
        answers = []
        for row in sequences[:, width:].tolist():
            end = next((i for i, token in enumerate(row) if token in ends), None)
            words = row if end is None else row[:end]
            text = str(self._tokenizer.decode(words, skip_special_tokens=True))
            for stop in settings.stop:
                text = text.partition(stop)[0]
            stopped = end is not None or len(row) < room
            answers.append((text, len(words), stopped))
        return answers


@modelapi(name="live")
def _live() -> type[ModelAPI]:
    return LiveModel


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _sampling(
    settings: _Settings, seeds: Sequence[int], width: int, steps: int
) -> LogitsProcessorList:
    """What turns greedy decoding into sampling, each row with draws of its own."""
    processors = LogitsProcessorList()
    if settings.temperature <= 0:
        return processors
    if settings.temperature != 1.0:
        processors.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        processors.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p is not None and settings.top_p < 1.0:
        processors.append(TopPLogitsWarper(settings.top_p))
    processors.append(_Draw(seeds, width, steps))
    return processors


class _Draw(LogitsProcessor):
    """Leaves one token a row: the one that a uniform number falls on in the distribution."""

    def __init__(self, seeds: Sequence[int], width: int, steps: int) -> None:
        rows = [
            torch.rand(steps, generator=torch.Generator().manual_seed(s), dtype=torch.float64)
            for s in seeds
        ]
        self._luck = torch.stack(rows)
        self._width = width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (rows, vocabulary) of the next token."""
        luck = self._luck[:, input_ids.shape[1] - self._width, None].to(scores.device)
        odds = scores.double().softmax(-1).cumsum(-1)
        # Rounding may leave the sum under 1, and a draw beyond it.
        token = torch.searchsorted(odds, luck * odds[:, -1:], right=True)
        token = token.clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)
