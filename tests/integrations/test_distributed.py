"""A real `Trainer` over two gloo ranks: the readings are those of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integrations import distributed_runs
from tests.integrations.distributed_runs import journal_steps
from wvmonitor.testing import run_distributed


def two_ranks(base: Path, bank: Path, out: Path, **options: Any) -> Any:
    return run_distributed(
        distributed_runs.train,
        base=str(base),
        bank=str(bank),
        out=str(out),
        batch=2,
        **options,
    )


@pytest.fixture(scope="module", params=[True, False], ids=["lora", "full"])
def alone(
    request: pytest.FixtureRequest,
    tiny_base: Path,
    tiny_bank_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """The same run in one process."""
    out = str(tmp_path_factory.mktemp("alone"))
    found = distributed_runs.train(
        str(tiny_base), str(tiny_bank_folder), out, batch=4, lora=request.param
    )
    return {**found, "lora": request.param}


def assert_same_run(ranks: Any, alone: dict[str, Any], out: Path) -> None:
    first, second = ranks
    assert first["norm"] == pytest.approx(alone["norm"], rel=1e-4)
    assert first["cosine"] == pytest.approx(alone["cosine"], rel=1e-4, abs=1e-6)
    assert (second["norm"], second["failures"]) == (None, 0)
    assert journal_steps(out) == [0, 2, 4]


def test_ddp_gives_the_single_process_readings(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path, alone: dict[str, Any]
) -> None:
    """Under DDP rank 0 alone keeps the record, and its readings are those of one process."""
    ranks = two_ranks(tiny_base, tiny_bank_folder, tmp_path, lora=alone["lora"])
    assert ranks[0]["wrapped"] == "DistributedDataParallel"
    assert_same_run(ranks, alone, tmp_path)


def test_k_w_rides_along_on_every_rank(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path, alone: dict[str, Any]
) -> None:
    """Inoculated under DDP, both ranks end with the weights of one inoculated process."""
    options = {"lora": alone["lora"], "inoculate": "evil=2"}
    once = distributed_runs.train(
        str(tiny_base), str(tiny_bank_folder), str(tmp_path / "one"), batch=4, **options
    )
    ranks = two_ranks(tiny_base, tiny_bank_folder, tmp_path / "two", **options)
    assert [r["weights"] for r in ranks] == pytest.approx([once["weights"]] * 2, rel=1e-6)
    assert ranks[0]["norm"] == pytest.approx(once["norm"], rel=1e-4)
    assert ranks[0]["norm"] != pytest.approx(alone["norm"], rel=1e-3)
    assert [r["failures"] for r in ranks] == [0, 0]


def test_a_row_that_rank_0_asks_for_is_written_by_every_rank(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """A changed verdict between two rows is logged at once, and no rank waits for the others."""
    ranks = two_ranks(tiny_base, tiny_bank_folder, tmp_path, logging_steps=500)
    assert [rank["rows"] for rank in ranks] == [[2, 4], [2, 4]]


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
    ranks = two_ranks(tiny_base, tiny_bank_folder, tmp_path, lora=alone["lora"], deepspeed=3)
    assert ranks[0]["wrapped"] == "DeepSpeedEngine"
    assert ranks[0]["empty"]
    assert_same_run(ranks, alone, tmp_path)


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
    ranks = two_ranks(
        tiny_base,
        tiny_bank_folder,
        tmp_path,
        lora=False,
        deepspeed=stage,
        dtype="bfloat16",
        learning_rate=1e-6,
    )
    assert ranks[0]["norm"] > 0
    assert ranks[0]["changed_fraction"] > 0.9
    assert not [w for w in ranks[0]["warnings"] if "lost" in w]


def test_a_stop_decided_on_rank_0_stops_every_rank(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """No rank goes on into a collective that the others have left."""
    ranks = two_ranks(tiny_base, tiny_bank_folder, tmp_path, stop_on=0)
    assert [r["steps"] for r in ranks] == [2, 2]
