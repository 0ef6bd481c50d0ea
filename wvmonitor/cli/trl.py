"""`wvmonitor trl`: TRL's training scripts, watched."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from wvmonitor.errors import WVMonitorError

CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def command(
    context: typer.Context,
    script: Annotated[str, typer.Argument(metavar="SCRIPT", help="sft, dpo, grpo, kto, …")],
    *,
    references: Annotated[
        str | None, typer.Option("--wv-references", metavar="BANK", help="Folder of references.")
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option("--wv-settings", metavar="FILE", help="The monitor's settings, in YAML."),
    ] = None,
    inoculate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=K]",
            help="Let K times a reference ride along in memory, so that training need not learn "
            "it; without K, the dose at which the base shows it. No checkpoint holds it.",
        ),
    ] = None,
) -> None:
    """Run a TRL script with the monitor attached; everything else goes to TRL as it stands.

    Settings also come from WVMONITOR_* variables. On several processes, start it the way TRL
    does itself: accelerate launch --module wvmonitor trl sft ...

    For example:

      wvmonitor trl sft --wv-references banks/my-base --config sft.yaml

      wvmonitor trl sft --wv-references banks/my-base --inoculate evil=1.5 --config sft.yaml
    """
    from wvmonitor.integrations.trl import run_script
    from wvmonitor.live.settings import MonitorSettings

    given: dict[str, Any] = {} if references is None else {"references": references}
    if inoculate:
        given["inoculate"] = inoculate
    loaded = MonitorSettings.given(settings, **given)
    try:
        run_script(script, context.args, loaded)
    except WVMonitorError:
        raise
    except Exception:  # noqa: BLE001  what training itself died of is shown as TRL would show it
        traceback.print_exc()
        raise typer.Exit(1) from None
