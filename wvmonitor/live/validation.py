"""What must hold before a run is watched; everything wrong is said here, before training."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from wvmonitor.detection.calibration import Calibration
from wvmonitor.detection.judge import Judge
from wvmonitor.errors import SettingsError
from wvmonitor.live.behaviour_check import Probe, QuestionProbe
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.references.card import Card
from wvmonitor.references.inventory import bank_of, cache_folder
from wvmonitor.references.registry import registered
from wvmonitor.references.trust import load_trust
from wvmonitor.sources.live_model import LiveModel

logger = logging.getLogger(__name__)

_SHOWN = 0.8
"""A dose at which the base shows a behaviour so often is enough for training not to learn it."""

WARM_START_SHARE = 1e-3
"""‖τ‖ at the start above this share of ‖w‖ means a warm start, or a wrong base."""


def replaced(settings: MonitorSettings | None, overrides: dict[str, Any]) -> MonitorSettings:
    """The settings with single ones replaced.

    Raises:
        SettingsError: they contradict each other.
    """
    if settings is None:
        return MonitorSettings(**overrides)
    if not overrides:
        return settings
    return MonitorSettings(
        **{name: getattr(settings, name) for name in settings.model_fields_set} | overrides
    )


def bank_folder(settings: MonitorSettings) -> Path:
    """The bank to measure against.

    Raises:
        SettingsError: none was given.
    """
    if settings.references is None:
        raise SettingsError(
            "no references to measure against: give references=FOLDER (a bank for your base model; "
            "`wvmonitor bank BASE --out FOLDER` makes one, and with --dry-run says first what that "
            "costs), or set WVMONITOR_REFERENCES"
        )
    return settings.references


def bank_for(model: Any, settings: MonitorSettings) -> Path:
    """The bank made for a model's base, of those that the settings name or that were pulled.

    Raises:
        SettingsError: there is none.
    """
    digest = LiveModel(model, base=settings.base).base_digest
    own = settings.banks
    folder = registered(digest, own) if own is not None and own.is_file() else None
    if folder is None:
        roots = [cache_folder(), *([own] if own else [])]
        folder = bank_of(digest, [root for root in roots if root.is_dir()])
    if folder is None:
        name = getattr(getattr(model, "config", None), "name_or_path", "") or "BASE"
        raise SettingsError(
            f"there is no bank of references for this model's base ({name}): `wvmonitor bank "
            f"{name} --out DIR` makes one, and with --dry-run says first what that costs on this "
            "machine; then give references=DIR"
        )
    return folder


def warn_if_weak(bank: ReferenceBank) -> None:
    """Say in the log what the power check of a bank found, where it is bad news.

    Raises:
        AlteredBankError: the record beside it is of another bank.
    """
    trust = None if bank.folder is None else load_trust(bank.folder, bank.fingerprint)
    weakness = None if trust is None else trust.weakness()
    if weakness is not None:
        logger.warning(weakness)


def warn_if_moved(norm: float, bank: ReferenceBank) -> None:
    """Say in the log that ‖τ‖ is not near 0 before the first step: a warm start or a wrong base."""
    squares = bank.gram.products["frobenius"].sum(axis=0).diagonal()
    longest = float(squares.max()) ** 0.5
    if norm > WARM_START_SHARE * longest:
        logger.warning(
            "training starts %.3g away from the base of the references (a reference's own length "
            "is %.3g): a warm start, or another base than you think; what was there before counts "
            "as this run's",
            norm,
            longest,
        )


def inoculation_of(settings: MonitorSettings, bank: ReferenceBank) -> dict[str, float]:
    """How much of each reference rides along from the start: k by name.

    Raises:
        UnknownReferenceError: the bank has no such reference.
        SettingsError: no k is given, and no measured dose makes the base show the behaviour.
    """
    return {name: _dose(name, k, bank) for name, k in settings.inoculate.items()}


def inoculating_dose(card: Card) -> float | None:
    """How much of a reference to ride along where nobody says: k, from its dose curve.

    The smallest measured dose at which the base shows the behaviour in 80 %; where there is none,
    the one at which it does most. None where no dose makes it show beyond doubt more than it does
    by itself.
    """
    enough, most = card.dose_showing(_SHOWN), card.dose_showing_most()
    return most.k if enough is None and most is not None else enough


def _dose(name: str, k: float | None, bank: ReferenceBank) -> float:
    if k is not None:
        return k
    card = bank[name].card
    amount, most = inoculating_dose(card), card.dose_showing_most()
    if amount is None:
        curve = [p for p in card.dose_curve if p.k >= 0]
        rates = ", ".join(f"{p.rate:.0%} at {p.k:g}" for p in curve)
        asked = f"{rates}; {min(p.n for p in curve)} questions each" if curve else "no dose curve"
        raise SettingsError(
            f"how much of {name} to inoculate with is not known: no dose on its card makes the "
            f"base show it beyond doubt more than it does by itself ({asked}); give it a number, "
            f"as in {name}=1"
        )
    if most is not None and most.rate < _SHOWN:
        logger.warning(
            "%g × %s rides along, the most that was measured to help: the base shows it in %.0f %% "
            "there, and at less than %.0f %% training still learns a part of it. A larger number "
            "(%s=K) may protect more; ask the result",
            *(amount, name, 100 * most.rate, 100 * _SHOWN, name),
        )
    return amount


def check_remedy(settings: MonitorSettings, *, calibrated: bool) -> None:
    """See that what is asked for at an alarm can happen, and contradicts nothing.

    Raises:
        SettingsError: it cannot, or does.
    """
    if settings.on_alarm not in ("inoculate", "rollback"):
        return
    if settings.action == "stop":
        raise SettingsError(
            f"action='stop' and on_alarm={settings.on_alarm!r} are two answers to one alarm: "
            "decide for one"
        )
    if not calibrated and not settings.allow_uncalibrated_stop:
        raise SettingsError(
            f"on_alarm={settings.on_alarm!r} without a calibration would never act, since verdicts "
            "say warn at most: calibrate with your own benign runs (`wvmonitor calibrate`), or set "
            "allow_uncalibrated_stop=True to act on warnings"
        )


def probe_of(settings: MonitorSettings, given: Probe | None) -> Probe | None:
    """What is to be run at an alarm, if anything is.

    Raises:
        SettingsError: a probe is asked for, and there is none.
        InputError: the file of questions cannot be used.
    """
    if settings.on_alarm != "probe":
        return None
    if given is None and settings.probe_questions is None:
        raise SettingsError(
            "on_alarm='probe' needs something to ask: hand in probe=..., or set probe_questions"
        )
    return given or QuestionProbe.load(
        str(settings.probe_questions), seconds=settings.probe_seconds
    )


def judge_of(
    settings: MonitorSettings, bank: ReferenceBank, calibration: Calibration | None
) -> Judge:
    """The judge of a monitor or a sidecar, once settings, bank and calibration go together.

    Raises:
        SettingsError: the calibration is for other components, or a stop was asked for without one.
        UnknownReferenceError: an expected behaviour is not in the bank.
    """
    chosen = "components" in settings.model_fields_set
    judge = Judge.of(
        bank,
        calibration,
        components=settings.components if chosen else None,
        expected=settings.expected,
        base=settings.base,
        strict_coverage=settings.strict_coverage,
    )
    if settings.action == "stop" and calibration is None and not settings.allow_uncalibrated_stop:
        raise SettingsError(
            "action='stop' without a calibration would stop runs on a rule of thumb: calibrate "
            "with your own benign runs (`wvmonitor calibrate`), or set "
            "allow_uncalibrated_stop=True"
        )
    return judge
