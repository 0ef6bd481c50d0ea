"""The flight recorder's files: exact, bounded, private, and no one's problem when they fail."""

from __future__ import annotations

import logging
import math
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from wvmonitor.errors import MalformedFileError
from wvmonitor.files.safetensors import write_safetensors
from wvmonitor.journal import snapshot_writer as recorders
from wvmonitor.journal.snapshot_writer import SnapshotWriter
from wvmonitor.journal.snapshots import folder_of, path_of, read_snapshot
from wvmonitor.vectors.task_vector import Origin, TaskVector
from wvmonitor.vectors.update import DenseUpdate, LowRankUpdate, to_dense


def vector(scale: float = 1.0) -> TaskVector:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return scale * torch.randn(*shape, generator=generator)

    return TaskVector.of(
        {
            "a.weight": LowRankUpdate(normal(30, 2), normal(2, 20)),
            "b.weight": DenseUpdate(normal(40, 30), transposed=True),
            "norm.weight": DenseUpdate(normal(6)),
        },
        Origin(base_digest="d" * 64, method="lora+full", rank=2, warnings=("look",)),
    )


def recorder(folder: Path, **options: Any) -> SnapshotWriter:
    options = {"rank": 4, "limit_bytes": 1e9, **options}
    return SnapshotWriter(folder / "wvmonitor.db", "run/1 ü", 1, **options)


def keep(made: SnapshotWriter, tau: TaskVector, step: int) -> None:
    for _ in made.watching(tau).updates():
        pass
    made.record(tau, step)


def test_a_snapshot_is_what_was_measured(tmp_path: Path) -> None:
    """Factors and vectors come back bit for bit, with their origin; a sketch with its share."""
    made, tau = recorder(tmp_path), vector()
    keep(made, tau, 7)
    made.close()
    path = path_of(tmp_path / "wvmonitor.db", "run/1 ü", 1, 7)
    back = read_snapshot(path)
    assert (back.run, back.attempt, back.step) == ("run/1 ü", 1, 7)
    for name in ("a.weight", "norm.weight"):
        assert torch.equal(to_dense(back.vector.update(name)), to_dense(tau.update(name)))
    assert back.vector.update("b.weight").transposed
    assert back.vector.origin.method == "lora+full"
    dense = {n: to_dense(u).double() for n, u in tau.updates()}
    total = sum(float(d.square().sum()) for d in dense.values())
    lost = (dense["b.weight"] - to_dense(back.vector.update("b.weight")).double()).square().sum()
    assert back.vector.origin.kept == pytest.approx(1 - float(lost) / total, rel=1e-5)
    assert back.vector.origin.warnings[0] == "look"
    assert "holds" in back.vector.origin.warnings[1]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_snapshot_has_the_documented_size(tmp_path: Path) -> None:
    """4·r·(out + in) bytes for factors and sketches, 4 an element for vectors, and a header."""
    made = recorder(tmp_path)
    keep(made, vector(), 1)
    made.close()
    size = path_of(tmp_path / "wvmonitor.db", "run/1 ü", 1, 1).stat().st_size
    promised = 4 * 2 * (30 + 20) + 4 * 4 * (40 + 30) + 4 * 6
    assert promised < size < promised + 2000


def test_the_recorder_keeps_to_its_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Beyond the limit nothing more is written, earlier attempts counted, and the log says so."""
    keep_first = recorder(tmp_path, limit_bytes=1)
    keep(keep_first, vector(), 1)
    keep_first.close()
    failures: list[int] = []
    again = recorder(tmp_path, limit_bytes=1, on_failure=lambda: failures.append(1))
    with caplog.at_level(logging.WARNING):
        keep(again, vector(), 2)
        again.close()
    assert [f.name for f in folder_of(tmp_path / "wvmonitor.db", "run/1 ü").iterdir()] == [
        "0001-000000001.safetensors"
    ]
    assert again.missed == len(failures) == 1
    assert "record_limit_gb" in caplog.text


@pytest.mark.parametrize("broken", ["nan factors", "nan matrix", "disk", "half read"])
def test_a_recorder_that_fails_fails_alone(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong, the update still reaches the measurement, and the miss is counted."""
    made, tau = recorder(tmp_path), vector()
    if broken == "disk":

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(recorders, "write_snapshot", full)
    elif broken == "nan factors":
        tau.update("a.weight").left.fill_(math.nan)  # type: ignore[union-attr]
    elif broken == "nan matrix":
        tau.update("b.weight").delta.fill_(math.nan)  # type: ignore[union-attr]
    watched = made.watching(tau)
    names = tau.names()[: 1 if broken == "half read" else None]
    for name in names:
        assert watched.update(name) is tau.update(name)
    made.record(tau, 1)
    made.close()
    assert made.missed == 1
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_slow_disk_costs_snapshots_and_not_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the disk hangs at most two snapshots wait in memory; further ones are left out."""
    gate, begun = threading.Event(), threading.Event()
    write = recorders.write_snapshot

    def slow(*arguments: Any) -> Path:
        begun.set()
        gate.wait(60)
        return write(*arguments)

    monkeypatch.setattr(recorders, "write_snapshot", slow)
    made = recorder(tmp_path)
    keep(made, vector(), 0)
    assert begun.wait(60)
    for step in range(1, 6):
        keep(made, vector(), step)
    assert made.missed == 3
    gate.set()
    made.close()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3


def test_another_file_is_no_snapshot(tmp_path: Path) -> None:
    """A weight file that the recorder did not write is refused, and named."""
    write_safetensors(tmp_path / "x.safetensors", {"a.delta": torch.ones(2)}, {"format": "pt"})
    with pytest.raises(MalformedFileError, match=r"x\.safetensors. is no snapshot"):
        read_snapshot(tmp_path / "x.safetensors")
