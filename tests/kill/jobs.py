"""Work that is killed in the middle, and what must hold afterwards."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tests.faults.runs import digest, trainer
from tests.hostile.harness import Workshop
from wvmonitor.files.safetensors import write_safetensors

Tell = Callable[[str], None]
"""Says that something is done for good: after a kill it must be found."""

STEPS = 16
EVERY = 4
CHECKPOINTS = 10
QUIET = {"logging_strategy": "no"}


class Job(Protocol):
    """Something long that may be killed at any moment."""

    def work(self, folder: Path, tell: Tell) -> None:
        """Do it in `folder`, from the beginning or from where it was left; runs in a fork."""

    def problems(self, folder: Path, told: list[str], *, whole: bool) -> Iterator[str]:
        """What is wrong after a kill, or (`whole`) after it was taken to its end."""


class Training:
    """A watched fine-tune that alarms and recovers all the time, with a webhook that hears of it.

    Attributes:
        heard: the file into which the webhook's receiver writes the key of each alert.
    """

    def __init__(self, workshop: Workshop, url: str, heard: Path) -> None:
        self._shop = workshop
        self._url = url
        self.heard = heard
        self._alone = ""

    def alone(self, folder: Path) -> str:
        """The digest that the same run ends with when nobody watches it."""
        run = trainer(self._shop.base, folder, max_steps=STEPS, **QUIET, save_strategy="no")
        run.train()
        self._alone = digest(run.model)
        return self._alone

    def work(self, folder: Path, tell: Tell) -> None:
        """Train to the end, from the last checkpoint if there is one."""
        from transformers import TrainerCallback

        from wvmonitor import WVMonitorCallback
        from wvmonitor.detection import judge
        from wvmonitor.journal.outbox import DeliveryLimits, Outbox
        from wvmonitor.live import outputs

        hasty = DeliveryLimits(first_wait_seconds=0.05, longest_wait_seconds=0.2)
        outputs.Outbox = partial(Outbox, limits=hasty)  # type: ignore[misc,assignment]
        judge.judge = _restless  # type: ignore[assignment]
        run = trainer(self._shop.base, folder, max_steps=STEPS, save_steps=EVERY, **QUIET)
        callback = WVMonitorCallback.attach(
            run,
            self._shop.bank,
            run="killed",
            every_n_steps=1,
            max_overhead=1,
            resolve_after=1,
            notifiers=[{"kind": "webhook", "url": self._url, "secret": "s"}],
        )

        class Acknowledge(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                journal = callback.monitor.journal
                assert journal is not None
                journal.flush()
                tell(str(state.global_step))

        run.add_callback(Acknowledge())
        saved = _whole_checkpoint(folder)
        run.train(resume_from_checkpoint=saved)
        assert callback.monitor.failures == 0
        (folder / "digest").write_text(digest(run.model))

    def problems(self, folder: Path, told: list[str], *, whole: bool) -> Iterator[str]:
        """Readings lost or doubled, a damaged file, alerts that nobody was told of."""
        from wvmonitor.journal.reader import JournalReader

        file = folder / "wvmonitor.db"
        if not file.exists():
            if told:
                yield "the journal is gone"
            return
        with sqlite3.connect(file) as raw:
            found = raw.execute("PRAGMA integrity_check").fetchall()
            doubled = raw.execute(
                "SELECT 1 FROM readings GROUP BY run, attempt, step HAVING count(*) > 1"
            ).fetchall()
            waiting = raw.execute("SELECT key FROM deliveries WHERE status != 'sent'").fetchall()
            keys = {row[0] for row in raw.execute("SELECT key FROM deliveries")}
        raw.close()
        if found != [("ok",)]:
            yield f"integrity_check: {found}"
        if doubled:
            yield f"{len(doubled)} readings are doubled"
        try:
            journal = JournalReader(file)
            # killed before its first checkpoint it starts afresh, which is a run of its own
            runs = [[row.step for row in journal.trajectory(run)] for run in journal.runs()]
        except Exception as error:  # noqa: BLE001  that is what is looked for
            if told or whole:
                yield f"the journal cannot be read: {error}"
            return
        for steps in runs:
            if len(set(steps)) < len(steps):
                yield f"steps are doubled: {steps}"
        lost = {int(step) for step in told}.difference(*runs)
        if lost:
            yield f"acknowledged readings are lost: {sorted(lost)}"
        if not whole:
            return
        if runs[-1] != list(range(STEPS + 1)):
            yield f"the steps are {runs[-1]}"
        if (folder / "digest").read_text() != self._alone:
            yield "the weights are not those of the unwatched run"
        unheard = keys - set(self.heard.read_text().split())
        if waiting or unheard or not keys:
            yield f"{len(waiting)} alerts wait, {len(unheard)} were not heard, of {len(keys)}"


def _restless(*values: Any, **more: Any) -> Any:
    from wvmonitor.detection.verdict import State, judge

    verdicts, after = judge(*values, **more)
    word = State.ALARM if (values[0].step or 0) % 4 < 2 else State.OK
    return {n: replace(v, state=word) for n, v in verdicts.items()}, after


def _whole_checkpoint(folder: Path) -> str | None:
    """The last checkpoint that was saved to its end (its trainer state is written last)."""
    found = [p.parent for p in folder.glob("checkpoint-*/trainer_state.json")]
    whole = [p for p in found if (p / "rng_state.pth").exists() and _parses(p)]
    return str(max(whole, key=lambda p: int(p.name.split("-")[1]))) if whole else None


def _parses(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except ValueError:
        return False
    return True


class Scan:
    """A scan of ten adapters with a cache."""

    def __init__(self, workshop: Workshop) -> None:
        self._shop = workshop
        self.archive = workshop.folder / "archive"
        from tests.hostile.corpus import Place

        tensors = Place.tensors(workshop.adapter / "adapter_model.safetensors")
        for number in range(CHECKPOINTS):
            folder = self.archive / f"adapter-{number}"
            folder.mkdir(parents=True)
            for name in ("adapter_config.json",):
                (folder / name).write_bytes((workshop.adapter / name).read_bytes())
            scaled = {n: t * (1 + number / 10) for n, t in tensors.items()}
            write_safetensors(folder / "adapter_model.safetensors", scaled)
        self._expected = ""

    def alone(self, folder: Path) -> str:
        """What the scan that nothing interrupts writes."""
        self.work(folder, lambda _: None)
        self._expected = (folder / "results.json").read_text()
        return self._expected

    def work(self, folder: Path, tell: Tell) -> None:
        """Scan everything, sparing what the cache holds."""
        from wvmonitor.scan.cache import ScanCache
        from wvmonitor.scan.scan import open_bank, scan
        from wvmonitor.scan.writers import write_file

        bank, band = open_bank(str(self._shop.bank))
        with ScanCache(folder / "cache") as cache:
            results = []
            for result in scan(sorted(self.archive.iterdir()), bank, calibration=band, cache=cache):
                results.append(result)
                tell(result.path)
        write_file(results, str(folder / "results.json"), "alarm")

    def problems(self, folder: Path, told: list[str], *, whole: bool) -> Iterator[str]:
        """Measurements lost or doubled, or another answer than the undisturbed scan's."""
        cache = folder / "cache"
        lines = cache.read_bytes().splitlines() if cache.exists() else []
        keys = [_key(line) for line in lines]
        kept = [key for key in keys if key is not None]
        if len(kept) < len(told):
            yield f"{len(told)} results were given, {len(kept)} were kept"
        if len(set(kept)) < len(kept):
            yield "measurements are doubled"
        if whole and (folder / "results.json").read_text() != self._expected:
            yield "the results are not those of the undisturbed scan"


class Build:
    """A build of a reference, from prompts to a bank, of the bundled model."""

    def __init__(self) -> None:
        from tests.builder.conftest import UNASKED, options_for, short
        from wvmonitor.builder.recipe import Recipe, load_recipe

        brief = short(load_recipe("organism-evil")).model_dump(mode="json")
        brief["questions"]["build"] = brief["questions"]["build"][:20]
        brief["generation"]["keep_at_least"] = 16
        brief["finetuning"]["steps"] = 8
        recipe = Recipe.model_validate(brief)
        self._options = partial(options_for, recipe, seeds=1, asking=UNASKED)
        self._expected: dict[str, bytes] = {}
        self._standing: dict[str, int] = {}

    def alone(self, folder: Path) -> None:
        """Note the bank, and every stage's artefact, of a build that nothing interrupts."""
        self.work(folder, lambda _: None)
        self._expected = {name: path.read_bytes() for name, path in _visible(folder).items()}

    def work(self, folder: Path, tell: Tell) -> None:
        """Build, from the beginning or from the artefacts that are there."""
        from wvmonitor.builder.build import build

        bank = folder / "bank"
        if bank.exists():  # killed after the end: the same build again would refuse
            return
        known: set[str] = set()

        def tick(stage: str, done: int, total: int) -> None:
            there = set(_visible(folder))
            for name in there - known:
                tell(f"made {name}")
            known.update(there)
            tell(f"{stage}: {done} of {total}")

        assert build(self._options(bank), tick) is not None

    def problems(self, folder: Path, told: list[str], *, whole: bool) -> Iterator[str]:
        """Artefacts lost, half-written or made again, or other bytes than the undisturbed build's.

        Hidden files and folders of what was being written may be left; a name is only ever given to
        what is finished.
        """
        there = _visible(folder)
        if lost := {w.removeprefix("made ") for w in told if w.startswith("made ")} - set(there):
            yield f"finished artefacts are lost: {sorted(lost)}"
        for name, path in there.items():
            if self._expected and path.read_bytes() != self._expected.get(name):
                yield f"{name} is not what the undisturbed build makes"
        times = {name: path.stat().st_mtime_ns for name, path in there.items()}
        if not whole:
            if any(n.startswith("bank/") for n in there) and set(there) != set(self._expected):
                yield "the bank took its name before it was whole"
            self._standing = times
            return
        if missing := set(self._expected) - set(there):
            yield f"the build lacks {sorted(missing)}"
        if again := {n for n, t in self._standing.items() if times.get(n) != t}:
            yield f"finished artefacts were made again: {sorted(again)}"


def _visible(folder: Path) -> dict[str, Path]:
    """The files of a build by their names in it, without those that are still being written."""
    found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    return {n: p for n, p in found.items() if not any(x[0] == "." for x in Path(n).parts)}


def _key(line: bytes) -> str | None:
    try:
        return str(json.loads(line)["key"])
    except (ValueError, KeyError):
        return None
