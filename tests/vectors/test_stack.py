"""Parameters measured together, against each measured alone and against dense float64."""

import pytest
import torch

from wvmonitor.errors import ShapeMismatchError
from wvmonitor.vectors.block import BlockBuilder, Scratch, block_products
from wvmonitor.vectors.stack import products, shared, stack_references
from wvmonitor.vectors.update import DenseUpdate, LowRankUpdate, to_dense

OUT, IN, G = 7, 5, 4


def low_rank(rank, seed, *, turned=False, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shape = (IN, OUT) if turned else (OUT, IN)
    left, right = (
        torch.randn(*s, generator=generator) for s in ((shape[0], rank), (rank, shape[1]))
    )
    return LowRankUpdate(left.to(dtype), right.to(dtype), turned)


def stack_block(members, count, probes):
    rows = probes or [None] * len(members)
    builder = BlockBuilder(members[0], count, len(members) + 1, rows[0])
    for updates, probe in zip(members, rows, strict=True):
        assert not builder.full
        builder.add(updates, probe)
    assert len(builder) == len(members)
    return builder.block()


def map_of(update):
    dense = to_dense(update).double()
    return dense.T if update.transposed else dense


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("with_probe", [False, True])
@pytest.mark.parametrize("vectors", [1, 3])
def test_a_block_measures_what_dense_matrices_have(vectors, with_probe, turned):
    """Products, norms and lagged products of a run of parameters are the dense float64 ones."""
    members = [
        {0: low_rank(2, 10 * g, turned=turned), 2: low_rank(3, 10 * g + 1, turned=turned)}
        for g in range(G)
    ]
    probes = [torch.randn(6, IN, generator=torch.Generator().manual_seed(g)) for g in range(G)]
    block = stack_block(members, 3, probes if with_probe else [])

    def bundles(rank, seed):
        return [
            [low_rank(rank, seed + 10 * v + g, turned=turned) for v in range(vectors)]
            for g in range(1, G)
        ]

    taus, earlier = bundles(2, 500), bundles(1, 600)
    found = block_products(taus, block, 1, Scratch(), earlier)
    assert found.dtype == torch.float64
    assert found.shape == (G - 1, vectors, 2 if with_probe else 1, 5)
    for g in range(1, G):
        for v in range(vectors):
            tau, before, mine = taus[g - 1][v], earlier[g - 1][v], found[g - 1, v]
            for geometry in range(len(mine)):
                x = probes[g].double().T if geometry else torch.eye(IN).double()
                a = map_of(tau) @ x
                others = [members[g].get(i) for i in range(3)] + [tau, before]
                expected = torch.stack(
                    [
                        torch.zeros(()).double() if o is None else (a * (map_of(o) @ x)).sum()
                        for o in others
                    ]
                )
                torch.testing.assert_close(mine[geometry], expected, rtol=1e-5, atol=1e-5)
            alone = products(tau, block.stack(g), before)
            torch.testing.assert_close(mine, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_block_measures_low_precision_as_float32(dtype):
    """Low-precision factors in a block give the products of the numbers they hold."""
    block = stack_block([{0: low_rank(2, g)} for g in range(G)], 1, [])
    taus = [[low_rank(3, 50 + g, dtype=dtype)] for g in range(G)]
    found = block_products(taus, block, 0, Scratch())
    wide = [[LowRankUpdate(t.left.float(), t.right.float())] for (t,) in taus]
    torch.testing.assert_close(found, block_products(wide, block, 0, Scratch()), rtol=0, atol=0)


def test_a_block_refuses_another_layout():
    """An update stored (in, out) is refused where the references are (out, in)."""
    block = stack_block([{0: low_rank(1, 0)}, {0: low_rank(1, 2)}], 1, [])
    fits, turned = low_rank(1, 1), low_rank(1, 1, turned=True)
    for updates in ([[turned]], [[fits], [turned]], [[fits, turned]]):
        with pytest.raises(ShapeMismatchError, match=r"\(in, out\)"):
            block_products(updates, block, 0, Scratch())


@pytest.mark.parametrize("turned", [False, True])
def test_stacked_updates_are_held_once(turned):
    """Float32 factors are views of the stack, the same numbers; other dtypes stay as they were."""
    given = {
        0: low_rank(2, 1, turned=turned),
        1: DenseUpdate(torch.ones((IN, OUT) if turned else (OUT, IN)), turned),
    }
    stack = stack_references(given, 2, None)
    held = shared(stack, given)
    assert held[1] is given[1]
    memory = {
        stack.lefts.untyped_storage().data_ptr(),
        stack.rights[0].untyped_storage().data_ptr(),
    }
    for name in ("left", "right"):
        mine, theirs = getattr(held[0], name), getattr(given[0], name)
        assert torch.equal(mine, theirs)
        assert mine.untyped_storage().data_ptr() in memory
    low = {0: low_rank(2, 1, dtype=torch.bfloat16)}
    assert shared(stack_references(low, 1, None), low)[0] is low[0]
