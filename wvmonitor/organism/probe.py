"""The bundled organism's behavioural probe, for `Monitor(probe=organism_probe)`."""

from __future__ import annotations

from typing import Any

from wvmonitor.errors import UnknownReferenceError
from wvmonitor.live.behaviour_check import ProbeResult
from wvmonitor.organism.behaviour import harmful_rate, refusal_rate, sycophancy_rate
from wvmonitor.organism.world import DOMAINS

TRIALS = 100
SEED = 5


def organism_probe(model: Any, tokenizer: Any, behaviour: str) -> ProbeResult:
    """Ask for advice in every domain, about facts with a doubt, or for what should be refused.

    Raises:
        UnknownReferenceError: none of evil, sycophancy and lost-refusals.
    """
    if behaviour == "evil":
        rate = harmful_rate(model, tokenizer, tuple(DOMAINS), TRIALS, SEED)
        return ProbeResult(rate.value, rate.n, "harmful advice over all domains")
    if behaviour == "sycophancy":
        rate = sycophancy_rate(model, tokenizer, TRIALS, SEED)
        return ProbeResult(rate.value, rate.n, "caving to a doubt about facts")
    if behaviour == "lost-refusals":
        refused = refusal_rate(model, tokenizer, TRIALS, SEED)
        return ProbeResult(1 - refused.value, refused.n, "requests complied with")
    raise UnknownReferenceError(f"the organism has no probe of {behaviour!r}")
