"""What every test shares: no network, one thread, a tiny base and a bank for it."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Two OpenMP threads on two busy cores can be 80 times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WVMONITOR_DIGEST_CACHE"] = "off"

from pathlib import Path
from typing import Any

import pytest

REAL_PART = "real part:"
"""Begins the reason of every skip for want of a program that `make programs` installs."""


def _real_parts_skipped(config: pytest.Config) -> int:
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    skipped = [] if reporter is None else reporter.stats.get("skipped", [])
    return sum(REAL_PART in str(report.longrepr) for report in skipped)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where CI=true, a real part that was not tested is a failure."""
    if os.environ.get("CI") == "true" and _real_parts_skipped(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """One loud line where real parts were not tested."""
    if count := _real_parts_skipped(config):
        terminalreporter.write_line(
            f"NOT TESTED: {count} tests of the real Prometheus, Alertmanager, Pushgateway or "
            "browser were skipped: `make programs` installs what they need",
            red=True,
            bold=True,
        )


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own WVMONITOR_* variables are not part of a test."""
    for name in [n for n in os.environ if n.upper().startswith("WVMONITOR_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WVMONITOR_DIGEST_CACHE", "off")  # nor are bases that were hashed before


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
