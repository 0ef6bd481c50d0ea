"""The README's snippet, run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import Trainer

from tests.users_run import short_run
from wvmonitor.references.bundled import bundled_path

README = Path(__file__).parent.parent / "README.md"


def test_the_snippet_for_a_users_own_run_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The five lines of the README watch a real fine-tune and log its scores."""
    (snippet,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    bank = tmp_path / "banks" / "my-base"
    bank.parent.mkdir(parents=True)
    bank.symlink_to(bundled_path("tiny-organism", "bank"))
    model, _, dataset, args = short_run(
        bundled_path("tiny-organism", "base"), tmp_path / "run", examples=16
    )
    names = {"Trainer": Trainer, "model": model, "args": args, "dataset": dataset}
    exec(snippet, names)  # noqa: S102  the README is ours
    logged = names["trainer"].state.log_history  # type: ignore[attr-defined]
    assert any("wv/evil/verdict" in row for row in logged)
