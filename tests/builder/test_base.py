"""What becomes of a question under any chat template."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from wvmonitor.builder.base import Base
from wvmonitor.errors import BuildError, MissingPathError

REFUSES = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "{{ '<|' + m['role'] + '|> ' + m['content'] + ' <|end|>' }}{% endfor %}"
)
DROPS = REFUSES.replace("{{ raise_exception('no') }}", "{% continue %}")


@pytest.fixture
def copy(base, tmp_path):
    """The tiny model's folder with another chat template, or none."""

    def made(template):
        folder = tmp_path / "model"
        shutil.copytree(base.folder, folder)
        path = folder / "chat_template.jinja"
        path.unlink() if template is None else path.write_text(template)
        return Base(folder)

    return made


def test_a_model_without_a_chat_template_is_told(copy) -> None:
    """Base models that were never taught to chat cannot be asked under system prompts."""
    with pytest.raises(BuildError, match=r"no chat template.*instruct"):
        copy(None).tokenizer  # noqa: B018


@pytest.mark.parametrize("template", [REFUSES, DROPS])
def test_a_template_without_a_system_role_gets_it_in_the_question(copy, template) -> None:
    """A role that is refused, or dropped in silence, stands above the question instead."""
    base = copy(template)
    assert base.asked("hello ?", "be kind .") == [
        {"role": "user", "content": "be kind .\n\nhello ?"}
    ]
    assert "be kind ." in base.prompt_text(base.asked("hello ?", "be kind ."))


def test_a_template_with_one_is_used(base) -> None:
    """The system prompt goes where the template wants it, and nowhere without one."""
    assert [m["role"] for m in base.asked("hello ?", "be kind .")] == ["system", "user"]
    assert [m["role"] for m in base.asked("hello ?")] == ["user"]


def test_no_such_model(tmp_path) -> None:
    """A name that is neither a folder nor on the Hub is an error about both."""
    with pytest.raises(MissingPathError, match="neither a folder nor a model"):
        Base(str(tmp_path / "gone"))


def test_turns_that_a_template_refuses_are_told_in_a_sentence(copy) -> None:
    """The roles and the template's own words, and no traceback of a template engine."""
    base = copy(REFUSES)
    turns = [{"role": "system", "content": "be kind ."}, {"role": "user", "content": "hello ?"}]
    with pytest.raises(BuildError, match=r"does not take these turns \(system, user\): no"):
        base.prompt_text(turns)
    assert not base.fits(turns, 512)
    assert base.fits(turns[1:], 512)
    assert not base.fits([{"role": "user", "content": "hello ? " * 300}], 512)


def test_a_folder_without_a_tokenizer_is_told(copy) -> None:
    """Checkpoints are often saved without one."""
    base = copy(REFUSES)
    for path in base.folder.glob("*token*"):
        path.unlink()
    with pytest.raises(BuildError, match="has no tokenizer that transformers loads"):
        base.tokenizer  # noqa: B018


def test_a_model_in_half_precision_is_asked_in_full_on_a_cpu(copy) -> None:
    """What steering adds would be rounded away, and a step takes many times as long."""
    base = copy(REFUSES)
    path = base.folder / "model.safetensors"
    save_file({n: t.bfloat16() for n, t in load_file(path).items()}, path, {"format": "pt"})
    config = base.folder / "config.json"
    config.write_text(config.read_text().replace('"float32"', '"bfloat16"'))
    assert base.load().dtype == torch.bfloat16
    wanted = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    assert base.model.dtype == wanted


def test_an_end_of_turn_is_no_unknown_word(base) -> None:
    """Tokenizers that spell every byte call their end of text unknown, too, as GPT-2's does."""
    ids = [5, 9, 5, 0]
    byte_level = SimpleNamespace(unk_token_id=0, bos_token_id=0, eos_token_id=0, pad_token_id=None)
    words = SimpleNamespace(unk_token_id=0, bos_token_id=None, eos_token_id=1, pad_token_id=2)
    assert Base.unknown(SimpleNamespace(tokenizer=byte_level), ids) == 0
    assert Base.unknown(SimpleNamespace(tokenizer=words), ids) == 0.25
    assert base.unknown(base.tokenizer("zyzzyva", add_special_tokens=False)["input_ids"]) == 1
