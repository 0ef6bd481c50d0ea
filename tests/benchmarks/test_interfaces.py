"""Frameworks that are read instead of run: what their source must hold."""

from __future__ import annotations

import zipfile
from pathlib import Path

from benchmarks.interfaces import Claim, Framework, read

SOURCE = """
class Trainer:
    def callbacks(self, args):
        return [known[name](args,   self)  # a comment
                for name in args.callbacks]
"""


def claims(tmp_path: Path, *asked: Claim) -> list[Claim]:
    """Those of the claims that a wheel with `SOURCE` does not bear out."""
    archive = tmp_path / "some-1.0-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("some-1.0.data/purelib/some/trainer.py", SOURCE)
    return read(Framework("some", "Some", "a hook", asked), archive)


def test_a_claim_is_held_against_the_source(tmp_path: Path) -> None:
    """How the code is laid out does not matter; another file, function or call is found missing."""
    good = Claim("some/trainer.py", "Trainer.callbacks", "known[name](args, self)")
    assert claims(tmp_path, good) == []
    wrong = [
        Claim("some/trainer.py", "Trainer.callbacks", "known[name](args)"),
        Claim("some/trainer.py", "Trainer.hooks", "known[name](args, self)"),
        Claim("some/other.py", "Trainer.callbacks", "known[name](args, self)"),
    ]
    assert claims(tmp_path, good, *wrong) == wrong
