"""Digests kept between processes: hashed once, and again as soon as anything is not as it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wvmonitor.files.safetensors import write_safetensors
from wvmonitor.sources import base_digest, digest_cache, identity

Hashed = Callable[[], int]
OTHER = "f" * 64


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder; what this process remembers by itself is forgotten at each look."""
    folder = tmp_path / "digests"
    monkeypatch.setenv(digest_cache.VARIABLE, str(folder))
    monkeypatch.setattr(digest_cache, "SETTLED_SECONDS", -60.0)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base of one block."""
    return write(tmp_path / "base", 1.0)


def write(folder: Path, value: float) -> Path:
    folder.mkdir(exist_ok=True)
    tensors = {"model.layers.0.mlp.up_proj.weight": torch.full((4, 4), value)}
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def looked(base: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, bool]:
    """The digest as another process would tell it, and whether that one hashed the weights."""
    monkeypatch.setattr(identity, "_known", {})
    hashed: list[object] = []
    whole = identity.digest_of_folder

    def counted(folder: identity.ModelFolder, *made: object) -> str:
        hashed.append(folder)
        return whole(folder, *made)

    with monkeypatch.context() as patched:
        patched.setattr(identity, "digest_of_folder", counted)
        return base_digest(base), bool(hashed)


def entry(cache: Path) -> Path:
    (found,) = cache.iterdir()
    return found


def test_another_process_does_not_hash_again(cache, base, monkeypatch) -> None:
    """What one process hashed the next one knows, for its owner's eyes only."""
    digest, hashed = looked(base, monkeypatch)
    assert hashed
    assert looked(base, monkeypatch) == (digest, False)
    assert cache.stat().st_mode & 0o777 == 0o700
    assert entry(cache).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("change", ["content", "same size and times", "configuration", "replaced"])
def test_what_changed_is_hashed_again(change, cache, base, monkeypatch) -> None:
    """Other content, also under the old size and modification time, and any file beside it."""
    before, _ = looked(base, monkeypatch)
    weights = base / "model.safetensors"
    times = weights.stat().st_atime_ns, weights.stat().st_mtime_ns
    if change == "configuration":
        (base / "config.json").write_text('{"tie_word_embeddings": true}')
    elif change == "replaced":
        write(base.with_name("other"), 2.0)
        (base.with_name("other") / weights.name).replace(weights)
    else:
        with weights.open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"\0\0\0\x40")
        if change == "same size and times":
            os.utime(weights, ns=times)
            assert weights.stat().st_mtime_ns == times[1]
    after, hashed = looked(base, monkeypatch)
    assert hashed
    assert (after == before) == (change == "configuration")


def test_what_was_written_just_now_is_not_kept(cache, base, monkeypatch) -> None:
    """A second change within one tick of a coarse clock would not show: the next one hashes too."""
    monkeypatch.setattr(digest_cache, "SETTLED_SECONDS", 3600.0)
    assert looked(base, monkeypatch)[1]
    assert looked(base, monkeypatch)[1]
    assert not cache.exists()


def _of_another_place(kept: Path) -> None:
    kept.write_text(kept.read_text().replace('"of": "', '"of": "0'))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda kept: kept.write_bytes(b"\xff\x00{"),
        lambda kept: kept.write_text("[]"),
        lambda kept: kept.write_text("{}"),
        lambda kept: kept.write_text(kept.read_text()[:-3]),
        lambda kept: kept.write_text(kept.read_text().replace('"digest": "', '"digest": "x')),
        lambda kept: kept.write_bytes(b" " * (1 << 21)),
        _of_another_place,
    ],
)
def test_a_damaged_entry_is_as_if_it_were_not_there(spoil, cache, base, monkeypatch) -> None:
    """Bytes, forms and digests that cannot be right are hashed over, and made whole again."""
    digest, _ = looked(base, monkeypatch)
    spoil(entry(cache))
    assert looked(base, monkeypatch) == (digest, True)
    assert looked(base, monkeypatch) == (digest, False)


@pytest.mark.parametrize("who", ["file for others", "folder for others", "link", "another user"])
def test_what_others_may_have_written_is_not_believed(who, cache, base, monkeypatch) -> None:
    """A digest counts only from a private file of this user's, in a folder only they may write."""
    digest, _ = looked(base, monkeypatch)
    kept = entry(cache)
    kept.write_text(kept.read_text().replace(digest, OTHER))
    assert looked(base, monkeypatch) == (OTHER, False)  # as far as it goes: this user wrote it
    if who == "file for others":
        kept.chmod(0o620)
    elif who == "folder for others":
        cache.chmod(0o777)
    elif who == "link":
        kept.replace(cache.with_name("elsewhere.json"))
        kept.symlink_to(cache.with_name("elsewhere.json"))
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert looked(base, monkeypatch) == (digest, True)


def test_it_can_be_switched_off(cache, base, monkeypatch) -> None:
    """`off` neither reads nor writes."""
    digest, _ = looked(base, monkeypatch)
    kept = entry(cache)
    kept.write_text(kept.read_text().replace(digest, OTHER))
    monkeypatch.setenv(digest_cache.VARIABLE, "off")
    assert looked(base, monkeypatch) == (digest, True)


def test_a_folder_that_cannot_be_written_costs_time_only(base, tmp_path, monkeypatch) -> None:
    """The digest is right, and nobody is bothered."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(digest_cache.VARIABLE, str(tmp_path / "file" / "below"))
    monkeypatch.setattr(digest_cache, "SETTLED_SECONDS", -60.0)
    digest, hashed = looked(base, monkeypatch)
    assert hashed
    assert looked(base, monkeypatch) == (digest, True)
