"""What is fuzzed: five readers that are given files from strangers.

A target takes bytes and returns nothing; errors of this package are answers, every other exception
is a finding. The first bytes say how the rest is used: as the whole file, or as changes to a sound
one, which get past the outermost checks. Nothing here needs atheris, so that the seeds are run by
the tests as well.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from wvmonitor.errors import WVMonitorError

Target = Callable[[bytes], None]


class Supply:
    """Values drawn from bytes; zeros when they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        """The next bytes, at most `count`."""
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def number(self, below: int) -> int:
        """A number from 0 to `below` − 1."""
        return int.from_bytes(self.take(2), "little") % below

    def rest(self) -> bytes:
        """Everything that is left."""
        return self.take(len(self._data))

    def text(self) -> str:
        """A short text."""
        return self.take(self.number(24)).decode("utf-8", "replace")

    def value(self, depth: int = 2) -> Any:
        """Any JSON value, and what Python takes for JSON."""
        kind = self.number(12 if depth else 9)
        if kind < 9:
            simple = (None, True, False, 0, -1, 2**63, float("nan"), 1e308, 10**400)
            return simple[kind] if self.number(2) else self.text() if kind % 2 else kind - 4
        if kind < 11:
            return [self.value(depth - 1) for _ in range(self.number(4))]
        return {self.text(): self.value(depth - 1) for _ in range(self.number(4))}


def document(supply: Supply, sound: Mapping[str, Any]) -> bytes:
    """A JSON document: bytes as they come, or a sound one with up to three fields replaced."""
    if supply.number(3) == 0:
        return supply.rest()
    changed = json.loads(json.dumps(sound))
    for _ in range(1 + supply.number(3)):
        place = changed
        for _ in range(supply.number(3)):
            inner = [v for v in place.values() if isinstance(v, dict) and v]
            if inner:
                place = inner[supply.number(len(inner))]
        keys = [*place, supply.text()]
        key = keys[supply.number(len(keys))]
        if supply.number(6):
            place[key] = supply.value()
        else:
            place.pop(key, None)
    return json.dumps(changed).encode("utf-8", "surrogatepass")


@cache
def workshop() -> Path:
    """Sound files to start from: a base, a bank, an adapter, a sharded checkpoint, a journal."""
    from tests.hostile.corpus import Place
    from tests.hostile.harness import Workshop

    folder = Path(tempfile.mkdtemp(prefix="wvmonitor-fuzz-"))
    made = Workshop(folder)
    (folder / "shards").mkdir()
    Place(folder / "shards", made.adapter, made.checkpoint, made.base).sharded()
    _write_journal(folder / "journal")
    (folder / "file").mkdir()
    return folder


def header(data: bytes) -> None:
    """The header of a weight file, and every tensor that it describes."""
    from wvmonitor.files.safetensors import SafetensorsFile

    supply = Supply(data)
    body = bytes(32)
    if supply.number(2):
        sound = {
            "__metadata__": {"step": "1"},
            "v": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
            "w": {"dtype": "BF16", "shape": [8], "data_offsets": [16, 32]},
        }
        text = document(supply, sound)
        content = len(text).to_bytes(8, "little") + text + body
    else:
        content = supply.rest()
    path = workshop() / "file" / "model.safetensors"
    path.write_bytes(content)
    with contextlib.suppress(WVMonitorError), SafetensorsFile(path) as file:
        for name in file.tensors:
            file.read(name)


def index(data: bytes) -> None:
    """The index of a sharded checkpoint."""
    from wvmonitor.files.checkpoint_files import open_checkpoint

    folder = workshop() / "shards" / "checkpoint"
    path = folder / "model.safetensors.index.json"
    sound = path.with_suffix(".sound")
    if not sound.exists():
        shutil.copy(path, sound)
    path.write_bytes(document(Supply(data), json.loads(sound.read_text())))
    with contextlib.suppress(WVMonitorError), open_checkpoint(folder) as opened:
        opened.read(opened.names()[0])


def adapter_config(data: bytes) -> None:
    """The configuration of an adapter, and what it makes of sound factors."""
    from wvmonitor.sources import read_adapter

    folder = workshop() / "adapter"
    path = folder / "adapter_config.json"
    sound = path.with_suffix(".sound")
    if not sound.exists():
        shutil.copy(path, sound)
    extra = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"k_proj": 4.0}, "bias": "none"}
    path.write_bytes(document(Supply(data), {**json.loads(sound.read_text()), **extra}))
    with contextlib.suppress(WVMonitorError):
        read_adapter(folder).norm()


def bank_documents(data: bytes) -> None:
    """The card of a reference and the manifest of its bank."""
    from wvmonitor.references import ReferenceBank
    from wvmonitor.references.store import write_manifest

    supply = Supply(data)
    folder = workshop() / "bank"
    card, manifest = folder / "evil" / "card.json", folder / "manifest.json"
    sound = workshop() / "sound-bank"
    if not sound.exists():
        shutil.copytree(folder, sound)
    if supply.number(2):
        card.write_bytes(document(supply, json.loads((sound / "evil/card.json").read_text())))
        write_manifest(folder)  # as whoever altered the card would
    else:
        shutil.copy(sound / "evil" / "card.json", card)
        manifest.write_bytes(document(supply, json.loads((sound / manifest.name).read_text())))
    with contextlib.suppress(WVMonitorError):
        ReferenceBank.load(folder)


COLUMNS = (
    ("attempts", "context"),
    ("attempts", "resume_step"),
    ("layouts", "layout"),
    ("readings", "step"),
    ("readings", "detail"),
    ("readings", "scores"),
    ("readings", "judge_state"),
    ("readings", "arrays"),
    ("scores", "record"),
    ("verdicts", "record"),
    ("deliveries", "alert"),
    ("events", "detail"),
    ("meta", "value"),
)


def journal(data: bytes) -> None:
    """A journal with foreign bytes: the file itself, its rollback file, or a cell of a table."""
    from wvmonitor.journal.journal import Journal
    from wvmonitor.journal.reader import read_journal
    from wvmonitor.journal.tools import export, verify

    supply = Supply(data)
    folder = workshop() / "file"
    file, rollback = folder / "wvmonitor.db", folder / "wvmonitor.db-journal"
    for left in (file, rollback):
        left.unlink(missing_ok=True)
    shutil.copy(workshop() / "journal" / "wvmonitor.db", file)
    kind = supply.number(4)
    if kind == 0:
        content = bytearray(file.read_bytes())
        for _ in range(1 + supply.number(8)):
            at = supply.number(len(content))
            content[at : at + 4] = supply.take(4)
        file.write_bytes(content[: supply.number(2**16) or None])
    elif kind == 1:
        rollback.write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + supply.rest())
    else:
        table, column = COLUMNS[supply.number(len(COLUMNS))]
        old: Any = None
        with contextlib.closing(sqlite3.connect(file)) as raw, raw:
            ((old,),) = raw.execute(f"SELECT {column} FROM {table} LIMIT 1").fetchall()  # noqa: S608
            new = _altered(supply, old)
            with contextlib.suppress(sqlite3.IntegrityError):
                raw.execute(f"UPDATE OR IGNORE {table} SET {column} = ?", (new,))  # noqa: S608
    with contextlib.suppress(WVMonitorError):
        verify(folder)
    with contextlib.suppress(WVMonitorError):
        for _ in export(folder, ()):
            pass
    with contextlib.suppress(WVMonitorError):
        reader = read_journal(folder)
        for run in reader.runs():
            reader.latest_judge_state(run)
            for row in reader.trajectory(run):
                reader.reading(row)
    with contextlib.suppress(WVMonitorError):
        writing = Journal.open(folder, run="r")
        try:
            writing.latest_judge_state()
        finally:
            writing.close()


def _altered(supply: Supply, old: Any) -> Any:
    """Another value for a cell: a changed JSON record, text, a number or bytes."""
    kind = supply.number(4)
    if kind == 0 and isinstance(old, str) and old.startswith("{"):
        return document(supply, json.loads(old)).decode("utf-8", "replace")
    if kind == 1 and isinstance(old, bytes):
        content = bytearray(old)
        for _ in range(4):
            content[supply.number(len(content))] = supply.number(256)
        return bytes(content)
    return (supply.rest(), supply.text(), supply.number(2**16), None)[supply.number(4)]


def _write_journal(folder: Path) -> None:
    """A sound journal with two attempts, an alert that waits and an event."""
    from tests.journal.conftest import entry
    from wvmonitor.detection.verdict import RunContext
    from wvmonitor.journal.alerts import AlertPolicy
    from wvmonitor.journal.journal import Journal

    for resume in (0, 2):
        journal = Journal.open(folder, run="r", alerts=AlertPolicy(targets=("t",)))
        journal.begin_attempt(RunContext(), "b", resume_step=resume)
        for step in range(resume, resume + 3):
            journal.record(entry(step, "warn"))
        journal.note("a note")
        journal.close()


TARGETS: dict[str, Target] = {
    "header": header,
    "index": index,
    "adapter-config": adapter_config,
    "bank-documents": bank_documents,
    "journal": journal,
}
