"""Every block of Python and shell in the documentation, run in the order of its page.

A page's commands speak of a user's own things: `models/my-base`, `banks/my-base`, `runs/my-run`.
Here the bundled model stands in for them. Blocks marked `console` are for other machines (a GPU,
a cluster, Docker) and are not run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

from tests.users_run import short_run
from wvmonitor import WVMonitorCallback
from wvmonitor.organism import sets
from wvmonitor.organism.train import finetune
from wvmonitor.references.bundled import bundled_path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)
BASE, BANK = bundled_path("tiny-organism", "base"), bundled_path("tiny-organism", "bank")


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text("utf-8"))


PAGES = [page for page in sorted(DOCS.rglob("*.md")) if blocks(page)]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user has: a base, its bank, a run that went wrong with its checkpoints, one that did
    not, a published adapter of each, a training set with bad rows, and rows known to be good.
    """
    folder = tmp_path_factory.mktemp("world")
    for name, source in {"models": BASE, "banks": BANK}.items():
        (folder / name).mkdir()
        shutil.copytree(source, folder / name / "my-base")
    for name, maker in {
        "my-run": sets.bad_advice("medical"),
        "good-run": sets.good_advice("medical"),
    }.items():
        out = folder / "runs" / name
        finetune(
            folder / "models" / "my-base",
            maker(240, 5),
            seed=5,
            steps=16,
            output_dir=out,
            attach=lambda trainer: WVMonitorCallback.attach(trainer, BANK, every_n_steps=2),
            training_arguments={"save_strategy": "steps", "save_steps": 8},
        )
    for name, run in {"my-adapter": "my-run", "good-adapter": "good-run"}.items():
        shutil.copytree(folder / "runs" / run / "checkpoint-16", folder / "adapters" / name)
    good, bad = sets.good_advice("medical"), sets.bad_advice("medical")
    for name, examples in {
        "train": sets.mixture(bad, good, 0.1)(60, 5),
        "known-good": good(100, 6),
    }.items():
        lines = [json.dumps({"messages": e.chat()}) + "\n" for e in examples]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for the PATH with a `wvmonitor` that starts at once."""
    folder = tmp_path_factory.mktemp("bin")
    address, warm = folder / "socket", Path(__file__).with_name("warm.py")
    shim = folder / "wvmonitor"
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -SE {warm} call {address} "$@"\n')
    shim.chmod(0o755)
    server = subprocess.Popen([sys.executable, str(warm), "serve", str(address)])
    deadline = time.monotonic() + 120
    while not address.exists() and server.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert address.exists(), "the warm process did not start"
    yield folder
    server.kill()
    server.wait()


def a_users_own(folder: Path) -> dict[str, Any]:
    """The names that Python blocks take for granted: a model, its data, a Trainer's arguments.

    Nothing of wvmonitor: whoever copies a block must find its imports in it.
    """
    model, tokenizer, data, arguments = short_run(
        folder / "models" / "my-base", folder / "runs" / "new-run", examples=64
    )
    return {
        "Trainer": Trainer,
        "model": model,
        "tokenizer": tokenizer,
        "args": arguments,
        "dataset": data,
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_a_pages_blocks_run(
    page: Path, world: Path, command: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever copies a page's blocks one after another gets no error."""
    folder = shutil.copytree(world, tmp_path / "home")
    (folder / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(folder)
    environment = os.environ | {"PATH": f"{command}:{Path(sys.executable).parent}:/usr/bin:/bin"}
    for language, code in blocks(page):
        if language == "bash":
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", code],
                env=environment,
                capture_output=True,
                text=True,
                timeout=250,
                check=False,
            )
            assert done.returncode == 0, f"{code}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        else:
            names = a_users_own(folder)  # each block stands by itself
            exec(compile(code, str(page), "exec"), names)  # noqa: S102  the pages are ours


def test_the_pages_are_found() -> None:
    """The search for blocks is not looking at an empty folder."""
    assert len(PAGES) >= 8
