"""Writes what follows from the code or from what was run: command line, settings, tested stacks.

python docs/generate.py        rewrites docs/reference/{cli,settings}.md, the table of stacks in
                               docs/how-to/integrations.md, and in docs/what-is-measured.md the
                               table of what people save
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import typer
from pydantic import BaseModel

from wvmonitor.cli.app import app
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.outputs.notifier_options import NOTIFIER_SETTINGS

_BEGIN, _END = "<!-- generated: what people save -->", "<!-- end of generated -->"
HERE = Path(__file__).parent / "reference"
STACKS = Path(__file__).parents[1] / "benchmarks" / "results" / "stacks.json"
INTERFACES = STACKS.with_name("interfaces.json")
INTEGRATIONS = Path(__file__).parent / "how-to" / "integrations.md"


def command_line() -> str:
    """Every command with its arguments, options and examples, as `--help` shows them."""
    group = typer.main.get_command(app)
    lines = ["# Command line", "", *_exit_codes()]
    for name, command in sorted(_commands(group, "wvmonitor")):
        lines += [f"## {name}", "", _prose(command.help or ""), ""]
        rows = [row for parameter in command.params if (row := _row(parameter))]
        if rows:
            lines += ["| argument | is | default |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _exit_codes() -> list[str]:
    return [
        "Exit codes: 0 all ok · 1 a verdict at or above what fails · 2 something could not be",
        "judged or read · 4 wrong usage · 130 interrupted. `--install-completion` installs",
        "completion for your shell.",
        "",
    ]


def _commands(group: Any, path: str) -> list[tuple[str, Any]]:
    found = []
    for name, command in group.commands.items():
        here = f"{path} {name}"
        found += _commands(command, here) if hasattr(command, "commands") else [(here, command)]
    return found


def _prose(text: str) -> str:
    """Help text as Markdown: the examples in it, which start with `wvmonitor`, as code."""
    out = []
    for paragraph in text.replace("\b", "").split("\n\n"):
        joined = " ".join(line.strip() for line in paragraph.splitlines())
        code = joined.startswith("wvmonitor ")
        out.append(f"```console\n$ {joined}\n```" if code else joined)
    return "\n\n".join(part for part in out if part)


def _row(parameter: Any) -> str | None:
    if getattr(parameter, "hidden", False) or parameter.name == "help":
        return None
    option = parameter.opts[0].startswith("-")
    name = ", ".join(parameter.opts) if option else (parameter.metavar or parameter.name.upper())
    if option and not parameter.is_flag:
        name += f" {parameter.metavar or parameter.name.upper()}"
    default = parameter.default
    shown = "" if default is None or default is False or callable(default) else _plain(default)
    shown = "required" if parameter.required else shown
    return f"| `{_cell(name)}` | {_cell(getattr(parameter, 'help', None) or '')} | {_cell(shown)} |"


def _plain(value: Any) -> str:
    return str(getattr(value, "value", value)) if value not in ((), []) else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def settings() -> str:
    """Every setting of a monitor with its default and what it does."""
    lines = [
        "# Settings",
        "",
        "Arguments of `WVMonitorCallback` and `Monitor`, keys of a YAML file, or `WVMONITOR_*`",
        "variables (`WVMONITOR_EVERY_N_STEPS=20`, `WVMONITOR_PROMETHEUS__PORT=9200`). What is",
        "given more directly wins; a key that is not known is an error naming the nearest one.",
        "",
        *_table(MonitorSettings),
    ]
    for title, model in [
        *_parts(MonitorSettings),
        *((f"notifiers: {m.model_fields['kind'].default}", m) for m in NOTIFIER_SETTINGS),
    ]:
        lines += [f"## {title}", "", *_table(model)]
    return "\n".join(lines)


def _parts(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """The models that are single fields of a model, and of those, by their place in it."""
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield f"{path}{name}", kind
                yield from _parts(kind, f"{path}{name}.")


def _table(model: type[BaseModel]) -> list[str]:
    rows = ["| setting | default | is |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        default = (
            "required" if field.is_required() else field.get_default(call_default_factory=True)
        )
        shown = "" if isinstance(default, BaseModel) or default in (None, (), {}) else default
        shown = f"`{shown}`" if shown != "" else ""
        rows.append(f"| `{name}` | {_cell(shown)} | {_cell(field.description or '')} |")
    return [*rows, ""]


def integrations() -> str:
    """The page of integrations: what `benchmarks.stacks` saw, what `benchmarks.interfaces` read."""
    page = INTEGRATIONS.read_text("utf-8")
    before, begin, rest = page.partition("<!-- stacks: written by docs/generate.py -->")
    _, end, after = rest.partition("<!-- /stacks -->")
    found = json.loads(STACKS.read_text("utf-8"))
    rows = [
        f"| {r['stack']} | {r['version']} | {r['seen']} | {r['python']} | {r['torch']} "
        f"| {r['transformers']} |"
        for r in sorted(found.values(), key=lambda r: r["stack"].lower())
    ]
    head = ["| stack | version | seen | Python | torch | transformers |", "|---" * 6 + "|"]
    page = "\n".join([f"{before}{begin}", "", *head, *rows, "", f"{end}{after}"])
    before, begin, rest = page.partition("<!-- interfaces: written by docs/generate.py -->")
    _, end, after = rest.partition("<!-- /interfaces -->")
    read = json.loads(INTERFACES.read_text("utf-8"))
    rows = [
        f"| {r['stack']} | {r['version']} | {r['hook']} |"
        for r in sorted(read.values(), key=lambda r: r["stack"].lower())
    ]
    head = ["| framework | version | hook |", "|---" * 3 + "|"]
    return "\n".join([f"{before}{begin}", "", *head, *rows, "", f"{end}{after}"])


def what_people_save(page: str) -> str:
    """The page with its table of what people save, from the lists that stand beside the tests.

    Raises:
        ValueError: a list names a test that its file does not have, or the page has no table.
    """
    rows = ["| kind | where it comes from | read or refused | test |", "|---|---|---|---|"]
    for path in sorted((HERE.parent.parent / "tests").rglob("test_*.py")):
        text = path.read_text("utf-8")
        listed = next(
            (
                node.value
                for node in ast.parse(text).body
                if isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and node.targets[0].id == "MEASURED"
            ),
            None,
        )
        for kind, source, outcome, test in ast.literal_eval(listed) if listed else ():
            if f"def {test}(" not in text:
                raise ValueError(f"{path.name} lists {test}, which it does not have")
            rows.append(f"| {kind} | {source} | {outcome} | `{test}` |")
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"docs/what-is-measured.md has no {_BEGIN} … {_END}")
    return "\n".join([before + begin, "", *rows, "", end + after])


def main() -> None:
    """Rewrite the pages."""
    INTEGRATIONS.write_text(integrations(), "utf-8")
    measured = HERE.parent / "what-is-measured.md"
    measured.write_text(what_people_save(measured.read_text("utf-8")), "utf-8")
    (HERE / "cli.md").write_text(command_line(), "utf-8")
    (HERE / "settings.md").write_text(settings(), "utf-8")


if __name__ == "__main__":
    main()
