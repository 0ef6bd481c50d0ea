"""PEFT evaluates `target_modules` and its patterns as regular expressions: ReDoS."""

import json
import time
from pathlib import Path

import peft
import pytest

from tests.sources import zoo
from wvmonitor.errors import AdapterError, UnsupportedAdapterError
from wvmonitor.sources import read_adapter

HOSTILE = "(((.*)*)*)*" + "(model|m.*l|.*)*" * 3 + "!"


@pytest.mark.parametrize("kind", ["LORA", "LOHA"])
def test_a_hostile_configuration_costs_no_time(kind: str, tmp_path: Path) -> None:
    """Expressions are matched within a limit of time: what they leave out is read, and factors of a
    module that they do not choose are refused, for PEFT would not load them.
    """
    model = zoo.build("llama")
    model.save_pretrained(tmp_path / "base")
    before = zoo.weights_of(model)
    config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)](target_modules=["q_proj"], r=4)
    adapted = peft.get_peft_model(model, config)
    zoo.shake(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps(said | {"exclude_modules": HOSTILE}))
    begun = time.perf_counter()
    tau = read_adapter(tmp_path / "adapter", tmp_path / "base")
    zoo.assert_equal_change(tau, zoo.change(zoo.merged(adapted), before))
    file.write_text(json.dumps(said | {"target_modules": HOSTILE}))
    with pytest.raises(AdapterError, match=r"q_proj|pattern"):
        read_adapter(tmp_path / "adapter", tmp_path / "base")
    file.write_text(json.dumps(said | {"rank_pattern": {HOSTILE: 2}}))
    try:
        read_adapter(tmp_path / "adapter", tmp_path / "base")
    except UnsupportedAdapterError as error:
        assert "pattern" in str(error)  # noqa: PT017  either answer is right, if it comes at once
    assert time.perf_counter() - begun < 5
