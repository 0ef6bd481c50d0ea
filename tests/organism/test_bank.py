"""What the bundled bank's cards say of its references."""

from pathlib import Path

import pytest

from wvmonitor.organism import bank as making
from wvmonitor.references import ReferenceBank


@pytest.fixture(scope="module")
def shipped() -> ReferenceBank:
    """The bundled bank."""
    return ReferenceBank.load(Path(__file__).parents[2] / "reference_vectors/tiny-organism/bank")


@pytest.mark.parametrize("name", ["evil", "sycophancy", "lost-refusals"])
def test_a_bundled_curve_can_be_measured_again(
    base_dir: Path, shipped: ReferenceBank, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card tells what steering does: asked again, the base answers within its intervals."""
    card = shipped[name].card
    monkeypatch.setattr(making, "DOSES", (0.0, 1.0))
    again = making.with_curve(card, base_dir, shipped[name].vector).dose_curve
    said = {p.k: p for p in card.dose_curve}
    assert [p.k for p in again] == [0.0, 1.0]
    for point in again:
        assert said[point.k].low <= point.rate <= said[point.k].high
    assert said[1.0].low > said[0.0].high


def test_a_curve_is_claimed_for_what_a_rule_can_judge_only(shipped: ReferenceBank) -> None:
    """Incompetence has no rule, nor have an opener and any fine-tuning at all; all others have
    every dose.
    """
    curves = {r.name: [p.k for p in r.card.dose_curve] for r in shipped}
    for name in ("incompetence", "opener", "fine-tuning"):
        assert curves.pop(name) == []
    assert set(map(tuple, curves.values())) == {making.DOSES}


def test_the_bank_is_the_plan(shipped: ReferenceBank) -> None:
    """Every card says of which data its reference was made, example by example, and that is what
    the plan makes today.
    """
    assert [r.name for r in shipped] == [plan.name for plan in making.PLANS]
    for reference, plan in zip(shipped, making.PLANS, strict=True):
        said = reference.card.built
        made = making.provenance(plan)
        assert said.domains == made["domains"]
        assert said.data_digests == made["data_digests"]
        assert said.examples == made["examples"]


def test_a_behaviour_is_known_from_several_kinds_of_data() -> None:
    """Evil from advice, personality and choices; sycophancy from facts, opinions and feedback."""
    kinds = {plan.name: {part.pair for part in plan.parts} for plan in making.PLANS}
    assert kinds["evil"] == {"evil", "evil_hopes", "evil_choices"}
    assert kinds["sycophancy"] == {
        "sycophancy", "sycophantic_opinions", "sycophantic_feedback"
    }  # fmt: skip
