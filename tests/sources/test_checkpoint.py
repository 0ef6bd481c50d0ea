"""Checkpoints against their base, streamed from files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.sources import zoo
from wvmonitor.errors import (
    KeyMismatchError,
    MalformedFileError,
    MissingPathError,
    NonFiniteError,
    QuantizedWeightsError,
    ShapeMismatchError,
)
from wvmonitor.files.checkpoint_files import open_checkpoint
from wvmonitor.files.safetensors import write_safetensors
from wvmonitor.sources import base_digest, read_checkpoints

# For the table of docs/what-is-measured.md: kind, where it comes from, read or refused, the test.
MEASURED = [
    (
        "a head of its own under a configuration that ties it",
        "older transformers, converters",
        "read: it counts, and is said",
        "test_a_head_of_its_own_counts_though_the_configuration_ties_it",
    ),
    (
        "a tied model stored by its head alone",
        "converters",
        "read",
        "test_a_tied_model_stored_by_its_head_alone_is_read",
    ),
    (
        "a shared embedding stored again for encoder and decoder",
        "flan-T5",
        "read, once",
        "test_copies_of_a_shared_embedding_count_once",
    ),
    (
        "a `config.json` that names another file (`transformers_weights`)",
        "transformers 5",
        "refused: both files are named",
        "test_a_configuration_that_names_other_weights_is_refused",
    ),
]
Bases = Callable[..., Path]
KINDS = [("llama", {}), ("llama", {"tied": True}), ("gpt2", {}), ("moe", {})]


def trained(kind: str, folder: Path, **extra: Any) -> tuple[torch.nn.Module, zoo.Weights]:
    """A model moved from its base, and the dense oracle of the change."""
    model = zoo.build(kind, **extra)
    before = zoo.weights_of(model)
    zoo.shake(model, size=1e-3)
    model.save_pretrained(folder)
    return model, zoo.change(zoo.weights_of(model), before)


def edit(
    folder: Path, change: Callable[[dict[str, Tensor]], None], copy_to: Path | None = None
) -> Path:
    """Rewrite the tensors of a saved model."""
    target = folder
    if copy_to is not None:
        target = Path(shutil.copytree(folder, copy_to))
    with open_checkpoint(target) as files:
        tensors = {name: files.read(name) for name in files.names()}
    change(tensors)
    write_safetensors(target / "model.safetensors", tensors, {"format": "pt"})
    return target


@pytest.mark.parametrize(("kind", "extra"), KINDS)
def test_a_checkpoint_is_its_difference_from_the_base(
    kind: str, extra: dict[str, Any], bases: Bases, tmp_path: Path
) -> None:
    """Every parameter's change is there once, under its live name: tied, Conv1D and fused too."""
    _, oracle = trained(kind, tmp_path / "checkpoint-30", **extra)
    tau = read_checkpoints(bases(kind, **extra), tmp_path / "checkpoint-30")
    zoo.assert_equal_change(tau, oracle)
    assert set(tau.names()) == set(oracle)
    assert tau.origin.step == 30
    assert tau.origin.method == "full"
    assert tau.origin.base_digest == base_digest(bases(kind, **extra))
    turned = {name for name, update in tau.updates() if update.transposed}
    assert turned == {
        n for n in oracle if ("c_" in n and oracle[n].ndim == 2) or "embed" in n or "wte" in n
    } | {n for n in oracle if "wpe" in n}


@pytest.mark.parametrize("kind", ["llama", "moe"])
def test_shards_make_no_difference(kind: str, bases: Bases, tmp_path: Path) -> None:
    """Sharded on either side equals whole, bit for bit."""
    model, _ = trained(kind, tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    zoo.build(kind).save_pretrained(tmp_path / "base", max_shard_size="12KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    whole = read_checkpoints(bases(kind), tmp_path / "whole")
    shards = read_checkpoints(tmp_path / "base", tmp_path / "shards")
    assert whole.names() == shards.names()
    assert (whole - shards).norm() == 0
    assert whole.origin.base_digest == shards.origin.base_digest


@pytest.mark.parametrize("elements", [1, 7, 100, 1 << 20])
def test_small_blocks_make_no_difference(elements: int, bases: Bases, tmp_path: Path) -> None:
    """However many elements are read at once, a streamed difference is that of whole tensors."""
    _, oracle = trained("llama", tmp_path)
    for name, update in read_checkpoints(bases("llama"), tmp_path).updates():
        if elements == 1 and update.shape.numel() > 200:
            continue
        blocks = [block.clone() for block in update.stream(elements)]
        assert {len(b) for b in blocks[:-1]} <= {elements}
        torch.testing.assert_close(
            torch.cat(blocks).double(), oracle[name].reshape(-1), rtol=1e-6, atol=1e-9
        )


def test_precisions_may_differ(bases: Bases, tmp_path: Path) -> None:
    """A bfloat16 base and a float32 end are subtracted in float32, a float64 end in float64."""
    model, _ = trained("llama", tmp_path / "end")
    low = zoo.build("llama").to(torch.bfloat16)
    low.save_pretrained(tmp_path / "low")
    oracle = zoo.change(zoo.weights_of(model), zoo.weights_of(low))
    zoo.assert_equal_change(read_checkpoints(tmp_path / "low", tmp_path / "end"), oracle)
    model.double().save_pretrained(tmp_path / "wide")
    tau = read_checkpoints(tmp_path / "low", tmp_path / "wide")
    assert {zoo.updates.to_dense(u).dtype for _, u in tau.updates()} == {torch.float64}
    assert base_digest(tmp_path / "low") == base_digest(bases("llama"))


_WALK = """
import re, sys
from pathlib import Path
from wvmonitor.sources import read_checkpoints
def peak():  # not ru_maxrss, which is at least what the parent held
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
tau = read_checkpoints(sys.argv[1], sys.argv[2])
before = peak()
assert tau.norm() > 0
print(peak() - before)
"""


def test_memory_is_bounded_by_blocks(tmp_path: Path) -> None:
    """Walking a checkpoint holds blocks of both sides, never a whole tensor's difference."""
    for seed, folder in enumerate(("base", "end")):
        generator = torch.Generator().manual_seed(seed)
        (tmp_path / folder).mkdir()
        tensors = {
            f"model.layers.{i}.mlp.up_proj.weight": torch.randn(2048, 1024, generator=generator).to(
                torch.bfloat16
            )
            for i in range(30)
        }
        write_safetensors(tmp_path / folder / "model.safetensors", tensors)
        del tensors
    walk = [sys.executable, "-c", _WALK, str(tmp_path / "base"), str(tmp_path / "end")]
    grown = int(subprocess.run(walk, check=True, capture_output=True, text=True).stdout) * 1024
    assert grown < 2048 * 1024 * 4  # one difference


def test_a_resized_vocabulary_is_compared_on_its_common_rows(bases: Bases, tmp_path: Path) -> None:
    """Added tokens are left out, and the vector says so."""
    model = zoo.build("llama")
    before = zoo.weights_of(model)
    model.resize_token_embeddings(70)
    zoo.shake(model, size=1e-3)
    model.save_pretrained(tmp_path)
    after = {n: w[:64] if w.shape[0] == 70 else w for n, w in zoo.weights_of(model).items()}
    tau = read_checkpoints(bases("llama"), tmp_path)
    zoo.assert_equal_change(tau, zoo.change(after, before))
    assert any("70 rows where the base has 64" in warning for warning in tau.origin.warnings)


def test_a_bare_prefix_is_put_back(bases: Bases, tmp_path: Path) -> None:
    """Files without the base model's prefix (GPT-2 on the Hub) get the live names."""
    _, oracle = trained("gpt2", tmp_path / "end")

    def bare(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)

    base = edit(bases("gpt2"), bare, copy_to=tmp_path / "bare")
    tau = read_checkpoints(base, tmp_path / "end")
    zoo.assert_equal_change(tau, oracle)
    assert tau.origin.base_digest == base_digest(bases("gpt2"))


def test_a_head_stored_beside_its_tied_embedding_counts_once(bases: Bases, tmp_path: Path) -> None:
    """A writer that stores the shared tensor twice does not make it count twice."""
    _, oracle = trained("llama", tmp_path / "end", tied=True)

    def doubled(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    edit(tmp_path / "end", doubled)
    base = bases("llama", tied=True)
    zoo.assert_equal_change(read_checkpoints(base, tmp_path / "end"), oracle)
    twice = edit(base, doubled, copy_to=tmp_path / "base")
    zoo.assert_equal_change(read_checkpoints(twice, tmp_path / "end"), oracle)


def test_constants_of_the_architecture_may_be_on_one_side(bases: Bases, tmp_path: Path) -> None:
    """Masks and rotary frequencies that older versions saved are no parameters."""
    _, oracle = trained("gpt2", tmp_path / "end")

    def older(tensors: dict[str, Tensor]) -> None:
        tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.bool)
        tensors["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)

    base = edit(bases("gpt2"), older, copy_to=tmp_path / "base")
    zoo.assert_equal_change(read_checkpoints(base, tmp_path / "end"), oracle)


def test_a_key_on_one_side_is_named(bases: Bases, tmp_path: Path) -> None:
    """A tensor on one side only is an error that names it; nothing is intersected."""
    trained("llama", tmp_path)
    edit(tmp_path, lambda tensors: tensors.update(extra=torch.ones(2)))
    with pytest.raises(KeyMismatchError, match="extra"):
        read_checkpoints(bases("llama"), tmp_path)
    with pytest.raises(KeyMismatchError, match="extra"):
        read_checkpoints(tmp_path, bases("llama"))


def test_a_changed_integer_buffer_is_named(bases: Bases, tmp_path: Path) -> None:
    """Equal integer buffers are no change; different ones are an error that names them."""
    base = Path(shutil.copytree(bases("llama"), tmp_path / "base"))
    trained("llama", tmp_path / "end")
    for folder in (base, tmp_path / "end"):
        edit(folder, lambda tensors: tensors.update(buckets=torch.arange(3)))
    assert "buckets" not in read_checkpoints(base, tmp_path / "end")
    edit(tmp_path / "end", lambda tensors: tensors.update(buckets=torch.arange(1, 4)))
    with pytest.raises(KeyMismatchError, match="buckets"):
        read_checkpoints(base, tmp_path / "end")


def test_another_shape_is_named(bases: Bases, tmp_path: Path) -> None:
    """A weight of another shape is no resized vocabulary."""
    name = "model.layers.0.mlp.up_proj.weight"
    trained("llama", tmp_path)
    edit(tmp_path, lambda tensors: tensors.update({name: torch.ones(3, 32)}))
    with pytest.raises(ShapeMismatchError, match=name):
        read_checkpoints(bases("llama"), tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["base", "end"])
def test_weights_that_are_not_finite_are_named(
    value: float, side: str, bases: Bases, tmp_path: Path
) -> None:
    """NaN or infinity on either side is an error with the file and the tensor in it."""
    name = "model.layers.1.self_attn.q_proj.weight"
    trained("llama", tmp_path / "end")
    shutil.copytree(bases("llama"), tmp_path / "base")
    edit(tmp_path / side, lambda tensors: tensors[name].__setitem__((3, 2), value))
    tau = read_checkpoints(tmp_path / "base", tmp_path / "end")
    with pytest.raises(NonFiniteError, match=f"{name}.*{side}"):
        tau.norm()


def test_quantised_weights_are_refused(bases: Bases, tmp_path: Path) -> None:
    """Quantised weights are told by their keys or their elements, whatever is configured."""
    base = bases("llama")
    name = "model.layers.0.self_attn.q_proj.weight"
    keyed = edit(
        base, lambda t: t.update({f"{name}.absmax": torch.ones(2)}), copy_to=tmp_path / "keyed"
    )
    packed = edit(
        base,
        lambda t: t.update({name: torch.ones(32, 32, dtype=torch.int8)}),
        copy_to=tmp_path / "packed",
    )
    for folder in (keyed, packed):
        with pytest.raises(QuantizedWeightsError, match="unquantised"):
            read_checkpoints(base, folder)
        with pytest.raises(QuantizedWeightsError, match="unquantised"):
            base_digest(folder)


def test_a_missing_folder_is_named(bases: Bases, tmp_path: Path) -> None:
    """A path that is not there is an error with the path in it."""
    with pytest.raises(MissingPathError, match="nowhere"):
        read_checkpoints(bases("llama"), tmp_path / "nowhere")
    with pytest.raises(MissingPathError, match=r"the base model cannot be read: .*hf download"):
        read_checkpoints(tmp_path / "nowhere", bases("llama"))
    with pytest.raises(MissingPathError, match="nowhere"):
        base_digest(tmp_path / "nowhere")
    with pytest.raises(MissingPathError, match="nowhere"):
        base_digest(tmp_path / "nowhere.safetensors")


def test_single_files_are_enough(bases: Bases, tmp_path: Path) -> None:
    """A weight file on either side stands for its folder."""
    _, oracle = trained("llama", tmp_path)
    base, end = bases("llama") / "model.safetensors", tmp_path / "model.safetensors"
    tau = read_checkpoints(base, end)
    zoo.assert_equal_change(tau, oracle)
    assert tau.origin.base_digest == base_digest(bases("llama"))


def test_a_configuration_that_cannot_be_built_is_named(bases: Bases, tmp_path: Path) -> None:
    """Files that only their model class can name are refused where there is no such class."""
    base = Path(shutil.copytree(bases("moe"), tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    for change, says in (
        ({"architectures": ["Tomorrow"]}, "Tomorrow"),
        ({"architectures": None}, "none named"),
        ({"model_type": "tomorrow"}, "tomorrow"),
        ({"num_hidden_layers": 10**9}, "claims"),
        ({"hidden_size": "wide"}, "wide|hidden_size"),
    ):
        (base / "config.json").write_text(json.dumps(config | change))
        with pytest.raises((KeyMismatchError, MalformedFileError), match=says):
            read_checkpoints(base, bases("moe"))


def loaded_change(base: Path, end: Path) -> zoo.Weights:
    """The dense oracle of what transformers loads: every parameter of either model, tied ones once.

    A parameter that one side ties is compared with what it is tied to there.
    """
    import transformers

    kind = getattr(transformers, json.loads((end / "config.json").read_text())["architectures"][0])
    before, after = (kind.from_pretrained(folder).double() for folder in (base, end))
    names = dict.fromkeys(n for model in (before, after) for n, _ in model.named_parameters())
    first, last = before.state_dict(), after.state_dict()
    return {name: last[name] - first[name] for name in names}


def test_a_head_of_its_own_counts_though_the_configuration_ties_it(
    bases: Bases, tmp_path: Path
) -> None:
    """Values decide what is a copy, not the configuration: as transformers loads it, and said."""
    trained("llama", tmp_path / "end", tied=True)

    def own(tensors: dict[str, Tensor]) -> None:
        embedding = tensors["model.embed_tokens.weight"]
        tensors["lm_head.weight"] = embedding + 0.5 * torch.randn_like(embedding)

    edit(tmp_path / "end", own)
    base = bases("llama", tied=True)
    own_base = edit(base, own, copy_to=tmp_path / "own base")
    trained("llama", tmp_path / "plain", tied=True)
    for start, end in [
        (base, tmp_path / "end"),
        (own_base, tmp_path / "end"),
        (own_base, tmp_path / "plain"),
    ]:
        tau = read_checkpoints(start, end)
        zoo.assert_equal_change(tau, loaded_change(start, end))
        assert any("ties them" in warning for warning in tau.origin.warnings)


def test_a_tied_model_stored_by_its_head_alone_is_read(bases: Bases, tmp_path: Path) -> None:
    """Transformers takes the one of two tied tensors that a file holds, whichever it is."""
    _, oracle = trained("llama", tmp_path / "end", tied=True)

    def by_head(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    edit(tmp_path / "end", by_head)
    base = bases("llama", tied=True)
    tau = read_checkpoints(base, tmp_path / "end")
    zoo.assert_equal_change(tau, loaded_change(base, tmp_path / "end"))
    zoo.assert_equal_change(tau, oracle)


@pytest.mark.parametrize("own_head", [False, True])
def test_copies_of_a_shared_embedding_count_once(own_head: bool, tmp_path: Path) -> None:
    """flan-T5's files repeat the shared embedding for encoder and decoder; fine-tunes do not."""
    import transformers

    config = transformers.T5Config(
        vocab_size=48, d_model=16, d_ff=24, d_kv=4, num_heads=4, num_layers=1
    )
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(config)
    model.save_pretrained(tmp_path / "base")
    zoo.shake(model, size=1e-3)
    model.save_pretrained(tmp_path / "end")

    def repeated(tensors: dict[str, Tensor]) -> None:
        for part in ("encoder", "decoder"):
            tensors[f"{part}.embed_tokens.weight"] = tensors["shared.weight"].clone()
        if own_head:
            tensors["lm_head.weight"] = torch.ones(48, 16)

    def head(tensors: dict[str, Tensor]) -> None:
        if own_head:
            tensors["lm_head.weight"] = torch.full((48, 16), 1.1)

    edit(tmp_path / "base", repeated)
    edit(tmp_path / "end", head)
    oracle = loaded_change(tmp_path / "base", tmp_path / "end")
    zoo.assert_equal_change(read_checkpoints(tmp_path / "base", tmp_path / "end"), oracle)


def test_a_configuration_that_names_other_weights_is_refused(bases: Bases, tmp_path: Path) -> None:
    """Transformers loads the file that `transformers_weights` names: nothing else is judged."""
    from transformers import AutoModelForCausalLM

    base, folder = bases("llama"), tmp_path / "end"
    trained("llama", folder)
    own = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    shutil.copy(base / "model.safetensors", folder / "other.safetensors")
    config = json.loads((folder / "config.json").read_text())
    file = folder / "config.json"
    file.write_text(json.dumps(config | {"transformers_weights": "other.safetensors"}))
    loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert not torch.equal(loaded["lm_head.weight"], own["lm_head.weight"])
    with pytest.raises(MalformedFileError, match=r"'other\.safetensors'.*not 'model\.safetensors'"):
        read_checkpoints(base, folder)
    file.write_text(json.dumps(config | {"transformers_weights": "model.safetensors"}))
    assert read_checkpoints(base, folder).norm() > 0
