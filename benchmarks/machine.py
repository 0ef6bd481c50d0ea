"""The machine that figures were taken on, and what it can do at best."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch

from wvmonitor.vectors.devices import cores

_ROOT = Path(__file__).resolve().parent.parent


def describe(*, quick: bool) -> dict[str, Any]:
    """CPU model, cores, torch version, threads, float32 matrix rate, read bandwidth, load."""
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "float32_matrix_gflops": round(matrix_rate(512 if quick else 2048) / 1e9, 1),
        "memory_gb_per_s": round(stream_bandwidth(8 if quick else 256) / 1e9, 2),
        "read_gb_per_s": round(read_bandwidth(8 if quick else 256) / 1e9, 2),
        "load_average": os.getloadavg(),
    }


def cpu_model() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def commit(root: Path) -> str:
    """Which version lies in a checkout; what is not committed is not told."""
    done = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def matrix_rate(size: int = 2048, device: str = "cpu") -> float:
    """Multiply-adds times two, a second, of a square float32 product on the threads set now."""
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    out = torch.empty_like(a)
    seconds = median_seconds(lambda: torch.mm(a, b, out=out), 7, device)
    return 2 * size**3 / seconds


def read_bandwidth(mebibytes: int = 256) -> float:
    """Bytes a second of a plain sequential read of a file in the page cache."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(os.urandom(1 << 20) * mebibytes)
        file.flush()
        return (mebibytes << 20) / median_seconds(lambda: read_through([Path(file.name)]), 5)


def read_through(paths: list[Path]) -> int:
    """Read files from end to end through one buffer; gives their bytes."""
    buffer = bytearray(1 << 20)
    total = 0
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total


def read_through_together(paths: list[Path], threads: int) -> None:
    """Read files from end to end, several at a time."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda path: read_through([path]), paths))


def stream_bandwidth(mebibytes: int = 256) -> float:
    """Bytes a second at which one thread reads memory that lies in no cache (sums it up)."""
    held = torch.ones(mebibytes << 18)
    return (mebibytes << 20) / median_seconds(held.sum, 5)


def _descendants(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [p for child in map(int, children) for p in (child, *_descendants(child))]


def median_seconds(run: Callable[[], Any], times: int = 5, device: str = "cpu") -> float:
    """Median of several runs, after one to warm up."""
    run()
    return statistics.median(seconds(run, device) for _ in range(times))


def seconds(run: Callable[[], Any], device: str = "cpu") -> float:
    """Seconds of one run: of this process's processor time on a CPU, else on the clock.

    Everything on a CPU is measured on one thread, where the two are one on an idle machine; on a
    busy one the clock also measures the others' work.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - began
    began = time.process_time()
    run()
    return time.process_time() - began


def paired(runs: dict[str, Callable[[], Any]], times: int) -> dict[str, list[float]]:
    """Seconds of several ways, taken in turns so that a noisy machine wrongs none."""
    for run in runs.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(times):
        for name, run in runs.items():
            found[name].append(seconds(run))
    return found


def wall_seconds(run: Callable[[], Any]) -> float:
    """Seconds of one run by the clock: what workers beside each other are measured by."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def anonymous_bytes(pid: int | str = "self") -> int:
    """RssAnon of a process: memory of its own, the page cache left out."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")]
    return sizes[0] if sizes else 0


def alone(worker: str, argument: dict[str, Any], *, quick: bool = False) -> dict[str, Any]:
    """Run `module:function` with an argument in a process of its own, single-threaded.

    Args:
        worker: the function.
        argument: what it is given.
        quick: in this process, which has imported what takes long; the peak is then that of all
            that this process ever held.

    Returns:
        What the function returned (a dict), `seconds` of processor time, and `peak_bytes`, the
        peak of RssAnon of the process and its children above what the process held when it called
        the function, as seen from outside every few milliseconds.
    """
    if quick:
        began = time.process_time()
        found = resolve_name(worker)(argument)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        return {**found, "seconds": time.process_time() - began, "peak_bytes": peak}
    code = (
        "import importlib, json, sys, time; from benchmarks.machine import anonymous_bytes;"
        "import torch; torch.set_num_threads(1);"
        "module, _, name = sys.argv[1].partition(':');"
        "run = getattr(importlib.import_module(module), name);"
        "argument = json.loads(sys.argv[2]);"
        "print(json.dumps({'start': anonymous_bytes()}), flush=True);"
        "began = time.process_time(); found = run(argument);"
        "found['seconds'] = time.process_time() - began; print(json.dumps(found), flush=True)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", code, worker, json.dumps(argument)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=_ROOT,
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(anonymous_bytes, [process.pid, *_descendants(process.pid)])))
        time.sleep(0.004)
    out = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise RuntimeError(f"{worker} ended with {process.returncode}")
    start, found = map(json.loads, out.strip().splitlines()[-2:])
    return {**found, "peak_bytes": max(0, peak - start["start"])}
