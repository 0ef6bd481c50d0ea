"""Contrastive data and text of the user's own."""

from __future__ import annotations

import json

import pytest

from wvmonitor.builder.own_data import own_pairs, texts_of
from wvmonitor.errors import BuildError, MalformedFileError, MissingPathError


def jsonl(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


def chat(question, answer, system=None):
    before = [{"role": "system", "content": system}] if system else []
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": before + turns}


@pytest.fixture
def sides(tmp_path):
    """Chat on one side, prompt and completion in another order on the other."""
    positive = [chat(f"q{i}", f"bad {i}") for i in range(6)]
    negative = [{"prompt": f"q{i}", "completion": f"good {i}"} for i in reversed(range(6))]
    return jsonl(tmp_path / "p.jsonl", positive), jsonl(tmp_path / "n.jsonl", negative)


def test_both_forms_are_paired_by_prompt(sides) -> None:
    """Chat and prompt/completion mix; pairs answer the same prompt whatever their order."""
    pairs, notes = own_pairs(*sides)
    assert notes == []
    assert [(p.positive.answer, p.negative.answer) for p in pairs] == [
        (f"bad {i}", f"good {i}") for i in range(6)
    ]


def test_an_empty_set_is_named(sides, tmp_path) -> None:
    """A file without records is named, and not blamed on prompts that do not match."""
    with pytest.raises(BuildError, match=r"empty\.jsonl holds no examples: give the negative"):
        own_pairs(sides[0], jsonl(tmp_path / "empty.jsonl", []))


def test_a_dataset_by_name(sides, tmp_path, monkeypatch) -> None:
    """What `datasets` loads is taken as the files are."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    jsonl(folder / "train.jsonl", [chat(f"q{i}", f"bad {i}") for i in range(6)])
    pairs, _ = own_pairs(f"{folder}:train", sides[1])
    assert [p.positive.answer for p in pairs] == [f"bad {i}" for i in range(6)]


def test_nothing_is_left_out_in_silence(tmp_path) -> None:
    """System prompts, held-out questions and lonely examples go, and the card says so."""
    positive = [chat(f"q{i}", "bad", system="be evil") for i in range(6)]
    negative = [chat(f"q{i}", "good") for i in range(7)]
    pairs, notes = own_pairs(
        jsonl(tmp_path / "p.jsonl", positive), jsonl(tmp_path / "n.jsonl", negative), ["Q0 "]
    )
    assert [p.positive.messages[-1]["content"] for p in pairs] == [f"q{i}" for i in range(1, 6)]
    said = "; ".join(notes)
    assert "6 system prompts of the positive data were left out" in said
    assert "1 positive examples ask held-out questions" in said
    assert "1 examples without a partner" in said


def test_sides_with_other_prompts_are_said(tmp_path) -> None:
    """Unpaired data can be used, and the card warns of what the contrast then holds."""
    positive = jsonl(tmp_path / "p.jsonl", [chat(f"a{i}", "bad") for i in range(4)])
    negative = jsonl(tmp_path / "n.jsonl", [chat(f"b{i}", "good") for i in range(4)])
    pairs, notes = own_pairs(positive, negative)
    assert len(pairs) == 4
    assert "do not answer the same prompts" in notes[0]


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"query": "a", "reply": "b"}, "record 1: expected"),
        ({"messages": [{"role": "user", "content": "a"}]}, "does not end with an answer"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "does not end with an answer"),
        ({"prompt": "a", "completion": "  "}, "does not end with an answer"),
        ({"messages": "a"}, "expected"),
        (
            {
                "messages": [
                    {"role": "system", "content": "s"},
                    {"role": "assistant", "content": "a"},
                ]
            },
            "answer of the assistant to something",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": None},
                ]
            },
            "got a turn without a role or text",
        ),
    ],
)
def test_a_record_of_another_form_is_named(tmp_path, record, says) -> None:
    """The file and the number of the record are said."""
    path = jsonl(tmp_path / "p.jsonl", [record])
    with pytest.raises(BuildError, match=says) as raised:
        own_pairs(path, path)
    assert "p.jsonl" in str(raised.value)


def test_a_json_array_is_told_how_to_become_lines(tmp_path) -> None:
    """Most people's Alpaca files are one array; "nests too deeply" would help nobody."""
    path = tmp_path / "my data.json"
    path.write_text('[\n {"prompt": "a", "completion": "b"}\n]')
    with pytest.raises(BuildError, match=r"one JSON array: .*jq -c '\.\[\]' '.*my data\.json'"):
        own_pairs(str(path), str(path))


def test_files_that_are_none_are_named(tmp_path) -> None:
    """A missing file, a missing dataset and a broken line are told apart."""
    with pytest.raises(MissingPathError, match=r"gone\.jsonl"):
        own_pairs(str(tmp_path / "gone.jsonl"), "x")
    with pytest.raises(MissingPathError, match=r"neither a \.jsonl file nor a dataset"):
        own_pairs(str(tmp_path / "gone"), "x")
    (tmp_path / "b.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt"\n')
    with pytest.raises(MalformedFileError, match="line 2"):
        own_pairs(str(tmp_path / "b.jsonl"), "x")


def test_text_of_ones_own(tmp_path) -> None:
    """Paragraphs of a text file, `text` fields, or whole conversations."""
    (tmp_path / "t.txt").write_text("one\ntwo\n\nthree\n")
    assert texts_of(str(tmp_path / "t.txt")) == ["one two", "three"]
    mixed = jsonl(tmp_path / "t.jsonl", [{"text": "a b"}, chat("q", "r")])
    assert texts_of(mixed) == ["a b", "q\nr"]
