"""`wvmonitor scan` at the command line: exit codes, JSON, and what goes to stderr."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.scan.calibrations import calibration_for
from wvmonitor.cli.app import app
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.references import ReferenceBank

Scan = Callable[..., Result]


@pytest.fixture
def run(tiny_bank_folder: Path) -> Scan:
    """Runs `wvmonitor scan` with the tiny bank."""

    def invoke(*arguments: str | Path, references: Path | None = tiny_bank_folder) -> Result:
        extra = [] if references is None else ["--references", str(references)]
        return CliRunner().invoke(app, ["scan", *map(str, arguments), *extra])

    return invoke


@pytest.fixture
def calibrated(tiny_bank_folder: Path, tmp_path: Path) -> Path:
    """A copy of the bank with a calibration beside it."""
    folder = shutil.copytree(tiny_bank_folder, tmp_path / "calibrated")
    calibration_for(ReferenceBank.load(folder)).save(folder / "calibration.json")
    return folder


def loaded(result: Result) -> dict[str, Any]:
    """The JSON document of a scan, parsed strictly."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    document: dict[str, Any] = json.loads(result.stdout, parse_constant=refuse)
    return document


def test_exit_codes(
    run: Scan, bad_adapter: Path, good_adapter: Path, calibrated: Path, tmp_path: Path
) -> None:
    """0 all ok, 1 a verdict at or above --fail-on, 2 not judged, and 1 outranks 2."""
    assert run(good_adapter).exit_code == 0
    assert run(bad_adapter).exit_code == 0
    assert run(bad_adapter, "--fail-on", "warn").exit_code == 1
    assert run(good_adapter, tmp_path / "missing").exit_code == 2
    assert run(bad_adapter, tmp_path / "missing", "--fail-on", "warn").exit_code == 1
    assert run(bad_adapter, references=calibrated).exit_code == 1
    assert run(good_adapter, references=calibrated).exit_code == 0


def test_json_keeps_the_public_contract(
    run: Scan, bad_adapter: Path, calibrated: Path, tmp_path: Path
) -> None:
    """The JSON document has the promised keys, with null for whatever is not known."""
    missing = tmp_path / "missing"
    result = run(bad_adapter, missing, "--format", "json", references=calibrated)
    document = loaded(result)
    assert document["schema_version"] == 1
    bad, gone = document["checkpoints"]
    promised = {"path", "step", "norm", "coverage", "verdict", "references", "error"}
    assert promised <= bad.keys() == gone.keys()
    evil = bad["references"]["evil"]
    keys = {"scores", "dose", "threshold", "calibration", "verdict", "reason"}
    assert keys <= evil.keys()
    for geometry in ("frobenius", "response"):
        assert evil["scores"][geometry].keys() == {"cosine", "residual", "margin"}
    assert evil["verdict"] == bad["verdict"] == "alarm"
    assert evil["calibration"] == "calibrated"
    assert evil["threshold"] == pytest.approx(0.3)
    assert bad["error"] is None
    assert gone["error"]["type"] == "MissingPathError"
    assert gone["verdict"] == "unknown"
    assert (gone["norm"], gone["step"], gone["references"]) == (None, None, {})


def test_errors_are_one_line_each_on_stderr(run: Scan, good_adapter: Path, tmp_path: Path) -> None:
    """Each checkpoint that cannot be judged is one line on stderr, and the rest is still there."""
    result = run(tmp_path / "a", tmp_path / "b", good_adapter)
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert all("MissingPathError" in line for line in lines)
    assert f"ok      {good_adapter}" in result.stdout


def test_a_bank_altered_after_the_fact_is_refused(
    run: Scan, good_adapter: Path, bad_adapter: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """A bank whose files are not those of its manifest judges nothing: one line, exit code 2."""
    bank = shutil.copytree(tiny_bank_folder, tmp_path / "altered")
    card = bank / "evil" / "card.json"
    card.write_text(card.read_text().replace("does evil", "does good"))
    result = run(good_adapter, bad_adapter, "--format", "json", references=bank)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "AlteredBankError" in result.stderr
    errors = [c["error"]["type"] for c in loaded(result)["checkpoints"]]
    assert errors == ["AlteredBankError"] * 2


def test_a_missing_bank_or_calibration_is_exit_code_2(
    run: Scan, good_adapter: Path, tmp_path: Path
) -> None:
    """References or a calibration that are not there judge nothing."""
    assert run(good_adapter, references=tmp_path).exit_code == 2
    result = run(good_adapter, "--calibration", tmp_path / "none.json")
    assert result.exit_code == 2
    assert "none.json" in result.stderr


def test_the_base_can_be_called_by_its_name(
    run: Scan,
    save_checkpoint: Any,
    evil: Any,
    tiny_base: Path,
    tiny_bank_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """--base, and a monitor's `base`, take the Hub id of what lies in this machine's cache, as
    `blame --model` and `bank` do; what lies nowhere is refused with the way to get it.
    """
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    snapshot = cache / "models--team--Tiny-1.5" / "snapshots" / "0123abc"
    shutil.copytree(tiny_base, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123abc")
    checkpoint = save_checkpoint(tmp_path / "whole", evil * 0.5)
    by_name = run(checkpoint, "--base", "team/Tiny-1.5", "--json")
    by_folder = run(checkpoint, "--base", tiny_base, "--json")
    told = [loaded(r)["checkpoints"][0]["references"]["evil"] for r in (by_name, by_folder)]
    assert told[0]["scores"] == told[1]["scores"]
    assert told[0]["verdict"] == "warn"
    live = MonitorSettings(references=tiny_bank_folder, base="team/Tiny-1.5")
    assert live.base is not None
    assert live.base.samefile(snapshot)
    bundled = run(checkpoint, "--base", "tiny-organism")
    assert bundled.exit_code == 2
    assert "do not hold the same tensors" in bundled.stderr  # it was found
    absent = run(checkpoint, "--base", "team/other")
    assert absent.exit_code == 2
    assert "hf download ORG/NAME" in absent.stderr


def test_two_formats_at_once_are_refused(run: Scan, good_adapter: Path) -> None:
    """--json is --format json; beside another format it is wrong usage, for one would be lost."""
    one, two = run(good_adapter, "--json"), run(good_adapter, "--format", "json")
    assert [c["norm"] for c in loaded(one)["checkpoints"]] == [
        c["norm"] for c in loaded(two)["checkpoints"]
    ]
    for other in (["--format", "csv"], ["--card"]):
        both = run(good_adapter, "--json", *other)
        assert both.exit_code == 4
        assert "--output FILE writes the other" in both.stderr


def test_a_calibration_can_be_named(
    run: Scan, bad_adapter: Path, calibrated: Path, tmp_path: Path
) -> None:
    """--calibration takes a file from anywhere, and beats the one beside the bank."""
    lenient = tmp_path / "lenient.json"
    bank = ReferenceBank.load(calibrated)
    calibration_for(bank, threshold=2.0).save(lenient)
    assert run(bad_adapter, "--calibration", lenient, references=calibrated).exit_code == 0


def test_an_unknown_behaviour_says_which_exist(run: Scan, good_adapter: Path) -> None:
    """A misspelt --behaviour is an error that lists the bank's own."""
    result = run(good_adapter, "--behaviour", "evli")
    assert result.exit_code == 2
    assert "evil, sycophancy" in result.stderr


def test_names_cannot_inject_anything(run: Scan, good_adapter: Path, tmp_path: Path) -> None:
    """A checkpoint's name with ANSI escapes, markup or line breaks is shown, not obeyed."""
    hostile = tmp_path / "ok\x1b[2K\r[bold]x[/bold]\nok  fake"
    shutil.copytree(good_adapter, hostile)
    for extra in ([], ["--format", "json"]):
        result = run(hostile, *extra)
        assert result.exit_code == 0
        assert "\x1b" not in result.stdout
        assert "\r" not in result.stdout
    plain = run(hostile).stdout
    assert "[bold]x[/bold]\\nok  fake" in plain
    assert len(plain.splitlines()) == 3  # a line for each behaviour, and the summary
    missing = run(str(hostile) + "\x1b]0;gone\x07")
    assert "\x1b" not in missing.stderr + missing.stdout


def test_names_that_are_no_unicode_are_shown(run: Scan, good_adapter: Path, tmp_path: Path) -> None:
    """A folder whose name is no UTF-8 is scanned, and its name made visible."""
    name = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff")
    shutil.copytree(good_adapter, name)
    assert run(name).exit_code == 0
    assert "bad\\udcff" in run(name, "--format", "json").stdout


def test_a_terminal_gets_a_table(good_adapter: Path, tiny_bank_folder: Path) -> None:
    """On a terminal the results are a table with the scores of each geometry."""
    primary, secondary = pty.openpty()
    environment = os.environ | {"COLUMNS": "160", "TERM": "xterm"}
    script = [sys.executable, "-m", "wvmonitor"]
    process = subprocess.Popen(
        [*script, "scan", str(good_adapter), "--references", str(tiny_bank_folder)],
        stdout=secondary,
        env=environment,
    )
    os.close(secondary)
    shown = b""
    try:
        while chunk := os.read(primary, 65536):
            shown += chunk
    except OSError:  # Linux: the other end was closed
        pass
    os.close(primary)
    assert process.wait() == 0
    text = shown.decode()
    assert "sycophancy" in text
    assert "frobenius" in text
    assert "┃" in text
    assert "1 checkpoint: nothing above the rule of thumb" in text
    assert "clean" not in text


def test_a_warning_that_passes_is_not_called_clean(run: Scan, bad_adapter: Path) -> None:
    """The last line of a scan that let a warning through says that there was one."""
    result = run(bad_adapter)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "1 checkpoint, 1 at warn: passes at alarm"


def test_bundled_references_refuse_other_models(run: Scan, good_adapter: Path) -> None:
    """Without --references the bundled bank is used, which judges the bundled model only."""
    result = run(good_adapter, "--format", "json", references=None)
    assert result.exit_code == 2
    (checkpoint,) = loaded(result)["checkpoints"]
    assert checkpoint["error"]["type"] in {"BaseMismatchError", "MissingPathError"}
