"""Which banks there are, and the commands that look at them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wvmonitor.cli.app import app
from wvmonitor.errors import AlteredBankError, MalformedFileError, MissingPathError
from wvmonitor.live.monitor import Monitor
from wvmonitor.references import ReferenceBank
from wvmonitor.references.bundled import bundled_path
from wvmonitor.references.inventory import (
    PROVENANCE_FILE,
    HubId,
    banks_in,
    cache_folder,
    inventory,
    located,
    summarise,
)
from wvmonitor.scan.scan import open_bank
from wvmonitor.sources import base_digest

BASE = bundled_path("tiny-organism", "base")


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of pulled banks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder()


@pytest.fixture
def bank(tools) -> ReferenceBank:
    """A harmful behaviour that has not passed its checks, and a control."""
    evil = tools.reference("evil", harmful=True, verified=False, warnings=("odd",), rank=3)
    return ReferenceBank([evil, tools.reference("language", "dense", kind="control")])


def run(*arguments: object) -> tuple[int, str, str]:
    """A command's exit code, output and errors."""
    result = CliRunner().invoke(app, ["references", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b", HubId("a/b")),
        ("hf://a/b", HubId("a/b")),
        (Path("hf://a/b@main"), HubId("a/b", "main")),
        ("a-1/b.c_d@refs/pr/3", HubId("a-1/b.c_d", "refs/pr/3")),
    ],
)
def test_ids_are_read(text: str | Path, expected: HubId) -> None:
    """An id may be written with hf:// and with a revision, as a string or as a path."""
    assert HubId.parse(text) == expected


def test_a_folder_stands_for_itself(cache: Path, tmp_path: Path, monkeypatch) -> None:
    """A folder whose path looks like an id is that folder; a path that is missing stays one."""
    (tmp_path / "team" / "bank").mkdir(parents=True)
    (cache / "team" / "bank" / "0" / "x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert located("team/bank") == Path("team/bank")
    assert located("team/other") == Path("team/other")
    with pytest.raises(MissingPathError, match=r"has not been pulled: run .* pull team/other"):
        located("hf://team/other")
    with pytest.raises(MissingPathError, match="has not been pulled"):
        located("hf://team/bank@1")
    assert located("hf://team/bank@0") == cache / "team" / "bank" / "0"


def test_a_summary_reads_cards_and_no_weights(bank: ReferenceBank, tmp_path: Path) -> None:
    """The bank's base, fingerprint and cards are known without opening a tensor."""
    fingerprint = bank.save(tmp_path, private=True)
    (tmp_path / "evil" / "reference.safetensors").unlink()
    found = summarise(tmp_path)
    assert (found.fingerprint, found.base) == (fingerprint, bank.base)
    assert [c.name for c in found.cards] == ["evil", "language"]
    assert found.private
    assert not found.signed
    assert not found.calibrated
    assert found.provenance is None


def test_an_altered_card_is_not_shown(bank: ReferenceBank, tmp_path: Path) -> None:
    """A card is believed only if it is the one that the manifest lists."""
    bank.save(tmp_path)
    card = tmp_path / "evil" / "card.json"
    card.write_text(card.read_text().replace('"harmful": true', '"harmful": false'))
    with pytest.raises(AlteredBankError, match=r"evil/card\.json of the bank"):
        summarise(tmp_path)


def test_a_damaged_provenance_is_an_error(bank: ReferenceBank, tmp_path: Path) -> None:
    """Where a bank came from is read strictly or not at all."""
    bank.save(tmp_path)
    (tmp_path / PROVENANCE_FILE).write_text('{"repo": "a/b"}')
    with pytest.raises(MalformedFileError, match=r"Field required; remove the folder"):
        summarise(tmp_path)


def test_banks_are_found_below_a_folder(bank: ReferenceBank, tmp_path: Path) -> None:
    """Banks count at a path and up to four levels below it; hidden and unfinished ones do not."""
    places = ["a", "b/c", "b/d/e/f", ".hidden", "b/.pulling.tmp", "b/d/e/g/h"]
    for place in places:
        (tmp_path / place).mkdir(parents=True)
        bank.save(tmp_path / place)
    assert [p.relative_to(tmp_path).as_posix() for p in banks_in(tmp_path)] == places[:3]
    assert list(banks_in(tmp_path / "a")) == [tmp_path / "a"]


def test_a_broken_bank_is_listed_with_the_reason(
    bank: ReferenceBank, cache: Path, tmp_path: Path
) -> None:
    """`list` drops nothing: what cannot be read has a line of its own, and makes exit code 2."""
    bank.save(tmp_path / "banks" / "good")
    bank.save(tmp_path / "banks" / "bad")
    (tmp_path / "banks" / "bad" / "manifest.json").write_text("{}")
    broken, good = inventory([tmp_path / "banks", tmp_path / "banks" / "good"])
    assert "format None" in str(broken.problem)
    assert good.problem is None
    code, out, _ = run("list", tmp_path / "banks")
    assert code == 2
    bundled, bad, whole = out.splitlines()
    assert "tiny-organism" in bundled
    assert "upgrade wvmonitor" in bad
    assert whole.endswith("2 references of tiny, digest dddddddddddd…, not all verified")
    listed = json.loads(run("list", tmp_path / "banks", "--json")[1])
    assert [bool(b["problem"]) for b in listed] == [False, True, False]


def test_show_gives_the_cards(bank: ReferenceBank, tmp_path: Path) -> None:
    """`show` says what each reference is and whether it was verified; with a name, its card."""
    bank.save(tmp_path)
    code, out, _ = run("show", tmp_path)
    assert code == 0
    assert f"base tiny, digest {'d' * 64}" in out
    assert "evil: behaviour, harmful to add, unverified, rank 3" in out
    assert "warning: odd" in out
    assert "language: control, dense" in out
    assert "## Intended use" in run("show", tmp_path, "evil")[1]
    shown = json.loads(run("show", tmp_path, "evil", "--json")[1])
    assert [c["name"] for c in shown["references"]] == ["evil"]
    code, _, error = run("show", tmp_path, "kindness")
    assert code == 2
    assert "no reference 'kindness' in this bank; it holds evil, language" in error


def test_verify_says_what_holds(bank: ReferenceBank, tmp_path: Path) -> None:
    """`verify` checks every file, and names references that failed their own checks."""
    fingerprint = bank.save(tmp_path)
    code, out, _ = run("verify", tmp_path)
    assert code == 0
    assert "whole, 2 references of tiny" in out
    assert fingerprint in out
    assert "evil has not passed its own checks" in out
    found = json.loads(run("verify", tmp_path, "--json")[1])
    assert (found["relation"], found["signature"]) == ("unknown", "not checked")
    (tmp_path / "gram.safetensors").write_bytes(b"")
    code, _, error = run("verify", tmp_path)
    assert code == 2
    assert "gram.safetensors of the bank" in error


def test_verify_refuses_another_base(bank: ReferenceBank, tmp_path: Path) -> None:
    """`verify --base` tells the right base from another, and shows both digests."""
    bundled = bundled_path("tiny-organism", "bank")
    assert "made for this base" in run("verify", bundled, "--base", BASE)[1]
    bank.save(tmp_path)
    code, _, error = run("verify", tmp_path, "--base", BASE)
    assert code == 2
    assert f"digest {'d' * 12}…" in error
    assert f"digest {base_digest(BASE)[:12]}…" in error


def test_a_pulled_bank_is_named_wherever_a_bank_is(bank: ReferenceBank, cache: Path) -> None:
    """`hf://ORG/NAME` works for a monitor, a scan, and commands that turn it into a path."""
    fingerprint = bank.save(cache / "team" / "bank" / "0123456")
    name = "hf://team/bank"
    assert Monitor(references=name).bank.fingerprint == fingerprint
    assert open_bank(name)[0].fingerprint == fingerprint
    assert ReferenceBank.load(Path(name)).fingerprint == fingerprint
    assert run("verify", f"{name}@0123")[0] == 0


def test_a_folder_that_is_not_there_is_not_an_empty_list(cache: Path, tmp_path: Path) -> None:
    """A misspelt folder is an error, and not a list without its banks."""
    code, _, problems = run("list", tmp_path / "bnaks")
    assert code == 2
    assert "bnaks' is no folder" in problems
