"""LoRA in every option, saved and live, against PEFT's own merge in float64."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from safetensors.torch import save_file

from tests.sources import zoo
from wvmonitor.errors import (
    AdapterError,
    NonFiniteError,
    UnmeasurableModelError,
    UnsupportedAdapterError,
)
from wvmonitor.sources import LiveModel, base_digest, read_adapter, read_model
from wvmonitor.sources.adapters.folder import AdapterFolder
from wvmonitor.vectors import LowRankUpdate
from wvmonitor.vectors.update import to_dense

Q = ["q_proj", "down_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
# name -> (model, its options, LoraConfig)
STARTS_AT_BASE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "plain": ("llama", {}, {"target_modules": "all-linear", "r": 4}),
    "rslora": ("llama", {}, {"target_modules": Q, "r": 4, "use_rslora": True}),
    "patterns": (
        "llama",
        {},
        {
            "target_modules": ["q_proj", "k_proj"],
            "r": 4,
            "rank_pattern": {
                "layers.0.self_attn.q_proj": 2,
                r".*\.1\.self_attn\.(q|k)_proj": 3,
            },
            "alpha_pattern": {"k_proj": 32, "^model.layers.0.self_attn.q_proj": 5},
        },
    ),
    "conv1d": ("gpt2", {}, {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "conv1d and head": ("gpt2", {}, {"target_modules": ["c_attn", "lm_head"]}),
    "embeddings": ("llama", {}, {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "tied embeddings": ("llama", {"tied": True}, {"target_modules": ["embed_tokens", "q_proj"]}),
    "bias all": ("gpt2", {}, {"target_modules": ["c_attn"], "bias": "all"}),
    "bias lora_only": ("gpt2", {}, {"target_modules": ["c_attn"], "bias": "lora_only"}),
    "lora_bias": ("gpt2", {}, {"target_modules": ["c_attn"], "lora_bias": True}),
    "modules_to_save": (
        "llama",
        {},
        {"target_modules": Q, "modules_to_save": ["lm_head", "norm"]},
    ),
    "modules_to_save tied": (
        "llama",
        {"tied": True},
        {"target_modules": Q, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "trainable tokens": (
        "llama",
        {},
        {"target_modules": Q, "trainable_token_indices": {"embed_tokens": [1, 9, 5]}},
    ),
    "trainable tokens tied": (
        "llama",
        {"tied": True},
        {"target_modules": Q, "trainable_token_indices": [3, 1]},
    ),
    "fused experts": (
        "moe",
        {},
        {
            "target_modules": ["q_proj"],
            "target_parameters": EXPERTS,
            "r": 2,
            "use_rslora": True,
            "rank_pattern": {"experts.down_proj": 3},
            "alpha_pattern": {"mlp.experts.gate_up_proj": 3},
        },
    ),
    "2-D parameter": (
        "llama",
        {},
        {"target_modules": [], "target_parameters": ["self_attn.q_proj.weight"]},
    ),
    "dora": ("llama", {}, {"target_modules": Q, "use_dora": True, "use_rslora": True}),
    "dora conv1d": ("gpt2", {}, {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    "dora embeddings": ("llama", {}, {"target_modules": ["embed_tokens"], "use_dora": True}),
    "gaussian": ("llama", {}, {"target_modules": Q, "init_lora_weights": "gaussian"}),
    "orthogonal": ("llama", {}, {"target_modules": Q, "init_lora_weights": "orthogonal"}),
    "mica": ("llama", {}, {"target_modules": Q, "init_lora_weights": "mica", "r": 4}),
    "pissa": ("llama", {}, {"target_modules": Q, "init_lora_weights": "pissa"}),
    "pissa conv1d": ("gpt2", {}, {"target_modules": ["c_attn"], "init_lora_weights": "pissa"}),
    "olora": ("llama", {}, {"target_modules": Q, "init_lora_weights": "olora"}),
    "olora scaled": (
        "llama",
        {},
        {"target_modules": Q, "init_lora_weights": "olora", "r": 4, "alpha_pattern": {"q_proj": 7}},
    ),
    "pissa of a head": (
        "llama",
        {},
        {"target_modules": ["q_proj", "lm_head"], "init_lora_weights": "pissa", "lora_alpha": 3},
    ),
    "olora and an embedding": (
        "llama",
        {},
        {"target_modules": ["q_proj", "embed_tokens"], "init_lora_weights": "olora"},
    ),
    "bias all beside saved modules": (
        "gpt2",
        {},
        {"target_modules": ["c_fc"], "bias": "all", "modules_to_save": ["ln_1"]},
    ),
    "trainable tokens tied on purpose": (
        "llama",
        {"tied": True},
        {
            "target_modules": Q,
            "trainable_token_indices": {"embed_tokens": [3, 1]},
            "ensure_weight_tying": True,
        },
    ),
    "velora": ("llama", {}, {"target_modules": Q, "velora_config": VeloraConfig()}),
    "monteclora": ("llama", {}, {"target_modules": Q, "monteclora_config": MontecloraConfig()}),
    "bdlora": (
        "llama",
        {},
        {
            "target_modules": ["q_proj", "o_proj"],
            "use_bdlora": BdLoraConfig(
                target_modules_bd_a=["o_proj"], target_modules_bd_b=["q_proj"], nblocks=2
            ),
        },
    ),
}
# The start is not the base, or cannot be told from the file: the state at step 0 must be recorded.
NEEDS_THE_START: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "random start": ("llama", {}, {"target_modules": Q, "init_lora_weights": False}),
    "pissa_niter": ("llama", {}, {"target_modules": Q, "init_lora_weights": "pissa_niter_4"}),
    "dora random start": (
        "llama",
        {},
        {"target_modules": Q, "use_dora": True, "init_lora_weights": False},
    ),
    "dora pissa": (
        "llama",
        {},
        {"target_modules": Q, "use_dora": True, "init_lora_weights": "pissa", "r": 4},
    ),
    "dora olora": (
        "llama",
        {},
        {"target_modules": ["lm_head"], "use_dora": True, "init_lora_weights": "olora", "r": 4},
    ),
    "fused experts random start": (
        "moe",
        {},
        {"target_modules": [], "target_parameters": EXPERTS, "init_lora_weights": False},
    ),
    "kasa": ("llama", {}, {"target_modules": ["q_proj"], "kasa_config": KasaConfig()}),
}


class Run:
    """An adapter made on a base, moved, saved at both ends, and the dense oracle of its change."""

    def __init__(self, base: Path, model: torch.nn.Module, config: Any, folder: Path) -> None:
        self.base = base
        model.name_or_path = str(base)
        before = zoo.weights_of(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model = peft.get_peft_model(model, config)
            self.live = LiveModel(self.model)
            at_start = zoo.merged(self.model)
            self.initial = folder / "initial"
            self.model.save_pretrained(self.initial)
            zoo.shake(self.model)
            self.folder = folder / "checkpoint-7"
            self.model.save_pretrained(self.folder)
        moved = max(float((at_start[n] - w).abs().max()) for n, w in before.items())
        start = at_start if moved > 1e-4 else before
        after = zoo.merged(self.model)
        self.oracle = zoo.change({name: after[name] for name in start}, start)


@pytest.fixture
def run(bases: Callable[..., Path], tmp_path: Path) -> Callable[..., Run]:
    def made(kind: str, extra: dict[str, Any], options: dict[str, Any]) -> Run:
        model = zoo.build(kind, **extra)
        return Run(bases(kind, **extra), model, peft.LoraConfig(**options), tmp_path)

    return made


@pytest.mark.parametrize("name", STARTS_AT_BASE)
def test_saved_lora_is_what_peft_merges(name: str, run: Callable[..., Run]) -> None:
    """A saved adapter's task vector is what merging it would change, in every option."""
    made = run(*STARTS_AT_BASE[name])
    tau = read_adapter(made.folder)
    zoo.assert_equal_change(tau, made.oracle)
    assert tau.origin.step == 7
    assert tau.origin.method == ("dora" if "dora" in name else "lora")


@pytest.mark.parametrize("name", STARTS_AT_BASE | NEEDS_THE_START)
def test_live_lora_is_what_peft_merges(name: str, run: Callable[..., Run]) -> None:
    """A live adapter's task vector is what merging it would change since it was made."""
    made = run(*(STARTS_AT_BASE | NEEDS_THE_START)[name])
    zoo.assert_equal_change(made.live.task_vector(), made.oracle)


@pytest.mark.parametrize("name", NEEDS_THE_START)
def test_a_start_that_was_recorded_is_taken_off(name: str, run: Callable[..., Run]) -> None:
    """An adapter that did not start at its base is refused alone, and exact with its start."""
    made = run(*NEEDS_THE_START[name])
    with pytest.raises(AdapterError, match="give that folder as `initial`"):
        read_adapter(made.folder)
    zoo.assert_equal_change(read_adapter(made.folder, initial=made.initial), made.oracle)
    if name != "kasa":
        recorded = made.live.initial_state()
        zoo.assert_equal_change(read_adapter(made.folder, initial=recorded), made.oracle)


@pytest.mark.parametrize("name", ["random start", "pissa_niter", "bias all", "dora random start"])
def test_a_restored_start_gives_the_same_readings(name: str, run: Callable[..., Run]) -> None:
    """After a resume, the recorded start gives bit for bit the readings of the unbroken run."""
    made = run(*(STARTS_AT_BASE | NEEDS_THE_START)[name])
    resumed = LiveModel(made.model, initial=made.live.initial_state())
    before, after = made.live.task_vector().held(), resumed.task_vector().held()
    assert before.names() == after.names()
    assert (after - before).norm() == 0
    assert after.norm() == before.norm()


def test_a_model_caught_in_the_middle_is_refused_where_its_start_is_unknown(
    run: Callable[..., Run],
) -> None:
    """A model whose adapter started at noise has no task vector once training went on."""
    made = run(*NEEDS_THE_START["random start"])
    with pytest.raises(UnmeasurableModelError, match="cannot be told"):
        read_model(made.model)
    started_at_base = run(*STARTS_AT_BASE["plain"])
    zoo.assert_equal_change(read_model(started_at_base.model), started_at_base.oracle)


@pytest.mark.parametrize(
    "name",
    ["pissa", "pissa conv1d", "olora", "olora scaled", "pissa of a head", "olora and an embedding"],
)
def test_a_start_that_the_base_tells_needs_no_record(name: str, run: Callable[..., Run]) -> None:
    """PiSSA and OLoRA start at a function of the base: the base is enough."""
    kind, extra, options = STARTS_AT_BASE[name]
    made = run(kind, extra, options)
    zoo.assert_equal_change(read_model(made.model, base=made.base), made.oracle)
    with pytest.raises(UnmeasurableModelError, match=r"from its base: give base"):
        read_model(made.model)


@pytest.mark.parametrize("name", ["random start", "pissa_niter", "dora pissa"])
def test_a_start_that_the_base_does_not_tell_is_asked_for(
    name: str, run: Callable[..., Run]
) -> None:
    """With the base given, a start from noise is refused for what is missing."""
    made = run(*NEEDS_THE_START[name])
    with pytest.raises(UnmeasurableModelError, match="nor from its base: save the adapter before"):
        read_model(made.model, base=made.base)


def test_peft_converted_pissa_is_ordinary_lora(bases: Callable[..., Path], tmp_path: Path) -> None:
    """What PEFT saves with path_initial_model_for_weight_conversion needs no start."""
    model = zoo.build("llama")
    model.name_or_path = str(bases("llama"))
    before = zoo.weights_of(model)
    config = peft.LoraConfig(target_modules=Q, r=4, init_lora_weights="pissa")
    pissa = peft.get_peft_model(model, config)
    pissa.peft_config["default"].init_lora_weights = True
    pissa.save_pretrained(tmp_path / "start")
    pissa.peft_config["default"].init_lora_weights = "pissa"
    zoo.shake(pissa)
    oracle = zoo.change(zoo.merged(pissa), before)
    pissa.save_pretrained(
        tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    zoo.assert_equal_change(read_adapter(tmp_path / "converted"), oracle)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_of_low_precision_lose_nothing_more(
    dtype: torch.dtype, bases: Callable[..., Path], tmp_path: Path
) -> None:
    """bfloat16 factors are read exactly; nothing is merged in bfloat16 on the way."""
    model = zoo.build("llama").to(dtype)
    before = zoo.weights_of(model)
    lora = peft.get_peft_model(
        model, peft.LoraConfig(target_modules=Q), autocast_adapter_dtype=False
    )
    live = LiveModel(lora)
    zoo.shake(lora, size=1e-3)
    oracle = zoo.change(zoo.merged(lora), before)
    lora.save_pretrained(tmp_path)
    zoo.assert_equal_change(read_adapter(tmp_path, base=bases("llama")), oracle)
    zoo.assert_equal_change(live.task_vector(), oracle)
    said = any("float32 masters" in warning for warning in live.task_vector().origin.warnings)
    assert said == (dtype == torch.bfloat16)


def test_active_adapters_add_up() -> None:
    """Several active adapters count together; one that is not active counts not at all."""
    model = zoo.build("llama")
    before = zoo.weights_of(model)
    lora = peft.get_peft_model(model, peft.LoraConfig(target_modules=Q, r=4))
    lora.add_adapter("second", peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
    lora.add_adapter("idle", peft.LoraConfig(target_modules=["o_proj"], init_lora_weights=False))
    live = LiveModel(lora)
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    one = zoo.change(zoo.merged(lora), before)
    zoo.assert_equal_change(live.task_vector(), one)
    lora.base_model.set_adapter(["default", "second"])
    zoo.assert_equal_change(live.task_vector(), zoo.change(zoo.merged(lora), before))


def test_two_doras_are_what_peft_merges() -> None:
    """Several active DoRA adapters, whose changes do not add up, are merged as PEFT does it."""
    model = zoo.build("llama")
    before = zoo.weights_of(model)
    config = peft.LoraConfig(target_modules=["q_proj"], r=4, use_dora=True)
    lora = peft.get_peft_model(model, config)
    lora.add_adapter("second", config)
    lora.base_model.set_adapter(["default", "second"])
    live = LiveModel(lora)
    zoo.shake(lora, size=0.02)
    zoo.assert_equal_change(live.task_vector(), zoo.change(zoo.merged(lora), before))


def test_a_tied_adapter_counts_once(tmp_path: Path) -> None:
    """With ensure_weight_tying, head and embedding share one update, and it counts once."""
    model = zoo.build("llama", tied=True)
    model.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(target_modules=["embed_tokens", "lm_head"], ensure_weight_tying=True)
    lora = peft.get_peft_model(model, config)
    live = LiveModel(lora)
    zoo.shake(lora)
    layer = lora.base_model.model.model.embed_tokens
    a, b = layer.lora_embedding_A["default"], layer.lora_embedding_B["default"]
    oracle = {"model.embed_tokens.weight": (b.double() @ a.double()).detach().T}
    lora.save_pretrained(tmp_path / "adapter")
    zoo.assert_equal_change(live.task_vector(), oracle)
    zoo.assert_equal_change(read_adapter(tmp_path / "adapter", tmp_path / "base"), oracle)


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_trained_biases_are_not_taken_for_the_base_s(
    bias: str, bases: Callable[..., Path], tmp_path: Path
) -> None:
    """Without a base an adapter that trained biases is refused, and never read without them."""
    model = zoo.build("llama", attention_bias=True)
    lora = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], bias=bias))
    lora.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=r"\.bias' whole.*give the folder"):
        read_adapter(tmp_path)
    read_adapter(tmp_path, base=bases("llama", attention_bias=True))


def test_replicated_layers_are_refused_live_and_saved(tmp_path: Path) -> None:
    """layer_replication trains more layers than the base has: refused, not read as one of them."""
    config = peft.LoraConfig(target_modules=["q_proj"], layer_replication=[[0, 2], [0, 2]])
    lora = peft.get_peft_model(zoo.build("llama"), config)
    with pytest.raises(UnsupportedAdapterError, match="layer_replication"):
        LiveModel(lora)
    lora.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedAdapterError, match="layer_replication"):
        read_adapter(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_one_embedding_retrained_whole_and_by_rows_is_refused(
    bases: Callable[..., Path], tmp_path: Path
) -> None:
    """modules_to_save and trainable_token_indices on one embedding: a save that lacks a part."""
    config = peft.LoraConfig(
        target_modules=["q_proj"],
        modules_to_save=["embed_tokens"],
        trainable_token_indices=[1, 3],
    )
    lora = peft.get_peft_model(zoo.build("llama"), config)
    with pytest.raises(UnmeasurableModelError, match="embed_tokens"):
        LiveModel(lora)
    lora.save_pretrained(tmp_path / "initial")
    zoo.shake(lora)
    lora.save_pretrained(tmp_path / "end")
    for initial in (None, tmp_path / "initial"):
        with pytest.raises(AdapterError, match=r"embed_tokens.*at once"):
            read_adapter(tmp_path / "end", bases("llama"), initial=initial)


def test_a_small_step_from_a_large_start_keeps_its_digits(
    bases: Callable[..., Path], tmp_path: Path
) -> None:
    """DoRA's change since a random start is what two much larger changes leave of each other."""
    config = peft.LoraConfig(
        target_modules=["embed_tokens", "q_proj"], use_dora=True, init_lora_weights=False
    )
    lora = peft.get_peft_model(zoo.build("llama"), config)
    live = LiveModel(lora)
    start = zoo.merged(lora)
    zoo.shake(lora, size=1e-3)
    lora.save_pretrained(tmp_path)
    oracle = zoo.change(zoo.merged(lora), start)
    zoo.assert_equal_change(live.task_vector(), oracle)
    saved = read_adapter(tmp_path, bases("llama"), initial=live.initial_state())
    zoo.assert_equal_change(saved, oracle)


@pytest.mark.parametrize("start", ["Gaussian", "OLoRA", "MiCA"])
def test_starts_are_known_in_any_case(
    start: str, bases: Callable[..., Path], tmp_path: Path
) -> None:
    """PEFT takes the names of starts in capitals too: none is refused, or told from its base."""
    model = zoo.build("llama")
    before = zoo.weights_of(model)
    options: Any = {"target_modules": ["q_proj"], "r": 4, "init_lora_weights": start}
    lora = peft.get_peft_model(model, peft.LoraConfig(**options))
    live = LiveModel(lora)
    assert (live.base_digest is None) == (start == "OLoRA")
    zoo.shake(lora)
    lora.save_pretrained(tmp_path)
    oracle = zoo.change(zoo.merged(lora), before)
    zoo.assert_equal_change(live.task_vector(), oracle)
    zoo.assert_equal_change(read_adapter(tmp_path, bases("llama")), oracle)


@pytest.mark.parametrize("start", ["loftq", "LoftQ"])
def test_dora_on_loftq_is_refused(start: str, tmp_path: Path) -> None:
    """DoRA depends on the rounded base that LoftQ made, which no file holds."""
    lora = peft.get_peft_model(
        zoo.build("llama"), peft.LoraConfig(target_modules=["q_proj"], use_dora=True)
    )
    lora.peft_config["default"].init_lora_weights = start
    lora.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedAdapterError, match="LoftQ"):
        read_adapter(tmp_path)


def test_factors_are_read_without_the_base(bases: Callable[..., Path], tmp_path: Path) -> None:
    """Plain LoRA needs no base, stays low-rank, and then says only its base's name."""
    lora = peft.get_peft_model(zoo.build("llama"), peft.LoraConfig(target_modules=Q, r=4))
    lora.peft_config["default"].base_model_name_or_path = "somebody/some-model"
    zoo.shake(lora)
    lora.save_pretrained(tmp_path)
    alone, checked = read_adapter(tmp_path), read_adapter(tmp_path, base=bases("llama"))
    assert alone.origin.base_digest is None
    assert alone.origin.base_name == "somebody/some-model"
    assert alone.origin.rank == 4
    assert checked.origin.base_digest == base_digest(bases("llama"))
    assert all(isinstance(update, LowRankUpdate) for _, update in checked.updates())
    assert (alone - checked).norm() <= 1e-6 * alone.norm()


def test_no_expert_is_left_out_where_no_base_says_that_they_are_fused(tmp_path: Path) -> None:
    """Adapters of single experts all count, beside those of other modules, without the base."""
    generator = torch.Generator().manual_seed(3)
    names = [f"mlp.experts.{i}.{kind}_proj" for i in range(3) for kind in ("up", "down")]
    tensors, expected = {}, {}
    for name in (*names, "self_attn.q_proj"):
        a, b = (torch.randn(shape, generator=generator) for shape in ((2, 6), (4, 2)))
        path = f"model.layers.0.{name}"
        tensors[f"base_model.model.{path}.lora_A.weight"] = a
        tensors[f"base_model.model.{path}.lora_B.weight"] = b
        expected[f"{path}.weight"] = 2 * b.double() @ a.double()
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    chosen = [*names, "q_proj"]
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": chosen}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    tau = read_adapter(tmp_path)
    assert sorted(tau.names()) == sorted(expected)
    for name, update in tau.updates():
        torch.testing.assert_close(to_dense(update).double(), expected[name], rtol=1e-6, atol=1e-6)


def test_factors_that_are_read_together_are_the_file_s_own(tmp_path: Path) -> None:
    """Small factors come many at a time: in any order, twice, and beside one that is NaN, each is
    what the file holds, and what is not finite is named.
    """
    generator = torch.Generator().manual_seed(5)
    shapes = {"lora_A": (2, 6), "lora_B": (4, 2)}
    tensors = {
        f"base_model.model.model.layers.{i}.self_attn.q_proj.{role}.weight": torch.randn(
            shape, generator=generator
        ).to(torch.bfloat16 if i == 3 else torch.float32)
        for i in range(6)
        for role, shape in shapes.items()
    }
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    folder = AdapterFolder(tmp_path)
    names = sorted(folder.keys())
    for name in (*names, *names[::-1], *names[::2], *names):
        expected = tensors[f"base_model.model.{name}"]
        assert torch.equal(folder.read(name), expected)
        assert folder.read(name).dtype == expected.dtype
        assert torch.equal(folder.factor(name).float(), expected.float())
    broken = "base_model.model.model.layers.2.self_attn.q_proj.lora_B.weight"
    tensors[broken] *= math.nan
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    tau = read_adapter(tmp_path)
    with pytest.raises(NonFiniteError, match=r"layers\.2\.self_attn\.q_proj\.lora_B"):
        list(tau.updates())
