"""A contrast of weights that the user has: two adapters or checkpoints of one base."""

from __future__ import annotations

from pathlib import Path

from wvmonitor.builder.base import Base
from wvmonitor.builder.repeats import Means
from wvmonitor.errors import BaseMismatchError, MissingPathError
from wvmonitor.files.documents import read_json
from wvmonitor.references.reference import contrast
from wvmonitor.sources import base_digest, read_adapter, read_checkpoints
from wvmonitor.steering.edit import ADAPTER_CONFIG, is_adapter
from wvmonitor.vectors.task_vector import TaskVector


def own_contrast(
    base: Base, positive: Path, negative: Path, means: Means
) -> tuple[TaskVector, list[str]]:
    """W of two fine-tunes, which may differ in rank and alpha, and what is to be said of them.

    Args:
        base: what both were trained from.
        positive: the side called positive: an adapter's folder or a checkpoint's.
        negative: the other side.
        means: whether the positive side exhibits the behaviour.

    Raises:
        MissingPathError: a folder is not there.
        BaseMismatchError: a side was trained from another base.
        WVMonitorError: as `read_adapter` and `read_checkpoints` say.
    """
    sides = [_read(base, path) for path in (positive, negative)]
    notes = []
    if sides[0].origin.method != sides[1].origin.method:
        notes.append(
            f"the two sides were trained differently ({sides[0].origin.method} and "
            f"{sides[1].origin.method}): the contrast holds that difference too"
        )
    notes += [w for side in sides for w in side.origin.warnings]
    return contrast(*sides, positive_means=means), list(dict.fromkeys(notes))


def named_base(*sides: Path) -> str | None:
    """The base that adapters say they were trained from.

    Raises:
        BaseMismatchError: they name different ones.
    """
    named = {
        p: read_json(p / ADAPTER_CONFIG).get("base_model_name_or_path")
        for p in sides
        if is_adapter(p)
    }
    bases = {str(name) for name in named.values() if name}
    if len(bases) > 1:
        listed = ", ".join(f"{p} from {n}" for p, n in named.items())
        raise BaseMismatchError(
            f"the two sides name different bases ({listed}): a contrastive pair needs one base; if "
            "they are copies of one, say which with --base"
        )
    return bases.pop() if bases else None


def _read(base: Base, path: Path) -> TaskVector:
    if not path.is_dir():
        raise MissingPathError(f"{path} is no folder: give an adapter's or a checkpoint's")
    if not is_adapter(path):
        return read_checkpoints(base.folder, path)
    named = read_json(path / ADAPTER_CONFIG).get("base_model_name_or_path")
    if isinstance(named, str) and Path(named).is_dir() and base_digest(named) != base.digest:
        raise BaseMismatchError(
            f"{path} was trained from {named} (digest {base_digest(named)[:12]}…), not from "
            f"{base.name} (digest {base.digest[:12]}…): a contrastive pair needs one base"
        )
    return read_adapter(path, base.folder)
