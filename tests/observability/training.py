"""Real `Trainer` runs of the tiny model whose weights drift, and a scraper beside them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from wvmonitor import WVMonitorCallback
from wvmonitor.references import Reference, ReferenceBank
from wvmonitor.testing import planted_bank, random_rows


def bank_with_doses(base: Path, folder: Path) -> Path:
    """The tiny model's planted bank, as if each reference were the mean of two repeats."""
    planted = planted_bank(base, probe=True)
    repeats = {g: [[1.0, 0.5], [0.5, 1.0]] for g in planted.gram.products}
    references = [
        Reference(r.card.model_copy(update={"repeats": repeats}), r.vector) for r in planted
    ]
    ReferenceBank(references, probe=planted.probe).save(folder)
    return folder


def drifting_run(
    base: Path, bank: Path, out: Path, *, steps: int, drift_from: int, **settings: Any
) -> tuple[Trainer, WVMonitorCallback]:
    """A LoRA run whose adapter is moved along the evil reference from a step on."""
    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    run = Trainer(model=model, args=arguments, train_dataset=random_rows(64))
    callback = WVMonitorCallback.attach(run, bank, **settings)
    updates = dict(callback.monitor.bank["evil"].vector.updates())

    class Drift(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step < drift_from:
                return
            with torch.no_grad():
                for name, module in kwargs["model"].named_modules():
                    update = updates.get(name.removeprefix("base_model.model.") + ".weight")
                    if update is not None and hasattr(module, "lora_A"):
                        module.lora_A["default"].weight.copy_(update.right)
                        module.lora_B["default"].weight.copy_(update.left)

    run.add_callback(Drift())
    return run, callback


class Until(TrainerCallback):
    """Ends training when a process has ended.

    Attributes:
        step_seconds: of each step, on the wall.
        step_cpu_seconds: of each step, of the processor, in the training thread.
    """

    def __init__(self, process: subprocess.Popen[Any], *, pause: float = 0.0) -> None:
        """Watch a process; a `pause` in seconds between steps leaves the processor to others."""
        self.process = process
        self.step_seconds: list[float] = []
        self.step_cpu_seconds: list[float] = []
        self._pause = pause
        self._began = (0.0, 0.0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        time.sleep(self._pause)
        self._began = time.perf_counter(), time.thread_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        wall, cpu = self._began
        self.step_seconds.append(time.perf_counter() - wall)
        self.step_cpu_seconds.append(time.thread_time() - cpu)
        if self.process.poll() is not None:
            control.should_training_stop = True


SCRAPER = """
import http.client, json, sys, time
port, rate, seconds = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
def scrape():
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/metrics")
        reply = connection.getresponse()
        return reply.status == 200 and len(reply.read()) > 0
    finally:
        connection.close()
end = time.monotonic() + 30
while time.monotonic() < end:  # until the run has begun to serve
    try:
        scrape()
        break
    except OSError:
        time.sleep(0.05)
times, errors, begin = [], 0, time.monotonic()
for number in range(int(rate * seconds)):
    time.sleep(max(0.0, begin + number / rate - time.monotonic()))
    start = time.perf_counter()
    try:
        errors += not scrape()
    except OSError:
        errors += 1
    times.append(time.perf_counter() - start)
times.sort()
print(json.dumps({"scrapes": len(times), "errors": errors, "seconds": time.monotonic() - begin,
                  "median": times[len(times) // 2], "p99": times[int(0.99 * len(times))],
                  "worst": times[-1]}))
"""


def scraper(port: int, rate: float, seconds: float) -> subprocess.Popen[str]:
    """A process that scrapes at a steady rate, each time over a new connection."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRAPER, str(port), str(rate), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    )


def told(process: subprocess.Popen[str]) -> dict[str, float]:
    """What the scraper found."""
    out, _ = process.communicate(timeout=60)
    found: dict[str, float] = json.loads(out)
    return found
