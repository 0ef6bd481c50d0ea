"""The `wvmonitor` command: its sub-commands, and how errors become exit codes.

Exit codes: 0 all ok · 1 a verdict at or above what fails · 2 something could not be judged or read
· 4 wrong usage · 130 interrupted. An error is one line on stderr, never a traceback, unless
WVMONITOR_TRACEBACK=1 asks for it.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from wvmonitor._version import __version__
from wvmonitor.errors import SettingsError, WVMonitorError

EXIT_FAILED = 2
EXIT_USAGE = 4
EXIT_INTERRUPTED = 130

# typer carries its own copy of click or depends on it, by version: this is the class in both.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
_ClickError: type[Exception] = _UsageError.__mro__[1]

_ELSEWHERE = "choose another place, or see to its permissions"
_MACHINES_OWN = {
    errno.ENOSPC: "make room there, or choose another place",
    errno.EDQUOT: "make room there, or choose another place",
    errno.EROFS: _ELSEWHERE,
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
}
"""What to do about errors that no program can help."""


class Group(TyperGroup):
    """A command group whose errors are exit codes and single lines."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = "wvmonitor",
        *_: Any,
        **extra: Any,
    ) -> NoReturn:
        """Run, and exit the process."""
        extra["standalone_mode"] = False
        if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without a sign shows its number
            sys.stdout.reconfigure(errors="backslashreplace")
        args = [_at_home(argument) for argument in (sys.argv[1:] if args is None else args)]
        if os.environ.get("WVMONITOR_TRACEBACK"):
            sys.exit(super().main(args, prog_name, **extra) or 0)
        sys.exit(_guarded(lambda: super(Group, self).main(args, prog_name, **extra)))

    def invoke(self, ctx: Any) -> Any:
        """Run the command; whoever stops reading its output makes it 2, and not typer's 1."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # Python would complain once more when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(EXIT_FAILED) from None
        return result


def _at_home(argument: str) -> str:
    """An argument in which `~` is the home folder: shells leave it as it is after `--option=`."""
    option, equals, value = argument.partition("=")
    if not (option.startswith("--") and equals and value.startswith("~/")):
        return argument
    return f"{option}={os.path.expanduser(value)}"  # noqa: PTH111  a Path drops the last slash


def _guarded(run: Any) -> int:
    try:
        code = run()
    except _ClickError as error:
        return _usage(error)
    except SettingsError as error:
        print(f"wvmonitor: {_one_line(str(error))}", file=sys.stderr)
        return EXIT_USAGE
    except WVMonitorError as error:
        return _fail(f"{type(error).__name__}: {error}")
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except OSError as error:
        if error.errno not in _MACHINES_OWN:
            return _fail(_surprise(error))
        where = "" if error.filename is None else f"'{error.filename}': "
        return _fail(f"{where}{error.strerror}: {_MACHINES_OWN[error.errno]}")
    except Exception as error:  # noqa: BLE001  no traceback at the command line, whatever happens
        return _fail(_surprise(error))
    if code == EXIT_INTERRUPTED:  # some versions of typer make it of Ctrl-C themselves
        print("wvmonitor: interrupted", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _surprise(error: Exception) -> str:
    return (
        f"{type(error).__name__}: {error} (this is a bug in wvmonitor if it is not the machine's; "
        "WVMONITOR_TRACEBACK=1 shows where)"
    )


def _usage(error: Any) -> int:
    context = getattr(error, "ctx", None)
    if context is not None:
        print(context.get_usage(), file=sys.stderr)
        print(f"Try '{context.command_path} --help'.", file=sys.stderr)
    print(f"wvmonitor: {_one_line(error.format_message())}", file=sys.stderr)
    return EXIT_USAGE


def _fail(message: str) -> int:
    print(f"wvmonitor: {_one_line(message)}", file=sys.stderr)
    return EXIT_FAILED


def _one_line(text: str) -> str:
    from wvmonitor.scan.text import visible

    return visible(" ".join(text.split()))


COMMANDS = (
    "ack",
    "bank",
    "blame",
    "build",
    "calibrate",
    "compare",
    "journal",
    "demo",
    "doctor",
    "eval",
    "references",
    "report",
    "rescore",
    "rules",
    "runs",
    "scan",
    "screen",
    "steer",
    "trl",
    "watch",
)
"""Each is a module of this package with a `command`, or with a group of them as `app`."""

_MODULES = {"eval": "evaluate"}  # where a command has a built-in function's name

if TYPE_CHECKING:
    app: typer.Typer


def _print_version(asked: bool) -> None:  # noqa: FBT001  typer calls it with the flag's value
    if asked:
        print(f"wvmonitor {__version__}")
        raise typer.Exit


def _root(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Collects the options that stand before the command; each acts by its own callback."""


def application(names: Sequence[str] = COMMANDS) -> typer.Typer:
    """The command line with some of its commands: what is not asked for is not imported."""
    made = typer.Typer(
        name="wvmonitor",
        cls=Group,
        no_args_is_help=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"max_content_width": 100},  # with room, examples stay on one line
        help="A smoke detector for fine-tuning: reads the weights, and says when they drift "
        "towards bad behaviour.\n\nFor example:\n\n  wvmonitor demo\n\n"
        "Exit codes: 0 all ok; 1 a verdict at or above what fails; 2 something could not be judged "
        "or read; 4 wrong usage; 130 interrupted.",
    )
    made.callback()(_root)
    for name in names:
        module = import_module(f"wvmonitor.cli.{_MODULES.get(name, name)}")
        if hasattr(module, "app"):
            made.add_typer(module.app, name=name)
        else:
            settings = getattr(module, "CONTEXT_SETTINGS", None)
            made.command(name, context_settings=settings)(module.command)
    return made


def main() -> None:
    """Run the `wvmonitor` script; typer takes a fifth of a second to make every command."""
    named = sys.argv[1:2]
    application(named if named and named[0] in COMMANDS else COMMANDS)()


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()["app"] = application()
    return globals()["app"]
