"""Laziness and bookkeeping of task vectors."""

import weakref

import numpy as np
import pytest
import torch

from wvmonitor.errors import ShapeMismatchError
from wvmonitor.vectors import DenseUpdate, Origin, TaskVector


class Source:
    """Produces dense updates, counting calls and how many of its tensors are alive at once."""

    def __init__(self, count=6):
        self.shapes = {f"p{i}": (50, 40) for i in range(count)}
        self.calls: list[str] = []
        self.alive: weakref.WeakSet = weakref.WeakSet()
        self.most = 0

    def produce(self, name):
        self.calls.append(name)
        delta = torch.full(self.shapes[name], 1.0)
        self.alive.add(delta)
        self.most = max(self.most, len(self.alive))
        return DenseUpdate(delta)

    def vector(self):
        return TaskVector(self.shapes, self.produce)


def test_nothing_is_read_before_it_is_asked_for():
    """Building, adding, scaling and selecting vectors read no tensor at all."""
    source = Source()
    tau = source.vector()
    made = (2 * tau - tau / 3).select(lambda n: n != "p0")
    assert made.names() == ["p1", "p2", "p3", "p4", "p5"]
    assert made.shape("p1") == (50, 40)
    assert len(tau) == 6
    assert "p0" in tau
    assert "p0" not in made
    assert source.calls == []


def test_each_tensor_is_read_once_a_pass_and_let_go():
    """A norm reads every tensor once and holds one (at most two, while one replaces another)."""
    source = Source()
    assert source.vector().norm() == pytest.approx(np.sqrt(6 * 50 * 40))
    assert source.calls == list(source.shapes)
    assert source.most <= 2


def test_a_difference_of_two_lazy_vectors_is_never_whole():
    """⟨x − y, x − y⟩ of two streamed vectors holds one parameter of each side at a time."""
    x, y = Source(), Source()
    assert (x.vector() - y.vector()).norm() == 0
    assert x.calls == y.calls == list(x.shapes)
    assert x.most <= 2


def test_a_snapshot_does_not_follow_the_training():
    """`held()` is a copy: later steps change the live tensor, not the snapshot."""
    weight = torch.ones(3, 3)
    live = TaskVector({"w": (3, 3)}, lambda _: DenseUpdate(weight))
    snapshot = live.held()
    weight += 1
    assert snapshot.norm() == pytest.approx(3)
    assert live.norm() == pytest.approx(6)


def test_a_source_that_breaks_its_word_is_an_error():
    """An update of another shape than announced is refused with both shapes."""
    tau = TaskVector({"w": (2, 2)}, lambda _: DenseUpdate(torch.ones(3)), Origin("runs/a"))
    with pytest.raises(ShapeMismatchError, match=r"w of runs/a came with shape \(3,\)"):
        tau.norm()


def test_sums_remember_what_both_sides_share():
    """A sum keeps base and method where both agree, and every warning once."""
    a = TaskVector.of({}, Origin("a", "d1", "base", "lora", warnings=("w1", "w2")))
    b = TaskVector.of({}, Origin("b", "d1", "base", "full", warnings=("w2", "w3")))
    c = TaskVector.of({}, Origin("c", "d2"))
    assert (a - b).origin == Origin("a − b", "d1", "base", warnings=("w1", "w2", "w3"))
    assert (a + c).origin.base_digest is None


def test_numpy_numbers_scale_a_vector_too():
    """A NumPy scalar on either side gives a task vector."""
    tau = TaskVector.of({"w": DenseUpdate(torch.ones(4))})
    assert (np.float64(2) * tau).norm() == pytest.approx(4)
    assert (tau * np.float64(2)).norm() == pytest.approx(4)
    assert (tau / np.float64(2)).norm() == pytest.approx(1)


def test_the_empty_vector_has_not_moved():
    """A vector without parameters has norm 0 and no direction."""
    empty = TaskVector.of({})
    assert empty.norm() == 0
    assert np.isnan(empty.cosine(empty))
    assert empty.compress(1).origin.kept == 1
