"""One pass over many parameters: batches, device transfers, and memory held once."""

import weakref

import numpy as np
import pytest
import torch

from wvmonitor.errors import ShapeMismatchError
from wvmonitor.references import ReferenceBank
from wvmonitor.vectors import DenseUpdate, LowRankUpdate, Origin, TaskVector, measuring, stacks

SHAPES = {f"model.layers.{i}.{m}.weight": s for i in range(12) for m, s in
          (("up", (6, 4)), ("down", (4, 6)))}  # fmt: skip


def updates(seed, names=tuple(SHAPES), rank=lambda name: 2, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    return {
        n: LowRankUpdate(
            torch.randn(SHAPES[n][0], rank(n), generator=rng, dtype=dtype),
            torch.randn(rank(n), SHAPES[n][1], generator=rng, dtype=dtype),
        )
        for n in names
    }


def vector(digest, *args, **kwargs):
    return TaskVector.of(updates(*args, **kwargs), Origin("runs/a", base_digest=digest))


def bank_of(tools):
    kind = type(tools.reference())
    few = list(SHAPES)[3:9]
    return ReferenceBank(
        [
            kind(tools.card("a"), TaskVector.of(updates(1))),
            kind(tools.card("b"), TaskVector.of(updates(2, few))),
        ]
    )


def expected(tau, bank, earlier=None):
    def dense(update):
        return update.left.double() @ update.right.double()

    rows = []
    for name, update in tau.updates():
        others = [r.vector.update(name) if name in r.vector else None for r in bank]
        others += [update, earlier.update(name) if earlier else None]
        rows.append([0.0 if o is None else float((dense(update) * dense(o)).sum()) for o in others])
    return np.array(rows)


@pytest.mark.parametrize("waiting", [1, 60, 1 << 20])
@pytest.mark.parametrize("block", [1, 100, 1 << 26])
def test_every_batching_gives_the_dense_numbers_in_order(tools, monkeypatch, waiting, block):
    """Readings do not depend on how parameters are grouped, ordered, or how their ranks differ."""
    monkeypatch.setattr(measuring, "_WAITING_ON_CPU", waiting)
    monkeypatch.setattr(stacks, "_BLOCK", block)
    bank = bank_of(tools)
    names = sorted(SHAPES, key=lambda n: hash(n[::-1]) % 97)
    for rank in (lambda n: 2, lambda n: 1 + len(n) % 3):
        tau = vector(tools.digest, 5, names, rank)
        earlier = vector(tools.digest, 6, names, lambda n: 3)
        products = bank.measure(tau, earlier=earlier).geometries["frobenius"]
        rows = expected(tau, bank, earlier)
        np.testing.assert_allclose(products.products, rows[:, :2], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(products.squared_norms, rows[:, 2], rtol=1e-5)
        np.testing.assert_allclose(products.lagged, rows[:, 3], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("waiting", [1, 1 << 20])
def test_vectors_measured_together_have_the_numbers_they_have_alone(tools, monkeypatch, waiting):
    """Side by side or one after the other, of one rank, several, or dense: the same readings."""
    monkeypatch.setattr(measuring, "_WAITING_ON_CPU", waiting)
    bank, names = bank_of(tools), list(SHAPES)
    full = {n: DenseUpdate(torch.full(SHAPES[n], 0.5).tril()) for n in names[:2]}
    taus = [
        vector(tools.digest, 5),
        vector(tools.digest, 6),
        vector(tools.digest, 7, names, lambda n: 1 + len(n) % 3),
        vector(tools.digest, 8, dtype=torch.float64),
        TaskVector.of({**updates(9), **full}, Origin("runs/b", base_digest=tools.digest)),
    ]
    for some in (taus[:2], taus, taus[:1]):
        together = bank.measure_together(some)
        for tau, found in zip(some, together, strict=True):
            alone = bank.measure(tau)
            for field in ("products", "squared_norms"):
                ours, theirs = (getattr(r.geometries["frobenius"], field) for r in (found, alone))
                np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
            assert found.parameters == alone.parameters
            assert found.changed_fraction == alone.changed_fraction


@pytest.mark.parametrize("low_rank_first", [False, True])
def test_dense_updates_measured_together_are_held_one_at_a_time(tools, low_rank_first):
    """Vectors that store a parameter whole take the memory of one, whatever else is beside them."""
    alive, most = set(), []

    def produce(name):
        delta = torch.ones(SHAPES[name])
        alive.add(id(delta))
        weakref.finalize(delta, alive.discard, id(delta))
        most.append(len(alive))
        return DenseUpdate(delta)

    origin = Origin("runs/a", base_digest=tools.digest)
    whole = [TaskVector(SHAPES, produce, origin) for _ in range(4)]
    bank_of(tools).measure_together([vector(tools.digest, 5), *whole] if low_rank_first else whole)
    assert len(most) == 4 * len(SHAPES)
    assert max(most) == 1


def test_vectors_of_other_parameters_are_not_measured_together(tools):
    """A vector that covers other parameters is refused, not measured in part."""
    few = vector(tools.digest, 6, list(SHAPES)[:3])
    with pytest.raises(ShapeMismatchError, match="different parameters"):
        bank_of(tools).measure_together([vector(tools.digest, 5), few])


def test_the_same_vector_measures_bit_for_bit_the_same(tools):
    """Measuring twice, or a bank that was saved and loaded, changes no bit."""
    bank, tau = bank_of(tools), vector(tools.digest, 5)
    first = bank.measure(tau).geometries["frobenius"].products
    np.testing.assert_array_equal(bank.measure(tau).geometries["frobenius"].products, first)


def test_a_float64_vector_is_measured_in_float64(tools):
    """Factors in float64 stay so: the products are exact to more than float32's digits."""
    bank, tau = bank_of(tools), vector(tools.digest, 5, dtype=torch.float64)
    found = bank.measure(tau).geometries["frobenius"].products
    np.testing.assert_allclose(found, expected(tau, bank)[:, :2], rtol=1e-12, atol=1e-12)


def test_a_loaded_bank_holds_its_references_once(tools, tmp_path):
    """After loading, each reference's factors are views of the stacks and the same numbers."""
    bank, tau = bank_of(tools), vector(tools.digest, 5)
    fingerprint = bank.save(tmp_path / "bank")
    loaded = ReferenceBank.load(tmp_path / "bank")
    for before, after in zip(bank, loaded, strict=True):
        assert set(before.vector.names()) == set(after.vector.names())
        for name, update in before.vector.updates():
            kept = after.vector.update(name)
            assert torch.equal(kept.left, update.left)
            assert torch.equal(kept.right, update.right)
            assert kept.left.untyped_storage().nbytes() > update.left.numel() * 4
    rows = expected(tau, bank)[:, :2]
    found = loaded.measure(tau).geometries["frobenius"].products
    np.testing.assert_allclose(found, rows, rtol=1e-5, atol=1e-4)
    assert loaded.save(tmp_path / "again") == fingerprint


def test_results_leave_the_device_in_one_transfer(tools, monkeypatch):
    """However many parameters there are, one measurement fetches its numbers once."""
    fetched = []
    plain = torch.Tensor.cpu

    def counted(tensor, *args, **kwargs):
        fetched.append(tensor.shape)
        return plain(tensor, *args, **kwargs)

    bank, tau = bank_of(tools), vector(tools.digest, 5)
    bank.measure(tau)
    monkeypatch.setattr(torch.Tensor, "cpu", counted)
    bank.measure(tau)
    assert len(fetched) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_snapshot_on_cuda_synchronises_once(tools):
    """On a GPU a measurement makes the host wait once, and gives the CPU's numbers."""
    from benchmarks.overhead import counted_synchronisations

    bank, tau = bank_of(tools), vector(tools.digest, 5)
    there = TaskVector.of(
        {n: LowRankUpdate(u.left.cuda(), u.right.cuda()) for n, u in tau.updates()}, tau.origin
    )
    found = bank.measure(there).geometries["frobenius"].products
    with counted_synchronisations() as syncs:
        bank.measure(there)
    assert len(syncs) == 1
    np.testing.assert_allclose(found, expected(tau, bank)[:, :2], rtol=1e-5, atol=1e-4)
