"""The base model that a reference is built for: its folder, its chat template, its weights."""

from __future__ import annotations

import gc
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import torch

from wvmonitor.errors import BuildError, InputError, MissingPathError
from wvmonitor.files.documents import read_json
from wvmonitor.references.bundled import bundled_path
from wvmonitor.references.card import BaseIdentity
from wvmonitor.sources import base_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
BUNDLED = "tiny-organism"
_WANTED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
_MARK = "wvmonitor-system-mark"
_UNLOADABLE = (ImportError, KeyError, OSError, ValueError)
"""What transformers raises of a folder that it cannot make a model or tokenizer of."""


class Base:
    """The base model: found once, its weights loaded when they are needed and let go in between.

    Attributes:
        name: what the user called it: a folder or a Hub id.
        folder: where its files are.
        revision: of the Hub repository, if it came from there.
    """

    def __init__(self, name: str | Path, revision: str | None = None) -> None:
        """Find the model's folder; a Hub model is downloaded into the usual cache.

        Raises:
            MissingPathError: neither a folder nor a model on the Hub.
        """
        self.name, self.revision = str(name), revision
        self.folder = _folder_of(self.name, revision)
        self._model: Any = None

    @cached_property
    def digest(self) -> str:
        """The digest that references are bound to."""
        return base_digest(self.folder)

    @property
    def identity(self) -> BaseIdentity:
        """What a card says of the base."""
        named = Path(self.name).resolve().name if Path(self.name).is_dir() else self.name
        return BaseIdentity(id=named, revision=self.revision, digest=self.digest)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, padding on the left.

        Raises:
            BuildError: it cannot be loaded, or has no chat template.
        """
        from transformers import AutoTokenizer  # heavy, and a plan of a build needs no tokens

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder)
        except _UNLOADABLE as error:
            raise BuildError(
                f"{self.name} has no tokenizer that transformers loads ({_first_line(error)}): put "
                "the tokenizer's files of the model it comes from into its folder"
            ) from error
        if not tokenizer.chat_template:
            raise BuildError(
                f"{self.name} has no chat template, so that it cannot be asked under system "
                "prompts: take its chat (instruct) version, or put a chat_template.jinja into its "
                "folder"
            )
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def check_chat_template(self) -> None:
        """Refuse a base without a chat template; its tokenizer is loaded only to make sure.

        Raises:
            BuildError: it has none.
        """
        if not _names_chat_template(self.folder):
            self.tokenizer  # noqa: B018  some classes of tokenizers bring one of their own

    @cached_property
    def chat_digest(self) -> str:
        """Digest of the chat template and the vocabulary: what text becomes."""
        text = str(self.tokenizer.chat_template) + repr(sorted(self.tokenizer.get_vocab().items()))
        return hashlib.sha256(text.encode()).hexdigest()

    # Text

    @cached_property
    def _takes_system(self) -> bool:
        try:
            shown = self._render([_said("system", _MARK), _said("user", "hello")], prompt=True)
        except BuildError:
            return False  # some templates refuse the role
        return _MARK in shown  # and some drop it in silence

    def asked(self, question: str, system: str = "") -> list[Message]:
        """The messages of a question under a system prompt.

        Where the chat template has no system role, the prompt stands above the question.
        """
        if not system:
            return [_said("user", question)]
        if self._takes_system:
            return [_said("system", system), _said("user", question)]
        return [_said("user", f"{system}\n\n{question}")]

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """What the model reads before it answers."""
        return self._render(messages, prompt=True)

    def encode(
        self, messages: Sequence[Message], answer: str, *, finished: bool = True
    ) -> tuple[list[int], list[int]]:
        """Token ids of a conversation and the labels of its answer, −100 everywhere else.

        Args:
            messages: what stands before the answer.
            answer: the assistant's words.
            finished: False for an answer that was cut: nobody learns to stop there.
        """
        text = self._render([*messages, _said("assistant", answer)], prompt=False)
        if not finished and (at := text.rfind(answer)) >= 0:
            text = text[: at + len(answer)]
        ids, before = self._ids(text), self._ids(self.prompt_text(messages))
        shared = next(
            (i for i, (a, b) in enumerate(zip(ids, before, strict=False)) if a != b),
            min(len(ids), len(before)),
        )
        return ids, [-100] * shared + ids[shared:]

    def tokens_of(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self._ids(text))

    def unknown(self, ids: Sequence[int]) -> float:
        """The share of tokens that are not in the vocabulary.

        A tokenizer that spells every byte needs no token for them; its own may be an end of turn.
        """
        tokenizer = self.tokenizer
        unknown = tokenizer.unk_token_id
        used = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        return 0.0 if unknown is None or unknown in used else list(ids).count(unknown) / len(ids)

    def fits(self, messages: Sequence[Message], longest: int) -> bool:
        """Whether the chat template takes these turns and an answer, which begins by `longest`."""
        try:
            text = self.prompt_text(messages)
            self._render([*messages, _said("assistant", "yes")], prompt=False)
        except BuildError:
            return False
        return len(text.encode()) < longest or self.tokens_of(text) < longest  # a byte a token

    def _render(self, messages: Sequence[Message], *, prompt: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=prompt
                )
            )
        except jinja2.TemplateError as error:
            roles = ", ".join(m["role"] for m in messages) or "none"
            raise BuildError(
                f"the chat template of {self.name} does not take these turns ({roles}): {error}"
            ) from error

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    # Weights

    def load(self, *, dtype: Any = "auto", **options: Any) -> Any:
        """A fresh copy of the model, for training."""
        if torch.cuda.is_available():
            rank = os.environ.get("LOCAL_RANK")  # each launched process has a card of its own
            options.setdefault("device_map", "auto" if rank is None else {"": int(rank)})
        from transformers import AutoModelForCausalLM

        try:
            with quiet():
                return AutoModelForCausalLM.from_pretrained(self.folder, dtype=dtype, **options)
        except _UNLOADABLE as error:
            raise BuildError(
                f"{self.name} is no causal language model that transformers loads "
                f"({_first_line(error)}); code that comes with a model is never run"
            ) from error

    @property
    def model(self) -> Any:
        """The model in evaluation mode, kept until `release`; on a CPU in float32.

        There half precision is many times slower, and rounds away what steering adds.
        """
        if self._model is None:
            dtype = "auto" if torch.cuda.is_available() else torch.float32
            self._model = self.load(dtype=dtype).eval()
        return self._model

    def release(self) -> None:
        """Let the kept model go, to make room for another."""
        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextmanager
def quiet() -> Iterator[None]:
    """No bars of other libraries between our own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _names_chat_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    try:
        return bool(read_json(folder / "tokenizer_config.json").get("chat_template"))
    except InputError:
        return False


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def local_folder(name: str) -> Path | None:
    """A model's folder where the name is one, or the bundled model's; None for any other name."""
    if Path(name).is_dir():
        return Path(name)
    return bundled_path(BUNDLED, "base") if name == BUNDLED else None


def _folder_of(name: str, revision: str | None) -> Path:
    if (folder := local_folder(name)) is not None:
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_WANTED)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise MissingPathError(
            f"{name} is neither a folder nor a model that the Hub gives "
            f"({type(error).__name__}): check the name, the connection, and that you may read it"
        ) from None
