"""`wvmonitor bank` from nothing on SmolLM2-135M-Instruct; log, record and report are kept.

python -m benchmarks.bank [--full | --budget TIME] [more options of `wvmonitor bank`]

Goes on where it was interrupted, and so does its log. The bank is build/real-bank where it is a
quick one, build/real-bank-full or build/real-bank-TIME else; results have its name, in
benchmarks/results: `.log` (the command's own words, with times), `.json` (every run of the power
check) and `.html`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.real.model import smollm2

RESULTS = Path("benchmarks/results")
BUILD = Path("build")
NAME = "real-bank"


def main() -> int:
    """Run the command and keep what it says; its exit code."""
    options = [o for o in sys.argv[1:] if o != "--full"]
    out = BUILD / NAME
    if "--full" in sys.argv:
        out = BUILD / f"{NAME}-full"
    elif "--budget" in options:
        out = BUILD / f"{NAME}-{options[options.index('--budget') + 1]}"
    else:
        options.append("--quick")
    command = [sys.executable, "-m", "wvmonitor", "bank", str(smollm2()), "--out", str(out)]
    began = time.monotonic()
    log = RESULTS / f"{out.name}.log"
    begun = out.with_name(f"{out.name}.work").is_dir()
    with log.open("a" if begun else "w", encoding="utf-8") as file:
        file.write(
            f"{json.dumps(describe(quick=True))}\n"
            f"$ wvmonitor bank SmolLM2-135M-Instruct {' '.join(options)}\n"
        )
        file.flush()
        with subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                file.write(line)
        file.write(f"{time.monotonic() - began:.0f} s in all\n")
    for kept in ("trust.json", "report.html"):
        if (out / kept).is_file():
            shutil.copyfile(out / kept, RESULTS / f"{out.name}{Path(kept).suffix}")
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
