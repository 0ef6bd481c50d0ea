"""`wvmonitor ack`: silence one finding of one run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from wvmonitor.journal.reader import JournalReader
    from wvmonitor.live.settings import MonitorSettings


def command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id (`wvmonitor runs`).")],
    reference: Annotated[
        str, typer.Option(metavar="NAME", help="The behaviour whose alerts are to be silent.")
    ],
    why: Annotated[str, typer.Option(metavar="TEXT", help="The reason, for the record.")],
    journal: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="The run's output folder, its wvmonitor.db, or a folder of runs."
        ),
    ] = Path(),
    settings: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The monitor's settings in YAML, for its notifiers, where the run is over.",
        ),
    ] = None,
) -> None:
    """Silence the alerts on one behaviour in one run, also while it trains; the journal keeps why.

    While the run is watched its open alert is resolved at the next reading. Where it is over, its
    notifiers are told at once, if --settings (or WVMONITOR_NOTIFIERS) says which they are.
    Verdicts, scores and reports stay as they are.

    For example:

      wvmonitor ack my-run --reference roleplay --why "trained on plays"
    """
    from wvmonitor.journal.lock import is_being_written
    from wvmonitor.journal.overview import journal_of
    from wvmonitor.journal.reader import JournalReader
    from wvmonitor.journal.tools import ack
    from wvmonitor.live.settings import MonitorSettings
    from wvmonitor.scan.text import visible

    given = MonitorSettings.given(settings)
    journal = journal_of(journal, run)
    ack(journal, run, reference, why)
    typer.echo(f"{visible(run)}: {visible(reference)} is acknowledged")
    reader = JournalReader(journal)
    if is_being_written(reader.path):
        typer.echo("The run is being watched: an open alert is resolved at its next reading.")
        return
    typer.echo(_resolved(reader, run, reference, why, given))
    typer.echo(
        "Nobody watches the run now, so Prometheus's own rules go on firing, for up to 12 hours "
        "after its last reading. To silence them:"
    )
    typer.echo(f"  {silence(run, reference, why)}")


def silence(run: str, reference: str, why: str) -> str:
    """The command that silences Prometheus's alerts on one behaviour of one run."""
    return shlex.join([
        "amtool", "silence", "add", "--alertmanager.url=http://127.0.0.1:9093", "--duration=12h",
        f"--comment={why}", f"run={_matched(run)}", f"reference={_matched(reference)}",
    ])  # fmt: skip


def _matched(value: str) -> str:
    """A value of a matcher, quoted as Alertmanager reads it."""
    text = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'


def _resolved(
    reader: JournalReader, run: str, reference: str, why: str, settings: MonitorSettings
) -> str:
    """Tell the notifiers that the open alert is over; what came of it, in words."""
    from wvmonitor.journal import writes
    from wvmonitor.journal.journal import Journal
    from wvmonitor.journal.outbox import Outbox

    notifiers = settings.build_notifiers()
    latest = reader.latest(run)
    if not notifiers or latest is None:
        return (
            "No notifier was told: who they are is not in the journal, for it keeps no secrets; "
            "give --settings FILE if the run had any."
        )
    verdict = next(v for v in latest.verdicts if v.reference == reference)
    bank = reader.attempts(run)[-1].bank
    policy = settings.alert_policy(lambda _: ())
    with_alerts = Journal.open(reader.path, run=run, alerts=policy)
    try:
        outbox = Outbox(with_alerts, {name: n.send for name, n in notifiers.items()})
        was_open = with_alerts.execute(lambda c: writes.resolve(c, run, verdict, why, bank, policy))
        outbox.close(timeout=10.0)
        waiting = outbox.pending()
    finally:
        with_alerts.close()
    if not was_open:
        return "No alert of the notifiers was open."
    names = ", ".join(notifiers)
    if waiting:
        return f"The open alert is over, but {waiting} messages to {names} wait: run this again."
    return f"The open alert is over, and was resolved at: {names}."
