from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wvmonitor.organism import load_base

BASE = Path(__file__).parents[2] / "reference_vectors" / "tiny-organism" / "base"


@pytest.fixture(scope="session")
def base_dir() -> Path:
    """The shipped base folder."""
    return BASE


@pytest.fixture(scope="session")
def organism(base_dir: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The shipped base and its tokenizer."""
    return load_base(base_dir)
