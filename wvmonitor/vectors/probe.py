"""The probe of the response geometry: a few rows that stand for a layer's ordinary inputs.

A layer's second moment C = E[x xᵀ] over ordinary tokens is held as a matrix X with XᵀX ≈ C, so
that ⟨τ, w⟩_C = tr(τ C wᵀ) is the Frobenius product of τXᵀ and wXᵀ (design, response geometry).
Dimension suffixes: N rows, I inputs, T tokens.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wvmonitor.errors import InputError, KeyMismatchError
from wvmonitor.vectors import functional

PROBE_ROWS = 256
_RECENT = 4  # tensors back that may feed another map of their block: q, k, v and, in some, the MLP


@dataclass(frozen=True)
class Probe:
    """Rows X of every linear map's input, XᵀX ≈ E[x xᵀ].

    Attributes:
        inputs: (rows, inputs) by parameter name; parameters fed by one tensor share it.
        tokens: how many tokens were seen.
    """

    inputs: Mapping[str, Tensor]
    tokens: int

    def of_unit_size(self) -> Probe:
        """The same with every layer's inputs at a mean square of 1 a coordinate: tr C = I.

        A few layers with massive activations would otherwise hold most of every response: on
        SmolLM2-135M two of 210 held half (docs/what-is-measured.md). Where inputs are white the
        response product is the Frobenius product. A layer whose inputs are all 0 stays as it is.
        """
        scaled = {id(x): _of_unit_size(x) for x in self.inputs.values()}
        return Probe({n: scaled[id(x)] for n, x in self.inputs.items()}, self.tokens)

    def effective_dimension(self, name: str) -> float:
        """(tr C)² / tr C²: how many directions carry the layer's inputs, between 1 and I."""
        x = self.inputs[name].to(torch.float64)
        gram = x @ x.mT if x.shape[0] < x.shape[1] else x.mT @ x
        return float(gram.diagonal().sum() ** 2 / (gram * gram).sum())


def _of_unit_size(x_NI: Tensor) -> Tensor:
    mean_square = float(x_NI.square().sum()) / x_NI.shape[1]
    return x_NI / math.sqrt(mean_square) if mean_square else x_NI


class _Moments:
    """Accumulates one layer's inputs: exactly where I ≤ rows, by a random sketch beyond."""

    def __init__(self, inputs: int, rows: int, generator: torch.Generator) -> None:
        self._exact = inputs <= rows
        self._rows = rows
        self._generator = generator
        self._sum = torch.zeros(inputs if self._exact else rows, inputs, dtype=torch.float64)
        self.tokens = 0

    def add(self, x_TI: Tensor) -> None:
        if self._exact:
            x = x_TI.detach().to("cpu", torch.float64)
            self._sum += x.mT @ x
        else:
            signs_NT = _signs(self._rows, len(x_TI), self._generator).to(x_TI.device)
            found = functional.matmul(signs_NT, x_TI.detach().to(torch.float32))
            self._sum.add_(found.to("cpu"), alpha=self._rows**-0.5)
        self.tokens += len(x_TI)

    def rows_NI(self) -> Tensor:
        """(N, I) rows X with XᵀX ≈ the mean of x xᵀ."""
        if not self._exact:
            return self._sum / math.sqrt(self.tokens)
        values, vectors = torch.linalg.eigh(self._sum / self.tokens)
        rows: Tensor = values.clamp_min(0).sqrt().unsqueeze(1) * vectors.mT
        return rows


def _signs(rows: int, tokens: int, generator: torch.Generator) -> Tensor:
    """(rows, tokens) of −1 and 1 in float32, eight from each random byte.

    They are drawn on the host, so that a seed means the same signs on every device.
    """
    size = (rows, math.ceil(tokens / 8))
    drawn = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    bits = torch.from_numpy(np.unpackbits(drawn.numpy(), axis=1, count=tokens))
    return bits.to(torch.float32).mul_(2).sub_(1)


@torch.no_grad()
def collect_probe(
    model: nn.Module,
    batches: Iterable[tuple[Mapping[str, Any], Tensor]],
    parameters: Iterable[str],
    *,
    rows: int = PROBE_ROWS,
    seed: int = 0,
) -> Probe:
    """Run ordinary text through the base model and sketch every linear map's inputs.

    Args:
        model: the base model; called as `model(**inputs)`.
        batches: (inputs, mask) pairs; mask is (batch, length), True for the tokens that count. The
            first token and chat-template tokens have massive activations that would make all
            updates look alike: leave them out.
        parameters: names of the 2-D weights whose modules' inputs are wanted.
        rows: rows kept for each layer; layers of at most this many inputs are held exactly.
        seed: of the sketch's signs.

    Returns:
        The probe, float32. Parameters fed by one tensor share one. A parameter whose module the
        text never reached is left out.

    Raises:
        KeyMismatchError: the model has no such parameter.
        InputError: a parameter is no 2-D map of activations, or the masks leave no token.
    """
    modules = {name: _linear_module(model, name) for name in parameters}
    moments: dict[str, _Moments] = {}
    leader: dict[str, str] = {}
    recent: deque[tuple[Tensor, str]] = deque(maxlen=_RECENT)
    places = torch.zeros(0, dtype=torch.int64)

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            x: Tensor = args[0]
            # one tensor feeding several maps (q, k, v) is counted once and shared
            first = next((owner for held, owner in recent if held is x), None)
            if first is None:
                recent.append((x, first := name))
            if leader.setdefault(name, first) != name:
                return
            if name not in moments:
                generator = torch.Generator().manual_seed(seed + len(moments))
                moments[name] = _Moments(x.shape[-1], rows, generator)
            moments[name].add(x.reshape(-1, x.shape[-1])[places.to(x.device)])

        return hook

    handles = [m.register_forward_pre_hook(watch(name)) for name, m in modules.items()]
    training = [m for m in model.modules() if m.training]
    model.eval()  # dropout is no part of the ordinary inputs
    try:
        for inputs, counted in batches:
            places = counted.reshape(-1).nonzero().squeeze(1)
            recent.clear()
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    if not moments or not all(m.tokens for m in moments.values()):
        raise InputError("the batches leave no token to probe with: check the texts and the masks")
    sketches = {name: m.rows_NI().to(torch.float32) for name, m in moments.items()}
    tokens = max((m.tokens for m in moments.values()), default=0)
    return Probe({name: sketches[leader[name]] for name in modules if name in leader}, tokens)


def _linear_module(model: nn.Module, name: str) -> nn.Module:
    """The module that a 2-D weight maps the activations of."""
    owner, _, leaf = name.rpartition(".")
    try:
        module = model.get_submodule(owner)
        weight = getattr(module, leaf)
    except AttributeError:
        raise KeyMismatchError(
            f"the model has no parameter {name}: use the names of its named_parameters()"
        ) from None
    if isinstance(module, nn.Embedding) or weight.ndim != 2:
        raise InputError(
            f"{name} (shape {tuple(weight.shape)}) is no 2-D map of activations and has no "
            "response: leave it out of the probe"
        )
    return module
