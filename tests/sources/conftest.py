"""Bases on disk, made once for each kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.sources import zoo

Bases = Callable[..., Path]


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """Gives the folder of a saved tiny model of a kind."""
    made: dict[str, Path] = {}

    def folder(kind: str, **extra: Any) -> Path:
        key = f"{kind}-{sorted(extra.items())}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("base")
            zoo.build(kind, **extra).save_pretrained(made[key])
        return made[key]

    return folder
