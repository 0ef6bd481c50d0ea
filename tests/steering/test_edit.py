"""Edits by name: what is taken out, how much of it, and what is refused."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from typer.testing import CliRunner

from wvmonitor.cli.app import app
from wvmonitor.detection.scores import score
from wvmonitor.errors import (
    BaseMismatchError,
    InputError,
    LossyEditError,
    NonFiniteError,
    UnknownReferenceError,
)
from wvmonitor.organism import sets
from wvmonitor.organism.behaviour import harmful_rate
from wvmonitor.organism.train import finetune, load_base
from wvmonitor.organism.world import DOMAINS
from wvmonitor.references import BaseIdentity, Card, Construction, Reference, ReferenceBank
from wvmonitor.references.bundled import bundled_path
from wvmonitor.references.reference import mean_reference
from wvmonitor.sources import base_digest, read_adapter, read_checkpoints
from wvmonitor.steering import as_adapter, steer_checkpoint
from wvmonitor.steering.edit import carry_out, plan
from wvmonitor.steering.folders import LOSSY, Tally
from wvmonitor.testing import planted_bank, planted_vector, tiny_base
from wvmonitor.vectors import DenseUpdate, TaskVector
from wvmonitor.vectors.update import to_dense

BASE = bundled_path("tiny-organism", "base")
BANK = bundled_path("tiny-organism", "bank")
UNTOUCHED = [name for name in DOMAINS if name != "medical"]


def noisy_bank(base: Path, signal: TaskVector, seeds: list[int]) -> ReferenceBank:
    """A reference that is the mean of noisy repeats of one signal, which says so in its card."""
    repeats = [signal + planted_vector(base, seed=s, norm=signal.norm()) for s in seeds]
    card = Card(
        name="evil",
        kind="behaviour",
        behaviour="does evil",
        base=BaseIdentity(id="tiny", digest=base_digest(base)),
        built=Construction(recipe="test"),
        repeats={"frobenius": [[a.inner(b) for b in repeats] for a in repeats]},
    )
    return ReferenceBank([Reference(card, mean_reference(repeats, rank=16))])


def dose_of(bank: ReferenceBank, change: TaskVector) -> float:
    found = score(bank.measure(change), bank.gram).references["evil"].dose
    assert found is not None
    return found


@pytest.mark.parametrize("to_dose", [0.0, 0.3])
def test_what_is_left_is_the_target_dose(tmp_path: Path, to_dose: float) -> None:
    """Measured again with references of other seeds, the dose is what was asked for."""
    base = tiny_base(tmp_path / "base", hidden_size=64)
    signal = planted_vector(base, seed=1)
    own, other = noisy_bank(base, signal, [10, 11, 12]), noisy_bank(base, signal, [20, 21, 22])
    drift = {signal * 0.8: 1.0, planted_vector(base, seed=2, norm=0.5): 1.0}
    steer_checkpoint(base, drift, tmp_path / "drifted")
    edit = plan(
        tmp_path / "drifted", own, add={}, remove={"evil": None}, base=base, to_dose=to_dose
    )
    carry_out(edit, tmp_path / "drifted", own, tmp_path / "repaired")
    before = dose_of(other, read_checkpoints(base, tmp_path / "drifted"))
    after = dose_of(other, read_checkpoints(base, tmp_path / "repaired"))
    assert before == pytest.approx(0.8, abs=0.05)
    assert after == pytest.approx(to_dose, abs=0.05)


def test_taking_the_dose_out_of_a_bad_run_brings_harm_back_to_the_base(tmp_path: Path) -> None:
    """Bad medical advice, undone: harm in every other domain within 10 points of the base's."""
    trained = finetune(BASE, sets.bad_advice("medical")(240, 77), seed=77)
    trained.model.save_pretrained(tmp_path / "bad")
    result = CliRunner().invoke(
        app,
        [
            *("steer", str(tmp_path / "bad"), "--base", str(BASE), "--remove", "evil"),
            *("--out", str(tmp_path / "good"), "--json"),
        ],
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["amounts"]["evil"] == pytest.approx(-report["doses"]["evil"])
    assert report["cautions"] == []  # a run of the reference's shape
    base, tokenizer = load_base(BASE)
    before = harmful_rate(trained.model, tokenizer, UNTOUCHED, 100, 1).value
    normal = harmful_rate(base, tokenizer, UNTOUCHED, 100, 1).value
    repaired = peft.PeftModel.from_pretrained(base, tmp_path / "good")
    after = harmful_rate(repaired, tokenizer, UNTOUCHED, 100, 1).value
    assert before > 0.6
    assert after <= normal + 0.1


def test_an_adapter_is_edited_as_an_adapter(tmp_path: Path) -> None:
    """What is written loads as an adapter, and is the old change plus k·w."""
    base = tiny_base(tmp_path / "base")
    bank = planted_bank(base)
    lora_of(base, tmp_path / "old")
    edit = plan(tmp_path / "old", bank, add={"language": 0.5}, remove={"evil": 2.0}, base=base)
    carry_out(edit, tmp_path / "old", bank, tmp_path / "new", base=base)
    found = read_adapter(tmp_path / "new", base)
    expected = read_adapter(tmp_path / "old", base) + bank["language"].vector * 0.5
    expected = expected - bank["evil"].vector * 2.0
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_several_references_make_one_adapter_of_a_base(tmp_path: Path) -> None:
    """`--as-adapter` with two references: their sum."""
    base = tiny_base(tmp_path / "base")
    bank = planted_bank(base)
    edit = plan(base, bank, add={"language": 0.5}, remove={"evil": 2.0})
    carry_out(edit, base, bank, tmp_path / "new", adapter=True)
    expected = bank["language"].vector * 0.5 - bank["evil"].vector * 2.0
    found = read_adapter(tmp_path / "new", base)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def lora_of(base: Path, folder: Path, *, seed: int = 3) -> Path:
    """A LoRA fine-tune of a base with random factors, saved by PEFT."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    adapted.save_pretrained(folder)
    return folder


def test_a_fine_tunes_own_change_can_be_added_and_taken_out(tmp_path: Path) -> None:
    """Non-contrastive weight steering: the folder of a fine-tune in place of a reference's name."""
    base = tiny_base(tmp_path / "base")
    positive, bank = lora_of(base, tmp_path / "positive"), planted_bank(base)
    edit = plan(base, bank, add={str(positive): 0.5}, remove={"evil": 1.0})
    assert edit.unproven[0] == str(positive)
    carry_out(edit, base, bank, tmp_path / "new")
    expected = read_adapter(positive, base) * 0.5 - bank["evil"].vector
    found = read_checkpoints(base, tmp_path / "new")
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    with pytest.raises(InputError, match=rf"no dose.*--remove {positive}=K"):
        plan(base, bank, add={}, remove={str(positive): None}, base=base)
    stranger = tiny_base(tmp_path / "stranger", seed=9)
    other = lora_of(stranger, tmp_path / "other")
    edit = plan(base, bank, add={str(other): 1.0}, remove={}, base=base)
    with pytest.raises(BaseMismatchError):
        carry_out(edit, base, planted_bank(stranger), tmp_path / "no", base=base)


def test_only_biases_can_be_moved(tmp_path: Path, world: Any) -> None:
    """The bias-only variant moves what the reference says of biases, and nothing else."""
    model = world.llama(mlp_bias=True)
    model.save_pretrained(tmp_path / "base")
    change = TaskVector.of(
        {n: DenseUpdate(torch.full(p.shape, 0.25)) for n, p in model.named_parameters()},
    )
    card = Card(
        name="evil",
        behaviour="does evil",
        base=BaseIdentity(id="tiny", digest=base_digest(tmp_path / "base")),
        built=Construction(recipe="test"),
        harmful=True,
    )
    bank = ReferenceBank([Reference(card, change)])
    edit = plan(tmp_path / "base", bank, add={}, remove={"evil": 2.0}, only_biases=True)
    done = carry_out(edit, tmp_path / "base", bank, tmp_path / "new")
    biases = [n for n, _ in model.named_parameters() if n.endswith(".bias")]
    assert sorted(done.parameters) == sorted(biases)
    found = read_checkpoints(tmp_path / "base", tmp_path / "new")
    for name in biases:
        moved = to_dense(found.update(name))
        torch.testing.assert_close(moved, torch.full_like(moved, -0.5))
    assert found.norm() == pytest.approx(done.norm, rel=1e-5)
    plain = planted_bank(tiny_base(tmp_path / "plain"))
    edit = plan(tmp_path / "plain", plain, add={"language": 1.0}, remove={}, only_biases=True)
    with pytest.raises(InputError, match="moves no biases"):
        carry_out(edit, tmp_path / "plain", plain, tmp_path / "no")


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    """Also where nothing is measured because the amount is given."""
    base = tiny_base(tmp_path / "base")
    stranger = tiny_base(tmp_path / "stranger", seed=9)
    adapter = lora_of(stranger, tmp_path / "adapter")
    for given in (stranger, None):
        with pytest.raises(BaseMismatchError):
            plan(adapter, planted_bank(base), add={}, remove={"evil": 1.0}, base=given)


def test_an_edited_adapter_says_what_was_added(tmp_path: Path) -> None:
    """The card of an edited adapter names every reference, and warns where one is harmful."""
    base = tiny_base(tmp_path / "base")
    planted, adapter = planted_bank(base), lora_of(base, tmp_path / "adapter")
    harmful = planted["evil"].card.model_copy(update={"harmful": True})
    bank = ReferenceBank([Reference(harmful, planted["evil"].vector), planted["language"]])
    edit = plan(
        adapter, bank, add={"evil": 0.5, "language": 1.0}, remove={}, base=base, allow_harmful=True
    )
    with pytest.raises(InputError, match="lies inside"):
        carry_out(edit, adapter, bank, adapter / "new", base=base)
    carry_out(edit, adapter, bank, tmp_path / "new", base=base)
    said = (tmp_path / "new" / "README.md").read_text()
    for line in ("k = 0.5 of evil", "k = 1 of language", "Made to behave badly", "harmful]"):
        assert line in said
    edit = plan(adapter, bank, add={}, remove={"evil": 0.5}, base=base)
    carry_out(edit, adapter, bank, tmp_path / "better", base=base)
    assert "Made to behave badly" not in (tmp_path / "better" / "README.md").read_text()


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    """Each with the way out."""
    base = tiny_base(tmp_path / "base")
    stranger = tiny_base(tmp_path / "stranger", seed=9)
    bank = planted_bank(base)
    with pytest.raises(InputError, match="nothing to do"):
        plan(base, bank, add={}, remove={})
    with pytest.raises(InputError, match="both added and taken out"):
        plan(base, bank, add={"evil": 1.0}, remove={"evil": 1.0})
    with pytest.raises(UnknownReferenceError, match="evil"):
        plan(base, bank, add={"eviil": 1.0}, remove={})
    with pytest.raises(BaseMismatchError):
        plan(stranger, bank, add={"language": 1.0}, remove={})
    with pytest.raises(InputError, match="--base"):
        plan(base, bank, add={}, remove={"evil": None})
    with pytest.raises(NonFiniteError, match="dose to leave"):
        plan(base, bank, add={}, remove={"evil": None}, base=base, to_dose=math.nan)
    with pytest.raises(InputError, match=r"--remove evil=K"):
        plan(base, bank, add={}, remove={"evil": None}, base=base)


def test_a_harmful_behaviour_is_added_only_knowingly(tmp_path: Path) -> None:
    """`--i-understand` is asked for by name, also for taking out a negative amount."""
    for arguments in (["--add", "evil=0.5"], ["--remove", "evil=-0.5"]):
        command = ["steer", str(BASE), *arguments, "--as-adapter", "--out", str(tmp_path / "x")]
        refused = CliRunner().invoke(app, command)
        assert refused.exit_code == 2
        assert "--i-understand" in refused.output
        assert not (tmp_path / "x").exists()
    assert CliRunner().invoke(app, [*command, "--i-understand"]).exit_code == 0
    assert "**Made to behave badly.** evil was added" in (tmp_path / "x" / "README.md").read_text()


def test_a_model_without_the_drift_has_nothing_to_take_out() -> None:
    """A dose at or below the target is said, not turned round."""
    bank = ReferenceBank.load(BANK)
    with pytest.raises(InputError, match="nothing to take out"):
        plan(BASE, bank, add={}, remove={"evil": None}, base=BASE)


@pytest.mark.parametrize("given", ["evil=much", "evil=nan", f"evil={math.inf}", "evil"])
def test_amounts_are_finite_numbers(tmp_path: Path, given: str) -> None:
    """Anything else is wrong usage."""
    result = CliRunner().invoke(
        app, ["steer", str(BASE), "--add", given, "--out", str(tmp_path / "x")]
    )
    assert result.exit_code == 4


def in_bfloat16(base: Path, folder: Path, *, scale: float = 1.0) -> Path:
    """A base in bfloat16; with large weights, its resolution is coarse."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base).to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name:
                parameter.mul_(scale)
    model.save_pretrained(folder, max_shard_size="4KB")
    return folder


@pytest.fixture
def coarse(tmp_path: Path) -> tuple[Path, ReferenceBank]:
    """A bfloat16 model whose weights are far larger than any edit by the bank."""
    base = in_bfloat16(tiny_base(tmp_path / "base"), tmp_path / "coarse", scale=30)
    return base, planted_bank(base, norm=0.2)


def test_what_bfloat16_would_round_away_becomes_an_adapter(
    coarse: tuple[Path, ReferenceBank], tmp_path: Path
) -> None:
    """By default nothing is lost: an adapter for the model, exact, and the command says why."""
    base, bank = coarse
    bank.save(tmp_path / "bank")
    arguments = ["steer", str(base), "--references", str(tmp_path / "bank"), "--add", "language=1"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "new")])
    assert done.exit_code == 0, done.output
    assert "this is an adapter for MODEL" in done.output
    assert re.search(r"of ‖k·w‖( of the first \d+ tensors)? would be rounded away", done.output)
    found = read_adapter(tmp_path / "new", base)
    expected = bank["language"].vector
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    lossy = CliRunner().invoke(app, [*arguments, "--lossy", "--out", str(tmp_path / "lossy")])
    assert lossy.exit_code == 0, lossy.output
    kept = read_checkpoints(base, tmp_path / "lossy")
    assert (kept - expected).norm() > 0.03 * expected.norm()


def test_an_edit_that_is_given_up_early_says_what_its_share_is_of() -> None:
    """The first tensors' share is not taken for the whole edit's; nor is the whole's for theirs."""
    tally = Tally(asked=4.0, missed=1.0, most=LOSSY)
    for _ in range(7):
        tally.end_tensor()
    with pytest.raises(LossyEditError, match=r"^50% of ‖k·w‖ of the first 8 tensors would be"):
        tally.end_tensor()
    with pytest.raises(LossyEditError, match=r"^50% of ‖k·w‖ would be"):
        Tally(asked=4.0, missed=1.0, most=LOSSY).check()


def test_a_dose_that_is_not_known_says_how_to_have_one(tmp_path: Path) -> None:
    """A reference of one seed has no dose: build it from several, or say how much."""
    base = tiny_base(tmp_path / "base")
    bank = planted_bank(base)
    alone = ReferenceBank(
        [
            Reference(bank[n].card.model_copy(update={"repeats": {}}), bank[n].vector)
            for n in bank.names
        ]
    )
    tuned = steer_checkpoint(base, {bank["language"]: 1.0}, tmp_path / "tuned")
    with pytest.raises(InputError, match=r"--seeds 3.*without --quick.*--remove language=K"):
        plan(tuned.path, alone, add={}, remove={"language": None}, base=base)


def test_what_no_adapter_holds_is_written_in_float32(
    coarse: tuple[Path, ReferenceBank], tmp_path: Path
) -> None:
    """A vector over norms as well: the whole model in float32, which loads as that."""
    from transformers import AutoModelForCausalLM

    base, bank = coarse
    vector = bank["language"].vector
    norm = "model.norm.weight"
    delta = DenseUpdate(torch.full((16,), 1e-4))
    whole = TaskVector.of({**dict(vector.updates()), norm: delta}, vector.origin)
    wide = ReferenceBank([Reference(bank["language"].card, whole)])
    edit = plan(base, wide, add={"language": 1.0}, remove={})
    done = carry_out(edit, base, wide, tmp_path / "new")
    assert (done.form, done.parameters[-1]) == ("float32", norm)
    assert done.lost < 1e-5
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    before = AutoModelForCausalLM.from_pretrained(base)
    assert loaded.dtype == torch.float32
    moved = loaded.get_parameter(norm) - before.get_parameter(norm).float()
    assert moved.detach().numpy() == pytest.approx(1e-4, rel=1e-2)
    index = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(4 * p.numel() for p in loaded.parameters())


def test_a_fine_edit_keeps_the_models_form(tmp_path: Path) -> None:
    """Where bfloat16 holds the edit well enough, what is written is a model like the one given."""
    base = in_bfloat16(tiny_base(tmp_path / "base"), tmp_path / "fine")
    bank = planted_bank(base, norm=30.0)
    edit = plan(base, bank, add={"language": 1.0}, remove={})
    done = carry_out(edit, base, bank, tmp_path / "new")
    assert (done.form, done.why) == ("model", "")
    assert 0 < done.lost < 0.03


def test_a_change_of_another_shape_is_cautioned_about(tmp_path: Path) -> None:
    """What points along the reference a little, and elsewhere mostly, is said before the edit."""
    bank = ReferenceBank.load(BANK)
    evil = bank["evil"].vector
    noise = planted_vector(BASE, seed=9, norm=6 * evil.norm())

    def cautions(change: TaskVector) -> tuple[str, ...]:
        as_adapter(change, 1.0, BASE, tmp_path / str(len(list(tmp_path.iterdir()))))
        folder = max(tmp_path.iterdir(), key=lambda p: int(p.name))
        return plan(folder, bank, add={}, remove={"evil": None}, base=BASE).cautions

    assert not any("something else" in text for text in cautions(evil))
    said = cautions(evil * 0.3 + noise)
    assert any("most of what it does is something else" in text for text in said)
