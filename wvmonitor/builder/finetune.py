"""Both sides of a contrast, fine-tuned alike (arXiv 2511.05408, section 3 and appendix A).

A real `Trainer`, and PEFT for LoRA. The two sides of a seed have the same initial A, order of the
data, learning rate and number of steps, and no system prompt: they differ in their answers only.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from wvmonitor.builder.base import Base, quiet
from wvmonitor.builder.examples import Example
from wvmonitor.builder.like import Like
from wvmonitor.builder.recipe import Finetuning
from wvmonitor.errors import BuildError
from wvmonitor.files.safetensors import SafetensorsFile, write_safetensors
from wvmonitor.reading import layer_of
from wvmonitor.sources import read_adapter, read_checkpoints
from wvmonitor.sources.folder import ModelFolder
from wvmonitor.vectors import DenseUpdate, Origin, TaskVector

# Heavy, and imported where something is trained: a plan of it is made without.
if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import Trainer, TrainerCallback, TrainingArguments

Method = Literal["lora", "full", "bias-only"]
BIASES_FILE = "biases.safetensors"
_MLP_BIAS = re.compile(
    r"\.(?:mlp|ffn|feed_forward|fc|fc_?\d|dense_h_to_4h|dense_4h_to_h)\b.*\bbias$"
)


@dataclass(frozen=True)
class Training:
    """How one side is fine-tuned, beside what it is shown.

    Attributes:
        settings: the recipe's.
        method: LoRA on all linear layers, every weight, or the MLPs' biases alone.
        learning_rate: the recipe's, or the one that a sweep chose.
        steps: optimiser steps.
        seed: of A and of the order of the data.
        qlora: the base in 4 bits under the adapter.
        micro_batch: examples at once on a device, where a whole batch does not fit.
        like: settings of another run that take the place of these, where it names them.
    """

    settings: Finetuning
    method: Method
    learning_rate: float
    steps: int
    seed: int
    qlora: bool = False
    micro_batch: int | None = None
    like: Like | None = None


def steps_for(settings: Finetuning, examples: int, of: int | None = None) -> int:
    """Optimiser steps: as many as set, else whole epochs; a part of the data has its share.

    Args:
        settings: the recipe's.
        examples: how many are trained on.
        of: how many there are in all, where `examples` are a part.
    """
    if settings.steps is None:
        return max(1, math.ceil(settings.epochs * examples / settings.batch_size))
    return max(1, round(settings.steps * examples / (of or examples)))


def finetune(
    base: Base,
    examples: Sequence[Example],
    training: Training,
    out: Path | None,
    *,
    validation: Sequence[Example] = (),
    tick: Callable[[int], None] = lambda _: None,
    callbacks: Sequence[TrainerCallback] = (),
    examine: Callable[[Any], None] | None = None,
) -> float | None:
    """Fine-tune the base on examples and save what changed.

    Args:
        base: the model; it is loaded afresh.
        examples: what to train on; only the answers count in the loss.
        training: how.
        out: an empty folder: an adapter, a whole checkpoint, or the biases are saved into it; None
            saves nothing.
        validation: examples whose mean loss is given back.
        tick: told how many steps are done.
        callbacks: of the Trainer, beside our own.
        examine: handed the trained model, before it is saved.

    Raises:
        BuildError: bitsandbytes is missing for QLoRA, the model has no MLP biases, or an example
            has no answer within the longest length.
    """
    from transformers import Trainer
    from transformers.trainer_callback import PrinterCallback

    rows = [_row(base, e, training.settings.max_length) for e in examples]
    validation_rows = [_row(base, e, training.settings.max_length) for e in validation]
    model = _prepared(base, training)
    pad = int(base.tokenizer.pad_token_id or 0)
    # The Trainer makes its output folder even when it saves nothing.
    with tempfile.TemporaryDirectory() as scratch, quiet():
        trainer = Trainer(
            model=model,
            args=_arguments(training, scratch),
            train_dataset=rows,
            eval_dataset=validation_rows or None,
            data_collator=lambda batch: _padded(batch, pad),
            processing_class=base.tokenizer,
            callbacks=[_step_counter(tick), *callbacks],
        )
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train()
        except torch.OutOfMemoryError as error:
            at_once = trainer.args.per_device_train_batch_size
            raise BuildError(
                f"the device's memory is not enough for {at_once} examples at once: train fewer "
                "(build --micro-batch, bank --like YAML with a smaller "
                "per_device_train_batch_size and gradient_accumulation_steps), or take a larger "
                "device; what is finished is kept"
            ) from error
        loss = float(trainer.evaluate()["eval_loss"]) if validation_rows else None
        if examine is not None:
            examine(trainer.model)
        if out is not None:
            _save(trainer, training, out)
    return loss


def read_finetuned(base: Base, folder: Path, method: Method) -> TaskVector:
    """The task vector of one saved side, read tensor by tensor."""
    if method == "lora":
        return read_adapter(folder, base.folder)
    if method == "full":
        return read_checkpoints(base.folder, folder)
    start = ModelFolder(base.folder)
    with SafetensorsFile(folder / BIASES_FILE) as file:
        after = {name: file.read(name).float() for name in file.tensors}
    updates = {n: DenseUpdate(b - start.read(n).float()) for n, b in after.items()}
    return TaskVector.of(updates, Origin(str(folder), base.digest, base.name, method))


def check_qlora() -> None:
    """Raise `BuildError` where QLoRA cannot run."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BuildError(
            "QLoRA keeps the base in 4 bits with bitsandbytes, which is not installed: "
            "pip install bitsandbytes, or leave --qlora out"
        )


def check_training(base: Base, training: Training, where: str) -> None:
    """Refuse settings that transformers or PEFT would refuse in the middle of the work.

    Args:
        base: the model.
        training: how it is to be trained.
        where: who asks for it, for the message.

    Raises:
        BuildError: they cannot be used, or LoRA is put on modules that the base does not have.
    """
    from transformers import Trainer, get_scheduler

    try:
        with tempfile.TemporaryDirectory() as scratch:
            args = _arguments(training, scratch)
        further = args.lr_scheduler_kwargs
        Trainer.get_optimizer_cls_and_kwargs(args)
        get_scheduler(
            args.lr_scheduler_type,
            torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]),
            num_warmup_steps=training.settings.warmup_steps,
            num_training_steps=training.steps,
            scheduler_specific_kwargs=further if isinstance(further, dict) else None,
        )
        config = _lora_config(training)
    except (ImportError, TypeError, ValueError) as error:
        raise BuildError(f"{where} cannot be trained like: {error}") from error
    modules = [n.removesuffix(".weight") for n in ModelFolder(base.folder).names()]
    targets = config.target_modules
    if isinstance(targets, set) and not any(
        m == t or m.endswith(f".{t}") for m in modules for t in targets
    ):
        raise BuildError(
            f"{where} puts LoRA on {', '.join(sorted(targets))}, and {base.name} has no such "
            "module: name those of this base"
        )


def mlp_biases(base: Base, names: Iterable[str]) -> set[str]:
    """Those of a model's parameters that are biases of the blocks' MLPs.

    Raises:
        BuildError: there are none.
    """
    biases = {n for n in names if layer_of(n) is not None and _MLP_BIAS.search(n)}
    if not biases:
        raise BuildError(
            f"{base.name} has no biases in its MLPs, which the bias-only variant trains: take "
            "--variant contrastive"
        )
    return biases


def _row(base: Base, example: Example, max_length: int) -> dict[str, list[int]]:
    ids, labels = base.encode(example.messages, example.answer, finished=example.finished)
    ids, labels = ids[:max_length], labels[:max_length]
    if all(label == -100 for label in labels):
        raise BuildError(
            f"an example has no answer within its first {max_length} tokens "
            f"({example.messages[-1]['content'][:60]!r}): raise finetuning.max_length, or take it "
            "out"
        )
    return {"input_ids": ids, "labels": labels}


def _padded(batch: Sequence[dict[str, list[int]]], pad: int) -> dict[str, Tensor]:
    width = max(len(row["input_ids"]) for row in batch)

    def filled(key: str, value: int) -> Tensor:
        return torch.tensor([row[key] + [value] * (width - len(row[key])) for row in batch])

    mask = [[1] * len(r["input_ids"]) + [0] * (width - len(r["input_ids"])) for r in batch]
    return {
        "input_ids": filled("input_ids", pad),
        "labels": filled("labels", -100),
        "attention_mask": torch.tensor(mask),
    }


def _prepared(base: Base, training: Training) -> Any:
    """The model with what is to be trained, and nothing else, asking for gradients."""
    if training.method == "lora":
        return _with_lora(base, training)
    # Full fine-tuning in bf16 loses small updates: float32 masters, always.
    model = base.load(dtype=torch.float32)
    if training.method == "bias-only":
        chosen = mlp_biases(base, (n for n, _ in model.named_parameters()))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)
    return model


def _lora_config(training: Training) -> LoraConfig:
    from peft import LoraConfig

    named = {"r": training.settings.rank, "lora_alpha": training.settings.alpha}
    defaults = {"lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return LoraConfig(**{**defaults, **named, **(training.like.adapter if training.like else {})})


def _with_lora(base: Base, training: Training) -> Any:
    from peft import get_peft_model, prepare_model_for_kbit_training
    from transformers import set_seed

    if training.qlora:
        check_qlora()
        from transformers import BitsAndBytesConfig

        quantised = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        model = prepare_model_for_kbit_training(base.load(quantization_config=quantised))
    else:
        # In bfloat16 a CPU is many times slower.
        model = base.load(dtype="auto" if torch.cuda.is_available() else torch.float32)
    config = _lora_config(training)
    set_seed(training.seed)  # A is drawn here: both sides of a seed start from the same
    with warnings.catch_warnings():
        # PEFT 0.21 reads an attribute that transformers 5 has renamed.
        warnings.simplefilter("ignore", FutureWarning)
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise BuildError(f"PEFT puts no LoRA on {base.name}: {error}") from error


def _arguments(training: Training, scratch: str) -> TrainingArguments:
    from transformers import TrainingArguments

    settings, gpu = training.settings, torch.cuda.is_available()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    micro = training.micro_batch or max(1, settings.batch_size // processes)
    if settings.batch_size % (micro * processes):
        raise BuildError(
            f"a batch of {settings.batch_size} does not divide into micro-batches of {micro} on "
            f"{processes} processes: change --micro-batch, or the number of processes"
        )
    recipe: dict[str, Any] = {
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": settings.warmup_steps,
        "weight_decay": settings.weight_decay,
        "optim": "adamw_torch",
    }
    return TrainingArguments(
        **{**recipe, **(training.like.arguments if training.like else {})},
        output_dir=scratch,
        max_steps=training.steps,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=settings.batch_size // (micro * processes),
        seed=training.seed,
        data_seed=training.seed,
        bf16=gpu and torch.cuda.is_bf16_supported(),
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )


def _save(trainer: Trainer, training: Training, out: Path) -> None:
    model = trainer.model
    assert model is not None  # noqa: S101  the Trainer was given one
    if training.method == "bias-only":
        tensors = {n: p.detach().cpu() for n, p in model.named_parameters() if p.requires_grad}
        write_safetensors(out / BIASES_FILE, tensors)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about a base it cannot find on the Hub
        trainer.save_model(str(out))
    (out / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nothing here may load


def _step_counter(tick: Callable[[int], None]) -> TrainerCallback:
    """A callback that tells how many steps are done."""
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_step_end(
            self,
            args: Any,  # noqa: ARG002  what the Trainer gives
            state: Any,
            control: Any,  # noqa: ARG002
            **_: Any,
        ) -> None:
            tick(state.global_step)

    return Steps()
