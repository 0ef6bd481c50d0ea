"""The block for a model card: printed, put into a card, and replaced by the next one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from wvmonitor.cli.app import app
from wvmonitor.errors import InputError
from wvmonitor.references import ReferenceBank
from wvmonitor.scan.model_card import BEGIN, END, within_card


@pytest.fixture
def command(tiny_bank_folder: Path) -> Callable[..., Result]:
    """Runs `wvmonitor scan`."""

    def invoke(*arguments: str | Path) -> Result:
        bank = ["--references", str(tiny_bank_folder)]
        return CliRunner().invoke(app, ["scan", *map(str, arguments), *bank])

    return invoke


def test_the_block_says_verdict_bank_base_and_date(
    command: Callable[..., Result], good_adapter: Path, tiny_bank_folder: Path
) -> None:
    """Whoever reads the card can tell what was judged, by what, and when."""
    result = command(good_adapter, "--card")
    assert result.exit_code == 0
    block = result.stdout
    bank = ReferenceBank.load(tiny_bank_folder)
    assert "| good | evil | **ok** |" in block
    assert bank.fingerprint in block
    assert f"- Base: tiny, weights `{bank.base.digest}`" in block
    assert f"{datetime.now(timezone.utc):%Y-%m-%d}" in block  # noqa: UP017
    assert "proves little without a calibration" in block
    assert block.startswith(BEGIN)
    assert block.rstrip().endswith(END)


def test_a_card_keeps_what_else_it_says(
    command: Callable[..., Result], good_adapter: Path, bad_adapter: Path, tmp_path: Path
) -> None:
    """--output README.md adds the block, replaces it the next time, and touches nothing else."""
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: mit\n---\n# Mine\n\nA model.\n")
    assert command(good_adapter, "--output", card).exit_code == 0
    first = card.read_text()
    assert first.startswith(
        "---\nlicense: mit\n---\n# Mine\n\nA model.\n\n<!-- wvmonitor: begin -->"
    )
    card.write_text(first + "\nMore of it.\n")
    assert command(bad_adapter, "--output", card).exit_code == 0
    second = card.read_text()
    assert second.count(BEGIN) == second.count(END) == 1
    assert "| bad | evil | **warn** |" in second
    assert "| good |" not in second
    assert second.endswith("\nMore of it.\n")


def test_what_was_not_judged_is_on_the_card(
    command: Callable[..., Result], good_adapter: Path, tmp_path: Path
) -> None:
    """Neighbours and errors are rows of the table, and names of strangers no Markdown."""
    folder = shutil.copytree(good_adapter, tmp_path / "a|b<img>`c`")
    (folder / "other.safetensors").write_bytes(b"")
    block = command(folder, tmp_path / "missing", "--card").stdout
    assert "not judged: 'other.safetensors'" in block
    assert "MissingPathError" in block
    assert "a\\|b\\<img\\>\\`c\\`" in block
    assert "<img>" not in block


@pytest.mark.parametrize("held", [BEGIN, END, f"{BEGIN}{END}{BEGIN}{END}", f"{END}{BEGIN}"])
def test_marks_that_do_not_match_are_left_alone(held: str, tmp_path: Path) -> None:
    """A card with half a block is refused, and nothing in it is overwritten."""
    card = tmp_path / "README.md"
    card.write_text(held)
    with pytest.raises(InputError, match="marks"):
        within_card(str(card), "block")
    assert card.read_text() == held


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """A name that ends in .md is no proof of a card."""
    (tmp_path / "x.md").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        within_card(str(tmp_path / "x.md"), "block")
