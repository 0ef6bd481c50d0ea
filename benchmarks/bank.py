"""`wvmonitor bank` from nothing on SmolLM2-135M-Instruct; log, record and report are kept.

python -m benchmarks.bank [--full] [more options of `wvmonitor bank`]

Goes on where it was interrupted, and so does its log. Results are in benchmarks/results:
`real-bank.log` (the command's own words, with times), `real-bank.json` (every run of the power
check) and `real-bank.html`.
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
OUT = Path("build/real-bank")


def main() -> int:
    """Run the command and keep what it says; its exit code."""
    options = [o for o in sys.argv[1:] if o != "--full"]
    if "--full" not in sys.argv and "--budget" not in options:
        options.append("--quick")
    command = [sys.executable, "-m", "wvmonitor", "bank", str(smollm2()), "--out", str(OUT)]
    began = time.monotonic()
    log = RESULTS / "real-bank.log"
    begun = OUT.with_name(f"{OUT.name}.work").is_dir()
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
    for name, kept in (("trust.json", "real-bank.json"), ("report.html", "real-bank.html")):
        if (OUT / name).is_file():
            shutil.copyfile(OUT / name, RESULTS / kept)
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
