"""`wvmonitor watch`: a sidecar that monitors runs by their checkpoints."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wvmonitor.cli.base import base_option
from wvmonitor.cli.scan import StrictCoverage

if TYPE_CHECKING:
    from wvmonitor.outputs.exporter import Observation


def command(
    runs_dir: Annotated[
        Path, typer.Argument(metavar="RUNS_DIR", help="Folder of runs with checkpoint-* in them.")
    ],
    references: Annotated[
        str | None, typer.Option(metavar="BANK", help="Folder of the references.")
    ] = None,
    base: Annotated[
        Path | None, base_option("Folder of the base model, where checkpoints do not name it")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The bank's own by default.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address of the metrics; this machine.")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port of the metrics (9108); the next free one if taken.")
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where readings are kept: RUNS_DIR/.wvmonitor."),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="More settings of a monitor in YAML: notifiers, token, expected, …"
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The runs' optimiser, which files do not say."),
    ] = None,
    every: Annotated[float, typer.Option(metavar="SECONDS", help="Between two looks.")] = 10.0,
    settle: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="How long files must be unchanged where there is no trainer_state.json.",
        ),
    ] = 60.0,
    *,
    public: Annotated[
        bool,
        typer.Option(
            "--public",
            help="Let whoever reaches --host read the metrics, with no token and no TLS.",
        ),
    ] = False,
    strict_coverage: StrictCoverage = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="A line of JSON for each reading.")
    ] = False,
) -> None:
    """Watch a folder of runs from outside: judge new checkpoints, serve metrics, send alerts.

    The training code is not touched. Ends at Ctrl-C (exit code 130) or SIGTERM (0), and goes on
    from its journal when it is started again.

    For example:

      wvmonitor watch runs --references banks/my-base --port 9108
    """
    from wvmonitor.live.settings import MonitorSettings
    from wvmonitor.live.validation import replaced
    from wvmonitor.scan.watch import Watcher, WatchOptions

    given: dict[str, Any] = {
        "references": references,
        "base": base,
        "calibration": calibration,
        "journal_dir": journal,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if strict_coverage:
        given["strict_coverage"] = True
    made = MonitorSettings.given(settings, **given)
    served = made.prometheus.model_dump() | {"enabled": True}
    if public:
        served["public"] = True
    served |= {k: v for k, v in {"host": host, "port": port}.items() if v is not None}
    final = replaced(made, {"prometheus": served})
    options = WatchOptions(every=every, settle=settle, optimizer=optimizer)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with Watcher(runs_dir, final, options, show=_json if as_json else _lines) as watcher:
        where = "nowhere" if watcher.port is None else f"port {watcher.port}"
        typer.echo(f"watching {runs_dir}; metrics on {where}", err=True)
        watcher.run(stop)


def _lines(observation: Observation) -> None:
    from wvmonitor.scan.text import number, visible

    for verdict in observation.verdicts:
        typer.echo(
            f"{verdict.state:<8}{visible(observation.run)}  step {observation.scores.step}  "
            f"{visible(verdict.reference)} {number(verdict.score)}  {visible(verdict.reason)}"
        )


def _json(observation: Observation) -> None:
    from wvmonitor.journal import codec

    typer.echo(
        json.dumps(
            {
                "run": observation.run,
                "step": observation.scores.step,
                "wall_time": observation.wall_time,
                "verdicts": codec.plain(observation.verdicts),
                "scores": codec.plain(observation.scores),
            },
            allow_nan=False,
        )
    )
