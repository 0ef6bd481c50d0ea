"""Signatures of banks, made and checked with the model-signing library itself."""

from __future__ import annotations

import shutil
import stat
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wvmonitor.cli.app import app
from wvmonitor.errors import AlteredBankError, MissingPathError, SettingsError, SignatureError
from wvmonitor.references import ReferenceBank
from wvmonitor.references.inventory import PROVENANCE_FILE
from wvmonitor.references.signing import sign, verify_signature
from wvmonitor.references.store import write_manifest

pytest.importorskip("model_signing.signing", reason="signing extra", exc_type=ImportError)


@pytest.fixture
def keys(tools, tmp_path: Path) -> tuple[Path, Path]:
    """A key pair."""
    return tools.key_pair(tmp_path, "team")


@pytest.fixture
def folder(tools, tmp_path: Path) -> Path:
    """A bank of two references on disk, with a calibration beside it."""
    bank = ReferenceBank([tools.reference("evil"), tools.reference("language")])
    bank.save(tmp_path / "bank")
    (tmp_path / "bank" / "calibration.json").write_text('{"alpha": 0.05}')
    return tmp_path / "bank"


def test_a_signed_bank_verifies_wherever_it_lies(
    folder: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    """The signature travels in the folder, holds for a copy, and leaves the bank loadable."""
    private, public = keys
    assert sign(folder, private) == folder / "model.sig"
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / PROVENANCE_FILE).write_text("{}")  # pull writes it
    (copy / ".gitattributes").write_text("")  # the Hub writes it
    verify_signature(copy, public)
    assert ReferenceBank.load(copy).names == ["evil", "language"]


@pytest.mark.parametrize("curve", ["SECP256R1", "SECP384R1", "SECP521R1"])
def test_curves(tools, folder: Path, tmp_path: Path, curve: str) -> None:
    """Keys of the three NIST curves work."""
    private, public = tools.key_pair(tmp_path, "other", curve)
    sign(folder, private)
    verify_signature(folder, public)


def test_the_librarys_own_command_agrees(folder: Path, keys: tuple[Path, Path]) -> None:
    """`model_signing verify key` accepts what we sign, and we accept what `sign key` signs."""
    from click.testing import CliRunner as Click
    from model_signing._cli import main

    def run(verb: str, option: str, key: Path) -> None:
        signature = ["--signature", str(folder / "model.sig"), option, str(key)]
        result = Click().invoke(main, [verb, "key", str(folder), *signature])
        assert result.exit_code == 0, result.output

    private, public = keys
    sign(folder, private)
    run("verify", "--public_key", public)
    (folder / "model.sig").unlink()
    run("sign", "--private_key", private)
    (folder / PROVENANCE_FILE).write_text("{}")
    verify_signature(folder, public)


@pytest.mark.parametrize(
    "harm",
    [
        lambda f: (f / "calibration.json").write_text('{"alpha": 0.5}'),
        lambda f: (f / "calibration.json").unlink(),
        lambda f: (f / ".hidden").write_text("x"),
    ],
    ids=["calibration changed", "calibration removed", "hidden file added"],
)
def test_what_the_manifest_does_not_cover_is_signed_too(
    folder: Path, keys: tuple[Path, Path], harm
) -> None:
    """Thresholds that were changed after signing, or files that were added, break the signature."""
    sign(folder, keys[0])
    harm(folder)
    ReferenceBank.load(folder)  # the bank alone does not notice
    with pytest.raises(SignatureError, match="does not hold"):
        verify_signature(folder, keys[1])


def test_a_manifest_made_anew_does_not_help(folder: Path, keys: tuple[Path, Path]) -> None:
    """Whoever alters a file and writes a fitting manifest is found out by the signature."""
    sign(folder, keys[0])
    card = folder / "evil" / "card.json"
    card.write_text(card.read_text().replace('"harmful": false', '"harmful": true'))
    with pytest.raises(AlteredBankError, match=r"evil/card\.json"):
        verify_signature(folder, keys[1])
    write_manifest(folder)
    ReferenceBank.load(folder)
    with pytest.raises(SignatureError, match="does not hold"):
        verify_signature(folder, keys[1])


def test_another_key_does_not_hold(
    tools, folder: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    """A bank signed by someone else is refused, and so is the signature of another bank."""
    stranger, _ = tools.key_pair(tmp_path, "stranger")
    sign(folder, stranger)
    with pytest.raises(SignatureError, match="does not hold"):
        verify_signature(folder, keys[1])
    other = tmp_path / "other"
    ReferenceBank.load(folder).select(["evil"]).save(other)
    shutil.move(sign(other, keys[0]), folder / "model.sig")
    with pytest.raises(SignatureError, match="does not hold"):
        verify_signature(folder, keys[1])


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"mediaType": "x"}', "{" * 100_000])
def test_a_malformed_signature_is_an_error_of_ours(
    folder: Path, keys: tuple[Path, Path], content: str
) -> None:
    """Whatever a stranger's signature file holds, the answer is a typed error."""
    from wvmonitor.errors import WVMonitorError

    (folder / "model.sig").write_text(content)
    with pytest.raises(WVMonitorError):
        verify_signature(folder, keys[1])


def test_a_missing_signature_or_key_is_said(folder: Path, keys: tuple[Path, Path]) -> None:
    """An unsigned bank and a key that is not there have their own words."""
    with pytest.raises(SignatureError, match="bears no signature"):
        verify_signature(folder, keys[1])
    with pytest.raises(MissingPathError, match=r"nowhere.*PEM"):
        sign(folder, folder / "nowhere")
    with pytest.raises(SignatureError, match="elliptic curve key"):
        sign(folder, keys[1])  # the public half cannot sign
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith((".", "model"))) == []


def test_an_altered_bank_is_not_signed(folder: Path, keys: tuple[Path, Path]) -> None:
    """Nobody puts their name to a bank that is not whole."""
    (folder / "gram.safetensors").write_bytes(b"")
    with pytest.raises(AlteredBankError):
        sign(folder, keys[0])


def test_the_signature_of_a_private_bank_is_private(folder: Path, keys: tuple[Path, Path]) -> None:
    """The signature lists the bank's files, so it is as readable as they are."""
    ReferenceBank.load(folder).save(folder, private=True)
    assert stat.S_IMODE(sign(folder, keys[0]).stat().st_mode) == 0o600


def test_without_the_library_it_says_what_to_install(
    folder: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking for a signature check without the extra is an error, and never a pass."""
    monkeypatch.setitem(sys.modules, "model_signing.verifying", None)
    with pytest.raises(SettingsError, match=r"pip install 'wvmonitor\[signing\]'"):
        verify_signature(folder, keys[1])


def test_the_commands_sign_and_verify(folder: Path, keys: tuple[Path, Path]) -> None:
    """`references sign` writes the signature, `references verify --signature` requires it."""
    check = ["references", "verify", str(folder), "--signature", str(keys[1])]
    result = CliRunner().invoke(app, check)
    assert result.exit_code == 2
    assert "bears no signature" in result.stderr
    assert CliRunner().invoke(
        app, ["references", "sign", str(folder), "--key", str(keys[0])]
    ).stdout.strip() == str(folder / "model.sig")
    result = CliRunner().invoke(app, check)
    assert result.exit_code == 0
    assert f"signed with the other half of {keys[1]}" in result.stdout


def test_the_wrong_half_of_a_key_is_not_a_bad_signature(
    folder: Path, keys: tuple[Path, Path]
) -> None:
    """Whoever gives a private key for a public one is not told to distrust the bank."""
    sign(folder, keys[0])
    with pytest.raises(SignatureError, match="give the PEM file of the public half"):
        verify_signature(folder, keys[0])
