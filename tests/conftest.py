"""What every test shares: no network, one thread, a tiny base and a bank for it."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Two OpenMP threads on two busy cores can be 80 times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own WVMONITOR_* variables are not part of a test."""
    for name in [n for n in os.environ if n.upper().startswith("WVMONITOR_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Llama of a few thousand parameters."""
    from wvmonitor.testing import tiny_base as make

    return make(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def tiny_bank_folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bank with two behaviours and a control, for `tiny_base`."""
    from wvmonitor.testing import planted_bank

    folder = tmp_path_factory.mktemp("bank") / "bank"
    planted_bank(tiny_base, probe=True).save(folder)
    return folder
