"""Sharded models read exactly as whole ones: two gloo ranks through torchrun, real DTensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integrations.distributed_runs import journal_steps
from tests.ranks import in_turn
from tests.sources import sharded_runs, zoo
from tests.steering.sharded_runs import step as inoculated_step
from wvmonitor.errors import UnmeasurableModelError
from wvmonitor.reading import component_of
from wvmonitor.references import BaseIdentity, Card, Construction, Reference, ReferenceBank
from wvmonitor.sources import LiveModel, base_digest, distributed
from wvmonitor.sources.names import is_transposed
from wvmonitor.testing import run_distributed
from wvmonitor.vectors import DenseUpdate, LowRankUpdate, TaskVector, Update


@pytest.fixture(scope="module")
def banks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By kind of model: a bank of one low-rank and one dense reference, with a probe."""
    found = {}
    for kind in ("llama", "gpt2", "moe"):
        model = zoo.build(kind)
        found[kind] = tmp_path_factory.mktemp(kind)
        model.save_pretrained(found[kind] / "base")
        bank_of(model).save(found[kind] / "bank")
    return found


def bank_of(model: torch.nn.Module) -> ReferenceBank:
    generator = torch.Generator().manual_seed(5)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    conv = {f"{n}.weight" for n, m in model.named_modules() if type(m).__name__ == "Conv1D"}
    turned = {n for n, s in shapes.items() if is_transposed(n, s, conv1d=n in conv)}

    def low(name: str) -> Update:
        *batch, rows, columns = shapes[name]
        left = torch.randn(*batch, rows, 2, generator=generator)
        right = torch.randn(*batch, 2, columns, generator=generator)
        return LowRankUpdate(left, right, name in turned)

    def dense(name: str) -> Update:
        return DenseUpdate(torch.randn(shapes[name], generator=generator), name in turned)

    blocks = [n for n, s in shapes.items() if component_of(n, s) == "blocks"]
    vectors = {"evil": {n: low(n) for n in blocks}, "language": {n: dense(n) for n in shapes}}
    digest = base_digest(model)
    references = [
        Reference(
            Card(
                name=name,
                kind="behaviour" if name == "evil" else "control",
                behaviour=f"does {name}",
                base=BaseIdentity(id="tiny", digest=digest),
                built=Construction(recipe="test"),
            ),
            TaskVector.of(updates),
        )
        for name, updates in vectors.items()
    ]
    inputs = {n: shapes[n][0 if n in turned else 1] for n in blocks if len(shapes[n]) == 2}
    probe = {n: torch.randn(8, size, generator=generator) for n, size in inputs.items()}
    return ReferenceBank(references, probe=probe)


def cases_of(kind: str) -> list[str]:
    return [name for name, (model, *_) in sharded_runs.CASES.items() if model == kind]


COMPARED = [
    ("llama", "float32", 1e-6, False),
    ("llama", "float64", 1e-12, True),
    ("gpt2", "float32", 1e-6, False),
    ("moe", "float32", 1e-6, False),
]
"""Model, dtype, tolerance, and whether θ_0 comes from files."""


RUNS = "tests.sources.sharded_runs"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that two ranks watch."""
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def ranks(banks: dict[str, Path], sharded: Path) -> list[dict[str, Any]]:
    """What two ranks read of every model, watched and learned, by rank; started once for all."""
    calls: dict[str, tuple[str, dict[str, Any]]] = {
        f"{kind}-{dtype}": (
            f"{RUNS}:compare",
            {
                "bank": str(banks[kind] / "bank"),
                "base": str(banks[kind] / "base") if from_files else None,
                "dtype": dtype,
                "cases": cases_of(kind),
            },
        )
        for kind, dtype, _, from_files in COMPARED
    }
    bank = str(banks["llama"] / "bank")
    calls["watch"] = f"{RUNS}:watch", {"bank": bank, "out": str(sharded), "sharded": True}
    calls["inoculated"] = "tests.steering.sharded_runs:step", {"sharded": True}
    calls["fail in one"] = f"{RUNS}:fail_in_one", {"bank": bank}
    return run_distributed(in_turn, calls=calls, timeout=280)


@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"),
    [c[:3] for c in COMPARED],
    ids=[f"{c[0]}-{c[1]}" for c in COMPARED],
)
def test_fsdp2_gives_the_single_process_reading(
    ranks: list[dict[str, Any]], kind: str, dtype: str, tolerance: float
) -> None:
    """Full fine-tunes and adapters, sharded over two ranks, in both geometries."""
    found = [of_rank[f"{kind}-{dtype}"] for of_rank in ranks]
    assert set(found[0]) == set(cases_of(kind))
    for case in cases_of(kind):
        for got in found:
            assert got[case]["norm"] > 0
            assert got[case]["difference"] <= tolerance, case
            assert len(set(got[case]["digests"])) == 1
        if case.startswith("full"):  # θ_0 is kept once over all processes
            assert sum(got[case]["held"] for got in found) == found[0][case]["whole"]


def test_what_one_process_cannot_measure_all_learn(ranks: list[dict[str, Any]]) -> None:
    """No process is left waiting for one that failed."""
    assert [r["fail in one"] for r in ranks] == ["UnmeasurableModelError", "KeyError"]


def test_a_sharded_run_is_watched_like_a_whole_one(
    banks: dict[str, Path], tmp_path: Path, sharded: Path, ranks: list[dict[str, Any]]
) -> None:
    """`Monitor` in a plain loop: rank 0 keeps the one journal, with the readings of a whole run."""
    whole = sharded_runs.watch(str(banks["llama"] / "bank"), str(tmp_path), False)
    first, second = (r["watch"] for r in ranks)
    assert first == [pytest.approx(whole[0], rel=1e-5), 0]
    assert len(whole[0]) == 2
    assert second == [[], 0]
    assert journal_steps(sharded) == [0, 2, 4]


def test_an_inoculation_rides_along_in_a_sharded_model(ranks: list[dict[str, Any]]) -> None:
    """Under FSDP2 loss and gradient with k·w are those of one process; no weight is touched."""
    expected = inoculated_step(sharded=False)
    assert abs(expected["loss"] - expected["plain"]) > 1e-3
    for found in (r["inoculated"] for r in ranks):
        assert found["unseen"] == []
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert found["gradient"] == pytest.approx(expected["gradient"], rel=1e-4)


def test_a_sharded_model_has_no_task_vector_of_one_process(tmp_path: Path) -> None:
    """What would be a share only is refused, not passed off as the whole."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        model = sharded_runs.made("full")
        sharded_runs.shard(model)
        with pytest.raises(UnmeasurableModelError, match="every one"):
            LiveModel(model).task_vector()
    finally:
        torch.distributed.destroy_process_group()


def test_flat_parameters_of_fsdp1_are_refused() -> None:
    """FSDP1's flat parameters have lost what they are made of."""
    model = zoo.build("llama")
    model.register_parameter("_flat_param", torch.nn.Parameter(torch.zeros(3)))
    with pytest.raises(UnmeasurableModelError, match="FSDP2"):
        LiveModel(model)


def test_alone_everything_is_rank_0s() -> None:
    """Without a process group nothing is agreed on and everything is owned."""
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.owns("any")
    assert distributed.agreed(3) == 3
