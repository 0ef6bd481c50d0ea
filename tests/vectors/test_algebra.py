"""The inner product of updates against dense float64 NumPy, over every kind of update."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wvmonitor.errors import ShapeMismatchError
from wvmonitor.vectors import DenseUpdate, LowRankUpdate, TaskVector, functional
from wvmonitor.vectors import update as updates_

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
few = settings(max_examples=40, deadline=None)


def dense64(update):
    """The update as a float64 array, multiplied out by NumPy."""
    if isinstance(update, DenseUpdate):
        return update.delta.double().numpy()
    return update.left.double().numpy() @ update.right.double().numpy()


@st.composite
def shapes(draw):
    """1-D (norms), 2-D (linear), 3-D (fused experts)."""
    size = st.integers(1, 7)
    return tuple(draw(size) for _ in range(draw(st.integers(1, 3))))


def make(draw, shape, dtypes=DTYPES):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from(dtypes))
    transposed = len(shape) == 2 and draw(st.booleans())

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    if len(shape) == 1 or draw(st.booleans()):
        return DenseUpdate(normal(*shape), transposed)
    rank = draw(st.integers(1, 4))
    return LowRankUpdate(
        normal(*shape[:-1], rank), normal(*shape[:-2], rank, shape[-1]), transposed
    )


@st.composite
def updates(draw, count, dtypes=DTYPES):
    """Several updates of one parameter: one shape, one layout, any representation and dtype."""
    shape = draw(shapes())
    made = [make(draw, shape, dtypes) for _ in range(count)]
    layout = made[0].transposed
    return [updates_.replace(u, transposed=layout) for u in made]


@st.composite
def vectors(draw, count, dtypes=DTYPES):
    """Task vectors over parameters that overlap in part."""
    names = ["layers.0.a.weight", "layers.1.b.weight", "norm.weight"]
    held = [{} for _ in range(count)]
    for name in names:
        for updates_of_one, update in zip(held, draw(updates(count, dtypes)), strict=True):
            if draw(st.integers(0, 4)):
                updates_of_one[name] = update
    return [TaskVector.of(h) for h in held]


def flat(vector):
    """Every update of a vector, by name, in float64."""
    return {name: dense64(u) for name, u in vector.updates()}


def product(a, b):
    """The Frobenius product of two `flat` vectors."""
    return sum(float((a[n] * b[n]).sum()) for n in a if n in b)


def near(value, expected, scale, tolerance=1e-5):
    return abs(value - expected) <= tolerance * scale + 1e-12


@few
@given(updates(2))
def test_any_two_kinds_of_update_multiply_as_their_dense_forms_do(pair):
    """Low-rank, dense, batched, transposed and mixed-precision updates give the dense product."""
    a, b = pair
    expected = float((dense64(a) * dense64(b)).sum())
    scale = norm_of_parts(a) * norm_of_parts(b)
    assert near(float(updates_.inner(a, b)), expected, scale)


def norm_of_parts(update):
    """An upper bound on ‖update‖, which float32 rounding is relative to."""
    if isinstance(update, DenseUpdate):
        return float(np.linalg.norm(dense64(update))) + 1e-9
    left, right = update.left.double().numpy(), update.right.double().numpy()
    return float(np.linalg.norm(left) * np.linalg.norm(right)) + 1e-9


@few
@given(vectors(3), st.floats(-3, 3), st.floats(-3, 3))
def test_the_product_is_bilinear(three, a, b):
    """⟨a·x + b·y, z⟩ = a⟨x, z⟩ + b⟨y, z⟩ whatever the representations."""
    x, y, z = three
    fx, fy, fz = map(flat, three)
    expected = a * product(fx, fz) + b * product(fy, fz)
    scale = 100 * (1 + abs(a) + abs(b)) * (1 + x.norm() + y.norm()) * (1 + z.norm())
    assert near((a * x + b * y).inner(z), expected, scale, 1e-6)
    assert near((x - y).inner(z), product(fx, fz) - product(fy, fz), scale, 1e-6)


@few
@given(vectors(2))
def test_the_product_is_symmetric_and_bounded(pair):
    """⟨x, y⟩ = ⟨y, x⟩, |⟨x, y⟩| ≤ ‖x‖‖y‖ and a cosine lies in [−1, 1]."""
    x, y = pair
    assert x.inner(y) == pytest.approx(y.inner(x), rel=1e-5, abs=1e-5)
    bound = x.norm() * y.norm()
    assert abs(x.inner(y)) <= bound * (1 + 1e-5) + 1e-5
    cosine = x.cosine(y)
    assert math.isnan(cosine) if bound == 0 else -1 - 1e-5 <= cosine <= 1 + 1e-5


@few
@given(vectors(1))
def test_a_vector_agrees_with_itself(one):
    """The cosine of a vector with itself is 1, with its negative −1, and scale does not matter."""
    (x,) = one
    if x.norm() > 1e-3:
        assert x.cosine(x) == pytest.approx(1, abs=1e-5)
        assert x.cosine(-x) == pytest.approx(-1, abs=1e-5)
        assert (3.5 * x).cosine(x / 7) == pytest.approx(1, abs=1e-5)


@few
@given(vectors(2))
def test_parts_add_up_to_the_whole(pair):
    """A vector in shards (any split of its names) measures as the whole does."""
    x, y = pair
    first = set(x.names()[::2])
    parts = [x.select(lambda n: n in first), x.select(lambda n: n not in first)]
    assert sum(p.inner(y) for p in parts) == pytest.approx(x.inner(y), rel=1e-9, abs=1e-9)
    assert sum(p.norm() ** 2 for p in parts) == pytest.approx(x.norm() ** 2, rel=1e-9, abs=1e-9)


@few
@given(updates(2, [torch.float64]))
def test_sums_and_multiples_are_exact_in_float64(pair):
    """Adding and scaling float64 updates equals adding and scaling their dense forms."""
    a, b = pair
    made = updates_.add(updates_.scale(a, -2.5), b)
    np.testing.assert_allclose(dense64(made), dense64(b) - 2.5 * dense64(a), rtol=1e-9, atol=1e-9)
    assert made.transposed == a.transposed or len(a.shape) == 1


@pytest.mark.parametrize("kind", ["dense", "low-rank"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_response_product_is_the_trace_formula(kind, transposed, dtype):
    """⟨a.on(X), b.on(X)⟩ = tr(a C bᵀ) with C = XᵀX, also for (in, out) storage."""
    rng = np.random.default_rng(0)
    outputs, inputs, rank = 5, 8, 3
    made, maps = [], []
    for _ in range(2):
        shape = (inputs, outputs) if transposed else (outputs, inputs)
        if kind == "dense":
            update = DenseUpdate(torch.from_numpy(rng.normal(size=shape)).to(dtype), transposed)
        else:
            left = torch.from_numpy(rng.normal(size=(shape[0], rank))).to(dtype)
            right = torch.from_numpy(rng.normal(size=(rank, shape[1]))).to(dtype)
            update = LowRankUpdate(left, right, transposed)
        made.append(update)
        maps.append(dense64(update).T if transposed else dense64(update))
    x = rng.normal(size=(6, inputs)).astype(np.float32)
    expected = np.trace(maps[0] @ (x.T.astype(float) @ x) @ maps[1].T)
    probe = {"w": torch.from_numpy(x)}
    a, b = (TaskVector.of({"w": u, "no.probe": u}).on(probe) for u in made)
    assert a.inner(b) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert a.names() == ["w"]
    assert a.shape("w") == (outputs, 6)


def test_products_inside_autocast_keep_their_precision():
    """Measuring inside torch.autocast gives the same numbers as outside it."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(s, generator=generator) for s in ((64, 4), (4, 64)))
    low, dense = LowRankUpdate(left, right), DenseUpdate(torch.randn(64, 64, generator=generator))
    x, y = TaskVector.of({"w": low}), TaskVector.of({"w": dense})
    probe = {"w": torch.randn(16, 64, generator=generator)}
    outside = [x.inner(y), x.norm(), x.on(probe).inner(y.on(probe))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert [x.inner(y), x.norm(), x.on(probe).inner(y.on(probe))] == outside


def test_live_parameters_leave_no_graph_behind():
    """Measuring parameters that are being trained records nothing for autograd."""
    weight = torch.nn.Parameter(torch.ones(4, 4))
    vector = TaskVector.of({"w": DenseUpdate(weight)})
    assert isinstance(vector.inner(vector), float)
    assert not vector.compress(2).update("w").left.requires_grad


def test_a_bfloat16_dot_goes_wrong_where_ours_does_not():
    """On 4·10⁶ bfloat16 elements our product is right to 10⁻³ where a bfloat16 sum is not."""
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2000, 2000, generator=generator).to(torch.bfloat16)
    b = torch.rand(2000, 2000, generator=generator).to(torch.bfloat16)
    exact = float((a.double() * b.double()).sum())
    in_bfloat16 = a.flatten()[:0].sum()
    for part_a, part_b in zip(a.flatten().split(1000), b.flatten().split(1000), strict=True):
        in_bfloat16 = in_bfloat16 + (part_a * part_b).sum()
    ours = TaskVector.of({"w": DenseUpdate(a)}).inner(TaskVector.of({"w": DenseUpdate(b)}))
    assert abs(float(in_bfloat16) - exact) / exact > 0.01
    assert abs(ours - exact) / exact < 1e-6


def test_float64_updates_are_measured_in_float64():
    """A float64 operand makes the whole product float64: 10⁻⁹ beside 1 is not lost."""
    a = TaskVector.of({"w": DenseUpdate(torch.tensor([1.0, 1e-9], dtype=torch.float64))})
    b = TaskVector.of({"w": DenseUpdate(torch.ones(2))})
    assert a.inner(b) == 1.0 + 1e-9


def test_mismatched_updates_are_refused():
    """Updates of differently shaped parameters, layouts or factors are errors, never broadcast."""
    a, b = DenseUpdate(torch.ones(2, 3)), DenseUpdate(torch.ones(3, 2))
    with pytest.raises(ShapeMismatchError, match=r"shape \(2, 3\).*other \(3, 2\)"):
        updates_.inner(a, b)
    with pytest.raises(ShapeMismatchError, match=r"\(in, out\)"):
        updates_.add(DenseUpdate(torch.ones(2, 2)), DenseUpdate(torch.ones(2, 2), transposed=True))
    with pytest.raises(ShapeMismatchError, match="do not multiply"):
        LowRankUpdate(torch.ones(4, 2), torch.ones(3, 4))
    with pytest.raises(ShapeMismatchError, match="do not multiply"):
        LowRankUpdate(torch.ones(2, 4, 1), torch.ones(3, 1, 4))
    with pytest.raises(ShapeMismatchError, match="probe of 5 inputs"):
        updates_.on(a, torch.ones(4, 5))
    with pytest.raises(ShapeMismatchError, match="2-D map"):
        updates_.on(DenseUpdate(torch.ones(2, 4, 3)), torch.ones(4, 3))
    x, y = TaskVector.of({"w": a}), TaskVector.of({"w": b})
    for operation in (x.inner, x.__add__, x.__sub__, x.cosine):
        with pytest.raises(ShapeMismatchError, match="one base model"):
            operation(y)


def test_a_vector_has_no_layout():
    """A norm's or bias's update marked (in, out) measures like any other."""
    a, b = DenseUpdate(torch.ones(4), transposed=True), DenseUpdate(torch.ones(4))
    assert float(updates_.inner(a, b)) == 4
    assert torch.equal(updates_.as_linear(a).delta, a.delta)


def test_large_terms_that_cancel_do_not_swallow_small_ones():
    """Sums are float64: 2³⁰ + 1 − 2³⁰ is 1, for dense and low-rank updates alike."""
    values, ones = torch.tensor([[2.0**30, 1.0, -(2.0**30)]]), torch.ones(1, 3)
    assert float(functional.sum64(values)) == 1
    assert float(functional.dense_low_rank_inner(values, torch.ones(1, 1), ones)) == 1
