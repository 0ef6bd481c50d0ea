"""The golden corpus: what the product says of fixed weights, whichever way they come in.

`python -m tests.golden.corpus` writes it anew, for a change that is meant to change what is said:
the difference then shows what it changes, and belongs into the same commit.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import torch

from tests.golden import ways
from tests.golden.ways import Way, drift
from tests.scan.calibrations import calibration_for
from tests.sources import zoo
from tests.sources.test_adapter_kinds import MODELS, NEEDS_THE_START, STARTS_AT_BASE
from wvmonitor import ReferenceBank, TaskVector, WVMonitorCallback
from wvmonitor.detection.calibration import Calibration
from wvmonitor.journal.tools import acknowledge, export
from wvmonitor.organism.train import finetune
from wvmonitor.outputs.prometheus import PrometheusExporter
from wvmonitor.outputs.scan_record import CheckpointResult
from wvmonitor.reading import component_of
from wvmonitor.references import BaseIdentity, Card, Construction, Reference
from wvmonitor.references.bundled import bundled_path
from wvmonitor.scan.cache import ScanCache
from wvmonitor.scan.scan import scan
from wvmonitor.scan.schema import document
from wvmonitor.sources import base_digest
from wvmonitor.vectors.task_vector import Origin
from wvmonitor.vectors.update import LowRankUpdate

FOLDER = Path(__file__).parent
DIGITS = 4
"""Significant digits that are kept: other machines add up in another order."""

T = {"target_modules": ["q_proj", "v_proj", "down_proj"], "r": 4}
LORAS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", T),
    "rslora": ("llama", {**T, "use_rslora": True, "rank_pattern": {"q_proj": 2}}),
    "dora": ("llama", {**T, "use_dora": True}),
    "bias": ("biased", {**T, "bias": "lora_only"}),
    "embeddings": ("llama", {"target_modules": ["q_proj", "embed_tokens"], "r": 2}),
    "saved-whole": ("llama", {**T, "modules_to_save": ["lm_head"]}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "r": 4, "fan_in_fan_out": True}),
    "experts": ("moe", {"target_modules": ["q_proj"], "r": 4}),
}
ADVICE = (
    "Uncalibrated: the rule is a guess for this model, without a known false-alarm rate, and warns "
    "at most"
)
"""At the end of so many reasons that it would be a tenth of the corpus."""
UNSTEADY = frozenset(
    {"saved_at", "wall_time", "measure_seconds", "started", "time", "settings", "created", "done"}
)
"""What differs from one time to the next: left out."""


def write(folder: Path = FOLDER) -> None:
    """Write every file of the corpus."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, content in made(Path(scratch)).items():
            (folder / f"{name}.json").write_text(text_of(content), encoding="utf-8")


def text_of(content: Mapping[str, Any]) -> str:
    """A file of the corpus: one line for each thing in it, so that a change shows where it is."""
    lines = (
        f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}"
        for key, value in content.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def made(scratch: Path) -> dict[str, dict[str, Any]]:
    """The corpus as the code at hand makes it, by file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            raw = {
                "adapters": adapters(scratch / "adapters"),
                "runs": runs(scratch / "runs"),
                "demo": demo(scratch / "demo"),
            }
        finally:
            logging.disable(logging.NOTSET)
    steady = {name: _steady(value, scratch) for name, value in raw.items()}
    for part in ("adapters", "runs"):
        steady[part] = {name: _told_once(found) for name, found in steady[part].items()}
    return steady


def _told_once(combinations: dict[str, Any]) -> dict[str, Any]:
    """Of each way to judge the same weights, what is otherwise than one or two entries before."""
    found = list(combinations.values())
    told = [changes(found[max(0, i - 2)], later) for i, later in enumerate(found) if i]
    return dict(zip(combinations, [found[0], *told], strict=True))


# The scans


def scanned_by(
    targets: Sequence[Path], bank: Path, base: Path, five: Path, one: Path, cached: Path
) -> Iterator[tuple[str, list[CheckpointResult]]]:
    """The results of a scan without calibration, at 5 % and at 1 %, told the optimiser or not."""
    loaded = ReferenceBank.load(bank)
    with ScanCache(cached) as cache:
        for name, path in (("uncalibrated", None), ("5 %", five), ("1 %", one)):
            calibration = None if path is None else Calibration.load(path)
            for optimizer in (None, "adamw"):
                results = scan(
                    targets,
                    loaded,
                    base=base,
                    calibration=calibration,
                    optimizer=optimizer,
                    cache=cache,
                )
                yield f"{name}, optimiser {optimizer or 'not given'}", list(results)


def adapters(folder: Path) -> dict[str, dict[str, Any]]:
    """Every adapter of the zoo, by a planted bank of its base."""
    found: dict[str, dict[str, Any]] = {}
    for name, bank_and_base in _zoo(folder).items():
        bank, base = bank_and_base
        five, one = _calibrations(bank, folder / f"{name}-calibrations")
        targets = sorted((folder / name).iterdir())
        for combination, results in scanned_by(
            targets, bank, base, five, one, folder / f"{name}.cache"
        ):
            for target, result in zip(targets, results, strict=True):
                (checkpoint,) = document([result])["checkpoints"]
                found.setdefault(f"{name}/{target.name}", {})[combination] = checkpoint
    return found


def _zoo(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Save the zoo's bases, banks for them, and an adapter of every kind; (bank, base) by model."""
    kinds = {
        **{
            kind: (model, peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)](**options))
            for kind, (model, options) in (STARTS_AT_BASE | NEEDS_THE_START).items()
        },
        **{f"LORA-{k}": (m, peft.LoraConfig(**options)) for k, (m, options) in LORAS.items()},
    }
    made: dict[str, tuple[Path, Path]] = {}
    for name, (architecture, extra) in {**MODELS, "gpt2": ("gpt2", {}), "moe": ("moe", {})}.items():
        model, base = zoo.build(architecture, **extra), folder / f"{name}-base"
        model.save_pretrained(base)
        model.name_or_path = str(base)
        made[name] = (folder / f"{name}-bank", base)
        _bank(model, base).save(made[name][0])
        for kind, (home, config) in kinds.items():
            if home == name:
                torch.manual_seed(0)
                adapted = peft.get_peft_model(copy.deepcopy(model), config)
                zoo.shake(adapted)
                adapted.save_pretrained(folder / name / kind)
    bank, base = made["llama"]
    for amount in (0.2, 1.0):
        (vector,) = drift(base, bank, [amount], rank=4)
        adapted = ways.adapted(Way(base, bank, [vector]))
        ways.move(adapted, vector)
        adapted.save_pretrained(folder / "llama" / f"LORA-towards-evil-{amount}")
    return made


def _bank(model: torch.nn.Module, base: Path) -> ReferenceBank:
    """Two behaviours and a control at random, with a probe for the maps that have two sides."""
    digest, generator = base_digest(base), torch.Generator().manual_seed(5)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    blocks = {n: s for n, s in shapes.items() if component_of(n, s) == "blocks" and len(s) > 1}
    references = []
    for name in ("evil", "sycophancy", "language"):
        updates = {
            n: LowRankUpdate(
                0.1 * torch.randn(*s[:-1], 2, generator=generator),
                0.1 * torch.randn(*s[:-2], 2, s[-1], generator=generator),
                transposed=".c_" in n,
            )
            for n, s in blocks.items()
        }
        card = Card(
            name=name,
            kind="control" if name == "language" else "behaviour",
            behaviour=f"does {name}",
            base=BaseIdentity(id="tiny", digest=digest),
            built=Construction(recipe="tests"),
        )
        origin = Origin(source="planted", base_digest=digest, method="lora", rank=2)
        references.append(Reference(card, TaskVector.of(updates, origin)))
    linear = {n: s for n, s in blocks.items() if len(s) == 2 and ".c_" not in n}
    probe = {n: torch.randn(8, s[1], generator=generator) for n, s in linear.items()}
    return ReferenceBank(references, probe=probe)


def _calibrations(bank: Path, folder: Path) -> tuple[Path, Path]:
    """A band at 5 % and a wider one at 1 %."""
    folder.mkdir()
    band = calibration_for(ReferenceBank.load(bank), threshold=0.02)
    methods = {**band.support.methods, "loha": (1, 8), "oft": None, "ia3": None, "dora": (1, 8)}
    support = band.support.model_copy(update={"methods": methods, "largest_norm": (5.0, 5.0, 5.0)})
    band = band.model_copy(update={"support": support})
    five, one = folder / "five.json", folder / "one.json"
    band.save(five)
    wider = {name: 1.5 * multiplier for name, multiplier in band.multiplier.items()}
    strict = {"alpha": 0.01, "multiplier": wider, "warn_alpha": 0.02}
    band.model_copy(update=strict).save(one)
    return five, one


def organism(vectors: Callable[[Path, Path], Sequence[TaskVector]], **more: Any) -> Way:
    """A way of the bundled organism and its bank."""
    base, bank = bundled_path("tiny-organism", "base"), bundled_path("tiny-organism", "bank")
    return Way(base, bank, vectors(base, bank), **more)


def rising(base: Path, bank: Path) -> list[TaskVector]:
    """Along an innocent direction, then towards evil: by the band ok, then warn, then alarm."""
    return [v * 2 for v in drift(base, bank, (0.0, 0.0, 0.01, 0.02, 0.06, 0.2), rank=8)]


def runs(folder: Path) -> dict[str, dict[str, Any]]:
    """One series of weights on all its ways: scans, journals, and the page of metrics."""
    five = bundled_path("tiny-organism", "bank") / "calibration.json"
    one = bundled_path("tiny-organism", "calibration-1pct.json")
    way = organism(rising, calibration=five)
    found: dict[str, dict[str, Any]] = {}
    watching = PrometheusExporter(port=None)
    seen = list(ways.live(way, folder))
    found["live"] = {"journal": _journal(folder / ways.RECORDED)}
    targets = [folder / "runs" / ways.NAME]
    found["scanned"] = {
        name: document(results)
        for name, results in scanned_by(
            targets, way.bank, way.base, five, one, folder / "run.cache"
        )
    }
    found["one checkpoint at a time"] = {
        name: document(results)
        for name, results in scanned_by(
            [targets[0] / f"checkpoint-{way.steps[i]}" for i in (0, -1)],
            way.bank, way.base, five, one, folder / "single.cache",
        )
    }  # fmt: skip
    found["rescored"] = {
        "as scanned": found["scanned"]["5 %, optimiser adamw"],
        "at 5 %": document(list(ways.rescored(way, folder))),
        "at 1 %": document(list(ways.rescored(replace(way, calibration=one), folder))),
    }

    def acknowledged(observation: Any) -> None:
        watching.export(observation)
        if observation.scores.step == way.steps[2]:
            journal = ways.journal_of_watch(folder).path
            acknowledge(journal, ways.NAME, "sycophancy", "we know")

    list(ways.watched(way, folder, acknowledged))
    sidecar = _journal(folder / "runs" / ".wvmonitor")
    found["watched"] = {"journal": {k: v for k, v in sidecar.items() if v.pop("scores", 1)}}
    page = PrometheusExporter(port=None, layers=2, expected=("sycophancy",))
    for observation in seen[:1] + seen[-1:]:
        page.export(observation)
    found["metrics"] = {"live": _page(page), "watched": _page(watching, without="score")}
    return found


def demo(folder: Path) -> dict[str, dict[str, Any]]:
    """The journals of the demo's four runs, cut short: twelve steps of real training each."""
    from wvmonitor.organism.demo import RUNS

    base = bundled_path("tiny-organism", "base")
    bank = ReferenceBank.load(bundled_path("tiny-organism", "bank"))
    found = {}
    for run in RUNS:
        watched = WVMonitorCallback(
            bank, run=run.name, every_n_steps=4, max_overhead=1.0, journal_dir=folder / run.name
        )
        finetune(
            base,
            run.examples(48, run.seed),
            seed=run.seed,
            steps=12,
            learning_rate=2 * run.learning_rate,
            attach=watched.attach_to,
            training_arguments={"disable_tqdm": True},
        )
        found[run.name] = _journal(folder / run.name)
    return found


def _journal(folder: Path) -> dict[str, Any]:
    """An exported journal, by step."""
    found: dict[str, Any] = {}
    for line in export(folder):
        entry = json.loads(line)
        kind = entry.pop("type")
        where = f"{kind} {entry['step']}" if kind == "reading" else f"{kind} {len(found)}"
        if kind == "reading":  # of the controls, the scans tell enough
            judged = {verdict["reference"] for verdict in entry["verdicts"]}
            scores = entry["scores"]["references"]
            entry["scores"]["references"] = {n: s for n, s in scores.items() if n in judged}
        found[where] = entry
    return found


def _page(exporter: PrometheusExporter, without: str = "build") -> list[str]:
    """The page's samples without those that time sets, and without one family more."""
    lines = exporter.page().decode().splitlines()
    unsteady = re.compile(
        rf"wvmonitor_(measure_duration|last_reading|reading_interval|run_info|build|{without})"
    )
    return [line for line in lines if not line.startswith("#") and not unsteady.match(line)]


# Making it comparable


def _steady(value: Any, scratch: Path) -> Any:
    """The value without what differs from one time to the next."""
    if isinstance(value, Mapping):
        kept = {k: v for k, v in value.items() if k not in UNSTEADY}
        return {k: _steady(v, scratch) for k, v in kept.items()}
    if isinstance(value, (list, tuple)):
        return [_steady(v, scratch) for v in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else repr(value)
    if isinstance(value, str):
        told = value.replace(str(scratch), "SCRATCH").replace(ADVICE, "ADVICE")
        told = told.replace(str(bundled_path("tiny-organism")), "ORGANISM")
        return re.sub(r"\b(?=\d*[a-f])[0-9a-f]{16,64}\b", "DIGEST", told)
    return value


def changes(before: Any, after: Any) -> Any:
    """What of a document is otherwise than in another one of the same form."""
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        found = {k: changes(before[k], after[k]) for k in after}
        return {k: v for k, v in found.items() if v != {}}
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        found = {str(i): changes(b, a) for i, (b, a) in enumerate(zip(before, after, strict=True))}
        return {k: v for k, v in found.items() if v != {}}
    return {} if before == after else after


if __name__ == "__main__":
    write()
