"""Compression against NumPy's SVD of the dense float64 matrix."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wvmonitor.errors import InputError, NonFiniteError
from wvmonitor.vectors import DenseUpdate, LowRankUpdate, Origin, TaskVector
from wvmonitor.vectors.compress import compress
from wvmonitor.vectors.update import to_dense


def best(matrix, rank):
    """The closest matrix of rank ≤ `rank`, and the share of ‖·‖² it keeps."""
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return (u[..., :rank] * s[..., None, :rank]) @ vh[..., :rank, :], (s[..., :rank] ** 2).sum()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 9),
    st.integers(2, 9),
    st.integers(1, 8),
    st.integers(1, 9),
    st.sampled_from(["dense", "low-rank", "batched"]),
    st.integers(0, 10**6),
)
def test_compression_is_the_best_approximation(outputs, inputs, held, rank, kind, seed):
    """No update of that rank is closer, and the kept share is the share of ‖w‖² that survived."""
    rng = np.random.default_rng(seed)
    batch = (3,) if kind == "batched" else ()
    left = torch.from_numpy(rng.normal(size=(*batch, outputs, held)))
    right = torch.from_numpy(rng.normal(size=(*batch, held, inputs)))
    given_ = LowRankUpdate(left, right) if kind != "dense" else DenseUpdate(left @ right)
    made = compress(given_, rank)
    matrix = (left @ right).numpy()
    expected, kept = best(matrix, rank)
    np.testing.assert_allclose(to_dense(made.update).numpy(), expected, atol=1e-9)
    assert made.kept == pytest.approx(kept)
    assert made.total == pytest.approx((matrix**2).sum())
    if isinstance(made.update, LowRankUpdate):
        assert made.update.rank <= max(rank, 1)


def test_a_task_vector_says_what_compression_kept():
    """`origin.kept` is the share over all parameters, and vectors (norms) are kept whole."""
    rng = np.random.default_rng(1)
    matrix, norm = rng.normal(size=(6, 5)), rng.normal(size=4)
    tau = TaskVector.of(
        {"a": DenseUpdate(torch.from_numpy(matrix)), "n": DenseUpdate(torch.from_numpy(norm))},
        Origin(kept=0.5),
    )
    small = tau.compress(2)
    _, kept = best(matrix, 2)
    share = (kept + (norm**2).sum()) / ((matrix**2).sum() + (norm**2).sum())
    assert small.origin.kept == pytest.approx(0.5 * share)
    assert torch.equal(small.update("n").delta, torch.from_numpy(norm))
    assert tau.compress(5).origin.kept == pytest.approx(0.5)


def test_a_transposed_update_stays_transposed():
    """Compression keeps the stated (in, out) layout."""
    made = compress(DenseUpdate(torch.randn(6, 5), transposed=True), 1).update
    assert made.transposed
    assert made.shape == (6, 5)


def test_what_cannot_be_compressed_is_refused():
    """A rank below 1 and non-finite weights are errors of their own."""
    with pytest.raises(InputError, match="rank must be at least 1, got -1"):
        compress(DenseUpdate(torch.ones(3, 3)), -1)
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        compress(DenseUpdate(torch.tensor([[1.0, torch.nan], [0.0, 1.0]])), 1)
