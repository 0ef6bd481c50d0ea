"""What watching a LoRA fine-tune costs, as a share of its steps.

A model of Qwen2.5's layer shapes with random weights and LoRA r=32 on all linear layers takes real
training steps; every tenth is followed by a snapshot (the live task vector measured against a bank
of references of rank 64). On a CPU a few layers stand for all: step and snapshot both grow with
their number, so the share does not; times are of one thread's work. On CUDA the models are whole,
times are CUDA events', and one device synchronisation a snapshot is asserted.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import inputs, machine, shapes
from benchmarks.report import Check, Figure, arguments, at_most, publish
from wvmonitor.references import ReferenceBank
from wvmonitor.sources.live_model import LiveModel
from wvmonitor.vectors import LowRankUpdate, TaskVector

RANK, EVERY = 32, 10
BANKS = (1, 4, 8, 16)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run on CUDA where there is one, else on the CPU."""
    asked = arguments("overhead", __doc__, argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cuda = torch.cuda.is_available() and not asked.quick
    figures: list[Figure] = []
    checks: list[Check] = []
    if asked.quick:
        plan = [(shapes.TINY, 2, 64)]
    elif cuda:
        plan = [(shapes.QWEN_05B, 24, 16_384), (shapes.QWEN_7B, 28, 8192)]
    else:
        plan = [(shapes.QWEN_05B, 2, 1024), (shapes.QWEN_7B, 1, 512)]
    for shape, layers, tokens in plan:
        banks = (1, 4) if asked.quick else BANKS
        found, others = _shares(shape.with_layers(layers), tokens, banks, asked.rounds, cuda=cuda)
        figures += found
        checks += others
    if not cuda:
        with tempfile.TemporaryDirectory(dir=asked.work) as work:
            figures += _memory(Path(work), shapes.TINY if asked.quick else shapes.QWEN_05B)
    return publish("overhead", figures, checks, quick=asked.quick, path=asked.json)


def _shares(
    shape: shapes.Shape, tokens: int, banks: tuple[int, ...], rounds: int, *, cuda: bool
) -> tuple[list[Figure], list[Check]]:
    device = "cuda" if cuda else "cpu"
    model, step = training(shape, tokens, device)
    step()
    step_ms = statistics.median(_milliseconds(step, device) for _ in range(rounds))
    live = LiveModel(model)
    live.base_digest = None  # random weights: no reference was made for them
    figures, checks = [], []
    limit = 0.1 if cuda else 0.5
    name = f"{shape.name}, {shape.layers} layers, {tokens} tokens a step on {device}"
    for count in banks:
        bank = inputs.bank_of(
            inputs.reference(f"r{i}", inputs.factors(shape.linears(), 2 * RANK, 70 + i, device))
            for i in range(count)
        )

        def snapshot(bank: ReferenceBank = bank) -> Any:
            return bank.measure(live.task_vector())

        reading = snapshot()
        taken = [_milliseconds(snapshot, device) for _ in range(rounds)]
        ms = statistics.median(taken)
        share = 100 * ms / (EVERY * step_ms)
        detail = {"snapshot_ms": taken, "step_ms": step_ms}
        figures.append(
            at_most(f"{name}: share of step time, {count} references", share, limit, "%", **detail)
        )
        if cuda:
            figures += _on_cuda(name, shape, snapshot, count, ms)
        if count == banks[0]:
            checks += _compared(live.task_vector(), bank, reading.geometries["frobenius"].products)
        del bank, reading, snapshot
        gc.collect()
    return figures, checks


def _on_cuda(name: str, shape: shapes.Shape, snapshot: Any, count: int, ms: float) -> list[Figure]:
    figures = []
    if shape.name == shapes.QWEN_7B.name and count == 8:
        figures.append(at_most(f"{name}: a snapshot, {count} references", ms, 5, "ms"))
    with counted_synchronisations() as syncs:
        snapshot()
    assert len(syncs) == 1, f"{len(syncs)} device synchronisations in a snapshot: {syncs}"
    figures.append(at_most(f"{name}: synchronisations a snapshot", len(syncs), 1, "syncs"))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    snapshot()
    extra = (torch.cuda.max_memory_allocated() - before) / 1e6
    figures.append(
        at_most(f"{name}: peak device memory beside the bank", extra, one_layer(shape), "MB")
    )
    return figures


def one_layer(shape: shapes.Shape) -> float:
    """Megabytes of the largest weight matrix in float32: what a dense update would take."""
    return max(o * i for o, i in shape.linears().values()) * 4 / 1e6


@contextmanager
def counted_synchronisations() -> Iterator[list[str]]:
    """Collects a line for each time the host waits for the device."""
    found: list[str] = []
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
            found += [str(w.message) for w in caught if "synchroniz" in str(w.message)]


def training(shape: shapes.Shape, tokens: int, device: str) -> tuple[nn.Module, Any]:
    """A LoRA fine-tune of a model of random weights: the model, and a function that steps it."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    width = 128 if shape.hidden >= 2048 else 64 if shape.hidden > 64 else 16
    heads = shape.hidden // width
    config = Qwen2Config(
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads * shape.kv // shape.hidden),
        vocab_size=shape.vocabulary if device == "cuda" else min(shape.vocabulary, 1024),
        tie_word_embeddings=True,
    )
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        base = Qwen2ForCausalLM(config).to(dtype)
    lora = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    ids = torch.randint(0, config.vocab_size, (max(1, tokens // 512), min(tokens, 512)))
    ids = ids.to(device)

    def step() -> None:
        optimiser.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()

    return model, step


def _milliseconds(run: Any, device: str) -> float:
    if device != "cuda":
        return 1000 * machine.seconds(run)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))


def _compared(tau: TaskVector, bank: ReferenceBank, found: Any) -> list[Check]:
    """The first parameter's product with the first reference, against dense float64."""
    name = tau.names()[0]
    ours, theirs = tau.update(name), bank[bank.names[0]].vector.update(name)
    assert isinstance(ours, LowRankUpdate)
    expected = float((inputs.dense(ours) * inputs.dense(theirs)).sum())
    return [Check(f"⟨τ, w⟩ of {name}", float(found[0, 0]), expected)]


def _memory(work: Path, shape: shapes.Shape) -> list[Figure]:
    bank = inputs.write_bank(work / "bank", shape.linears(), 8, 2 * RANK)
    asked = {"bank": str(bank), "layers": shape.layers, "shape": shape.name}
    found = machine.alone("benchmarks.overhead:memory_alone", asked)
    size = sum(f.stat().st_size for f in bank.rglob("*.safetensors"))
    limit = 1.1 * size / 1e6 + one_layer(shape)
    return [
        at_most(
            f"{shape.name}, 8 references: peak extra memory (the bank + one layer, a tenth more "
            "for the allocator)",
            (found["peak_bytes"] - found["own_bytes"]) / 1e6,
            limit,
            "MB",
            bank_mb=size / 1e6,
            one_layer_mb=one_layer(shape),
        )
    ]


def memory_alone(asked: dict[str, Any]) -> dict[str, Any]:
    """Load a bank and measure a vector, whose own memory is told apart, several times."""
    known = {s.name: s for s in (shapes.TINY, shapes.QWEN_05B, shapes.QWEN_7B)}
    linears = known[asked["shape"]].with_layers(asked["layers"]).linears()
    own = machine.anonymous_bytes()
    tau = inputs.factors(linears, RANK, 1).held()
    own = machine.anonymous_bytes() - own
    bank = ReferenceBank.load(asked["bank"])
    for _ in range(3):
        bank.measure(tau)
        time.sleep(0.01)
    return {"own_bytes": own}


if __name__ == "__main__":
    main()
