"""Live models under full fine-tuning, and what wraps them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from tests.sources import zoo
from wvmonitor.errors import (
    InputError,
    KeyMismatchError,
    ShapeMismatchError,
    UnmeasurableModelError,
)
from wvmonitor.sources import (
    LiveModel,
    base_digest,
    digest_cache,
    identity,
    live_frozen,
    read_checkpoints,
    read_model,
)
from wvmonitor.sources.folder import ModelFolder
from wvmonitor.vectors import LowRankUpdate

Bases = Callable[..., Path]
KINDS = [("llama", {}), ("llama", {"tied": True}), ("gpt2", {}), ("moe", {})]


@pytest.mark.parametrize("keep", ["files", "memory"])
@pytest.mark.parametrize(("kind", "extra"), KINDS)
def test_full_fine_tuning_is_the_difference_from_the_base(
    keep: Any, kind: str, extra: dict[str, Any], bases: Bases
) -> None:
    """θ_0 streamed from files and θ_0 kept in memory give the change of every parameter, once."""
    base = bases(kind, **extra)
    model = zoo.build(kind, **extra)
    before = zoo.weights_of(model)
    live = LiveModel(model, base, keep_base=keep)
    assert bool(live.initial_state()) == (keep == "memory")
    assert live.task_vector().norm() == 0
    zoo.shake(model, size=1e-3)
    tau = live.task_vector(step=12)
    zoo.assert_equal_change(tau, zoo.change(zoo.weights_of(model), before))
    assert set(tau.names()) == set(before)
    assert (tau.origin.method, tau.origin.step) == ("full", 12)
    assert tau.origin.base_digest == base_digest(base)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "moe"])
def test_live_and_saved_agree(kind: str, bases: Bases, tmp_path: Path) -> None:
    """The live vector and that of the checkpoint saved at the same step are one, layouts too."""
    model = zoo.build(kind)
    live = LiveModel(model, bases(kind))
    zoo.shake(model, size=1e-3)
    model.save_pretrained(tmp_path)
    saved, now = read_checkpoints(bases(kind), tmp_path), live.task_vector()
    assert set(saved.names()) == set(now.names())
    assert (saved - now).norm() <= 1e-7 * saved.norm()


def test_a_vector_is_of_the_moment_it_is_read(bases: Bases) -> None:
    """The vector follows the training; `held` keeps what it was."""
    model = zoo.build("llama")
    live = LiveModel(model)
    zoo.shake(model, size=1e-3)
    tau = live.task_vector()
    held = tau.held()
    norm = tau.norm()
    zoo.shake(model, size=1e-3, seed=2)
    assert held.norm() == norm
    assert tau.norm() > norm * 1.2


def test_lora_factors_are_not_copied() -> None:
    """A live LoRA's vector reads the training's own memory, scaled in the smaller factor."""
    config = peft.LoraConfig(target_modules=["q_proj"], r=4, lora_alpha=4)
    model = peft.get_peft_model(zoo.build("llama"), config)
    zoo.shake(model)
    update = LiveModel(model).task_vector().update("model.layers.0.self_attn.q_proj.weight")
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert isinstance(update, LowRankUpdate)
    assert update.left.data_ptr() == layer.lora_B["default"].weight.data_ptr()
    assert update.right.data_ptr() == layer.lora_A["default"].weight.data_ptr()


def test_frozen_parameters_are_left_out() -> None:
    """Only what can change is covered; what is unfrozen later and unnoticed is said, not hidden."""
    model = zoo.build("llama")
    model.requires_grad_(False)
    model.model.layers[1].requires_grad_(True)
    live = LiveModel(model)
    assert all(name.startswith("model.layers.1.") for name in live.task_vector().names())
    assert not live.incomplete
    model.model.layers[0].requires_grad_(True)
    later = live.task_vector()
    assert live.incomplete
    assert all(name.startswith("model.layers.1.") for name in later.names())
    assert any("model.layers.0." in w and "base=FOLDER" in w for w in later.origin.warnings)


def test_what_was_trained_and_frozen_again_still_counts(bases: Bases) -> None:
    """With the base at hand, layers that are trained in turn all count."""
    model = zoo.build("llama")
    before = zoo.weights_of(model)
    model.requires_grad_(False)
    live = LiveModel(model, bases("llama"))
    for layer in model.model.layers:
        layer.requires_grad_(True)
        live.task_vector()
        zoo.shake(model, size=1e-3)
        layer.requires_grad_(False)
    zoo.assert_equal_change(live.task_vector(), zoo.change(zoo.weights_of(model), before))


def test_a_resume_never_takes_the_weights_at_hand(bases: Bases) -> None:
    """After a restart, the base's files or the recorded start are θ_0, bit for bit."""
    model = zoo.build("llama")
    first = LiveModel(model)
    zoo.shake(model, size=1e-3)
    unbroken = first.task_vector().held()
    by_files = LiveModel(model, bases("llama")).task_vector()
    restored = LiveModel(model, initial=first.initial_state())
    assert (by_files - unbroken).norm() == 0
    assert (restored.task_vector() - unbroken).norm() == 0
    assert restored.base_digest == first.base_digest == base_digest(bases("llama"))
    with pytest.raises(KeyMismatchError, match="recorded start"):
        LiveModel(model, initial={})


def test_a_parameter_unfrozen_late_is_named_at_every_reading() -> None:
    """Whose start was not kept is named each time, and the rest is measured."""
    model = zoo.build("llama")
    embedding = model.get_input_embeddings().weight.requires_grad_(False)
    live = LiveModel(model)
    whole = live.task_vector()
    embedding.requires_grad_(True)
    for _ in range(2):
        tau = live.task_vector()
        assert tau.names() == whole.names()
        assert sum("embed_tokens" in warning for warning in tau.origin.warnings) == 1


def test_a_parameter_noticed_before_its_first_step_is_exact() -> None:
    """`notice` keeps the start of what was unfrozen since: from then on it counts."""
    model = zoo.build("llama")
    model.get_input_embeddings().weight.requires_grad_(False)
    live = LiveModel(model)
    before = zoo.weights_of(model)
    model.get_input_embeddings().weight.requires_grad_(True)
    live.notice()
    zoo.shake(model, size=1e-3)
    zoo.assert_equal_change(live.task_vector(), zoo.change(zoo.weights_of(model), before))
    assert not live.incomplete


def test_a_fine_tuned_model_needs_its_base(bases: Bases) -> None:
    """Nothing in a fully fine-tuned model says where it started."""
    model = zoo.build("llama")
    with pytest.raises(UnmeasurableModelError, match="give base"):
        read_model(model)
    before = zoo.weights_of(model)
    zoo.shake(model, size=1e-3)
    tau = read_model(model, bases("llama"))
    zoo.assert_equal_change(tau, zoo.change(zoo.weights_of(model), before))
    with pytest.raises(InputError, match="give base"):
        LiveModel(model, keep_base="files")


def test_low_precision_training_is_said_and_starts_at_zero(bases: Bases) -> None:
    """A bfloat16 run from a float32 base starts at zero, and the reader is warned."""
    model = zoo.build("llama").to(torch.bfloat16)
    tau = LiveModel(model, bases("llama")).task_vector()
    assert tau.norm() == 0
    assert any("bfloat16" in warning for warning in tau.origin.warnings)
    assert not LiveModel(zoo.build("llama")).task_vector().origin.warnings


def test_a_resized_vocabulary_is_compared_on_its_common_rows(bases: Bases) -> None:
    """Tokens added before training are left out, and the vector says so."""
    model = zoo.build("llama")
    before = zoo.weights_of(model)
    model.resize_token_embeddings(70)
    live = LiveModel(model, bases("llama"))
    zoo.shake(model, size=1e-3)
    after = {n: w[:64] if w.shape[0] == 70 else w for n, w in zoo.weights_of(model).items()}
    zoo.assert_equal_change(live.task_vector(), zoo.change(after, before))
    assert any("70 rows" in warning for warning in live.task_vector().origin.warnings)


def test_another_base_is_refused(bases: Bases) -> None:
    """A base of another shape or architecture is an error that names the parameter."""
    model = zoo.build("llama", hidden_size=16)
    with pytest.raises(ShapeMismatchError, match="embed_tokens"):
        LiveModel(model, bases("llama"))
    with pytest.raises(KeyMismatchError, match="embed_tokens"):
        LiveModel(model, bases("gpt2"))


def test_torch_compile_does_not_change_names(bases: Bases) -> None:
    """A compiled model, or a compiled layer in it, has the names of the model."""
    model = zoo.build("llama")
    plain = LiveModel(model, bases("llama")).task_vector().names()
    compiled = torch.compile(model)
    assert LiveModel(compiled, bases("llama")).task_vector().names() == plain
    model.model.layers[0] = torch.compile(model.model.layers[0])
    assert LiveModel(model, bases("llama")).task_vector().names() == plain


def test_data_parallel_does_not_change_names(tmp_path: Path, bases: Bases) -> None:
    """A model inside DDP, compiled or not, has the names of the model."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        model = zoo.build("llama")
        plain = LiveModel(model, bases("llama")).task_vector().names()
        parallel = nn.parallel.DistributedDataParallel(model)
        for wrapped in (parallel, torch.compile(parallel)):
            assert LiveModel(wrapped, bases("llama")).task_vector().names() == plain
            assert base_digest(wrapped) == base_digest(bases("llama"))
    finally:
        torch.distributed.destroy_process_group()


def test_what_is_not_here_is_refused() -> None:
    """Parameters on the meta device or held by another process are refused by name."""
    with torch.device("meta"):
        offloaded = zoo.build("llama")
    with pytest.raises(UnmeasurableModelError, match=r"embed_tokens\.weight.*meta"):
        LiveModel(offloaded)


def test_attaching_reads_each_weight_of_the_base_once(
    bases: Bases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compared with the model is hashed as it is read, whether or not it is the model's;
    what is not compared is hashed by itself.
    """
    base = bases("llama")
    digest = base_digest(base)
    model = zoo.build("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1  # in the first of several blocks
    lora = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    lora.base_model.model.model.layers[1].mlp.up_proj.weight.requires_grad_(requires_grad=True)
    read: list[str] = []
    whole = ModelFolder.stream

    def stream(folder: ModelFolder, name: str, *sizes: int) -> Any:
        read.append(name)
        return whole(folder, name, *sizes)

    for known in (False, True):
        if not known:
            monkeypatch.setattr(identity, "_known", {})
            monkeypatch.setenv(digest_cache.VARIABLE, "off")
        monkeypatch.setattr(ModelFolder, "stream", stream)
        monkeypatch.setattr(identity, "BLOCK_ELEMENTS", 50)
        monkeypatch.setattr(live_frozen, "BLOCK_ELEMENTS", 50)
        live = LiveModel(lora, base)
        assert live.base_digest == digest
        assert "model.layers.0.mlp.up_proj.weight" in live.task_vector().names()
        assert sorted(read) == sorted(set(read))
        trained = "model.layers.1.mlp.up_proj.weight"
        assert (trained in read) is not known
        assert {"model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"} <= set(read)
        read.clear()


def test_hashes_made_of_files_that_changed_since_are_made_again(tmp_path: Path) -> None:
    """A base that is rewritten while a model is compared with it is told by what it now holds."""
    zoo.build("llama").save_pretrained(tmp_path)
    made = identity.hashes_to_make(tmp_path)
    assert made is not None
    made.of.update(dict.fromkeys(identity.shapes_of_blocks(ModelFolder(tmp_path)), "0" * 64))
    other = zoo.build("llama", seed=5)
    other.save_pretrained(tmp_path)
    assert identity.base_digest(tmp_path, made) == base_digest(other)
    assert identity.hashes_to_make(tmp_path) is None


def test_a_merged_adapter_is_refused() -> None:
    """An adapter merged into its base is refused: the base would be taken for changed."""
    model = peft.get_peft_model(zoo.build("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    live = LiveModel(model)
    zoo.shake(model)
    model.merge_adapter()
    for take in (live.task_vector, lambda: LiveModel(model)):
        with pytest.raises(UnmeasurableModelError, match="unmerge_adapter"):
            take()
    model.unmerge_adapter()
    assert live.task_vector().norm() > 0


def _begin_anew(model: peft.PeftModel) -> None:
    """What ReLoRA does between its rounds: the adapter goes into the base, and starts at zero."""
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.get_base_layer().weight.data += module.get_delta_weight("default").detach()
            module.reset_lora_parameters("default", init_lora_weights=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_merged_during_the_run_is_counted_by_the_base(tmp_path, dtype) -> None:
    """An adapter merged and begun anew, again and again: with the base all of it is seen."""
    model = zoo.build("llama").to(dtype)
    model.save_pretrained(tmp_path)
    before = zoo.weights_of(model)
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=4))
    live = LiveModel(model, tmp_path)
    zoo.shake(model)
    assert live.task_vector().origin.method == "lora"
    for _ in range(2):
        _begin_anew(model)
        zoo.shake(model)
        tau = live.task_vector()
        assert tau.origin.unmeasurable is None
        oracle = {
            name: layer.base_layer.weight.detach().double()
            + layer.get_delta_weight("default").detach().double()
            - before[name].double()
            for i, block in enumerate(model.base_model.model.model.layers)
            for layer in [block.self_attn.q_proj]
            for name in [f"model.layers.{i}.self_attn.q_proj.weight"]
        }
        zoo.assert_equal_change(tau, oracle)
    assert tau.origin.method == "lora+merged"
    assert sum("counts as well" in w for w in tau.origin.warnings) == 1


def test_what_is_merged_during_the_run_is_not_known_without_the_base() -> None:
    """Without the base's folder nothing tells what was merged: no verdict may rest on the rest."""
    model = peft.get_peft_model(zoo.build("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    live = LiveModel(model)
    zoo.shake(model)
    assert live.task_vector().origin.unmeasurable is None
    _begin_anew(model)
    for _ in range(2):
        assert "give base=FOLDER" in str(live.task_vector().origin.unmeasurable)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merge_that_is_undone_and_a_cast_are_no_change(dtype) -> None:
    """What generation merges and takes out again leaves its rounding, and a cast leaves its own."""
    model = zoo.build("llama").to(dtype)
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    live = LiveModel(model)
    zoo.shake(model)
    model.merge_adapter()
    model.unmerge_adapter()
    assert live.task_vector().origin.unmeasurable is None
    for other in (torch.float32, torch.bfloat16):
        model.to(other)
        assert live.task_vector().origin.unmeasurable is None


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_that_holds_a_part_of_its_base_must_begin_at_it(start, dtype, tmp_path) -> None:
    """PiSSA and OLoRA on what an SFT left, or trained before: what came first would not count."""
    model = zoo.build("llama").to(dtype)
    model.save_pretrained(tmp_path)

    def begun(merged: bool) -> peft.PeftModel:
        own = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
        if merged:
            first = peft.get_peft_model(own, peft.LoraConfig(target_modules=["q_proj"]))
            zoo.shake(first)
            own = first.merge_and_unload()
        config = peft.LoraConfig(target_modules=["q_proj"], r=4, init_lora_weights=start)
        return peft.get_peft_model(own, config)

    fresh = begun(merged=False)
    assert LiveModel(fresh, tmp_path).task_vector().norm() == 0
    zoo.shake(fresh)
    for spoilt in (fresh, begun(merged=True)):
        with pytest.raises(UnmeasurableModelError, match=r"q_proj.* are not .* together"):
            LiveModel(spoilt, tmp_path)


def test_adapters_added_by_transformers_are_read() -> None:
    """An adapter that transformers put in, without PeftModel around it, counts the same."""
    model = zoo.build("llama")
    before = zoo.weights_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.add_adapter(peft.LoraConfig(target_modules=["q_proj"], r=4))
    live = LiveModel(model)
    zoo.shake(model)
    tau = live.task_vector()
    layers = [layer.self_attn.q_proj for layer in model.model.layers]
    oracle = {
        f"model.layers.{i}.self_attn.q_proj.weight": layer.get_delta_weight("default").double()
        for i, layer in enumerate(layers)
    }
    zoo.assert_equal_change(tau, {n: d.detach() for n, d in oracle.items()})
    assert tau.origin.method == "lora"
    assert set(tau.names()) <= set(before)
