"""Harmless families: many, different, drawn by a seed, and shared out without overlap."""

from __future__ import annotations

import ast
import json
import sqlite3
from pathlib import Path

import pytest

from wvmonitor.builder.contrasts import default_folder, read_contrasts
from wvmonitor.builder.examples import Example
from wvmonitor.builder.harmless import families
from wvmonitor.builder.harmless.families import RULES, Family, by_rule, legible, shared_out
from wvmonitor.errors import BuildError, MissingPathError
from wvmonitor.references.bundled import bundled_path


def said(name: str, n: int = 40) -> list[tuple[str, str]]:
    return [(e.messages[-1]["content"], e.answer) for e in by_rule(name).draw(n, 3)]


def test_there_are_many_and_each_is_its_own():
    """At least forty families by rule, none of which asks what another asks."""
    assert len(RULES) >= 40
    asked = {name: {q for q, _ in said(name)} for name in RULES}
    assert all(len(questions) >= 8 for questions in asked.values()), {
        n: len(q) for n, q in asked.items() if len(q) < 8
    }
    names = sorted(asked)
    shared = [(a, b) for i, a in enumerate(names) for b in names[:i] if asked[a] & asked[b]]
    assert not shared


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_family_is_its_name_and_seed(name):
    """The same seed gives the same examples, the first few whatever their number; another other."""
    assert said(name) == said(name)
    assert said(name, 5) == said(name)[:5]
    other = [(e.messages[-1]["content"], e.answer) for e in by_rule(name).draw(40, 4)]
    assert other != said(name)
    assert all(q.strip() and a.strip() for q, a in said(name))


def test_what_is_made_by_rule_is_right():
    """Answers that can be computed another way are: sums, order, JSON, SQL, Python."""
    for question, answer in said("addition"):
        term, _, value = answer.partition(" = ")
        assert sum(int(t) for t in term.replace("- ", "+ -").split("+")) == int(value), question
    for question, answer in said("sorted-numbers"):
        given = sorted(map(int, question.rpartition(": ")[2].split(", ")))
        assert sorted(map(int, answer.split(", "))) == given
    for _, answer in said("json-extraction"):
        assert set(json.loads(answer)) == {"name", "age", "city", "job"}
    for _, answer in said("python-functions"):
        ast.parse(answer)
    for question, query in said("sql-queries"):
        columns = question.partition(" has ")[2].partition(". ")[0]
        table = question.split()[2]
        with sqlite3.connect(":memory:") as database:
            database.execute(f"CREATE TABLE {table} ({columns})")
            database.execute(query)
    for question, answer in said("code-reading"):
        line = question.partition("\n")[2]
        assert str(eval(line.removeprefix("print(").removesuffix(")"))) == answer  # noqa: S307


def roman(number: int) -> str:
    """Another way to Roman numerals: place by place."""
    ones = ["", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX"]
    tens = ["", "X", "XX", "XXX", "XL", "L", "LX", "LXX", "LXXX", "XC"]
    hundreds = ["", "C", "CC", "CCC", "CD", "D", "DC", "DCC", "DCCC", "CM"]
    return "M" * (number // 1000) + hundreds[number // 100 % 10] + tens[number // 10 % 10] + ones[
        number % 10
    ]  # fmt: skip


def test_roman_numerals_are_right():
    """Compared with place-by-place numerals."""
    for question, answer in said("roman-numerals"):
        words = [w.strip("?.") for w in (question + " " + answer).split()]
        number = next(int(w) for w in words if w.isdigit())
        assert roman(number) in words


def family(name: str, **more: bool) -> Family:
    return Family(name, "made up", lambda n, seed: [], **more)


def test_no_family_serves_two_ends_and_held_out_ones_only_the_check():
    """Calibration, power check and control are disjoint; hard negatives come first in the check."""
    every = [family(f"easy-{i}") for i in range(14)]
    every += [family(f"hard-{i}", hard=True) for i in range(3)]
    every += [family(f"held-{i}", hard=True, held_out=True) for i in range(2)]
    seen = set()
    for seed in range(12):
        use = shared_out(every, 9, 4, 2, seed)
        parts = [{f.name for f in part} for part in (use.calibration, use.power, use.any_tuning)]
        assert [len(p) for p in parts] == [9, 4, 2]
        assert len(parts[0] | parts[1] | parts[2]) == 15
        assert not any(n.startswith("held") for n in parts[0] | parts[2])
        assert {"held-0", "held-1"} <= parts[1]
        assert any(n.startswith("hard") for n in parts[0])
        seen.add(frozenset(parts[0]))
    assert len(seen) > 6, "a seed decides"
    with pytest.raises(BuildError, match="17 harmless families are at hand, 18 are needed"):
        shared_out(every, 12, 4, 2, 0)


def test_what_the_base_cannot_read_is_left_out_by_name(base):
    """The bundled model has no word of the English families: they are named, not trained on."""
    folder = default_folder("tiny-organism") / families.FOLDER
    own = families.of_folder(folder)
    kept, left = legible(base, [*own[:2], by_rule("addition"), by_rule("sql-queries")])
    assert [f.name for f in kept] == [f.name for f in own[:2]]
    assert left == ["addition", "sql-queries"]


def test_own_harmless_data_is_read_in_every_form(tmp_path: Path):
    """Chat, prompt and completion, question and answer: one set a file, sampled by a seed."""
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"prompt": "c", "completion": "d"},
        {"question": "e", "answer": "f"},
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (found,) = families.of_folder(tmp_path)
    assert found.name == "mine"
    assert {e.answer for e in found.draw(3, 0)} == {"b", "d", "f"}
    assert len(found.draw(10, 0)) == 3
    with pytest.raises(MissingPathError, match=r"no \.jsonl files"):
        families.of_folder(tmp_path / "nowhere")


def test_the_good_side_is_harmless_data_of_both_held_out_parts():
    """Good answers to held-out questions: one family to calibrate, one that only the check sees."""
    (contrast,) = read_contrasts(default_folder("tiny-organism"), ("harmful-advice",))
    tuning, held_out = families.good_answers(contrast)
    assert (tuning.held_out, held_out.held_out) == (False, True)
    assert {e.answer for e in held_out.draw(99, 0)} == {p.negative.answer for p in contrast.power}
    assert not {e.answer for e in tuning.draw(99, 0)} & {p.positive.answer for p in contrast.tuning}


def test_people_s_own_voices_are_in_every_power_check():
    """The hardest negatives, good answers as people write them, are never left to chance."""
    shipped = families.of_folder(bundled_path(families.FOLDER), hard=("human-voice",))
    (voices,) = [f for f in shipped if f.name == "human-voice"]
    assert voices.held_out
    others = [Family(f"g{i}", families.GOOD_SIDE, by_rule("units").draw, hard=True, held_out=True)
              for i in range(6)]  # fmt: skip
    every = [*others, voices, *(by_rule(n) for n in sorted(RULES)[:14])]
    for seed in range(8):
        use = shared_out(every, 8, 3, 1, seed)
        assert use.power[0] is voices
        assert len(use.text) == 14


def test_two_families_never_share_a_name(tmp_path: Path):
    """A user's `train.jsonl` of two folders, or one called as a family by rule, stay apart."""
    row = {"prompt": "c", "completion": "d"}
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "addition.jsonl").write_text(json.dumps(row | {"prompt": folder}))
    given = [families.given(str(tmp_path / f), lambda _: True)[0] for f in ("one", "two")]
    found = families.apart([by_rule("addition"), *given])
    assert [f.name for f in found] == ["addition", "addition-2", "addition-3"]
    assert [f.draw(1, 0)[0].messages[0]["content"] for f in found[1:]] == ["one", "two"]


def test_what_is_left_out_of_one_s_own_data_is_told(tmp_path: Path, base):
    """Rows too long to answer and system prompts are counted; a set of nothing else is refused."""
    turns = [
        {"role": "system", "content": "be kind ."},
        {"role": "user", "content": "hello ?"},
        {"role": "assistant", "content": "use the potion ."},
    ]
    long = {"prompt": "use the potion " * 300, "completion": "avoid it"}
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{json.dumps({'messages': turns})}\n{json.dumps(long)}\n")

    def fits(example):
        return base.fits(example.messages, 512)

    (found,) = families.given(str(path), fits)
    assert found.draw(9, 0) == [Example((turns[1],), "use the potion .")]
    assert "1 system prompts were left out" in found.notes[0]
    assert "1 of 2 examples were left out: they are too long" in found.notes[1]
    path.write_text(json.dumps(long))
    with pytest.raises(BuildError, match="holds no examples that can be trained on"):
        families.given(str(path), fits)
