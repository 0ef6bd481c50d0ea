"""How far a newcomer must read to follow one adapter, or one live reading, through the package."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import wvmonitor
from tests.golden import ways
from tests.golden.ways import Way
from wvmonitor import Monitor, ReferenceBank, Run
from wvmonitor.scan.scan import scan

PACKAGE = Path(wvmonitor.__file__).parent
MOST = {"a scan of one adapter": (40, 8), "a live reading": (24, 7)}
"""(files, rooms) that its way may pass through."""


@pytest.fixture(scope="module")
def way(tiny_base: Path, tiny_bank_folder: Path) -> Way:
    """A LoRA run of one reading."""
    vectors = ways.drift(tiny_base, tiny_bank_folder, [0.4], rank=4)
    return Way(tiny_base, tiny_bank_folder, vectors)


def files_passed(work: Callable[[], Any]) -> set[str]:
    """The package's files whose functions are called; loading a module is no call."""
    found: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_flags & inspect.CO_OPTIMIZED:
            path = Path(code.co_filename)
            if path.is_relative_to(PACKAGE) and path != PACKAGE / "__init__.py":
                found.add(path.relative_to(PACKAGE).as_posix())

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found


def scanning(way: Way, folder: Path) -> Iterator[Callable[[], Any]]:
    """Scan one adapter, with the bank at hand."""
    model = ways.adapted(way)
    ways.move(model, way.vectors[0])
    model.save_pretrained(folder / "adapter")
    bank = ReferenceBank.load(way.bank)
    yield lambda: list(scan([folder / "adapter"], bank, base=way.base))


def watching(way: Way, _: Path) -> Iterator[Callable[[], Any]]:
    """Read a live model once, after the run has started."""
    model = ways.adapted(way)
    with closing(Monitor(settings=way.settings())) as monitor:
        monitor.start(model, Run(planned_steps=20, optimizer="adamw"))
        ways.move(model, way.vectors[0])
        yield lambda: monitor.observe(model, 10)


@pytest.mark.parametrize(
    ("what", "begin"),
    [("a scan of one adapter", scanning), ("a live reading", watching)],
    ids=["scan", "live"],
)
def test_the_way_is_short(
    what: str,
    begin: Callable[[Way, Path], Iterator[Callable[[], Any]]],
    way: Way,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Few files and rooms lie between the weights and the verdict."""
    files: set[str] = set()
    for work in begin(way, tmp_path):
        files = files_passed(work)
    rooms = {file.partition("/")[0] for file in files}
    with capsys.disabled():
        print(f"\n{what} passes {len(files)} files in {len(rooms)} rooms: {sorted(rooms)}")
    assert len(files) <= MOST[what][0], " ".join(sorted(files))
    assert len(rooms) <= MOST[what][1], sorted(rooms)
