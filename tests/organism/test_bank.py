"""What the bundled bank's cards say of its references."""

from pathlib import Path

import pytest

from wvmonitor.organism import bank as making
from wvmonitor.references import ReferenceBank


@pytest.fixture(scope="module")
def shipped() -> ReferenceBank:
    """The bundled bank."""
    return ReferenceBank.load(Path(__file__).parents[2] / "reference_vectors/tiny-organism/bank")


@pytest.mark.parametrize("name", ["evil", "sycophancy"])
def test_a_bundled_curve_can_be_measured_again(
    base_dir: Path, shipped: ReferenceBank, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card tells what steering does: asked again, the base answers within its intervals."""
    card = shipped[name].card
    monkeypatch.setattr(making, "DOSES", (0.0, 0.4))
    again = making.with_curve(card, base_dir, shipped[name].vector).dose_curve
    said = {p.k: p for p in card.dose_curve}
    assert [p.k for p in again] == [0.0, 0.4]
    for point in again:
        assert said[point.k].low <= point.rate <= said[point.k].high
    assert said[0.4].low > said[0.0].high


def test_a_curve_is_claimed_for_what_a_rule_can_judge_only(shipped: ReferenceBank) -> None:
    """Incompetence has no rule, and its card no curve; all others have every dose."""
    curves = {r.name: [p.k for p in r.card.dose_curve] for r in shipped}
    assert curves.pop("incompetence") == []
    assert set(map(tuple, curves.values())) == {making.DOSES}
