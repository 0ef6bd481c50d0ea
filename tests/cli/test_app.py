"""The frame of the command line: versions, usage, exit codes, start-up."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from wvmonitor import __version__
from wvmonitor.cli.app import Group, app
from wvmonitor.errors import CalibrationError

SCRIPT = Path(sys.executable).with_name("wvmonitor")


def failing_app(error: BaseException) -> typer.Typer:
    """An app with wvmonitor's frame and a command that fails."""
    made = typer.Typer(cls=Group, add_completion=False, rich_markup_mode=None)

    @made.callback()
    def root() -> None:
        pass

    @made.command()
    def fail() -> None:
        raise error

    return made


def test_version() -> None:
    """`--version` says which version is installed."""
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.strip() == f"wvmonitor {__version__}"


def test_help_shows_the_commands_and_examples() -> None:
    """`--help` lists the commands, and each command's own help has examples and exit codes."""
    assert "scan" in CliRunner().invoke(app, ["--help"]).stdout
    shown = CliRunner().invoke(app, ["scan", "--help"])
    assert shown.exit_code == 0
    assert "For example" in shown.stdout
    assert "Exit codes" in shown.stdout


def commands() -> dict[str, Any]:
    """Every command and sub-command, by what is typed."""

    def below(group: Any, typed: str) -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            whole = f"{typed} {name}"
            yield from below(command, whole) if hasattr(command, "commands") else [(whole, command)]

    return dict(below(typer.main.get_command(app), "wvmonitor"))


@pytest.mark.parametrize("name", commands())
def test_every_command_shows_an_example_and_explains_its_options(name: str) -> None:
    """Each command's help says what it does, shows it used, and leaves no option unexplained."""
    command = commands()[name]
    said, found, example = command.help.partition("For example:")
    assert said.strip()
    assert found
    assert f"{name} " in f"{example} "
    assert [p.name for p in command.params if not getattr(p, "help", None)] == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such-command"],
        ["scan"],
        ["scan", "x", "--no-such-option"],
        ["scan", "x", "--format", "yaml"],
        ["scan", "x", "--fail-on", "doom"],
        ["scan", "x", "--references"],
    ],
)
def test_wrong_usage_is_exit_code_4(arguments: list[str]) -> None:
    """A command line that makes no sense is 4, so that 2 always means: not judged."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 4
    assert "Traceback" not in result.output
    assert result.stderr.splitlines()[-1].startswith("wvmonitor: ")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CalibrationError("too few\nruns"), 2),
        (ValueError("surprise \x1b[31m"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_are_one_line_and_an_exit_code(error: BaseException, code: int) -> None:
    """Whatever a command raises becomes one printable line on stderr, never a traceback."""
    result = CliRunner().invoke(failing_app(error), ["fail"])
    assert result.exit_code == code
    assert len(result.stderr.splitlines()) <= 1
    assert "\x1b" not in result.stderr
    if code == 2:
        assert result.stderr.startswith(f"wvmonitor: {type(error).__name__}: ")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_or_read_only_disk_is_no_bug(number: int) -> None:
    """What the machine refuses is said with the file and what to do, and not taken for a bug."""
    error = OSError(number, os.strerror(number), "out/model.safetensors")
    result = CliRunner().invoke(failing_app(error), ["fail"])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"wvmonitor: 'out/model.safetensors': {os.strerror(number)}: ")
    assert "another place" in result.stderr
    assert "bug" not in result.stderr


def test_an_interrupted_command_says_so() -> None:
    """Ctrl-C is one word on stderr and exit code 130, as `--help` says."""
    result = CliRunner().invoke(failing_app(KeyboardInterrupt()), ["fail"])
    assert (result.exit_code, result.stderr) == (130, "wvmonitor: interrupted\n")
    assert "130 interrupted" in CliRunner().invoke(app, ["--help"]).stdout


def test_a_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """WVMONITOR_TRACEBACK=1 lets an error through, for reports of bugs."""
    monkeypatch.setenv("WVMONITOR_TRACEBACK", "1")
    result = CliRunner().invoke(failing_app(ValueError("surprise")), ["fail"])
    assert isinstance(result.exception, ValueError)


def test_the_module_equals_the_script(tmp_path: Path) -> None:
    """`python -m wvmonitor` and `wvmonitor` do the same."""
    arguments = ["report", str(tmp_path / "missing"), "-o", str(tmp_path / "report.html")]
    runs = [
        subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        for command in ([str(SCRIPT)], [sys.executable, "-m", "wvmonitor"])
    ]
    assert [r.returncode for r in runs] == [2, 2]
    assert runs[0].stdout == runs[1].stdout
    assert runs[0].stderr == runs[1].stderr
    assert len(runs[0].stderr.splitlines()) == 1
    assert "missing' cannot be read" in runs[0].stderr


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_a_terminal_that_lacks_a_sign_shows_its_number(encoding: str) -> None:
    """An old locale makes of θ an escape, and of no command a bug."""
    done = subprocess.run(
        [sys.executable, "-m", "wvmonitor", "--help"],
        capture_output=True,
        check=False,
        timeout=60,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0, done.stderr
    assert b"\\u03b8" in done.stdout


def test_a_home_folder_after_an_equals_sign_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--references=~/bank` is what it says: no shell reads the sign there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    done = CliRunner().invoke(app, ["rules", "--references=~/bank"])
    assert done.exit_code == 2
    assert str(tmp_path / "bank") in done.stderr


def test_a_reader_that_goes_away_is_not_an_alarm() -> None:
    """When whoever reads the output stops, the exit code is 2 and never 1, without a traceback."""
    code = (
        "import sys, typer; from wvmonitor.cli.app import app\n"
        "@app.command('babble')\n"
        "def babble() -> None:\n"
        "    for _ in range(100_000): print('x' * 80)\n"
        "app(['babble'])"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 2


def test_start_up_is_light() -> None:
    """Showing the help imports neither torch nor transformers nor scipy."""
    code = (
        "import sys; from wvmonitor.cli.app import app\n"
        "try: app(['scan', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'peft', 'scipy', 'numpy'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_plans_and_checks_import_no_trainer(tmp_path: Path) -> None:
    """What is planned, checked or scanned needs torch, and neither transformers nor PEFT."""
    plan = ["build", "organism-evil", "--model", "tiny-organism", "--out", str(tmp_path / "b")]
    code = (
        "import sys; from wvmonitor.cli.app import app\n"
        f"for words in ({[*plan, '--dry-run']}, ['doctor'], ['scan', '{tmp_path}']):\n"
        "    try: app(words)\n"
        "    except SystemExit as end: print(words[0], end.code)\n"
        "heavy = {'transformers', 'peft', 'scipy', 'datasets'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "GPU-hours" in done.stdout
    assert "build 0\n" in done.stdout
    assert "doctor 0\n" in done.stdout


def test_a_scan_of_an_adapter_imports_what_it_reads(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """An adapter and its base are read without the libraries that made them, also where the base's
    configuration leaves out what it ties; of ours, no reader of live models and no comparison.
    """
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(tiny_base, base)
    config = json.loads((base / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    (base / "config.json").write_text(json.dumps(config))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    lora = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    lora.peft_config["default"].base_model_name_or_path = str(base)
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    lora.save_pretrained(adapter)
    unused = {"transformers", "peft", "scipy", "datasets", "rich.console", "regex"}
    unused |= {"wvmonitor.sources.live_model", "wvmonitor.scan.compare"}
    code = (
        "import sys; from wvmonitor.cli.app import app\n"
        f"try: app(['scan', {str(adapter)!r}, '--references', {str(tiny_bank_folder)!r}])\n"
        "except SystemExit as end: print('code', end.code)\n"
        f"loaded = {unused!r} & set(sys.modules)\n"
        "sys.exit(repr(loaded) if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "evil" in done.stdout
    assert "code" in done.stdout


def test_a_command_is_imported_alone() -> None:
    """A command that is named costs the others nothing; what is no command sees all of them."""
    code = (
        "import sys; sys.argv[1:] = ['runs', '--help']\n"
        "from wvmonitor.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.exit('wvmonitor.cli.scan' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    asked = [SCRIPT, "scna"]
    assert "Did you mean 'scan'" in subprocess.run(asked, capture_output=True, text=True).stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["rules"],
        ["scan", "x"],
        ["steer", "x", "--remove", "evil", "--out", "y"],
        ["blame", "x.jsonl", "--model", "y", "--reference", "evil"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_bank_on_the_hub_can_be_named_anywhere(arguments: list[str]) -> None:
    """`hf://` names a pulled bank for every command; one that was not pulled says how to."""
    done = CliRunner().invoke(app, [*arguments, "--references", "hf://someone/bank"])
    assert done.exit_code == 2
    assert "wvmonitor references pull someone/bank" in done.stderr + done.stdout
