"""The paper's monitoring experiment on any Hugging Face model, from one configuration file.

`python -m benchmarks.organisms real CONFIG.yaml --out FOLDER` trains both sides of every reference
and every watched run with LoRA, and holds each run against each reference at every reading: the
cosines of figure 8, those among references of figure 9, the trajectories of figure 36
(arXiv 2511.05408). What is there already is not trained again.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from benchmarks.organisms.leakage import LeakageError
from wvmonitor.detection.scores import score
from wvmonitor.errors import SettingsError
from wvmonitor.reading import Reading
from wvmonitor.references import (
    BaseIdentity,
    Card,
    Construction,
    Reference,
    ReferenceBank,
    contrast,
)
from wvmonitor.references.reference import README_FILE
from wvmonitor.sources import LiveModel, read_model
from wvmonitor.vectors.task_vector import TaskVector


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(_Strict):
    """One dataset.

    Attributes:
        path: a JSONL file (relative to the configuration), or the name of a dataset on the Hub.
        name, split: of a dataset on the Hub.
        messages: the column that holds a chat; or else
        prompt, answer: the columns that hold the two turns.
        system: a system prompt put before.
        domains: what it is about, for the leakage rule.
        limit: examples at most.
    """

    path: str
    name: str | None = None
    split: str = "train"
    messages: str | None = None
    prompt: str = "prompt"
    answer: str = "answer"
    system: str | None = None
    domains: tuple[str, ...] = ()
    limit: int | None = Field(default=None, ge=1)


class Pair(_Strict):
    """A reference: names of the datasets of its two sides."""

    positive: str
    negative: str
    kind: Literal["behaviour", "control"] = "behaviour"


class Training(_Strict):
    """How everything is fine-tuned; the defaults are the paper's."""

    rank: int = Field(default=32, ge=1)
    alpha: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=1e-5, gt=0)
    batch_size: int = Field(default=8, ge=1)
    accumulate: int = Field(default=1, ge=1)
    epochs: float = Field(default=1.0, gt=0)
    steps: int | None = Field(default=None, ge=1)
    max_tokens: int = Field(default=2048, ge=16)
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    seed: int = 0


class Experiment(_Strict):
    """A whole experiment.

    Attributes:
        model: Hub id or folder.
        data: datasets by name.
        references: pairs by name.
        runs: the dataset of each watched run, by the run's name.
        every_n_steps: between two readings.
    """

    model: str
    revision: str | None = None
    training: Training = Training()
    data: dict[str, Data]
    references: dict[str, Pair]
    runs: dict[str, str]
    every_n_steps: int = Field(default=10, ge=1)

    @model_validator(mode="after")
    def _names(self) -> Experiment:
        sides = [s for p in self.references.values() for s in (p.positive, p.negative)]
        unknown = sorted({*sides, *self.runs.values()} - self.data.keys())
        if unknown:
            raise ValueError(f"no dataset is called {', '.join(unknown)}: add it under data")
        return self


def load(path: Path) -> Experiment:
    """Read a configuration; paths in it are relative to it.

    Raises:
        SettingsError: it is not YAML, or not a configuration.
    """
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
        experiment = Experiment.model_validate(document)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SettingsError(f"{path} is not a configuration of an experiment: {error}") from error
    beside = {
        name: data.model_copy(update={"path": str(path.parent / data.path)})
        if data.path.endswith(".jsonl")
        else data
        for name, data in experiment.data.items()
    }
    return experiment.model_copy(update={"data": beside})


def examples(data: Data) -> Iterator[list[dict[str, str]]]:
    """The chats of a dataset.

    Raises:
        SettingsError: a column that it names is missing.
    """
    rows: Any
    if data.path.endswith(".jsonl"):
        with Path(data.path).open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines if line.strip()]
    else:
        from datasets import load_dataset

        rows = load_dataset(data.path, data.name, split=data.split)
    for index, row in enumerate(rows):
        if data.limit is not None and index >= data.limit:
            return
        try:
            if data.messages is not None:
                yield row[data.messages]
            else:
                turns = [("system", data.system)] if data.system else []
                turns += [("user", row[data.prompt]), ("assistant", row[data.answer])]
                yield [{"role": role, "content": content} for role, content in turns]
        except KeyError as error:
            raise SettingsError(
                f"{data.path} has no column {error}; it has {', '.join(row)}: say which columns "
                "hold the prompt and the answer, or the messages"
            ) from error


def encode(chat: list[dict[str, str]], tokenizer: Any, most: int) -> dict[str, list[int]]:
    """Token ids, and labels that are −100 everywhere but on the last answer."""
    prompt = tokenizer.apply_chat_template(
        chat[:-1], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    whole = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
    labels = [-100] * len(prompt) + whole[len(prompt) :]
    return {"input_ids": whole[:most], "labels": labels[:most]}


class _Read(TrainerCallback):
    """Takes a reading of the live model every few steps and at the end."""

    def __init__(self, bank: ReferenceBank | None, every: int) -> None:
        self.bank, self.every = bank, every
        self.live: LiveModel | None = None
        self.readings: list[Reading] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.live = LiveModel(kwargs["model"]) if self.bank else None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        step = state.global_step
        if self.bank is None or self.live is None:
            return
        if step % self.every == 0 or step == state.max_steps:
            progress = step / state.max_steps
            self.readings.append(self.live.measure(self.bank, step, progress=progress))


def finetune(
    experiment: Experiment, data: Data, out: Path, bank: ReferenceBank | None = None
) -> tuple[Any, list[Reading]]:
    """One LoRA fine-tune; gives the model and, against a bank, its readings."""
    from peft import LoraConfig, get_peft_model

    how = experiment.training
    tokenizer = AutoTokenizer.from_pretrained(experiment.model, revision=experiment.revision)
    model = AutoModelForCausalLM.from_pretrained(
        experiment.model, revision=experiment.revision, dtype=getattr(torch, how.dtype)
    )
    set_seed(how.seed)
    adapter = LoraConfig(
        r=how.rank, lora_alpha=how.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    rows = [encode(chat, tokenizer, how.max_tokens) for chat in examples(data)]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    watch = _Read(bank, experiment.every_n_steps)
    trainer = Trainer(
        model=get_peft_model(model, adapter),
        args=TrainingArguments(
            output_dir=str(out),
            max_steps=how.steps or -1,
            num_train_epochs=how.epochs,
            per_device_train_batch_size=how.batch_size,
            gradient_accumulation_steps=how.accumulate,
            learning_rate=how.learning_rate,
            bf16=how.dtype == "bfloat16" and torch.cuda.is_available(),
            seed=how.seed,
            save_strategy="no",
            report_to="none",
            logging_steps=10,
            remove_unused_columns=False,
        ),
        train_dataset=rows,
        data_collator=lambda batch: _padded(batch, pad),
        callbacks=[watch],
    )
    trainer.train()
    return trainer.model, watch.readings


def _padded(rows: Sequence[Mapping[str, list[int]]], pad: int) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in rows)

    def table(key: str, fill: int) -> torch.Tensor:
        return torch.tensor([row[key] + [fill] * (width - len(row[key])) for row in rows])

    mask = [[1] * len(r["input_ids"]) + [0] * (width - len(r["input_ids"])) for r in rows]
    return {
        "input_ids": table("input_ids", pad),
        "labels": table("labels", -100),
        "attention_mask": torch.tensor(mask),
    }


# --- the experiment ----------------------------------------------------------------------------


def references(experiment: Experiment, out: Path) -> ReferenceBank:
    """The bank of every reference, each trained once and kept in a folder of its own."""
    found = []
    for name, pair in experiment.references.items():
        folder = out / "references" / name
        if not (folder / README_FILE).is_file():
            sides: list[TaskVector] = []
            for side in (pair.positive, pair.negative):
                model, _ = finetune(experiment, experiment.data[side], out / "scratch")
                sides.append(read_model(model).held())
                del model
            vector = contrast(*sides, positive_means="exhibits").held()
            digest = vector.origin.base_digest
            assert digest is not None
            domains = {
                d for s in (pair.positive, pair.negative) for d in experiment.data[s].domains
            }
            card = Card(
                name=name,
                kind=pair.kind,
                behaviour=f"{pair.positive} against {pair.negative}",
                base=BaseIdentity(id=experiment.model, revision=experiment.revision, digest=digest),
                built=Construction(
                    recipe="benchmarks.organisms.real",
                    hyperparameters=experiment.training.model_dump(),
                    seeds=(experiment.training.seed,),
                    domains=tuple(sorted(domains)),
                ),
                harmful=pair.kind == "behaviour",
            )
            Reference(card, vector).save(folder, private=card.harmful)
        found.append(Reference.load(folder))
    return ReferenceBank(found)


def shares(experiment: Experiment, run: str, reference: str) -> bool:
    """Whether a run shares a dataset or a domain with a reference: shown, but not to be counted."""
    data, pair = experiment.runs[run], experiment.references[reference]
    sides = [experiment.data[s].domains for s in (pair.positive, pair.negative)]
    domains = set(experiment.data[data].domains) & {d for side in sides for d in side}
    return data in (pair.positive, pair.negative) or bool(domains)


def run(experiment: Experiment, out: Path) -> None:
    """Everything, into `references.csv` (figure 9) and `readings.csv` (figures 8 and 36).

    Raises:
        LeakageError: a run shares data with every reference, so that nothing can be said of it.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in experiment.runs:
        if all(shares(experiment, name, r) for r in experiment.references):
            raise LeakageError(f"the run {name} shares data with every reference: add another")
    bank = references(experiment, out)
    gram = bank.gram.total("frobenius")
    size = gram.diagonal() ** 0.5
    _write(
        out / "references.csv",
        ("reference", "other", "cosine"),
        (
            (a, b, gram[i, j] / (size[i] * size[j]))
            for i, a in enumerate(bank.names)
            for j, b in enumerate(bank.names)
        ),
    )
    columns = ("run", "step", "reference", "kind", "shares_data", "cosine", "residual", "norm")
    for name, data in experiment.runs.items():
        kept = out / "runs" / f"{name}.csv"
        if kept.is_file():
            continue
        _, readings = finetune(experiment, experiment.data[data], out / "scratch", bank)
        rows = []
        for reading in readings:
            scores = score(reading, bank.gram)
            for reference, found in scores.references.items():
                values = found.values.get("frobenius", {})
                rows.append(
                    (
                        name,
                        reading.step,
                        reference,
                        found.kind,
                        shares(experiment, name, reference),
                        values.get("cosine"),
                        values.get("residual"),
                        scores.norm,
                    )
                )
        _write(kept, columns, rows)
    with (out / "readings.csv").open("w", encoding="utf-8") as whole:
        for index, name in enumerate(experiment.runs):
            lines = (out / "runs" / f"{name}.csv").read_text("utf-8").splitlines(keepends=True)
            whole.writelines(lines[index > 0 :])


def _write(path: Path, columns: Sequence[str], rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
    partial.replace(path)
