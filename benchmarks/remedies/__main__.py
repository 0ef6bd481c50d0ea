"""Run what is missing and write the page; `report` writes the page alone.

`run` is the bundled organism, `gate` its data screened; `real` a small pretrained model,
`real-alarms` what waits for an alarm there, `real-gate` its data screened among other people's
sets, and `real-cleaned` trained on what that leaves.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.real.model import smollm2
from benchmarks.real.sets import read_folder
from benchmarks.remedies import gate, real, real_alarms, real_cleaned, real_gate, real_runs, runs
from benchmarks.remedies.page import page
from benchmarks.remedies.real_gate_results import GateResults
from benchmarks.remedies.real_model import RealModel
from benchmarks.remedies.records import Records
from wvmonitor.references import ReferenceBank

RECORDS, BUILD = Path("build/remedies/records.jsonl"), Path("build/remedies-real")
RESULTS = Path(__file__).parent.parent / "results"
RUNS, GATE, REAL = (RESULTS / f"{name}.json" for name in ("remedies", "data-gate", "remedies-real"))
REAL_ALARMS, REAL_GATE, REAL_CLEANED = (
    RESULTS / f"remedies-real-{name}.json" for name in ("alarms", "gate", "cleaned")
)
REAL_MODEL = ("real", "real-alarms", "real-gate", "real-cleaned")
KNOWN_AS = "SmolLM2-135M-Instruct"
PAGE = Path(__file__).parents[2] / "docs" / "remedies.md"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write results and page."""
    parser = argparse.ArgumentParser("python -m benchmarks.remedies", description=__doc__)
    parser.add_argument("do", choices=["run", "gate", *REAL_MODEL, "report"])
    parser.add_argument("--seeds", type=int, help="5; of the real model 3")
    parser.add_argument("--cells", default="", help="tables to run, comma-separated; all")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument(
        "--bank", type=Path, default=Path("build/real-bank"), help="of the real model"
    )
    parser.add_argument("--data", type=Path, help="public sets: of the real model's gate")
    asked = parser.parse_args(argv)
    if asked.do == "run":
        if not asked.records.exists():  # go on from what is committed
            asked.records.parent.mkdir(parents=True, exist_ok=True)
            held = json.loads(RUNS.read_text("utf-8"))
            asked.records.write_text("".join(json.dumps(r) + "\n" for r in held), "utf-8")
        runs.run(asked.records, asked.seeds or 5, set(filter(None, asked.cells.split(","))))
    if asked.do == "gate":
        gate.run(GATE)
    if asked.do in REAL_MODEL:
        if asked.data is None and asked.do in ("real-gate", "real-cleaned"):
            parser.error("--data is missing: a folder of public sets, as benchmarks.real reads it")
        _on_the_real_model(asked.do, asked.bank, asked.data, asked.seeds or 3)
    if records := runs.read(asked.records, ReferenceBank.load(runs.BANK)):
        RUNS.write_text(json.dumps(records, indent=1) + "\n", "utf-8")
    PAGE.write_text(committed_page(), "utf-8")


def _on_the_real_model(do: str, bank: Path, data: Path | None, seeds: int) -> None:
    model, more = str(smollm2()), {"model": KNOWN_AS}
    if do == "real":
        real_runs.run(real.Bench(model, bank, BUILD, known_as=KNOWN_AS), seeds, REAL)
    if do == "real-alarms":
        watched = real_alarms.AlarmBench(real.Bench(model, bank, BUILD, real_alarms.ALARM_SETTING))
        kept = Records(BUILD / "alarms.jsonl", watched.about, REAL_ALARMS)
        real_alarms.run(watched, seeds, kept, more)
    if data is None:
        return
    screen = real_gate.GateBench(model, bank, read_folder(data))
    kept = Records(BUILD / "gate.jsonl", screen.about, REAL_GATE)
    if do == "real-gate":
        real_gate.run(screen, kept, more)
    if do == "real-cleaned":
        cleaned = real_cleaned.CleanedBench(
            real.Bench(model, bank, BUILD, real_cleaned.CLEANED_SETTING), screen,
            GateResults(json.loads(REAL_GATE.read_text("utf-8"))),
        )  # fmt: skip
        kept = Records(BUILD / "cleaned.jsonl", cleaned.about, REAL_CLEANED)
        real_cleaned.run(cleaned, kept, more)


def committed_page() -> str:
    """The page of the committed results."""
    held = [json.loads(path.read_text("utf-8")) for path in (RUNS, GATE)]
    found = RealModel.read(REAL, REAL_ALARMS, REAL_GATE, REAL_CLEANED)
    return page(held[0], held[1]["sets"], found)


if __name__ == "__main__":
    main()
