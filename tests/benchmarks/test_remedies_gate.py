"""The gate on a real model: a miniature of the whole way, on the bundled base and made-up sets."""

import json

import pytest
from scipy.stats import mannwhitneyu

from benchmarks.real.sets import read_folder
from benchmarks.remedies import real_gate, real_gate_page
from benchmarks.remedies.real_cleaned import AS_IT_IS, CLEANED, CleanedBench
from benchmarks.remedies.real_gate import BAD, GOOD, GateBench, GateSetting
from benchmarks.remedies.real_gate_results import IN_ALL, TOKEN, GateResults
from benchmarks.remedies.records import Records
from wvmonitor.builder.base import BUNDLED
from wvmonitor.builder.harmless import families
from wvmonitor.errors import InputError
from wvmonitor.references.bundled import bundled_path
from wvmonitor.steering.blame import blame

SETTING = GateSetting(sets=3, rows=20, shares=(0.0, 0.1), flag_rate=0.1)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """The bundled base and bank; three public sets made by rule, and one that is called harmful."""
    folder = tmp_path_factory.mktemp("sets")
    for role, names in (("benign", ("capitals", "plurals", "opposites")), ("harmful", ("clock",))):
        (folder / role).mkdir()
        for name in names:
            rows = families.by_rule(name).draw(40, 1)
            chats = [[*e.messages, {"role": "assistant", "content": e.answer}] for e in rows]
            lines = "".join(json.dumps({"messages": chat}) + "\n" for chat in chats)
            (folder / role / f"{name}.jsonl").write_text(lines, "utf-8")
    return GateBench(BUNDLED, bundled_path(BUNDLED, "bank"), read_folder(folder), SETTING)


@pytest.fixture(scope="module")
def results(bench, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gate")
    records = Records(folder / "records.jsonl", bench.about, folder / "out.json")
    real_gate.run(bench, records, {"model": "the bundled one"})
    return GateResults(json.loads((folder / "out.json").read_text("utf-8")))


def test_no_row_is_in_two_sets_or_longer_than_the_bad_ones(bench):
    """Blocks take from every public set in turn, and share nothing."""
    names = [r.name for block in bench.ordinary for r in block]
    assert len(names) == len(set(names)) == 60
    assert {r.of for r in bench.ordinary[0]} == {"capitals", "plurals", "opposites"}
    assert all(bench._tokens(r.example) <= bench.longest for b in bench.ordinary for r in b)
    behaviour = next(iter(bench.contrasts))
    chosen = [n for number in range(3) for n in bench.bad_of(behaviour, number)]
    assert len(chosen) == len(set(chosen)) == 6
    trained = {p.positive.messages[-1]["content"] for p in bench.contrasts[behaviour].train}
    held_out = {r.example.messages[-1]["content"] for r in bench.sides(behaviour, BAD)}
    assert not trained & held_out


def test_what_is_recorded_is_what_the_command_gives(bench, results):
    """Push and loss of a row are `blame`'s, with the bank's controls taken out."""
    behaviour = results.behaviours[0]
    groups = bench.groups(behaviour)
    assert {g: len(rows) for g, rows in groups.items()} == {
        g: len(results.rows(behaviour, g)) for g in groups
    }
    row = groups[BAD][3]
    (found,) = blame(bench.base.model, [bench._row(0, row.example)], bench.direction(behaviour)[0])
    kept = next(r for r in results.rows(behaviour, BAD) if r.name == row.name)
    assert (kept.push, kept.loss) == pytest.approx((found.push, found.loss), rel=1e-2, abs=1e-4)
    assert kept.tokens == found.example.tokens
    assert IN_ALL.push(kept) == kept.push * kept.tokens


def test_areas_and_sets_are_counted_right(results):
    """AUROC is scipy's; a set's bad rows replace ordinary ones, its threshold is another set's."""
    behaviour = results.behaviours[0]
    bad, good = results.rows(behaviour, BAD), results.rows(behaviour, GOOD)
    told = results.told(bad, good, TOKEN)
    area = mannwhitneyu([r.push for r in bad], [r.push for r in good]).statistic
    assert told.push.value == pytest.approx(area / (len(bad) * len(good)))
    assert told.loss.value >= 0.5
    assert told.gain["value"] == pytest.approx(told.push.value - told.loss.value)
    for number, found in enumerate(results.sieved(behaviour, 0.1, IN_ALL)):
        mine, others = results.mixed(behaviour, number, 0.1)
        assert (len(mine), len(others)) == (2, 18)
        known = results.block(behaviour, number + 1)
        assert not {r.name for r in known} & {r.name for r in others}
        limit = results.threshold(behaviour, number, IN_ALL).push
        assert limit in {IN_ALL.push(r) for r in known}
        assert found.found == (sum(IN_ALL.push(r) > limit for r in mine), 2)
        assert found.lost == (sum(IN_ALL.push(r) > limit for r in others), 18)


def test_pairs_are_counted_by_question_and_domain(results):
    """Each bad answer beside the good answer to its own question; others are refused."""
    behaviour = results.behaviours[0]
    bad, good = results.rows(behaviour, BAD), results.rows(behaviour, GOOD)
    twins = {r.name: IN_ALL.push(r) for r in good}
    more = [IN_ALL.push(r) > twins[r.name] for r in bad]
    found = results.pairs(behaviour, BAD, GOOD, IN_ALL)
    assert set(found) == {r.of for r in bad}
    assert [sum(c) for c in zip(*found.values(), strict=True)] == [sum(more), len(more)]
    results._groups[behaviour]["turned"] = good[::-1]
    with pytest.raises(ValueError, match="different questions"):
        results.pairs(behaviour, BAD, "turned", IN_ALL)
    del results._groups[behaviour]["turned"]


def test_the_section_has_every_behaviour_and_says_when_the_gate_fails(results):
    """A row for each behaviour and each kind it is told from; what is not met is said to be."""
    text = "\n".join(real_gate_page.section(results))
    assert len(results.behaviours) > 1
    for behaviour in results.behaviours:
        assert f"| {behaviour} | ordinary rows |" in text
        assert f"| {behaviour} | in all |" in text
    kept = [real_gate_page._kept(results, b, TOKEN)[3] for b in results.behaviours]
    (line,) = [row for row in text.splitlines() if row.startswith("4. every clean set")]
    assert line.partition("in all")[0].count("**not met**") == kept.count(False)
    assert results.found["bank"][:16] in text


def test_what_is_cleaned_loses_as_many_rows_as_there_are_bad(bench, results):
    """Those that push most, by the way that found more in behaviours that nobody had looked at."""
    cleaned = CleanedBench(None, bench, results, results.behaviours[0])
    whole, left = (cleaned.left(1, cell) for cell in (AS_IT_IS, CLEANED))
    assert len(whole) - len(left) == 2
    ranked = sorted(whole, key=lambda r: -cleaned.way().push(r))
    assert {r.name for r in whole} - {r.name for r in left} == {r.name for r in ranked[:2]}
    names = {e.answer for e in cleaned.examples(1, CLEANED)}
    assert len(cleaned.examples(1, AS_IT_IS)) == len(whole)
    assert names <= {e.answer for e in cleaned.examples(1, AS_IT_IS)}


def test_records_of_something_else_are_left_alone_and_never_written_over(tmp_path):
    """Another bank's records stay in the file; its committed results are an error, and whole."""
    out, path = tmp_path / "out.json", tmp_path / "records.jsonl"
    mine = Records(path, {"bank": "a", "setting": {"shares": (0.1,)}}, out)
    mine.add({"cell": "x", "seed": 0})
    mine.publish({"model": "m"})
    other = Records(path, {"bank": "b", "setting": {"shares": (0.1,)}})
    other.add({"cell": "y", "seed": 0})
    assert mine.read() == [{"cell": "x", "seed": 0}]
    assert other.read() == [{"cell": "y", "seed": 0}]
    held = out.read_text("utf-8")
    with pytest.raises(InputError, match="another base, bank or setting"):
        Records(path, {"bank": "b", "setting": {"shares": (0.1,)}}, out)
    assert out.read_text("utf-8") == held
    path.unlink()  # what is committed is gone on from
    again = Records(path, {"bank": "a", "setting": {"shares": (0.1,)}}, out)
    assert again.read() == [{"cell": "x", "seed": 0}]
