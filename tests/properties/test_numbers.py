"""What must hold of every vector, bank and file, whatever is in it."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from tests.properties.examples import examples
from wvmonitor.detection.scores import score
from wvmonitor.errors import WVMonitorError
from wvmonitor.files.safetensors import SafetensorsFile, write_safetensors
from wvmonitor.references import ReferenceBank
from wvmonitor.sources import read_adapter, read_checkpoints
from wvmonitor.steering.weights import steered
from wvmonitor.testing import planted_bank, planted_vector
from wvmonitor.vectors import DenseUpdate, TaskVector
from wvmonitor.vectors.update import to_dense

seeds = st.integers(0, 2**31 - 1)
ranks = st.integers(1, 5)


@pytest.fixture(scope="module")
def bank(tiny_base: Path) -> ReferenceBank:
    """Two behaviours and a control of the tiny base, with a probe."""
    return planted_bank(tiny_base, probe=True)


@pytest.fixture(scope="module")
def shapes(tiny_base: Path) -> dict[str, tuple[int, ...]]:
    """The blocks' linear weights."""
    vector = planted_vector(tiny_base, seed=0)
    return {name: tuple(vector.shape(name)) for name in vector.names()}


def random_vector(shapes: Mapping[str, tuple[int, ...]], seed: int, scale: float) -> TaskVector:
    """Dense noise of any size over every weight."""
    generator = torch.Generator().manual_seed(seed)
    noise = {n: scale * torch.randn(s, generator=generator) for n, s in shapes.items()}
    return TaskVector.of({n: DenseUpdate(t) for n, t in noise.items()})


def values(bank: ReferenceBank, tau: TaskVector) -> dict[Any, float]:
    """Every score by reference, geometry and name."""
    found = score(bank.measure(tau), bank.gram)
    return {
        (name, geometry, which): value
        for name, reference in found.references.items()
        for geometry, column in reference.values.items()
        for which, value in column.items()
    }


@examples
@given(seed=seeds, factor=st.floats(1e-6, 1e6))
def test_scores_do_not_depend_on_how_far_a_run_went(
    bank: ReferenceBank, shapes: dict[str, tuple[int, ...]], seed: int, factor: float
) -> None:
    """Scores are about direction: c·τ has those of τ, for any c > 0; its length is c times τ's."""
    tau = random_vector(shapes, seed, 1e-3)
    first, second = values(bank, tau), values(bank, factor * tau)
    assert first.keys() == second.keys()
    np.testing.assert_allclose(list(second.values()), list(first.values()), rtol=1e-4, atol=1e-7)
    assert bank.measure(factor * tau).norm() == pytest.approx(
        factor * bank.measure(tau).norm(), rel=1e-4
    )


@examples
@given(seed=seeds, mix=st.lists(st.floats(-3, 3), min_size=3, max_size=3), noise=st.floats(0, 1))
def test_scores_are_bounded(
    bank: ReferenceBank, shapes: dict[str, tuple[int, ...]], seed: int, mix: Any, noise: float
) -> None:
    """No cosine leaves [−1, 1] and no margin [−2, 2], also for τ made of the references alone."""
    tau = random_vector(shapes, seed, noise * 1e-2)
    for name, k in zip(bank.names, mix, strict=True):
        tau = tau + k * bank[name].vector
    for (_, _, which), value in values(bank, tau).items():
        bound = {"cosine": 1.0, "module_cosine": 1.0, "residual": 1.0, "margin": 2.0}[which]
        assert abs(value) <= bound * (1 + 1e-5) or math.isnan(value)


@examples
@given(seed=seeds, rank=ranks, norm=st.floats(1e-6, 1e3))
def test_factors_are_their_dense_product(
    tiny_base: Path, bank: ReferenceBank, seed: int, rank: int, norm: float
) -> None:
    """A low-rank change and the same change multiplied out have one reading."""
    low = planted_vector(tiny_base, seed=seed, rank=rank, norm=norm)
    dense = TaskVector.of({n: DenseUpdate(to_dense(u)) for n, u in low.updates()})
    a, b = bank.measure(low), bank.measure(dense)
    for geometry in a.geometries:
        left, right = a.geometries[geometry], b.geometries[geometry]
        scale = np.sqrt(left.squared_norms.max())
        np.testing.assert_allclose(left.products, right.products, rtol=1e-4, atol=1e-5 * scale)
        np.testing.assert_allclose(left.squared_norms, right.squared_norms, rtol=1e-4)


@examples
@given(seed=seeds, cuts=st.lists(st.integers(0, 16), max_size=4))
def test_processes_that_hold_rows_add_up_to_one(
    bank: ReferenceBank, shapes: dict[str, tuple[int, ...]], seed: int, cuts: list[int]
) -> None:
    """However the rows of every weight lie over processes, their products sum to the whole's."""
    tau = random_vector(shapes, seed, 1e-2)
    edges = sorted({0, 16, 32, *cuts})
    whole = bank.measure(tau).geometries["frobenius"]
    summed = np.zeros_like(whole.products)
    squares = np.zeros_like(whole.squared_norms)
    for start, stop in itertools.pairwise(edges):
        part = {}
        for name, update in tau.updates():
            kept = torch.zeros_like(update.delta)  # type: ignore[union-attr]
            kept[start:stop] = update.delta[start:stop]  # type: ignore[union-attr]
            part[name] = DenseUpdate(kept)
        found = bank.measure(TaskVector.of(part)).geometries["frobenius"]
        summed += found.products
        squares += found.squared_norms
    np.testing.assert_allclose(summed, whole.products, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(squares, whole.squared_norms, rtol=1e-5)


@pytest.fixture(scope="module")
def tuned(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint of the tiny base, changed."""
    folder = Path(shutil.copytree(tiny_base, tmp_path_factory.mktemp("tuned") / "model"))
    with SafetensorsFile(folder / "model.safetensors") as file:
        held = {n: file.read(n) for n in file.tensors}
    generator = torch.Generator().manual_seed(3)
    moved = {n: t + 1e-2 * torch.randn(t.shape, generator=generator) for n, t in held.items()}
    write_safetensors(folder / "model.safetensors", moved)
    return folder


@examples
@given(data=st.data(), shards=st.integers(1, 6))
def test_shards_and_their_order_do_not_matter(
    tiny_base: Path, bank: ReferenceBank, tuned: Path, data: Any, shards: int
) -> None:
    """A checkpoint has one reading, to the last bit, however its tensors lie over files."""
    with SafetensorsFile(tuned / "model.safetensors") as file:
        held = {n: file.read(n) for n in file.tensors}
    names = data.draw(st.permutations(sorted(held)))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "config.json").write_bytes((tuned / "config.json").read_bytes())
        mapped = {}
        for number in range(shards):
            shard = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
            part = names[number::shards]
            write_safetensors(folder / shard, {n: held[n] for n in part})
            mapped |= dict.fromkeys(part, shard)
        index = json.dumps({"weight_map": mapped})
        (folder / "model.safetensors.index.json").write_text(index)
        found = bank.measure(read_checkpoints(tiny_base, folder))
    expected = bank.measure(read_checkpoints(tiny_base, tuned))
    order = [found.parameters.index(n) for n in expected.parameters]
    for geometry, products in expected.geometries.items():
        np.testing.assert_array_equal(found.geometries[geometry].products[order], products.products)


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Any:
    """The live base."""
    return AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)


@examples
@given(k=st.floats(-100, 100), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_steering_there_and_back_is_where_it_was(
    bank: ReferenceBank, model: Any, k: float, dtype: torch.dtype
) -> None:
    """After the block every bit of the weights is as before, whatever k and dtype."""
    live = model.to(dtype)
    before = {n: p.detach().clone() for n, p in live.named_parameters()}
    with steered(live, bank["evil"], k):
        pass
    assert all(torch.equal(p, before[n]) for n, p in live.named_parameters())


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter folder of the planted direction."""
    from wvmonitor.steering.adapter import as_adapter

    out = tmp_path_factory.mktemp("adapters") / "adapter"
    as_adapter(planted_vector(tiny_base, seed=100), 1.0, tiny_base, out)
    return out


@examples
@given(data=st.data())
def test_what_is_cut_off_is_never_clean(adapter: Path, tiny_base: Path, data: Any) -> None:
    """An adapter cut at any byte of any of its files is an error, and never another change."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(adapter, Path(place) / "adapter"))
        name = data.draw(st.sampled_from(["adapter_model.safetensors", "adapter_config.json"]))
        content = (folder / name).read_bytes()
        kept = data.draw(st.integers(0, len(content.rstrip()) - 1))
        (folder / name).write_bytes(content[:kept])
        with pytest.raises(WVMonitorError):
            read_adapter(folder, tiny_base).norm()


dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
names = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=30).filter(
    lambda n: n[0] not in "/\\" and ".." not in n and n.isprintable() and n != "__metadata__"
)


@examples
@given(
    layout=st.dictionaries(
        names, st.tuples(dtypes, st.lists(st.integers(0, 5), max_size=3)), max_size=8
    ),
    notes=st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3),
    seed=seeds,
)
def test_what_is_written_is_what_is_read(layout: Any, notes: dict[str, str], seed: int) -> None:
    """Tensors and notes come back from a file to the last bit; writing them again is the same."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        n: torch.randint(0, 2, shape, generator=generator).to(dtype)
        for n, (dtype, shape) in layout.items()
    }
    notes = {k: v for k, v in notes.items() if k.isprintable() and v.isprintable()}
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "model.safetensors"
        write_safetensors(path, tensors, notes)
        first = path.read_bytes()
        with SafetensorsFile(path) as file:
            assert dict(file.metadata) == notes
            read = {n: file.read(n) for n in file.tensors}
        write_safetensors(path, dict(reversed(read.items())), notes)
        assert path.read_bytes() == first
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[n], t) and read[n].dtype == t.dtype for n, t in tensors.items())
