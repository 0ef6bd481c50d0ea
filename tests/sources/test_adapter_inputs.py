"""Adapters that contradict themselves or their base: a typed error each, with the place in it."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from tests.sources import zoo
from wvmonitor.errors import (
    AdapterError,
    InputError,
    KeyMismatchError,
    MalformedFileError,
    MissingPathError,
    NonFiniteError,
    ShapeMismatchError,
    UnsafeFileError,
    UnsupportedAdapterError,
)
from wvmonitor.files.safetensors import SafetensorsFile, write_safetensors
from wvmonitor.sources import read_adapter

# For the table of docs/what-is-measured.md: kind, where it comes from, read or refused, the test.
MEASURED = [
    (
        "factors of modules that the configuration does not choose",
        "edited configurations, joined files",
        "refused: PEFT leaves them out, other programs may not",
        "test_factors_that_peft_would_not_load_are_refused",
    ),
    (
        "a bias of B without `lora_bias`, an embedding's factors on a linear layer",
        "edited configurations",
        "refused: PEFT leaves them out",
        "test_tensors_that_a_configuration_has_no_place_for_are_refused",
    ),
]
Bases = Callable[..., Path]
A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound adapter of rank 4."""
    folder = tmp_path_factory.mktemp("good")
    model = peft.get_peft_model(zoo.build("llama"), peft.LoraConfig(target_modules=["q_proj"], r=4))
    zoo.shake(model)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def spoilt(good: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies the sound adapter, with another configuration or other tensors."""

    def made(
        config: dict[str, Any] | None = None,
        change: Callable[[dict[str, Tensor]], None] | None = None,
        text: str | None = None,
    ) -> Path:
        folder = Path(shutil.copytree(good, tmp_path / "adapter"))
        said = json.loads((folder / "adapter_config.json").read_text())
        body = text if text is not None else json.dumps(said | (config or {}))
        (folder / "adapter_config.json").write_text(body)
        if change:
            with SafetensorsFile(folder / "adapter_model.safetensors") as file:
                tensors = {name: file.read(name) for name in file.tensors}
            change(tensors)
            write_safetensors(folder / "adapter_model.safetensors", tensors)
        return folder

    return made


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"lora_alpha": "8"}, "lora_alpha"),
        ({"lora_alpha": True}, "lora_alpha"),
        ({"lora_alpha": 1e38}, "1e\\+38"),
        ({"lora_alpha": 10**400}, "lora_alpha"),
        ({"alpha_pattern": {"q_proj": 1e30}}, "1e\\+30"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern"),
        ({"alpha_pattern": [1]}, "alpha_pattern"),
        ({"r": 0}, "r must be"),
        ({"r": -4}, "r must be"),
        ({"r": 2.5}, "r must be"),
        ({"r": 8}, "rank 8"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern"),
        ({"rank_pattern": {"q_proj": 2}}, "rank 2"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"use_dora": True}, "magnitude"),
        ({"target_parameters": "experts"}, "target_parameters"),
        ({"peft_type": None}, "peft_type"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_named(
    config: dict[str, Any], says: str, spoilt: Callable[..., Path]
) -> None:
    """A field that cannot be meant is an error with the field, its value and the file in it."""
    with pytest.raises(AdapterError, match=f"(?s){says}.*adapter"):
        read_adapter(spoilt(config))


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_not_json_are_refused(word: str, spoilt: Callable[..., Path]) -> None:
    """An alpha of NaN or infinity never reaches a product."""
    text = json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 0}).replace(": 0", f": {word}")
    with pytest.raises(MalformedFileError, match="adapter_config"):
        read_adapter(spoilt(text=text))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"peft_type": "TOMORROW"}, "TOMORROW"),
        ({"init_lora_weights": "tomorrow"}, "tomorrow"),
        ({"use_tomorrow": {"gamma": 3}}, "use_tomorrow"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "layer_replication"),
        ({"arrow_config": {"top_k": 1}}, "arrow_config"),
        ({"use_qalora": True}, "use_qalora"),
        ({"rank_pattern": {"(q|k_proj": 4}}, "rank_pattern|pattern"),
    ],
)
def test_what_is_not_understood_is_refused(
    config: dict[str, Any], says: str, spoilt: Callable[..., Path]
) -> None:
    """A kind, a field or a start that is not known is refused by name, never ignored."""
    with pytest.raises(UnsupportedAdapterError, match=says):
        read_adapter(spoilt(config))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop(B), "no B"),
        (lambda t: t.pop(A), "no A"),
        (lambda t: t.update({A: torch.ones(3, 32)}), "rank 4"),
        (lambda t: t.update({A: torch.ones(4, 8, 4)}), "base model"),  # as of a convolution
        (lambda t: t.update({B: torch.ones(4)}), "rank 4"),
        (lambda t: t.update({A.replace("lora_A", "lora_C"): torch.ones(2)}), "lora_C"),
        (lambda t: t.update({A.replace(".weight", ".default.weight"): torch.ones(2)}), "default"),
        (lambda t: t.update({"strange.weight": torch.ones(2)}), "strange"),
        (
            lambda t: t.update(
                {A.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(32)}
            ),
            "magnitude",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: Callable[[dict[str, Tensor]], None], says: str, spoilt: Callable[..., Path]
) -> None:
    """A factor that is missing, misshapen or unknown is an error with its key in it."""
    with pytest.raises(AdapterError, match=says):
        read_adapter(spoilt(change=change))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_factors_that_are_not_finite_are_named(value: float, spoilt: Callable[..., Path]) -> None:
    """NaN or infinity in a factor is an error with the key and the file in it."""
    tau = read_adapter(spoilt(change=lambda t: t[A].__setitem__((0, 0), value)))
    with pytest.raises(NonFiniteError, match=r"q_proj\.lora_A\.weight.*adapter"):
        tau.norm()


def test_integers_are_no_factors(spoilt: Callable[..., Path]) -> None:
    """A quantised factor is refused by name."""
    tau = read_adapter(spoilt(change=lambda t: t.update({A: torch.ones(4, 32, dtype=torch.int8)})))
    with pytest.raises(AdapterError, match="int8"):
        tau.norm()


def test_a_module_stored_whole_needs_the_base(spoilt: Callable[..., Path], bases: Bases) -> None:
    """A tensor stored whole is no change: without the base it is refused, with it counted."""
    key = "base_model.model.lm_head.weight"
    folder = spoilt({"base_model_name_or_path": "x"}, lambda t: t.update({key: torch.ones(64, 32)}))
    with pytest.raises(AdapterError, match=r"lm_head.*as base"):
        read_adapter(folder)
    assert "lm_head.weight" in read_adapter(folder, bases("llama"))


def test_a_new_head_counts_only_from_its_start(spoilt: Callable[..., Path], bases: Bases) -> None:
    """A head that the base does not have is counted from its start, or named and left out."""
    key = "base_model.model.score.weight"
    folder = spoilt(change=lambda t: t.update({key: torch.ones(2, 32)}))
    alone = read_adapter(folder, bases("llama"))
    assert "score.weight" not in alone
    assert any("score.weight" in w and "not in the change" in w for w in alone.origin.warnings)
    tau = read_adapter(folder, bases("llama"), initial={"score.weight": torch.zeros(2, 32)})
    assert tau.select(lambda name: name == "score.weight").norm() == 8


def test_a_head_with_added_tokens_is_compared_on_its_common_rows(
    spoilt: Callable[..., Path], bases: Bases
) -> None:
    """A vocabulary resized under an adapter counts on its common rows, and the vector says so."""
    key = "base_model.model.lm_head.weight"
    folder = spoilt(change=lambda t: t.update({key: torch.ones(70, 32)}))
    tau = read_adapter(folder, bases("llama"))
    assert tau.shape("lm_head.weight") == (64, 32)
    assert any("70 rows" in warning for warning in tau.origin.warnings)
    assert tau.norm() > 0
    with pytest.raises(ShapeMismatchError, match=r"lm_head|q_proj"):
        read_adapter(folder, bases("llama", hidden_size=16))


def test_another_base_is_refused(good: Path, bases: Bases) -> None:
    """A base without the adapted modules, or with other shapes, is an error that names one."""
    with pytest.raises(KeyMismatchError, match="q_proj"):
        read_adapter(good, bases("gpt2"))
    with pytest.raises(ShapeMismatchError, match="q_proj"):
        read_adapter(good, bases("llama", hidden_size=16))


def test_conv1d_and_linear_together_need_the_base(bases: Bases, tmp_path: Path) -> None:
    """PEFT keeps one fan_in_fan_out for all modules; where it says too little, the base decides."""
    config = peft.LoraConfig(target_modules=["c_attn", "lm_head"], modules_to_save=None)
    model = peft.get_peft_model(zoo.build("gpt2"), config)
    zoo.shake(model)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(AdapterError, match="fan_in_fan_out"):
        read_adapter(tmp_path)
    assert read_adapter(tmp_path, bases("gpt2")).norm() > 0


def test_missing_and_unsafe_files_are_refused(good: Path, bases: Bases, tmp_path: Path) -> None:
    """A path without an adapter, or with a pickle in place of one, is refused by its own error."""
    with pytest.raises(MissingPathError, match="nowhere"):
        read_adapter(tmp_path / "nowhere")
    with pytest.raises(MissingPathError, match=r"adapter_config\.json"):
        read_adapter(bases("llama"))
    with pytest.raises(MissingPathError, match="nowhere"):
        read_adapter(good, base=tmp_path / "nowhere")
    shutil.copy(good / "adapter_config.json", tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UnsafeFileError, match="pickle"):
        read_adapter(tmp_path)


def test_a_base_that_the_adapter_only_names_may_be_unreadable(
    spoilt: Callable[..., Path], tmp_path: Path
) -> None:
    """A broken folder in base_model_name_or_path is a warning: plain factors need no base."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"no")
    tau = read_adapter(spoilt({"base_model_name_or_path": str(tmp_path / "broken")}))
    assert tau.origin.base_digest is None
    assert any("could not be read" in warning for warning in tau.origin.warnings)


@pytest.mark.parametrize("options", [{"peft_type": "LOHA"}, {"kasa_config": {"beta": 1e-4}}])
def test_kinds_that_peft_computes_check_their_tensors(
    options: dict[str, Any], spoilt: Callable[..., Path], bases: Bases
) -> None:
    """A kind whose tensors do not fit its configuration is refused, whatever PEFT would do."""
    with pytest.raises(InputError, match="adapter"):
        read_adapter(spoilt(options), bases("llama"))


CHOSEN: list[tuple[dict[str, Any], bool]] = [
    ({"target_modules": ["q_proj"]}, True),
    ({"target_modules": ["self_attn.q_proj", "nothing"]}, True),
    ({"target_modules": "all-linear"}, True),
    ({"target_modules": r".*\.(q_proj|v_proj)"}, True),
    ({"target_modules": None}, True),
    ({"layers_to_transform": [0, 1]}, True),
    ({"layers_to_transform": [0, 1], "layers_pattern": "layers"}, True),
    ({"target_modules": ["v_proj"]}, False),
    ({"target_modules": ["proj"]}, False),
    ({"target_modules": r"model\.layers\.0\..*"}, False),
    ({"target_modules": r"q_proj"}, False),
    ({"exclude_modules": ["layers.1.self_attn.q_proj"]}, False),
    ({"exclude_modules": r".*layers\.1\..*"}, False),
    ({"layers_to_transform": 0}, False),
    ({"layers_to_transform": [1], "layers_pattern": ["layers"]}, False),
    ({"target_modules": None, "target_parameters": ["mlp.up_proj.weight"]}, False),
]


@pytest.mark.parametrize(("config", "loaded"), CHOSEN, ids=lambda c: str(c))
def test_factors_that_peft_would_not_load_are_refused(
    config: dict[str, Any], loaded: bool, spoilt: Callable[..., Path], bases: Bases
) -> None:
    """What the configuration does not choose is in the file and in no model that PEFT makes of it:
    it is refused where PEFT leaves any of it out, and nowhere else.
    """
    folder = spoilt(config)
    model: Any = None
    if "target_parameters" not in config:  # PEFT needs the factors of those
        with contextlib.suppress(ValueError):  # where it chooses nothing, or what takes no LoRA
            model = peft.PeftModel.from_pretrained(zoo.build("llama"), folder)
        names = () if model is None else dict(model.named_parameters())
        assert (sum("q_proj.lora_A" in name for name in names) == 2) == loaded
    if loaded:
        tau = read_adapter(folder, bases("llama"))
        zoo.assert_equal_change(
            tau, zoo.change(zoo.merged(model), zoo.weights_of(zoo.build("llama")))
        )
    else:
        with pytest.raises(AdapterError, match=r"does not choose|no factors"):
            read_adapter(folder, bases("llama"))


@pytest.mark.parametrize("kind", [peft.LoHaConfig, peft.IA3Config])
def test_other_kinds_hold_what_peft_would_load_too(kind: Any, bases: Bases, tmp_path: Path) -> None:
    """So it is with kinds that PEFT merges."""
    extra = {"feedforward_modules": []} if kind is peft.IA3Config else {"r": 2}
    model = peft.get_peft_model(zoo.build("llama"), kind(target_modules=["q_proj"], **extra))
    zoo.shake(model)
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"target_modules": ["k_proj"]}))
    with pytest.raises(AdapterError, match="does not choose"):
        read_adapter(tmp_path, bases("llama"))


def test_tensors_that_a_configuration_has_no_place_for_are_refused(
    spoilt: Callable[..., Path], bases: Bases
) -> None:
    """A bias of B without `lora_bias`, an embedding's factors on a linear layer and the other way
    round are in the file, and in no model that PEFT makes of it.
    """

    def biased(tensors: dict[str, Tensor]) -> None:
        tensors[B.replace("weight", "bias")] = torch.ones(tensors[B].shape[0])

    def as_embedding(tensors: dict[str, Tensor]) -> None:
        for key in (A, B):
            name = key.replace("lora_", "lora_embedding_").removesuffix(".weight")
            tensors[name] = tensors.pop(key)

    def as_linear(tensors: dict[str, Tensor]) -> None:
        for key in (A, B):
            moved = key.replace("layers.0.self_attn.q_proj", "embed_tokens")
            tensors[moved] = tensors.pop(key)

    for change, config, words in (
        (biased, {}, "lora_bias is false"),
        (as_embedding, {}, "of an embedding for .*q_proj', which is none"),
        (as_linear, {"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens', which is an"),
    ):
        folder = spoilt(config, change)
        with pytest.raises(AdapterError, match=words):
            read_adapter(folder, bases("llama"))
        shutil.rmtree(folder)
