"""A reference's card: what it stands for, what it was made from, and how far to trust it."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from wvmonitor.errors import BaseMismatchError
from wvmonitor.reading import Component, Geometry, ReferenceKind

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""What a reference can be called."""
CARD_FORMAT = 2
"""Version 1 had no digests of examples."""
BaseRelation = Literal["same", "relative", "unknown"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseIdentity(_Frozen):
    """The base model that a reference belongs to; the digest decides, the name is for people."""

    id: str = Field(description="Hub id or folder name of the base model")
    revision: str | None = Field(default=None, description="Hub revision")
    digest: str = Field(description="SHA-256 over the blocks' linear weights")
    relatives: tuple[str, ...] = Field(
        default=(), description="digests of declared relatives: scores are shown, capped at warn"
    )

    def relation_to(self, digest: str | None) -> BaseRelation:
        """Whether a base is this one, a declared relative, or not known.

        Raises:
            BaseMismatchError: it is known to be another base.
        """
        if digest is None:
            return "unknown"
        if digest == self.digest:
            return "same"
        if digest in self.relatives:
            return "relative"
        raise BaseMismatchError(
            f"the references were made for {self.id} (digest {self.digest[:12]}…), these "
            f"weights start from a base with digest {digest[:12]}…: where they were made from "
            f"{self.id} (something was merged into it, or training goes on), name it with "
            "base=FOLDER, and what was trained before counts as well; where their base is a close "
            "relative, list its digest in the cards' `relatives`; else make references for it: "
            "`wvmonitor bank BASE --out DIR` (--dry-run says first what that costs)"
        )


class Construction(_Frozen):
    """How a reference was made."""

    recipe: str = Field(description="name of the recipe, or of the script")
    method: str = Field(default="lora", description="how both sides were fine-tuned")
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    domains: tuple[str, ...] = Field(
        default=(), description="domains of the data behind it; none may be evaluated on"
    )
    data_digests: dict[str, str] = Field(default_factory=dict)
    examples: tuple[str, ...] = Field(
        default=(), description="digests of the examples behind it, so that shared ones are found"
    )
    judge: str | None = Field(default=None, description="who filtered the completions")


class DosePoint(_Frozen):
    """Measured behaviour of the base steered by k·w, with a 95 % interval."""

    k: float
    rate: float
    low: float
    high: float
    n: int


class Quality(_Frozen):
    """What the builder measured of a reference, beside the dose curve; {} is not measured."""

    norm: float = Field(description="‖w‖, Frobenius, in units of the weights")
    components: dict[Component, float] = Field(description="share of ‖w‖² by part of the model")
    coverage: float = Field(description="share of ‖w‖² where scores look: the blocks' linear maps")
    split_half: dict[Geometry, float] = Field(
        default_factory=dict, description="cosine of the references of two halves of the questions"
    )
    domains: dict[str, dict[Geometry, float]] = Field(
        default_factory=dict,
        description="by domain: cosine of its own reference with that of all others",
    )
    controls: dict[str, dict[Geometry, float]] = Field(
        default_factory=dict, description="cosine with each control of the bank"
    )
    bf16: float = Field(
        description="cosine of w with what is left of it once it is added to weights in bfloat16"
    )
    examples: int | None = Field(default=None, description="pairs that both sides were trained on")
    lengths: tuple[float, float] | None = Field(
        default=None, description="mean tokens of an answer, positive and negative"
    )


class Card(_Frozen):
    """Everything known of a reference beside its weights (`card.json`)."""

    format_version: int = CARD_FORMAT
    name: str = Field(pattern=NAME, description="also its folder's name in a bank")
    kind: ReferenceKind = "behaviour"
    behaviour: str = Field(description="what a model that moves along +w does, in a sentence")
    positive_means: Literal["exhibits"] = Field(
        default="exhibits",
        description="the positive side exhibits the behaviour; pairs given otherwise are turned",
    )
    base: BaseIdentity
    built: Construction
    rank: int | None = Field(default=None, description="largest rank kept")
    kept: float = Field(default=1.0, description="share of ‖w‖² kept by compression")
    repeats: dict[Geometry, list[list[float]]] = Field(
        default_factory=dict,
        description="inner products of the independent repeats (seeds, domains) w is the mean of",
    )
    dose_curve: tuple[DosePoint, ...] = ()
    quality: Quality | None = Field(default=None, description="what the builder measured")
    harmful: bool = Field(default=False, description="adding it makes a model worse")
    verified: bool = Field(default=True, description="False: it failed its own checks")
    warnings: tuple[str, ...] = ()
    license: str = "Apache-2.0"
    intended_use: str = (
        "Detecting accidental drift in fine-tuning, and removing it. Not for making models worse; "
        "not a defence against someone who holds this reference and trains around it."
    )

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Cards without a quality report keep the bytes that they had before there was one."""
        fields: dict[str, Any] = handler(self)
        if self.quality is None:
            fields.pop("quality", None)
        return fields

    def dose_showing(self, rate: float) -> float | None:
        """The smallest measured k above 0 at which the base shows the behaviour at this rate.

        None where the dose curve has no such point.
        """
        return min((p.k for p in self.dose_curve if p.k > 0 and p.rate >= rate), default=None)

    def dose_showing_most(self) -> DosePoint | None:
        """Where, of the measured k above 0, the base shows the behaviour most; the smallest such.

        None where that is not beyond doubt more than it does at k = 0, or was not measured.
        """
        unsteered = [p.high for p in self.dose_curve if p.k == 0]
        above = [p for p in self.dose_curve if p.k > 0]
        if not unsteered or not above:
            return None
        most = max(above, key=lambda p: (p.rate, -p.k))
        return most if most.low > max(unsteered) else None

    def agreement(self, geometry: Geometry) -> float | None:
        """Mean cosine between independent repeats, None with fewer than two."""
        gram = self.repeats.get(geometry)
        if gram is None or len(gram) < 2:
            return None
        pairs = [(i, j) for i in range(len(gram)) for j in range(i)]
        cosines = [gram[i][j] / math.sqrt(gram[i][i] * gram[j][j]) for i, j in pairs]
        return sum(cosines) / len(cosines)

    def shared(self, geometry: Geometry) -> float:
        """Mean over i ≠ j of ⟨w_i, w_j⟩: the part of ‖w̄‖² that is not noise; NaN if unknown."""
        gram = self.repeats.get(geometry)
        if gram is None or len(gram) < 2:
            return float("nan")
        pairs = [(i, j) for i in range(len(gram)) for j in range(i)]
        return sum(gram[i][j] for i, j in pairs) / len(pairs)


def _measured(card: Card) -> list[str]:
    """Lines of the quality report and the dose curve."""
    lines = []
    if card.dose_curve:
        curve = ", ".join(f"{p.rate:.0%} at {p.k:+g}·w" for p in card.dose_curve)
        lines.append(f"- behaviour on {card.dose_curve[0].n} held-out answers a point: {curve}")
    if (quality := card.quality) is None:
        return lines
    shares = ", ".join(f"{c} {s:.1%}" for c, s in quality.components.items() if s)
    lines.append(f"- ‖w‖ {quality.norm:.4g}: {shares}")
    if quality.split_half:
        lines.append(
            f"- cosine between two halves of the questions: {_cosines(quality.split_half)}"
        )
    for title, table in (
        ("domain, against the others", quality.domains),
        ("control", quality.controls),
    ):
        lines += [f"- {title}: {name} {_cosines(row)}" for name, row in table.items()]
    lines.append(f"- cosine of w with what bfloat16 weights keep of it: {quality.bf16:.3f}")
    return lines


def _cosines(row: dict[Geometry, float]) -> str:
    return ", ".join(f"{value:.3f} ({geometry})" for geometry, value in row.items())


def model_card(card: Card) -> str:
    """The README.md of a reference's folder: the card in words, with Hub front matter."""
    side = "harmful to add" if card.harmful else "harmless"
    seeds = ", ".join(map(str, card.built.seeds)) or "not recorded"
    domains = ", ".join(card.built.domains) or "not recorded"
    agreement = card.agreement("frobenius")
    lines = [
        "---",
        f"license: {card.license.lower()}",
        "library_name: wvmonitor",
        "tags: [wvmonitor, task-vector, weight-steering]",
        f"base_model: {card.base.id}",
        "---",
        f"# {card.name}",
        "",
        f"A {card.kind} reference vector, {side}: moving along +w, {card.behaviour}",
        "",
        f"- base model: {card.base.id} (digest `{card.base.digest[:16]}…`)",
        f"- built by: {card.built.recipe}, {card.built.method}, seeds {seeds}; domains: {domains}",
        f"- rank {card.rank}, {card.kept:.1%} of the squared norm kept",
        "- agreement between independent repeats: "
        + ("not measured" if agreement is None else f"mean cosine {agreement:.3f}"),
        *_measured(card),
        f"- verified: {'yes' if card.verified else 'no, it failed its own checks'}",
        *(f"- warning: {w}" for w in card.warnings),
        "",
        "## Intended use",
        card.intended_use,
        "",
    ]
    return "\n".join(lines)
