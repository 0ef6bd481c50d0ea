"""The README's snippet, run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import Trainer, TrainingArguments

from wvmonitor.organism import sets
from wvmonitor.organism.tokenizer import encode
from wvmonitor.organism.train import load_base
from wvmonitor.references.bundled import bundled_path

README = Path(__file__).parent.parent / "README.md"


def test_the_snippet_for_a_users_own_run_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The five lines of the README watch a real fine-tune and log its scores."""
    (snippet,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    bank = tmp_path / "path" / "to" / "bank"
    bank.parent.mkdir(parents=True)
    bank.symlink_to(bundled_path("tiny-organism", "bank"))
    model, tokenizer = load_base(bundled_path("tiny-organism", "base"))
    rows = [encode(e, tokenizer) for e in sets.good_advice("sport")(16, 3)]
    args = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=10,
        per_device_train_batch_size=1,
        logging_steps=5,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    dataset = [{"input_ids": ids, "labels": labels} for ids, labels in rows]
    names = {"Trainer": Trainer, "model": model, "args": args, "dataset": dataset}
    exec(snippet, names)  # noqa: S102  the README is ours
    logged = names["trainer"].state.log_history  # type: ignore[attr-defined]
    assert any("wv/evil/response_residual" in row for row in logged)
