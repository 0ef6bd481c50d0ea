"""ReferenceBank.measure against dense float64 NumPy, parameter by parameter."""

import numpy as np
import pytest
import torch

from wvmonitor.errors import (
    BankError,
    BaseMismatchError,
    NonFiniteError,
    ShapeMismatchError,
    UnknownReferenceError,
)
from wvmonitor.references import BaseIdentity, ReferenceBank
from wvmonitor.vectors import DenseUpdate, LowRankUpdate, Origin, TaskVector

KINDS = ("low-rank", "dense")


def bank_of(tools, kind, probe=None):
    """Three references: two that touch everything, one that touches two parameters."""
    names = list(tools.shapes)
    references = [
        tools.reference("evil", "low-rank" if kind == "mixed" else kind),
        tools.reference("sycophancy", "dense" if kind == "mixed" else kind),
        tools.reference("language", kind.replace("mixed", "dense"), names[:2], kind="control"),
    ]
    return ReferenceBank(references, probe=probe)


@pytest.mark.parametrize("with_probe", [False, True])
@pytest.mark.parametrize("tau_kind", KINDS)
@pytest.mark.parametrize("kind", [*KINDS, "mixed"])
def test_a_reading_equals_the_dense_formula(tools, kind, tau_kind, with_probe):
    """Every product, norm and lagged product is the dense one, for every kind of update."""
    bank = bank_of(tools, kind, tools.probe() if with_probe else None)
    tau, earlier = tools.vector(tau_kind), tools.vector("low-rank")
    reading = bank.measure(tau, step=7, progress=0.5, earlier=earlier)
    assert reading.references == ("evil", "sycophancy", "language")
    assert reading.parameters == tuple(tau.names())
    assert (reading.step, reading.progress, reading.warnings) == (7, 0.5, ())
    assert set(reading.geometries) == ({"frobenius", "response"} if with_probe else {"frobenius"})
    for geometry, products in reading.geometries.items():
        probe = bank.probe if geometry == "response" else None
        for i, reference in enumerate(bank):
            expected = list(tools.products(tau, reference.vector, probe).values())
            np.testing.assert_allclose(products.products[:, i], expected, rtol=1e-5, atol=1e-4)
        has = np.array([probe is None or n in probe for n in tau.names()])
        norms = np.array(list(tools.products(tau, tau, probe).values()))
        lagged = np.array(list(tools.products(tau, earlier, probe).values()))
        np.testing.assert_allclose(products.squared_norms[has], norms[has], rtol=1e-5)
        np.testing.assert_allclose(products.lagged[has], lagged[has], rtol=1e-5, atol=1e-3)
        assert np.isnan(products.squared_norms[~has]).all()
        assert (products.covered == has).all()
        assert products.products.dtype == np.float64


def test_low_precision_input_is_measured_in_float32(tools):
    """bfloat16 factors give the products of the numbers they hold, not rounded once more."""
    bank = bank_of(tools, "mixed", tools.probe())
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        tau = tools.vector("low-rank", dtype=dtype)
        found = bank.measure(tau).geometries["response"].products[:, 0]
        expected = list(tools.products(tau, bank["evil"].vector, bank.probe).values())
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_the_gram_is_the_references_own_products(tools):
    """The bank's Gram matrix equals the dense one in both geometries, and is symmetric."""
    bank = bank_of(tools, "mixed", tools.probe())
    assert bank.gram.kinds == ("behaviour", "behaviour", "control")
    assert set(bank.gram.parameters) == set(tools.shapes)
    for geometry, table in bank.gram.products.items():
        probe = bank.probe if geometry == "response" else None
        np.testing.assert_array_equal(table, table.swapaxes(1, 2))
        for i, a in enumerate(bank):
            for j, b in enumerate(bank):
                found = dict(zip(bank.gram.parameters, table[:, i, j], strict=True))
                expected = tools.products(a.vector, b.vector, probe)
                for name, value in found.items():
                    assert value == pytest.approx(expected.get(name, 0.0), rel=1e-5, abs=1e-4)
    total = bank.gram.total("frobenius")
    blocks = bank["evil"].vector.select(lambda n: n.endswith(("q.weight", "c_attn.weight", "up")))
    assert total[0, 0] == pytest.approx(blocks.norm() ** 2, rel=1e-5)


def test_coverage_counts_what_no_reference_looks_at(tools):
    """Coverage is the share of ‖τ‖² in block weights that a reference touches."""
    names = list(tools.shapes)
    bank = ReferenceBank([tools.reference(names=names[:2])], probe=tools.probe())
    tau = tools.vector("dense")
    reading = bank.measure(tau)
    squares = {n: tau.select(lambda x, n=n: x == n).norm() ** 2 for n in names}
    total = sum(squares.values())
    assert reading.geometries["frobenius"].covered.tolist() == [n in names[:2] for n in names]
    assert reading.norm() == pytest.approx(tau.norm(), rel=1e-5)
    share = sum(squares[n] for n in names[:2]) / total
    assert reading.coverage() == pytest.approx(share, rel=1e-5)
    assert reading.coverage(geometry="response") == pytest.approx(share, rel=1e-5)
    shares = reading.component_shares()
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["embeddings"] == pytest.approx(squares["model.embed_tokens.weight"] / total, 1e-5)
    assert shares["head"] == pytest.approx(squares["lm_head.weight"] / total, rel=1e-5)
    assert shares["norms"] == pytest.approx(squares[names[4]] / total, rel=1e-5)


def test_changed_fraction_counts_elements(tools):
    """The share of elements that moved is counted over dense updates only."""
    name = "model.layers.0.q.weight"
    delta = torch.zeros(12, 8)
    delta[0] = 1.0
    bank = ReferenceBank([tools.reference()])
    assert bank.measure(TaskVector.of({name: DenseUpdate(delta)})).changed_fraction == 1 / 12
    assert bank.measure(tools.vector("low-rank", [name])).changed_fraction is None


def test_nothing_moved_measures_as_nothing(tools):
    """A zero vector and an empty one give zeros, not errors."""
    bank = ReferenceBank([tools.reference()], probe=tools.probe())
    zero = bank.measure(tools.vector() * 0.0)
    assert zero.norm() == 0
    assert zero.coverage() == 1
    empty = bank.measure(TaskVector.of({}))
    assert empty.parameters == ()
    assert empty.norm() == 0


def test_measuring_is_streamed_and_reads_each_tensor_once(tools):
    """One pass: every update is produced exactly once, shapes are checked before the first."""
    calls = []
    held = tools.vector("dense")

    def produce(name):
        calls.append(name)
        return held.update(name)

    bank = ReferenceBank([tools.reference()], probe=tools.probe())
    bank.measure(TaskVector(tools.shapes, produce, held.origin))
    assert calls == list(tools.shapes)
    with pytest.raises(ShapeMismatchError):
        bank.measure(TaskVector({**tools.shapes, "lm_head.weight": (9, 9)}, produce, held.origin))
    assert calls == list(tools.shapes)


def test_measuring_inside_autocast_changes_nothing(tools):
    """A reading taken inside torch.autocast is bit for bit the one taken outside."""
    bank, tau = bank_of(tools, "mixed", tools.probe()), tools.vector()
    outside = bank.measure(tau).geometries["response"].products
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(bank.measure(tau).geometries["response"].products, outside)


def test_the_base_is_checked_by_digest(tools):
    """Another base is refused with both digests; a relative or an unknown one is said."""
    card = {"base": BaseIdentity(id="tiny", digest=tools.digest, relatives=("r" * 64,))}
    bank = ReferenceBank([tools.reference(**card)])
    assert bank.measure(tools.vector()).warnings == ()
    with pytest.raises(BaseMismatchError, match=r"dddddddddddd….*eeeeeeeeeeee…"):
        bank.measure(tools.vector(digest="e" * 64))
    assert "relative" in bank.measure(tools.vector(digest="r" * 64)).warnings[0]
    assert "not known to be tiny" in bank.measure(tools.vector(digest=None)).warnings[0]
    assert bank.relation_to("r" * 64) == "relative"


def test_other_shapes_are_refused_by_name(tools):
    """A parameter of another shape is an error naming it, the vector and the reference."""
    bank = ReferenceBank([tools.reference()])
    tau = TaskVector.of({"lm_head.weight": DenseUpdate(torch.ones(21, 8))}, Origin("runs/b"))
    message = r"lm_head\.weight has shape \(21, 8\) in runs/b but \(20, 8\) in reference 'evil'"
    with pytest.raises(ShapeMismatchError, match=message):
        bank.measure(tau)


@pytest.mark.parametrize("shape", [(12, 8), (8, 8)])
def test_another_layout_is_refused(tools, shape):
    """A square weight read as (in, out) on one side only is an error, not a wrong number."""
    name = "model.layers.0.q.weight"
    w = TaskVector.of({name: LowRankUpdate(tools.tensor(shape[0], 2), tools.tensor(2, shape[1]))})
    reference = type(tools.reference())(tools.card("evil"), w)
    bank = ReferenceBank([reference])
    tau = TaskVector.of({name: DenseUpdate(tools.tensor(*shape), transposed=True)})
    with pytest.raises(ShapeMismatchError, match=r"\(in, out\)"):
        bank.measure(tau)
    other = type(reference)(tools.card("other"), tau)
    with pytest.raises(ShapeMismatchError, match=r"\(in, out\)"):
        ReferenceBank([reference, other])


def test_unknown_references_are_listed(tools):
    """A wrong name is answered with the names there are."""
    bank = bank_of(tools, "low-rank")
    for ask in (lambda: bank["nobody"], lambda: bank.select(["evil", "nobody"])):
        with pytest.raises(
            UnknownReferenceError, match=r"'nobody'.*holds evil, sycophancy, language"
        ):
            ask()
    assert bank.names == ["evil", "sycophancy", "language"]
    assert bank.behaviours == ["evil", "sycophancy"]


def test_a_selection_measures_as_the_whole_does(tools):
    """Selected references keep their numbers; the selection is another bank by fingerprint."""
    bank, tau = bank_of(tools, "mixed", tools.probe()), tools.vector()
    part = bank.select(["language", "evil"])
    assert part.names == ["language", "evil"]
    assert part.fingerprint != bank.fingerprint
    whole = bank.measure(tau).geometries["response"].products
    np.testing.assert_allclose(
        part.measure(tau).geometries["response"].products, whole[:, [2, 0]], rtol=1e-5, atol=1e-5
    )


def test_a_bank_must_be_of_one_piece(tools):
    """No reference, one name twice, two bases, two shapes, or a wild probe are refused."""
    with pytest.raises(BankError, match="at least one reference"):
        ReferenceBank([])
    with pytest.raises(BankError, match="share a name"):
        ReferenceBank([tools.reference(), tools.reference()])
    other = tools.reference("b", base=BaseIdentity(id="x", digest="e" * 64))
    with pytest.raises(BaseMismatchError, match="evil, b were made from different bases"):
        ReferenceBank([tools.reference(), other])
    odd = TaskVector.of({"lm_head.weight": DenseUpdate(torch.ones(4, 8))})
    with pytest.raises(ShapeMismatchError, match=r"lm_head\.weight has shape"):
        ReferenceBank([tools.reference(), type(other)(tools.card("b"), odd)])
    with pytest.raises(NonFiniteError, match="not finite in float16"):
        ReferenceBank([tools.reference()], probe={"lm_head.weight": torch.full((2, 8), 1e6)})
