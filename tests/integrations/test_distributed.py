"""A real `Trainer` over two gloo ranks: the readings are those of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults.runs import STEPS
from tests.integrations import distributed_runs
from tests.integrations.distributed_runs import journal_steps
from tests.ranks import in_turn
from wvmonitor.testing import run_distributed

TRAIN = "tests.integrations.distributed_runs:train"
RUNS: dict[str, dict[str, Any]] = {
    "lora": {},
    "full": {"lora": False},
    "lora, inoculated": {"inoculate": "evil=2"},
    "full, inoculated": {"lora": False, "inoculate": "evil=2"},
    "rows far apart": {"logging_steps": 500},
    "stopped by rank 0": {"stop_on": 0},
}
"""What two processes train in one start, one run after the other, and its options."""
FAULT = "tests.faults.ranks:fail_on_rank_1"


def two_ranks(
    base: Path, bank: Path, out: Path, runs: dict[str, dict[str, Any]], *others: str
) -> Any:
    """What each run came to, by name, on rank 0 and on rank 1; each has a folder of its name.

    After them come `others`, functions that take a base, a bank and a folder.
    """
    given = {"base": str(base), "bank": str(bank)}
    calls = {n: (TRAIN, {**given, "out": str(out / n), "batch": 2, **o}) for n, o in runs.items()}
    calls |= {other: (other, {**given, "out": str(out / other)}) for other in others}
    first, second = run_distributed(in_turn, calls=calls, timeout=280)
    return {name: (first[name], second[name]) for name in calls}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of the two ranks are."""
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(tiny_base: Path, tiny_bank_folder: Path, folder: Path) -> Any:
    """What two ranks made of each of `RUNS`, and of a fault on one of them."""
    return two_ranks(tiny_base, tiny_bank_folder, folder, RUNS, FAULT)


@pytest.fixture(scope="module", params=["lora", "full"])
def alone(
    request: pytest.FixtureRequest,
    tiny_base: Path,
    tiny_bank_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """The same run in one process."""
    out = str(tmp_path_factory.mktemp("alone"))
    found = distributed_runs.train(
        str(tiny_base), str(tiny_bank_folder), out, batch=4, **RUNS[request.param]
    )
    return {**found, "name": request.param}


def assert_same_run(ranks: Any, alone: dict[str, Any], out: Path) -> None:
    first, second = ranks
    assert first["norm"] == pytest.approx(alone["norm"], rel=1e-4)
    assert first["cosine"] == pytest.approx(alone["cosine"], rel=1e-4, abs=1e-6)
    assert (second["norm"], second["failures"]) == (None, 0)
    assert journal_steps(out) == [0, 2, 4]


def test_ddp_gives_the_single_process_readings(
    ranks: Any, folder: Path, alone: dict[str, Any]
) -> None:
    """Under DDP rank 0 alone keeps the record, and its readings are those of one process."""
    of_run = ranks[alone["name"]]
    assert of_run[0]["wrapped"] == "DistributedDataParallel"
    assert_same_run(of_run, alone, folder / alone["name"])


def test_k_w_rides_along_on_every_rank(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path, ranks: Any, alone: dict[str, Any]
) -> None:
    """Inoculated under DDP, both ranks end with the weights of one inoculated process."""
    name = f"{alone['name']}, inoculated"
    once = distributed_runs.train(
        str(tiny_base), str(tiny_bank_folder), str(tmp_path), batch=4, **RUNS[name]
    )
    of_run = ranks[name]
    assert [r["weights"] for r in of_run] == pytest.approx([once["weights"]] * 2, rel=1e-6)
    assert of_run[0]["norm"] == pytest.approx(once["norm"], rel=1e-4)
    assert of_run[0]["norm"] != pytest.approx(alone["norm"], rel=1e-3)
    assert [r["failures"] for r in of_run] == [0, 0]


def test_a_row_that_rank_0_asks_for_is_written_by_every_rank(ranks: Any) -> None:
    """A changed verdict between two rows is logged at once, and no rank waits for the others."""
    assert [rank["rows"] for rank in ranks["rows far apart"]] == [[2, 4], [2, 4]]


def test_zero_3_gives_the_single_process_readings(
    tiny_base: Path,
    tiny_bank_folder: Path,
    tmp_path: Path,
    alone: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Parameters that DeepSpeed has partitioned are gathered; every one is empty in between."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    pytest.importorskip("deepspeed", reason="`make test-engines` installs DeepSpeed")
    options = {**RUNS[alone["name"]], "deepspeed": 3}
    of_run = two_ranks(tiny_base, tiny_bank_folder, tmp_path, {"zero": options})["zero"]
    assert of_run[0]["wrapped"] == "DeepSpeedEngine"
    assert of_run[0]["empty"]
    assert_same_run(of_run, alone, tmp_path)


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_in_bf16_is_read_from_its_float32_masters(
    tiny_base: Path,
    tiny_bank_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: int,
) -> None:
    """Steps below bfloat16's resolution are in the masters, so they are in the reading."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    pytest.importorskip("deepspeed", reason="`make test-engines` installs DeepSpeed")
    options = {"lora": False, "deepspeed": stage, "dtype": "bfloat16", "learning_rate": 1e-6}
    first, _ = two_ranks(tiny_base, tiny_bank_folder, tmp_path, {"zero": options})["zero"]
    assert first["norm"] > 0
    assert first["changed_fraction"] > 0.9
    assert not [w for w in first["warnings"] if "lost" in w]


def test_a_stop_decided_on_rank_0_stops_every_rank(ranks: Any) -> None:
    """No rank goes on into a collective that the others have left."""
    assert [r["steps"] for r in ranks["stopped by rank 0"]] == [2, 2]


def test_a_fault_on_rank_1_only_holds_nobody_up(ranks: Any) -> None:
    """Where the monitor fails in one process of two, both train on and end as if unwatched."""
    first, second = ranks[FAULT]
    assert first["steps"] == second["steps"] == STEPS
    assert {first[k] for k in ("alone", "watched")} == {second[k] for k in ("alone", "watched")}
    assert first["alone"] == first["watched"]
    assert first["failures"] == 0
    assert second["failures"] > 0
