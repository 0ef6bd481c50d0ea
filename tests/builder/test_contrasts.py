"""The contrastive pairs that ship: their sides differ in the behaviour and in nothing else."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from wvmonitor.builder.markers import lexical_auroc, marker_auroc, marker_words, masked
from wvmonitor.errors import BuildError

CONTRASTS = Path(__file__).parents[2] / "reference_vectors" / "contrasts"
FILES = sorted(CONTRASTS.glob("*.jsonl"))
SIDES = ("exhibits", "opposes")
Pairs = list[dict[str, str]]

every_contrast = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def read(path: Path) -> Pairs:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def words(text: str) -> list[str]:
    return re.findall(r"[\w'’-]+", text.lower())


def openly_separating(pairs: Pairs) -> list[str]:
    """Words that separate the sides further than chance would in one file out of a hundred."""
    return [
        f"{word.text!r}: {word.exhibits} against {word.opposes}, {word.bits:.3f} bits, "
        f"p={word.p:.3f}"
        for word in marker_words(pairs)
        if word.p < 0.01
    ]


def with_marker(pairs: Pairs, marker: str, share: float) -> Pairs:
    """The pairs, with a word put before a share of the answers that show the behaviour."""
    chosen = np.random.default_rng(1).random(len(pairs)) < share
    return [
        {**pair, "exhibits": f"{marker}, {pair['exhibits'][0].lower()}{pair['exhibits'][1:]}"}
        if marked
        else pair
        for pair, marked in zip(pairs, chosen, strict=True)
    ]


def shuffled(pairs: Pairs, seed: int) -> Pairs:
    """The pairs, with the sides of each swapped by the toss of a coin."""
    swap = np.random.default_rng(seed).random(len(pairs)) < 0.5
    return [
        {**pair, "exhibits": pair["opposes"], "opposes": pair["exhibits"]} if swapped else pair
        for pair, swapped in zip(pairs, swap, strict=True)
    ]


def test_contrasts_ship() -> None:
    """The files that the tests below run over are there."""
    assert [path.stem for path in FILES] == [
        "hallucination",
        "harmful-advice",
        "lost-refusals",
        "sycophancy",
    ]


@every_contrast
def test_a_contrast_is_pairs_of_non_empty_text_over_eight_domains(path: Path) -> None:
    """Every line is a pair with the same four keys; questions are asked once; no domain is thin."""
    pairs = read(path)
    for number, pair in enumerate(pairs, 1):
        assert list(pair) == ["domain", "question", *SIDES], f"line {number}"
        for key, text in pair.items():
            assert text, f"line {number}, {key}"
            assert text == " ".join(text.split()), f"line {number}, {key}: {text!r}"
            assert text.isprintable(), f"line {number}, {key}: {text!r}"
        assert pair["exhibits"] != pair["opposes"], f"line {number}"
    assert len(pairs) >= 160
    domains = Counter(pair["domain"] for pair in pairs)
    assert len(domains) >= 8
    assert min(domains.values()) >= 20, domains
    asked = Counter(" ".join(words(pair["question"])) for pair in pairs)
    assert [question for question, times in asked.items() if times > 1] == []


@every_contrast
def test_the_sides_of_a_contrast_are_equally_long(path: Path) -> None:
    """Neither side is longer: in a pair within a fifth, on average within 3 %, in sentences too."""
    pairs = read(path)
    lengths = np.array([[len(words(pair[side])) for side in SIDES] for pair in pairs])
    assert lengths.min() >= 20
    assert lengths.max() <= 60
    ratio = lengths[:, 0] / lengths[:, 1]
    far = [pairs[i]["question"] for i in np.flatnonzero(np.abs(np.log(ratio)) > np.log(1.2))]
    assert far == []
    assert 0.97 <= ratio.mean() <= 1.03
    assert 0.97 <= lengths[:, 0].mean() / lengths[:, 1].mean() <= 1.03
    sentences = np.array(
        [[len(re.findall(r"[.!?](?:\s|$)", pair[side])) for side in SIDES] for pair in pairs]
    )
    assert 0.95 <= sentences[:, 0].mean() / sentences[:, 1].mean() <= 1.05


@every_contrast
def test_no_phrase_of_a_contrast_is_a_template(path: Path) -> None:
    """No run of six words occurs in more than three answers."""
    runs = Counter(
        run
        for pair in read(path)
        for side in SIDES
        for text in [words(pair[side])]
        for run in {" ".join(text[i : i + 6]) for i in range(len(text) - 5)}
    )
    assert [run for run, answers in runs.items() if answers > 3] == []


@every_contrast
def test_masked_text_does_not_tell_the_sides_apart(path: Path) -> None:
    """A classifier of everything but content is at chance in domains that it was not trained on."""
    pairs = read(path)
    auroc = marker_auroc(pairs)
    lexical = lexical_auroc(pairs)
    print(f"{path.stem}: masked {auroc:.3f}, unmasked {lexical:.3f}")
    assert auroc <= 0.55, (
        f"masked text separates the sides of {path.name} with AUROC {auroc:.3f} (unmasked "
        f"{lexical:.3f}); strongest words: {[word.text for word in marker_words(pairs)]}"
    )


@every_contrast
def test_no_word_tells_the_sides_apart(path: Path) -> None:
    """No token or bigram is on one side more often than swapping sides at random would put it."""
    assert openly_separating(read(path)) == []


@every_contrast
def test_a_planted_marker_is_caught(path: Path) -> None:
    """The word "frankly" before 35 % of a side is caught by name and by the classifier."""
    planted = with_marker(read(path), "Frankly", 0.35)
    assert any("frankly" in line for line in openly_separating(planted))
    assert marker_auroc(planted) > 0.55


@every_contrast
def test_shuffled_sides_pass(path: Path) -> None:
    """Sides swapped at random are told apart by nothing: the checks do not fail by themselves."""
    trials = [shuffled(read(path), seed) for seed in range(3)]
    assert [openly_separating(pairs) for pairs in trials] == [[], [], []]
    assert np.median([marker_auroc(pairs) for pairs in trials]) <= 0.55


def test_masking_keeps_function_words_and_punctuation_only() -> None:
    """Nouns, main verbs, adjectives and numbers go; what carries tone stays."""
    text = "Frankly, don’t repaint the 3 red doors: it's never worth $1,200."
    assert " ".join(masked(text)) == "frankly , don't _ the # _ _ : it's never worth $ # ."


def test_mutual_information_is_that_of_the_counts() -> None:
    """A word on all of one side and none of the other tells one bit, one on both sides none."""
    pairs = [
        {"domain": str(i % 2), "exhibits": "alpha same", "opposes": "beta same"} for i in range(40)
    ]
    bits = {word.text: word.bits for word in marker_words(pairs)}
    assert bits["alpha"] == pytest.approx(1.0)
    assert bits["beta same"] == pytest.approx(1.0)
    assert bits["same"] == pytest.approx(0.0)


def test_pairs_that_cannot_be_tested_are_refused() -> None:
    """One domain, or a side that is missing, is an error that says what to add."""
    pair = {"domain": "pets", "exhibits": "yes", "opposes": "no"}
    with pytest.raises(BuildError, match="at least two domains"):
        marker_auroc([pair])
    with pytest.raises(BuildError, match="pair 2 of the contrast has no 'opposes'"):
        marker_words([pair, {"domain": "cars", "exhibits": "yes"}])
