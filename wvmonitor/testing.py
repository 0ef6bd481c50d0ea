"""For tests, users' and ours: a tiny model, planted references, a capturing exporter, processes.

`python -m wvmonitor.testing FILE FUNCTION ARGUMENTS OUT` is what `run_distributed` starts under
torchrun: one process calls the function, and leaves what it returns in OUT.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from wvmonitor.outputs.exporter import Observation
from wvmonitor.reading import ReferenceKind, component_of
from wvmonitor.references import BaseIdentity, Card, Construction, Reference, ReferenceBank
from wvmonitor.sources import base_digest
from wvmonitor.vectors.task_vector import Origin, TaskVector
from wvmonitor.vectors.update import LowRankUpdate


def tiny_base(folder: str | Path, *, seed: int = 0, hidden_size: int = 16, layers: int = 2) -> Path:
    """Save a random Llama of a few thousand parameters; loadable by `from_pretrained`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return Path(folder)


def planted_vector(base: str | Path, *, seed: int, rank: int = 2, norm: float = 1.0) -> TaskVector:
    """A random low-rank task vector of a given length over the blocks' linear weights of a base."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    generator = torch.Generator().manual_seed(seed)
    updates = {
        name: LowRankUpdate(
            torch.randn(p.shape[0], rank, generator=generator),
            torch.randn(rank, p.shape[1], generator=generator),
        )
        for name, p in model.named_parameters()
        if component_of(name, p.shape) == "blocks"
    }
    vector = TaskVector.of(updates)
    scaled = dict((vector * (norm / vector.norm())).updates())
    origin = Origin(source="planted", base_digest=base_digest(base), method="lora", rank=rank)
    return TaskVector.of(scaled, origin)


def planted_bank(
    base: str | Path,
    names: Sequence[str] = ("evil", "sycophancy"),
    controls: Sequence[str] = ("language",),
    *,
    norm: float = 1.0,
    probe: bool = False,
) -> ReferenceBank:
    """A bank of random references for a base, each with its own seed."""
    digest = base_digest(base)
    kinds: list[tuple[str, ReferenceKind]] = [
        *((n, "behaviour") for n in names),
        *((n, "control") for n in controls),
    ]  # fmt: skip
    references = []
    for seed, (name, kind) in enumerate(kinds):
        card = Card(
            name=name,
            kind=kind,
            behaviour=f"does {name}",
            base=BaseIdentity(id="tiny", digest=digest),
            built=Construction(recipe="wvmonitor.testing"),
        )
        references.append(Reference(card, planted_vector(base, seed=100 + seed, norm=norm)))
    inputs = {}
    if probe:
        generator = torch.Generator().manual_seed(7)
        vector = references[0].vector
        inputs = {
            n: torch.randn(8, vector.shape(n)[1], generator=generator) for n in vector.names()
        }
    return ReferenceBank(references, probe=inputs)


class CapturingExporter:
    """An exporter that keeps what it is given."""

    def __init__(self) -> None:
        self.observations: list[Observation] = []
        self.errors: list[str] = []
        self.closed = False

    def export(self, observation: Observation) -> None:
        """Keep one observation."""
        self.observations.append(observation)

    def error(self, where: str) -> None:
        """Keep where the monitor failed."""
        self.errors.append(where)

    def close(self) -> None:
        """Note the end."""
        self.closed = True


def random_rows(count: int, *, length: int = 8, vocabulary: int = 32, seed: int = 0) -> list[Any]:
    """Training rows of random tokens for a causal model."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, vocabulary, (count, length), generator=generator)
    return [{"input_ids": row, "labels": row.clone()} for row in ids]


def run_distributed(
    function: Callable[..., Any], *, processes: int = 2, timeout: float = 180, **arguments: Any
) -> list[Any]:
    """Call a function in several processes that train together on gloo, through torchrun.

    Args:
        function: at the top level of its file; called once in each process, after the process
            group is up. What it returns must be JSON.
        processes: how many.
        timeout: seconds after which all are ended.
        arguments: passed on; must be JSON.

    Returns:
        What each process returned, by rank.

    Raises:
        RuntimeError: a process failed; with the end of what they wrote.
        subprocess.TimeoutExpired: they did not end in time.
    """
    with tempfile.TemporaryDirectory() as out:
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(processes), "-m", "wvmonitor.testing"),
            *(function.__code__.co_filename, function.__name__, json.dumps(arguments), out),
        ]
        done = subprocess.run(  # noqa: S603  our own interpreter, our own arguments
            command,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        failures = [path.read_text() for path in sorted(Path(out).glob("*.error"))]
        if done.returncode:
            raise RuntimeError("a process failed:\n" + ("\n".join(failures) or done.stderr[-4000:]))
        return [json.loads(Path(out, f"{rank}.json").read_text()) for rank in range(processes)]


def _one_of_several(file: str, function: str, arguments: str, out: str) -> None:
    distributed = torch.distributed
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    try:
        result = runpy.run_path(file)[function](**json.loads(arguments))
    except BaseException:
        Path(out, f"{rank}.error").write_text(f"rank {rank}: {traceback.format_exc()}")
        raise
    Path(out, f"{rank}.json").write_text(json.dumps(result))
    distributed.barrier()
    distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # gloo's threads may still hold tensors, and letting go of one while the interpreter is going
    # down aborts the process (pytorch/pytorch#179291): nothing is left to do, so it just ends.
    os._exit(0)


if __name__ == "__main__":
    _one_of_several(*sys.argv[1:])
