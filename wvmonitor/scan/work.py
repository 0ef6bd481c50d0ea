"""How the measuring of checkpoints is shared out among workers, and what comes back of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

from wvmonitor.files.storage import is_url
from wvmonitor.outputs.scan_record import failure_of
from wvmonitor.scan.executors import alone
from wvmonitor.scan.measure import Job, Outcome, Share, measure_all, scored, tried

# Adapters that a worker measures side by side, once each worker has several such pieces to do.
_TOGETHER, _PIECES = 8, 4

Work = list[tuple[int, Job]]


def shared_out(jobs: Sequence[Job], workers: int) -> list[Work]:
    """What workers are to do, piece by piece: jobs by their index.

    Adapters of a large archive come several at a time, so that a worker reads the references once
    for all of them; which ones come together shows in the last digits of float32 products. Whole
    local checkpoints that are fewer than the workers come in shares, which changes no digit; with a
    cache they do not, for every share would have to read all bytes for the key.

    Jobs with an error need no work.
    """
    healthy = [(i, job) for i, job in enumerate(jobs) if job.target.error is None]
    adapters = [(i, job) for i, job in healthy if job.target.kind == "adapter"]
    others = [(i, job) for i, job in healthy if job.target.kind != "adapter"]
    size = max(1, min(_TOGETHER, len(adapters) // (_PIECES * workers)))
    shares = max(1, workers // max(1, len(healthy)))
    split = [
        (i, replace(job, share=(number, count)))
        for i, job in others
        for count in (1 if job.cache is not None or is_url(job.target.path) else shares,)
        for number in range(count)
    ]
    work = [adapters[start : start + size] for start in range(0, len(adapters), size)]
    return sorted([*work, *([one] for one in split)], key=lambda piece: piece[0][0])


def outcomes(
    jobs: Sequence[Job], executor: Executor | None, workers: int
) -> Iterator[tuple[int, Outcome]]:
    """Each job's index and outcome, as they finish."""
    for index, job in enumerate(jobs):
        if job.target.error is not None:
            yield index, job.target.error
    shares: dict[int, dict[int, Share]] = {}
    done: set[int] = set()
    for index, job, part in _found_by(shared_out(jobs, workers), executor):
        if index in done:  # another share of it failed
            continue
        outcome: Outcome | None = None
        if isinstance(part, Share):
            number, count = job.share
            shares.setdefault(index, {})[number] = part
            if len(shares[index]) == count:
                whole = [shares[index][i] for i in range(count)]
                outcome = tried(scored, whole, jobs[index])
        else:
            outcome = part
        if outcome is not None:
            shares.pop(index, None)
            done.add(index)
            yield index, outcome


def _found_by(
    work: Sequence[Work], executor: Executor | None
) -> Iterator[tuple[int, Job, Outcome | Share]]:
    """What was found for each job of each piece of work, as the pieces are done."""
    if executor is None:
        for piece in work:
            yield from _told(piece, measure_all([job for _, job in piece]))
        return
    pending: dict[Future[list[Outcome | Share]], Work] = {}
    lost: Work = []
    again: Work = []
    try:
        for piece in work:
            try:
                pending[executor.submit(measure_all, [job for _, job in piece])] = piece
            # a worker died before all was handed out; a pool that is breaking has closed its pipes
            except (BrokenProcessPool, OSError):
                lost += piece
        for future in as_completed(tuple(pending)):
            piece, error = pending.pop(future), future.exception()
            if isinstance(error, BrokenProcessPool):
                lost += piece
            elif error is None:
                yield from _told(piece, future.result())
            elif len(piece) > 1:
                again += piece  # one of them did it, as a cluster's worker that was killed
            else:
                yield from _told(piece, [failure_of(error)])
        yield from _found_by([[one] for one in again], executor) if again else ()
    finally:
        for future in pending:
            future.cancel()
    # A worker that dies (of memory, mostly) takes all that was waiting with it: one by one, only
    # the checkpoint that kills its worker is lost.
    singly = alone(measure_all, [[job] for _, job in lost])
    for one, outcome in zip(lost, singly, strict=True):
        yield from _told(
            [one], [failure_of(outcome)] if isinstance(outcome, Exception) else outcome
        )


def _told(
    piece: Work, outcomes_of_piece: Sequence[Outcome | Share]
) -> Iterator[tuple[int, Job, Outcome | Share]]:
    for (index, job), outcome in zip(piece, outcomes_of_piece, strict=True):
        yield index, job, outcome
