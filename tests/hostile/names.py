"""Names that deceive: of tensors, of modules, of folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.hostile.corpus import GOOD, Case, Place, described
from wvmonitor.errors import (
    AdapterError,
    MalformedFileError,
    MissingPathError,
    UnsupportedAdapterError,
)

ANSI = "\x1b]0;owned\x07\x1b[2K\x1b[1A\x1b[32mok  all clean\x1b[0m"
TENSORS = {
    "../": "../../etc/passwd",
    "an absolute path": "/etc/passwd",
    "a path of Windows": "..\\..\\w",
    "ANSI escapes": ANSI,
    "C1 controls": "\x9b32mok",
    "a line break": "w\nok  everything",
    "a carriage return": "w\rok  everything",
    "NUL": "w\0.weight",
    "right to left": "w\u202egnp.exe",
    "zero width": "w\u200b.weight",
    "empty": "",
    "half a surrogate pair": "\ud800",
    "a megabyte long": "w" * 1_000_000,
}
HTML = "<img src=x onerror=alert(1)>\"'&amp;{{7*7}}"


def tensor(name: str) -> Callable[[Place], Path]:
    """An adapter with a tensor of this name."""
    return lambda place: place.adapter_with(described({name: GOOD}))


def module(name: str) -> Callable[[Place], Path]:
    """The sound adapter with one more factor, of a module of this name."""

    def build(place: Place) -> Path:
        key = f"base_model.model.{name}.lora_A.weight"
        return place.adapter_changed(lambda t: t.update({key: next(iter(t.values())).clone()}))

    return build


def folder(name: str) -> Callable[[Place], Path]:
    """The sound adapter in a folder of this name."""
    return lambda place: Path(shutil.copytree(place.adapter, place.folder / name))


def missing(name: str) -> Callable[[Place], Path]:
    """A folder of this name that is not there."""
    return lambda place: place.folder / name


def kind(name: str) -> Callable[[Place], Path]:
    """The sound adapter, of a kind of this name."""
    return lambda place: place.adapter_with(config={"peft_type": name})


def run_folder(place: Place) -> Path:
    """A run's output folder whose name is markup, with one sound checkpoint."""
    run = place.folder / "[bold red]run[/] =1+1"
    shutil.copytree(place.adapter, run / "checkpoint-2")
    state = {"global_step": 2, "max_steps": 4, "log_history": [{"step": ANSI, "lr": HTML}]}
    (run / "checkpoint-2" / "trainer_state.json").write_text(json.dumps(state))
    return run


CASES = (
    *(Case(f"a tensor named with {n}", "names", tensor(t), MalformedFileError)
      for n, t in TENSORS.items()),
    Case("a tensor named with HTML and quotes", "names", tensor(HTML), AdapterError),
    Case("a module named with HTML and quotes", "names", module(HTML), AdapterError),
    Case("an adapter kind named with ANSI escapes", "names", kind(ANSI),
         UnsupportedAdapterError),
    Case("a folder named with ANSI escapes", "names", folder(ANSI), None),
    Case("a folder named with a line break", "names", folder("a\nok  b"), None),
    Case("a folder named right to left", "names", folder("a\u202eb"), None),
    Case("a folder named with HTML and quotes", "names", folder(HTML.replace("/", "")), None),
    Case("a folder named as a formula", "names", folder("=cmd|' C'!A0"), None),
    Case("a folder whose name is no UTF-8", "names", folder("caf\udce9"), None),
    Case("a missing folder named with ANSI escapes", "names", missing(ANSI), MissingPathError),
    Case("a run named with markup", "names", run_folder, None),
)  # fmt: skip
