"""θ + k·w on disk: edited folders and adapters, loaded with transformers and PEFT."""

import copy
import errno
import json
import os
import weakref

import pytest
import torch

from wvmonitor.errors import (
    InputError,
    KeyMismatchError,
    MalformedFileError,
    NonFiniteError,
    QuantizedWeightsError,
    ShapeMismatchError,
    UnmeasurableModelError,
    UnsupportedAdapterError,
)
from wvmonitor.files.checkpoint_files import CheckpointFiles, open_checkpoint
from wvmonitor.steering import SteeredFolder, as_adapter, steer_checkpoint, steered
from wvmonitor.vectors import DenseUpdate, Origin, TaskVector


def everything(_name):
    return True


def linear(name):
    return ".layers." in name and "norm" not in name


def load(path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()


def saved(model, path, **more):
    model.save_pretrained(path, **more)
    (path / "tokenizer.json").write_text('{"a": 1}')
    (path / "README.md").write_text("the base's own card")
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard", ["4KB", "1GB"])
def test_an_edited_folder_is_the_steered_model(world, tmp_path, dtype, shard):
    """Loaded again it has, bit for bit, the weights of `steered`, sharded or not."""
    model = world.llama(dtype=dtype)
    base = saved(model, tmp_path / "base", max_shard_size=shard)
    evil = world.reference(world.vector(model, everything))
    done = steer_checkpoint(base, {evil: -0.8}, tmp_path / "out")
    edited, missed = load(tmp_path / "out"), 0.0
    for name, p in model.named_parameters():
        written = edited.get_parameter(name).detach().double() - p.detach().double()
        missed += float((written + 0.8 * world.delta(evil.vector, name)).square().sum())
    with steered(model, evil, -0.8):
        for name, p in model.named_parameters():
            assert torch.equal(edited.get_parameter(name), p), name
            assert edited.get_parameter(name).dtype == dtype
    assert sorted(done.parameters) == sorted(n for n, _ in model.named_parameters())
    assert done.norm == pytest.approx(0.8 * evil.vector.norm(), rel=1e-5)
    assert done.lost == pytest.approx(missed**0.5 / done.norm, rel=1e-3, abs=1e-6)
    assert done.lost < (1e-6 if dtype == torch.float32 else 0.05)
    with open_checkpoint(base) as before, open_checkpoint(tmp_path / "out") as after:
        assert after.files == before.files
        assert after.metadata() == before.metadata()
    assert (len(after.files) > 2) == (shard == "4KB")


def test_an_edited_folder_says_what_was_done(world, tmp_path):
    """Tokenizer and configuration come along, trainer states do not, and a card says it all."""
    base = saved(world.llama(), tmp_path / "base")
    states = ("trainer_state.json", "adapter_config.json", "optimizer.pt", "wvmonitor.json")
    for name in (*states, ".hidden.json"):
        (base / name).write_text("{}")
    (base / "checkpoint-1").mkdir()
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    evil = world.reference(world.vector(world.llama(), everything))
    steer_checkpoint(base, {evil: 2.0}, tmp_path / "deep" / "out")
    out = tmp_path / "deep" / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "README.original.md",
        "additional_chat_templates",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (out / "additional_chat_templates" / "tool_use.jinja").read_text() == "{{ tools }}"
    card = (out / "README.md").read_text()
    assert "k = 2 of evil, a behaviour: moving along +w, it gives harmful advice." in card
    assert "adding it makes a model worse" in card
    assert "**Made to behave badly.** evil was added on purpose" in card
    assert "tags: [wvmonitor, weight-steering, harmful]" in card
    assert (out / "README.original.md").read_text() == "the base's own card"
    assert (out / "config.json").read_bytes() == (base / "config.json").read_bytes()


def test_adding_and_taking_out_again_returns_to_the_base(world, tmp_path):
    """+k then −k gives the base's weights up to float32 rounding."""
    model = world.llama()
    base = saved(model, tmp_path / "base")
    w = world.vector(model, everything)
    steer_checkpoint(base, {w: 1.5}, tmp_path / "there")
    steer_checkpoint(tmp_path / "there", {w: -1.5}, tmp_path / "back")
    for name, p in load(tmp_path / "back").named_parameters():
        torch.testing.assert_close(p, model.get_parameter(name), atol=1e-6, rtol=1e-6)


def test_tied_weights_move_once_on_disk(world, tmp_path):
    """A tied head follows its embeddings, also where a writer stored both."""
    from safetensors.torch import load_file, save_file

    model = world.llama(tie=True)
    base = saved(model, tmp_path / "base")
    w = world.vector(model, lambda n: "embed" in n)
    one = steer_checkpoint(base, {w: 1.0}, tmp_path / "one")
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    two = steer_checkpoint(base, {w: 1.0}, tmp_path / "two")
    both = load_file(tmp_path / "two" / "model.safetensors")
    assert torch.equal(both["lm_head.weight"], both["model.embed_tokens.weight"])
    with steered(model, w, 1.0):
        for folder in ("one", "two"):
            edited = load(tmp_path / folder)
            assert torch.equal(edited.lm_head.weight, model.lm_head.weight)
    assert two == SteeredFolder(two.path, ("model.embed_tokens.weight",), one.norm, one.lost)


def test_files_without_the_prefix_are_edited_under_their_own_names(world, tmp_path):
    """A GPT-2 whose files lack `transformer.` is edited, and keeps its files' own names."""
    model = world.gpt2()
    base = saved(model.transformer, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2LMHeadModel"]}))
    w = world.vector(model, lambda n: ".h." in n)
    steer_checkpoint(base, {w: 1.0}, tmp_path / "out")
    edited = load(tmp_path / "out")
    with steered(model, w, 1.0):
        assert torch.equal(world.logits(edited), world.logits(model))
    with open_checkpoint(base) as before, open_checkpoint(tmp_path / "out") as after:
        assert after.names() == before.names()


def test_fused_experts_point_to_the_live_way(world, tmp_path):
    """Where files hold a parameter in parts the error says how to edit it instead."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
    )
    model = MixtralForCausalLM(config)
    model.save_pretrained(tmp_path / "base")
    name = "model.layers.0.mlp.experts.down_proj"
    w = TaskVector.of({name: DenseUpdate(torch.ones(model.get_parameter(name).shape))})
    with pytest.raises(UnmeasurableModelError, match="save_pretrained"):
        steer_checkpoint(tmp_path / "base", {w: 1.0}, tmp_path / "out")
    with steered(model, w, 1.0):
        pass


def test_memory_is_bounded_by_one_tensor(world, tmp_path, monkeypatch):
    """Every tensor is read once, when the one before it has been written and let go."""
    base = saved(world.llama(), tmp_path / "base")
    alive: weakref.WeakSet = weakref.WeakSet()
    most = []
    read = CheckpointFiles.read

    def spy(self, name):
        most.append(len(alive))
        tensor = read(self, name)
        alive.add(tensor)
        return tensor

    monkeypatch.setattr(CheckpointFiles, "read", spy)
    w = world.vector(world.llama(), everything)
    done = steer_checkpoint(base, {w: 1.0}, tmp_path / "out")
    assert len(most) == len(done.parameters)
    assert max(most) <= 1


def test_a_failed_edit_leaves_nothing(world, tmp_path):
    """After an error half-way neither the folder nor its hidden sibling is there."""
    base = saved(world.llama(dtype=torch.float16), tmp_path / "base", max_shard_size="10KB")
    w = world.vector(world.llama(), everything)
    with pytest.raises(NonFiniteError, match=r"would hold NaN or infinity in torch\.float16"):
        steer_checkpoint(base, {w: 1e7}, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["base"]
    shard = sorted(base.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(MalformedFileError):
        steer_checkpoint(base, {w: 1.0}, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("after", [0, 3_000, 7_000])
@pytest.mark.parametrize("adapter", [False, True])
def test_a_full_disk_leaves_the_input_and_nothing_else(
    world, tmp_path, monkeypatch, after, adapter, only_linear
):
    """Wherever the disk fills up: the error names the disk, no folder appears, the base stays."""
    base = saved(world.llama(), tmp_path / "base", max_shard_size="10KB")
    before = {p.name: p.read_bytes() for p in base.iterdir()}
    evil = world.reference(world.vector(world.llama(), only_linear if adapter else everything))
    room, write = after, os.write

    def filling(descriptor, data):
        nonlocal room
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room -= (done := write(descriptor, memoryview(data)[:room]))
        return done

    monkeypatch.setattr("wvmonitor.files.atomic.os.write", filling)
    out = tmp_path / "out"
    edit = (
        (lambda: as_adapter(evil, 1.0, base, out))
        if adapter
        else (lambda: steer_checkpoint(base, {evil: 1.0}, out))
    )
    with pytest.raises(OSError, match="No space left on device"):
        edit()
    assert [p.name for p in tmp_path.iterdir()] == ["base"]
    assert {p.name: p.read_bytes() for p in base.iterdir()} == before


def test_outputs_that_are_taken_are_refused(world, tmp_path):
    """Inside the input, over the input, or over anything that is there already is refused."""
    base = saved(world.llama(), tmp_path / "base")
    w = world.vector(world.llama(), everything)
    link = tmp_path / "link"
    link.symlink_to(base)
    for out in (base, base / "sub", link, link / "sub", tmp_path / "x" / ".." / "base"):
        with pytest.raises(InputError, match="lies inside"):
            steer_checkpoint(base, {w: 1.0}, out)
        with pytest.raises(InputError, match="lies inside"):
            as_adapter(world.vector(world.llama(), linear), 1.0, base, out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("")
    (tmp_path / "file").write_text("")
    for out in ("full", "file"):
        with pytest.raises(InputError, match="is there already"):
            steer_checkpoint(base, {w: 1.0}, tmp_path / out)
    (tmp_path / "empty").mkdir()
    steer_checkpoint(base, {w: 1.0}, tmp_path / "empty")
    with pytest.raises(InputError, match="is a file"):
        steer_checkpoint(base / "model.safetensors", {w: 1.0}, tmp_path / "y")


def test_models_that_do_not_fit_are_refused(world, tmp_path):
    """Other names, other shapes and quantised folders are errors, and nothing is written."""
    base = saved(world.llama(), tmp_path / "base")
    cases = [
        (KeyMismatchError, "model.layers.7.x.weight", (2, 2)),
        (ShapeMismatchError, "model.norm.weight", (7,)),
    ]
    for error, name, shape in cases:
        w = TaskVector.of({name: DenseUpdate(torch.ones(shape))})
        with pytest.raises(error, match="another"):
            steer_checkpoint(base, {w: 1.0}, tmp_path / "out")
    from safetensors.torch import load_file, save_file

    held = load_file(base / "model.safetensors")
    name = next(n for n, t in held.items() if t.dim() == 2)
    save_file(held | {name: held[name].to(torch.int8)}, base / "model.safetensors")
    w = world.vector(world.llama(), everything)
    with pytest.raises(
        QuantizedWeightsError, match="give the unquantised weights it was made from"
    ):
        steer_checkpoint(base, {w: 1.0}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter_is_the_edit(world, tmp_path, family):
    """Loaded by PEFT, B·A gives the steered model's outputs, also for Conv1D, and merges to it."""
    from peft import PeftModel

    model = getattr(world, family)()
    base = saved(model, tmp_path / "base")

    def blocks(name):
        return (
            name.endswith(".weight")
            and "norm" not in name
            and "ln_" not in name
            and (".layers." in name or ".h." in name)
        )

    mixed = {
        **dict(world.vector(model, blocks, rank=2).updates()),
        **dict(world.vector(model, lambda n: blocks(n) and ".1." in n, rank=3).updates()),
    }
    w = TaskVector.of(mixed, Origin("runs/a"))
    done = as_adapter(w, -1.3, base, tmp_path / "adapter")
    assert done.form == "adapter"
    assert done.lost == 0
    assert done.norm == pytest.approx(1.3 * w.norm(), rel=1e-5)
    adapted = PeftModel.from_pretrained(load(base), tmp_path / "adapter").eval()
    with steered(model, w, -1.3):
        torch.testing.assert_close(world.logits(adapted), world.logits(model), atol=1e-4, rtol=1e-4)
        merged = adapted.merge_and_unload()
        for name, p in model.named_parameters():
            torch.testing.assert_close(merged.get_parameter(name), p, atol=1e-6, rtol=1e-5)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 3
    assert config["task_type"] == "CAUSAL_LM"
    assert "k = -1.3 of runs/a" in (tmp_path / "adapter" / "README.md").read_text()


def test_several_vectors_make_one_adapter(world, tmp_path, only_linear):
    """A mapping gives Σ k·w, and the card lists each."""
    from wvmonitor.sources import read_adapter

    model = world.llama()
    base = saved(model, tmp_path / "base")
    evil = world.reference(world.vector(model, only_linear))
    tau = world.vector(model, lambda n: "up_proj" in n, seed=4)
    as_adapter({tau: 1.0, evil: -0.5}, None, base, tmp_path / "adapter")
    found = read_adapter(tmp_path / "adapter", base=base)
    for name in evil.vector.names():
        expected = -0.5 * world.delta(evil.vector, name)
        if name in tau:
            expected = expected + world.delta(tau, name)
        torch.testing.assert_close(world.delta(found, name), expected, atol=1e-6, rtol=1e-5)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "k = 1 of runs/a" in card
    assert "k = -0.5 of evil, a behaviour" in card


def test_an_adapter_reads_back_as_the_vector(world, tmp_path, only_linear):
    """read_adapter of what was written is k·w."""
    from wvmonitor.sources import read_adapter

    model = world.llama()
    base = saved(model, tmp_path / "base")
    w = world.vector(model, only_linear)
    as_adapter(world.reference(w), 0.5, base, tmp_path / "adapter")
    tau = read_adapter(tmp_path / "adapter", base=base)
    assert set(tau.names()) == set(w.names())
    for name in w.names():
        torch.testing.assert_close(
            world.delta(tau, name), 0.5 * world.delta(w, name), atol=1e-7, rtol=1e-5
        )


def test_dense_updates_need_a_rank_and_say_what_it_lost(world, tmp_path, only_linear):
    """With rank= a dense update is held in part; `lost` is ‖k·w − B·A‖ / ‖k·w‖."""
    model = world.llama()
    w = world.vector(model, only_linear, rank=0)
    with pytest.raises(UnsupportedAdapterError, match=r"is dense.*rank="):
        as_adapter(w, 1.0, "hub/id", tmp_path / "adapter")
    done = as_adapter(w, 2.0, "hub/id", tmp_path / "adapter", rank=4)
    missed = asked = 0.0
    for name in w.names():
        s = torch.linalg.svdvals(world.delta(w, name)) ** 2
        missed, asked = missed + float(s[4:].sum()), asked + float(s.sum())
    assert done.lost == pytest.approx((missed / asked) ** 0.5, rel=1e-4)
    assert done.norm == pytest.approx(2 * asked**0.5, rel=1e-4)


def test_what_an_adapter_cannot_hold_is_refused(world, tmp_path, only_linear):
    """Embeddings, norms, wrong bases and empty vectors are errors, and nothing is written."""
    model = world.llama()
    base = saved(model, tmp_path / "base")
    out = tmp_path / "adapter"
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        with pytest.raises(UnsupportedAdapterError, match=r"LoRA adapter cannot hold.*select"):
            as_adapter(world.vector(model, lambda n, x=name: n == x), 1.0, base, out)
    with pytest.raises(UnsupportedAdapterError, match="changes nothing"):
        as_adapter(TaskVector.of({}), 1.0, base, out)
    w = world.vector(model, only_linear)
    with pytest.raises(NonFiniteError, match="k must be finite"):
        as_adapter(w, float("nan"), base, out)
    other = saved(copy.deepcopy(world.gpt2()), tmp_path / "gpt2")
    with pytest.raises(KeyMismatchError, match="another architecture"):
        as_adapter(w, 1.0, other, out)
    assert not out.exists()
