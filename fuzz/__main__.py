"""`python -m fuzz [TARGET ...] [--seconds N]`: each target for N seconds, guided by coverage.

Prints executions, coverage (edges of this package's code) and findings; what made a finding is
kept in build/fuzz.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SEEDS = Path(__file__).with_name("corpus")
FOUND = Path("build", "fuzz")


def main() -> int:
    """Run the targets that were named, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--seconds", type=int, default=int(os.environ.get("FUZZ_SECONDS", "600")))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        return inside(arguments.targets[0], arguments.seconds)
    from fuzz.targets import TARGETS

    failed = False
    for name in arguments.targets or TARGETS:
        failed |= report(name, arguments.seconds)
    return int(failed)


def report(name: str, seconds: int) -> bool:
    """Fuzz one target in a process of its own; whether there was a finding."""
    command = [sys.executable, "-m", "fuzz", name, "--seconds", str(seconds), "--inside"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)  # noqa: S603
    executed = re.findall(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    covered = re.findall(r" cov: (\d+)", done.stderr)
    kept = re.findall(rf"/{re.escape(name)}-(crash|timeout|oom)-", done.stderr)
    failed = done.returncode != 0
    print(
        f"{name:<16} {executed[-1] if executed else '?':>9} executions, "
        f"{covered[-1] if covered else '?':>6} edges covered, "
        + (f"ended early ({kept[-1] if kept else done.returncode})" if failed else "nothing found"),
        flush=True,
    )
    if failed:
        print(done.stderr[-4000:], flush=True)
    return failed


def inside(name: str, seconds: int) -> int:
    """Fuzz one target in this process."""
    import atheris

    with atheris.instrument_imports(include=["wvmonitor"]):
        from fuzz.targets import TARGETS, workshop

        workshop()
        TARGETS[name](b"")  # imports everything while imports are instrumented
    FOUND.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as new:
        options = [
            f"-max_total_time={seconds}",
            "-max_len=4096",
            "-timeout=300",  # of the wall: a machine may be busy, or paused for minutes
            "-rss_limit_mb=4096",
            "-print_final_stats=1",
            f"-artifact_prefix={FOUND}/{name}-",
        ]
        atheris.Setup([sys.argv[0], *options, new, str(SEEDS / name)], TARGETS[name])
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
