"""Training examples from JSON Lines, as token ids of which the answer's are marked.

One object a line, in one of the forms that TRL's SFT trainer takes: `messages` (a chat that ends
with the assistant), `prompt` and `completion` (two texts, or two lists of messages), or `text`
(all of it counts).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wvmonitor.errors import InputError, MissingPathError, WVMonitorError
from wvmonitor.files.documents import decode_json

SHOWN = 240
"""So many characters of an example are shown to people."""


@dataclass(frozen=True)
class TrainingExample:
    """One example, ready for a model.

    Attributes:
        index: its place in the file, from 0; blank lines do not count.
        ids: the token ids, at most as many as the model takes.
        start: the first token that the loss counts, ≥ 1: the answer's.
        prompt, answer: what it says, shortened, for people.
        cut: how many tokens were cut off at the end.
        error: why it cannot be read, if it cannot; it has no ids then.
    """

    index: int
    ids: tuple[int, ...] = ()
    start: int = 1
    prompt: str = ""
    answer: str = ""
    cut: int = 0
    error: str | None = None

    @property
    def tokens(self) -> int:
        """How many tokens the loss counts."""
        return max(len(self.ids) - self.start, 0)


def read_examples(path: str | Path, tokenizer: Any, *, max_length: int) -> list[TrainingExample]:
    """Read every example of a file; one that cannot be read says why, and the others go on.

    Args:
        path: the JSON Lines file.
        tokenizer: a transformers tokenizer, with a chat template where there are messages.
        max_length: tokens that the model takes.

    Raises:
        MissingPathError: there is no such file.
        InputError: it holds no example at all, or all of them in one JSON list.
    """
    return [
        _example(index, line, f"example {index} of '{path}'", tokenizer, max_length)
        for index, line in enumerate(example_lines(path))
    ]


def example_lines(path: str | Path) -> list[bytes]:
    """The lines of a file of examples that are not empty; no line is looked into.

    Raises:
        MissingPathError, InputError: as `read_examples` says.
    """
    try:
        with Path(path).open("rb") as file:
            lines = [line for line in file if line.strip()]
    except OSError as error:
        raise MissingPathError(f"'{path}' cannot be read: {error.strerror}") from None
    if not lines:
        raise InputError(f"'{path}' holds no examples: give a file with one JSON object a line")
    if lines[0].lstrip()[:1] == b"[":
        raise InputError(
            f"'{path}' is one JSON list, and not one object a line: `jq -c '.[]' FILE` writes it so"
        )
    return lines


def tokenized(
    index: int, values: Mapping[str, Any], tokenizer: Any, *, max_length: int
) -> TrainingExample:
    """One example from its fields.

    Raises:
        InputError: none of the known forms, or nothing is left of the answer.
    """
    prompt, answer, ids, start = _parts(values, tokenizer)
    shortened = ids[:max_length]
    start = max(start, 1)  # nothing predicts the first token
    if start >= len(shortened):
        raise InputError(
            f"no token of its answer lies within the {max_length} that the model takes"
            if ids[max_length:]
            else "its answer is empty"
        )
    return TrainingExample(
        index, tuple(shortened), start, prompt[:SHOWN], answer[:SHOWN], len(ids) - len(shortened)
    )


def in_words(values: Mapping[str, Any]) -> tuple[str, str]:
    """The prompt and the answer of one example in full, for people; what is in no form is ""."""

    def text(value: Any) -> str:
        if isinstance(value, list):
            return "\n".join(f"{m.get('role')}: {m.get('content')}" for m in value)
        return str(value or "")

    if messages := values.get("messages"):
        return text(messages[:-1]), str(messages[-1].get("content", ""))
    if "completion" in values:
        completion = values["completion"]
        last = completion[-1].get("content") if isinstance(completion, list) else completion
        return text(values.get("prompt")), str(last)
    return "", text(values.get("text"))


def _example(
    index: int, line: bytes, where: str, tokenizer: Any, max_length: int
) -> TrainingExample:
    try:
        return tokenized(index, decode_json(line, where), tokenizer, max_length=max_length)
    except WVMonitorError as error:
        return TrainingExample(index, error=str(error))


def _parts(values: Mapping[str, Any], tokenizer: Any) -> tuple[str, str, list[int], int]:
    """The prompt and the answer as text, all token ids, and where the answer's begin."""
    if "messages" in values:
        messages = _messages(values["messages"])
        if messages[-1]["role"] != "assistant":
            raise InputError("its last message is not the assistant's: there is no answer")
        return _chat(messages[:-1], messages[-1:], tokenizer)
    if "prompt" in values and "completion" in values:
        prompt, completion = values["prompt"], values["completion"]
        if isinstance(prompt, list) and isinstance(completion, list):
            return _chat(_messages(prompt), _messages(completion), tokenizer)
        if isinstance(prompt, str) and isinstance(completion, str):
            before, ids = _ids(prompt, tokenizer), _ids(prompt + completion, tokenizer)
            return prompt, completion, _ended(ids, tokenizer), _common(before, ids)
        raise InputError("its prompt and completion must be two texts, or two lists of messages")
    if isinstance(values.get("text"), str):
        return "", values["text"], _ended(_ids(values["text"], tokenizer), tokenizer), 1
    raise InputError(
        f"it has the fields {', '.join(map(repr, values)) or 'none'}: give 'messages', 'prompt' "
        "and 'completion', or 'text'"
    )


def _messages(value: Any) -> list[dict[str, str]]:
    good = isinstance(value, list) and value
    if good and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in value
    ):
        return list(value)
    raise InputError("its messages must be a list of objects with a role and a content, both text")


def _chat(
    before: Sequence[dict[str, str]], answer: Sequence[dict[str, str]], tokenizer: Any
) -> tuple[str, str, list[int], int]:
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError("it is a chat, and the model's tokenizer has no chat template")
    shown = {"tokenize": True, "return_dict": True}
    try:
        prompt = tokenizer.apply_chat_template(list(before), add_generation_prompt=True, **shown)
        whole = tokenizer.apply_chat_template([*before, *answer], **shown)
    except Exception as error:  # noqa: BLE001  a template is a program and may raise what it likes
        raise InputError(f"the chat template does not take it: {error}") from None
    start, ids = list(prompt["input_ids"]), list(whole["input_ids"])
    if ids[: len(start)] != start:
        raise InputError(
            "the chat template writes the prompt differently once there is an answer: give it as "
            "'prompt' and 'completion' texts"
        )
    texts = [" ".join(m["content"] for m in part) for part in (before, answer)]
    return texts[0], texts[1], ids, len(start)


def _ids(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text)["input_ids"])


def _ended(ids: list[int], tokenizer: Any) -> list[int]:
    """With the end of text, which is trained on as well."""
    end = tokenizer.eos_token_id
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts begin with alike: a word may end differently before another."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
