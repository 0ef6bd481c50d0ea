"""Nothing goes to the network unless it is asked to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Python reports every use of a socket to audit hooks, also those made inside libraries.
PROGRAM = """
import contextlib, sys, traceback
used = []
def watch(event, arguments):
    network = event.startswith(("socket.", "urllib.", "http."))
    if network and event != "socket.gethostname":
        used.append(event + "\\n" + "".join(traceback.format_stack(limit=12)))
sys.addaudithook(watch)

import wvmonitor
assert not used, used
with contextlib.suppress(ImportError):
    import urllib3  # binds a socket when it is imported, to see whether this machine has IPv6
used.clear()
for name in wvmonitor.__all__:
    getattr(wvmonitor, name)

base, bank, out = sys.argv[1:]
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from wvmonitor.testing import random_rows

model = get_peft_model(
    AutoModelForCausalLM.from_pretrained(base),
    LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
)
arguments = TrainingArguments(
    output_dir=out, max_steps=4, per_device_train_batch_size=2, logging_steps=2, save_steps=4,
    learning_rate=1e-2, report_to="none", disable_tqdm=True, use_cpu=True,
)
trainer = Trainer(model=model, args=arguments, train_dataset=random_rows(8))
wvmonitor.WVMonitorCallback.attach(trainer, bank, every_n_steps=2)
trainer.train()
assert any("wv/evil/response_cosine" in row for row in trainer.state.log_history)

from wvmonitor.cli.app import app
for command in (
    ["scan", out, "--references", bank, "--base", base],
    ["references", "list", bank],
    ["references", "verify", bank, "--base", base],
    ["report", out, "-o", out + "/report.html"],
):
    try:
        app(command)
    except SystemExit as done:
        assert done.code in (0, 2), (command, done.code)  # a verdict may be unknown here

quiet = list(used)
import socket
socket.socket().close()
assert len(used) == len(quiet) + 1, "the hook does not see sockets"
sys.exit("".join(quiet) or 0)
"""


def test_no_socket_is_opened_unasked(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """Importing, a watched run, a scan and a report open no socket, though nothing bars it."""
    environment = {
        name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_base), str(tiny_bank_folder), str(tmp_path / "o")],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    assert (tmp_path / "o" / "report.html").is_file()
