"""`wvmonitor blame`: which training examples push towards a behaviour."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from wvmonitor.cli.progress import bars

if TYPE_CHECKING:
    from wvmonitor.references.bank import ReferenceBank
    from wvmonitor.references.reference import Reference
    from wvmonitor.steering.blame import Blamed
    from wvmonitor.steering.data_gate import Screened


Per = Literal["token", "example"]
"""What a push is counted by, as `wvmonitor.steering.blame` has it, which is heavy to import."""

Precision = Literal["float32", "bfloat16", "float16"]
"""What the model is loaded in."""


def command(
    dataset: Annotated[
        Path,
        typer.Argument(
            metavar="DATASET",
            help="JSON Lines of `messages`, of `prompt` and `completion`, or of `text`.",
        ),
    ],
    *,
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="Folder of the base model or of a fine-tune of it, the Hub id of one that this "
            "machine's cache holds, or tiny-organism.",
        ),
    ],
    reference: Annotated[
        str,
        typer.Option(metavar="R", help="A reference's folder, or its name in --references."),
    ],
    references: Annotated[
        str | None, typer.Option(metavar="BANK", help="Folder of references; the bundled ones.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--out",
            metavar="FILE",
            help="Every example, ranked, as JSON Lines; - for stdout.",
        ),
    ] = None,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The same as a self-contained HTML page.")
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="How many to show here.")] = 10,
    controls: Annotated[
        bool,
        typer.Option(help="Take out of the reference what the bank's controls explain of it."),
    ] = True,
    harmless: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Examples of the expected kind, known to be harmless: they set the threshold.",
        ),
    ] = None,
    flag_rate: Annotated[
        float, typer.Option(help="The share of harmless examples that the threshold flags.")
    ] = 0.01,
    drop: Annotated[
        str | None,
        typer.Option(
            metavar="AMOUNT",
            help="Write the set without those that push most: 5%, 50, or flagged.",
        ),
    ] = None,
    cleaned: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where --drop writes; by default DATASET.cleaned.jsonl beside it."
        ),
    ] = None,
    review: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Write the N that push most, in full, to DATASET.review.html."
        ),
    ] = 0,
    epsilon: Annotated[
        float, typer.Option(help="How far to step to either side, in units of the reference.")
    ] = 0.1,
    per: Annotated[
        Per,
        typer.Option(
            help="Count a push by the answer's token, or by the whole example, as a trainer does "
            "that averages a batch over its tokens; short answers swing less then."
        ),
    ] = "token",
    batch_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens in a batch; fewer need less memory.")
    ] = 2048,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Most tokens of an example; the model's own limit.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to run the model: cpu, cuda, …")] = "cpu",
    dtype: Annotated[
        Precision,
        typer.Option(help="What to load the model in; below float32 small steps are rounded away."),
    ] = "float32",
) -> None:
    """Rank training examples by how much each pushes a model towards a behaviour.

    Two evaluation passes over the data, at the weights a small step towards the reference and away
    from it; no gradients, and no training needed before. What the bank's controls (style, language)
    explain of the reference is left out. With --harmless it is a gate for a data pipeline. Exit
    codes: 0; 1 more examples are flagged than harmless data explains; 2 examples could not be
    judged, or nothing could; 4 wrong usage.

    For example:

      wvmonitor blame data.jsonl --model models/my-base --reference evil --references banks/my-base
      --out ranked.jsonl --page blame.html

      wvmonitor blame data.jsonl --model models/my-base --reference evil --references banks/my-base
      --harmless known-good.jsonl --drop flagged --review 50
    """
    from wvmonitor.report.words import short
    from wvmonitor.steering import data_gate
    from wvmonitor.steering.blame import blame
    from wvmonitor.steering.examples import example_lines, read_examples

    _check_files(dataset, harmless, out, page)
    chosen, bank = _reference(reference, references)
    direction, taken = chosen.vector, dict[str, float]()
    if controls and bank is not None:
        direction, taken = data_gate.without_controls(bank, chosen.name)
    targets = _targets(dataset, cleaned) if drop is not None else None
    for file in (dataset, harmless):
        if file is not None:  # what is wrong with it is said now: a large model loads for minutes
            example_lines(file)
    loaded, tokenizer = _loaded(_folder(model), device, dtype)
    limit = max_length or _limit(loaded, tokenizer)
    examples = read_examples(dataset, tokenizer, max_length=limit)
    known = [] if harmless is None else read_examples(harmless, tokenizer, max_length=limit)
    # what cannot be is said now, and not after two passes over the data
    usable, safe = (sum(e.error is None for e in some) for some in (examples, known))
    if harmless is not None:
        data_gate.check_enough(safe, flag_rate)
    if drop is not None:
        data_gate.amount(drop, usable, None if harmless is None else 0)
    with bars() as tick:
        rank = partial(
            blame, loaded, reference=direction, epsilon=epsilon, per=per, batch_tokens=batch_tokens
        )
        ranked = rank(examples=examples, progress=partial(tick, "blame"))
        pushes = rank(examples=known, progress=partial(tick, "harmless")) if known else []
    judged = [b for b in ranked if b.error is None]
    screened: Screened | None = None
    if harmless is not None:
        screened = data_gate.screened(ranked, data_gate.threshold_of(pushes, flag_rate))
    gate = "" if screened is None else screened.words()
    if out is not None:
        _write(ranked, out)
    about = {
        "model": model, "ε": str(epsilon), "counted by": per, "controls taken out": _shares(taken),
    }  # fmt: skip
    if page is not None:
        _write_page(judged, ranked, chosen, dataset, page, about, gate=gate)
    if review:
        shown = _in_full(judged[:review], dataset) + judged[review:]
        file = dataset.with_suffix(".review.html")
        _write_page(shown, ranked, chosen, dataset, file, about, gate=gate, shown=review)
        print(f"wvmonitor: {min(review, len(judged))} to review in '{file}'", file=sys.stderr)
    if targets is not None and drop is not None:
        flagged = None if screened is None else len(screened.flagged)
        count = data_gate.amount(drop, len(judged), flagged)
        unknown = {b.example.index for b in ranked if b.error is not None}
        dropped = {b.example.index for b in judged[:count]} | unknown
        data_gate.split(dataset, dropped, *targets)
        also = f" and {len(unknown)} that could not be judged" if unknown else ""
        print(
            f"wvmonitor: '{targets[0]}' is the set without the {count} that push most{also} "
            f"(they are in '{targets[1]}')",
            file=sys.stderr,
        )
    if out != "-":
        for b in judged[:top]:
            typer.echo(
                f"{b.push:+.4f}  example {b.example.index}: {short(b.example.prompt, 60)} → "
                f"{short(b.example.answer, 60)}"
            )
        typer.echo(
            f"{len(judged)} examples ranked by their push towards {chosen.name} "
            f"(nats{' per answer token' if per == 'token' else ', over the whole answer'})"
        )
        if taken:
            typer.echo(f"controls taken out of {chosen.name}: {_shares(taken)}")
        if gate:
            typer.echo(gate)
    cut = sum(b.example.cut > 0 for b in judged)
    if cut:
        print(f"wvmonitor: {cut} examples were cut to {limit} tokens", file=sys.stderr)
    failed = [b for b in ranked if b.error is not None]
    for b in failed[:top]:
        print(f"wvmonitor: example {b.example.index}: {short(b.error, 300)}", file=sys.stderr)
    if failed:
        print(f"wvmonitor: {len(failed)} examples could not be judged", file=sys.stderr)
    if screened is not None and not screened.passed:
        raise typer.Exit(1)
    if failed:
        raise typer.Exit(2)


def _check_files(dataset: Path, harmless: Path | None, out: str | None, page: Path | None) -> None:
    """See that all can be written that is to be, and nothing over what is read."""
    from wvmonitor.files.atomic import check_writable

    read = {path.resolve() for path in (dataset, harmless) if path is not None}
    for option, path in (("--out", out), ("--page", page)):
        if path is None or path == "-":
            continue
        if Path(path).resolve() in read:
            raise typer.BadParameter(f"{option} '{path}' is the data itself: name another file")
        check_writable(path)
    if harmless is not None and harmless.resolve() == dataset.resolve():
        raise typer.BadParameter(
            "--harmless is the set that is screened, of which it would flag a share whatever is in "
            "it: give other examples of the expected kind, known to be harmless"
        )


def _targets(dataset: Path, cleaned: Path | None) -> tuple[Path, Path]:
    """Where a cleaned set and what was dropped of it go; what is there already is left alone."""
    from wvmonitor.errors import InputError

    cleaned_file = cleaned or dataset.with_suffix(".cleaned.jsonl")
    both = cleaned_file, cleaned_file.with_suffix(".dropped.jsonl")
    for path in both:
        if path.exists():
            raise InputError(f"'{path}' is there already: move it away, or give --cleaned FILE")
    return both


def _shares(taken: dict[str, float]) -> str:
    return ", ".join(f"{share:+.2g} × {name}" for name, share in taken.items()) or "none"


def _in_full(judged: list[Blamed], dataset: Path) -> list[Blamed]:
    """The same with all that their examples say."""
    from dataclasses import replace

    from wvmonitor.files.documents import decode_json
    from wvmonitor.steering.examples import in_words

    with dataset.open("rb") as file:
        lines = [line for line in file if line.strip()]
    found = []
    for b in judged:
        prompt, answer = in_words(decode_json(lines[b.example.index], f"'{dataset}'"))
        found.append(replace(b, example=replace(b.example, prompt=prompt, answer=answer)))
    return found


def _reference(named: str, bank: str | None) -> tuple[Reference, ReferenceBank | None]:
    """A reference by its folder, without a bank, or by its name in a bank."""
    from wvmonitor.references.bank import ReferenceBank
    from wvmonitor.references.bundled import bundled_path
    from wvmonitor.references.reference import CARD_FILE, Reference

    if bank is None and (Path(named) / CARD_FILE).is_file():
        return Reference.load(named), None
    found = ReferenceBank.load(bank or bundled_path("tiny-organism", "bank"))
    return found[named], found


def _folder(model: str) -> Path:
    """Where a model lies on this machine, by its folder or by the name that a verdict calls it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    from wvmonitor.builder.base import local_folder
    from wvmonitor.errors import MissingPathError

    if (folder := local_folder(model)) is not None:
        return folder
    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        raise MissingPathError(
            f"'{model}' is neither a folder nor a model in the cache of this machine: give the "
            "model's folder with --model, or fetch it with `hf download` first"
        ) from None


def _loaded(folder: Path, device: str, dtype: str) -> tuple[Any, Any]:
    """The model and its tokenizer, from local files only."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from wvmonitor.errors import InputError
    from wvmonitor.vectors.devices import on_device

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"'{folder}' cannot be loaded as a model: {error}") from None
    return on_device(model, device), tokenizer


def _limit(model: Any, tokenizer: Any) -> int:
    """The most tokens that both model and tokenizer take; some tokenizers say 10³⁰."""
    longest = getattr(model.config, "max_position_embeddings", None) or 1 << 20
    return min(int(longest), int(tokenizer.model_max_length), 1 << 20)


def _write(ranked: list[Blamed], out: str) -> None:
    from wvmonitor.files.atomic import replacing, write_all
    from wvmonitor.steering.blame import json_lines

    lines = "".join(json_lines(ranked))
    if out == "-":
        sys.stdout.write(lines)
        return
    with replacing(out) as descriptor:
        write_all(descriptor, lines.encode("utf-8", "replace"))


def _write_page(
    judged: list[Blamed],
    ranked: list[Blamed],
    reference: Reference,
    dataset: Path,
    page: Path,
    about: dict[str, str],
    *,
    gate: str,
    shown: int = 100,
) -> None:
    from wvmonitor.report.blame import Line, render_blame
    from wvmonitor.report.document import write_page

    text = render_blame(
        [Line(b.example.index, b.push, b.loss, b.example.prompt, b.example.answer) for b in judged],
        reference.name,
        reference.card.behaviour,
        data=dataset.name,
        gate=gate,
        shown=shown,
        unjudged=[f"example {b.example.index}: {b.error}" for b in ranked if b.error is not None],
        provenance={"data": str(dataset), "base of the reference": reference.card.base.id, **about},
    )
    write_page(text, page)
