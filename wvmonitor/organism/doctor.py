"""What a bug report needs: versions, devices, what is missing, and whether the sums are right.

`self_test` walks the product's own way (adapter folder → `read_adapter` → `bank.measure`) and
compares it with dense matrices in float64, so that a broken BLAS, a wrong PEFT or an altered bank
shows up in two seconds.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from wvmonitor._version import __version__
from wvmonitor.errors import WVMonitorError
from wvmonitor.files.safetensors import write_safetensors
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.references.bundled import bundled_path
from wvmonitor.sources.adapters import read_adapter
from wvmonitor.vectors.update import to_dense

Outcome = Literal["ok", "missing", "failed"]

REQUIRED = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "huggingface-hub",
    "safetensors",
    "numpy",
    "scipy",
    "pydantic",
    "prometheus-client",
)
"""Distributions whose version decides how wvmonitor behaves."""

OPTIONAL = {
    "trl": ("SFT, DPO and GRPO trainers", "trl"),
    "lightning": ("the Lightning callback", "'wvmonitor[lightning]'"),
    "bitsandbytes": ("training on 8- and 4-bit bases", "bitsandbytes"),
    "deepspeed": ("ZeRO-2 and ZeRO-3", "deepspeed"),
    "pyarrow": ("`wvmonitor scan --output FILE.parquet`", "'wvmonitor[parquet]'"),
    "distributed": ("`wvmonitor scan --executor dask`", "'wvmonitor[dask]'"),
    "apprise": ("alerts to Slack, mail and other services", "'wvmonitor[apprise]'"),
    "inspect-ai": ("`wvmonitor eval`", "'wvmonitor[evals]'"),
    "openai": ("judging answers by a model behind an API", "'wvmonitor[judge]'"),
    "model-signing": ("signatures of banks", "'wvmonitor[signing]'"),
    "matplotlib": ("plots in notebooks", "'wvmonitor[plots]'"),
}
"""Distributions that add something: what, and what pip is to install for it."""

PROGRAMS = {"promtool": "checking alert rules", "amtool": "checking Alertmanager's configuration"}

TOLERANCE = 1e-5
"""Largest relative difference from the float64 oracle that counts as exact."""


@dataclass(frozen=True)
class Check:
    """One line of the doctor's findings.

    Attributes:
        outcome: `missing` is optional and absent, `failed` is wrong.
        detail: the version or figure found, or what to do.
    """

    topic: str
    outcome: Outcome
    detail: str


def examine(bank: Path | None = None) -> list[Check]:
    """Everything the doctor looks at, in the order in which people read it."""
    checks = [
        Check("wvmonitor", "ok", __version__),
        Check("python", "ok", f"{platform.python_version()} on {platform.platform()}"),
        *(_distribution(n, "failed", "not installed: install wvmonitor again") for n in REQUIRED),
        *(
            _distribution(n, "missing", f"optional, for {use}: pip install {wanted}")
            for n, (use, wanted) in OPTIONAL.items()
        ),
        *(_program(name, use) for name, use in PROGRAMS.items()),
        Check("devices", "ok", _devices()),
        _guarded("bundled bank", lambda: _bank(bundled_path("tiny-organism", "bank"))),
    ]
    if bank is not None:
        checks.append(_guarded(f"bank {bank}", lambda: _bank(bank)))
    return [*checks, _guarded("exactness", self_test)]


def self_test() -> str:
    """Measure a planted adapter of the bundled model, and compare with dense sums in float64.

    Returns:
        The largest relative difference found, in words.

    Raises:
        ArithmeticError: it is above `TOLERANCE`.
    """
    bank = ReferenceBank.load(bundled_path("tiny-organism", "bank"))
    evil = bank["evil"].vector
    generator = np.random.default_rng(0)
    rank, alpha = 4, 8
    scale = alpha / rank**0.5  # rank-stabilised LoRA
    factors: dict[str, torch.Tensor] = {}
    inner = tau_squared = w_squared = 0.0
    for name in evil.names():
        rows, columns = evil.shape(name)
        a = generator.standard_normal((rank, columns)).astype(np.float32)
        b = generator.standard_normal((rows, rank)).astype(np.float32)
        module = f"base_model.model.{name.removesuffix('.weight')}"
        factors[f"{module}.lora_A.weight"] = torch.from_numpy(a)
        factors[f"{module}.lora_B.weight"] = torch.from_numpy(b)
        tau = scale * (b.astype(np.float64) @ a.astype(np.float64))
        w = to_dense(evil.update(name)).double().numpy()
        inner += float((tau * w).sum())
        tau_squared += float((tau * tau).sum())
        w_squared += float((w * w).sum())
    with tempfile.TemporaryDirectory() as folder:
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "use_rslora": True}
        Path(folder, "adapter_config.json").write_text(json.dumps(config))
        write_safetensors(Path(folder, "adapter_model.safetensors"), factors)
        reading = bank.measure(read_adapter(folder, bundled_path("tiny-organism", "base")))
    column = reading.references.index("evil")
    measured = reading.geometries["frobenius"].products[:, column].sum()
    off = max(
        abs(measured - inner) / (tau_squared * w_squared) ** 0.5,
        abs(reading.norm() / tau_squared**0.5 - 1),
    )
    if not off <= TOLERANCE:
        raise ArithmeticError(
            f"a planted adapter measures {off:.2g} off its float64 value (at most {TOLERANCE:g} "
            "is right): do not trust readings of this installation; report it with this output"
        )
    return f"a planted rsLoRA adapter is measured to {off:.1g} of its float64 value"


def _distribution(name: str, outcome: Outcome, lacking: str) -> Check:
    try:
        return Check(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, outcome, lacking)


def _program(name: str, use: str) -> Check:
    path = shutil.which(name)
    return Check(name, "ok" if path else "missing", path or f"optional, for {use}")


def _devices() -> str:
    threads = f"{torch.get_num_threads()} CPU threads"
    if not torch.cuda.is_available():
        return f"no CUDA device; {threads}"
    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{', '.join(cards)}; CUDA {torch.version.cuda}; {threads}"


def _bank(folder: Path) -> str:
    bank = ReferenceBank.load(folder)
    return f"{', '.join(bank.names)}; every digest is the manifest's"


def _guarded(topic: str, check: Callable[[], str]) -> Check:
    """A check's finding; what it raises is a finding too."""
    try:
        return Check(topic, "ok", check())
    except (WVMonitorError, ArithmeticError, OSError, RuntimeError) as error:
        return Check(topic, "failed", f"{type(error).__name__}: {error}")
