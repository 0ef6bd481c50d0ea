"""Cosines of saved weights, side by side with the plain ways of computing them.

Dense: four checkpoints against one dense reference; (i) loads both models, subtracts the state
dicts and sums the products key by key, as published scripts do. LoRA: one adapter against eight
references of rank 2r; (ii) loads the adapter's factors in float32 and loops over the pairs, norms
computed again for each. Each dense way runs in a process of its own, whose anonymous memory is
watched from outside. Inputs are in the page cache for both ways.
"""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks import inputs, machine, shapes
from benchmarks.report import Check, Figure, arguments, at_least, at_most, publish
from wvmonitor.references import ReferenceBank
from wvmonitor.sources import read_adapter, read_checkpoints
from wvmonitor.vectors import LowRankUpdate, TaskVector, Update

CHECKPOINTS = 4


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run both parts and publish them."""
    asked = arguments("offline", __doc__, argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=asked.work) as work:
        figures, checks = dense(Path(work), quick=asked.quick)
        more, others = lora(Path(work), quick=asked.quick)
    return publish("offline", figures + more, checks + others, quick=asked.quick, path=asked.json)


# Dense


def dense(work: Path, *, quick: bool) -> tuple[list[Figure], list[Check]]:
    """Four dense checkpoints against one dense reference."""
    shape = shapes.TINY if quick else shapes.QWEN_05B
    tensors = shape.tensors()
    folders = {"base": inputs.write_checkpoint(work / "base", tensors, 0)}
    for seed in range(1, CHECKPOINTS + 3):
        name = {CHECKPOINTS + 1: "positive", CHECKPOINTS + 2: "negative"}.get(seed, str(seed))
        folders[name] = inputs.write_checkpoint(work / name, tensors, seed, moved=0.002)
    runs = [str(folders[str(i)]) for i in range(1, CHECKPOINTS + 1)]
    pair = [str(folders["positive"]), str(folders["negative"])]
    base = str(folders["base"])
    bank = str(_dense_bank(work / "bank", pair))
    asked: dict[str, Any] = {"base": base, "runs": runs, "pair": pair, "bank": bank}
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "plain": []}
    for _ in range(1 if quick else 3):
        for way in found:
            found[way].append(machine.alone(f"benchmarks.offline:dense_{way}", asked))
    ours, plain = (_middle(found[way]) for way in ("ours", "plain"))
    files = [Path(p) / "model.safetensors" for p in (base, *runs)]
    size = sum(f.stat().st_size for f in files)
    reading = machine.median_seconds(lambda: machine.read_through(files), 1 if quick else 3)
    ratio = plain["seconds"] / ours["seconds"]
    memory = ours["peak_bytes"] / max(1, plain["peak_bytes"])
    detail = {
        "seconds": {"ours": ours["seconds"], "plain": plain["seconds"], "read": reading},
        "peak_mb": {w: v["peak_bytes"] / 1e6 for w, v in (("ours", ours), ("plain", plain))},
        "gb": size / 1e9,
    }
    name = f"dense {shape.name}, {CHECKPOINTS} checkpoints"
    ideal = (size + (len(runs) - 1) * files[0].stat().st_size) / size * reading
    figures = [
        at_least(f"{name}: times faster than (i)", ratio, 5, "×", **detail),
        at_most(f"{name}: anonymous memory beside (i)", memory, 0.1, "of (i)", **detail),
        at_least(
            f"{name}: speed beside a plain read of the bytes it reads",
            ideal / ours["measure_seconds"],
            0.5,
            "of the read",
            read_seconds=ideal,
        ),
    ]
    checks = [
        Check(f"cosine of checkpoint {i}", a, b)
        for i, (a, b) in enumerate(zip(ours["cosines"], plain["cosines"], strict=True), 1)
    ]
    return figures, checks


def _middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return sorted(runs, key=lambda r: r["seconds"])[len(runs) // 2]


def _dense_bank(folder: Path, pair: list[str]) -> Path:
    updates = dict(read_checkpoints(pair[1], pair[0]).updates())
    made = inputs.bank_of([inputs.reference("reference", updates)])
    made.save(folder)
    return folder


def dense_ours(asked: dict[str, Any]) -> dict[str, Any]:
    """The bank, then each checkpoint tensor by tensor (in a process of its own)."""
    bank = ReferenceBank.load(asked["bank"])
    squared = _squared_norm(bank)
    cosines = []
    began = time.perf_counter()
    for run in asked["runs"]:
        tau = read_checkpoints(asked["base"], run)
        reading = bank.measure(_of_unknown_base(tau))
        products = reading.geometries["frobenius"]
        cosines.append(
            float(products.products.sum() / math.sqrt(products.squared_norms.sum() * squared))
        )
    return {"cosines": cosines, "measure_seconds": time.perf_counter() - began}


def _of_unknown_base(tau: TaskVector) -> TaskVector:
    """The same vector, whose random base no bank of these benchmarks names."""
    tau.origin = replace(tau.origin, base_digest=None)
    return tau


def _squared_norm(bank: ReferenceBank) -> float:
    return sum(r.vector.squared_norm() for r in bank)


def dense_plain(asked: dict[str, Any]) -> dict[str, Any]:
    """(i): whole state dicts, subtracted and multiplied key by key, in float32."""

    def state(folder: str) -> dict[str, torch.Tensor]:
        loaded = load_file(f"{folder}/model.safetensors")
        return {k: v.to(torch.float32) for k, v in loaded.items()}

    positive, negative = map(state, asked["pair"])
    reference = {k: positive[k] - negative[k] for k in positive}
    del positive, negative
    cosines = []
    for run in asked["runs"]:
        base, tuned = state(asked["base"]), state(run)
        tau = {k: tuned[k] - base[k] for k in base}
        product = sum((tau[k] * reference[k]).sum().double() for k in tau)
        squares = [sum((v * v).sum().double() for v in x.values()) for x in (tau, reference)]
        cosines.append(float(product / math.sqrt(squares[0] * squares[1])))
    return {"cosines": cosines}


# LoRA


def lora(work: Path, *, quick: bool) -> tuple[list[Figure], list[Check]]:
    """One LoRA adapter against eight references that are held in memory by both ways."""
    shape = shapes.TINY if quick else shapes.QWEN_7B
    rank, count = (4, 8) if quick else (32, 8)
    linears = shape.linears()
    adapter = inputs.write_adapter(work / "adapter", linears, rank, 1)
    made = [
        inputs.reference(f"r{i}", inputs.factors(linears, 2 * rank, 50 + i)) for i in range(count)
    ]
    bank = inputs.bank_of(made)
    pairs = [dict(r.vector.updates()) for r in bank]

    def ours() -> list[float]:
        reading = bank.measure(read_adapter(adapter)).geometries["frobenius"]
        return [float(v) for v in reading.products.sum(0)]

    def plain() -> list[float]:
        loaded = load_file(adapter / "adapter_model.safetensors")
        return [_plain_pair(loaded, reference)[0] for reference in pairs]

    gflop = 2 * 2 * rank * count * shape.lora_parameters(rank) / 1e9
    ours()
    rates, taken, plains = [], [], []
    for _ in range(1 if quick else 5):
        rates.append(machine.matrix_rate(256 if quick else 2048) / 1e9)
        taken.append(machine.seconds(ours))
        plains.append(machine.seconds(plain))
    rate, mine, other = (sorted(x)[len(x) // 2] for x in (rates, taken, plains))
    floor = gflop / rate
    detail = {
        "seconds": {"ours": taken, "plain": plains, "floor": floor},
        "gflop": gflop,
        "matrix_gflops": rates,
    }
    name = f"LoRA r={rank} {shape.name}, 1 run × {count} references"
    figures = [
        at_least(f"{name}: times faster than (ii)", other / mine, 3, "×", **detail),
        at_least(f"{name}: share of the matrix-rate floor", floor / mine, 0.7, "of it", **detail),
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
