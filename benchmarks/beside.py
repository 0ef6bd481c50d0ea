"""An older checkout beside this one: the same benchmarks, in turns, in one run on one machine.

`python -m benchmarks.beside CHECKOUT` runs each benchmark here, there and here again, every time in
a process of its own, and publishes the first with what the older one measured. How far the two of
this version lie apart is the run's noise, which the table tells.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine import commit
from benchmarks.report import RESULTS, write_page

HERE = Path(__file__).resolve().parent.parent
BENCHMARKS = ("overhead", "growth", "scan", "steer")
"""Those whose inputs are no bundled model, which the two checkouts may not share; `offline`, whose
read was driven out of the page cache in older versions, and `waits`, which has its own, are not."""


def main(argv: list[str] | None = None) -> None:
    """Measure both versions, and make the page again."""
    parser = argparse.ArgumentParser("python -m benchmarks.beside", description=__doc__)
    parser.add_argument("checkout", type=Path, help="the older version")
    parser.add_argument("--only", choices=BENCHMARKS, nargs="+", default=BENCHMARKS)
    parser.add_argument("--quick", action="store_true", help="tiny shapes, published nowhere")
    asked = parser.parse_args(argv)
    older = asked.checkout.resolve()
    for name in asked.only:
        first, before, again = (_run(name, root, quick=asked.quick) for root in (HERE, older, HERE))
        document = together(first, before, again, commit(older))
        if not asked.quick:
            text = json.dumps(document, indent=1, ensure_ascii=False)
            (RESULTS / f"{name}.json").write_text(text + "\n")
    if not asked.quick:
        write_page()


def together(
    first: Mapping[str, Any], before: Mapping[str, Any], again: Mapping[str, Any], version: str
) -> dict[str, Any]:
    """A run's document with an older version's values and the noise, from three documents."""
    olds = {figure["name"]: figure["value"] for figure in before["figures"]}
    seconds = {figure["name"]: figure["value"] for figure in again["figures"]}
    figures = [
        {**f, "before": olds.get(f["name"]), "again": seconds[f["name"]]} for f in first["figures"]
    ]
    apart = sorted(abs(f["again"] / f["value"] - 1) for f in figures)
    remark = (
        f'"Before" is commit `{version[:7]}`, measured between two runs of this version, which '
        f"differ by {statistics.median(apart):.0%} in the median row, by {apart[-1]:.0%} at most."
    )
    return {**first, "figures": figures, "remarks": [*first["remarks"], remark]}


def _run(name: str, root: Path, *, quick: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / f"{name}.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(written)]
        subprocess.run(
            [*command, *(["--quick"] if quick else [])],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
            check=True,
        )
        return dict(json.loads(written.read_text()))


if __name__ == "__main__":
    main()
