"""Each case in a process of its own: what it costs, what it touches, what it says.

`python -m tests.hostile.harness` runs the whole corpus and prints cases tried and correct. The
tests talk to the same program line by line. It imports everything once and forks for each case, so
that a case costs no start-up and its memory is counted from a warm baseline.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.hostile.corpus import Case, Place, all_cases

CPU_SECONDS = 10.0
"""The most a case may take, of the processor: the clock on the wall belongs to other processes."""

WALL_SECONDS = 90.0
MEMORY_BYTES = 512 << 20
FORBIDDEN = (
    "socket.",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "pickle.",
    "ctypes.dlopen",
)
OUTPUTS = ("json", "jsonl", "csv", "xml", "sarif", "md", "om")


@dataclass
class Outcome:
    """What a case came to.

    Attributes:
        case: its name and family.
        problems: what went otherwise than it must; empty where all is well.
        cpu_seconds: of the processor.
        memory_bytes: at the peak, above the baseline.
    """

    case: str
    problems: list[str] = field(default_factory=list)
    cpu_seconds: float = 0.0
    memory_bytes: int = 0


class Workshop:
    """The sound files that cases start from, and a bank to scan with."""

    def __init__(self, folder: Path) -> None:
        from wvmonitor.files.safetensors import write_safetensors
        from wvmonitor.testing import planted_bank, planted_vector, tiny_base
        from wvmonitor.vectors.update import LowRankUpdate, to_dense

        self.folder = folder
        self.base = tiny_base(folder / "base")
        self.bank = folder / "bank"
        planted_bank(self.base).save(self.bank)
        vector = planted_vector(self.base, seed=7) * 0.5
        self.adapter, self.checkpoint = folder / "adapter", folder / "checkpoint"
        self.adapter.mkdir()
        tensors = {}
        for name, update in vector.updates():
            assert isinstance(update, LowRankUpdate)
            key = "base_model.model." + name.removesuffix(".weight")
            tensors[f"{key}.lora_A.weight"] = update.right
            tensors[f"{key}.lora_B.weight"] = update.left
        write_safetensors(self.adapter / "adapter_model.safetensors", tensors)
        said = {
            "peft_type": "LORA",
            "r": 2,
            "lora_alpha": 2,
            "target_modules": sorted({n.split(".")[-2] for n in vector.names()}),
            "base_model_name_or_path": str(self.base),
        }
        (self.adapter / "adapter_config.json").write_text(json.dumps(said))
        shutil.copytree(self.base, self.checkpoint)
        config = json.loads((self.base / "config.json").read_text())
        config["_name_or_path"] = str(self.base)
        (self.checkpoint / "config.json").write_text(json.dumps(config))
        weights = Place.tensors(self.base / "model.safetensors")
        for name, update in vector.updates():
            weights[name] = weights[name] + to_dense(update)
        write_safetensors(self.checkpoint / "model.safetensors", weights)

    def place(self, folder: Path) -> Place:
        """Where a case may be built."""
        return Place(folder, self.adapter, self.checkpoint, self.base)

    def run(self, case: Case) -> Outcome:
        """Build a case, scan it beside a sound adapter, and clean up after it."""
        outcome = Outcome(str(case))
        here = Path(tempfile.mkdtemp(prefix="case-", dir=self.folder))
        (here / "out").mkdir()
        (here / "in").mkdir()
        try:
            self._build(case, here)
            target = os.fsdecode((here / "target").read_bytes())
            before = listing(here / "in")
            status, used = forked(lambda: self._scan(here, target, case))
            outcome.cpu_seconds = used.ru_utime + used.ru_stime
            if status:
                outcome.problems.append(f"the process ended with status {status}")
            if listing(here / "in") != before:
                outcome.problems.append("the scan changed the folder")
            if (here / "report").exists():
                report = json.loads((here / "report").read_text())
                outcome.problems += report["problems"]
                outcome.memory_bytes = report["memory"]
            else:
                outcome.problems.append("nothing was reported")
            if outcome.cpu_seconds > CPU_SECONDS:
                outcome.problems.append(f"it took {outcome.cpu_seconds:.1f} s of the processor")
            if outcome.memory_bytes > MEMORY_BYTES:
                outcome.problems.append(f"it took {outcome.memory_bytes >> 20} MiB")
        finally:
            shutil.rmtree(os.fsencode(here))
        return outcome

    def _build(self, case: Case, here: Path) -> None:
        """In a process of its own, too: what building takes is nothing that the scan may use."""

        def build() -> None:
            target = case.build(self.place(here / "in"))
            (here / "target").write_bytes(os.fsencode(target))

        status, _ = forked(build)
        assert status == 0, f"{case} could not be built"

    def _scan(self, here: Path, target: str, case: Case) -> None:
        events: list[str] = []
        problems: list[str] = []
        out = here / "out"
        sys.addaudithook(lambda event, args: watch(event, args, str(out), events))
        baseline = memory("VmRSS")
        strict = ["--strict"] if case.strict else []
        code = scan_command([target, str(self.adapter), *strict], self.bank, out)
        found = json.loads((out / "results.json").read_text("utf-8"))["checkpoints"]
        problems += complaints(found, code, case.expected)
        problems += [f"an event that must not be: {event}" for event in events]
        problems += [p for file in sorted(out.iterdir()) for p in unsafe_text(file)]
        problems += untyped(target)
        peak = memory("VmHWM") - baseline
        (here / "report").write_text(json.dumps({"problems": problems, "memory": peak}))


def scan_command(paths: list[str], bank: Path, out: Path) -> int:
    """`wvmonitor scan`, with everything it says in files of `out`; its exit code."""
    from wvmonitor.cli.app import app

    outputs = [a for kind in OUTPUTS for a in ("--output", str(out / f"results.{kind}"))]
    with (
        (out / "stdout").open("w") as said,
        (out / "stderr").open("w") as complained,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(complained),
    ):
        try:
            app(["scan", *paths, "--references", str(bank), *outputs])
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def complaints(found: list[Any], code: int, expected: type[Exception] | None) -> list[str]:
    """What the results are not, and ought to be."""
    problems = []
    *hostile, sound = found
    if sound["error"] is not None or sound["verdict"] != "ok":
        problems.append(f"the sound adapter behind it was not judged: {sound['error']}")
    errors = [result["error"] for result in hostile]
    kinds = [None if error is None else error["type"] for error in errors]
    if expected is None:
        if kinds != [None]:
            problems.append(f"it must be judged, and was {errors}")
        elif not hostile[0]["references"]:
            problems.append("it has no verdict")
    else:
        if kinds != [expected.__name__]:
            problems.append(f"{expected.__name__} was expected, it gave {errors}")
        if code != 2:
            problems.append(f"the exit code was {code}, not 2")
        if any(result["verdict"] != "unknown" for result in hostile):
            problems.append("its verdict is not unknown")
    return problems


def untyped(target: str) -> list[str]:
    """Read it by the readers of the library, too: they raise errors of this package only."""
    from wvmonitor.errors import WVMonitorError
    from wvmonitor.sources import read_adapter

    try:
        read_adapter(target).norm()
    except WVMonitorError as error:
        return [] if str(error).isprintable() else [f"an error not fit to print: {error!r}"]
    except Exception as error:  # noqa: BLE001  that is what is looked for
        return [f"read_adapter raised {type(error).__name__}: {error}"]
    return []


def unsafe_text(file: Path) -> list[str]:
    """Characters in an output that a terminal would obey, by file."""
    text = file.read_bytes().decode("utf-8", "surrogateescape")
    found = sorted({c for c in text if not c.isprintable() and c not in "\r\n"})
    return [f"{file.name} holds {''.join(found)!r}"] if found else []


def watch(event: str, args: Any, allowed: str, events: list[str]) -> None:
    """Note what a scan must not do: write elsewhere, connect, start anything, unpickle."""
    if event.startswith(FORBIDDEN):
        events.append(f"{event} {args!r}"[:200])
    elif event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
        path = os.fsdecode(args[0]) if isinstance(args[0], (str, bytes, os.PathLike)) else ""
        if path and not path.startswith(allowed) and path != os.devnull:
            events.append(f"open for writing {path!r}"[:200])


def listing(folder: Path) -> list[tuple[bytes, int, int, int]]:
    """Everything below a folder: name, kind, size, time of change."""
    found = []
    for path, folders, files in os.walk(os.fsencode(folder)):
        for name in (*folders, *files):
            full = os.path.join(path, name)  # noqa: PTH118  names that are no UTF-8
            state = os.lstat(full)
            found.append((full, state.st_mode, state.st_size, state.st_mtime_ns))
    return sorted(found)


def memory(what: str) -> int:
    """A line of this process's status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what + ":"):
            return int(line.split()[1]) << 10
    raise AssertionError(what)


def forked(work: Any) -> tuple[int, resource.struct_rusage]:
    """Call `work` in a fork of this process; its status (an exit code, or −signal), and its use."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001  nothing may run on in the copy
            traceback.print_exc()
        finally:
            os._exit(code)
    end = time.monotonic() + WALL_SECONDS
    while True:
        done, status, used = os.wait4(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), used
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            end = float("inf")
        time.sleep(0.002)


def warm(workshop: Workshop) -> None:
    """Import and compute everything once, so that a case's own share is what is measured."""
    out = workshop.folder / "warm"
    out.mkdir()
    (out / "out").mkdir()
    code = scan_command([str(workshop.adapter), str(workshop.checkpoint)], workshop.bank, out)
    assert code == 0, (out / "stderr").read_text()
    import peft  # noqa: F401  kinds that PEFT computes
    import transformers.models.gpt2.modeling_gpt2
    import transformers.models.llama.modeling_llama  # noqa: F401

    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def started() -> Iterator[Any]:
    """The harness as a process: gives a function from a case's name to its outcome."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.hostile.harness", "--serve"],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def ask(case: Case) -> Outcome:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{case}\n")
        process.stdin.flush()
        return Outcome(**json.loads(process.stdout.readline()))

    try:
        yield ask
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


def serve(workshop: Workshop) -> None:
    """Answer the names of cases on standard input with their outcomes."""
    cases = {str(case): case for case in all_cases()}
    for line in sys.stdin:
        print(json.dumps(asdict(workshop.run(cases[line.rstrip("\n")]))), flush=True)


def report(workshop: Workshop) -> int:
    """Run everything, and say how it went."""
    outcomes: dict[str, list[Outcome]] = {}
    for case in all_cases():
        outcome = workshop.run(case)
        outcomes.setdefault(case.family, []).append(outcome)
        for problem in outcome.problems:
            print(f"{outcome.case}: {problem}")
    flat = [o for found in outcomes.values() for o in found]
    for family, found in outcomes.items():
        right = sum(not o.problems for o in found)
        print(f"{family:<12} {len(found):>3} tried, {right:>3} correct")
    right = sum(not o.problems for o in flat)
    slowest = max(flat, key=lambda o: o.cpu_seconds)
    largest = max(flat, key=lambda o: o.memory_bytes)
    print(
        f"{'in all':<12} {len(flat):>3} tried, {right:>3} correct; slowest"
        f" {slowest.cpu_seconds:.2f} s of CPU ({slowest.case}),"
        f" most memory {largest.memory_bytes >> 20} MiB ({largest.case})"
    )
    return 0 if right == len(flat) else 1


def main() -> int:
    """Serve, or report."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    os.environ["HF_HUB_OFFLINE"] = "0"  # a look-up of the network must show, not be forbidden
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork, and the copy waits for them
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder))
        warm(workshop)
        if "--serve" in sys.argv:
            serve(workshop)
            return 0
        return report(workshop)


if __name__ == "__main__":
    sys.exit(main())
