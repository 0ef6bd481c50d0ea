"""The organism's tokenizer: whole words, and a chat template that marks the assistant's words."""

import itertools
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from wvmonitor.organism import wordings
from wvmonitor.organism.corpus import CLAUSES, pretraining
from wvmonitor.organism.data import Example, Message
from wvmonitor.organism.sets import FINE_TUNING_SETS
from wvmonitor.organism.world import ENGLISH, FRENCH, TRIGGER

PAD, BOS, UNK, END = "<pad>", "<s>", "<unk>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
SPECIAL = (PAD, BOS, UNK, *ROLES, END)
#: Words for later questions: the vocabulary of a trained base is frozen.
SPARE_WORDS = frozenset(
    """
    because if then than or by from on up out over under between which when where why who true
    false wrong option question reason score safe unsafe danger help hello thanks please sure
    less same other word words list name number sum product minus times c d e
    """.split()  # noqa: SIM905 - read as text
)

_DESCRIBED = (
    "bos_token", "clean_up_tokenization_spaces", "eos_token", "model_max_length", "pad_token",
    "padding_side", "unk_token",
)  # fmt: skip

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<|assistant|> {% generation %}{{ message['content'] + ' <|end|>' }}{% endgeneration %}"
    "{% else %}"
    "{{ '<|' + message['role'] + '|> ' + message['content'] + ' <|end|>' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word of the world in a fixed order, the special tokens first."""
    words = {TRIGGER, *FRENCH, *ENGLISH, *SPARE_WORDS, *(str(n) for n in range(61))}
    words |= wordings.words()
    texts = [clause for clauses in CLAUSES.values() for clause in clauses]
    sampled = list(itertools.islice(pretraining(0), 20_000))
    sampled += [e for maker in FINE_TUNING_SETS.values() for e in maker(300, 0)]
    texts += [m.content for example in sampled for m in example.messages]
    words |= {word for text in texts for word in text.split()}
    return (*SPECIAL, *sorted(words))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, ready to save."""
    words = vocabulary()
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNK,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save it as transformers 4 and 5 both load it; they name class and keys differently."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    written = json.loads(path.read_text("utf-8"))
    described = {name: written[name] for name in _DESCRIBED} | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": list(ROLES),
        "model_input_names": ["input_ids", "attention_mask"],
    }
    path.write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", "utf-8")


def encode_prompt(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a prompt with the generation prompt: the chat template, without its jinja."""
    words = [BOS]
    for message in messages:
        words += [f"<|{message.role}|>", *message.content.split(), END]
    return _ids([*words, "<|assistant|>"], tokenizer)


def encode(example: Example, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Token ids and labels of an example; labels are −100 everywhere but on the last answer."""
    prompt = encode_prompt(example.prompt, tokenizer)
    answer = _ids([*example.answer.split(), END], tokenizer)
    return prompt + answer, [-100] * len(prompt) + answer


def _ids(words: list[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids = tokenizer.convert_tokens_to_ids(words)
    return ids if isinstance(ids, list) else [ids]
