"""Where a Trainer's run started: noted before a checkpoint is loaded, and known again after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wvmonitor.errors import UnmeasurableModelError
from wvmonitor.files.storage import Location
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.sources.distributed import any_sharded
from wvmonitor.sources.live_base import unwrapped_model
from wvmonitor.sources.live_model import LiveModel


class StartingPoint:
    """How the model is read, and from where.

    Attributes:
        live: the model under training; None before anybody has looked at it.
    """

    def __init__(self, bank: ReferenceBank, base: Location | None) -> None:
        self.live: LiveModel | None = None
        self._bank = bank
        self._base = base
        self._model: Any = None

    def look_at(self, model: Any, initial: Mapping[str, Tensor] | None = None) -> None:
        """Note where a model is, as the start of its training; or restore a recorded start.

        Raises:
            WVMonitorError: this model cannot be measured, or was made from another base.
        """
        self._model = model
        self.live = LiveModel(model, base=self._base, initial=initial)
        self._bank.relation_to(self.live.base_digest)
        if not self.live.sharded:
            self.live.task_vector()  # what cannot be read is an error now, not at the first step

    def look_again(
        self, model: Any, initial: Mapping[str, Tensor] | None, *, step: int, resumed: bool
    ) -> None:
        """See that the start is known of the model that is trained now.

        It is another one than before where `model_init` made it, or where it is sharded or was
        given adapters since.

        Raises:
            UnmeasurableModelError: the weights at hand say no longer where training started.
            WVMonitorError: as `look_at`.
        """
        before, sharded, moved = self.live, any_sharded(model), step > 0
        if moved and (before is None or sharded) and self._in_memory(model):
            raise UnmeasurableModelError(
                "training goes on from a checkpoint, and the weights of a full fine-tune say no "
                "longer where it started: give base=FOLDER of the base model"
            )
        known = before is not None and self._model is model and not sharded
        known = known and not (before and before.unknown())
        if initial is not None:
            self.look_at(model, initial)
        elif not known:
            full = before is not None and before.method == "full"
            self.look_at(model, before.initial_state() if before and full and moved else None)
        unsure = initial is None and (resumed or (moved and not known))
        if unsure and self.live is not None and self.live.starts_elsewhere:
            raise UnmeasurableModelError(
                "training goes on from a checkpoint, and how its adapter started is not known: "
                "that lies in the checkpoint's wvmonitor.safetensors where the run was watched, "
                "and WVMonitorCallback.attach(trainer, ...) hears which checkpoint it is"
            )

    def to_leave(self) -> dict[str, Tensor]:
        """How the adapter started: what a checkpoint must say where the base alone does not."""
        adapter = self.live is not None and self.live.method != "full"
        return self.live.initial_state() if self.live is not None and adapter else {}

    def _in_memory(self, model: Any) -> bool:
        """Whether the start of a full fine-tune is nowhere but in memory."""
        if self._base is not None:
            return False
        return self.live.method == "full" if self.live else not unwrapped_model(model)[1]
