"""The fuzz targets on their seeds and on changes to them; `make fuzz` is the long form."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fuzz.targets import TARGETS

CORPUS = Path(__file__).parents[2] / "fuzz" / "corpus"


@pytest.mark.parametrize("name", TARGETS)
def test_every_reader_answers_foreign_bytes_with_its_own_errors(name: str) -> None:
    """Header, index, adapter configuration, bank documents and journal: whatever the bytes, the
    answer is a value or an error of this package.
    """
    seeds = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    assert len(seeds) >= 5
    rng = random.Random(name)
    for number in range(40):
        data = bytearray(seeds[number % len(seeds)])
        if number >= len(seeds):
            data += rng.randbytes(rng.randrange(16))
            for _ in range(rng.randrange(1, 6)):
                data[rng.randrange(len(data))] = rng.choice((rng.randrange(256), rng.randrange(6)))
        TARGETS[name](bytes(data))
