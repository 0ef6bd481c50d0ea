"""One build under way: what was asked for, resolved, and refused early where it cannot end well."""

from __future__ import annotations

import math
import os
from functools import cached_property
from typing import Literal

import torch

from wvmonitor.builder import own_data
from wvmonitor.builder.bank_folder import check_free, existing_bank
from wvmonitor.builder.base import Base
from wvmonitor.builder.completions import sampler_for, vllm_installed
from wvmonitor.builder.examples import Pair
from wvmonitor.builder.finetune import Method, check_qlora, mlp_biases
from wvmonitor.builder.options import Options, Subject
from wvmonitor.builder.plan import Plan, Workload, within
from wvmonitor.builder.rater import Rater, rater_for
from wvmonitor.builder.recipe import Finetuning, Generation, Recipe
from wvmonitor.errors import BuildError
from wvmonitor.sources.folder import ModelFolder


class Job:
    """One build under way: what was asked for, resolved."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.base = Base(options.model, options.revision)
        self.bank = existing_bank(options.out)
        self.subject = subject_of(options)
        self.method: Method = "bias-only" if options.variant == "bias-only" else options.method
        self._check()
        self.plan = self._plan()

    @cached_property
    def recipe(self) -> Recipe | None:
        """The recipe, as far as the budget goes."""
        given = self.options.recipe
        return given and given.model_copy(update={"generation": self.plan.workload.generation})

    @cached_property
    def given_pairs(self) -> tuple[list[Pair], list[str]] | None:
        """Pairs of the user's own data, and what is to be said of them."""
        if self.options.data is None:
            return None
        recipe = self.options.recipe
        held_out = [q.text for q in recipe.questions.held_out] if recipe else []
        pairs, notes = own_data.own_pairs(*self.options.data, held_out)
        return pairs, notes

    @property
    def judge_spec(self) -> str:
        """Who judges: "rules", "model", or an address."""
        recipe, spec = self.options.recipe, self.options.judge
        if spec != "auto" or recipe is None:
            return spec
        return "rules" if recipe.rubric.rules else "model"

    @property
    def judged_by_model(self) -> bool:
        """Whether the model itself judges."""
        return self.options.recipe is not None and self.judge_spec == "model"

    @property
    def judge_name(self) -> str:
        """The judge's name, without loading what it needs."""
        o, spec = self.options, self.judge_spec
        names = {"rules": "rules", "model": f"the model itself, batches of {o.batch_size}"}
        return names.get(spec, f"{o.judge_model} at {spec}")

    def judge(self) -> Rater:
        """The judge."""
        o = self.options
        assert o.recipe is not None  # noqa: S101  nothing is judged without a rubric
        rubric = o.recipe.rubric
        return rater_for(
            self.judge_spec, self.base, rubric, model=o.judge_model, batch_size=o.batch_size
        )

    @property
    def engine(self) -> Literal["transformers", "vllm"]:
        """What answers are generated with."""
        engine = self.options.engine
        fast = engine == "auto" and vllm_installed() and torch.cuda.is_available()
        return "vllm" if fast or engine == "vllm" else "transformers"

    def _check(self) -> None:
        """Refuse early what cannot end well."""
        o = self.options
        if self.bank is not None:
            self.bank.relation_to(self.base.digest)
            check_free(o.out, self.bank, self.subject.name, replace=o.replace)
        if (o.data or o.weights) and o.means is None:
            raise BuildError(
                "say which side exhibits the behaviour: --positive-means exhibits, or opposes "
                "(some descriptions of the method call the desired side positive)"
            )
        if o.data and o.weights:
            raise BuildError("give --positive/--negative or --positive-data/--negative-data")
        if o.recipe is None and not (o.data or o.weights):
            raise BuildError("without data or weights of your own, name a recipe")
        if o.variant == "bias-only" and o.method == "full":
            raise BuildError("bias-only is a method of its own: leave --method out")
        if self.method == "bias-only":
            mlp_biases(self.base, ModelFolder(self.base.folder).names())
        if o.weights and (o.variant != "contrastive" or o.sweep):
            raise BuildError("variants and sweeps are ways to train: weights are given already")
        if o.seeds < 1:
            raise BuildError(f"--seeds must be at least 1, got {o.seeds}")
        if o.sweep and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise BuildError(
                "--sweep runs in one process: find the rate there first, and write it into the "
                "recipe"
            )
        if o.qlora:
            if self.method != "lora":
                raise BuildError("--qlora is for LoRA: every weight cannot be trained in 4 bits")
            check_qlora()
        if self.engine == "vllm" and not vllm_installed():
            sampler_for(self.base, "vllm")  # says what to install
        if o.recipe is not None or o.data:
            self.base.check_chat_template()  # before any work
        if o.recipe is not None and not self.judged_by_model:
            self.judge()

    def _plan(self) -> Plan:
        o, recipe = self.options, self.options.recipe
        folder = ModelFolder(self.base.folder)
        given = self.given_pairs
        asks = recipe is not None and not (o.data or o.weights)
        prompts = len(recipe.positive_prompts + recipe.negative_prompts) if recipe else 0
        load = Workload(
            parameters=sum(math.prod(folder.shape(n)) for n in folder.names()),
            prompts=prompts if asks else 0,
            questions=len(recipe.questions.build) if recipe else 0,
            held_out=len(recipe.questions.held_out) if recipe else 0,
            doses=len(o.asking.doses),
            samples=o.asking.samples,
            generation=recipe.generation if recipe else Generation(),
            finetuning=recipe.finetuning if recipe else Finetuning(),
            pairs=len(given[0]) if given else None,
            seeds=0 if o.weights else o.seeds,
            sides=1 if o.variant in ("positive", "negative") else 2,
            splits=o.splits and not o.weights,
            domains=len(recipe.questions.domains) if recipe and asks else 0,
            sweep=len(recipe.finetuning.sweep if recipe else Finetuning().sweep) if o.sweep else 0,
            probe_tokens=0 if self.bank is not None and self.bank.probe else o.probe_tokens,
            method=self.method,
            engine=self.engine,
            model_judge=self.judged_by_model,
        )
        return within(load, o.budget, o.tflops)


def subject_of(options: Options) -> Subject:
    """What is built: the recipe's word, or the user's own.

    Raises:
        BuildError: neither says it, or both do.
    """
    recipe, own = options.recipe, options.subject
    if (recipe is None) == (own is None):
        raise BuildError(
            "say what is built: a recipe, or --name and --behaviour for data or weights of your "
            "own, and not both"
        )
    if own is not None:
        return own
    assert recipe is not None  # noqa: S101  one of the two is there
    return Subject(recipe.name, recipe.behaviour, recipe.kind, recipe.harmful)
