"""Records of a benchmark cut short and gone on with: one a line, each of what it was measured with.

Records of another base, bank or setting stay in the file and are not read; results that are
committed are gone on from, and never written over by those of something else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wvmonitor.errors import InputError

Record = dict[str, Any]
_HERE = "@records"


class Records:
    """The records of one benchmark.

    Args:
        path: the file they are kept in.
        about: all that they depend on; as JSON has it.
        out: committed results; gone on from where nothing was kept here.

    Raises:
        InputError: `out` holds what was measured with something else.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], out: Path | None = None) -> None:
        self._path, self._about, self._out = path, json.loads(json.dumps(about)), out
        if out is None or not out.is_file():
            return
        held = json.loads(out.read_text("utf-8"))
        if {key: held.get(key) for key in self._about} != self._about:
            raise InputError(
                f"{out} holds runs of another base, bank or setting: move it away first"
            )
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(self._line(r) for r in held["records"]), "utf-8")

    def read(self) -> list[Record]:
        """Those that depend on the same, without what they depend on."""
        if not self._path.is_file():
            return []
        rows = [json.loads(line) for line in self._path.read_text("utf-8").splitlines()]
        return [
            {k: v for k, v in r.items() if k != "about"} for r in rows if r["about"] == self._about
        ]

    def add(self, record: Record) -> None:
        """Keep one more."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(self._line(record))

    def publish(self, more: Mapping[str, Any]) -> None:
        """Write the results for the page, a record a line: a difference shows which came."""
        if self._out is None:
            return
        lines = ",\n".join(json.dumps(r) for r in self.read())
        text = json.dumps({**self._about, **more, "records": _HERE}, indent=1)
        self._out.write_text(text.replace(json.dumps(_HERE), f"[\n{lines}\n]") + "\n", "utf-8")

    def _line(self, record: Record) -> str:
        return json.dumps({"about": self._about, **record}) + "\n"
