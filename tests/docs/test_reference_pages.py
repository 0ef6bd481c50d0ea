"""The reference pages say what the code says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from prometheus_client.parser import text_string_to_metric_families

import wvmonitor.errors
from wvmonitor.errors import WVMonitorError

DOCS = Path(__file__).parents[2] / "docs"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("page", "make"), [("cli", "command_line"), ("settings", "settings")])
def test_generated_pages_are_up_to_date(page: str, make: str) -> None:
    """Commands and settings are documented as they are: `make docs` rewrites these pages."""
    made = getattr(generator(), make)()
    assert (DOCS / "reference" / f"{page}.md").read_text("utf-8") == made


def test_the_table_of_stacks_is_what_was_run() -> None:
    """Versions that the page names are those of the last runs: `make docs` rewrites the table."""
    page = DOCS / "how-to" / "integrations.md"
    assert page.read_text("utf-8") == generator().integrations()


def test_every_error_has_its_cause_and_cure() -> None:
    """The catalogue holds each error once, and no other, in whichever file it is defined."""
    text = (DOCS / "reference" / "errors.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    kinds = {
        name
        for name, kind in vars(wvmonitor.errors).items()
        if isinstance(kind, type) and issubclass(kind, WVMonitorError)
    }
    known = "|".join(kinds)
    kinds |= {
        name
        for path in Path(wvmonitor.errors.__file__).parent.rglob("*.py")
        for name in re.findall(
            rf"^class (\w+)\((?:{known})\)", path.read_text("utf-8"), re.MULTILINE
        )
    }
    assert sorted(name for name, _, _ in rows) == sorted(kinds)


def test_every_metric_is_listed(tmp_path: Path) -> None:
    """The metrics page holds the names that a monitored run exports, and no other."""
    from transformers import AutoModelForCausalLM

    from wvmonitor import Monitor
    from wvmonitor.testing import planted_bank, tiny_base

    base = tiny_base(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    metrics = tmp_path / "metrics.prom"
    monitor = Monitor(planted_bank(base), prometheus={"textfile": metrics}, per_layer=True)
    monitor.start(model)
    monitor.close()
    exported = {
        family.name for family in text_string_to_metric_families(metrics.read_text("utf-8"))
    }
    text = (DOCS / "reference" / "metrics.md").read_text("utf-8")
    listed = {
        re.sub("_(total|info)$", "", name)
        for name in re.findall(r"^\| `(wvmonitor_\w+)`", text, re.MULTILINE)
    }
    shown = {re.sub("_(total|info)$", "", name) for name in exported}
    assert shown
    assert shown <= listed
    assert listed - shown <= {"wvmonitor_errors"}  # only once something has failed


def test_the_table_of_what_people_save_is_up_to_date() -> None:
    """What the page says is read or refused is what the lists beside the tests say."""
    page = (DOCS / "what-is-measured.md").read_text("utf-8")
    assert generator().what_people_save(page) == page
