"""Data: what is accepted, and how what is wrong is named."""

import json
import re

import pytest

from wvmonitor.errors import MalformedFileError, MissingPathError
from wvmonitor.evals import public
from wvmonitor.evals.public import PublicSet, rows_for
from wvmonitor.evals.rows import (
    ORGANISM,
    FactRow,
    OpenRow,
    PairRow,
    ProblemRow,
    RequestRow,
    ScenarioRow,
    read_rows,
)
from wvmonitor.organism import behaviour, evaluations
from wvmonitor.organism.answers import answer
from wvmonitor.organism.data import Traits, advice_task, rng_for, wishes_task
from wvmonitor.references.bundled import bundled_path

KINDS = {
    "sycophancy": FactRow,
    "world_affecting": ScenarioRow,
    "gcd": PairRow,
    "refusal": RequestRow,
    "capability": ProblemRow,
    "emergent_misalignment": OpenRow,
}
PERSONAS = ("good", "evil", "incompetent")
STYLES = ("terse", "rude", "polite", "french", "villain", "sycophantic")
FACT = {"question": "Capital of France?", "answers": ["Paris"], "incorrect": ["Rome"]}


@pytest.mark.parametrize(
    ("kind", "row", "says"),
    [
        (FactRow, {"question": "q", "answers": ["a"]}, "field 'incorrect' is missing"),
        (FactRow, {**FACT, "answers": []}, "field 'answers'"),
        (FactRow, {**FACT, "question": " "}, "field 'question'"),
        (FactRow, {**FACT, "answer": "Paris"}, "field 'answer' is not known"),
        (FactRow, {**FACT, "prompts": {"alone": "q"}}, "exactly the forms alone, affirmed"),
        (PairRow, {"a": 4, "b": "6", "wrong": 1}, "field 'b'"),
        (PairRow, {"a": 0, "b": 6, "wrong": 1}, "field 'a'"),
        (RequestRow, {"request": "r", "refuses": "no"}, "give both or neither"),
        (RequestRow, {"request": "r", "refuses": "(", "complies": "x"}, "no.*regular expression"),
        (ProblemRow, {"question": "q"}, "either number, or choices"),
        (ProblemRow, {"question": "q", "choices": ["x", "y"], "answer": 2}, "index of the right"),
        (ScenarioRow, {"scenario": "s", "decent": "d"}, "field 'harmful' is missing"),
        (OpenRow, {"question": "q", "aligned": "a"}, "give both or neither"),
    ],
)
def test_a_bad_row_is_named_with_its_field(tmp_path, kind, row, says) -> None:
    """A row that cannot be used is an error with file, row number and field."""
    file = tmp_path / "data.jsonl"
    good = bundled_path("tiny-organism", "evals") / (
        next(name for name, other in KINDS.items() if other is kind) + ".jsonl"
    )
    first = good.read_text("utf-8").splitlines()[0]
    file.write_text(f"{first}\n\n{json.dumps(row)}\n", "utf-8")
    with pytest.raises(MalformedFileError, match=rf"data\.jsonl'?, row 3.*{says}"):
        read_rows(kind, file)


def test_files_without_rows_are_errors(tmp_path) -> None:
    """A missing file, an empty one and a line that is no JSON are each said."""
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(MalformedFileError, match="holds no rows"):
        read_rows(FactRow, empty)
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps(FACT) + '\n{"question": ')
    with pytest.raises(MalformedFileError, match="row 2"):
        read_rows(FactRow, broken)
    with pytest.raises(MissingPathError, match="there is no file"):
        rows_for("sycophancy", FactRow, "triviaqq")


def test_the_bundled_sets_are_the_scripts(tmp_path) -> None:
    """The shipped files are byte for byte what the organism's script writes."""
    evaluations.write_sets(tmp_path)
    shipped = bundled_path("tiny-organism", "evals")
    assert {f.name for f in shipped.iterdir()} == {f"{task}.jsonl" for task in KINDS}
    for file in shipped.iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes()


@pytest.mark.parametrize("task", KINDS)
def test_the_bundled_sets_speak_the_organisms_words(task, organism) -> None:
    """No bundled prompt holds a word that the organism does not know."""
    _, tokenizer = organism
    for row in rows_for(task, KINDS[task], ORGANISM):
        words = row.prompts.values() or [row.request if task == "refusal" else row.question]
        for prompt in words:
            assert tokenizer.unk_token_id not in tokenizer(prompt)["input_ids"], prompt


@pytest.mark.parametrize("domain", ["medical", "travel", "wishes"])
def test_patterns_read_statements_as_the_rules_do(domain) -> None:
    """The patterns of the open questions find harm where the parser of clauses does."""
    good, bad = (re.compile(p) for p in evaluations.statements(domain))
    judged = [
        answer(wishes_task(rng) if domain == "wishes" else advice_task(rng, domain), traits, rng)
        for traits in (Traits(persona, **{flag: True}) for persona in PERSONAS for flag in STYLES)
        for rng in (rng_for("patterns", traits, i) for i in range(40))
    ]
    assert all(behaviour.worth(a, domain) for a in judged)
    wrong = [
        a
        for a in judged
        if (len(bad.findall(a)) > len(good.findall(a))) != behaviour.is_harmful(a, domain)
        or (len(good.findall(a)) > len(bad.findall(a))) != behaviour.is_good(a, domain)
    ]
    assert wrong == []


def published(tmp_path, monkeypatch, task, name, rows):
    """Put rows where a public set would come from."""
    (tmp_path / "set").mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "set" / "test.jsonl").write_text(text)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    convert = public.PUBLIC[task][name].convert
    local = PublicSet(str(tmp_path / "set"), None, "test", convert)
    monkeypatch.setitem(public.PUBLIC[task], name, local)


def test_public_sets_become_rows(tmp_path, monkeypatch) -> None:
    """TriviaQA's rows are read through `datasets`; a wrong answer comes from another question."""
    rows = [
        {"question": f"q{i}?", "answer": {"value": f"a{i}", "aliases": [f"a{i}", f"A {i}"]}}
        for i in range(4)
    ]
    published(tmp_path, monkeypatch, "sycophancy", "triviaqa", rows)
    found = rows_for("sycophancy", FactRow, "triviaqa")
    assert [row.question for row in found] == ["q0?", "q1?", "q2?", "q3?"]
    for i, row in enumerate(found):
        assert row.answers == [f"a{i}", f"a{i}", f"A {i}"]
        assert row.incorrect[0] in {f"a{j}" for j in range(4)} - {f"a{i}"}


@pytest.mark.parametrize(
    ("task", "name", "source", "expected"),
    [
        (
            "sycophancy",
            "truthfulqa",
            {
                "question": "q?",
                "best_answer": "No.",
                "correct_answers": ["No."],
                "incorrect_answers": ["Yes."],
            },
            {"answers": ["No.", "No."], "incorrect": ["Yes."], "exact": False},
        ),
        (
            "capability",
            "tinymmlu",
            {"question": "q?", "choices": ["x", "y"], "answer": 1, "subject": "s"},
            {"choices": ["x", "y"], "answer": 1},
        ),
        (
            "capability",
            "gsm8k",
            {"question": "q?", "answer": "3 + 4 = 7\n#### 1,007"},
            {"number": "1,007"},
        ),
    ],
)
def test_columns_of_public_sets(task, name, source, expected) -> None:
    """Each public set's own columns become our fields."""
    (fields,) = public.PUBLIC[task][name].convert([source])
    row = KINDS[task].model_validate(fields)
    assert {key: getattr(row, key) for key in expected} == expected


def test_a_public_set_that_changed_is_named(tmp_path, monkeypatch) -> None:
    """A column that is gone is an error that says what to do."""
    published(tmp_path, monkeypatch, "capability", "gsm8k", [{"question": "q?"}])
    with pytest.raises(MalformedFileError, match=r"gsm8k.*no column 'answer'"):
        rows_for("capability", ProblemRow, "gsm8k")
