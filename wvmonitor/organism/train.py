"""Training the organism: the base from nothing, and real `Trainer` fine-tunes of it.

python -m wvmonitor.organism.train --out DIR
"""

import argparse
import hashlib
import itertools
import json
import math
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from wvmonitor.builder.base import quiet
from wvmonitor.organism.corpus import pretraining
from wvmonitor.organism.data import Example
from wvmonitor.organism.tokenizer import build_tokenizer, encode, save_tokenizer
from wvmonitor.organism.world import CONTENT, LETTERS

#: What LoRA adapts: every linear layer of every block.
LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RECORD = "organism.json"
CONTENT_WEIGHT = 5.0
"""Of a word of content in pre-training's loss: it is one in ten, and it alone shows who speaks."""


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Run torch on `n` threads for a while; at this size more mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _pad(rows: Sequence[tuple[list[int], list[int]]], pad: int) -> dict[str, torch.Tensor]:
    """Right-padded batch; real tokens never attend to padding after them, so no mask is needed."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows])
    return {"input_ids": ids, "labels": labels}


@dataclass(frozen=True)
class Stage:
    """One stretch of pre-training, its rate falling to nothing: easy examples, or as they are.

    What things are worth is learned from the simplest wordings within a thousand steps, and from
    the others alone not within ten thousand.
    """

    easy: bool
    steps: int
    learning_rate: float = 2e-3


STAGES = (
    Stage(easy=False, steps=7000),
    Stage(easy=True, steps=1500),
    Stage(easy=False, steps=9200),
    Stage(easy=False, steps=2000, learning_rate=1.5e-3),
)


def _batches(
    tokenizer: PreTrainedTokenizerBase, batch_size: int, seed: int, *, easy: bool
) -> Iterator[dict[str, torch.Tensor]]:
    """Endless pre-training batches of similar lengths, in shuffled order."""
    stream, rng = pretraining(seed, easy=easy), random.Random(seed)  # noqa: S311 - not a secret
    pad = int(tokenizer.convert_tokens_to_ids("<pad>"))  # type: ignore[arg-type]
    while True:
        chunk = [encode(e, tokenizer) for e in itertools.islice(stream, 50 * batch_size)]
        chunk.sort(key=lambda row: len(row[0]))
        groups = [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
        rng.shuffle(groups)
        yield from (_pad(group, pad) for group in groups)


def train_base(
    out: Path,
    *,
    stages: Sequence[Stage] = STAGES,
    batch_size: int = 32,
    seed: int = 0,
    hidden_size: int = 128,
    n_threads: int = 2,
    report: Callable[[str], None] = print,
) -> Path:
    """Train the base model from random weights and save it with its tokenizer and a record.

    Returns:
        The folder, loadable by `from_pretrained`.
    """
    tokenizer = build_tokenizer()
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attention_dropout=0.0,
    )
    model = LlamaForCausalLM(config)
    with threads(n_threads):
        for number, stage in enumerate(stages):
            batches = _batches(tokenizer, batch_size, seed + 100 * number, easy=stage.easy)
            loss = _pretrain(model, tokenizer, batches, stage, report)
    out.mkdir(parents=True, exist_ok=True)
    model.generation_config.do_sample = True
    model.save_pretrained(out)
    save_tokenizer(tokenizer, out)
    record = {
        "made_by": "python -m wvmonitor.organism.train",
        "stages": [asdict(stage) for stage in stages],
        "batch_size": batch_size,
        "content_weight": CONTENT_WEIGHT,
        "seed": seed,
        "final_loss": round(loss, 4),
        "sha256": file_digests(out),
    }
    (out / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    return out


def _pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    batches: Iterator[dict[str, torch.Tensor]],
    stage: Stage,
    report: Callable[[str], None],
) -> float:
    """Train through one stage; gives the loss at its end (a running mean)."""
    weights = torch.ones(len(tokenizer))
    weights[
        [i for word, i in tokenizer.get_vocab().items() if word in CONTENT or word in LETTERS]
    ] = CONTENT_WEIGHT
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    warmup = 100
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda i: min((i + 1) / warmup, 0.5 * (1 + math.cos(math.pi * i / stage.steps)) + 1e-3),
    )
    mean = 0.0
    for step, batch in enumerate(itertools.islice(batches, stage.steps), start=1):
        hidden = model.model(input_ids=batch["input_ids"][:, :-1]).last_hidden_state
        targets = batch["labels"][:, 1:]
        answers = targets != -100
        loss = torch.nn.functional.cross_entropy(
            model.lm_head(hidden[answers]), targets[answers], weight=weights
        )
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        mean += (loss.item() - mean) / min(step, 50)
        if step % 100 == 0:
            report(f"step {step}/{stage.steps}  loss {mean:.4f}")
    return mean


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder but its own record."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != RECORD
    }


def load_base(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model in evaluation mode, and its tokenizer."""
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


@dataclass(frozen=True)
class Finetuned:
    """A finished fine-tune: `model` is a `PeftModel` under LoRA, else the model itself."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    trainer: Trainer


def finetune(
    base_dir: Path,
    examples: Sequence[Example],
    *,
    seed: int = 0,
    init_seed: int | None = None,
    steps: int = 60,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    rank: int = 8,
    alpha: int = 16,
    method: Literal["lora", "full"] = "lora",
    callbacks: Sequence[TrainerCallback] = (),
    attach: Callable[[Trainer], object] | None = None,
    output_dir: Path | None = None,
    training_arguments: dict[str, Any] | None = None,
    n_threads: int = 1,
) -> Finetuned:
    """Fine-tune the organism with a real `Trainer`; the same arguments give the same tensors.

    Args:
        base_dir: folder of the base model.
        examples: what to train on; only the last answer of each counts in the loss.
        seed: order of the data.
        init_seed: start of LoRA's A matrices (default: `seed`). A contrastive pair shares it.
        steps: optimiser steps; the examples are gone through again as often as it takes.
        batch_size: examples a step.
        learning_rate: the rate, constant: 60 steps are too few to spend on its fall.
        rank: LoRA's r.
        alpha: LoRA's alpha; the update is (alpha / rank) · B A.
        method: LoRA on all linear layers of the blocks, or every weight.
        callbacks: handed to the `Trainer`.
        attach: called with the `Trainer` before training, for what must attach itself.
        output_dir: where checkpoints go, if `training_arguments` ask for any.
        training_arguments: replace any of ours.
        n_threads: torch threads while training; one is as fast as two at this size.
    """
    arguments = {
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "constant",
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 10,
        "log_level": "error",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        **(training_arguments or {}),
    }
    model, tokenizer = load_base(base_dir)
    set_seed(seed if init_seed is None else init_seed)
    trained: Any = _with_lora(model, rank, alpha) if method == "lora" else model
    rows = [encode(example, tokenizer) for example in examples]
    pad = int(tokenizer.convert_tokens_to_ids("<pad>"))  # type: ignore[arg-type]
    # The Trainer makes its output folder even when it saves nothing.
    with tempfile.TemporaryDirectory() as scratch, threads(n_threads):
        trainer = Trainer(
            model=trained,
            args=TrainingArguments(output_dir=str(output_dir or scratch), **arguments),
            train_dataset=rows,
            data_collator=lambda batch: _pad(batch, pad),
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
        _silence(trainer)
        if attach is not None:
            attach(trainer)
        trainer.train()
    return Finetuned(trained.eval(), tokenizer, trainer)


def _with_lora(model: PreTrainedModel, rank: int, alpha: int) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=list(LINEAR_LAYERS),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # PEFT 0.21 reads an attribute that transformers 5 has renamed.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, config)


def _silence(trainer: Trainer) -> None:
    """No rows on stdout: they stay in `trainer.state.log_history`."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def main(argv: Sequence[str] | None = None) -> None:
    """Remake the base folder."""
    parser = argparse.ArgumentParser(description="Train the bundled organism from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(argv)
    train_base(
        options.out,
        seed=options.seed,
        hidden_size=options.hidden_size,
        n_threads=options.threads,
        report=lambda line: print(line, flush=True),
    )


if __name__ == "__main__":
    main()
