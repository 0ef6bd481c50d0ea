"""The log-probability gap, against each answer by itself in float64."""

from __future__ import annotations

import math

import pytest
import torch

from wvmonitor.builder import gap
from wvmonitor.builder.contrasts import default_folder, read_contrasts
from wvmonitor.builder.gap import Gap


@pytest.fixture(scope="module")
def pairs():
    (contrast,) = read_contrasts(default_folder("tiny-organism"), ("harmful-advice",))
    return contrast.tuning[:7]


def alone(base, example):
    """Mean log p of one answer's tokens, without batch or padding, in float64."""
    ids, labels = base.encode(example.messages, example.answer)
    with torch.no_grad():
        logits = base.model.double()(torch.tensor([ids])).logits[0]
    total, count = 0.0, 0
    for place, label in enumerate(labels):
        if label != -100:
            row = logits[place - 1]
            total += float(row[label] - row.logsumexp(0))
            count += 1
    return total / count


def test_it_is_the_mean_log_probability_of_the_answers_own_tokens(base, pairs):
    """Padding, batches and the question's own tokens change nothing."""
    examples = [side for p in pairs for side in (p.positive, p.negative)]
    found = gap.log_probabilities(base, base.model, examples)
    measured = gap.gap(base, base.model, pairs)
    expected = [alone(base, e) for e in examples]
    base.release()
    assert found == pytest.approx(expected, abs=1e-5)
    differences = [a - b for a, b in zip(expected[::2], expected[1::2], strict=True)]
    assert measured.each == pytest.approx(differences, abs=1e-5)
    assert measured.mean == pytest.approx(sum(differences) / len(differences), abs=1e-5)
    assert measured.shows == sum(d > 0 for d in differences)


def test_a_contrast_that_moves_nothing_or_the_wrong_way_fails():
    """Only a gap that grows from −w to +w beyond two standard errors, pair by pair, passes."""
    still = Gap((0.1, -0.2, 0.05, 0.0))
    up = Gap(tuple(v + d for v, d in zip(still.each, (0.4, 0.5, 0.45, 0.6), strict=True)))
    noisy = Gap(tuple(v + d for v, d in zip(still.each, (0.9, -0.8, 0.7, -0.6), strict=True)))
    assert gap.failures({-1.0: still, 0.0: still, 1.0: up}) == []
    assert "swapped" in gap.failures({-1.0: up, 0.0: still, 1.0: still})[0]
    assert "not beyond chance" in gap.failures({-1.0: still, 1.0: noisy})[0]
    moved, error = up.over(still)
    values = [0.4, 0.5, 0.45, 0.6]
    mean = sum(values) / 4
    assert moved == pytest.approx(mean)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / 3)
    assert error == pytest.approx(spread / 2)


def test_the_curve_steers_the_base_and_leaves_it_as_it_was(base, pairs):
    """Each dose is asked of θ + k·w; afterwards the model is the base again, to the last bit."""
    from wvmonitor.references.bank import ReferenceBank
    from wvmonitor.references.bundled import bundled_path

    vector = ReferenceBank.load(bundled_path("tiny-organism", "bank"))["evil"].vector
    before = {n: p.clone() for n, p in base.model.named_parameters()}
    gaps = gap.gaps_by_dose(base, vector, pairs, (-1.0, 0.0, 1.0))
    points = gap.dose_curve(gaps)
    assert all(torch.equal(p, before[n]) for n, p in base.model.named_parameters())
    assert gaps[-1.0].mean < gaps[0.0].mean < gaps[1.0].mean
    assert [p.k for p in points] == [-1.0, 0.0, 1.0]
    assert points[2].rate == gaps[1.0].shows / len(pairs)
    assert points[2].low <= points[2].rate <= points[2].high
