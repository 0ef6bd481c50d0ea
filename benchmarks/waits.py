"""The waits that people meet: at a prompt, in a pipeline, before the first step; and their floors.

`--before CHECKOUT` measures an older checkout beside this one: the same tasks, in turns, in one
run. Everything runs in processes of its own, on one thread, from bytecode, as an installed package
does; times are processor time, system calls included, so that a busy machine wrongs neither side
much. Ratios are of medians. A run that was
ended goes on where it stopped; at its end it writes the table of docs/benchmarks.md, and what is
said below it.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from typer.testing import CliRunner

from benchmarks import inputs, machine, shapes, wait_tasks
from benchmarks.report import RESULTS, Check, Figure, arguments, at_most, publish, write_page
from benchmarks.wait_tasks import model_of
from wvmonitor.cli.app import application
from wvmonitor.live.monitor import Monitor, Run
from wvmonitor.references import ReferenceBank
from wvmonitor.sources import base_digest, read_checkpoints
from wvmonitor.testing import planted_bank, tiny_base
from wvmonitor.vectors.devices import cores

HERE = Path(__file__).resolve().parents[1]
TASKS = HERE / "benchmarks" / "wait_tasks.py"
TORCH = "`import torch`"
_WHEN = ("", ", before")
_FLAT = 1.1
_LAUNCHER = """
import json, os, subprocess, sys
command = subprocess.Popen(sys.argv[2:])
_, status, used = os.wait4(command.pid, 0)
with open(sys.argv[1], "w") as file:
    json.dump([used.ru_utime + used.ru_stime, used.ru_maxrss], file)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""Between this process and what is measured: the peak of memory that Linux tells of a process is at
least its parent's, and this one has held models."""
_NO_TARGET: Mapping[str, Any] = {"target": "", "achieved": None}
_Found = tuple[list[Figure], list[Check]]


@dataclass(frozen=True)
class Wait:
    """One thing that people wait for.

    Attributes:
        name: what, in which size.
        goal: the most that it should be, in seconds or, where there is a floor, in times the floor;
            None where the figure only stands beside others.
        floor: what the floor is, in words.
        command: arguments of wvmonitor; a task of `wait_tasks` where there are none.
        task, argument: of `wait_tasks`.
        beside: what else a task does, and how that is called behind the name; held against the
            floor and, where the name is in `aims`, against the goal.
        aims: see `beside`.
        tenth: the same command on a tenth of the things: its memory should be the same.
        why: what keeps it from its goal, for the page.
        old: whether it is measured of an older checkout, too.
        seen: whether the command was run before; if not, nothing is remembered from run to run.
    """

    name: str
    goal: float | None
    floor: str = ""
    command: Sequence[str] = ()
    task: str = ""
    argument: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, str] = field(default_factory=dict)
    aims: Sequence[str] = ()
    tenth: Sequence[str] = ()
    why: str = ""
    old: bool = True
    seen: bool = False


@dataclass
class _Version:
    """One checkout, and what was measured of it: ours, the floor, and what a task said besides."""

    root: Path
    digests: Path
    ours: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)
    said: dict[str, Any] = field(default_factory=dict)
    peak_megabytes: float = 0.0
    peak_of_tenth: float | None = None


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure every wait, or go on where an earlier run of the same version stopped."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--before", type=Path, help="another checkout, to be measured beside this one")
    own.add_argument(
        "--only",
        choices=GROUPS,
        nargs="+",
        help="these waits; their figures take the place of the earlier ones, and the page says so",
    )
    own.add_argument("--again", action="store_true", help="forget what an earlier run measured")
    mine, rest = own.parse_known_args(argv)
    asked = arguments("waits", __doc__, rest)
    torch.set_num_threads(1)
    os.environ["WVMONITOR_DIGEST_CACHE"] = "off"  # of this process, which makes the inputs
    before = mine.before and mine.before.resolve()
    for root in (HERE, before) if before else (HERE,):
        compileall.compile_dir(root / "wvmonitor", quiet=1)  # whether or not Python may write it
    names = mine.only or list(GROUPS)
    run = [machine.commit(HERE), before and machine.commit(before), asked.rounds, asked.part]
    kept = None if asked.quick or mine.only else _Kept(run, again=mine.again)
    figures: list[Figure] = []
    checks: list[Check] = []
    for name in names:
        found = kept.get(name) if kept else None
        if found is None:
            with tempfile.TemporaryDirectory(dir=asked.work) as folder:
                how = _How(Path(folder), asked.rounds, asked.part, quick=asked.quick)
                found = _measured(GROUPS[name](how), how, before)
            if kept:
                kept.put(name, found)
        figures += found[0]
        checks += found[1]
    if mine.only:
        if not asked.quick:
            _renew(figures, mine.only)
            write_page()
        return {"figures": figures, "checks": checks}
    written = publish(
        "waits",
        figures,
        checks,
        quick=asked.quick,
        path=asked.json,
        remarks=_remarks(figures, asked.rounds, before),
    )
    if kept:
        kept.forget()
        if asked.json is None:
            write_page()
    return written


@dataclass(frozen=True)
class _How:
    """How a group of waits is measured.

    Attributes:
        work: an empty folder, for inputs.
        rounds: how often.
        part: 1/part of the layers of each shape.
        quick: whether on tiny shapes.
    """

    work: Path
    rounds: int
    part: int
    quick: bool

    @property
    def small(self) -> shapes.Shape:
        """A small model that people fine-tune."""
        return shapes.SMOLLM2.with_layers(2) if self.quick else shapes.SMOLLM2.part(self.part)


class _Kept:
    """What is measured already, so that a run that was ended goes on.

    Figures of another version, or of other options, do not count.
    """

    def __init__(self, run: list[Any], *, again: bool) -> None:
        self._run, self._folder = run, HERE / "build" / "waits"
        if again:
            self.forget()

    def get(self, group: str) -> _Found | None:
        """The figures and checks of a group of waits, if they are here."""
        try:
            kept = json.loads((self._folder / f"{group}.json").read_text())
        except (OSError, ValueError):
            return None
        if kept["run"] != json.loads(json.dumps(self._run)):
            return None
        print(f"{group}: measured {kept['when']}", flush=True)
        return [Figure(**f) for f in kept["figures"]], [Check(**c) for c in kept["checks"]]

    def put(self, group: str, found: _Found) -> None:
        """Keep the figures and checks of a group."""
        self._folder.mkdir(parents=True, exist_ok=True)
        kept = {
            "run": self._run,
            "when": time.strftime("%Y-%m-%d %H:%M"),
            "figures": [asdict(f) for f in found[0]],
            "checks": [asdict(c) for c in found[1]],
        }
        (self._folder / f"{group}.json").write_text(json.dumps(kept))

    def forget(self) -> None:
        """Let everything go."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _renew(figures: Sequence[Figure], groups: Sequence[str]) -> None:
    """Put figures in the place of those of an earlier run, and say which."""
    path = RESULTS / "waits.json"
    document = json.loads(path.read_text())
    new = {f.name: asdict(f) for f in figures}
    document["figures"] = [new.pop(f["name"], f) for f in document["figures"]] + list(new.values())
    when, commit = time.strftime("%Y-%m-%d %H:%M"), machine.commit(HERE)[:7]
    document["remarks"].append(f"Measured again, {when}, commit `{commit}`: {', '.join(groups)}.")
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def _measured(waits: Iterable[Wait], how: _How, before: Path | None) -> _Found:
    figures: list[Figure] = []
    checks: list[Check] = []
    imports: list[float] = []
    for wait in waits:
        versions = [_Version(HERE, how.work / "digests")]
        if before and wait.old:
            versions.append(_Version(before, how.work / "digests-before"))
        for version in versions if wait.seen and not how.quick else ():
            _run(("-P", "-m", "wvmonitor", *wait.command), version, how.work)
        for version in versions if wait.tenth and not how.quick else ():
            tenth = _run(("-P", "-m", "wvmonitor", *wait.tenth), version, how.work)
            version.peak_of_tenth = tenth[2]
        for _ in range(1 if wait.task else how.rounds):
            if wait.floor == TORCH and not how.quick:
                imports.append(_run(("-c", "import torch"), versions[0], how.work)[1])
            for version in versions:
                (_try if how.quick else _measure)(wait, version, how.work)
                if wait.floor == TORCH:
                    version.floor = imports or [1.0]
        for version, when in zip(versions, _WHEN, strict=False):
            for figure in _figures(wait, version, when):
                print(f"{figure.name}: {figure.value:.3g} {figure.unit}", flush=True)
                figures.append(figure)
        checks += _checks(wait, versions[0].said)
    return figures, checks


def _remarks(figures: Sequence[Figure], rounds: int, before: Path | None) -> list[str]:
    """What a reader of the table must know: how often, how noisy, and what is beside it."""
    courses = [f.detail["ours"] for f in figures if len(f.detail["ours"]) > 1]
    spreads = sorted((max(c) - min(c)) / statistics.median(c) for c in courses)
    said = f"Each thing {rounds} times"
    if spreads:
        middle = statistics.median(spreads)
        said += f", which differ by {middle:.0%} of their median, and by {spreads[-1]:.0%} at most"
    beside = f'. "before" is commit `{machine.commit(before)[:7]}`' if before else ""
    return [f"{said}{beside}."]


def _figures(wait: Wait, version: _Version, when: str) -> Iterator[Figure]:
    floor, load = version.floor, os.getloadavg()[0]
    unit = f"× {wait.floor}" if wait.floor else "s"
    others = [
        (wait.name + called, wait.goal if name in wait.aims else None, version.said[name])
        for name, called in wait.beside.items()
    ]
    for name, goal, ours in ((wait.name, wait.goal, version.ours), *others):
        value = statistics.median(ours) / (statistics.median(floor) if floor else 1)
        detail = {"ours": ours, "floor": floor, "load": load, "peak_mb": version.peak_megabytes}
        if goal is None or when:
            yield Figure(f"{name}{when}", value, unit, detail=detail)
        else:
            yield replace(at_most(name, value, goal, unit, **detail), why=wait.why)
    if version.peak_of_tenth is not None:
        name, value = f"{wait.name}: memory", version.peak_megabytes / version.peak_of_tenth
        detail = {"ours": [version.peak_megabytes], "floor": [version.peak_of_tenth], "load": load}
        figure = at_most(name, value, _FLAT, "× that of a tenth of them", **detail)
        yield replace(figure, name=f"{name}{when}", **_NO_TARGET if when else {})


def _checks(wait: Wait, said: Mapping[str, Any]) -> Iterator[Check]:
    if wait.task == "probe":
        yield Check("tokens in the probe", said["tokens"], said["expected"])
    if wait.task == "modules":
        yield Check("norm of the small modules", said["norms"]["ours"], said["norms"]["plain"])
    if wait.task == "blame":
        yield Check("loss of an example (to second order)", said["loss"], said["plain_loss"])
    if wait.task in ("dense", "lora"):
        yield Check(f"{wait.name}: length", said["length"], said["plain_length"])


def _try(wait: Wait, version: _Version, _: Path) -> None:
    """Everything in this process, which has imported what takes long: does it run?"""
    if wait.task:
        said = wait_tasks.TASKS[wait.task](dict(wait.argument))
        version.said = json.loads(json.dumps(said))
        version.ours, version.floor = version.said["ours"], version.said.get("floor", [])
        return
    began = time.process_time()
    done = CliRunner().invoke(application(), list(wait.command))
    if done.exit_code:
        raise RuntimeError(f"{wait.name} ended with {done.exit_code}: {done.output}")
    version.ours = [time.process_time() - began]


def _measure(wait: Wait, version: _Version, folder: Path) -> None:
    if not wait.task:
        command = ("-P", "-m", "wvmonitor", *wait.command)
        found = _run(command, version, folder, seen=wait.seen)
        _, seconds, version.peak_megabytes = found
        version.ours.append(seconds)
        return
    command = ("-P", str(TASKS), wait.task, json.dumps(dict(wait.argument)))
    found, _, version.peak_megabytes = _run(command, version, folder)
    version.said = json.loads(found.strip().splitlines()[-1])
    version.ours, version.floor = version.said["ours"], version.said.get("floor", [])


def _run(
    command: Sequence[str], version: _Version, folder: Path, *, seen: bool = True
) -> tuple[str, float, float]:
    """What Python printed, its processor seconds, and its peak of memory in MB."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(version.root),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "WVMONITOR_DIGEST_CACHE": str(version.digests) if seen else "off",
    }
    with tempfile.NamedTemporaryFile("r") as used:
        started = (sys.executable, "-S", "-E", "-c", _LAUNCHER, used.name, sys.executable)
        process = subprocess.run(
            [*started, *command],
            capture_output=True,
            text=True,
            env=environment,
            cwd=folder,
            check=False,
        )
        if process.returncode:
            ended = f"{command} ended with {process.returncode}"
            raise RuntimeError(f"{ended}: {process.stderr[-2000:]}")
        seconds, kilobytes = json.load(used)
    return process.stdout, seconds, kilobytes * 1024 / 1e6


def _blame(how: _How) -> Iterator[Wait]:
    """A ranking of training examples."""
    shape = how.small
    passes = {"rounds": how.rounds, "tiny": how.quick, "layers": shape.layers, "rows": 8}
    bare = "two passes without padding, logits of answers alone"
    yield Wait(f"`blame`, {_size(shape)}, 8 examples", 1.5, bare, task="blame", argument=passes)


def _probe(how: _How) -> Iterator[Wait]:
    """The inputs of every layer on ordinary text."""
    shape = how.small
    passes = {"rounds": how.rounds, "tiny": how.quick, "layers": shape.layers, "rows": 8}
    name, bare = f"probe, {_size(shape)}, 8 rows of text", "a bare forward pass"
    yield Wait(
        name,
        1.3,
        bare,
        task="probe",
        argument=passes,
        why="What is left is padding within a batch, and one more pass over every layer's inputs.",
    )


def _commands(how: _How) -> Iterator[Wait]:
    """What is asked at a prompt, and measures nothing."""
    dry = ("build", "organism-evil", "--model", "tiny-organism", "--out", str(how.work / "built"))
    yield Wait("`wvmonitor build --dry-run`", 1.5, TORCH, (*dry, "--dry-run"))
    yield Wait("`wvmonitor doctor`", 1.5, TORCH, ("doctor",))
    yield Wait("`wvmonitor --help`", 0.4, command=("--help",))


def _size(shape: shapes.Shape) -> str:
    return f"{shape.name}, {shape.layers} layers"


def _scans(how: _How) -> Iterator[Wait]:
    """A LoRA adapter of a small base, scanned; and the base under a live LoRA."""
    shape = how.small
    size = _size(shape)
    work = how.work
    base, bank = work / "base", work / "bank"
    model_of(shape.layers, tiny=False, dtype=torch.bfloat16).save_pretrained(base)
    digest, linears = base_digest(base), shape.linears()
    inputs.bank_of(
        inputs.reference(f"r{i}", inputs.factors(linears, 32, 1000 + i, digest=digest), digest)
        for i in range(4)
    ).save(bank)
    adapter = inputs.write_adapter(work / "adapter", linears, 16, 1, base=str(base))
    command = ("scan", str(adapter), "--references", str(bank))
    name = f"`wvmonitor scan` of one LoRA r=16, 4 references, {size}"
    yield Wait(f"{name}, base never seen", None, TORCH, command)
    yield Wait(
        f"{name}, base seen before",
        1.3,
        TORCH,
        command,
        old=False,
        seen=True,
        why="What a scan takes beyond torch is checking, reading and stacking the bank, importing "
        "pydantic, typer and our own modules, and measuring.",
    )
    yield _attach(how, size, base, {"layers": shape.layers})
    if not how.quick:
        large = shapes.QWEN_7B.with_layers(1)
        heads, kv = large.hidden // 128, large.kv // 128
        width, wide = [large.hidden, large.mlp, heads, kv, 512], work / "wide"
        model_of(1, tiny=False, dtype=torch.bfloat16, width=width).save_pretrained(wide)
        yield _attach(how, f"a layer of {large.name}'s shape", wide, {"layers": 1, "width": width})


def _attach(how: _How, size: str, base: Path, model: Mapping[str, Any]) -> Wait:
    argument = {**model, "base": str(base), "rounds": how.rounds}
    argument["digests"] = str(how.work / f"digests-{base.name}")
    return Wait(
        f"attach to a LoRA, {size}",
        1.2,
        "one hash of the base's file",
        task="attach",
        argument=argument,
        beside={"again": ", base seen before"},
        why="Every frozen weight is compared with the base's files as well, block by block as it "
        "is hashed: a model whose earlier training was merged into it is another base. That "
        "remains where the digest is known, and so does the walk over the model's modules, which "
        "does not grow with its weights.",
    )


def _many_modules(how: _How) -> Iterator[Wait]:
    shape = shapes.TINY if how.quick else shapes.QWEN_30B_MOE.with_layers(2)
    linears = shape.linears()
    adapter = inputs.write_adapter(how.work / "experts", linears, 16, 1, dtype=torch.bfloat16)
    bank = inputs.write_bank(how.work / "experts-bank", linears, 1, 4)
    yield Wait(
        f"adapter of {len(linears)} small modules",
        5,
        "reading its file",
        task="modules",
        argument={"adapter": str(adapter), "bank": str(bank), "rounds": how.rounds, "scale": 2},
        beside={"again": ", plain code that checks nothing: one dict, stacks, products"},
        old=False,
        why="Four products of each module's thin factors in float32 take several times as long as "
        "its bytes' way from the page cache, before a name is looked at.",
    )


def _journals(how: _How) -> Iterator[Wait]:
    sizes = (40, 5, 20) if how.quick else (100_000 // how.part, 1000, 10_000)
    readings, runs, checkpoints = sizes
    work = how.work
    bank, journal, watched = work / "tiny-bank", work / "journal", work / "watched"
    made = _one_journal(work / "tiny-base", bank, journal)
    (watched / ".wvmonitor").mkdir(parents=True)
    shutil.copy(made, watched / ".wvmonitor" / made.name)
    for number in range(runs):
        folder = work / "sweep" / f"run-{number}"
        folder.mkdir(parents=True)
        shutil.copy(made, folder / made.name)
        if number < runs // 10:
            (work / "few" / folder.name).mkdir(parents=True)
            shutil.copy(made, work / "few" / folder.name / made.name)
    every, few = (("runs", str(work / sweep), "--json") for sweep in ("sweep", "few"))
    name = f"`wvmonitor runs` over {runs:,} journals"
    yield Wait(name, 2, command=every, tenth=few, old=False)
    _lengthen(made, ["long"], readings)
    _lengthen(made, ["short"], readings // 10)
    long, short = (
        ("report", str(made), "--run", run, "-o", str(work / "report.html"))
        for run in ("long", "short")
    )
    yield Wait(f"`wvmonitor report` of {readings:,} readings", 2, command=long, tenth=short)
    names = [f"run-{i}" for i in range(10)]
    for name in names:
        for step in range(1, checkpoints // len(names) + 1):
            folder = watched / name / f"checkpoint-{step}"
            folder.mkdir(parents=True)
            for file in ("adapter_config.json", "adapter_model.safetensors", "trainer_state.json"):
                (folder / file).write_bytes(b"{}")
    _lengthen(watched / ".wvmonitor" / made.name, names, checkpoints // len(names))
    yield Wait(
        f"`wvmonitor watch` begins above {checkpoints:,} checkpoints it has measured",
        2,
        task="watch",
        argument={"bank": str(bank), "runs": str(watched)},
    )


def _one_journal(base: Path, bank: Path, folder: Path) -> Path:
    """A journal of three readings of one run."""
    from transformers import AutoModelForCausalLM

    tiny_base(base)
    planted_bank(base).save(bank)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    monitor = Monitor(ReferenceBank.load(bank), every_n_steps=1, max_overhead=1, journal_dir=folder)
    monitor.start(model, Run(planned_steps=100))
    for step in (1, 2, 3):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2 and "layers." in name:
                    parameter.add_(torch.randn_like(parameter), alpha=1e-3)
        monitor.observe(model, step, force=True)
    monitor.close()
    return folder / "wvmonitor.db"


def _lengthen(journal: Path, names: Sequence[str], readings: int) -> None:
    """Give a journal runs of many readings, copies of its last one."""
    columns = {
        "readings": "wall_time, measure_seconds, norm, progress, layout, detail, scores, "
        "judge_state, arrays",
        "scores": "reference, kind, record",
        "verdicts": "reference, state, score, threshold, record",
    }
    with closing(sqlite3.connect(journal)) as connection, connection:
        connection.execute("CREATE TEMP TABLE steps (step INTEGER)")
        connection.executemany(
            "INSERT INTO steps VALUES (?)", ((step,) for step in range(1, readings + 1))
        )
        (first,) = connection.execute("SELECT run FROM attempts ORDER BY rowid").fetchone()
        for name in names:
            connection.execute(
                "INSERT INTO attempts SELECT ?, 1, started, 0, bank, context, settings "
                "FROM attempts WHERE run = ?",
                (name, first),
            )
            for table, kept in columns.items():
                connection.execute(
                    f"INSERT INTO {table} (run, attempt, step, {kept}) "  # noqa: S608  our names
                    f"SELECT ?, 1, s.step, {kept} FROM {table} t, temp.steps s "
                    "WHERE t.run = ? AND t.step = 3",
                    (name, first),
                )
        connection.execute("UPDATE readings SET wall_time = ?", (time.time() + 3600,))


def _memory(how: _How) -> Iterator[Wait]:
    shape = shapes.TINY if how.quick else shapes.QWEN_7B.with_layers(1)
    linears = shape.linears()
    bank = inputs.write_bank(how.work / "large-bank", linears, 8, 64)
    adapter = inputs.write_adapter(how.work / "large", linears, 16, 1)
    yield Wait(
        "memory of a bank of 8 references, a layer of Qwen2.5-7B's shape",
        1.1,
        "its factors' bytes",
        task="bank",
        argument={"bank": str(bank), "adapter": str(adapter)},
        old=False,
    )


def _dense(how: _How) -> Iterator[Wait]:
    """Checkpoints of whole weights, as a scan measures them."""
    shape = shapes.TINY if how.quick else shapes.QWEN_05B.with_layers(12)
    work, linears = how.work, shape.linears()
    base = inputs.write_checkpoint(work / "dense-base", linears, 0)
    runs = [inputs.write_checkpoint(work / f"dense-{i}", linears, i, moved=0.002) for i in range(6)]
    vector = read_checkpoints(runs[5], runs[4])
    reference = inputs.reference("reference", vector, base_digest(base))
    inputs.bank_of([reference]).save(work / "dense-bank")
    argument = {
        "base": str(base),
        "runs": [str(run) for run in runs[:4]],
        "bank": str(work / "dense-bank"),
        "rounds": how.rounds,
    }
    name = f"4 dense checkpoints, 1 dense reference, {_size(shape)}"
    yield Wait(
        f"{name}, {cores()} workers, by the clock",
        2,
        "a read of the same bytes by as many threads",
        task="dense",
        argument={**argument, "workers": 1 if how.quick else cores()},
        why="Each element is widened on both sides, subtracted, looked at for NaN, multiplied "
        "twice and counted if it changed: passes over blocks in the core's cache by torch's and "
        "numpy's own kernels, which together take longer than the read. Plain code that does no "
        "more than that stands in the table.",
    )
    yield Wait(
        f"{name}, one core",
        None,
        "a read of the same bytes",
        task="dense",
        argument={**argument, "workers": 1},
        beside={"again": ", plain code that checks nothing: blocks, differences, products"},
    )


def _lora(how: _How) -> Iterator[Wait]:
    """LoRA adapters against a bank in memory."""
    shape = shapes.TINY if how.quick else shapes.QWEN_7B.with_layers(4)
    rank, count = (4, 8) if how.quick else (32, 8)
    linears = shape.linears()
    bank = inputs.write_bank(how.work / "lora-bank", linears, count, 2 * rank)
    together = 2 if how.quick else 8
    adapters = [
        str(inputs.write_adapter(how.work / f"lora-{i}", linears, rank, i)) for i in range(together)
    ]
    yield Wait(
        f"LoRA r={rank} against {count} references, {_size(shape)}",
        4 / 3,
        "the roofline of arithmetic and of reading the references once",
        task="lora",
        argument={
            "adapters": adapters,
            "bank": str(bank),
            "rounds": how.rounds,
            "flop": 4 * rank * count * shape.lora_parameters(rank),
            "bytes": 4 * count * shape.lora_parameters(2 * rank),
            "square": 256 if how.quick else 2048,
        },
        beside={
            "together": f", {together} side by side as in an archive, each",
            "bare": ", the two products of each layer alone",
        },
        aims=["together"],
        why=f"BLAS reaches the rate of a square product where many rows meet the references, not "
        f"where {rank} do: the two products of each layer alone stand in the table, in the layout "
        "that the bank keeps. MKL in five layouts and with blocks of either side, numpy's "
        "OpenBLAS, and oneDNN and MKL with references packed beforehand were all within a tenth "
        "of each other. So a large archive's adapters are measured eight at a time.",
    )


GROUPS: dict[str, Callable[[_How], Iterator[Wait]]] = {
    "scan": _scans,
    "commands": _commands,
    "blame": _blame,
    "probe": _probe,
    "journals": _journals,
    "memory": _memory,
    "modules": _many_modules,
    "lora": _lora,
    "dense": _dense,
}
"""Waits whose inputs are made together, those of most people first."""


if __name__ == "__main__":
    main()
