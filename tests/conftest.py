"""What every test shares: no network, one thread, a tiny base and a bank for it."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Two OpenMP threads on two busy cores can be 80 times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WVMONITOR_DIGEST_CACHE"] = "off"

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REAL_PART = "real part:"
"""Begins the reason of every skip for want of a program that `make programs` installs."""


LONGEST = (
    "observability/test_alerts.py",
    "organism/test_demo.py",
    "builder/test_build.py",
    "docs/test_pages.py",
    "builder/test_bank.py",
    "kill/test_battery.py",
    "hostile/test_hostile.py",
    "examples/test_paper.py",
    "observability/test_end_to_end.py",
    "integrations/test_distributed.py",
    "benchmarks/test_quick.py",
    "benchmarks/test_organisms.py",
    "evals/test_run.py",
    "sources/test_distributed.py",
    "golden/test_golden.py",
    "observability/test_rules.py",
    "examples/test_notebook.py",
)
"""Files that take longest come first, so that no process is left alone with one in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files for `--dist loadfile`, which hands them out from the first to the last."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    if gone := [str(path) for path in place if not path.exists()]:
        raise pytest.UsageError(f"LONGEST names what is not there: {', '.join(gone)}")
    items.sort(key=lambda item: place.get(item.path, len(place)))


def pytest_collection_finish() -> None:
    """Nothing that was imported is garbage; each `Trainer` would look through all of it twice."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture
def receiver() -> Iterator[Any]:
    """A webhook's receiver on loopback, which takes everything unless told otherwise."""
    from tests.receiver import Receiver

    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


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
