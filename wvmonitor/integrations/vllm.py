"""A gate inside vLLM: an adapter is served only if it was judged `ok`, and fails closed.

vLLM asks its resolvers for LoRA adapters that it does not know, by the name in a request
(`vllm.lora.resolver.LoRAResolver`). This one looks in a folder, copies the adapter's two files,
judges the copy with everything strict, and hands the copy to vLLM: what was judged is what is
loaded. Anything else than `ok` for every behaviour (a warning, an unknown, an error of any kind)
is no adapter, as far as vLLM can tell; the log says why.

It is an entry point of the group `vllm.general_plugins`, and does nothing until
`WVMONITOR_VLLM_ADAPTERS` names the folder. Bank, base and calibration are the monitor's own
settings (`WVMONITOR_REFERENCES`, `WVMONITOR_BASE`, `WVMONITOR_CALIBRATION`).
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import logging
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wvmonitor.detection.calibration import Calibration
from wvmonitor.detection.judgement import State
from wvmonitor.errors import InputError, MissingPathError, SettingsError, WVMonitorError
from wvmonitor.files.documents import read_json
from wvmonitor.files.storage import open_storage, shown
from wvmonitor.outputs.scan_record import CheckpointResult
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.references.calibrated import calibration_of
from wvmonitor.sources.adapters.config import starts_at_base

ADAPTERS = "WVMONITOR_VLLM_ADAPTERS"
NAME = "wvmonitor"
_FILES = ("adapter_config.json", "adapter_model.safetensors")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,199}")
_NOT_PLAIN = (
    *("rank_pattern", "alpha_pattern", "use_dora", "lora_bias"),
    *("modules_to_save", "trainable_token_indices"),
)
_PIECE = 1 << 20

logger = logging.getLogger(__name__)


class Gate:
    """Judges the adapters of a folder, each content once, and keeps a copy of what is ok.

    Not to be shared between processes; calls from several threads wait for each other.
    """

    def __init__(
        self,
        adapters: Path,
        bank: ReferenceBank,
        base: Path,
        calibration: Calibration | None = None,
        copies: Path | None = None,
    ) -> None:
        """Begin with nothing judged.

        An adapter's name is its folder's. Without a calibration the published rules judge; `copies`
        must be readable by vLLM's workers, and is a new temporary folder by default.

        Raises:
            MissingPathError: there is no such folder.
            BaseMismatchError: the bank is of another base.
        """
        from wvmonitor.sources.identity import base_digest

        if not adapters.is_dir():
            raise MissingPathError(f"there is no folder {shown(adapters)} of adapters: make it")
        bank.relation_to(base_digest(base))
        self._adapters, self._bank, self._base = adapters, bank, base
        self._calibration = calibration
        self._copies = (
            Path(tempfile.mkdtemp(prefix="wvmonitor-vllm-")) if copies is None else copies
        )
        self._judged: dict[str, Path | None] = {}
        self._lock = threading.Lock()

    def admitted(self, name: str) -> Path | None:
        """The folder of the judged copy of an adapter that is ok; None for any other.

        The name comes from a stranger's request.
        """
        if not _PLAIN_NAME.fullmatch(name):
            logger.error("the adapter %s is not loaded: that is no plain name", shown(name))
            return None
        try:
            with self._lock:
                return self._admitted(name)
        except Exception as error:  # noqa: BLE001  whatever went wrong, nothing was judged ok
            logger.error("the adapter %s is not loaded: %s", shown(name), shown(error, 1000))  # noqa: TRY400
            return None

    def _admitted(self, name: str) -> Path | None:
        source = self._adapters / name
        if not source.is_dir():
            return None  # another resolver's, or nobody's
        if source.resolve().parent != self._adapters.resolve():
            raise InputError(f"{shown(source)} is a link that leads out of the folder of adapters")
        staging = Path(tempfile.mkdtemp(dir=self._copies))
        try:
            digest = _copy(source, staging)
            if digest not in self._judged:
                why = self._objection(staging)
                if why is not None:
                    logger.error("the adapter %s is not loaded: %s", shown(name), shown(why, 2000))
                copy = self._copies / digest
                if why is None and not copy.exists():
                    staging.rename(copy)
                self._judged[digest] = copy if why is None else None
            return self._judged[digest]
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _objection(self, folder: Path) -> str | None:
        """Why an adapter is not served; None where it is ok in every respect."""
        from wvmonitor.scan.scan import scan

        if (other := _served_otherwise(folder)) is not None:
            return other
        results = list(
            scan([folder], self._bank, base=self._base, calibration=self._calibration, strict=True)
        )
        if len(results) != 1:
            return f"it is {len(results)} adapters, where one was asked for"
        if (failure := results[0].error) is not None:  # it may pass, so it is not remembered
            raise InputError(f"{failure.type}: {failure.message}")
        return objection(results[0])


def _served_otherwise(folder: Path) -> str | None:
    """What of an adapter vLLM may load otherwise than PEFT merges it; None where nothing is.

    vLLM's `PEFTHelper` (vllm/lora/peft_helper.py) has long ignored per-module ranks and alphas, and
    adds B·A to the base as it stands, whatever the adapter started from.
    """
    config = read_json(folder / "adapter_config.json")
    odd = [name for name in _NOT_PLAIN if config.get(name)]
    if not starts_at_base(config.get("init_lora_weights", True)):
        odd.append("init_lora_weights")
    if not odd:
        return None
    return (
        f"vLLM may load it otherwise than it is judged ({', '.join(odd)} in its "
        "adapter_config.json): save it as plain LoRA"
    )


def objection(result: CheckpointResult) -> str | None:
    """Why a result is no `ok`; None where it is one."""
    if result.error is not None:
        return f"{result.error.type}: {result.error.message}"
    if not result.references:
        return "the bank holds no behaviour to judge by"
    bad = [
        f"{n} {r.verdict}: {r.reason}" for n, r in result.references.items() if r.verdict != "ok"
    ]
    if bad or result.verdict != State.OK:
        return "; ".join(bad) or str(result.verdict)
    return None


def resolver(gate: Gate, base_class: type, request_class: Callable[..., Any]) -> Any:
    """A resolver of vLLM's that lets through what a gate admits.

    The classes are `vllm.lora.resolver.LoRAResolver` and `vllm.lora.request.LoRARequest`.
    """

    async def resolve_lora(_self: Any, base_model_name: str, lora_name: str) -> Any:
        folder = await asyncio.to_thread(gate.admitted, lora_name)
        if folder is None:
            return None
        number = int(hashlib.sha256(f"{lora_name}\0{folder.name}".encode()).hexdigest()[:8], 16)
        logger.info(
            "the adapter %s is ok, and is loaded on %s", shown(lora_name), shown(base_model_name)
        )
        return request_class(
            lora_name=lora_name, lora_int_id=(number & 0x7FFFFFFE) + 1, lora_path=str(folder)
        )

    made = type("WVMonitorResolver", (base_class,), {"resolve_lora": resolve_lora})
    return made()


def register() -> None:
    """The entry point: give vLLM the resolver, if `WVMONITOR_VLLM_ADAPTERS` is set.

    Raises:
        SettingsError: bank or base are not set.
        WVMonitorError: bank, base or calibration cannot be used: vLLM does not start.
    """
    adapters = os.environ.get(ADAPTERS)
    if not adapters:
        return
    from wvmonitor.live.settings import MonitorSettings

    settings = MonitorSettings()
    if settings.references is None or settings.base is None:
        raise SettingsError(
            f"{ADAPTERS} is set, and WVMONITOR_REFERENCES or WVMONITOR_BASE is not: name the bank "
            "and the folder of the model that is served, or unset it"
        )
    bank = ReferenceBank.load(settings.references)
    calibration = calibration_of(bank, settings.calibration)
    if calibration is None:
        logger.warning("adapters are judged by a rule of thumb: the bank has no calibration")
    gate = Gate(Path(adapters), bank, settings.base, calibration)
    registry = importlib.import_module("vllm.lora.resolver")
    requests = importlib.import_module("vllm.lora.request")
    known = registry.LoRAResolverRegistry
    others = sorted(set(known.get_supported_resolvers()) - {NAME})
    if others:
        logger.warning(
            "vLLM asks other resolvers too (%s), which load adapters that nobody has judged: leave "
            "only wvmonitor in VLLM_PLUGINS",
            ", ".join(others),
        )
    known.register_resolver(NAME, resolver(gate, registry.LoRAResolver, requests.LoRARequest))


def _copy(source: Path, target: Path) -> str:
    """Copy an adapter's files, and nothing else; gives the digest of what was copied.

    Raises:
        WVMonitorError: a file is missing, irregular, or changes meanwhile.
    """
    whole = hashlib.sha256()
    for name in _FILES:
        try:
            storage = open_storage(source / name, source)
        except WVMonitorError as error:
            raise InputError(f"{error} (vLLM is given {' and '.join(_FILES)} only)") from error
        try:
            own = hashlib.sha256()
            with (target / name).open("xb") as file:
                for start in range(0, storage.size, _PIECE):
                    piece = bytearray(min(_PIECE, storage.size - start))
                    storage.read_into(memoryview(piece), start)
                    own.update(piece)
                    file.write(piece)
        finally:
            storage.close()
        whole.update(f"{name}\0{own.hexdigest()}\n".encode())
    return whole.hexdigest()
