"""Every kind of PEFT adapter, saved and live, against PEFT's own merge in float64."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from tests.sources import zoo
from wvmonitor.errors import AdapterError, UnsupportedAdapterError
from wvmonitor.sources import LiveModel, read_adapter
from wvmonitor.sources.adapters import LOADERS, REFUSED

T = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
# model -> what it is built as
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "biased": ("llama", {"attention_bias": True}),
}
TIED = "model.embed_tokens.weight"
# PEFT type -> (model, configuration)
STARTS_AT_BASE: dict[str, tuple[str, dict[str, Any]]] = {
    "ADALORA": (
        "llama",
        {**T, "init_r": 4, "target_r": 2, "total_step": 10, "tinit": 1, "tfinal": 1},
    ),
    "BEFT": ("biased", {"target_modules": ["q_proj", "v_proj"]}),
    "BOFT": ("llama", {**T, "boft_block_size": 4}),
    "DEFT": ("llama", T),
    "DELORA": ("llama", {**T, "r": 4}),
    "FROD": ("llama", T),
    "GLORA": ("llama", {**T, "r": 4}),
    "GRALORA": ("llama", {**T, "r": 4, "gralora_k": 2}),
    "HIRA": ("llama", {**T, "r": 4}),
    "HRA": ("llama", {**T, "r": 4}),
    "IA3": ("llama", {**T, "feedforward_modules": ["down_proj"]}),
    "LN_TUNING": ("llama", {"target_modules": ["input_layernorm", "norm"]}),
    "LOHA": ("llama", {**T, "r": 4, "rank_pattern": {"layers.0.self_attn.q_proj": 2}}),
    "LOKR": ("llama", {**T, "r": 4, "alpha_pattern": {"v_proj": 3}}),
    "MISS": ("llama", {**T, "r": 4}),
    "OFT": ("llama", {**T, "oft_block_size": 8}),
    "OSF": ("llama", T),
    "PEANUT": ("llama", T),
    "PSOFT": ("llama", {**T, "r": 4}),
    "PVERA": ("llama", {**T, "r": 4}),
    "RANDLORA": ("llama", {**T, "r": 4}),
    "ROAD": ("llama", {**T, "group_size": 16}),
    "SHIRA": ("llama", {**T, "r": 4}),
    "SUPERTUNING": ("llama", T),
    "TINYLORA": ("llama", T),
    "TRAINABLE_TOKENS": ("llama", {"token_indices": [1, 5, 2], "target_modules": ["embed_tokens"]}),
    "VERA": ("llama", {**T, "r": 4}),
    "WAVEFT": ("llama", {**T, "n_frequency": 20}),
}
NEEDS_THE_START: dict[str, tuple[str, dict[str, Any]]] = {
    "C3A": ("llama", {**T, "block_size": 8}),
    "FOURIERFT": ("llama", {**T, "n_frequency": 20}),
    "UNILORA": ("llama", T),
    "VBLORA": ("llama", {**T, "r": 4, "num_vectors": 16, "vector_length": 8}),
}
# scikit-learn is not among the dependencies; test_adamss_where_scikit_learn_is runs where it is
NOT_HERE = {"ADAMSS"}


@pytest.mark.parametrize("kind", STARTS_AT_BASE | NEEDS_THE_START)
@pytest.mark.filterwarnings("ignore")
def test_every_kind_is_what_peft_merges(
    kind: str, bases: Callable[..., Path], tmp_path: Path
) -> None:
    """Live and saved, an adapter's task vector is what merging it changes since its start."""
    architecture, options = (STARTS_AT_BASE | NEEDS_THE_START)[kind]
    _check(kind, architecture, options, bases, tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_adamss_where_scikit_learn_is(bases: Callable[..., Path], tmp_path: Path) -> None:
    """AdaMSS, which PEFT makes only with scikit-learn, is what merging it changes."""
    pytest.importorskip("sklearn")
    _check("ADAMSS", "llama", T, bases, tmp_path)


def _check(kind: str, name: str, options: Any, bases: Callable[..., Path], folder: Path) -> None:
    architecture, extra = MODELS[name]
    model = zoo.build(architecture, **extra)
    model.name_or_path = str(bases(architecture, **extra))
    before = zoo.weights_of(model)
    config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)](**options)
    adapted = peft.get_peft_model(model, config)
    live = LiveModel(adapted)
    start = zoo.merged(adapted) if kind in NEEDS_THE_START else before
    adapted.save_pretrained(folder / "initial")
    zoo.shake(adapted)
    adapted.save_pretrained(folder / "end")
    oracle = zoo.change(zoo.merged(adapted), start)
    zoo.assert_equal_change(live.task_vector(), oracle)
    assert live.task_vector().origin.method == kind.lower()
    if kind in NEEDS_THE_START:
        with pytest.raises(AdapterError, match="did not start at the base"):
            read_adapter(folder / "end")
        tau = read_adapter(folder / "end", initial=folder / "initial")
    else:
        tau = read_adapter(folder / "end")
    zoo.assert_equal_change(tau, oracle)
    assert tau.origin.method == kind.lower()


# what was read wrongly, or refused, for reasons that are no fault of the adapter's
ON_TIED_WEIGHTS: dict[str, dict[str, Any]] = {
    "TRAINABLE_TOKENS": {"token_indices": [1, 5, 2], "target_modules": ["embed_tokens"]},
    "LOHA": {"target_modules": ["q_proj", "lm_head"], "r": 4},
    "OFT": {
        "target_modules": ["q_proj"],
        "oft_block_size": 8,
        "modules_to_save": ["lm_head", "norm"],
    },
}


@pytest.mark.parametrize("kind", ON_TIED_WEIGHTS)
@pytest.mark.filterwarnings("ignore")
def test_tied_weights_are_counted_once(
    kind: str, bases: Callable[..., Path], tmp_path: Path
) -> None:
    """Where head and embedding are one tensor, its change counts once, live and saved."""
    model = zoo.build("llama", tied=True)
    model.name_or_path = str(bases("llama", tied=True))
    before = zoo.weights_of(model)
    config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)](**ON_TIED_WEIGHTS[kind])
    adapted = peft.get_peft_model(model, config)
    live = LiveModel(adapted)
    zoo.shake(adapted)
    adapted.save_pretrained(tmp_path)
    after = zoo.merged(adapted)
    oracle = {name: value - before.get(name, before[TIED]) for name, value in after.items()}
    zoo.assert_equal_change(live.task_vector(), oracle)
    zoo.assert_equal_change(read_adapter(tmp_path), oracle)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {"target_modules": ["q_proj", "lm_head"], "r": 4}),
        ("gpt2", {"target_modules": ["c_fc"], "modules_to_save": ["ln_1"]}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_stored_whole_hides_no_change(
    architecture: str, options: Any, bases: Callable[..., Path], tmp_path: Path
) -> None:
    """The base's own head, stored beside its adapter, does not stand for the change; nor do the
    biases of modules that are saved whole, which `bias="all"` stores once more.
    """
    model = zoo.build(architecture)
    model.name_or_path = str(bases(architecture))
    before = zoo.weights_of(model)
    if architecture == "llama":
        config: Any = peft.LoHaConfig(**options)
    else:
        config = peft.GraloraConfig(**options, r=4, gralora_k=2, bias="all")
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "initial")
    zoo.shake(adapted)
    adapted.save_pretrained(tmp_path / "end")
    oracle = zoo.change(zoo.merged(adapted), before)
    zoo.assert_equal_change(read_adapter(tmp_path / "end"), oracle)
    started = read_adapter(tmp_path / "end", initial=tmp_path / "initial")
    zoo.assert_equal_change(started, oracle)


@pytest.mark.filterwarnings("ignore")
def test_a_bias_that_is_trained_and_adapted_is_refused(
    bases: Callable[..., Path], tmp_path: Path
) -> None:
    """GLoRA changes biases itself: one that `bias="all"` trains too is never read by halves."""
    config = peft.GloraConfig(target_modules=["q_proj"], r=4, bias="all")
    adapted = peft.get_peft_model(zoo.build("llama", attention_bias=True), config)
    zoo.shake(adapted)
    adapted.save_pretrained(tmp_path)
    tau = read_adapter(tmp_path, bases("llama", attention_bias=True))
    with pytest.raises(UnsupportedAdapterError, match=r"q_proj\.bias.*as a whole as well"):
        tau.norm()


@pytest.mark.parametrize("kind", ["LORA", "LOHA", "OSF"])
def test_an_adapter_without_tensors_is_refused(
    kind: str, bases: Callable[..., Path], tmp_path: Path
) -> None:
    """A save that lost its tensors, as sharded runs can make it, is no change of zero."""
    from wvmonitor.files.documents import write_json
    from wvmonitor.files.safetensors import write_safetensors

    write_json(tmp_path / "adapter_config.json", {"peft_type": kind, "target_modules": ["q_proj"]})
    write_safetensors(tmp_path / "adapter_model.safetensors", {})
    with pytest.raises(AdapterError, match="holds no tensor"):
        read_adapter(tmp_path, bases("llama"))


@pytest.mark.filterwarnings("ignore")
def test_what_is_saved_whole_is_not_chosen_too(bases: Callable[..., Path], tmp_path: Path) -> None:
    """Uni-LoRA's file names no modules: one that is saved whole is none of those it adapts."""
    model = zoo.build("llama")
    config = peft.UniLoraConfig(target_modules=["q_proj", "lm_head"], modules_to_save=["lm_head"])
    adapted = peft.get_peft_model(model, config)
    start = zoo.merged(adapted)
    adapted.save_pretrained(tmp_path / "initial")
    zoo.shake(adapted)
    adapted.save_pretrained(tmp_path / "end")
    oracle = zoo.change(zoo.merged(adapted), start)
    tau = read_adapter(tmp_path / "end", bases("llama"), initial=tmp_path / "initial")
    zoo.assert_equal_change(tau, oracle)


@pytest.mark.filterwarnings("ignore")
def test_a_layer_numbered_zero_is_a_choice(bases: Callable[..., Path], tmp_path: Path) -> None:
    """`layers_to_transform=0` is not read as no choice of layers, for a file that names none."""
    config = peft.UniLoraConfig(target_modules=["q_proj"], layers_to_transform=0)
    model = peft.get_peft_model(zoo.build("llama"), config)
    model.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="layers_to_transform"):
        read_adapter(tmp_path, bases("llama"), initial=tmp_path)


def test_every_kind_that_peft_has_is_read_or_refused() -> None:
    """No kind of this PEFT is unknown: each is read and tested, or refused with its reason."""
    kinds = {kind.value for kind in peft.PeftType}
    assert set(LOADERS) | set(REFUSED) == kinds
    assert not set(LOADERS) & set(REFUSED)
    assert set(STARTS_AT_BASE) | set(NEEDS_THE_START) | NOT_HERE | {"LORA"} == set(LOADERS)


@pytest.mark.parametrize("kind", REFUSED)
def test_kinds_without_a_task_vector_are_refused(kind: str, tmp_path: Path) -> None:
    """An adapter that changes no weight is refused by name, with the reason."""
    from wvmonitor.files.documents import write_json
    from wvmonitor.files.safetensors import write_safetensors

    write_json(tmp_path / "adapter_config.json", {"peft_type": kind})
    write_safetensors(tmp_path / "adapter_model.safetensors", {})
    with pytest.raises(UnsupportedAdapterError, match=kind):
        read_adapter(tmp_path)


def test_a_live_prompt_is_refused() -> None:
    """A live model under prompt tuning is refused when it is first looked at."""
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(zoo.build("llama"), config)
    with pytest.raises(UnsupportedAdapterError, match="PROMPT_TUNING"):
        LiveModel(model)


@pytest.mark.filterwarnings("ignore")
def test_adalora_after_its_ranks_were_cut(bases: Callable[..., Path], tmp_path: Path) -> None:
    """AdaLoRA in mid-schedule, its ranks masked and its save cut down, is read both ways."""
    model = zoo.build("llama")
    model.name_or_path = str(bases("llama"))
    before = zoo.weights_of(model)
    schedule = {"init_r": 6, "target_r": 2, "total_step": 8, "tinit": 1, "tfinal": 2, "deltaT": 1}
    config = peft.AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **schedule)
    adapted = peft.get_peft_model(model, config)
    live = LiveModel(adapted)
    optimizer = torch.optim.Adam((p for p in adapted.parameters() if p.requires_grad), lr=1e-2)
    tokens = torch.arange(32).reshape(2, 16)
    for step in range(8):
        adapted(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        adapted.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    adapted.save_pretrained(tmp_path)
    oracle = zoo.change(zoo.merged(adapted), before)
    zoo.assert_equal_change(live.task_vector(), oracle)
    tau = read_adapter(tmp_path)
    zoo.assert_equal_change(tau, oracle)
    assert tau.origin.rank == 6


def test_looking_at_a_model_leaves_its_randomness_alone() -> None:
    """Making a LiveModel draws no random number that the training would have drawn."""
    config = peft.LoHaConfig(target_modules=["q_proj"], r=2)
    model = peft.get_peft_model(zoo.build("llama"), config)
    torch.manual_seed(3)
    undisturbed = torch.rand(4)
    torch.manual_seed(3)
    LiveModel(model).task_vector().norm()
    assert torch.equal(torch.rand(4), undisturbed)
