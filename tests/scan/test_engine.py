"""Workers, caches and what happens when either fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tests.scan.calibrations import calibration_for
from wvmonitor.cli.app import app
from wvmonitor.errors import SettingsError
from wvmonitor.references import ReferenceBank
from wvmonitor.scan import work
from wvmonitor.scan.cache import ScanCache
from wvmonitor.scan.executors import alone, open_executor
from wvmonitor.scan.measure import Share, measure_all
from wvmonitor.scan.scan import scan
from wvmonitor.scan.targets import find_targets
from wvmonitor.vectors import TaskVector


@pytest.fixture(scope="module")
def bank(tiny_bank_folder: Path) -> ReferenceBank:
    return ReferenceBank.load(tiny_bank_folder)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths whose weights were really measured."""
    paths: list[str] = []
    original = ReferenceBank.measure_together

    def counting(self: ReferenceBank, taus, **options):
        paths.extend(tau.origin.source for tau in taus)
        return original(self, taus, **options)

    monkeypatch.setattr(ReferenceBank, "measure_together", counting)
    return paths


def test_a_second_scan_measures_nothing(
    drifting_run: Path, good_adapter: Path, bank: ReferenceBank, measured: list[str], tmp_path: Path
) -> None:
    """What a cache holds is not measured again, and gives the same results to the last digit."""
    with ScanCache(tmp_path / "cache") as cache:
        first = list(scan([drifting_run, good_adapter], bank, cache=cache))
    assert len(measured) == 6
    measured.clear()
    with ScanCache(tmp_path / "cache") as cache:
        assert list(scan([drifting_run, good_adapter], bank, cache=cache)) == first
    assert measured == []


def test_a_scan_that_goes_on_finds_what_it_would_have_found(
    bank: ReferenceBank,
    save_adapter: Callable[..., Path],
    evil: TaskVector,
    measured: list[str],
    tmp_path: Path,
) -> None:
    """Adapters that are measured side by side still are where the cache knows one of them."""
    adapters = [save_adapter(tmp_path / f"a{i}", evil * (1 + i / 7)) for i in range(8)]
    undisturbed = list(scan(adapters, bank))
    with ScanCache(tmp_path / "cache") as cache:
        some = scan(adapters, bank, cache=cache)
        assert [next(some) for _ in range(3)] == undisturbed[:3]
        some.close()
    measured.clear()
    with ScanCache(tmp_path / "cache") as cache:
        assert list(scan(adapters, bank, cache=cache)) == undisturbed
    assert measured == [f"'{path}'" for path in adapters[2:]]  # two by two, the third again


def test_the_cache_goes_by_content(
    bad_adapter: Path, good_adapter: Path, bank: ReferenceBank, measured: list[str], tmp_path: Path
) -> None:
    """A moved checkpoint is recognised; one that was overwritten in place is measured again."""
    place = shutil.copytree(bad_adapter, tmp_path / "place")
    with ScanCache(tmp_path / "cache") as cache:
        bad = list(scan([place], bank, cache=cache))
    moved = place.rename(tmp_path / "moved")
    shutil.copytree(good_adapter, place)
    measured.clear()
    with ScanCache(tmp_path / "cache") as cache:
        again, other = scan([moved, place], bank, cache=cache, ordered=True)
    assert len(measured) == 1
    assert again.path == str(moved)
    assert again.references == bad[0].references
    assert other.verdict == "ok"


def test_a_new_calibration_judges_cached_scores_again(
    bad_adapter: Path, bank: ReferenceBank, measured: list[str], tmp_path: Path
) -> None:
    """Verdicts are never cached: another calibration gives its own, without measuring."""
    with ScanCache(tmp_path / "cache") as cache:
        (first,) = scan([bad_adapter], bank, cache=cache)
        measured.clear()
    with ScanCache(tmp_path / "cache") as cache:
        (second,) = scan([bad_adapter], bank, cache=cache, calibration=calibration_for(bank))
    assert (first.verdict, second.verdict) == ("warn", "alarm")
    assert measured == []


def test_an_interrupted_scan_goes_on(
    drifting_run: Path, bank: ReferenceBank, measured: list[str], tmp_path: Path
) -> None:
    """What was measured before an interruption is kept, even if its last line was cut off."""
    path = tmp_path / "cache"
    with ScanCache(path) as cache:
        results = scan([drifting_run], bank, cache=cache)
        for _ in range(3):
            next(results)
        results.close()
    path.write_bytes(path.read_bytes()[:-10])
    measured.clear()
    with ScanCache(path) as cache:
        assert len(list(scan([drifting_run], bank, cache=cache))) == 5
    assert len(measured) == 3
    with ScanCache(path) as cache:
        assert len(list(scan([drifting_run], bank, cache=cache))) == 5
    assert len(measured) == 3


def test_a_cache_serves_worker_processes(
    drifting_run: Path, bank: ReferenceBank, tmp_path: Path
) -> None:
    """Workers look into the cache too, so that hits cost one digest each."""
    with ScanCache(tmp_path / "cache") as cache:
        first = list(scan([drifting_run], bank, cache=cache))
    size = (tmp_path / "cache").stat().st_size
    with ScanCache(tmp_path / "cache") as cache, open_executor(workers=2) as pool:
        assert list(scan([drifting_run], bank, cache=cache, executor=pool)) == first
    assert (tmp_path / "cache").stat().st_size == size


def test_a_file_that_is_no_cache_is_left_alone(tmp_path: Path) -> None:
    """--cache never appends to a file that is something else."""
    path = tmp_path / "thesis.txt"
    path.write_text("precious\n")
    with pytest.raises(SettingsError, match="not a cache"):
        ScanCache(path)
    assert path.read_text() == "precious\n"
    with pytest.raises(SettingsError, match="cannot be used"):
        ScanCache(tmp_path)


def test_results_come_as_they_finish(
    bad_adapter: Path, good_adapter: Path, bank: ReferenceBank
) -> None:
    """A slow checkpoint does not hold back the others."""

    class Backwards(Executor):
        """Finishes the last job first."""

        def __init__(self) -> None:
            self.jobs: list[tuple[Future, object]] = []

        def submit(self, function, /, *arguments, **options):
            future: Future = Future()
            self.jobs.append((future, arguments[0]))
            if len(self.jobs) == 2:
                self.jobs[1][0].set_result(function(self.jobs[1][1]))
            return future

    executor = Backwards()
    results = scan([bad_adapter, good_adapter], bank, executor=executor)
    assert next(results).path == str(good_adapter)
    slow, piece = executor.jobs[0]
    slow.set_result(measure_all(piece))
    assert [r.path for r in results] == [str(bad_adapter)]


class Here(Executor):
    """Does at once what is submitted, and keeps what came of it."""

    def __init__(self) -> None:
        self.found: list[object] = []

    def submit(self, function, /, *arguments, **options):
        future: Future = Future()
        self.found.append(function(*arguments, **options))
        future.set_result(self.found[-1])
        return future


def test_a_lone_checkpoint_is_shared_by_all_workers(
    save_checkpoint, tiny_base: Path, evil: TaskVector, bank: ReferenceBank, tmp_path: Path
) -> None:
    """Three workers each read some parameters of one checkpoint, and no digit changes."""
    where = save_checkpoint(tmp_path / "full", evil)
    (alone_,) = scan([where], bank, base=tiny_base)
    executor = Here()
    (shared,) = scan([where], bank, base=tiny_base, executor=executor, workers=3)
    assert shared == alone_
    shares = [share for found in executor.found for share in found]
    assert len(shares) == 3
    assert all(isinstance(share, Share) and share.reading.parameters for share in shares)


def test_a_share_that_fails_fails_the_checkpoint(
    save_checkpoint, tiny_base: Path, evil: TaskVector, bank: ReferenceBank, tmp_path: Path
) -> None:
    """A checkpoint of which one part cannot be read is one failure, not a smaller number."""
    where = save_checkpoint(tmp_path / "full", evil)
    tensors = load_file(where / "model.safetensors")
    name = max(n for n in tensors if "layers.1" in n)
    tensors[name].view(-1)[3] = torch.nan
    save_file(tensors, where / "model.safetensors", metadata={"format": "pt"})
    for workers in (1, 4):
        (result,) = scan([where], bank, base=tiny_base, executor=Here(), workers=workers)
        assert result.error is not None
        assert result.error.type == "NonFiniteError"
        assert result.verdict == "unknown"


def test_shares_of_different_saves_are_never_joined(
    save_checkpoint, tiny_base: Path, evil: TaskVector, bank: ReferenceBank, tmp_path: Path
) -> None:
    """A checkpoint that is saved anew between two shares is an error, not a mixture."""
    where = save_checkpoint(tmp_path / "full", evil)
    newer = save_checkpoint(tmp_path / "newer", evil * 0.5)

    class SavedBetween(Here):
        def submit(self, function, /, *arguments, **options):
            future = super().submit(function, *arguments, **options)
            shutil.copyfile(newer / "model.safetensors", where / "model.safetensors")
            return future

    (result,) = scan([where], bank, base=tiny_base, executor=SavedBetween(), workers=2)
    assert result.verdict == "unknown"
    assert "changed while it was being read" in result.error.message


def test_a_cluster_that_loses_a_worker_loses_one_adapter(
    bad_adapter: Path, bank: ReferenceBank, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where an executor tells of a dead worker in its own way, the bundle's others are read."""
    folders = [shutil.copytree(bad_adapter, tmp_path / f"a{i}") for i in range(8)]
    monkeypatch.setattr(work, "_PIECES", 2)

    class Killed(Here):
        def submit(self, function, /, *arguments, **options):
            if any(job.target.path == str(folders[5]) for job in arguments[0]):
                future: Future = Future()
                future.set_exception(RuntimeError("KilledWorker"))
                return future
            return super().submit(function, *arguments, **options)

    results = list(scan(folders, bank, executor=Killed(), ordered=True))
    assert [r.path for r in results if r.error] == [str(folders[5])]


def test_adapters_of_a_large_archive_are_measured_side_by_side(
    drifting_run: Path,
    bad_adapter: Path,
    bank: ReferenceBank,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Bundles give the results of single measurements; a broken adapter fails by itself."""
    broken = shutil.copytree(bad_adapter, tmp_path / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"no header")
    diverged = shutil.copytree(bad_adapter, tmp_path / "diverged")
    tensors = load_file(diverged / "adapter_model.safetensors")
    next(iter(tensors.values())).fill_(torch.inf)
    save_file(tensors, diverged / "adapter_model.safetensors")
    targets = [drifting_run, broken, diverged, bad_adapter]
    singly = list(scan(targets, bank, ordered=True))
    monkeypatch.setattr(work, "_PIECES", 2)
    executor = Here()
    bundled = list(scan(targets, bank, executor=executor, ordered=True))
    assert [len(found) for found in executor.found] == [4, 4]
    for one, other in zip(singly, bundled, strict=True):
        assert (one.path, one.verdict, one.error) == (other.path, other.verdict, other.error)
        assert one.error or one.norm == pytest.approx(other.norm, rel=1e-6)
        for name, reference in one.references.items():
            theirs = other.references[name].scores["frobenius"]
            assert reference.scores["frobenius"] == pytest.approx(theirs, rel=1e-5, abs=1e-7)
    assert [r.error.type for r in bundled if r.error] == ["MalformedFileError", "NonFiniteError"]


def _die_of(job: str) -> str:
    if job == "bad":
        os.kill(os.getpid(), signal.SIGKILL)
    return job.upper()


def test_a_worker_that_dies_costs_one_checkpoint() -> None:
    """Only the job that kills its worker is lost; the others are done again."""
    a, bad, b = alone(_die_of, ["a", "bad", "b"])
    assert (a, b) == ("A", "B")
    assert type(bad).__name__ == "WorkerDiedError"


def test_workers_end_with_a_scan_that_is_killed() -> None:
    """They are no orphans that hold memory for ever: each ends when the scan's process is gone."""
    program = (
        "import os; from wvmonitor.scan.executors import open_executor\n"
        "with open_executor(workers=2) as pool:\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as scanning:
        assert scanning.stdout is not None
        worker = Path("/proc", scanning.stdout.readline().strip())
        assert worker.exists()
        scanning.kill()
    deadline = time.monotonic() + 60
    while worker.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_killed_worker_does_not_end_the_scan(
    good_adapter: Path, bad_adapter: Path, bank: ReferenceBank, when: str
) -> None:
    """When the pool breaks under a scan, every checkpoint still gets its verdict."""
    with open_executor(workers=2) as pool:
        killed = pool.submit(os.kill, pool.submit(os.getpid).result(), signal.SIGKILL)
        if when == "before":
            killed.exception()
            with suppress(BrokenProcessPool, OSError):  # until the death is noticed
                while True:
                    pool.submit(os.getpid).result()
        results = list(scan([good_adapter, bad_adapter], bank, executor=pool, ordered=True))
    assert [r.verdict for r in results] == ["ok", "warn"]


def test_workers_at_the_command_line(
    drifting_run: Path, good_adapter: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """--workers and --cache give the JSON of a plain scan."""
    plain = ["scan", str(drifting_run), str(good_adapter), "--format", "json"]
    plain += ["--references", str(tiny_bank_folder)]
    expected = CliRunner().invoke(app, plain)
    cache = ["--cache", str(tmp_path / "cache")]
    for extra in (["--workers", "2", *cache], cache):
        result = CliRunner().invoke(app, [*plain, *extra])
        assert (result.exit_code, json.loads(result.stdout)) == (0, json.loads(expected.stdout))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--workers", "-1"],
        ["--executor", "dask"],
        ["--scheduler", "tcp://localhost:1"],
        ["--cache", "/"],
    ],
)
def test_options_that_make_no_sense_are_usage_errors(
    arguments: list[str], good_adapter: Path, tiny_bank_folder: Path
) -> None:
    """Contradictory options are refused before anything is scanned, with exit code 4."""
    command = ["scan", str(good_adapter), "--references", str(tiny_bank_folder), *arguments]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 4
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "processes", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["threads", "processes"]
)
def test_dask(
    drifting_run: Path, good_adapter: Path, bank: ReferenceBank, *, processes: bool
) -> None:
    """A scan on a Dask cluster of two workers gives the results of a local one."""
    distributed = pytest.importorskip("distributed")
    expected = list(scan([drifting_run, good_adapter], bank, ordered=True))
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with (
        distributed.LocalCluster(processes=processes, protocol="tcp", **options) as cluster,
        open_executor("dask", scheduler=cluster.scheduler_address) as executor,
    ):
        found = list(scan([drifting_run, good_adapter], bank, executor=executor, ordered=True))
    assert found == expected


def test_the_scan_keeps_no_files_open(good_adapter: Path, bank: ReferenceBank) -> None:
    """The number of open files does not grow with the number of checkpoints."""
    list(scan([good_adapter], bank))
    before = len(list(Path("/proc/self/fd").iterdir()))
    list(scan(find_targets([good_adapter]) * 20, bank))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
