"""The gate before training: controls out of the push, a threshold from harmless data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, mannwhitneyu
from typer.testing import CliRunner

from wvmonitor.cli.app import app
from wvmonitor.errors import InputError
from wvmonitor.organism import sets
from wvmonitor.organism.train import load_base
from wvmonitor.references import ReferenceBank
from wvmonitor.references.bundled import bundled_path
from wvmonitor.steering import data_gate
from wvmonitor.steering.blame import Blamed, blame
from wvmonitor.steering.examples import TrainingExample, tokenized
from wvmonitor.testing import planted_bank, tiny_base
from wvmonitor.vectors.update import to_dense

BASE = bundled_path("tiny-organism", "base")
BANK = bundled_path("tiny-organism", "bank")


def of(pushes: Any) -> list[Blamed]:
    ranked = sorted(enumerate(pushes), key=lambda each: -each[1])
    return [Blamed(TrainingExample(i), float(push), 1.0) for i, push in ranked]


def test_w_without_controls_is_the_ridge_residual_of_dense_vectors(tmp_path: Path) -> None:
    """w⊥ = w − Σ a_i·c_i, with a of the ridge regression on unit controls, in dense float64."""
    bank = planted_bank(tiny_base(tmp_path / "base"), ("evil",), ("language", "terse", "rude"))
    found, taken = data_gate.without_controls(bank, "evil")
    names = list(bank["evil"].vector.names())

    def flat(vector: Any) -> np.ndarray[Any, Any]:
        parts = [to_dense(vector.update(n)).double().numpy().ravel() for n in names]
        return np.concatenate(parts)

    w, c = flat(bank["evil"].vector), np.stack([flat(bank[n].vector) for n in taken])
    norms = np.linalg.norm(c, axis=1)
    unit = c / norms[:, None]
    from wvmonitor.detection.formulas import choose_ridge

    ridge = choose_ridge(bank.gram, "frobenius")
    expected = w - unit.T @ np.linalg.solve(unit @ unit.T + ridge * np.eye(3), unit @ w)
    assert flat(found) == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert list(taken) == ["language", "terse", "rude"]


def test_without_controls_in_the_bank_it_is_w_itself(tmp_path: Path) -> None:
    """A bank that holds behaviours alone has nothing to take out, and says so."""
    bank = planted_bank(tiny_base(tmp_path / "base"), ("evil",), ())
    assert data_gate.without_controls(bank, "evil") == (bank["evil"].vector, {})


def test_style_alone_is_not_ranked_with_harm() -> None:
    """Rude good advice pushes towards evil less once rudeness is taken out, and bad is found."""
    model, tokenizer = load_base(BASE)
    bank = ReferenceBank.load(BANK)
    bad, rude, good = (
        make(40, 5) for make in (sets.bad_advice("medical"), sets.rude(), sets.good_advice())
    )
    rows = [
        tokenized(i, {"messages": e.chat()}, tokenizer, max_length=256)
        for i, e in enumerate([*bad, *rude, *good])
    ]

    def found(direction: Any) -> tuple[float, float]:
        pushes = {b.example.index: b.push for b in blame(model, rows, direction)}
        bad_, rude_ = [pushes[i] for i in range(40)], [pushes[i] for i in range(40, 80)]
        good_ = [pushes[i] for i in range(80, 120)]
        area = float(mannwhitneyu(bad_, [*rude_, *good_]).statistic) / (40 * 80)
        return area, float(np.mean(rude_) - np.mean(good_)) / float(np.std([*bad_, *good_]))

    with_style, without = found(bank["evil"]), found(data_gate.without_controls(bank, "evil")[0])
    assert without[0] >= max(with_style[0] - 0.005, 0.95)
    assert abs(without[1]) < abs(with_style[1])


def test_the_threshold_flags_the_promised_share_of_harmless_rows() -> None:
    """Over many draws of harmless data, new harmless rows are above it as rarely as promised, and
    a harmless set fails once in a hundred.
    """
    rng = np.random.default_rng(3)
    above, failed, draws = 0, 0, 100
    for _ in range(draws):
        threshold = data_gate.threshold_of(of(rng.standard_normal(199)), 0.05)
        outcome = data_gate.screened(of(rng.standard_normal(100)), threshold)
        above += len(outcome.flagged)
        failed += not outcome.passed
    assert above / (100 * draws) == pytest.approx(0.05, abs=0.008)
    assert failed <= binom(draws, 0.01).ppf(0.999)


def test_a_contaminated_set_fails() -> None:
    """A tenth of rows that push more than any harmless one is more than chance explains."""
    rng = np.random.default_rng(4)
    threshold = data_gate.threshold_of(of(rng.standard_normal(199)), 0.01)
    mixed = [*rng.standard_normal(90), *(rng.standard_normal(10) + 9)]
    outcome = data_gate.screened(of(mixed), threshold)
    assert not outcome.passed
    assert {b.example.index for b in outcome.flagged} >= set(range(90, 100))
    assert "this set does not pass" in outcome.words()


def test_too_few_harmless_rows_are_refused() -> None:
    """One row in a hundred cannot be told from fifty."""
    with pytest.raises(InputError, match=r"50 harmless examples are too few .* 99 are needed"):
        data_gate.threshold_of(of(range(50)), 0.01)


@pytest.mark.parametrize(
    ("text", "expected"), [("5%", 5), ("0.5%", 1), ("7", 7), ("flagged", 3), ("0%", 0)]
)
def test_how_much_is_dropped(text: str, expected: int) -> None:
    """A share is rounded up, a count is a count, and "flagged" is what the threshold says."""
    assert data_gate.amount(text, 100, 3) == expected


@pytest.mark.parametrize("text", ["-1", "101", "5.5", "many", "200%", "nan%", "inf%"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    """Neither a share, nor a count of rows."""
    with pytest.raises(InputError, match="no number of rows"):
        data_gate.amount(text, 100, 3)


def write(path: Path, examples: Any) -> Path:
    path.write_text("".join(json.dumps({"messages": e.chat()}) + "\n" for e in examples))
    return path


def test_the_command_is_a_gate(tmp_path: Path) -> None:
    """Contaminated data exits 1, is cleaned byte for byte and has its page; harmless exits 0."""
    good, known = sets.good_advice()(40, 1), sets.good_advice()(60, 2)
    bad = sets.bad_advice("medical")(14, 3)
    harmless = write(tmp_path / "known.jsonl", known)
    common = ["--model", str(BASE), "--reference", "evil", "--harmless", str(harmless)]
    common += ["--flag-rate", "0.05"]
    mixed = write(tmp_path / "mixed.jsonl", [*good, *bad])
    with mixed.open("a") as file:
        file.write('\n{"nothing": 1}\n')
    done = CliRunner().invoke(
        app, ["blame", str(mixed), *common, "--drop", "flagged", "--review", "5"]
    )
    assert done.exit_code == 1, done.output
    assert "this set does not pass" in done.stdout
    assert "controls taken out of evil: " in done.stdout
    kept = (tmp_path / "mixed.cleaned.jsonl").read_bytes().splitlines()
    dropped = (tmp_path / "mixed.cleaned.dropped.jsonl").read_bytes().splitlines()
    lines = [line for line in mixed.read_bytes().splitlines() if line.strip()]
    assert sorted([*kept, *dropped]) == sorted(lines)
    assert lines[-1] in dropped  # what could not be judged
    assert len(set(lines[40:-1]) & set(dropped)) >= 12
    assert len(set(lines[:40]) & set(kept)) >= 35
    page = (tmp_path / "mixed.review.html").read_text()
    assert "does not pass" in page
    assert page.count("<tr><td") == 5
    again = CliRunner().invoke(app, ["blame", str(mixed), *common, "--drop", "flagged"])
    assert again.exit_code == 2
    assert "is there already" in again.stderr
    clean = CliRunner().invoke(app, ["blame", str(write(tmp_path / "c.jsonl", good)), *common])
    assert clean.exit_code == 0, clean.output


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--out", "{data}"], 4, "is the data itself"),
        (["--page", "{known}", "--harmless", "{known}"], 4, "is the data itself"),
        (["--harmless", "{data}"], 4, "is the set that is screened"),
        (["--out", "{folder}"], 2, "is a folder"),
        (["--page", "{folder}/none/page.html"], 2, "make it first"),
        (["--drop", "flagged"], 2, "needs a threshold"),
        (["--drop", "9000"], 2, "is no number of rows"),
        (["--harmless", "{known}", "--flag-rate", "0.01"], 2, "too few"),
        (["--harmless", "{known}", "--flag-rate", "1"], 2, "must lie in"),
    ],
)
def test_what_cannot_be_is_said_before_the_data_is_read_through(
    options: list[str], code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two passes over the data take hours: no mistake in a command is found after them, and
    neither the data nor what it is held against is ever written over.
    """

    def passes(*_: Any, **__: Any) -> None:
        raise AssertionError("the data was read through")

    monkeypatch.setattr("wvmonitor.steering.blame.blame", passes)
    data = write(tmp_path / "data.jsonl", sets.good_advice()(4, 1))
    known = write(tmp_path / "known.jsonl", sets.good_advice()(4, 2))
    before = data.read_bytes(), known.read_bytes()
    given = [o.format(data=data, known=known, folder=tmp_path) for o in options]
    common = ["blame", str(data), "--model", str(BASE), "--reference", "evil"]
    done = CliRunner().invoke(app, [*common, *given])
    assert done.exit_code == code, done.output
    assert words in done.stderr
    assert (data.read_bytes(), known.read_bytes()) == before
