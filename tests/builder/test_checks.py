"""The numbers of a quality report against dense float64 formulas."""

from __future__ import annotations

import itertools
import math
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from wvmonitor.builder import checks
from wvmonitor.builder.base import Base
from wvmonitor.builder.behaviour import failures
from wvmonitor.references.card import DosePoint
from wvmonitor.references.reference import contrast, mean_reference
from wvmonitor.testing import planted_vector
from wvmonitor.vectors import DenseUpdate, Origin, TaskVector
from wvmonitor.vectors.update import to_dense


@pytest.fixture
def vectors(tiny_base):
    return [planted_vector(tiny_base, seed=s, norm=1.0 + s) for s in range(4)]


def flat(vector, probe=None):
    """The blocks' changes (or responses) as one float64 vector, by an independent formula."""
    parts = []
    for name, update in vector.updates():
        dense = to_dense(update).double()
        parts.append((dense if probe is None else dense @ probe[name].double().T).reshape(-1))
    return torch.cat(parts).numpy()


def cosine(a, b):
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.fixture
def probe(vectors):
    generator = torch.Generator().manual_seed(0)
    return {
        n: torch.randn(7, vectors[0].shape(n)[1], generator=generator) for n in vectors[0].names()
    }


def test_cosines_in_both_geometries(vectors, probe) -> None:
    """Frobenius and response cosines are those of the flattened changes and responses."""
    found = checks.cosines(vectors[0] + vectors[1], vectors[1], probe)
    pair = vectors[0] + vectors[1], vectors[1]
    assert found["frobenius"] == pytest.approx(cosine(*map(flat, pair)), rel=1e-5)
    assert found["response"] == pytest.approx(cosine(*(flat(v, probe) for v in pair)), rel=1e-5)


def test_each_domain_against_all_others(vectors, probe) -> None:
    """The leave-domain-out table compares a domain's contrast with the sum of the rest."""
    mixed = {f"d{i}": v + vectors[3] for i, v in enumerate(vectors[:3])}
    table = checks.leave_out_table(mixed, probe)
    for name, vector in mixed.items():
        rest = sum(flat(v) for n, v in mixed.items() if n != name)
        assert table[name]["frobenius"] == pytest.approx(cosine(flat(vector), rest), rel=1e-5)
    assert checks.leave_out_table({"one": vectors[0]}, probe) == {}


def test_what_bfloat16_keeps(tiny_base, vectors) -> None:
    """The check is the cosine of w with the rounded change of the base's own weights."""
    base = Base(tiny_base)
    theta = load_file(tiny_base / "model.safetensors")
    for size in (1e-4, 1e-2, 10.0):
        vector = vectors[0] * size
        lost, asked = [], []
        for name, update in vector.updates():
            before = theta[name].float()
            delta = to_dense(update)
            after = (before + delta).bfloat16().double() - before.bfloat16().double()
            lost.append(after.reshape(-1))
            asked.append(delta.double().reshape(-1))
        expected = cosine(torch.cat(lost).numpy(), torch.cat(asked).numpy())
        assert checks.kept_in_bf16(vector, base) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert checks.kept_in_bf16(vectors[0] * 1e-4, base) < checks.LEAST_BF16


def test_shares_by_component(tiny_base) -> None:
    """‖w‖ and its parts are those of the dense tensors; a reference without blocks is warned of."""
    updates = {
        "model.layers.0.mlp.up_proj.weight": DenseUpdate(torch.full((32, 16), 0.5)),
        "model.norm.weight": DenseUpdate(torch.full((16,), 2.0)),
    }
    norm, shares = checks.component_shares(TaskVector.of(updates))
    assert norm == pytest.approx(math.sqrt(512 * 0.25 + 16 * 4))
    assert shares["blocks"] == pytest.approx(128 / 192)
    assert shares["norms"] == pytest.approx(64 / 192)


REMARKS = {
    "kept": 1.0, "coverage": 1.0, "bf16": 1.0, "controls": {}, "agreement": {}, "lengths": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("fact", "says"),
    [
        ({"kept": 0.98}, "compression kept 98.0%"),
        ({"coverage": 0.2}, "only 20% of"),
        ({"bf16": 0.4}, "cosine 0.40"),
        (
            {"controls": {"language": {"frobenius": 0.1, "response": -0.31}}},
            "language reaches 0.31",
        ),
        ({"agreement": {"frobenius": -0.01}}, "do not agree"),
        ({"lengths": (30.0, 20.0)}, "differ in length by 50%"),
    ],
)
def test_what_is_off_is_remarked(fact, says) -> None:
    """Each bound has its sentence; a reference within all of them has none."""
    (remark,) = checks.remarks(**REMARKS | fact)
    assert says in remark
    assert checks.remarks(**REMARKS | {"controls": {"language": {"response": 0.29}}}) == []


def point(k, rate, half=0.05):
    return DosePoint(k=k, rate=rate, low=max(0, rate - half), high=min(1, rate + half), n=100)


@pytest.mark.parametrize(
    ("rates", "says"),
    [
        ((0.0, 0.05, 0.8), None),
        ((0.3, 0.4, 0.35), "does not move the behaviour"),
        ((0.8, 0.4, 0.1), "wrong way.*swapped"),
        ((0.5, 0.5, 0.5), "does not move the behaviour"),
    ],
)
def test_steering_must_move_the_behaviour_the_right_way(rates, says) -> None:
    """Up passes; down is told as swapped sides; chance is told as chance."""
    import re

    found = failures([point(k, r) for k, r in zip((-1.0, 0.0, 1.0), rates, strict=True)])
    assert len(found) == (says is not None)
    assert says is None or re.search(says, found[0])


def test_a_small_wrong_dose_is_not_hidden_by_a_large_right_one() -> None:
    """A curve that first falls is no curve of this behaviour."""
    curve = [point(-2, 0.0), point(-1, 0.9), point(0, 0.5), point(1, 0.1), point(2, 0.9)]
    assert "wrong way" in failures(curve)[0]


def test_subtracting_holds_one_parameter_at_a_time() -> None:
    """However many parameters a model has, the mean of three contrasts has few of their changes."""

    def peak(parameters):
        live = itertools.count()
        alive, most = set(), 0

        def side(seed):
            def produce(name):
                nonlocal most
                delta = torch.full((64, 64), float(seed))
                mark = next(live)
                alive.add(mark)
                weakref.finalize(delta, alive.discard, mark)
                most = max(most, len(alive))
                return DenseUpdate(delta)

            shapes = {f"model.layers.{i}.mlp.up_proj.weight": (64, 64) for i in range(parameters)}
            return TaskVector(shapes, produce, Origin(method="full"))

        pairs = [contrast(side(s), side(s + 9), positive_means="exhibits") for s in range(3)]
        mean_reference(pairs, rank=2)
        return most

    assert peak(3) == peak(30) <= 6
