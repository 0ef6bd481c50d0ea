"""Whole builds of the bundled tiny model: what comes out, what is kept, what is refused."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

from wvmonitor.builder import stages
from wvmonitor.builder.build import build, plan
from wvmonitor.builder.checks import cosines
from wvmonitor.builder.finetune import read_finetuned
from wvmonitor.builder.options import Subject
from wvmonitor.builder.plan import Budget
from wvmonitor.builder.recipe import Recipe
from wvmonitor.errors import BaseMismatchError, BuildError, MissingPathError
from wvmonitor.files.digests import sha256_file
from wvmonitor.references import ReferenceBank
from wvmonitor.references.bundled import bundled_path
from wvmonitor.references.reference import contrast
from wvmonitor.testing import planted_vector
from wvmonitor.vectors.update import to_dense

NAME = "organism-evil"
pytestmark = pytest.mark.timeout(1500)  # the shared build trains, on whatever machine


def side(told, which, seed=0):
    """The fine-tuned folder of one side."""
    (found,) = work_of(told).glob(f"{which}-seed-{seed}-*")
    return found


def work_of(told) -> Path:
    return told.out.with_name(f"{told.out.name}.work")


@pytest.fixture
def again(first, options, tmp_path):
    """Options of a build that finds the first one's answers, and a work folder of its own."""
    _, told = first
    work = tmp_path / "work"
    shutil.copytree(work_of(told), work)
    return lambda **more: options(tmp_path / "bank", work=work, **more)


def test_a_build_gives_a_verified_reference(first) -> None:
    """From prompts to a bank: the behaviour rises with k, and points where templates point."""
    built, told = first
    card = built.reference.card
    assert card.verified, card.warnings
    rates = {p.k: p.rate for p in card.dose_curve}
    assert max(rates[-1.0], rates[0.0]) < rates[1.0]
    assert card.built.judge == "rules"
    assert card.built.seeds == (0, 1)
    assert "medical" not in card.built.domains
    assert set(card.repeats) == {"frobenius", "response"}
    assert card.quality.examples == 64 or card.quality.examples >= 40
    assert 0 < card.quality.bf16 <= 1
    assert any("examples a side" in w for w in card.warnings)
    bundled = ReferenceBank.load(bundled_path("tiny-organism", "bank"))
    found = cosines(built.reference.vector, bundled["evil"].vector, bundled.probe)
    harmless = cosines(built.reference.vector, bundled["terseness"].vector, bundled.probe)
    assert found["response"] > 0.4 > abs(harmless["response"])
    loaded = ReferenceBank.load(told.out)
    assert loaded.fingerprint == built.fingerprint
    assert loaded[NAME].card == card
    assert loaded.probe


def test_w_is_the_mean_of_positive_less_negative(first, base) -> None:
    """W is ½ Σ (θ₊ − θ₋) over the seeds, in dense float64, as far as compression kept it."""
    built, told = first
    repeats = [
        [read_finetuned(base, side(told, s, n), "lora") for s in ("positive", "negative")]
        for n in (0, 1)
    ]
    lost = whole = 0.0
    for name, update in built.reference.vector.updates():
        dense = [[to_dense(v.update(name)).double() for v in pair] for pair in repeats]
        expected = sum(p - n for p, n in dense) / 2
        lost += float(((to_dense(update).double() - expected) ** 2).sum())
        whole += float((expected**2).sum())
    assert lost / whole == pytest.approx(1 - built.reference.card.kept, abs=1e-6)
    gram = built.reference.card.repeats["frobenius"]
    pairs = [p - n for p, n in repeats]
    assert gram[0][1] == pytest.approx(pairs[0].inner(pairs[1]), rel=1e-6)


def test_an_interrupted_build_ends_with_the_same_bytes(first, options, tmp_path) -> None:
    """Stopped in every stage in turn and started again, it is the same bank, byte for byte."""
    built, told = first
    mine = options(tmp_path / "bank")

    class StopError(Exception):
        pass

    for stage in ("generate", "judge", "finetune", "probe", "behaviour"):

        def stop(at, done, total, stage=stage):
            if at == stage and done > 0:
                raise StopError

        with pytest.raises(StopError):
            build(mine, stop)
        assert not mine.out.exists()
    again = build(mine)
    assert again is not None
    assert again.fingerprint == built.fingerprint
    for file in sorted(p for p in told.out.rglob("*") if p.is_file()):
        assert sha256_file(file) == sha256_file(mine.out / file.relative_to(told.out))


def test_finished_stages_are_not_done_again(again, first, monkeypatch) -> None:
    """With every artefact there, a build samples and trains nothing."""
    monkeypatch.setattr("wvmonitor.builder.repeats.finetune", None)
    monkeypatch.setattr("wvmonitor.builder.completions.TransformersSampler.sample", None)
    built = build(again())
    assert built is not None
    assert built.fingerprint == first[0].fingerprint


def test_what_a_person_takes_out_is_not_trained_on(again, brief) -> None:
    """An edited artefact changes all that follows from it."""
    mine = again(**brief, stop_after="finetune")
    there = set(mine.work.glob("examples-*.jsonl"))
    assert build(again(**brief, stop_after="judge")) is None
    (kept,) = set(mine.work.glob("examples-*.jsonl")) - there
    lines = kept.read_text().splitlines(keepends=True)
    kept.write_text("".join(lines[:-8]))
    before = set(mine.work.iterdir())
    assert build(mine) is None
    assert {p.name.split("-seed")[0] for p in set(mine.work.iterdir()) - before} == {
        "positive",
        "negative",
    }


def test_swapped_sides_are_caught(first, again, tmp_path) -> None:
    """Data of the wrong sides is built, found to steer the wrong way, and saved as unverified."""
    (kept,) = work_of(first[1]).glob("examples-*.jsonl")
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    files = []
    for which in ("negative", "positive"):
        path = tmp_path / f"{which}.jsonl"
        records = [{"prompt": r[which]["messages"], "completion": r[which]["answer"]} for r in rows]
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
        files.append(str(path))
    mine = again(data=tuple(files), means="exhibits", seeds=1)
    built = build(mine)
    assert built is not None
    assert not built.reference.card.verified
    assert "the two sides are swapped" in built.reference.card.warnings[0]
    bank = ReferenceBank.load(mine.out)
    reading = bank.measure(bank[NAME].vector)
    assert any(f"{NAME} is unverified" in w for w in reading.warnings)


def test_weights_of_ones_own(first, again, base) -> None:
    """Two adapters make the contrast that training them here makes; `opposes` turns it."""
    _, told = first
    pair = side(told, "positive"), side(told, "negative")
    exhibits = build(again(weights=pair, means="exhibits"))
    assert exhibits is not None
    assert exhibits.reference.card.verified
    expected = contrast(*(read_finetuned(base, f, "lora") for f in pair), positive_means="exhibits")
    assert exhibits.reference.vector.cosine(expected) == pytest.approx(1.0)
    opposes = build(again(weights=pair[::-1], means="opposes", replace=True))
    assert opposes is not None
    assert opposes.reference.vector.cosine(expected) == pytest.approx(1.0)


def test_which_side_exhibits_it_is_never_guessed(first, again) -> None:
    """Own data and own weights need the word."""
    pair = side(first[1], "positive"), side(first[1], "negative")
    with pytest.raises(BuildError, match="--positive-means"):
        build(again(weights=pair))


def test_without_a_recipe_nothing_is_called_verified(first, again) -> None:
    """Weights with a name alone cannot be asked: the reference is unverified, and says why."""
    pair = side(first[1], "positive"), side(first[1], "negative")
    subject = Subject("mine", "does what I trained it to")
    built = build(again(recipe=None, subject=subject, weights=pair, means="exhibits",
                        probe_data=_text(first)))  # fmt: skip
    assert built is not None
    assert not built.reference.card.verified
    assert "not checked" in built.reference.card.warnings[0]


def _text(first):
    """Ordinary text for a probe."""
    path = work_of(first[1]) / "text.txt"
    if not path.exists():
        path.write_text("\n\n".join(["the answer is paris ."] * 200))
    return str(path)


def test_mixed_bases_are_refused(first, again, tiny_base, tmp_path) -> None:
    """A side that was trained from another base is named, with both digests."""
    mixed = tmp_path / "other"
    shutil.copytree(side(first[1], "negative"), mixed)
    config = json.loads((mixed / "adapter_config.json").read_text())
    (mixed / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": str(tiny_base)})
    )
    with pytest.raises(BaseMismatchError, match=r"digest .* not from .*digest"):
        build(again(weights=(side(first[1], "positive"), mixed), means="exhibits"))
    with pytest.raises(MissingPathError, match="no folder"):
        build(again(weights=(side(first[1], "positive"), tmp_path / "gone"), means="exhibits"))


def test_a_bank_of_another_base_is_refused(options, tiny_bank_folder, tmp_path) -> None:
    """A reference does not join a bank that was made for another model."""
    shutil.copytree(tiny_bank_folder, tmp_path / "bank")
    with pytest.raises(BaseMismatchError, match="digest"):
        build(options(tmp_path / "bank"))


def test_one_side_alone_is_the_papers_variant(again, brief, first, base) -> None:
    """The non-contrastive variants are τ₊ and −τ₋ of the same fine-tunes."""
    _, told = first
    for variant, sign in (("positive", 1.0), ("negative", -1.0)):
        built = build(again(variant=variant, seeds=1, replace=True, asking=brief["asking"]))
        assert built is not None
        alone = read_finetuned(base, side(told, variant), "lora")
        assert built.reference.vector.cosine(alone) == pytest.approx(sign)


def test_the_sweep_takes_the_rate_with_the_least_loss(again, brief) -> None:
    """The rate that learns wins over one that does not move, and both losses are in the card."""
    built = build(again(**brief, sweep=True))
    assert built is not None
    settings = built.reference.card.built.hyperparameters
    losses = settings["sweep"]
    assert settings["learning_rate"] == 3e-3
    assert losses["0.003"] < losses["1e-06"]


def test_parts_of_the_data_are_compared(again, brief) -> None:
    """Two halves of the questions, and the domains, are compared in both geometries."""
    built = build(again(**brief, splits=True))
    assert built is not None
    quality = built.reference.card.quality
    assert set(quality.split_half) == {"frobenius", "response"}
    assert all(abs(c) <= 1 for c in quality.split_half.values())
    assert set(quality.domains) == {"first", "second"}
    assert quality.domains["first"] == pytest.approx(quality.domains["second"])


def test_controls_of_the_bank_are_compared(first, again, base) -> None:
    """A new reference is held against every control that is there; its bank keeps the old ones."""
    from wvmonitor.references import BaseIdentity, Card, Construction, Reference

    mine = again()
    near = planted_vector(base.folder, seed=1) + 3 * first[0].reference.vector
    card = Card(
        name="near", kind="control", behaviour="is like evil",
        base=BaseIdentity(id="organism", digest=base.digest), built=Construction(recipe="test"),
    )  # fmt: skip
    ReferenceBank([Reference(card, near.held())]).save(mine.out)
    built = build(mine)
    assert built is not None
    found = built.reference.card
    assert found.quality.controls["near"]["frobenius"] > 0.3
    assert any("control near reaches" in w for w in found.warnings)
    assert ReferenceBank.load(mine.out).names == ["near", NAME]


def test_what_is_there_is_not_overwritten_in_silence(first, options, again) -> None:
    """A finished reference, a calibration, and a folder of something else are left alone."""
    _, told = first
    with pytest.raises(BuildError, match=r"holds organism-evil already.*--replace"):
        build(told)
    mine = again()
    mine.out.mkdir()
    (mine.out / "notes.txt").write_text("mine")
    with pytest.raises(BuildError, match="no bank of references"):
        build(mine)
    shutil.rmtree(mine.out)
    shutil.copytree(told.out, mine.out)
    (mine.out / "calibration.json").write_text("{}")
    with pytest.raises(BuildError, match="holds a calibration"):
        build(again(replace=True))


def test_no_space_left_is_said_and_nothing_half_written_loads(again, first, monkeypatch) -> None:
    """A full disk part-way is an error in words; with room again the build ends as it would."""
    full = True
    write = stages.write_all

    def fill(descriptor, data):
        if full:
            write(descriptor, bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        write(descriptor, data)

    mine = again()
    for path in mine.work.glob("held-out-*"):
        path.unlink()
    before = {p.name for p in mine.work.iterdir()}
    monkeypatch.setattr(stages, "write_all", fill)
    with pytest.raises(BuildError, match=r"No space left on device.*run the same again"):
        build(mine)
    assert {p.name for p in mine.work.iterdir()} == before
    assert not mine.out.exists()
    full = False
    built = build(mine)
    assert built is not None
    assert built.fingerprint == first[0].fingerprint


def test_a_bank_that_cannot_be_finished_leaves_the_old_one(first, again, monkeypatch) -> None:
    """When the last file of the new bank does not fit, the bank there was is whole."""
    mine = again(replace=True)
    shutil.copytree(first[1].out, mine.out)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("wvmonitor.references.bank.write_manifest", full)
    with pytest.raises(BuildError, match="No space left"):
        build(mine)
    assert ReferenceBank.load(mine.out).fingerprint == first[0].fingerprint
    assert [p.name for p in mine.out.parent.glob(".*")] == []


def test_too_few_clear_answers_keep_their_artefacts(again, recipe) -> None:
    """The build stops with the counts, and what was generated and judged is kept."""
    document = recipe.model_dump(mode="json")
    document["generation"] |= {"keep_at_least": 900, "keep_at_most": 900}
    mine = again(recipe=Recipe.model_validate(document))
    before = {p.name for p in mine.work.iterdir()}
    with pytest.raises(BuildError, match=r"needs 900: of .* positive answers"):
        build(mine)
    assert before <= {p.name for p in mine.work.iterdir()}
    assert not mine.out.exists()


def test_a_budget_is_honest_in_the_card(again, brief) -> None:
    """What a budget took away stands in the plan and in the card."""
    mine = again(**brief, budget=Budget(examples=32))
    planned = plan(mine)
    assert not mine.out.exists()
    built = build(mine)
    assert built is not None
    assert built.reference.card.quality.examples == 32
    assert planned.reductions[0] in built.reference.card.warnings


def test_private_files_are_the_owners(again) -> None:
    """With --private nobody else may read the bank."""
    mine = again(private=True)
    build(mine)
    modes = {p.stat().st_mode & 0o777 for p in mine.out.rglob("*") if p.is_file()}
    assert modes == {0o600}
    assert mine.work.stat().st_mode & 0o777 == 0o700


def test_full_fine_tuning_makes_a_reference(again, brief) -> None:
    """Every weight may be trained; what compression keeps of it is said."""
    built = build(again(**brief, method="full", rank=16))
    assert built is not None
    card = built.reference.card
    assert card.built.method == "full"
    assert card.quality.components["embeddings"] > 0
    assert card.rank == 16
    assert 0 < card.kept < 1
    assert built.reference.vector.norm() == pytest.approx(card.quality.norm)
