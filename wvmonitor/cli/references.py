"""`wvmonitor references`: look at banks of references, check, sign and share them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wvmonitor.cli.base import base_option

if TYPE_CHECKING:
    from wvmonitor.references.card import Card
    from wvmonitor.references.inventory import Summary

app = typer.Typer(help="Banks of references: look at, check, sign and share them.")

Bank = Annotated[
    str,
    typer.Argument(
        metavar="BANK",
        help="A bank's folder, or hf://ORG/NAME[@COMMIT] for a copy that was pulled.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
Base = Annotated[
    Path | None,
    base_option("Folder of the base model that the bank must be for, or of a relative"),
]
PublicKey = Annotated[
    Path | None,
    typer.Option(
        "--signature",
        metavar="KEY",
        help="Require a signature made with the other half of this public key (a PEM file).",
    ),
]


@app.command("list")
def list_(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FOLDER", help="Look here, up to four levels down, as well."),
    ] = None,
    *,
    as_json: Json = False,
) -> None:
    """List the bundled bank, the pulled ones, and those below folders of yours.

    Manifests and cards are read, weights are not: `verify` does that. Exit codes: 0; 2 if a bank
    cannot be read.

    For example:

      wvmonitor references list banks
    """
    from wvmonitor.errors import MissingPathError
    from wvmonitor.references.bundled import bundled_path
    from wvmonitor.references.inventory import cache_folder, inventory
    from wvmonitor.scan.text import visible

    for folder in folders or []:
        if not folder.is_dir():
            raise MissingPathError(f"'{folder}' is no folder: name one that holds banks")
    summaries = inventory([bundled_path("tiny-organism", "bank"), cache_folder(), *(folders or [])])
    if as_json:
        typer.echo(json.dumps([_described(s) for s in summaries], indent=2))
    else:
        for summary in summaries:
            typer.echo(visible(_line(summary)))
    if any(s.problem for s in summaries):
        raise typer.Exit(2)


@app.command()
def show(
    bank: Bank,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One reference, with all of its card.")
    ] = None,
    *,
    as_json: Json = False,
) -> None:
    """Show what a bank holds: its base, and each reference's card.

    For example:

      wvmonitor references show banks/my-base evil
    """
    from wvmonitor.errors import UnknownReferenceError
    from wvmonitor.references.card import model_card
    from wvmonitor.references.inventory import located, summarise
    from wvmonitor.references.store import REPORT_FILE
    from wvmonitor.references.trust import load_trust
    from wvmonitor.scan.text import visible

    summary = summarise(located(bank))
    cards = [c for c in summary.cards if name in (None, c.name)]
    if not cards:
        names = ", ".join(c.name for c in summary.cards)
        raise UnknownReferenceError(f"no reference {name!r} in this bank; it holds {names}")
    if as_json:
        shown = [c.model_dump(mode="json") for c in cards]
        typer.echo(json.dumps(_described(summary) | {"references": shown}, indent=2))
    elif name is not None:
        for line in model_card(cards[0]).split("---\n", 2)[2].splitlines():
            typer.echo(visible(line))
    else:
        typer.echo(visible(_line(summary)))
        typer.echo(f"  fingerprint {summary.fingerprint}")
        if summary.base is not None:
            typer.echo(visible(f"  base {summary.base.id}, digest {summary.base.digest}"))
        trust = load_trust(summary.folder, summary.fingerprint)
        if trust is not None:
            typer.echo(visible(f"  power check: {trust.sentence()}; {REPORT_FILE} has every run"))
        for card in cards:
            typer.echo(visible(f"  {_one(card)}"))


@app.command()
def verify(
    bank: Bank, *, base: Base = None, signature: PublicKey = None, as_json: Json = False
) -> None:
    """Check every file of a bank against its manifest, and its base and signature if asked to.

    Exit codes: 0 whole; 2 altered, unreadable, for another base, or not signed by that key.

    For example:

      wvmonitor references verify banks/my-base --base models/my-base --signature team.pub
    """
    from wvmonitor.references.bank import ReferenceBank
    from wvmonitor.references.inventory import located
    from wvmonitor.references.signing import verify_signature
    from wvmonitor.scan.text import visible

    folder = located(bank)
    if signature is not None:
        verify_signature(folder, signature)
    checked = ReferenceBank.load(folder)
    relation = checked.relation_to(_digest(base))
    unproven = [r.name for r in checked if not r.card.verified]
    if as_json:
        found = {
            "folder": str(folder),
            "fingerprint": checked.fingerprint,
            "base": checked.base.model_dump(mode="json"),
            "relation": relation,
            "signature": "valid" if signature is not None else "not checked",
            "unverified": unproven,
        }
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(visible(f"{folder}: whole, {len(checked.names)} references of {checked.base.id}"))
    typer.echo(f"fingerprint {checked.fingerprint}")
    if base is not None:
        typer.echo(
            "made for this base" if relation == "same" else "made for a relative of this base"
        )
    if signature is not None:
        typer.echo(visible(f"signed with the other half of {signature}"))
    for unverified in unproven:
        typer.echo(f"{unverified} has not passed its own checks (see `wvmonitor references show`)")


@app.command()
def pull(
    bank: Annotated[
        str, typer.Argument(metavar="ID", help="ORG/NAME[@REVISION] on the Hub, hf:// or not.")
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to make; one in the cache if left out."),
    ] = None,
    base: Base = None,
    signature: PublicKey = None,
    as_json: Json = False,
) -> None:
    """Fetch a bank from the Hub, and check all of it before it takes its place.

    A branch or tag is resolved to its commit, which is recorded and printed: name it the next time,
    and you get the same bytes.

    For example:

      wvmonitor references pull my-team/references --base models/my-base --signature team.pub
    """
    from dataclasses import asdict

    from wvmonitor.references.hub import pull as fetch
    from wvmonitor.scan.text import visible

    done = fetch(bank, out, base_digest=_digest(base), public_key=signature)
    if as_json:
        typer.echo(json.dumps(asdict(done) | {"folder": str(done.folder)}))
        return
    typer.echo(visible(done.folder))
    came = "pulled" if done.downloaded else "was here already"
    typer.echo(f"{done.repo}@{done.revision} {came}; fingerprint {done.fingerprint}")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The bank's folder.")],
    repo: Annotated[str, typer.Argument(metavar="ID", help="ORG/NAME on the Hub.")],
    *,
    public: Annotated[
        bool, typer.Option("--public", help="Everybody may see it; private if left out.")
    ] = False,
    understood: Annotated[
        bool, typer.Option("--i-understand", help="Publish references that are harmful to add.")
    ] = False,
    even_private: Annotated[
        bool,
        typer.Option("--even-private", help="Upload a bank whose files have mode 0600."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Upload a bank to the Hub in one commit, into a private repository unless told otherwise.

    Whoever has a reference can train around it, or add it: share it with those who need it.

    For example:

      wvmonitor references push banks/my-base my-team/references
    """
    from dataclasses import asdict

    from wvmonitor.references.hub import push as upload

    done = upload(folder, repo, public=public, allow_harmful=understood, allow_private=even_private)
    if as_json:
        typer.echo(json.dumps(asdict(done)))
        return
    visibility = "public" if done.public else "private"
    typer.echo(f"{done.repo}@{done.revision} ({visibility}); fingerprint {done.fingerprint}")


@app.command()
def sign(
    bank: Bank,
    key: Annotated[
        Path, typer.Option("--key", metavar="KEY", help="Private elliptic curve key, a PEM file.")
    ],
) -> None:
    """Sign a bank with a key of yours; those who hold its public half can verify it.

    For example:

      openssl ecparam -name prime256v1 -genkey -noout -out team.key

      openssl ec -in team.key -pubout -out team.pub

      wvmonitor references sign banks/my-base --key team.key
    """
    from wvmonitor.references.inventory import located
    from wvmonitor.references.signing import sign as sign_folder
    from wvmonitor.scan.text import visible

    typer.echo(visible(sign_folder(located(bank), key)))


def _digest(base: Path | None) -> str | None:
    from wvmonitor.sources import base_digest

    return None if base is None else base_digest(base)


def _line(summary: Summary) -> str:
    if summary.base is None:
        return f"{summary.folder}: {summary.problem}"
    marks = {
        "private": summary.private,
        "signed": summary.signed,
        "calibrated": summary.calibrated,
        "not all verified": any(not c.verified for c in summary.cards),
    }
    origin = summary.provenance
    parts = [
        f"{summary.folder}: {len(summary.cards)} references of {summary.base.id}",
        f"digest {summary.base.digest[:12]}…",
        *(mark for mark, holds in marks.items() if holds),
        *([f"from {origin.repo}@{origin.revision[:12]}"] if origin is not None else []),
    ]
    return ", ".join(parts)


def _one(card: Card) -> str:
    agreement = card.agreement("frobenius")
    parts = [
        f"{card.name}: {card.kind}",
        *(["harmful to add"] if card.harmful else []),
        *([] if card.verified else ["unverified"]),
        f"rank {card.rank}" if card.rank is not None else "dense",
        f"{card.kept:.1%} of ‖w‖² kept",
        *([] if agreement is None else [f"repeats agree to {agreement:.2f}"]),
        *(f"warning: {w}" for w in card.warnings),
    ]
    return ", ".join(parts)


def _described(summary: Summary) -> dict[str, Any]:
    return {
        "folder": str(summary.folder),
        "fingerprint": summary.fingerprint,
        "base": None if summary.base is None else summary.base.model_dump(mode="json"),
        "references": [c.name for c in summary.cards],
        "private": summary.private,
        "signed": summary.signed,
        "calibrated": summary.calibrated,
        "provenance": None if summary.provenance is None else summary.provenance.model_dump(),
        "problem": summary.problem,
    }
