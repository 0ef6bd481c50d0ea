"""What a report says of a run in sentences; nothing is judged anew."""

from __future__ import annotations

from collections.abc import Sequence

from wvmonitor.detection.explanation import to_do
from wvmonitor.report.findings import Finding, Outcome
from wvmonitor.report.view import RunView
from wvmonitor.report.words import clean, count, dose_words, figure, listed, percent, sentence


def read_first(outcome: Outcome) -> list[tuple[str, tuple[str, ...]]]:
    """What to read first: what, how sure, what next; why, where nothing was judged."""
    what = ("What", tuple(s for s in (outcome.claim, _newest(outcome)) if s))
    if outcome.state in ("unknown", "warming"):
        lines = [what, ("Why", (outcome.reason,))]
    else:
        steps = tuple(s.removeprefix("Next: ") for s in to_do(outcome.account))
        lines = [what, ("How sure", (outcome.worth,)), ("What next", steps)]
    return [(label, words) for label, words in lines if any(words)]


def _newest(outcome: Outcome) -> str:
    """The newest value of the leading finding, which its chart shows at the right end."""
    leading = outcome.leading
    if leading is None or leading.score is None or outcome.state in ("unknown", "warming"):
        return ""
    last = outcome.view.rows[-1].step
    when = "Now" if last is None or len(outcome.view.rows) == 1 else f"At step {last:,}"
    limit = f", threshold {figure(leading.threshold)}" if leading.threshold is not None else ""
    name = clean(leading.reference)
    return f"{when}: {name} {figure(leading.score)} ({outcome.deciding_name}){limit}."


def why(outcome: Outcome) -> list[str]:
    """The rest of what the judge said: what passed which threshold, and what such a change does."""
    if outcome.state in ("unknown", "warming"):
        return []
    view, leading = outcome.view, outcome.leading
    several = len(view.rows) > 1
    since = next((f.since for f in outcome.drifting if f.since is not None), None)
    at = f"Step {since:,}: " if several and since is not None else ""
    last = view.rows[-1].step if several else None
    when = "" if last is None else f"at step {last:,} "
    lines = [at + outcome.reason] if outcome.reason else []
    lines += [s for s in outcome.account if s not in to_do(outcome.account)]
    for finding in outcome.drifting or ((leading,) if leading else ()):
        if finding.kind != "behaviour" or (finding is leading and outcome.account):
            continue
        if words := dose_words(finding.dose, finding.reference):
            lines.append(sentence(when + words))
    return lines


def headline(outcomes: Sequence[Outcome]) -> str:
    """The whole page in a sentence."""
    if not outcomes:
        return "There is nothing to report: no runs were given."
    if len(outcomes) == 1:
        return outcomes[0].claim
    drifting = [o for o in outcomes if o.state == "alarm"] or [
        o for o in outcomes if o.state == "warn"
    ]
    unjudged = sum(o.state in ("unknown", "warming") for o in outcomes)
    tail = f" {unjudged} could not be judged." if unjudged else ""
    if not drifting:
        rest = len(outcomes) - unjudged
        every = "No run drifts towards a watched behaviour."
        return f"{every if not unjudged else f'{rest} of {len(outcomes)} runs are ok.'}{tail}"
    verb = ("drifts", "drift") if drifting[0].state == "alarm" else ("may be drifting",) * 2
    names = [
        f"“{clean(o.view.name, 60)}” towards {listed([clean(f.reference) for f in o.drifting])}"
        for o in drifting[:3]
    ]
    warned = sum(o.state == "warn" for o in outcomes) if drifting[0].state == "alarm" else 0
    if warned:
        tail = f" {warned} more may be drifting.{tail}"
    more = f", and {len(drifting) - 3} more" if len(drifting) > 3 else ""
    which = listed(names) if not more else ", ".join(names)
    return (
        f"{len(drifting)} of {len(outcomes)} runs {verb[len(drifting) > 1]}: {which}{more}.{tail}"
    )


def onset_words(outcome: Outcome) -> str:
    """Whether the measured behaviour appeared, and whether the alarm or it came first."""
    view = outcome.view
    onset = view.onset_step
    alarm = next((f.since for f in outcome.drifting if f.state == "alarm"), None)
    if onset is None:
        return " ".join(
            f"{sentence(clean(label))[:-1]}: {percent(curve[-1].rate)} at the last reading, "
            f"{percent(low)} to {percent(high)} in the base. It did not appear."
            for label, curve in view.behaviour.items()
            if curve and label in view.base_rates
            for low, high in [view.base_rates[label]]
        )
    if alarm is None:
        ends = [percent(curve[-1].rate) for curve in view.behaviour.values() if curve]
        last = f"; it is {listed(ends)} at the end" if ends else ""
        return f"The behaviour appears at step {onset} without an alarm{last}."
    if alarm == onset:
        return f"The alarm came at the step at which the behaviour appears ({onset})."
    when = "before" if alarm < onset else "after"
    lead = count(abs(onset - alarm), "step")
    return f"The alarm came {lead} {when} the behaviour appears (step {onset})."


def readout(leading: Finding | None) -> str:
    """The last reading, in the words the script uses for the one pointed at."""
    if leading is None or not leading.points:
        return ""
    last = leading.points[-1]
    limit = f" · threshold {figure(leading.threshold)}" if leading.threshold is not None else ""
    return f"step {last.step:,.0f} · {figure(leading.score)}{limit} · {last.state or 'not judged'}"


def chart_words(outcome: Outcome, leading: Finding) -> str:
    """What a sighted reader takes from the chart, for those who do not see it."""
    scores = [p.score for p in leading.points if p.score == p.score]
    if not scores:
        return f"{count(len(leading.points), 'reading')}, none with a score."
    words = f"{count(len(leading.points), 'reading')}; the score lies between "
    words += f"{figure(min(scores))} and {figure(max(scores))} and ends at {figure(scores[-1])}."
    if leading.threshold is not None:
        words += f" The last threshold is {figure(leading.threshold)}."
    alarm = leading.first_alarm
    words += f" First alarm at step {alarm.step:.0f}." if alarm else " No alarm."
    return words + f" Verdict: {outcome.state}. The readings are in the table below."


def behaviour_words(view: RunView) -> str:
    """What a sighted reader takes from the chart of measured behaviour."""
    parts = [
        f"{clean(label)}: from {percent(curve[0].rate)} at step {curve[0].step} to "
        f"{percent(curve[-1].rate)} at step {curve[-1].step}"
        for label, curve in view.behaviour.items()
        if curve
    ]
    return "; ".join(parts) + ". The values are in the table below."
