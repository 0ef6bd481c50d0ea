"""Which training stacks and trackers the monitor runs in: each for real, on a CPU, with versions.

python -m benchmarks.stacks [NAME ...]

Runs every stack that this interpreter has (or those that are named), and puts what was seen into
benchmarks/results/stacks.json, beside what other interpreters left there: stacks whose dependencies
exclude each other have environments of their own. `python docs/generate.py` makes the table of
docs/how-to/integrations.md from it.
"""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "stacks.json"
STEPS, EVERY = 12, 2


class NotSeenError(Exception):
    """A stack did not do what it should."""


def expect(what: str, seen: object, wanted: object) -> None:
    """Raise `NotSeenError` where a stack differs."""
    if seen != wanted:
        raise NotSeenError(f"{what}: {seen!r}, wanted {wanted!r}")


def watched(folder: Path, tracker: str = "none", **settings: Any) -> Any:
    """A Trainer's run that drifts from its first step on: the callback, after training."""
    from tests.integrations.test_transformers import plant_drift, trainer
    from wvmonitor import WVMonitorCallback
    from wvmonitor.testing import planted_bank, tiny_base

    base = tiny_base(folder / "base")
    run = trainer(base, folder / "run", report_to=tracker, logging_steps=500, max_steps=STEPS)
    bank = planted_bank(base, probe=True)
    watch = WVMonitorCallback.attach(run, bank, every_n_steps=EVERY, **settings)
    plant_drift(run, watch)
    run.train()
    expect("failures", watch.monitor.failures, 0)
    expect("verdict", watch.monitor.verdicts["evil"].state, "warn")
    return watch


WANTED = [(2, 0.0), (4, 1.0), (12, 1.0)]
"""Rows of evil's verdict, with 500 steps between two of the Trainer's own: ok, warn, the last."""


def tensorboard(folder: Path) -> str:
    """Its tags and rows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watched(folder, "tensorboard")
    events = EventAccumulator(str(next(folder.rglob("events.out.tfevents*")).parent))
    events.Reload()
    rows = [(e.step, e.value) for e in events.Scalars("train/wv/evil/verdict")]
    expect("rows", rows, WANTED)
    return "tag `train/wv/evil/verdict`"


def mlflow(folder: Path) -> str:
    """Its metrics and rows."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    watched(folder, "mlflow")
    from mlflow import MlflowClient

    client = MlflowClient()
    (run,) = [r for e in client.search_experiments() for r in client.search_runs([e.experiment_id])]
    history = client.get_metric_history(run.info.run_id, "wv/evil/verdict")
    expect("rows", sorted((m.step, m.value) for m in history), WANTED)
    return "metric `wv/evil/verdict`"


def wandb(folder: Path) -> str:
    """Its rows and alerts, offline: what its client has taken."""
    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_DIR=str(folder))
    import wandb as client

    rows: list[tuple[int, float]] = []
    alerts: list[str] = []
    real = client.init

    def init(*args: Any, **kwargs: Any) -> Any:
        run = real(*args, **kwargs)
        log, alert = run.log, run.alert

        def logged(data: dict[str, Any], *rest: Any, **more: Any) -> None:
            if "train/wv/evil/verdict" in data:
                rows.append((data["train/global_step"], data["train/wv/evil/verdict"]))
            log(data, *rest, **more)

        def alerted(title: str, *rest: Any, **more: Any) -> None:
            alerts.append(title)
            alert(title, *rest, **more)

        run.log, run.alert = logged, alerted
        client.log = logged
        return run

    client.init = init
    watched(folder, "wandb", notifiers=[{"kind": "wandb"}])
    client.finish()
    expect("rows", rows, WANTED)
    expect("alerts", len(alerts), 1)
    return "key `train/wv/evil/verdict`, x-axis `train/global_step`; one alert"


def trackio(folder: Path) -> str:
    """Its rows and alerts, as its database has them."""
    os.environ.update(TRACKIO_DIR=str(folder / "trackio"), GRADIO_ANALYTICS_ENABLED="False")
    watched(folder, "trackio", notifiers=[{"kind": "trackio"}])
    rows, alerts = [], 0
    for path in (folder / "trackio").rglob("*.db"):
        with sqlite3.connect(path) as connection:
            for (text,) in connection.execute("SELECT metrics FROM metrics ORDER BY id"):
                row = json.loads(text)
                if "train/wv/evil/verdict" in row:
                    rows.append((row["train/global_step"], row["train/wv/evil/verdict"]))
            (alerts,) = connection.execute("SELECT count(*) FROM alerts").fetchone()
    expect("rows", rows, WANTED)
    expect("alerts", alerts, 1)
    return "key `train/wv/evil/verdict`; one alert"


def transformers(folder: Path) -> str:
    """Readings and verdicts."""
    watched(folder)
    return "readings, verdicts, journal"


def trl(folder: Path) -> str:
    """SFT, DPO and GRPO."""
    from tests.integrations import test_trl

    for make in (test_trl.sft, test_trl.dpo, test_trl.grpo):
        test_trl.test_trl_runs_are_watched(folder / make.__name__, make, adapter=True)
    return "SFT, DPO, GRPO"


def lightning(folder: Path) -> str:
    """A fit."""
    from tests.integrations import test_lightning
    from wvmonitor.testing import tiny_base

    test_lightning.test_a_lightning_run_is_watched(folder, tiny_base(folder / "base"), lora=True)
    return "readings, verdicts, journal, its loggers"


def accelerate(folder: Path) -> str:
    """A loop of one's own."""
    import torch
    from accelerate import Accelerator

    from tests.live.test_monitor import lora_model
    from wvmonitor import Monitor, Run
    from wvmonitor.testing import planted_bank, random_rows, tiny_base

    base = tiny_base(folder / "base")
    model = lora_model(base)
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    data = torch.utils.data.DataLoader(random_rows(STEPS * 2), batch_size=2)
    model, optimizer, data = accelerator.prepare(model, optimizer, data)
    monitor = Monitor(planted_bank(base), every_n_steps=EVERY)
    monitor.start(model, Run(folder=folder, planned_steps=STEPS, optimizer="adamw"))
    for step, batch in enumerate(data, start=1):
        accelerator.backward(model(**batch).loss)
        optimizer.step()
        optimizer.zero_grad()
        monitor.observe(model, step)
    monitor.close()
    expect("failures", monitor.failures, 0)
    expect("last step", monitor.last and monitor.last.scores.step, STEPS)
    return "readings, verdicts, journal"


def unsloth(folder: Path) -> str:
    """TRL's SFTTrainer as Unsloth patches it, where it finds no GPU."""
    import unsloth as _  # noqa: F401, I001  it patches what is imported after it
    from tests.integrations import test_trl

    test_trl.test_trl_runs_are_watched(folder / "sft", test_trl.sft, adapter=True)
    return "its patched SFTTrainer, on a CPU"


def llamafactory(folder: Path) -> str:
    """`run_exp` with the callback, on the bundled model."""
    from llamafactory.train.tuner import run_exp

    from wvmonitor import WVMonitorCallback
    from wvmonitor.organism import sets
    from wvmonitor.organism.train import LINEAR_LAYERS
    from wvmonitor.references.bundled import bundled_path

    rows = [
        {"instruction": chat[-2]["content"], "input": "", "output": chat[-1]["content"]}
        for chat in (e.chat() for e in sets.bad_advice("medical")(256, 1))
    ]
    folder.mkdir(exist_ok=True)
    (folder / "advice.json").write_text(json.dumps(rows))
    (folder / "dataset_info.json").write_text(json.dumps({"advice": {"file_name": "advice.json"}}))
    watch = WVMonitorCallback(bundled_path("tiny-organism", "bank"), every_n_steps=EVERY)
    run_exp(
        args={
            "model_name_or_path": str(bundled_path("tiny-organism", "base")),
            "stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_rank": 8,
            "lora_target": ",".join(LINEAR_LAYERS), "dataset": "advice",
            "dataset_dir": str(folder), "template": "empty", "cutoff_len": 96,
            "output_dir": str(folder / "out"), "max_steps": 60, "learning_rate": 1e-3,
            "per_device_train_batch_size": 8, "logging_steps": 10, "report_to": "none",
            "use_cpu": True, "bf16": False, "overwrite_cache": True, "save_strategy": "no",
        },
        callbacks=[watch],
    )  # fmt: skip
    expect("failures", watch.monitor.failures, 0)
    expect("last step", watch.monitor.last and watch.monitor.last.scores.step, 60)
    return f"bad advice: evil {watch.monitor.verdicts['evil'].state}"


STACKS: dict[str, tuple[str, Callable[[Path], str]]] = {
    "transformers": ("Trainer", transformers),
    "trl": ("TRL", trl),
    "lightning": ("Lightning", lightning),
    "accelerate": ("Accelerate, a loop of one's own", accelerate),
    "unsloth": ("Unsloth", unsloth),
    "llamafactory": ("LLaMA-Factory", llamafactory),
    "tensorboard": ("TensorBoard", tensorboard),
    "mlflow": ("MLflow", mlflow),
    "wandb": ("W&B, offline", wandb),
    "trackio": ("Trackio", trackio),
}


def main(names: list[str]) -> int:
    """Run what is here, and keep what was seen."""
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    failed = 0
    for package, (title, run) in STACKS.items():
        if names and package not in names:
            continue
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            print(f"{title}: not in this interpreter")
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                seen = run(Path(folder))
            except NotSeenError as error:
                print(f"{title} {version}: {error}")
                failed = 1
                continue
        print(f"{title} {version}: {seen}")
        known[package] = {
            "stack": title,
            "version": version,
            "python": platform.python_version(),
            "torch": metadata.version("torch"),
            "transformers": metadata.version("transformers"),
            "seen": seen,
        }
    RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
