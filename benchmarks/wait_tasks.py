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
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

VOCABULARY = 49_152
TOGETHER = 32
"""Modules that plain code multiplies at once."""
PROMPT, ANSWER = 56, 44
"""Tokens of an example of the project's own contrasts under SmolLM2's chat template, on average."""


def turns(rounds: int, **ways: Callable[[], Any]) -> dict[str, list[float]]:
    """Processor seconds of each way, in turns; where there are several, one more warms up."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + (rounds > 1)):
        for name, run in ways.items():
            began = time.process_time()
            run()
            if turn or rounds == 1:
                found[name].append(time.process_time() - began)
    return found


def model_of(layers: int, *, tiny: bool, dtype: torch.dtype = torch.float32) -> Any:
    """A random model of SmolLM2-135M's shape, or a tiny one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    width = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 512} if tiny else {
        "hidden_size": 576, "intermediate_size": 1536, "vocab_size": VOCABULARY,
    }  # fmt: skip
    config = LlamaConfig(
        **width,
        num_hidden_layers=layers,
        num_attention_heads=4 if tiny else 9,
        num_key_value_heads=2 if tiny else 3,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


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
    base = model_of(argument["layers"], tiny=False, dtype=torch.bfloat16)  # the one on disk
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
    "modules": modules,
    "probe": probe,
    "watch": watch,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(TASKS[sys.argv[1]](json.loads(sys.argv[2]))))
