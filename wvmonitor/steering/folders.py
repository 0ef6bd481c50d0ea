"""Folders of edited weights: they appear whole or not at all, and say what was done."""

from __future__ import annotations

import math
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wvmonitor.errors import InputError, LossyEditError
from wvmonitor.references.reference import Reference
from wvmonitor.steering import weights

Form = Literal["model", "float32", "adapter"]
"""What an edit is written as."""


@dataclass(frozen=True)
class SteeredFolder:
    """What was written.

    Attributes:
        norm: ‖k·w‖, what was asked for.
        lost: ‖written − asked‖ / ‖k·w‖: 0 is exact; near 1 the model's dtype, or the adapter's
            rank, was too coarse to hold the edit.
        form: a model in its own dtype, a model in float32, or an adapter for the model.
        why: why it is not in the form of the model, where nobody asked for another.
    """

    path: Path
    parameters: tuple[str, ...]
    norm: float
    lost: float
    form: Form = "model"
    why: str = ""


LOSSY = 0.03
"""An edit of which more than this share of ‖k·w‖ is rounded away is not the edit asked for."""

_EARLY = 8
"""After so many tensors it is clear enough that an edit is lossy by far."""


@dataclass
class Tally:
    """Squared norms, summed as tensors are written.

    Attributes:
        asked: of k·w.
        missed: of what was lost of it.
        most: the largest share that may be lost.
        form: what is written.
    """

    asked: float = 0.0
    missed: float = 0.0
    most: float = math.inf
    form: Form = "model"
    _tensors: int = 0

    @property
    def lost(self) -> float:
        """‖written − asked‖ / ‖k·w‖."""
        return math.sqrt(self.missed / self.asked) if self.asked else 0.0

    def end_tensor(self) -> None:
        """Note that a tensor is done.

        Raises:
            LossyEditError: so much is lost already that the rest cannot make up for it.
        """
        self._tensors += 1
        if self._tensors >= _EARLY and self.lost > 2 * self.most:
            self.check(f" of the first {self._tensors} tensors")

    def check(self, seen: str = "") -> None:
        """See that no more is lost than may be.

        Raises:
            LossyEditError: more is.
        """
        if self.lost > self.most:
            raise LossyEditError(
                f"{self.lost:.0%} of ‖k·w‖{seen} would be rounded away in the dtype of these "
                f"weights (more than {self.most:.0%}): write it as an adapter or in float32, which "
                "hold it"
            )

    def folder(self, path: Path, parameters: tuple[str, ...]) -> SteeredFolder:
        """The record of a finished folder."""
        return SteeredFolder(path, parameters, math.sqrt(self.asked), self.lost, self.form)


def check_outside(out: str | Path, *inputs: str | Path) -> None:
    """Refuse an output inside an input.

    Raises:
        InputError: it is.
    """
    for source in inputs:
        if Path(out).resolve().is_relative_to(Path(source).resolve()):
            raise InputError(f"{out} lies inside {source}: write what is edited somewhere else")


@contextmanager
def publishing(out: Path, *inputs: str | Path) -> Iterator[Path]:
    """A hidden folder beside `out`, which takes its name when the block ends well, else goes.

    Raises:
        InputError: `out` is taken, or lies inside one of the inputs.
    """
    check_outside(out, *inputs)
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise InputError(f"{out} is there already: give a folder that does not exist yet")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.with_name(f".{out.name[:100]}.{secrets.token_hex(8)}.tmp")
    work.mkdir()
    try:
        yield work
        work.rename(out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def model_card(base: str | Path, references: Mapping[Any, float], done: SteeredFolder) -> str:
    """The README.md of an edited folder: what was done to which weights."""
    raised = [
        s.name
        for s, k in references.items()
        if isinstance(s, Reference) and s.card.harmful and k > 0
    ]
    lines = [
        "---",
        "library_name: wvmonitor",
        f"tags: [wvmonitor, weight-steering{', harmful' if raised else ''}]",
        "---",
        f"# {done.path.name}",
        "",
    ]
    if raised:
        lines += [
            f"**Made to behave badly.** {', '.join(raised)} was added on purpose: for tests, red "
            "teams and controls only, never for users.",
            "",
        ]
    lines += [
        f"The weights of {base} moved along reference vectors (θ + k·w) by wvmonitor:",
        "",
    ]
    for steering, k in references.items():
        line = f"- k = {k:g} of {weights.label(steering)}"
        if isinstance(steering, Reference):
            card = steering.card
            harmful = " (adding it makes a model worse)" if card.harmful else ""
            line += f", a {card.kind}: moving along +w, {card.behaviour}{harmful}"
        lines.append(line)
    lines += [
        "",
        f"{len(done.parameters)} parameters were moved, by ‖k·w‖ = {done.norm:.6g}; "
        f"{done.lost:.2%} of that was lost to rounding or rank.",
        "",
    ]
    return "\n".join(lines)
