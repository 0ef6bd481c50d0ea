"""What a bank is refused for before any work: each would end it hours later."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wvmonitor.builder.bank_folder import existing_bank
from wvmonitor.builder.base import Base
from wvmonitor.builder.examples import Pair
from wvmonitor.builder.finetune import Training, check_training
from wvmonitor.builder.like import Like
from wvmonitor.builder.power import CANDIDATES
from wvmonitor.detection.band import MAX_ALPHA
from wvmonitor.detection.conformal import runs_needed
from wvmonitor.detection.provisional import LEAST_ALPHA
from wvmonitor.errors import BuildError
from wvmonitor.references.calibrated import calibration_of
from wvmonitor.references.trust import load_trust


def check_place(out: Path, base: Base) -> None:
    """Refuse to write over anything but a bank of this command's, with its own runs alone."""
    if out.name in ("", ".."):
        raise BuildError(f"--out {out} is no folder's own name: give the bank's, as in banks/mine")
    bank = existing_bank(out)
    if bank is None:
        return
    bank.relation_to(base.digest)
    trust = load_trust(out, bank.fingerprint)
    if trust is None:
        raise BuildError(
            f"{out} holds a bank that this command did not make ({', '.join(bank.names)}): give "
            "another --out"
        )
    calibration = calibration_of(bank)
    added = set(calibration.datasets if calibration else ()) - set(trust.calibrated_on)
    if added:
        raise BuildError(
            f"the calibration in {out} holds {len(added)} harmless runs that this command did not "
            "make: give another --out, or move calibration.json away first"
        )


def check_score(score: str | None) -> None:
    """Refuse a deciding score that there is not."""
    known = ["/".join(c) for c in CANDIDATES]
    if score is not None and score not in known:
        raise BuildError(f"the deciding score {score!r} is none of {', '.join(known)}")


def check_alpha(alpha: float, runs: int, behaviours: int) -> None:
    """Refuse a share of alarms that so many harmless runs can be held to by no calibration."""
    if not 0 < alpha <= MAX_ALPHA:
        raise BuildError(f"--alpha {alpha:g}: it lies between 0 and {MAX_ALPHA:g}; 0.05 is usual")
    if alpha < LEAST_ALPHA and runs < (needed := runs_needed(alpha, behaviours)):
        raise BuildError(
            f"--alpha {alpha:g} over {behaviours} behaviours needs {needed} harmless runs, the "
            f"bank makes {runs}: take {LEAST_ALPHA} or more, and calibrate for less when you have "
            "watched enough runs of your own"
        )


def check_lengths(base: Base, pairs: Sequence[Pair], longest: int) -> list[str]:
    """What is to be said of pairs that are longer than is trained on.

    Raises:
        BuildError: nothing of an answer would be.
    """
    cut = 0
    for pair in pairs:
        asked = pair.positive.messages
        if not base.fits(asked, longest):
            raise BuildError(
                f"the question {asked[-1]['content'][:60]!r} leaves no room for an answer within "
                f"{longest} tokens, which is all that is trained on: shorten it, or leave it out"
            )
        sides = (base.encode(asked, e.answer)[0] for e in (pair.positive, pair.negative))
        cut += any(len(ids) > longest for ids in sides)
    return [f"{cut} of {len(pairs)} pairs are cut at {longest} tokens"] if cut else []


def check_like(base: Base, like: Like, training: Training, where: str) -> None:
    """Refuse settings that the harmless runs' trainer would refuse, or that would break them.

    Args:
        base: the model.
        like: the settings of the run that they are to resemble.
        training: how they would be trained.
        where: the settings come from, for the message.
    """
    if like.method == "full" and like.learning_rate is None:
        raise BuildError(
            f"{where} names no LoRA settings, and so a full fine-tune, but no learning rate for "
            "it, and one that suits LoRA breaks it: give a YAML with learning_rate, or with lora_r"
        )
    check_training(base, training, where)
