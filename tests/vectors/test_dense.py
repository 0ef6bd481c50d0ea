"""One pass over a dense update, piece by piece, against whole matrices in float64."""

import pickle

import pytest
import torch

from wvmonitor.vectors import (
    DenseUpdate,
    LowRankUpdate,
    StreamedUpdate,
    TaskVector,
    dense,
    functional,
)
from wvmonitor.vectors import update as updates_
from wvmonitor.vectors.stack import products, stack_references

RANKS, ROWS = 5, 6
SHAPES = [(7, 11), (1, 13), (301, 1), (3, 5, 7), (2, 3, 4, 5), (64, 64)]


def tensor(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def streamed(delta, transposed=False):
    """The same change as it comes from a file: one buffer, overwritten block by block."""

    def stream(elements):
        flat, buffer = delta.reshape(-1), torch.empty(elements, dtype=delta.dtype)
        for block in torch.split(flat, elements):
            yield buffer[: block.numel()].copy_(block)
            buffer.fill_(float("nan"))

    return StreamedUpdate(delta.shape, delta.dtype, stream, transposed)


def as_map(delta, transposed):
    return delta.double().mT if transposed else delta.double()


@pytest.fixture(params=[1, 10, 1 << 17])
def chunk(request, monkeypatch):
    """Pieces of one row, of a few, and of everything."""
    monkeypatch.setattr(functional, "_CHUNK_ON_CPU", request.param)
    monkeypatch.setattr(dense, "_ROWS", min(request.param, 128))
    return request.param


@pytest.mark.parametrize("kind", [DenseUpdate, streamed])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_pass_gives_what_whole_matrices_give(chunk, shape, transposed, kind):
    """Products, norm, changed elements and response do not depend on how the update is read."""
    delta, other = tensor(*shape, seed=1), tensor(*shape, seed=2)
    delta.view(-1)[::3] = 0
    *batch, outputs, inputs = as_map(delta, transposed).shape
    lefts, rights = tensor(*batch, RANKS, outputs, seed=3), tensor(*batch, RANKS, inputs, seed=4)
    probe = tensor(ROWS, inputs, seed=5)
    found = dense.pass_over(
        kind(delta, transposed),
        [streamed(other, transposed), DenseUpdate(delta, transposed)],
        lefts_SO=lefts,
        rights_SI=rights,
        probe_NI=probe,
    )
    a = as_map(delta, transposed)
    square = (a * a).sum()
    expected = torch.stack([(a * as_map(other, transposed)).sum(), square])
    torch.testing.assert_close(found.inners, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.square, square, rtol=1e-6, atol=0)
    assert found.changed == (delta != 0).sum()
    ranks = torch.einsum(
        "bso,boi,bsi->s", *(t.double().reshape(-1, *t.shape[-2:]) for t in (lefts, a, rights))
    )
    torch.testing.assert_close(found.per_rank, ranks, rtol=1e-5, atol=1e-4)
    response = (a @ probe.double().T).float()
    torch.testing.assert_close(found.response, response, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(), (9,), (0,), (0, 4), (4, 0)])
def test_what_is_no_matrix_is_summed_alike(chunk, shape):
    """Scalars, vectors and empty tensors are measured too."""
    delta = tensor(*shape, seed=1)
    found = dense.pass_over(streamed(delta) if delta.numel() else DenseUpdate(delta))
    torch.testing.assert_close(found.square, (delta.double() ** 2).sum(), rtol=1e-6, atol=0)
    assert found.changed == delta.numel()
    assert found.per_rank.shape == (0,)
    assert found.response is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_precision_is_measured_as_what_it_holds(chunk, dtype):
    """Low-precision blocks give the products of their numbers, float64 ones keep their digits."""
    delta, other = tensor(40, 33, seed=1, dtype=dtype), tensor(40, 33, seed=2, dtype=dtype)
    found = dense.pass_over(streamed(delta), [streamed(other)])
    digits = 1e-12 if dtype == torch.float64 else 1e-5
    expected = (delta.double() * other.double()).sum().reshape(1)
    torch.testing.assert_close(found.inners, expected, rtol=digits, atol=digits)
    whole = updates_.held(streamed(delta))
    assert whole.delta.dtype == dtype
    assert torch.equal(whole.delta, delta)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_shows_in_the_norm(chunk, value):
    """A single NaN or infinity makes the squared norm not finite: it is never averaged away."""
    delta = tensor(20, 30)
    delta[13, 7] = value
    assert not torch.isfinite(dense.pass_over(streamed(delta)).square)


@pytest.mark.parametrize("transposed", [False, True])
def test_streamed_and_held_updates_measure_alike(chunk, transposed):
    """Against low-rank, held and streamed references, with a probe, in both geometries."""
    shape = (9, 14) if transposed else (14, 9)
    low = LowRankUpdate(tensor(shape[0], 2, seed=3), tensor(2, shape[1], seed=4), transposed)
    given = {
        0: streamed(tensor(*shape, seed=5), transposed),
        1: low,
        3: DenseUpdate(tensor(*shape, seed=6), transposed),
    }
    stack = stack_references(given, 4, tensor(ROWS, 9, seed=7))
    x = tensor(ROWS, 9, seed=7).double().T
    tau = tensor(*shape, seed=8)
    for update in (streamed(tau, transposed), DenseUpdate(tau, transposed), low):
        mine = as_map(updates_.to_dense(update), transposed)
        found = products(update, stack, streamed(tau, transposed))
        for geometry, map_ in enumerate((torch.eye(9).double(), x)):
            others = [as_map(updates_.to_dense(given[i]), transposed) for i in (0, 1, 3)]
            others += [mine, as_map(tau, transposed)]
            expected = torch.stack([((mine @ map_) * (o @ map_)).sum() for o in others])
            torch.testing.assert_close(
                found[geometry, [0, 1, 3, 4, 5]], expected, rtol=1e-5, atol=1e-4
            )
            assert found[geometry, 2] == 0


def test_a_streamed_update_travels_as_its_numbers():
    """Pickled to another process, or held, a streamed update is the same change in memory."""
    delta = tensor(12, 10)
    tau = TaskVector.of({"w": streamed(delta, True)})
    copied = pickle.loads(pickle.dumps(tau.update("w")))  # noqa: S301  our own bytes
    assert copied.transposed
    assert torch.equal(copied.delta, delta)
    assert torch.equal(tau.held().update("w").delta, delta)
    assert tau.inner(-2 * tau) == pytest.approx(-2 * float((delta.double() ** 2).sum()), rel=1e-6)
