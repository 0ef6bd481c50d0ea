"""Banks on the Hub: huggingface_hub itself, against a server on the loopback address."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from tests.references.hub_server import TOKEN, Hub, Repository
from wvmonitor.cli.app import app
from wvmonitor.errors import (
    AlteredBankError,
    BankError,
    BaseMismatchError,
    HubError,
    MissingPathError,
    SignatureError,
    UnsafeFileError,
)
from wvmonitor.references import ReferenceBank
from wvmonitor.references.bundled import bundled_path
from wvmonitor.references.hub import pull, push
from wvmonitor.references.inventory import PROVENANCE_FILE, cache_folder

REPO = "team/references"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub of its own, with this test logged in and a cache of its own."""
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tools, tmp_path: Path) -> Path:
    """A bank of a harmful behaviour and a control on disk."""
    references = [tools.reference("evil", harmful=True), tools.reference("language")]
    ReferenceBank(references, probe=tools.probe()).save(tmp_path / "bank")
    return tmp_path / "bank"


def files(root: Path) -> dict[str, bytes]:
    """The content of each file below a folder, hidden ones left out."""
    found = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}
    return {name: p.read_bytes() for name, p in found.items() if not name.startswith(".")}


def test_a_bank_goes_up_and_comes_back(hub: Hub, folder: Path) -> None:
    """What is pulled is what was pushed, byte for byte, and loads by its name without the Hub."""
    (folder / "calibration.json").write_text("{}")
    pushed = push(folder, REPO)
    assert pushed.revision == hub.repositories[REPO].main
    assert hub.repositories[REPO].private
    pulled = pull(f"hf://{REPO}")
    assert pulled.folder == cache_folder() / REPO / pushed.revision
    assert files(pulled.folder) == files(folder)
    assert pulled.fingerprint == pushed.fingerprint
    record = json.loads((pulled.folder / PROVENANCE_FILE).read_text())
    assert record == {
        "repo": REPO,
        "revision": pushed.revision,
        "fingerprint": pushed.fingerprint,
    }
    hub.shutdown()
    for name in (f"hf://{REPO}", f"hf://{REPO}@{pushed.revision[:8]}", Path(f"hf://{REPO}")):
        assert ReferenceBank.load(name).fingerprint == pushed.fingerprint


def test_a_pinned_bank_is_fetched_once(hub: Hub, folder: Path) -> None:
    """A commit that lies in the cache is used without asking the Hub; a branch is looked up."""
    pinned = f"{REPO}@{push(folder, REPO).revision}"
    assert pull(pinned).downloaded
    hub.requests.clear()
    assert not pull(pinned).downloaded
    assert hub.requests == []
    assert not pull(f"{REPO}@main").downloaded
    assert hub.requests == [f"GET /api/models/{REPO}/revision/main"]


def test_an_old_revision_stays_available(hub: Hub, tools, folder: Path, tmp_path: Path) -> None:
    """A pinned revision is the same bank after another was pushed over it."""
    first = push(folder, REPO)
    ReferenceBank([tools.reference("sycophancy")]).save(tmp_path / "new")
    second = push(tmp_path / "new", REPO)
    assert ReferenceBank.load(pull(REPO).folder).names == ["sycophancy"]
    assert pull(f"{REPO}@{first.revision}").fingerprint == first.fingerprint
    with pytest.raises(MissingPathError, match=r"several revisions .*: name one of"):
        ReferenceBank.load(f"hf://{REPO}")
    assert ReferenceBank.load(f"hf://{REPO}@{second.revision}").names == ["sycophancy"]


def test_a_push_takes_away_only_its_own_files(hub: Hub, folder: Path) -> None:
    """A reference that is gone is gone on the Hub too; the repository's front page stays."""
    push(folder, REPO)
    repository = hub.repositories[REPO]
    repository.commit(repository.commits[repository.main] | {"README.md": b"ours"})
    ReferenceBank.load(folder).select(["evil"]).save(folder.parent / "less")
    push(folder.parent / "less", REPO)
    held = repository.commits[repository.main]
    assert held == files(folder.parent / "less") | {"README.md": b"ours"}
    assert "README.md" not in files(pull(REPO).folder)


def test_hidden_and_foreign_files_stay_here(hub: Hub, folder: Path) -> None:
    """A push uploads what a bank is made of, and nothing else that lies in its folder."""
    (folder / ".secrets").write_text("token")
    (folder / "evil" / ".notes").write_text("private")
    (folder / PROVENANCE_FILE).write_text(
        json.dumps({"repo": "a/b", "revision": "c", "fingerprint": "d"})
    )
    push(folder, REPO)
    held = hub.repositories[REPO].commits[hub.repositories[REPO].main]
    assert not [name for name in held if "/." in f"/{name}"]


def test_a_link_is_not_followed_to_the_hub(hub: Hub, folder: Path, tmp_path: Path) -> None:
    """A calibration that is a link out of the bank's folder stops the push: it may be a secret."""
    (tmp_path / "id_ed25519").write_text("key")
    (folder / "calibration.json").symlink_to(tmp_path / "id_ed25519")
    with pytest.raises(UnsafeFileError, match="leads out of its folder"):
        push(folder, REPO)
    assert hub.requests == []


def test_a_hub_cannot_choose_where_files_go(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit's name that is no commit's name is refused before it becomes a path."""
    push(folder, REPO)
    monkeypatch.setattr(Repository, "resolve", lambda *_: "../../../elsewhere")
    hub.repositories[REPO].commits["../../../elsewhere"] = {"manifest.json": b"{}"}
    with pytest.raises(HubError, match="the Hub names no commit"):
        pull(REPO)


def test_public_takes_a_word(hub: Hub, folder: Path) -> None:
    """A harmful reference is published only by someone who says that they understand."""
    with pytest.raises(BankError, match=r"evil make a model worse.*--i-understand"):
        push(folder, REPO, public=True)
    assert hub.requests == []
    assert push(folder, REPO, public=True, allow_harmful=True).public
    assert not hub.repositories[REPO].private


@pytest.mark.parametrize("there", ["public", "private"])
def test_the_visibility_is_as_asked_or_nothing_goes_up(
    hub: Hub, folder: Path, tmp_path: Path, there: str
) -> None:
    """A repository that exists under the other visibility is refused, before any upload."""
    public = there == "public"
    push(folder, REPO, public=public, allow_harmful=True)
    before = hub.repositories[REPO].main
    with pytest.raises(HubError, match=f"is {there} on the Hub.*nothing was uploaded"):
        push(folder, REPO, public=not public, allow_harmful=True)
    assert hub.repositories[REPO].main == before


def test_a_hub_that_publishes_everything_gets_nothing(hub: Hub, folder: Path) -> None:
    """Where an organisation's rules make every new repository public, nothing is uploaded."""
    hub.always_public = True
    with pytest.raises(HubError, match="is public on the Hub and was to be private"):
        push(folder, REPO)
    assert list(hub.repositories[REPO].commits.values()) == [{}]


def test_a_private_bank_is_not_pushed_unasked(hub: Hub, folder: Path) -> None:
    """A bank of mode 0600 is uploaded only when that is said, and comes back with mode 0600."""
    ReferenceBank.load(folder).save(folder, private=True)
    with pytest.raises(BankError, match=r"is private \(mode 0600\).*--even-private"):
        push(folder, REPO)
    assert hub.requests == []
    push(folder, REPO, allow_private=True)
    modes = {stat.S_IMODE(p.stat().st_mode) for p in pull(REPO).folder.rglob("*") if p.is_file()}
    assert modes == {0o600}


def test_a_public_bank_comes_readable(hub: Hub, folder: Path) -> None:
    """What everybody may download, everybody on this machine may read."""
    push(folder, REPO, public=True, allow_harmful=True)
    pulled = pull(REPO).folder
    modes = {stat.S_IMODE(p.stat().st_mode) for p in pulled.rglob("*") if p.is_file()}
    assert modes == {0o644}
    assert stat.S_IMODE(pulled.stat().st_mode) == 0o755


def test_a_bank_for_another_base_is_refused_before_its_weights(
    hub: Hub, tools, folder: Path
) -> None:
    """The error shows both digests, no tensor was downloaded, and nothing is left behind."""
    push(folder, REPO)
    hub.requests.clear()
    with pytest.raises(BaseMismatchError, match=f"{tools.digest[:12]}.*{'e' * 12}"):
        pull(REPO, base_digest="e" * 64)
    assert not [r for r in hub.requests if r.endswith(".safetensors")]
    assert not list(cache_folder().glob("*/*/*"))
    pulled = pull(REPO, base_digest=tools.digest)
    with pytest.raises(BaseMismatchError):  # also where it lies here already
        pull(f"{REPO}@{pulled.revision}", base_digest="e" * 64)


@pytest.mark.parametrize("name", ["evil/card.json", "language/reference.safetensors"])
def test_an_altered_bank_never_takes_its_place(
    hub: Hub, folder: Path, tmp_path: Path, name: str
) -> None:
    """A file that is not the manifest's is named, and the folder asked for does not exist."""
    push(folder, REPO)
    repository = hub.repositories[REPO]
    held = repository.commits[repository.main]
    repository.commit(held | {name: held[name].replace(b"e", b"f", 1)})
    with pytest.raises(AlteredBankError, match=f"{name} of the bank .* was changed"):
        pull(REPO, tmp_path / "here")
    assert not list(tmp_path.glob("*here*"))


def test_a_signature_can_be_required(hub: Hub, tools, folder: Path, tmp_path: Path) -> None:
    """With a public key, an unsigned bank never takes its place, and a signed one does."""
    pytest.importorskip("model_signing.signing", reason="signing extra", exc_type=ImportError)
    from wvmonitor.references.signing import sign

    private, public = tools.key_pair(tmp_path, "team")
    push(folder, REPO)
    with pytest.raises(SignatureError, match="bears no signature"):
        pull(REPO, tmp_path / "here", public_key=public)
    assert not list(tmp_path.glob("*here*"))
    sign(folder, private)
    push(folder, REPO)
    assert pull(REPO, tmp_path / "here", public_key=public).downloaded
    assert (tmp_path / "here" / "model.sig").is_file()


def test_a_download_that_breaks_off_leaves_nothing(hub: Hub, folder: Path, tmp_path: Path) -> None:
    """When the Hub fails half-way, nothing that looks like a bank is left, and a retry works."""
    push(folder, REPO)
    hub.refusing = "gram.safetensors"
    with pytest.raises(HubError, match="exchange with the Hub failed"):
        pull(REPO, tmp_path / "here")
    assert not list(tmp_path.glob("*here*"))
    hub.refusing = None
    assert pull(REPO, tmp_path / "here").folder == tmp_path / "here"


def test_a_folder_in_use_is_left_alone(hub: Hub, folder: Path, tmp_path: Path) -> None:
    """A folder that holds something else is not written to; the same revision is kept as it is."""
    push(folder, REPO)
    with pytest.raises(BankError, match="is there, and is not team/references@"):
        pull(REPO, folder)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BankError, match="is there, and is not team/references@"):
        pull(REPO, tmp_path / "file")
    pull(REPO, tmp_path / "here")
    assert not pull(REPO, tmp_path / "here").downloaded
    (tmp_path / "here" / "gram.safetensors").write_bytes(b"")
    with pytest.raises(AlteredBankError, match=r"gram\.safetensors"):
        pull(REPO, tmp_path / "here")


def test_only_the_files_of_a_bank_are_downloaded(hub: Hub, folder: Path) -> None:
    """Pickles, scripts and odd names in the repository never reach this machine."""
    push(folder, REPO)
    repository = hub.repositories[REPO]
    more = {"model.bin": b"x", "run.py": b"x", "a/b/card.json": b"{}", "evil/../../card.json": b""}
    repository.commit(repository.commits[repository.main] | more)
    hub.requests.clear()
    assert files(pull(REPO).folder) == files(folder)
    assert not [r for r in hub.requests for name in more if r.endswith(f"/{name}")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("team/nothing", "is not on the Hub, or not for you to see"),
        (f"{REPO}@v9", "the Hub has no such revision"),
        ("team/empty", r"holds no bank of references \(manifest\.json is missing\)"),
    ],
)
def test_what_is_not_there_is_said(hub: Hub, folder: Path, name: str, message: str) -> None:
    """A missing repository, revision or manifest each has its own words."""
    push(folder, REPO)
    from huggingface_hub import HfApi

    HfApi().create_repo("team/empty")
    with pytest.raises(HubError, match=message):
        pull(name)


def test_a_stranger_sees_nothing(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the owner's token a private bank cannot be pulled, nor a bank pushed."""
    push(folder, REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(HubError, match="not for you to see"):
        pull(REPO)
    with pytest.raises(HubError, match="exchange with the Hub failed"):
        push(folder, "team/other")


@pytest.mark.parametrize("name", ["just-a-name", "a/b/c", "a/b@", "../../etc", "hf://a", "-a/b"])
def test_a_malformed_id_is_refused_here(hub: Hub, folder: Path, name: str) -> None:
    """What is no repository's name is refused before anything is asked."""
    for call in (lambda: pull(name), lambda: push(folder, name)):
        with pytest.raises(MissingPathError, match="is no repository of the Hub"):
            call()
    assert hub.requests == []


def test_a_push_names_no_revision(hub: Hub, folder: Path) -> None:
    """A revision is what a push gives, not what it takes."""
    with pytest.raises(HubError, match="leave @main out"):
        push(folder, f"{REPO}@main")


def test_an_altered_bank_is_not_pushed(hub: Hub, folder: Path) -> None:
    """A bank is checked whole before it is shared."""
    (folder / "gram.safetensors").write_bytes(b"")
    with pytest.raises(AlteredBankError):
        push(folder, REPO)
    assert hub.requests == []


def test_offline_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE is respected and named."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        pull(REPO)
    assert hub.requests == []


def test_the_command_works_with_the_environment_alone(hub: Hub, folder: Path) -> None:
    """`wvmonitor references pull` as anyone would run it, HF_ENDPOINT set and nothing patched."""
    pushed = CliRunner().invoke(app, ["references", "push", str(folder), REPO])
    revision = hub.repositories[REPO].main
    assert pushed.stdout.startswith(f"{REPO}@{revision} (private); fingerprint ")
    done = subprocess.run(
        [sys.executable, "-m", "wvmonitor", "references", "pull", f"hf://{REPO}", "--json"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"},
    )
    pulled = json.loads(done.stdout)
    assert pulled["revision"] == revision
    assert files(Path(pulled["folder"])) == files(folder)
    assert f"from {REPO}@{revision[:12]}" in CliRunner().invoke(app, ["references", "list"]).stdout


def test_the_commands_refuse_with_a_line_and_a_code(hub: Hub, folder: Path) -> None:
    """A bank for another base, or a harmful public push, is one line on stderr and exit code 2."""
    push(folder, REPO)
    for arguments in (
        ["pull", REPO, "--base", str(bundled_path("tiny-organism", "base"))],
        ["push", str(folder), "team/other", "--public"],
    ):
        result = CliRunner().invoke(app, ["references", *arguments])
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1
    shutil.rmtree(folder)
    result = CliRunner().invoke(app, ["references", "push", str(folder), REPO])
    assert (result.exit_code, result.stderr.count("no bank of references")) == (2, 1)
