"""Banks on disk: exact, deterministic, and refused when altered."""

import json
import stat

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from wvmonitor.errors import (
    AlteredBankError,
    BankError,
    BaseMismatchError,
    FormatVersionError,
    MalformedFileError,
    MissingPathError,
)
from wvmonitor.files.safetensors import write_safetensors
from wvmonitor.references import Card, DosePoint, Reference, ReferenceBank, contrast, mean_reference
from wvmonitor.references.card import model_card
from wvmonitor.references.store import write_manifest
from wvmonitor.vectors import DenseUpdate, LowRankUpdate, Origin, TaskVector

FILES = [
    "evil/README.md",
    "evil/card.json",
    "evil/reference.safetensors",
    "gram.safetensors",
    "language/README.md",
    "language/card.json",
    "language/reference.safetensors",
    "probe.safetensors",
]


@pytest.fixture
def bank(tools):
    """A behaviour and a control with a probe."""
    repeats = {"frobenius": [[4.0, 1.0], [1.0, 9.0]]}
    references = [
        tools.reference("language", "dense", kind="control"),
        tools.reference("evil", repeats=repeats, harmful=True, rank=3),
    ]
    return ReferenceBank(references, probe=tools.probe())


def test_a_bank_comes_back_exactly(tools, bank, tmp_path):
    """Saved and loaded, every tensor, card and measured number is the same bit for bit."""
    tau = tools.vector()
    before = bank.measure(tau)
    fingerprint = bank.save(tmp_path / "bank")
    loaded = ReferenceBank.load(tmp_path / "bank")
    assert loaded.fingerprint == fingerprint == bank.fingerprint
    assert loaded.names == bank.names
    assert loaded.folder == tmp_path / "bank"
    for ours, theirs in zip(bank, loaded, strict=True):
        assert ours.card == theirs.card
        assert set(ours.vector.names()) == set(theirs.vector.names())
        assert theirs.vector.origin.base_digest == tools.digest
        for name, update in ours.vector.updates():
            other = theirs.vector.update(name)
            assert type(other) is type(update)
            assert other.transposed == update.transposed
            if isinstance(update, LowRankUpdate):
                assert torch.equal(other.left, update.left)
                assert torch.equal(other.right, update.right)
            else:
                assert torch.equal(other.delta, update.delta)
    after = loaded.measure(tau)
    for geometry in ("frobenius", "response"):
        np.testing.assert_array_equal(loaded.gram.products[geometry], bank.gram.products[geometry])
        np.testing.assert_array_equal(
            after.geometries[geometry].products, before.geometries[geometry].products
        )
    np.testing.assert_array_equal(loaded.gram.shared["frobenius"], [np.nan, 1.0])
    assert loaded.gram.components == bank.gram.components
    q0, q1 = (loaded.probe[f"model.layers.{i}.q.weight"] for i in (0, 1))
    assert q0 is q1


def test_saving_twice_gives_the_same_bytes(bank, tmp_path):
    """The fingerprint depends on content alone, and saving over itself is allowed."""
    first, second = bank.save(tmp_path / "a"), bank.save(tmp_path / "b")
    assert first == second == bank.save(tmp_path / "a")
    names = sorted(p.relative_to(tmp_path / "a").as_posix() for p in (tmp_path / "a").rglob("*.*"))
    assert names == sorted([*FILES, "manifest.json"])
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert ReferenceBank.load(tmp_path / "a").save(tmp_path / "c") == first


@pytest.mark.parametrize("name", FILES)
def test_an_altered_file_is_named(bank, tmp_path, name):
    """One changed byte in any file of a bank is an error naming that file."""
    bank.save(tmp_path)
    path = tmp_path / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(AlteredBankError, match=rf"^{name} of the bank .* was changed"):
        ReferenceBank.load(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(bank, tmp_path, name):
    """A file that is gone is an error naming it."""
    bank.save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(AlteredBankError, match=rf"^{name} of the bank .* is missing"):
        ReferenceBank.load(tmp_path)


@pytest.mark.parametrize("name", ["extra.json", "evil/more.safetensors"])
def test_an_added_file_is_named(bank, tmp_path, name):
    """A file that the manifest does not know is an error; a calibration and dot files are not."""
    bank.save(tmp_path)
    (tmp_path / "calibration.json").write_text("{}")
    (tmp_path / ".gitattributes").write_text("")
    ReferenceBank.load(tmp_path)
    (tmp_path / name).write_text("{}")
    with pytest.raises(AlteredBankError, match=rf"^{name} of the bank .* was added"):
        ReferenceBank.load(tmp_path)


def test_a_swapped_card_is_refused(bank, tmp_path):
    """A folder whose card bears another name is refused even under a fresh manifest."""
    bank.save(tmp_path)
    card = json.loads((tmp_path / "evil/card.json").read_text())
    (tmp_path / "evil/card.json").write_text(json.dumps({**card, "name": "kind"}))
    write_manifest(tmp_path)
    with pytest.raises(AlteredBankError, match="calls itself 'kind'"):
        ReferenceBank.load(tmp_path)


def test_a_gram_of_other_references_is_refused(tools, bank, tmp_path):
    """The Gram matrix must belong to the references beside it."""
    bank.save(tmp_path / "a")
    bank.select(["evil"]).save(tmp_path / "b")
    gram = (tmp_path / "b/gram.safetensors").read_bytes()
    (tmp_path / "a/gram.safetensors").write_bytes(gram)
    write_manifest(tmp_path / "a")
    with pytest.raises(AlteredBankError, match="not made from the references"):
        ReferenceBank.load(tmp_path / "a")
    write_safetensors(tmp_path / "a/gram.safetensors", {})
    write_manifest(tmp_path / "a")
    with pytest.raises(MalformedFileError, match="unreadable layout"):
        ReferenceBank.load(tmp_path / "a")


@pytest.mark.parametrize("name", ["manifest.json", "evil/card.json"])
def test_a_newer_format_asks_for_an_upgrade(bank, tmp_path, name):
    """Files of a later version are refused with the words to upgrade."""
    bank.save(tmp_path)
    document = json.loads((tmp_path / name).read_text())
    (tmp_path / name).write_text(json.dumps({**document, "format_version": 99}))
    if name != "manifest.json":
        write_manifest(tmp_path)
    with pytest.raises(FormatVersionError, match=r"format 99.*upgrade wvmonitor"):
        ReferenceBank.load(tmp_path)


def test_where_there_is_no_bank_it_says_so(tmp_path):
    """A missing folder and one that is no bank are told apart, with the next step."""
    with pytest.raises(MissingPathError, match=r"no such folder.*wvmonitor build.*none at all"):
        ReferenceBank.load(tmp_path / "nowhere")
    with pytest.raises(MissingPathError, match=r"manifest\.json is missing.*wvmonitor build"):
        ReferenceBank.load(tmp_path)


@pytest.mark.parametrize("listed", ["../evil", "/etc/passwd", "a/b/c"])
def test_a_manifest_cannot_point_elsewhere(bank, tmp_path, listed):
    """File names that leave the folder are refused before anything is opened."""
    bank.save(tmp_path)
    manifest = {"format_version": 1, "files": {listed: "0" * 64}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(MalformedFileError, match="not a file of this folder"):
        ReferenceBank.load(tmp_path)


def test_a_bank_is_not_saved_over_another(tools, bank, tmp_path):
    """Left-over references of another bank are named rather than swept into the manifest."""
    bank.save(tmp_path)
    with pytest.raises(BankError, match=r"holds language/.*no part of this bank"):
        bank.select(["evil"]).save(tmp_path)


def test_private_banks_are_for_their_owner_alone(bank, tmp_path):
    """private=True gives every file mode 0600, also over files that were open to all."""
    bank.save(tmp_path)
    bank.save(tmp_path, private=True)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == len(FILES) + 1
    assert {stat.S_IMODE(p.stat().st_mode) for p in files} == {0o600}


def test_a_card_survives_json(tools, bank, tmp_path):
    """A card written and read is the same card, and its README says what it stands for."""
    card = tools.card(
        "evil",
        repeats={"frobenius": [[4.0, 1.0], [1.0, 9.0]], "response": [[1.0]]},
        dose_curve=(DosePoint(k=1.0, rate=0.5, low=0.4, high=0.6, n=100),),
        warnings=("a warning",),
        kept=0.99,
    )
    assert Card.model_validate_json(card.model_dump_json()) == card
    assert card.agreement("frobenius") == pytest.approx(1 / 6)
    assert card.shared("frobenius") == 1
    assert card.agreement("response") is None
    assert np.isnan(card.shared("response"))
    text = model_card(card)
    assert "moving along +w, it gives harmful advice." in text
    assert "warning: a warning" in text
    assert "mean cosine 0.167" in text


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "x" * 101])
def test_a_name_is_a_plain_folder_name(tools, name):
    """A reference cannot be named so that saving it leaves the bank's folder."""
    with pytest.raises(ValidationError, match="name"):
        tools.card(name)


def test_broken_reference_folders_say_what_is_wrong(tools, tmp_path):
    """Half a factor pair, a doubled parameter, or a malformed card are named errors."""
    tools.reference().save(tmp_path)
    weights = tmp_path / "reference.safetensors"
    write_safetensors(weights, {"w.left": torch.ones(2, 1)})
    with pytest.raises(MalformedFileError, match=r"'w\.left'.*neither"):
        Reference.load(tmp_path)
    pair = {"w.left": torch.ones(2, 1), "w.right": torch.ones(1, 2)}
    write_safetensors(weights, {**pair, "w.delta": torch.ones(2, 2)})
    with pytest.raises(MalformedFileError, match="'w' twice"):
        Reference.load(tmp_path)
    (tmp_path / "card.json").write_text('{"name": "evil"}')
    with pytest.raises(MalformedFileError, match=r"card\.json.*Field required"):
        Reference.load(tmp_path)


def test_a_contrast_points_towards_the_behaviour(tools):
    """W = positive − negative where the positive side exhibits it, turned where it opposes it."""
    a, b = tools.vector("dense"), tools.vector("low-rank")
    w = contrast(a, b, positive_means="exhibits")
    assert contrast(a, b, positive_means="opposes").cosine(w) == pytest.approx(-1, abs=1e-5)
    assert w.inner(a) == pytest.approx(a.inner(a) - b.inner(a), rel=1e-4)
    assert w.origin.base_digest == tools.digest
    with pytest.raises(BaseMismatchError, match="different bases"):
        contrast(a, tools.vector(digest="e" * 64), positive_means="exhibits")
    with pytest.raises(BankError, match="'exhibits' or 'opposes', got 'yes'"):
        contrast(a, b, positive_means="yes")


def test_the_mean_of_repeats_is_plain(tools):
    """The mean is not normalised, and compressed to the rank asked for."""
    name = "model.layers.0.q.weight"
    repeats = [tools.vector("low-rank", [name]) for _ in range(3)]
    mean = mean_reference(repeats, rank=8)
    expected = np.mean([tools.dense(r.update(name)) for r in repeats], axis=0)
    np.testing.assert_allclose(tools.dense(mean.update(name)), expected, atol=1e-5)
    assert mean_reference(repeats, rank=2).update(name).rank == 2
    with pytest.raises(BankError, match="at least one task vector"):
        mean_reference([], rank=2)


def test_references_key_a_mapping(tools):
    """A reference can be a dictionary's key, as `{reference: k}` needs."""
    a = Reference(tools.card("a"), TaskVector.of({"w": DenseUpdate(torch.ones(1))}, Origin("x")))
    assert {a: 1.0}[a] == 1.0
