"""An adapter folder: its configuration and its tensors, all of which must be accounted for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wvmonitor.errors import AdapterError, InputError, KeyMismatchError, MissingPathError
from wvmonitor.files.checkpoint_files import CheckpointFiles, open_checkpoint
from wvmonitor.files.documents import read_json
from wvmonitor.files.storage import Location, is_url, joined, list_folder, local_path, shown
from wvmonitor.files.weight_names import weights_below
from wvmonitor.sources import identity
from wvmonitor.sources.folder import ModelFolder, check_finite, is_finite
from wvmonitor.sources.names import step_of

_PREFIX = "base_model.model."
# Bytes of a small tensor, and of those that are read as one: they stay in a core's cache.
_SMALL, _TOGETHER = 1 << 18, 1 << 20
_WRAPPED = re.compile(r"(?:(?:module|_orig_mod|_fsdp_wrapped_module)\.)*(?:base_model\.model\.)+")


class AdapterFolder:
    """A PEFT adapter as saved by `save_pretrained`.

    Attributes:
        where: how messages name the weights.
        config: adapter_config.json.
        config_where: how messages name it.
        kind: its PEFT type, upper case.
        base: the folder of the base, if it was given or the configuration names a local one.
        unmeasurable: why its tensors are not the whole change since that base; None if they are.
    """

    def __init__(self, path: Location, base: Location | None = None) -> None:
        """Open the folder; headers are checked, no tensor is read.

        Raises:
            MissingPathError: it is not there, or holds no adapter.
            UnsafeFileError: its weights are a pickle.
            MalformedFileError: a file breaks its format.
            AdapterError: the configuration does not say which kind of adapter it is.
        """
        self.path = path
        self.config = adapter_config(path)
        self.config_where = f"adapter_config.json of {shown(path)}"
        kind = self.config.get("peft_type")
        if not isinstance(kind, str):
            raise AdapterError(
                f"peft_type must name the kind of adapter, got {shown(kind, 60)} "
                f"({self.config_where}): re-save the adapter with PEFT"
            )
        self.kind = kind.upper()
        self.files: CheckpointFiles = open_checkpoint(path, stem="adapter_model")
        self.where = self.files.where
        # also where a PEFT model is inside another, or a trainer's wrapper around it
        wrapped = {key: _WRAPPED.match(key) for key in self.files.names()}
        self._short = {key[match.end() :]: key for key, match in wrapped.items() if match}
        self.step = step_of(path)
        self.base: ModelFolder | None = None
        self.base_digest: str | None = None
        self.unmeasurable: str | None = None
        self.warnings: list[str] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._ahead: dict[str, Tensor] = {}
        self._last: str | None = None
        self._open_base(base)

    @property
    def base_name(self) -> str | None:
        """What the configuration calls the base."""
        name = self.config.get("base_model_name_or_path")
        return name if isinstance(name, str) and name else None

    def keys(self) -> dict[str, str]:
        """Keys of the tensors without PEFT's prefix, mapped to the keys as they are in the file.

        Raises:
            AdapterError: a key has not PEFT's prefix.
        """
        strange = sorted(set(self.files.names()) - set(self._short.values()))
        if strange:
            raise AdapterError(
                f"the key {shown(strange[0])} of {self.where} does not begin with {_PREFIX!r}, so "
                "the parameter it changes is not known: re-save the adapter with PEFT"
            )
        return self._short

    def has(self, key: str) -> bool:
        """Whether there is a tensor under a key without prefix."""
        return self._full(key) in self.files

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of the tensor under a key without prefix."""
        if key not in self._shapes:  # asked for several times of each of thousands of modules
            self._shapes[key] = tuple(self.files.info(self._full(key)).shape)
        return self._shapes[key]

    def read(self, key: str) -> Tensor:
        """The tensor under a key without prefix.

        Raises:
            NonFiniteError: it holds NaN or infinity.
        """
        return self.factor(key).to(self.files.info(self._full(key)).dtype)

    def factor(self, key: str) -> Tensor:
        """The same numbers as `read` gives, which may come in float32 where the file has 16 bits.

        Raises:
            NonFiniteError: as `read` says.
        """
        full = self._full(key)
        before, self._last = self._last, full
        if full in self._ahead:
            return self._ahead.pop(full)
        info = self.files.info(full)
        if not info.dtype.is_floating_point:
            raise AdapterError(
                f"{shown(full)} of {self.where} is {info.dtype}, where weights were expected: "
                "re-save the adapter unquantised"
            )
        if info.size <= _SMALL:
            self._ahead = self._read_ahead(full) if self.files.follows(full, before) else {}
        found = self._ahead.pop(full, None)
        return check_finite(self.files.read(full), full, self.where) if found is None else found

    def _read_ahead(self, full: str) -> dict[str, Tensor]:
        """Small tensors from this one on, read and checked as one; none where one is not finite.

        An adapter of a mixture of experts has tens of thousands: a read and a sum for each take
        longer than their bytes.
        """
        whole, run = self.files.read_run(full, _TOGETHER)
        return run if is_finite(whole) else {}

    def needed_base(self, why: str) -> ModelFolder:
        """The base.

        Raises:
            AdapterError: there is none at hand.
        """
        if self.base is None:
            raise AdapterError(
                f"{self.where} needs its base model: {why}; give the folder of "
                f"{shown(self.base_name or 'the base')} as base (--base at the command line)"
            )
        return self.base

    def _full(self, key: str) -> str:
        # tensors that several modules share have the shorter prefix, and no module
        return key if key.startswith("base_model.") else self._short.get(key, _PREFIX + key)

    def _open_base(self, base: Location | None) -> None:
        name = self.base_name
        if name is not None and (is_url(name) or not local_path(name).is_dir()):
            name = None
        if base is not None:
            self.base = identity.open_base(base)
            self.base_digest = identity.base_digest(base)
            if name is not None and self._is_another_base(name, base):
                self.unmeasurable = (
                    f"the adapter was trained on {shown(name)}, as its configuration says, whose "
                    "weights are not those of the base that was given: what was trained into them "
                    "is not in the adapter. Merge the adapter into that model and judge the whole, "
                    "or correct base_model_name_or_path"
                )
            return
        if name is None:
            return
        try:
            self.base = ModelFolder(name)
            self.base_digest = identity.base_digest(name)
        except InputError as error:
            # The configuration only suggests this folder: without it, factors can still be read.
            self.base = None
            self.warnings.append(f"the base named by the adapter could not be read: {error}")

    def _is_another_base(self, name: str, given: Location) -> bool:
        """Whether a local folder holds other weights than the base; False if none can be read."""
        known = {local_path(p).resolve() for p in (given, self.path) if not is_url(p)}
        if local_path(name).resolve() in known:
            return False
        try:
            # a folder with an adapter in it is loaded with that adapter
            is_adapted = "adapter_config.json" in (list_folder(name) or ())
            return is_adapted or identity.base_digest(name) != self.base_digest
        except InputError:
            return False


class InitialState:
    """The state of an adapter when training started, where that was not zero.

    Holds tensors by keys without PEFT's prefix, from a folder or from memory.
    """

    def __init__(self, state: Location | Mapping[str, Tensor]) -> None:
        """Open a folder saved at step 0, or take the tensors of `LiveModel.initial_state`."""
        self._folder: AdapterFolder | None = None
        self._held: Mapping[str, Tensor] = {}
        if isinstance(state, Mapping):
            self.where = "the initial state"
            self._held = {_WRAPPED.sub("", key): t for key, t in state.items()}
        else:
            self._folder = AdapterFolder(state)
            self.where = self._folder.where

    def __contains__(self, key: object) -> bool:
        return key in self._held or (self._folder is not None and self._folder.has(str(key)))

    def read(self, key: str) -> Tensor:
        """One tensor.

        Raises:
            KeyMismatchError: the initial state lacks it.
            NonFiniteError: it holds NaN or infinity.
        """
        if key not in self:
            raise KeyMismatchError(
                f"{shown(key)} is in the adapter but not in {self.where}: give the state that this "
                "adapter had at step 0"
            )
        if self._folder:
            return self._folder.read(key)
        return check_finite(self._held[key], key, self.where)

    def factor(self, key: str) -> Tensor:
        """The same numbers as `read` gives."""
        return self.read(key)


def adapter_config(path: Location) -> dict[str, Any]:
    """The adapter_config.json of a folder.

    Raises:
        MissingPathError: there is none, or no such folder; the message says what lies below.
        MalformedFileError: it is not JSON.
    """
    list_folder(path)
    try:
        return read_json(joined(path, "adapter_config.json"))
    except MissingPathError as error:
        below = weights_below(path)
        if below:
            raise MissingPathError(
                f"{shown(path)} holds no adapter_config.json, but the folders below it hold "
                f"weights ({shown(', '.join(below[:5]))}): give one of them"
            ) from error
        raise MissingPathError(
            f"{shown(path)} holds no adapter_config.json: give the folder of a PEFT adapter (for a "
            "whole checkpoint, use read_checkpoints)"
        ) from error
