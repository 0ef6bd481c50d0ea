"""Cosines of saved weights, side by side with the plain ways of computing them.

Dense: four checkpoints against one dense reference; (i) loads both models, subtracts the state
dicts and sums the products key by key, as published scripts do. LoRA: one adapter against eight
references of rank 2r; (ii) loads the adapter's factors in float32 and loops over the pairs, norms
computed again for each; eight adapters at once, as in an archive, are shown beside it. Every way
runs on one thread, but for a scan with a worker process for each core, which is measured by the
clock; each dense one in a process of its own, whose anonymous memory is watched from outside.
Inputs are in the page cache for all.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks import inputs, machine, shapes
from benchmarks.report import Check, Figure, at_least, at_most, publish_parts
from wvmonitor.outputs.scan_record import CheckpointResult
from wvmonitor.references import ReferenceBank
from wvmonitor.scan.executors import open_executor
from wvmonitor.scan.scan import scan
from wvmonitor.sources import base_digest, read_adapter, read_checkpoints
from wvmonitor.vectors import LowRankUpdate, TaskVector, Update

CHECKPOINTS = 4
TOGETHER = 8


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run both parts and publish them."""
    return publish_parts("offline", __doc__, (dense, lora), argv)


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
    vector = read_checkpoints(pair[1], pair[0])
    bank = inputs.bank_of([inputs.reference("reference", vector, base_digest(base))])
    bank.save(work / "bank")
    asked: dict[str, Any] = {"base": base, "runs": runs, "pair": pair, "bank": str(work / "bank")}
    found: dict[str, list[dict[str, Any]]] = {
        way: [
            machine.alone(f"benchmarks.offline:dense_{way}", asked, quick=quick)
            for _ in range(rounds)
        ]
        for way in ("one", "all", "plain", "read")
    }

    def middle(way: str, which: str) -> float:
        return statistics.median(result[which] for result in found[way])

    def peak(way: str) -> float:
        return max(result["peak_bytes"] for result in found[way]) / 1e6

    name = f"dense {shape.name}, {shape.layers} layers, {CHECKPOINTS} checkpoints"
    cores = machine.cores()
    figures = [
        at_least(
            f"{name}: times faster than (i), {cores} workers, by the clock",
            middle("plain", "clock") / middle("all", "clock"),
            5,
            "×",
            found=found,
        ),
        Figure(
            f"{name}: times faster than (i), one core each",
            middle("plain", "processor") / middle("one", "processor"),
            "×",
        ),
        at_most(f"{name}: anonymous memory beside (i)", peak("one") / peak("plain"), 0.1, "of (i)"),
        Figure(
            f"{name}: anonymous memory of {cores} workers and their interpreters",
            peak("all") / peak("plain"),
            "of (i)",
        ),
        at_least(
            f"{name}: speed beside {cores} threads that read the same bytes, {cores} workers",
            middle("read", "together") / middle("all", "clock"),
            0.5,
            "of the read",
        ),
        Figure(
            f"{name}: speed beside one thread that reads the same bytes, one core each",
            middle("read", "alone") / middle("one", "processor"),
            "of the read",
        ),
    ]
    checks = [
        Check(f"cosine of checkpoint {i}", a, b)
        for i, (a, b) in enumerate(
            zip(found["one"][0]["cosines"], found["plain"][0]["cosines"], strict=True), 1
        )
    ]
    norms = zip(found["all"][0]["norms"], found["plain"][0]["norms"], strict=True)
    return figures, [
        *checks,
        *(Check(f"norm of checkpoint {i}", a, b) for i, (a, b) in enumerate(norms, 1)),
    ]


def dense_one(asked: dict[str, Any]) -> dict[str, Any]:
    """The base's digest, and each checkpoint block by block, on one core."""
    bank = ReferenceBank.load(asked["bank"])
    squared = sum(r.vector.squared_norm() for r in bank)
    cosines: list[float] = []

    def measure() -> None:
        for run in asked["runs"]:
            reading = bank.measure(read_checkpoints(asked["base"], run))
            products = reading.geometries["frobenius"]
            norms = math.sqrt(products.squared_norms.sum() * squared)
            cosines.append(float(products.products.sum() / norms))

    return {"processor": machine.seconds(measure), "cosines": cosines}


def dense_all(asked: dict[str, Any]) -> dict[str, Any]:
    """A scan with a worker for each core; they are started, and have the bank, before the clock."""
    bank, cores = ReferenceBank.load(asked["bank"]), machine.cores()
    with open_executor(workers=cores) as executor:
        list(scan(asked["pair"], bank, base=asked["pair"][0], executor=executor))
        results: list[CheckpointResult] = []
        clock = machine.wall_seconds(
            lambda: results.extend(
                scan(
                    asked["runs"],
                    bank,
                    base=asked["base"],
                    executor=executor,
                    workers=cores,
                    ordered=True,
                )
            )
        )
    return {"clock": clock, "norms": [r.norm for r in results]}


def dense_plain(asked: dict[str, Any]) -> dict[str, Any]:
    """(i): whole state dicts, subtracted and multiplied key by key, in float32."""

    def state(folder: str) -> dict[str, torch.Tensor]:
        loaded = load_file(f"{folder}/model.safetensors")
        return {k: v.to(torch.float32) for k, v in loaded.items()}

    positive, negative = map(state, asked["pair"])
    reference = {k: positive[k] - negative[k] for k in positive}
    del positive, negative
    cosines: list[float] = []
    lengths: list[float] = []

    def measure() -> None:
        for run in asked["runs"]:
            base, tuned = state(asked["base"]), state(run)
            tau = {k: tuned[k] - base[k] for k in base}
            product = sum((tau[k] * reference[k]).sum().double() for k in tau)
            squares = [sum((v * v).sum().double() for v in x.values()) for x in (tau, reference)]
            cosines.append(float(product / math.sqrt(squares[0] * squares[1])))
            lengths.append(math.sqrt(squares[0]))

    began = time.perf_counter()
    processor = machine.seconds(measure)
    return {
        "processor": processor,
        "clock": time.perf_counter() - began,
        "cosines": cosines,
        "norms": lengths,
    }


def dense_read(asked: dict[str, Any]) -> dict[str, Any]:
    """The bytes that are read for the checkpoints, and nothing done with them."""
    reference = Path(asked["bank"]) / "reference" / "reference.safetensors"
    base = Path(asked["base"]) / "model.safetensors"
    runs = [Path(run) / "model.safetensors" for run in asked["runs"]]
    files = [file for run in runs for file in (base, run, reference)]
    machine.read_through(files)  # what loads whole models may have driven files from the page cache
    return {
        "alone": machine.seconds(lambda: machine.read_through(files)),
        "together": machine.wall_seconds(
            lambda: machine.read_through_together(files, machine.cores())
        ),
    }


def of_unknown_base(tau: TaskVector) -> TaskVector:
    """The same vector, whose random base no bank of these benchmarks names."""
    tau.origin = replace(tau.origin, base_digest=None)
    return tau


# LoRA


def lora(work: Path, rounds: int, part: int, *, quick: bool) -> tuple[list[Figure], list[Check]]:
    """LoRA adapters, alone and together, against eight references that all ways hold in memory."""
    shape = shapes.TINY if quick else shapes.QWEN_7B.part(part)
    rank, count = (4, 8) if quick else (32, 8)
    linears = shape.linears()
    adapters = [inputs.write_adapter(work / f"a{i}", linears, rank, i) for i in range(TOGETHER)]
    bank = inputs.bank_of(
        inputs.reference(f"r{i}", inputs.factors(linears, 2 * rank, 50 + i)) for i in range(count)
    )
    pairs = [dict(r.vector.updates()) for r in bank]

    def ours(some: list[Path]) -> list[float]:
        readings = bank.measure_together([read_adapter(a) for a in some])
        products = [r.geometries["frobenius"].products for r in readings]
        return [float(v) for p in products for v in p.sum(0)]

    def plain() -> list[float]:
        loaded = load_file(adapters[0] / "adapter_model.safetensors")
        return [_plain_pair(loaded, reference)[0] for reference in pairs]

    a, b = (torch.randn(256 if quick else 2048, 256 if quick else 2048) for _ in range(2))
    held = torch.ones(1 << (16 if quick else 26))
    ways: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours(adapters[:1]),
        "together": lambda: ours(adapters),
        "plain": plain,
        "square": lambda: a @ b,
        "memory": held.sum,
    }
    taken = machine.paired(ways, rounds)
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
        at_least(
            f"{name}, {TOGETHER} runs at once: share of the matrix-rate floor",
            TOGETHER * floors["arithmetic"] / middle["together"],
            0.7,
            "of it",
        ),
        at_least(
            f"{name}, {TOGETHER} runs at once: times faster than (ii)",
            TOGETHER * middle["plain"] / middle["together"],
            3,
            "×",
        ),
        Figure(
            f"{name}: share of the time to read the references from memory once",
            floors["references_from_memory"] / middle["ours"],
            "of it",
        ),
    ]
    checks = [
        Check(f"⟨run, reference {i}⟩", a, b)
        for i, (a, b) in enumerate(zip(ours(adapters), plain(), strict=False))
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
