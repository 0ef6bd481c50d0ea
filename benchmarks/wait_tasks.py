"""What `benchmarks.waits` runs in processes of their own, with a version of wvmonitor on the path.

`python -P benchmarks/wait_tasks.py TASK ARGUMENT` prints JSON: processor seconds of ours and of its
floor, taken in turns. Nothing but wvmonitor's public names and what both versions share is used, so
that the same task measures an older checkout.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

VOCABULARY = 49_152
TOGETHER = 32
"""Modules that plain code multiplies at once."""
DENSE_BLOCK = 1 << 17
PROMPT, ANSWER = 56, 44
"""Tokens of an example of the project's own contrasts under SmolLM2's chat template, on average."""


def turns(
    rounds: int, clock: Callable[[], float] = time.process_time, **ways: Callable[[], Any]
) -> dict[str, list[float]]:
    """Processor seconds of each way, in turns; where there are several, one more warms up."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + (rounds > 1)):
        for name, run in ways.items():
            began = clock()
            run()
            if turn or rounds == 1:
                found[name].append(clock() - began)
    return found


_SMOLLM2, _TINY = (576, 1536, 9, 3, VOCABULARY), (64, 128, 4, 2, 512)


def model_of(
    layers: int,
    *,
    tiny: bool,
    dtype: torch.dtype = torch.float32,
    width: Sequence[int] | None = None,
) -> Any:
    """A random model of SmolLM2-135M's shape, a tiny one, or of a width.

    Args:
        layers: transformer blocks.
        tiny: whether a tiny one.
        dtype: of its weights.
        width: of the residual stream and the MLP, heads, heads of keys and values, vocabulary.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    hidden, mlp, heads, kv, vocabulary = width or (_TINY if tiny else _SMOLLM2)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=mlp,
        vocab_size=vocabulary,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    torch.set_default_dtype(dtype)
    try:
        return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def rows_of(count: int, vocabulary: int, longest: float) -> Iterator[list[int]]:
    """Rows of tokens whose lengths vary as answers do: a half to `longest` of the mean."""
    generator = torch.Generator().manual_seed(1)
    for index in range(count):
        share = 0.5 + (longest - 0.5) * ((7 * index) % count) / count
        length = max(8, int((PROMPT + ANSWER) * share))
        yield torch.randint(1, vocabulary, (length,), generator=generator).tolist()


def attach(argument: dict[str, Any]) -> dict[str, Any]:
    """A LoRA on a base on disk, until the first step may begin; beside its bytes' hash."""
    from peft import LoraConfig, get_peft_model

    from wvmonitor.sources import LiveModel, identity

    folder = Path(argument["base"])
    of = {"layers": argument["layers"], "width": argument.get("width")}
    base = model_of(**of, tiny=False, dtype=torch.bfloat16)  # the one on disk
    lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora)

    def ours() -> None:
        identity._known.clear()
        os.environ["WVMONITOR_DIGEST_CACHE"] = "off"
        LiveModel(model, base=folder)

    def again() -> None:
        identity._known.clear()
        os.environ["WVMONITOR_DIGEST_CACHE"] = argument["digests"]
        LiveModel(model, base=folder)

    def floor() -> None:
        with (folder / "model.safetensors").open("rb", buffering=0) as file:
            digest = hashlib.sha256()
            while piece := file.read(1 << 19):
                digest.update(piece)

    before = os.environ["WVMONITOR_DIGEST_CACHE"]
    try:
        again()  # hashes, and keeps it
        return turns(argument["rounds"], ours=ours, again=again, floor=floor)
    finally:
        os.environ["WVMONITOR_DIGEST_CACHE"] = before


def probe(argument: dict[str, Any]) -> dict[str, Any]:
    """The probe's passes beside bare ones: without padding, and without logits."""
    from wvmonitor.builder import probe as builder
    from wvmonitor.reading import component_of
    from wvmonitor.vectors.probe import collect_probe

    model = model_of(argument["layers"], tiny=argument["tiny"])
    model(torch.tensor([[1, 2, 3]]))  # makes what is made once
    vocabulary = model.config.vocab_size
    rows = rows_of(argument["rows"], vocabulary, 2.0)
    marked = [(row, [False] + [True] * (len(row) - 1)) for row in rows]
    shapes = {name: p.shape for name, p in model.named_parameters() if p.ndim == 2}
    names = [name for name, shape in shapes.items() if component_of(name, shape) == "blocks"]
    base: Any = SimpleNamespace(model=model, tokenizer=SimpleNamespace(pad_token_id=0))
    made: list[Any] = []

    def ours() -> None:
        batches = builder._batches(base, marked, 1 << 40, lambda *_: None)
        made.append(collect_probe(model, batches, names))

    @torch.no_grad()
    def floor() -> None:
        for ids, _ in marked:
            model.model(input_ids=torch.tensor([ids]), use_cache=False)

    found: dict[str, Any] = turns(argument["rounds"], ours=ours, floor=floor)
    return {**found, "tokens": made[-1].tokens, "expected": sum(len(r) - 1 for r, _ in marked)}


def blame(argument: dict[str, Any]) -> dict[str, Any]:
    """A ranking beside two bare passes: no padding, logits of the answers' tokens alone."""
    from wvmonitor.steering.blame import blame as rank
    from wvmonitor.steering.examples import TrainingExample
    from wvmonitor.vectors import LowRankUpdate, Origin, TaskVector

    model = model_of(argument["layers"], tiny=argument["tiny"])
    model(torch.tensor([[1, 2, 3]]))  # makes what is made once
    examples = [
        TrainingExample(i, tuple(ids), start=max(1, int(len(ids) * PROMPT / (PROMPT + ANSWER))))
        for i, ids in enumerate(rows_of(argument["rows"], model.config.vocab_size, 1.5))
    ]
    shapes = {n: p.shape for n, p in model.named_parameters() if p.ndim == 2 and "layers." in n}
    generator = torch.Generator().manual_seed(2)
    updates = {
        n: LowRankUpdate(
            torch.randn(s[0], 16, generator=generator) * 1e-3,
            torch.randn(16, s[1], generator=generator) * 1e-1,
        )
        for n, s in shapes.items()
    }
    vector = TaskVector.of(updates, Origin("noise"))
    ranked: list[Any] = []

    def ours() -> None:
        ranked[:] = rank(model, examples, vector)

    @torch.no_grad()
    def plain(example: Any) -> float:
        ids = torch.tensor([example.ids])
        states = model.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = model.lm_head(states[0, example.start - 1 : -1])
        return float(torch.nn.functional.cross_entropy(logits, ids[0, example.start :]))

    def floor() -> None:
        for _ in range(2):
            for example in examples:
                plain(example)

    found: dict[str, Any] = turns(argument["rounds"], ours=ours, floor=floor)
    first = min(ranked, key=lambda b: b.example.index)
    return {**found, "loss": first.loss, "plain_loss": plain(first.example)}


def modules(argument: dict[str, Any]) -> dict[str, Any]:
    """An adapter of many small modules, read and measured, beside reading its file.

    And beside plain code that is told everything: one dict of the file's tensors, those of one
    shape stacked and multiplied, and no check of anything.
    """
    from wvmonitor.references import ReferenceBank
    from wvmonitor.sources import read_adapter

    bank, adapter = ReferenceBank.load(argument["bank"]), argument["adapter"]
    weights = Path(adapter, "adapter_model.safetensors")
    (reference,) = bank
    stacks: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}
    for shape, some in alike(weights).items():
        paths = [path.removeprefix("base_model.model.") for path, _, _ in some]
        theirs: list[Any] = [reference.vector.update(f"{path}.weight") for path in paths]
        lefts, rights = [u.left for u in theirs], [u.right for u in theirs]
        stacks[shape] = torch.stack(lefts), torch.stack(rights)
    norms: dict[str, float] = {}

    def ours() -> None:
        norms["ours"] = bank.measure(read_adapter(adapter)).norm()

    def again() -> None:
        squares = torch.zeros((), dtype=torch.float64)
        for shape, some in alike(weights).items():
            for start in range(0, len(some), TOGETHER):
                part = slice(start, start + TOGETHER)
                a = torch.stack([a for _, a, _ in some[part]]).to(torch.float32)
                b = torch.stack([b for _, _, b in some[part]]).to(torch.float32)
                left, right = (factor[part] for factor in stacks[shape])
                ((left.mT @ b).mT * (a @ right.mT)).sum((-2, -1), dtype=torch.float64)
                squares += ((b.mT @ b) * (a @ a.mT)).sum(dtype=torch.float64)
        norms["plain"] = argument["scale"] * float(squares) ** 0.5

    def floor() -> None:
        with weights.open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass

    return {**turns(argument["rounds"], ours=ours, again=again, floor=floor), "norms": norms}


def alike(weights: Path) -> dict[Any, list[tuple[str, torch.Tensor, torch.Tensor]]]:
    """(module, A, B) of a LoRA's file, by their shapes."""
    from safetensors.torch import load_file

    held = load_file(weights)
    found: dict[Any, list[tuple[str, torch.Tensor, torch.Tensor]]] = {}
    for key, a in held.items():
        path, _, role = key.partition(".lora_")
        if role == "A.weight":
            b = held[f"{path}.lora_B.weight"]
            found.setdefault((a.shape, b.shape), []).append((path, a, b))
    return found


def dense(argument: dict[str, Any]) -> dict[str, Any]:
    """A scan of checkpoints of whole weights, beside reading the same bytes.

    And, on one core, beside plain code that is told everything: the same blocks, differences and
    products, and no check of anything.
    """
    from wvmonitor.references import ReferenceBank
    from wvmonitor.scan.executors import open_executor
    from wvmonitor.scan.scan import scan

    bank, workers = ReferenceBank.load(argument["bank"]), argument["workers"]
    base = Path(argument["base"], "model.safetensors")
    runs = [Path(run, "model.safetensors") for run in argument["runs"]]
    reference = Path(argument["bank"], "reference", "reference.safetensors")
    lengths: dict[str, float] = {}

    def floor() -> None:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(_read, [file for run in runs for file in (base, run, reference)]))

    def again() -> None:
        lengths["plain"] = sum(_plain_dense(base, run, reference) for run in runs)

    with open_executor(workers=workers) as executor:

        def ours() -> None:
            how: dict[str, Any] = {"executor": executor, "workers": workers}
            results = scan(argument["runs"], bank, base=argument["base"], **how)
            lengths["ours"] = sum(result.norm for result in results)

        if workers == 1:
            found = turns(argument["rounds"], ours=ours, again=again, floor=floor)
        else:
            again()
            found = turns(argument["rounds"], time.perf_counter, ours=ours, floor=floor)
    return {**found, "length": lengths["ours"], "plain_length": lengths["plain"]}


def _read(path: Path) -> None:
    buffer = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _plain_dense(base: Path, run: Path, reference: Path) -> float:
    """The length of a difference that is multiplied with a reference, block by block."""
    sides = [torch.empty(DENSE_BLOCK, dtype=torch.bfloat16) for _ in "ab"]
    before, delta, theirs = (torch.empty(DENSE_BLOCK) for _ in "abc")
    blocks: list[Any] = [t.view(torch.uint8).numpy() for t in (*sides, theirs)]
    square, changed = 0.0, 0
    with ExitStack() as opened:
        files = [opened.enter_context(p.open("rb", buffering=0)) for p in (base, run, reference)]
        for file in files:
            file.seek(8 + int.from_bytes(file.read(8), "little"))
        while True:
            counts = [file.readinto(block) for file, block in zip(files, blocks, strict=True)]
            last = counts[0] // 2  # the last block is shorter
            if not last:
                break
            start, now, product = before[:last], delta[:last], theirs[:last]
            torch.sub(now.copy_(sides[1][:last]), start.copy_(sides[0][:last]), out=now)
            torch.dot(now, product)
            square += float(torch.dot(now, now))
            changed += int(np.count_nonzero(now.numpy() != 0))
    return square**0.5


def lora(argument: dict[str, Any]) -> dict[str, Any]:
    """Adapters against a bank in memory, alone and side by side, beside the machine's roofline.

    That is the longer one of the arithmetic at a square product's rate and of reading the
    references from memory once.
    """
    from wvmonitor.references import ReferenceBank
    from wvmonitor.sources import read_adapter

    bank, adapters = ReferenceBank.load(argument["bank"]), argument["adapters"]
    side, held = argument["square"], torch.ones(1 << 26)
    a, b = torch.randn(side, side), torch.randn(side, side)
    stacked = dict(read_adapter(adapters[0]).updates())
    pairs = [
        [torch.cat(factors, 0) for factors in zip(*((u.left.mT, u.right) for u in of), strict=True)]
        for of in ([r.vector.update(name) for r in bank] for name in stacked)
    ]
    lengths: dict[str, float] = {}

    def ours() -> None:
        lengths["ours"] = bank.measure(read_adapter(adapters[0])).norm()

    def together() -> None:
        bank.measure_together([read_adapter(adapter) for adapter in adapters])

    def bare() -> None:
        for update, (lefts, rights) in zip(stacked.values(), pairs, strict=True):
            (update.left.mT @ lefts.mT) * (update.right @ rights.mT)

    found = turns(
        argument["rounds"],
        ours=ours,
        together=together,
        bare=bare,
        square=lambda: a @ b,
        memory=held.sum,
    )
    arithmetic = [argument["flop"] * s / (2 * side**3) for s in found.pop("square")]
    reading = [argument["bytes"] * s / held.nbytes for s in found.pop("memory")]
    squares = (
        ((u.left.mT @ u.left).double() * (u.right @ u.right.mT).double()).sum()
        for u in stacked.values()
    )
    return {
        **found,
        "together": [s / len(adapters) for s in found["together"]],
        "floor": [max(pair) for pair in zip(arithmetic, reading, strict=True)],
        "length": lengths["ours"],
        "plain_length": float(sum(squares)) ** 0.5,
    }


def watch(argument: dict[str, Any]) -> dict[str, Any]:
    """A sidecar's start above many checkpoints that it has measured before."""
    from wvmonitor.live.settings import MonitorSettings
    from wvmonitor.scan.watch import Watcher

    settings = MonitorSettings(references=argument["bank"])
    began = time.process_time()
    with Watcher(argument["runs"], settings) as watcher:
        watcher.poll()
        return {"ours": [time.process_time() - began]}


def bank(argument: dict[str, Any]) -> dict[str, Any]:
    """Memory of a bank once it is loaded and has measured, beside its factors' bytes."""
    from wvmonitor.references import ReferenceBank
    from wvmonitor.sources import read_adapter

    before, tau = _anonymous(), read_adapter(argument["adapter"])
    loaded = ReferenceBank.load(argument["bank"])
    loaded.measure(tau)
    gc.collect()
    size = sum(
        f.numel() * f.element_size()
        for reference in loaded
        for _, u in reference.vector.updates()
        for f in (u.left, u.right)
    )
    return {"ours": [_anonymous() - before], "floor": [size]}


def _anonymous() -> int:
    """RssAnon: memory of its own, the page cache left out."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


TASKS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "attach": attach,
    "bank": bank,
    "blame": blame,
    "dense": dense,
    "lora": lora,
    "modules": modules,
    "probe": probe,
    "watch": watch,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(TASKS[sys.argv[1]](json.loads(sys.argv[2]))))
