"""`wvmonitor rules`: alert rules for Prometheus."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    references: Annotated[
        str, typer.Option(metavar="BANK", help="Folder of the references that runs are held to.")
    ],
    out: Annotated[
        str, typer.Option("-o", "--out", metavar="FILE", help="The file; - for standard output.")
    ] = "-",
    hold: Annotated[
        str, typer.Option(metavar="TIME", help="How long an alarm fires after the run has ended.")
    ] = "12h",
    stale: Annotated[
        str, typer.Option(metavar="TIME", help="Time without a reading that counts as silence.")
    ] = "30m",
    coverage: Annotated[
        float, typer.Option(metavar="SHARE", help="Least share of the change that scores must see.")
    ] = 0.9,
    runbooks: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where the pages on each alert are (docs/alerts)."),
    ] = None,
    dashboard: Annotated[
        str | None, typer.Option(metavar="URL", help="A dashboard that alerts link to.")
    ] = None,
) -> None:
    """Write Prometheus alert rules for the behaviours of a bank.

    examples/observability/ has the configuration around them: Prometheus, Alertmanager, Grafana.

    For example:

      wvmonitor rules --references banks/my-base --out /etc/prometheus/rules/wvmonitor.yml
    """
    from wvmonitor.outputs.rules import RuleLinks, RuleTimes, rules_text

    times = RuleTimes(hold=hold, stale=stale, coverage=coverage)
    links = RuleLinks(runbooks=runbooks, dashboard=dashboard)

    from wvmonitor.files.atomic import write_text
    from wvmonitor.references.bank import ReferenceBank

    bank = ReferenceBank.load(references)
    text = rules_text({n: bank[n].card.behaviour for n in bank.behaviours}, times, links)
    if out == "-":
        typer.echo(text, nl=False)
        return
    write_text(out, text)
    typer.echo(f"{out}: rules for {', '.join(bank.behaviours)}")
