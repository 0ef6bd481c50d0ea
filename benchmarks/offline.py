"""Cosines of saved weights, side by side with the plain ways of computing them.

Dense: four checkpoints against one dense reference; (i) loads both models, subtracts the state
dicts and sums the products key by key, as published scripts do. LoRA: one adapter against eight
references of rank 2r; (ii) loads the adapter's factors in float32 and loops over the pairs, norms
computed again for each. Every way runs on one thread; each dense one in a process of its own, whose
anonymous memory is watched from outside. Inputs are in the page cache for all.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks import inputs, machine, shapes
from benchmarks.report import Check, Figure, arguments, at_least, at_most, publish
from wvmonitor.references import ReferenceBank
from wvmonitor.sources import base_digest, read_adapter, read_checkpoints
from wvmonitor.vectors import LowRankUpdate, TaskVector, Update

CHECKPOINTS = 4


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run both parts and publish them."""
    asked = arguments("offline", __doc__, argv)
    torch.set_num_threads(1)
    figures: list[Figure] = []
    checks: list[Check] = []
    for part in (dense, lora):
        with tempfile.TemporaryDirectory(dir=asked.work) as work:
            found, others = part(Path(work), asked.rounds, asked.part, quick=asked.quick)
        figures += found
        checks += others
    return publish("offline", figures, checks, quick=asked.quick, path=asked.json)


# Dense


def dense(work: Path, rounds: int, part: int, *, quick: bool) -> tuple[list[Figure], list[Check]]:
    """Four dense checkpoints against one dense reference."""
    shape = shapes.TINY if quick else shapes.QWEN_05B.part(part)
    tensors: dict[str, tuple[int, ...]] = dict(shape.linears())
    if part == 1:
        tensors = shape.tensors()  # (i) needs 12 GB for them
    names = [*map(str, range(1, CHECKPOINTS + 1)), "positive", "negative"]
    base = str(inputs.write_checkpoint(work / "base", tensors, 0))
    folders = {
        name: str(inputs.write_checkpoint(work / name, tensors, seed, moved=0.002))
        for seed, name in enumerate(names, 1)
    }
    pair, runs = [folders.pop("positive"), folders.pop("negative")], list(folders.values())
    bank = str(_dense_bank(work / "bank", pair))
    asked: dict[str, Any] = {"base": base, "runs": runs, "pair": pair, "bank": bank}
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "plain": [], "read": []}
    for _ in range(rounds):
        for way in ("ours", "plain"):
            found[way].append(machine.alone(f"benchmarks.offline:dense_{way}", asked))
        found["read"].append(dense_read(asked))
    each = {w: [s for r in results for s in r["each"]] for w, results in found.items()}
    middle = {way: statistics.median(seconds) for way, seconds in each.items()}
    peak = {w: max(r["peak_bytes"] for r in found[w]) / 1e6 for w in ("ours", "plain")}
    digest = statistics.median(r["digest_seconds"] for r in found["ours"])
    name = f"dense {shape.name}, {shape.layers} layers, {CHECKPOINTS} checkpoints"
    all_of_them = digest + CHECKPOINTS * middle["ours"]
    figures = [
        at_least(
            f"{name}: times faster than (i)",
            CHECKPOINTS * middle["plain"] / all_of_them,
            5,
            "×",
            seconds_a_checkpoint=each,
            digest_of_the_base_seconds=digest,
        ),
        at_most(
            f"{name}: anonymous memory beside (i)",
            peak["ours"] / peak["plain"],
            0.1,
            "of (i)",
            peak_mb=peak,
        ),
        at_least(
            f"{name}: speed beside a plain read of base, checkpoint and reference, one core each",
            middle["read"] / middle["ours"],
            0.5,
            "of the read",
        ),
    ]
    checks = [
        Check(f"cosine of checkpoint {i}", a, b)
        for i, (a, b) in enumerate(
            zip(found["ours"][0]["cosines"], found["plain"][0]["cosines"], strict=True), 1
        )
    ]
    return figures, checks


def _dense_bank(folder: Path, pair: list[str]) -> Path:
    inputs.bank_of([inputs.reference("reference", read_checkpoints(pair[1], pair[0]))]).save(folder)
    return folder


def dense_ours(asked: dict[str, Any]) -> dict[str, Any]:
    """The bank, then each checkpoint block by block (in a process of its own)."""
    bank = ReferenceBank.load(asked["bank"])
    squared = sum(r.vector.squared_norm() for r in bank)
    digest = machine.seconds(lambda: base_digest(asked["base"]))  # once, then it is known
    cosines, each = [], []
    for run in asked["runs"]:

        def measure(run: str = run) -> None:
            reading = bank.measure(of_unknown_base(read_checkpoints(asked["base"], run)))
            products = reading.geometries["frobenius"]
            norms = math.sqrt(products.squared_norms.sum() * squared)
            cosines.append(float(products.products.sum() / norms))

        each.append(machine.seconds(measure))
    return {"cosines": cosines, "each": each, "digest_seconds": digest}


def of_unknown_base(tau: TaskVector) -> TaskVector:
    """The same vector, whose random base no bank of these benchmarks names."""
    tau.origin = replace(tau.origin, base_digest=None)
    return tau


def dense_plain(asked: dict[str, Any]) -> dict[str, Any]:
    """(i): whole state dicts, subtracted and multiplied key by key, in float32."""

    def state(folder: str) -> dict[str, torch.Tensor]:
        loaded = load_file(f"{folder}/model.safetensors")
        return {k: v.to(torch.float32) for k, v in loaded.items()}

    positive, negative = map(state, asked["pair"])
    reference = {k: positive[k] - negative[k] for k in positive}
    del positive, negative
    cosines, each = [], []
    for run in asked["runs"]:

        def measure(run: str = run) -> None:
            base, tuned = state(asked["base"]), state(run)
            tau = {k: tuned[k] - base[k] for k in base}
            product = sum((tau[k] * reference[k]).sum().double() for k in tau)
            squares = [sum((v * v).sum().double() for v in x.values()) for x in (tau, reference)]
            cosines.append(float(product / math.sqrt(squares[0] * squares[1])))

        each.append(machine.seconds(measure))
    return {"cosines": cosines, "each": each}


def dense_read(asked: dict[str, Any]) -> dict[str, Any]:
    """The bytes that are read for each checkpoint, and nothing done with them."""
    reference = Path(asked["bank"]) / "reference" / "reference.safetensors"
    base = Path(asked["base"]) / "model.safetensors"
    runs = [Path(run) / "model.safetensors" for run in asked["runs"]]
    each = [
        machine.seconds(lambda run=run: machine.read_through([base, run, reference]))  # type: ignore[misc]
        for run in runs
    ]
    return {"each": each}


# LoRA


def lora(work: Path, rounds: int, part: int, *, quick: bool) -> tuple[list[Figure], list[Check]]:
    """One LoRA adapter against eight references that both ways hold in memory."""
    shape = shapes.TINY if quick else shapes.QWEN_7B.part(part)
    rank, count = (4, 8) if quick else (32, 8)
    linears = shape.linears()
    adapter = inputs.write_adapter(work / "adapter", linears, rank, 1)
    bank = inputs.bank_of(
        inputs.reference(f"r{i}", inputs.factors(linears, 2 * rank, 50 + i)) for i in range(count)
    )
    pairs = [dict(r.vector.updates()) for r in bank]

    def ours() -> list[float]:
        reading = bank.measure(read_adapter(adapter)).geometries["frobenius"]
        return [float(v) for v in reading.products.sum(0)]

    def plain() -> list[float]:
        loaded = load_file(adapter / "adapter_model.safetensors")
        return [_plain_pair(loaded, reference)[0] for reference in pairs]

    a, b = (torch.randn(256 if quick else 2048, 256 if quick else 2048) for _ in range(2))
    held = torch.ones(1 << (16 if quick else 26))
    taken = machine.paired(
        {"ours": ours, "plain": plain, "square": lambda: a @ b, "memory": held.sum}, rounds
    )
    middle = {way: statistics.median(seconds) for way, seconds in taken.items()}
    flop = 2 * 2 * rank * count * shape.lora_parameters(rank)
    stacked = 4 * count * shape.lora_parameters(2 * rank)
    floors = {
        "arithmetic": flop * middle["square"] / (2 * len(a) ** 3),
        "references_from_memory": stacked * middle["memory"] / held.nbytes,
    }
    detail: dict[str, Any] = {
        "seconds": taken,
        "floor_seconds": floors,
        "gflop": flop / 1e9,
        "references_gb": stacked / 1e9,
    }
    name = f"LoRA r={rank} {shape.name}, {shape.layers} layers, 1 run × {count} references"
    figures = [
        at_least(
            f"{name}: times faster than (ii)", middle["plain"] / middle["ours"], 3, "×", **detail
        ),
        at_least(
            f"{name}: share of the matrix-rate floor",
            floors["arithmetic"] / middle["ours"],
            0.7,
            "of it",
        ),
        Figure(
            f"{name}: share of the time to read the references from memory once",
            floors["references_from_memory"] / middle["ours"],
            "of it",
        ),
    ]
    checks = [
        Check(f"⟨run, reference {i}⟩", a, b)
        for i, (a, b) in enumerate(zip(ours(), plain(), strict=True))
    ]
    return figures, checks


def _plain_pair(
    loaded: dict[str, torch.Tensor], reference: dict[str, Update]
) -> tuple[float, float]:
    """(ii): the product and the cosine of one pair, with both norms computed for it."""
    product = ours = theirs = 0.0
    for name, update in reference.items():
        assert isinstance(update, LowRankUpdate)
        path = f"base_model.model.{name.removesuffix('.weight')}"
        a = loaded[f"{path}.lora_A.weight"].float()
        b = loaded[f"{path}.lora_B.weight"].float() * 2
        left, right = update.left, update.right
        product += float(((b.T @ left) * (a @ right.T)).sum(dtype=torch.float64))
        ours += float(((b.T @ b) * (a @ a.T)).sum(dtype=torch.float64))
        theirs += float(((left.T @ left) * (right @ right.T)).sum(dtype=torch.float64))
    return product, product / math.sqrt(ours * theirs)


if __name__ == "__main__":
    main()
