"""What becomes of a question under any chat template."""

from __future__ import annotations

import shutil

import pytest

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
