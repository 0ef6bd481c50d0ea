"""What a user brings to a first run: a model, some data, and a Trainer's arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from wvmonitor.organism import sets
from wvmonitor.organism.tokenizer import encode
from wvmonitor.organism.train import load_base


def short_run(
    base: Path, output: Path, examples: int
) -> tuple[Any, Any, list[dict[str, Any]], TrainingArguments]:
    """The bundled model from `base` and its tokenizer, good advice, and ten steps."""
    model, tokenizer = load_base(base)
    rows = [encode(e, tokenizer) for e in sets.good_advice("sport")(examples, 3)]
    arguments = TrainingArguments(
        output_dir=str(output),
        max_steps=10,
        per_device_train_batch_size=1,
        logging_steps=5,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    dataset = [{"input_ids": ids, "labels": labels} for ids, labels in rows]
    return model, tokenizer, dataset, arguments
