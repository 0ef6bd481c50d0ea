"""Sketches against NumPy's SVD of the dense float64 matrix."""

import numpy as np
import pytest
import torch

from wvmonitor.errors import InputError, NonFiniteError
from wvmonitor.vectors.sketch import sketch
from wvmonitor.vectors.update import DenseUpdate, LowRankUpdate, to_dense


def decaying(*shape, seed=0, power=1.0):
    """A matrix (or a batch of them) whose singular values fall as 1/i^power."""
    rng = np.random.default_rng(seed)
    u, _, vh = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    s = np.arange(1, min(shape[-2:]) + 1.0) ** -power
    return (u * s) @ vh, s


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (3, 50, 30)])
def test_a_sketch_is_nearly_the_best_approximation(shape):
    """It loses at most 5 % more than the best factors of its rank, and says how much."""
    matrix, s = decaying(*shape)
    made = sketch(DenseUpdate(torch.from_numpy(matrix)), 6, name="w")
    assert isinstance(made.update, LowRankUpdate)
    assert made.update.rank == 6
    lost = ((matrix - to_dense(made.update).numpy()) ** 2).sum()
    best = (s[6:] ** 2).sum() * (shape[0] if len(shape) == 3 else 1)
    assert best * (1 - 1e-9) <= lost <= 1.05**2 * best
    assert made.total == pytest.approx((matrix**2).sum())
    assert made.total - made.kept == pytest.approx(lost, rel=1e-6)


def test_a_matrix_of_low_rank_is_kept_exactly():
    """What has no higher rank than the sketch loses nothing but rounding."""
    rng = np.random.default_rng(3)
    matrix = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 40))
    made = sketch(DenseUpdate(torch.from_numpy(matrix)), 4, name="w")
    np.testing.assert_allclose(to_dense(made.update).numpy(), matrix, atol=1e-9)


@pytest.mark.parametrize("shape", [(7,), (4, 5)])
def test_what_factors_would_not_shrink_is_copied(shape):
    """Vectors and small matrices are kept whole, as copies that training does not change."""
    live = torch.ones(shape)
    made = sketch(DenseUpdate(live), 4, name="w")
    live.zero_()
    assert torch.equal(made.update.delta, torch.ones(shape))
    assert made.kept == made.total


def test_a_sketch_repeats_itself_and_leaves_the_dice_alone():
    """The same update gives the same bits, and torch's own random numbers are not drawn from."""
    update = DenseUpdate(torch.from_numpy(decaying(50, 40)[0]))
    state = torch.get_rng_state()
    one, two = sketch(update, 5, name="w"), sketch(update, 5, name="w")
    assert torch.equal(one.update.left, two.update.left)
    assert torch.equal(state, torch.get_rng_state())


def test_a_transposed_map_stays_one():
    """A parameter stored (in, out) is sketched as it is stored, and marked."""
    made = sketch(DenseUpdate(torch.from_numpy(decaying(50, 40)[0]), True), 5, name="w")
    assert made.update.transposed
    assert made.update.shape == (50, 40)


def test_what_cannot_be_sketched_is_an_error():
    """A rank below 1, and weights that are not finite."""
    with pytest.raises(InputError, match="rank must be at least 1"):
        sketch(DenseUpdate(torch.ones(9, 9)), 0, name="w")
    with pytest.raises(NonFiniteError, match="the change of w holds NaN"):
        sketch(DenseUpdate(torch.full((9, 9), torch.nan)), 1, name="w")
