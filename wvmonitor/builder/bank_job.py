"""One bank to be made: what was asked for, resolved, and refused early where it cannot end well."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean

from wvmonitor.builder import contrasts, controls, refusals
from wvmonitor.builder.base import Base
from wvmonitor.builder.contrasts import Contrast
from wvmonitor.builder.examples import Example, Pair
from wvmonitor.builder.fine_tunes import READINGS, RECORD_LIMIT_GB
from wvmonitor.builder.finetune import Method, Training
from wvmonitor.builder.harmless import families
from wvmonitor.builder.harmless.families import Family
from wvmonitor.builder.like import SET_APART, Like, read_like
from wvmonitor.builder.recipe import Finetuning, load_recipe
from wvmonitor.builder.scale import (
    FULL,
    LADDER,
    Amounts,
    Cost,
    Machine,
    Scale,
    costs,
    jobs_that_fit,
    largest_within,
    seconds,
    this_machine,
)
from wvmonitor.errors import BuildError, MissingPathError
from wvmonitor.files.documents import read_json, write_json
from wvmonitor.reading import layer_of
from wvmonitor.references.bundled import bundled_path
from wvmonitor.sources.folder import ModelFolder

PERSONA = "persona"
RECIPES = ("evil", "sycophancy", "hallucination", "refusal-erosion")
"""Whose system prompts and rubrics make contrasts of the base's own answers."""
RANK, ALPHA = 16, 32
REFERENCE_RANK = 128
"""Of references and controls. LoRA moves weights in as many random directions as its rank; two
adapters of one lesson share few of them. A wide reference lies nearer to every run's: at 128 its
Frobenius cosine with a bad run was twice that of 16, for half as much time again
(docs/real-model.md)."""
KEPT_RANK = 64
"""Of w that is kept: 97 % of its squared norm, measured there too."""
BUDGET_FILE = "budget.json"
"""In the work folder: what a budget took when the bank was begun. The same budget takes it again,
however fast the machine is by then: another scale would train everything anew."""
_LONGEST = 512
_SAMPLE = 12


@dataclass(frozen=True)
class BankOptions:
    """Everything that making a bank can be told.

    Attributes:
        model: the base: a folder, a Hub id, or the bundled model's name.
        out: the bank's folder.
        revision: of a Hub model.
        work: where artefacts are kept; `<out>.work` if not given.
        data: a folder of contrasts of one's own, "persona" for the paper's way, or None for the
            pairs that come with the package.
        behaviours: those wanted; all of the data's if empty.
        harmless: one's own harmless data (folders, files or names of datasets), beside what comes
            with the package.
        like: a run, or a YAML of settings, that harmless runs are to resemble.
        scale: how much of everything; None for all, or what a budget allows.
        budget: hours of this machine; beside a scale, those that it was chosen for.
        jobs: fine-tunes side by side; by default one a core, or one on a GPU.
        seed: of everything that is drawn.
        alpha: the share of harmless runs that may alarm.
        score: the deciding score as in "response/residual"; None lets development runs choose.
        judge: who judges the answers under system prompts, as `rater_for` says.
        judge_model: what an endpoint calls its model.
        private: mode 0600 for every file.
    """

    model: str
    out: Path
    revision: str | None = None
    work: Path | None = None
    data: str | None = None
    behaviours: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()
    like: Path | None = None
    scale: Scale | None = None
    budget: float | None = None
    jobs: int | None = None
    seed: int = 0
    alpha: float = 0.05
    score: str | None = None
    judge: str = "auto"
    judge_model: str | None = None
    private: bool = False

    @property
    def work_folder(self) -> Path:
        """Where artefacts are kept."""
        return self.work or self.out.with_name(f"{self.out.name}.work")


@dataclass(frozen=True)
class BankPlan:
    """What will be done, and what it costs on this machine."""

    scale: Scale
    costs: tuple[Cost, ...]
    machine: Machine
    behaviours: tuple[str, ...]
    controls: tuple[str, ...]
    families: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return seconds(self.costs)


class BankJob:
    """A bank under way: what was asked for, resolved.

    Raises:
        BuildError: something else is in the way, there is too little data, memory or time.
        WVMonitorError: as its parts say.
    """

    def __init__(self, options: BankOptions) -> None:
        self.options = options
        self.base = Base(options.model, options.revision)
        self.notes: list[str] = []
        refusals.check_place(options.out, self.base)
        refusals.check_score(options.score)
        self.base.check_chat_template()  # before any work
        self.like = read_like(options.like) if options.like else Like()
        if self.like.unread:
            self.notes.append(f"of --like, not taken over: {', '.join(self.like.unread)}")
        self.machine = this_machine(options.jobs)
        self.jobs = jobs_that_fit(self.parameters, self.machine)
        if self.jobs < self.machine.jobs:
            self.notes.append(f"memory is enough for {self.jobs} fine-tunes side by side")
            self.machine = replace(self.machine, jobs=self.jobs)
        self.scale = self._scale()
        refusals.check_alpha(options.alpha, self.scale.calibration, len(self._behaviours))
        if options.like:
            self._check_like(f"--like {options.like}")

    def _check_like(self, where: str) -> None:
        like, steps = self.like, self.run_steps
        refusals.check_like(self.base, like, self.run_training(1e-4, 0, steps), where)
        if like.method == "full":
            self.notes.append("harmless runs are full fine-tunes: --like names no LoRA settings")
        if like.steps is None:
            self.notes.append(
                f"--like does not say how long the run will be (max_steps): harmless runs have "
                f"{steps} steps, and of a run of more than {3 * steps} the bank can warn at most"
            )

    @cached_property
    def parameters(self) -> int:
        """Of the base."""
        return sum(map(math.prod, self._shapes.values()))

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the base's parameters, by name."""
        folder = ModelFolder(self.base.folder)
        return {n: folder.shape(n) for n in folder.names()}

    @cached_property
    def data_folder(self) -> Path | None:
        """Where the pairs are; None where the base is asked under system prompts."""
        data = self.options.data
        if data == PERSONA:
            return None
        return self._shipped_data if data is None else Path(data)

    @property
    def _shipped_data(self) -> Path:
        return contrasts.default_folder(self.options.model)

    @cached_property
    def contrasts(self) -> list[Contrast]:
        """The behaviours' pairs, where they are at hand."""
        assert self.data_folder is not None  # noqa: S101  persona has its own way
        found = contrasts.read_contrasts(self.data_folder, self.options.behaviours)
        if self.options.data is not None:
            pairs = [p for c in found for p in (*c.train, *c.held_out)]
            self.notes += refusals.check_lengths(self.base, pairs, self._longest)
        return found

    @property
    def _behaviours(self) -> list[str]:
        if self.data_folder is None:
            return [load_recipe(name).name for name in persona_recipes(self.options)]
        return [c.name for c in self.contrasts]

    @cached_property
    def controls(self) -> dict[str, list[Pair]]:
        """The controls' pairs: the data's own, or those made by rule."""
        own = controls.of_folder(self.data_folder or self._shipped_data)
        needed = max(0, self.scale.controls - 1)  # one is made of harmless runs
        behaviours = self._behaviours
        if taken := [n for n in behaviours if n in (*own, controls.ANY_TUNING)]:
            raise BuildError(
                f"{taken[0]} is the name of a control, too, and a reference's name is its own: "
                "rename the file of one of them"
            )
        if own:
            return dict(list(own.items())[:needed])
        n = self.scale.control_steps * self.scale.batch_size
        # Nothing is held against a control of the very trait that it is to find.
        names = [name for name in controls.names() if name not in behaviours][:needed]
        return {name: controls.by_rule(name, n, self.options.seed) for name in names}

    def families(self, found: Sequence[Contrast], own: Sequence[Family] = ()) -> list[Family]:
        """Every harmless family for this base: what its vocabulary cannot say is left out.

        Args:
            found: the contrasts, whose good sides are families too.
            own: the base's own answers.
        """
        folder = (self.data_folder or self._shipped_data) / families.FOLDER
        brought = families.of_folder(folder) if folder.is_dir() else None
        made = [families.by_rule(n) for n in families.RULES] if brought is None else brought
        if brought is None:
            shipped = bundled_path(families.FOLDER) if _has(families.FOLDER) else None
            made += families.of_folder(shipped, hard=("human-voice",)) if shipped else []
        for given in self.options.harmless:
            made += families.given(given, self._fits)
        for contrast in found:
            made += families.good_answers(contrast)
        self.notes += [note for family in made for note in family.notes]
        readable, left = families.legible(self.base, families.apart([*made, *own]))
        if left:
            self.notes.append(
                f"{len(left)} harmless families are not in the base's vocabulary and were left "
                f"out: {', '.join(left)}"
            )
        return readable

    @property
    def _longest(self) -> int:
        """Tokens of an example that are trained on, wherever it is used."""
        return min(_LONGEST, self.like.max_length or _LONGEST)

    def _fits(self, example: Example) -> bool:
        return self.base.fits(example.messages, self._longest)

    @cached_property
    def reference_rank(self) -> int:
        """Of the adapters behind references: less than `REFERENCE_RANK` on a narrow base."""
        narrowest = min(s[1] for s in self._shapes.values() if len(s) == 2)
        return min(REFERENCE_RANK, max(RANK, narrowest // 4))

    @property
    def _run_rank(self) -> int:
        return int(self.like.adapter.get("r", RANK))

    def settings(self, steps: int) -> Finetuning:
        """How references and controls are trained, apart from the rate."""
        return Finetuning(
            rank=self.reference_rank,
            alpha=ALPHA,
            batch_size=self.scale.batch_size,
            warmup_steps=max(1, steps // 10),
            steps=steps,
            max_length=_LONGEST,
        )

    def reference_training(self, steps: int, rate: float, seed: int) -> Training:
        """A side of a reference."""
        batch, micro = self.scale.batch_size, self.like.micro_batch
        micro = None if micro is None or micro >= batch else math.gcd(batch, micro)
        return Training(self.settings(steps), "lora", rate, steps, seed, micro_batch=micro)

    def run_training(self, rate: float, seed: int, steps: int) -> Training:
        """A run like the one that will be watched."""
        like = self.like
        arguments = {k: v for k, v in like.arguments.items() if k not in SET_APART}
        settings = Finetuning(
            rank=self._run_rank,
            alpha=int(like.adapter.get("lora_alpha", ALPHA)),
            batch_size=self.batch_size,
            warmup_steps=like.warmup(steps),
            steps=steps,
            max_length=like.max_length or _LONGEST,
        )
        method: Method = "full" if like.method == "full" else "lora"
        peak = like.learning_rate or rate
        named = replace(like, arguments=arguments) if arguments or like.adapter else None
        return Training(
            settings, method, peak, steps, seed, micro_batch=like.micro_batch, like=named
        )

    @property
    def batch_size(self) -> int:
        """Of the runs that are like the user's."""
        return self.like.batch_size or self.scale.batch_size

    @property
    def run_steps(self) -> int:
        """Of the runs that are like the user's: a third of theirs, where that is not longer."""
        return max(self.scale.run_steps, math.ceil((self.like.steps or 0) / 3))

    @property
    def power_steps(self) -> int:
        """Of the power check's runs."""
        return max(self.scale.power_steps, self.run_steps)

    def recorded(self, runs: int) -> bool:
        """Whether the task vectors of so many watched runs may be kept.

        Those of LoRA on every linear map, 4 bytes a number at each reading.
        """
        if self.like.method == "full":
            return False
        return 4 * RANK * self._widths * (READINGS + 1) * runs < RECORD_LIMIT_GB * 1e9

    @cached_property
    def _widths(self) -> int:
        """Inputs and outputs of every linear map of the blocks."""
        blocks = (s for n, s in self._shapes.items() if layer_of(n) is not None)
        return sum(sum(s) for s in blocks if len(s) == 2)

    def plan(self) -> BankPlan:
        """What will be done, and what it costs."""
        from_model = self.options.data == PERSONA
        contrasts = [] if from_model else self.contrasts
        notes = list(self.notes)
        if from_model:
            notes.append("the answers under system prompts come on top: see wvmonitor build")
        usable = self.families(contrasts)
        return BankPlan(
            scale=self.scale,
            costs=tuple(costs(self.scale, self._amounts(), self.machine)),
            machine=self.machine,
            behaviours=tuple(self._behaviours),
            controls=(*self.controls, controls.ANY_TUNING),
            families=tuple(f.name for f in usable),
            notes=tuple(dict.fromkeys([*notes, *self.notes])),
        )

    def _scale(self) -> Scale:
        o = self.options
        if o.budget is None:
            return o.scale or FULL
        scale = o.scale or self._begun(o.budget)
        scale = scale or largest_within(o.budget, self._amounts(), self.machine)
        if scale is not FULL:
            self.notes.append(f"the budget takes a {scale.name} bank instead of a full one")
        return scale

    def _begun(self, budget: float) -> Scale | None:
        """The scale that this budget took when the bank was begun."""
        path = self.options.work_folder / BUDGET_FILE
        kept = read_json(path) if path.is_file() else {}
        if kept.get("hours") != budget:
            return None
        return next((s for s in LADDER if s.name == kept.get("scale")), None)

    def keep_scale(self) -> None:
        """Write down, in the work folder, what the budget took."""
        if self.options.budget is not None:
            kept = {"hours": self.options.budget, "scale": self.scale.name}
            write_json(self.options.work_folder / BUDGET_FILE, kept)

    def _amounts(self) -> Amounts:
        pairs = [] if self.data_folder is None else [p for c in self.contrasts for p in c.train]
        drawn: list[Example] = [p.positive for p in random.Random(0).sample(  # noqa: S311
            pairs, k=min(_SAMPLE, len(pairs))
        )]  # fmt: skip
        tokens = [len(self.base.encode(e.messages, e.answer)[0]) for e in drawn]
        return Amounts(
            parameters=self.parameters,
            widths=self._widths,
            reference_rank=self.reference_rank,
            run_rank=None if self.like.method == "full" else self._run_rank,
            behaviours=len(self._behaviours),
            tokens=fmean(tokens) if tokens else 96.0,
            batch_size=self.like.batch_size or 0,
            run_steps=math.ceil((self.like.steps or 0) / 3),
        )


def persona_recipes(options: BankOptions) -> tuple[str, ...]:
    """The recipes of a bank that is made from the base's own answers."""
    return tuple(dict.fromkeys(options.behaviours or RECIPES))


def _has(*parts: str) -> bool:
    try:
        bundled_path(*parts)
    except MissingPathError:
        return False
    return True
