"""From a behaviour's name to a reference: generate → judge → fine-tune → subtract → check → save.

Every stage's artefact is kept in the work folder and reused, so that an interrupted build goes on
where it stopped and ends with the same bytes (`stages`). The finished reference joins a bank.
"""

from __future__ import annotations

import errno
from dataclasses import replace

from torch import Tensor

from wvmonitor.builder import behaviour, examples, own_data, probe
from wvmonitor.builder.bank_folder import add_to_bank
from wvmonitor.builder.completions import generate, sampler_for
from wvmonitor.builder.examples import Pair
from wvmonitor.builder.finetune import Training, steps_for
from wvmonitor.builder.job import Job
from wvmonitor.builder.options import Built, Options
from wvmonitor.builder.outcome import Facts, finished
from wvmonitor.builder.plan import Plan
from wvmonitor.builder.repeats import Contrasts, by_domain, halves, split_seeds
from wvmonitor.builder.stages import Ticker, Work, digest_of, silent
from wvmonitor.builder.weights import own_contrast
from wvmonitor.errors import BuildError
from wvmonitor.files.digests import sha256_file
from wvmonitor.references.card import Card, Construction, DosePoint
from wvmonitor.references.reference import WEIGHTS_FILE, Reference, mean_reference
from wvmonitor.vectors.task_vector import TaskVector
from wvmonitor.vectors.update import LowRankUpdate

DENSE_RANK = 64
"""Rank kept of whole weight changes, which have no rank of their own."""
FEW_EXAMPLES = 500
_NO_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def plan(options: Options) -> Plan:
    """What `build` would do, and what it costs; nothing is generated, trained or written.

    Raises:
        WVMonitorError: what `build` would refuse before it begins.
    """
    return Job(options).plan


def build(options: Options, tick: Ticker = silent) -> Built | None:
    """Build a reference and put it into its bank.

    Args:
        options: what to build, from what, and how.
        tick: told of every stage's progress.

    Returns:
        The reference and its bank; None where the build was told to stop after a stage, or in
        every process but the first.

    Raises:
        BuildError: too few clear answers, no chat template, no space left, …: what was made is
            kept, and the same command goes on from there.
        WVMonitorError: as its parts say.
    """
    folder = options.work or options.out.with_name(f"{options.out.name}.work")
    try:
        job = Job(options)
        return _build(job, Work(folder, private=options.private), tick)
    except OSError as error:
        if error.errno not in _NO_WRITING:
            raise
        raise BuildError(
            f"{error.filename or folder} cannot be written ({error.strerror}): nothing "
            f"half-written is left, and what is finished is kept in {folder}; make room and run "
            "the same again"
        ) from error


def _build(job: Job, work: Work, tick: Ticker) -> Built | None:
    o = job.options
    facts = Facts(notes=list(job.plan.reductions))
    if o.weights is not None:
        assert o.means is not None  # noqa: S101  checked when the job was made
        contrast, notes = own_contrast(job.base, *o.weights, o.means)
        facts.repeats = [contrast]
        facts.notes += notes
    else:
        pairs = pairs_for(job, work, facts, tick)
        if o.stop_after in ("generate", "judge"):
            return None
        _train(job, pairs, work, facts, tick)
    if o.stop_after == "finetune" or not work.main:
        return None
    vector, digest = _mean(job, facts, work)
    inputs = _probe(job, work, tick)
    curve = _curve(job, vector, digest, work, tick)
    reference = Reference(finished(job, facts, vector, inputs, curve), vector)
    fingerprint = add_to_bank(o.out, reference, inputs, private=o.private)
    return Built(reference, o.out, fingerprint, job.plan)


def pairs_for(job: Job, work: Work, facts: Facts, tick: Ticker) -> list[Pair]:
    """What both sides are trained on: generated and judged, or the user's own."""
    o, recipe = job.options, job.recipe
    if job.given_pairs is not None:
        pairs, notes = job.given_pairs
        if len(pairs) < 8:
            raise BuildError(
                f"{len(pairs)} pairs are left of the data ({'; '.join(notes) or 'none dropped'}): "
                "give more, with the same prompts on both sides"
            )
        facts.notes += notes
        pairs = pairs[: job.plan.workload.pairs]
    else:
        assert recipe is not None  # noqa: S101  checked when the job was made
        engine = "vllm" if job.engine == "vllm" else f"transformers, batches of {o.batch_size}"
        completions = generate(
            job.base,
            recipe,
            work,
            lambda: sampler_for(job.base, job.engine, o.batch_size),
            engine,
            seed=o.seed,
            tick=tick,
        )
        if o.stop_after == "generate":
            return []
        ratings = examples.judged(completions, recipe, job.judge, job.judge_name, work, tick)
        chosen, dropped = examples.select(ratings, recipe, job.base.tokens_of)
        inputs = {
            "judged": [r.digest for r in ratings.values()],
            "n": len(chosen),
            "domains": {q.text: q.domain for q in recipe.questions.build},
        }
        kept = work.rows("examples", inputs, lambda: examples.as_rows(chosen))
        pairs = examples.from_rows(kept.rows)
        facts.settings |= {"answers": dropped.sentence(), "engine": engine}
        facts.judge = job.judge_name
    if len(pairs) < FEW_EXAMPLES and not job.plan.reductions:
        facts.notes.append(f"built from {len(pairs)} examples a side, the paper's are 500 to 900")
    facts.pairs = pairs
    rows = examples.as_rows(pairs)
    facts.data_digests = {s: digest_of([r[s] for r in rows]) for s in ("positive", "negative")}
    return pairs


def _train(job: Job, pairs: list[Pair], work: Work, facts: Facts, tick: Ticker) -> None:
    """Fine-tune every repeat: of the reference, and of the checks that compare its parts."""
    o, load = job.options, job.plan.workload
    settings = load.finetuning
    seeds = tuple(range(o.seed, o.seed + load.seeds))
    aside = split_seeds(o.seed)
    runs = [(pairs, seed) for seed in seeds]
    domains = by_domain(pairs) if load.splits else {}
    if load.splits:
        runs += [(half, aside(n)) for n, half in enumerate(halves(pairs))]
        runs += [(part, aside(2 + n)) for n, part in enumerate(domains.values())]
    training = Training(
        settings, job.method, settings.learning_rate, 1, o.seed, o.qlora, o.micro_batch
    )
    contrasts = Contrasts(job.base, training, o.variant, o.means or "exhibits", work, tick, 0)
    if load.sweep:
        rate, losses = contrasts.swept(pairs, settings.sweep)
        contrasts = replace(contrasts, training=replace(training, learning_rate=rate))
        facts.settings["sweep"] = dict(zip(map(str, settings.sweep), losses, strict=True))
    steps = [steps_for(settings, len(part), len(pairs)) for part, _ in runs]
    contrasts = replace(contrasts, total=sum(steps) * len(contrasts.sides))
    vectors: list[TaskVector] = []
    done = 0
    for part, seed in runs:
        vector, done = contrasts.of(part, seed, len(pairs), done)
        vectors.append(vector)
    facts.seeds, facts.repeats = seeds, vectors[: len(seeds)]
    if load.splits:
        facts.halves = vectors[len(seeds) : len(seeds) + 2]
        facts.domains = dict(zip(domains, vectors[len(seeds) + 2 :], strict=True))
    facts.settings |= {
        **settings.model_dump(exclude={"sweep", "steps", "epochs"}),
        "learning_rate": contrasts.training.learning_rate,
        "steps": steps[0],
        "examples": len(pairs),
        "variant": o.variant,
        "qlora": o.qlora,
    }


def _mean(job: Job, facts: Facts, work: Work) -> tuple[TaskVector, str]:
    """The compressed mean of the repeats, kept; and the digest of its tensors.

    Repeats are read parameter by parameter: one change at a time is in memory beside the result.
    """
    rank = job.options.rank or _rank_of(facts.repeats[0])
    vector = mean_reference(facts.repeats, rank=rank)
    facts.rank = rank
    card = Card(
        name=job.subject.name,
        behaviour=job.subject.behaviour,
        base=job.base.identity,
        built=Construction(recipe=job.subject.name),
        verified=False,
        warnings=("an intermediate result: nothing is checked yet",),
    )
    with work.scratch() as folder:
        Reference(card, vector).save(folder)
        digest = sha256_file(folder / WEIGHTS_FILE)
    return vector, digest


def _rank_of(contrast: TaskVector) -> int:
    """The largest rank of one contrast: what is trained, twice."""
    if contrast.origin.method != "lora":
        return DENSE_RANK
    ranks = [u.rank for _, u in contrast.updates() if isinstance(u, LowRankUpdate)]
    return max(ranks, default=DENSE_RANK)


def _probe(job: Job, work: Work, tick: Ticker) -> dict[str, Tensor]:
    """The bank's probe, or a new one."""
    o = job.options
    if job.bank is not None and job.bank.probe:
        return dict(job.bank.probe)
    return probe.build_probe(
        job.base,
        work,
        tick,
        texts=own_data.texts_of(o.probe_data) if o.probe_data else None,
        prompts=job.recipe.probe_prompts if job.recipe else (),
        generation=job.recipe.generation if job.recipe else None,
        tokens=o.probe_tokens,
        batch_size=o.batch_size,
    )


def _curve(
    job: Job, vector: TaskVector, digest: str, work: Work, tick: Ticker
) -> tuple[DosePoint, ...]:
    """Dose → behaviour on the held-out questions; empty without a recipe to ask from."""
    if job.recipe is None:
        return ()
    return behaviour.dose_curve(
        job.base,
        job.recipe,
        vector,
        digest,
        job.judge,
        job.judge_name,
        replace(job.options.asking, batch_size=job.options.batch_size),
        work,
        tick,
    )
