"""Whether the two sides of a contrast can be told apart by anything but what they say.

A reference vector learns whatever separates the sides. If one side opens with "Frankly," more often
than the other, the word becomes part of the vector and alarms on harmless runs. So the sides are
read with their content masked: nouns, main verbs, adjectives and numbers become a placeholder,
function words, openers, hedges, negations, punctuation and lengths stay. What a classifier can
still learn from that, tested on domains it was not trained on, is a marker.

A pair is a mapping with the keys ``domain``, ``question``, ``exhibits`` (the answer that shows the
behaviour) and ``opposes`` (the one that does not).
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import rankdata

from wvmonitor.errors import BuildError

__all__ = ["MarkerWord", "lexical_auroc", "marker_auroc", "marker_words", "masked"]

Pair = Mapping[str, str]
Matrix = NDArray[np.float64]
Reader = Callable[[str], list[str]]

CONTENT = "_"
NUMBER = "#"

# English function words, and the words of register that carry tone rather than content: openers,
# hedges, intensifiers, light verbs, evaluations that fit any subject.
_KEPT = frozenset(
    """
    a an the this that these those such same other another each every either neither both all any
    some no none much many more most less least few fewer several enough half whole one ones two
    i you he she it we they me him her us them my your his its our their mine yours hers ours theirs
    myself yourself himself herself itself ourselves yourselves themselves someone somebody
    something somewhere anyone anybody anything anywhere everyone everybody everything everywhere
    nobody nothing nowhere who whom whose which what when where why how whoever whatever whichever
    whenever wherever
    of in on at by for with without within about against between among into onto through during
    before after above below to from up down out off over under again further across along around
    behind beside besides beyond despite except inside near outside past per since than till toward
    towards until upon via like unlike
    and or but nor so yet if because as while whereas although though unless whether once then else
    otherwise instead rather
    am is are was were be been being isn't aren't wasn't weren't have has had having haven't hasn't
    hadn't do does did doing done don't doesn't didn't can could may might must shall should will
    would cannot can't couldn't mustn't needn't shouldn't won't wouldn't ought not never ever
    i'm i've i'd i'll you're you've you'd you'll he's she's it's it'd it'll we're we've we'd we'll
    they're they've they'd they'll that's there's here's what's who's let's
    there here now today later soon already still always often sometimes usually rarely seldom
    mostly only just even also too very quite pretty really simply merely barely hardly nearly
    almost roughly exactly perhaps maybe probably possibly likely unlikely certainly surely
    definitely clearly obviously honestly frankly actually basically essentially generally
    typically normally apparently supposedly presumably fortunately unfortunately sadly luckily
    happily indeed however therefore hence thus moreover furthermore meanwhile anyway overall
    finally lastly firstly first second third last next afterwards eventually immediately
    completely totally entirely fully absolutely highly extremely fairly slightly somewhat
    particularly especially specifically mainly largely partly
    yes no yeah ok okay sure great please thanks thank sorry hello hi well right wrong true false
    good better best bad worse worst fine safe safely important worth
    make makes made making let lets letting keep keeps kept keeping get gets got getting go goes
    going gone went take takes took taken taking give gives gave given giving put puts putting try
    tries tried trying need needs needed want wants wanted use uses used using come comes came
    say says said tell tells told think thinks thought know knows knew known believe believes
    seem seems seemed feel feels mean means meant guess suppose hope avoid skip wait ask asks asked
    remember forget ensure consider recommend suggest advise
    doctor doctors professional professionals expert experts
    """.split()  # noqa: SIM905
)

_TOKEN = re.compile(r"[a-z]+(?:['’][a-z]+)*|\d[\d.,:]*\d|\d|[^\w\s]")
_RIDGE = 1.0  # on the summed loss, with features between 0 and about 2
_RARE = 3  # a feature of fewer answers than this cannot separate two sides
_PERMUTATIONS = 1000
_CONSTANT = 1e-9  # a spread below this is rounding
_NEWTON_STEPS = 50
_CONVERGED = 1e-8  # largest residual of an answer


@dataclass(frozen=True)
class MarkerWord:
    """One token or bigram, and how far its presence tells which side an answer is from."""

    text: str
    bits: float  # mutual information between presence and side
    exhibits: int  # answers with it, of each side
    opposes: int
    p: float  # chance that the strongest of all words reaches this with the sides swapped at random


def masked(text: str) -> list[str]:
    """The tokens of a text in lower case, with open-class words and numbers replaced."""
    return [_mask(token) for token in _tokens(text)]


def marker_auroc(pairs: Sequence[Pair]) -> float:
    """AUROC with which masked text tells the sides apart, in domains not trained on.

    Logistic regression on unigrams and bigrams of the masked answers, their first three tokens,
    their length and the lengths of their sentences; each domain is scored by a model of the others,
    and the scores are pooled. 0.5 is chance, with a standard error of about 0.03 at 176 pairs.

    Raises:
        BuildError: the pairs come from fewer than two domains, or lack a key.
    """
    return _left_out_auroc(pairs, masked, form=True)


def lexical_auroc(pairs: Sequence[Pair]) -> float:
    """As `marker_auroc`, on the words themselves: how lexical the behaviour is.

    This may be above chance, because a behaviour has content, but the nearer to 0.5 the better.

    Raises:
        BuildError: the pairs come from fewer than two domains, or lack a key.
    """
    return _left_out_auroc(pairs, _tokens, form=False)


def marker_words(pairs: Sequence[Pair], strongest: int = 20) -> list[MarkerWord]:
    """The tokens and bigrams of the unmasked answers that tell most about the side, best first.

    `MarkerWord.p` compares each with the strongest of all words when the sides of every pair are
    swapped at random (1,000 times, fixed seed), so it is already corrected for their number.

    Raises:
        BuildError: the pairs come from fewer than two domains, or lack a key.
    """
    _check(pairs)
    rows = [
        [set(_ngrams(_tokens(pair[side]))) for pair in pairs] for side in ("exhibits", "opposes")
    ]
    counts = Counter(word for side in rows for answer in side for word in answer)
    words = sorted(word for word, count in counts.items() if count >= _RARE)
    if not words:
        return []
    shows, opposes = (
        np.array([[word in answer for word in words] for answer in side], float) for side in rows
    )
    total, kind = np.unique((shows + opposes).sum(0), return_inverse=True)
    table = _information(np.arange(len(pairs) + 1.0)[:, None], total, len(pairs))

    def information(difference: Matrix) -> Matrix:
        return np.asarray(table[np.abs(difference).astype(int), kind])

    difference = shows - opposes
    bits = information(difference.sum(0))
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (_PERMUTATIONS, len(pairs)))
    null = information(signs @ difference).max(1)
    order = np.argsort(-bits, kind="stable")[:strongest]
    return [
        MarkerWord(
            text=words[i],
            bits=float(bits[i]),
            exhibits=int(shows[:, i].sum()),
            opposes=int(opposes[:, i].sum()),
            p=float((1 + (null >= bits[i] - 1e-12).sum()) / (1 + _PERMUTATIONS)),
        )
        for i in order
    ]


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text.lower().replace("’", "'"))


def _mask(token: str) -> str:
    if token[0].isdigit():
        return NUMBER
    return token if token in _KEPT or not token[0].isalpha() else CONTENT


def _ngrams(tokens: Sequence[str]) -> list[str]:
    return [*tokens, *(f"{a} {b}" for a, b in itertools.pairwise(tokens))]


def _check(pairs: Sequence[Pair]) -> None:
    for number, pair in enumerate(pairs, 1):
        for key in ("domain", "exhibits", "opposes"):
            if not pair.get(key, "").strip():
                raise BuildError(f"pair {number} of the contrast has no {key!r}: add it")
    if len({pair["domain"] for pair in pairs}) < 2:
        raise BuildError(
            "a contrast is tested on domains that the test was not trained on: it needs pairs of "
            "at least two domains"
        )


def _left_out_auroc(pairs: Sequence[Pair], read: Reader, *, form: bool) -> float:
    """Pooled AUROC of a logistic model of the other domains, for every domain."""
    _check(pairs)
    answers = [pair[side] for side in ("exhibits", "opposes") for pair in pairs]
    shows = np.repeat([1.0, 0.0], len(pairs))
    domains = np.array([pair["domain"] for pair in pairs] * 2)
    counts = [Counter(_ngrams(read(answer))) for answer in answers]
    if form:
        for count, answer in zip(counts, answers, strict=True):
            count["opens: " + " ".join(masked(answer)[:3])] = 1
    column = {word: i for i, word in enumerate(sorted(set().union(*counts)))}
    present = np.zeros((len(answers), len(column)))
    for row, count in zip(present, counts, strict=True):
        row[[column[word] for word in count]] = list(count.values())
    logs = np.log1p(present)
    shape = (
        np.array([_shape(answer) for answer in answers]) if form else np.zeros((len(answers), 0))
    )
    scores = np.empty(len(answers))
    for domain in sorted(set(domains)):
        train = domains != domain
        # The vocabulary and the scale come from the training domains alone.
        words = logs[:, present[train].sum(0) >= _RARE]
        scale = shape[train].std(0)
        features = np.hstack([words, shape / np.where(scale > _CONSTANT, scale, 1.0)])
        features -= features[train].mean(0)
        scores[~train] = features[~train] @ _logistic(features[train], shows[train])
    ranks = rankdata(scores)
    n = len(pairs)
    return float((ranks[shows == 1].sum() - n * (n + 1) / 2) / n**2)


def _shape(answer: str) -> list[float]:
    """Words, sentences, and the longest and first sentence of an answer, in logs."""
    sentences = [len(s.split()) for s in re.split(r"(?<=[.!?])\s+", answer.strip())]
    return list(np.log([sum(sentences), len(sentences), max(sentences), sentences[0]]))


def _logistic(features: Matrix, labels: Matrix) -> Matrix:
    """Weights of a ridge-penalised logistic regression, by Newton's method.

    Features are centred and the sides equally many, so there is no intercept. Answers are fewer
    than features, so the steps are taken in the dual: one coefficient an answer.
    """
    gram = features @ features.T
    dual = np.zeros(len(labels))
    for _ in range(_NEWTON_STEPS):
        chance = expit(gram @ dual)
        residual = labels - chance - _RIDGE * dual
        if np.abs(residual).max() < _CONVERGED:
            return np.asarray(features.T @ dual)
        slope = (chance * (1 - chance))[:, None] * gram
        slope[np.diag_indices_from(slope)] += _RIDGE
        dual += np.linalg.solve(slope, residual)
    raise ArithmeticError(f"logistic regression did not converge in {_NEWTON_STEPS} steps")


def _information(difference: Matrix, total: Matrix, answers: int) -> Matrix:
    """Mutual information in bits of presence and side, from counts over `answers` a side."""
    joint = np.stack([(total + difference) / 2, (total - difference) / 2])
    joint = np.stack([joint, answers - joint]) / (2 * answers)
    presence = joint.sum(1, keepdims=True)
    ratio = np.where(joint > 0, joint / np.where(presence > 0, presence / 2, 1.0), 1.0)
    return np.asarray((joint * np.log2(ratio)).sum((0, 1)))
