"""What lies beside what is judged: other weights, folders below, code that loading would import."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from wvmonitor.cli.app import app
from wvmonitor.files.checkpoint_files import open_checkpoint
from wvmonitor.files.safetensors import write_safetensors
from wvmonitor.references import ReferenceBank
from wvmonitor.scan.scan import scan
from wvmonitor.scan.targets import find_targets
from wvmonitor.scan.writers import WRITERS

# For the table of docs/what-is-measured.md: kind, where it comes from, read or refused, the test.
MEASURED = [
    (
        "a second adapter, `non_lora_trainables.bin`, `new_embeddings.safetensors`, GGUF",
        "LLaVA, added tokens, converters",
        "named; `--strict` fails",
        "test_weights_beside_what_was_judged_are_named_and_fail_a_strict_gate",
    ),
    (
        "a run of `step_100/` folders",
        "Accelerate, open-instruct, torchtune",
        "read as one trajectory",
        "test_runs_of_other_trainers_are_found",
    ),
    (
        "`epoch_1/` folders, adapters in subfolders, folders of adapters",
        "Accelerate, PEFT with several adapters, TRL",
        "each is judged",
        "test_what_lies_below_a_folder_without_weights_is_judged",
    ),
    (
        "`auto_mapping.parent_library`, `auto_map`, `modules.json`",
        "PEFT, remote code, sentence-transformers",
        "named, never imported; `--strict` fails",
        "test_code_that_loading_would_import_is_named_and_never_imported",
    ),
    (
        "an adapter on what an earlier fine-tune left (`base_model_name_or_path` is at hand)",
        "SFT, merged, then DPO; adapters on adapters",
        "`unknown` by any other base, with the reason",
        "test_what_came_before_an_adapter_is_not_passed_over",
    ),
]


@pytest.fixture
def adapter(good_adapter: Path, tmp_path: Path) -> Path:
    """A copy of the sound adapter."""
    return Path(shutil.copytree(good_adapter, tmp_path / "adapter"))


@pytest.fixture
def command(tiny_bank_folder: Path) -> Callable[..., Result]:
    """Runs `wvmonitor scan`."""

    def invoke(*arguments: str | Path) -> Result:
        bank = ["--references", str(tiny_bank_folder)]
        return CliRunner().invoke(app, ["scan", *map(str, arguments), *bank])

    return invoke


@pytest.mark.parametrize(
    "name",
    ["non_lora_trainables.bin", "new_embeddings.safetensors", "adapter.gguf", "adapter_model.bin"],
)
def test_weights_beside_what_was_judged_are_named_and_fail_a_strict_gate(
    name: str, adapter: Path, command: Callable[..., Result], tmp_path: Path
) -> None:
    """The gate passes with the file named; with --strict it does not pass, in every format."""
    (adapter / name).write_bytes(b"")
    (adapter / "optimizer.pt").write_bytes(b"")
    plain = command(adapter)
    assert plain.exit_code == 0
    assert f"'{name}' in" in plain.stdout
    assert "not judged" in plain.stdout
    assert "optimizer" not in plain.stdout
    strict = command(adapter, "--strict", "--output", str(tmp_path / "out.json"))
    assert strict.exit_code == 2
    assert name in strict.stdout
    (result,) = json.loads((tmp_path / "out.json").read_text())["checkpoints"]
    assert result["error"]["type"] == "UnjudgedPartError"
    assert result["verdict"] == "unknown"
    assert result["references"]["evil"]["verdict"] == "ok"  # and what was seen is said
    assert result["notices"][0]["kind"] == "unjudged-weights"


def test_a_strict_gate_passes_what_was_seen_whole(
    adapter: Path, command: Callable[..., Result]
) -> None:
    """--strict costs a sound adapter nothing; an alarm stays one beside what was not judged."""
    assert command(adapter, "--strict").exit_code == 0


def test_an_alarm_outranks_what_was_not_judged(
    bad_adapter: Path, command: Callable[..., Result], tmp_path: Path
) -> None:
    """A warning that fails the gate is exit code 1, whatever lies beside it."""
    folder = shutil.copytree(bad_adapter, tmp_path / "bad")
    (folder / "other.safetensors").write_bytes(b"")
    assert command(folder, "--strict", "--fail-on", "warn").exit_code == 1


@pytest.mark.parametrize("form", sorted(WRITERS))
def test_every_format_for_people_and_machines_takes_what_is_strict(
    form: str, adapter: Path, command: Callable[..., Result]
) -> None:
    """No writer loses the exit code, or fails over a result with verdicts and an error."""
    (adapter / "other.safetensors").write_bytes(b"")
    assert command(adapter, "--strict", "--format", form).exit_code == 2


def test_folders_below_are_named_where_they_are_not_judged(
    save_checkpoint: Any, innocent: Any, tiny_base: Path, tmp_path: Path
) -> None:
    """A whole model's subfolders are named: `original/`, `onnx/`, an adapter two levels down."""
    model = save_checkpoint(tmp_path / "model", innocent * 0.2)
    for name in ("original/consolidated.00.pth", "a/b/adapter_model.safetensors", "onnx/m.onnx"):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(b"")
    (target,) = find_targets([model])
    (notice,) = target.notices
    assert "'a/b/, onnx/, original/'" in notice.message


def test_a_run_s_own_folder_is_looked_at_too(drifting_run: Path, tmp_path: Path) -> None:
    """`non_lora_trainables.bin` in a run's output folder is named, once, at its last checkpoint."""
    run = shutil.copytree(drifting_run, tmp_path / "run")
    (run / "non_lora_trainables.bin").write_bytes(b"")
    targets = find_targets([run])
    assert [len(t.notices) for t in targets] == [0, 0, 0, 0, 1]
    assert "non_lora_trainables.bin" in targets[-1].notices[0].message


def test_a_run_that_has_written_its_adapter_s_configuration_is_judged(
    drifting_run: Path, tmp_path: Path
) -> None:
    """Axolotl writes `adapter_config.json` before the first step: that folder is no target."""
    run = shutil.copytree(drifting_run, tmp_path / "run")
    (run / "adapter_config.json").write_text("{}")
    assert [t.path for t in find_targets([run])] == [
        t.path.replace(str(drifting_run), str(run)) for t in find_targets([drifting_run])
    ]


def test_where_not_all_was_looked_at_a_strict_gate_fails(
    save_checkpoint: Any, innocent: Any, tmp_path: Path
) -> None:
    """Deeper than the look goes may lie weights: that is said."""
    model = save_checkpoint(tmp_path / "model", innocent * 0.2)
    (model / "a" / "b" / "c" / "d").mkdir(parents=True)
    (target,) = find_targets([model])
    (notice,) = target.notices
    assert "not all below" in notice.message


@pytest.mark.parametrize("stem", ["step_{}", "global_step{}", "iter-{}"])
def test_runs_of_other_trainers_are_found(
    stem: str, drifting_run: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """Folders that are named by their step are one trajectory, in its order."""
    for step in (2, 4, 6, 8, 10):
        shutil.copytree(drifting_run / f"checkpoint-{step}", tmp_path / stem.format(step))
    results = list(scan([tmp_path], ReferenceBank.load(tiny_bank_folder)))
    assert [r.step for r in results] == [2, 4, 6, 8, 10]
    assert {r.run for r in results} == {str(tmp_path)}
    assert [r.references["evil"].verdict for r in results] == ["ok", "ok", "ok", "warn", "warn"]


def test_what_lies_below_a_folder_without_weights_is_judged(
    good_adapter: Path, bad_adapter: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """Epochs and adapters in subfolders are judged one by one, in their order."""
    for epoch in (2, 10):
        shutil.copytree(good_adapter, tmp_path / f"epoch_{epoch}")
    shutil.copytree(bad_adapter, tmp_path / "second")
    results = list(scan([tmp_path], ReferenceBank.load(tiny_bank_folder), ordered=True))
    assert [Path(r.path).name for r in results] == ["epoch_2", "epoch_10", "second"]
    assert [r.verdict for r in results] == ["ok", "ok", "warn"]
    assert {r.run for r in results} == {None}


def test_a_folder_with_a_dot_in_its_name_is_judged(
    good_adapter: Path, bad_adapter: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """`qwen2.5-7b-sft` and `v1.0-final` are folders, whatever follows the dot; at a URL, too."""
    shutil.copytree(good_adapter, tmp_path / "good")
    shutil.copytree(bad_adapter, tmp_path / "qwen2.5-7b-sft")
    shutil.copytree(good_adapter, tmp_path / "v1.0-final")
    (tmp_path / "notes.v2").write_text("no folder")
    bank = ReferenceBank.load(tiny_bank_folder)
    files = pytest.importorskip("fsspec").filesystem("memory")
    files.put(str(tmp_path), "/dots", recursive=True)
    try:
        for where in (str(tmp_path), "memory://dots"):
            results = list(scan([where], bank, ordered=True))
            assert [(Path(r.path).name, r.verdict) for r in results] == [
                ("good", "ok"),
                ("qwen2.5-7b-sft", "warn"),
                ("v1.0-final", "ok"),
            ]
    finally:
        files.rm("/dots", recursive=True)


def test_a_folder_with_nothing_in_it_is_not_clean(
    tmp_path: Path, command: Callable[..., Result]
) -> None:
    """Empty folders, and those with an optimiser's state only, are not judged, and say so."""
    (tmp_path / "empty").mkdir()
    state = tmp_path / "state" / "checkpoint-5"
    state.mkdir(parents=True)
    (state / "optimizer.pt").write_bytes(b"")
    for name in ("empty", "state"):
        result = command(tmp_path / name)
        assert result.exit_code == 2
        assert "holds no model.safetensors" in result.stdout


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        (
            "adapter_config.json",
            {"auto_mapping": {"base_model_class": "M", "parent_library": "planted_module"}},
            "planted_module",
        ),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": "planted_module.T"}}, "auto_map"),
        ("modules.json", [{"type": "planted_module.Pooling"}], "planted_module.Pooling"),
    ],
)
def test_code_that_loading_would_import_is_named_and_never_imported(
    file: str,
    content: Any,
    says: str,
    adapter: Path,
    command: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A finding of its own, in the table and the JSON; the module's code never runs."""
    marker = tmp_path / "imported"
    (tmp_path / "planted_module.py").write_text(f"open({str(marker)!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    before = json.loads((adapter / file).read_text()) if (adapter / file).exists() else None
    whole = before | content if isinstance(before, dict) else content
    (adapter / file).write_text(json.dumps(whole))
    result = command(adapter)
    assert result.exit_code == 0
    assert says in result.stdout
    assert command(adapter, "--strict").exit_code == 2
    assert not marker.exists()
    monkeypatch.delitem(sys.modules, "planted_module", raising=False)
    importlib.import_module("planted_module")  # it would have run
    assert marker.exists()


def test_what_libraries_name_of_their_own_is_no_finding(adapter: Path) -> None:
    """PEFT's ordinary `auto_mapping` names a module of transformers."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    library = "transformers.models.llama.modeling_llama"
    config["auto_mapping"] = {"base_model_class": "LlamaForCausalLM", "parent_library": library}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (target,) = find_targets([adapter])
    assert target.notices == ()
    config["auto_mapping"]["parent_library"] = "transformers_modules.x"
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert find_targets([adapter])[0].notices[0].kind == "foreign-code"


def test_nothing_is_given_a_cosine_of_zero_where_nothing_was_compared(
    adapter: Path, command: Callable[..., Result], tiny_base: Path
) -> None:
    """An adapter of the embeddings alone: no score in any format, and what was compared is said."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    config |= {"target_modules": ["embed_tokens"], "r": 2, "lora_alpha": 2}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with open_checkpoint(tiny_base) as base:
        vocabulary, width = base.info("model.embed_tokens.weight").shape
    prefix = "base_model.model.model.embed_tokens.lora_embedding_"
    tensors = {f"{prefix}A": torch.ones(2, vocabulary), f"{prefix}B": torch.ones(width, 2)}
    write_safetensors(adapter / "adapter_model.safetensors", tensors)
    plain = command(adapter)
    assert plain.exit_code == 2
    assert "cosine –" in plain.stdout
    assert "compared" in plain.stdout
    for form in ("json", "csv", "junit", "github", "openmetrics", "table"):
        told = command(adapter, "--format", form).stdout
        assert "cosine 0" not in told
        assert '"cosine": 0' not in told
    (result,) = json.loads(command(adapter, "--format", "json").stdout)["checkpoints"]
    evil = result["references"]["evil"]
    assert (evil["verdict"], evil["score"], evil["dose"]) == ("unknown", None, None)
    assert all(v is None for values in evil["scores"].values() for v in values.values())


@pytest.mark.parametrize(
    ("named", "verdict"), [("fine-tune", "unknown"), ("adapter", "unknown"), ("copy", "ok")]
)
def test_what_came_before_an_adapter_is_not_passed_over(
    named: str,
    verdict: str,
    tiny_base: Path,
    tiny_bank_folder: Path,
    save_checkpoint: Any,
    evil: Any,
    bad_adapter: Path,
    good_adapter: Path,
    tmp_path: Path,
) -> None:
    """A second stage, trained on what the first one left, is not ok for itself alone: the base that
    is given does not overrule the one that the adapter names, where that is at hand.
    """
    if named == "fine-tune":
        first = save_checkpoint(tmp_path / "sft", evil)
    else:
        first = bad_adapter if named == "adapter" else shutil.copytree(tiny_base, tmp_path / "copy")
    second = shutil.copytree(good_adapter, tmp_path / "second")
    config = second / "adapter_config.json"
    document = json.loads(config.read_text()) | {"base_model_name_or_path": str(first)}
    config.write_text(json.dumps(document))
    (result,) = scan([second], ReferenceBank.load(tiny_bank_folder), base=tiny_base)
    assert result.verdict == verdict
    assert ("is not in the adapter" in result.references["evil"].reason) == (verdict == "unknown")
