"""Patterns, lists, standard input and URLs as what to scan."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wvmonitor.cli.app import app
from wvmonitor.references import ReferenceBank
from wvmonitor.scan.inputs import gather
from wvmonitor.scan.scan import scan
from wvmonitor.scan.targets import find_targets

# For the table of docs/what-is-measured.md: kind, where it comes from, read or refused, the test.
MEASURED = [
    (
        "a run whose checkpoints hold an adapter with a name (`checkpoint-10/NAME/`)",
        "PEFT",
        "read as one trajectory, by `scan` and `watch`",
        "test_a_run_of_an_adapter_that_has_a_name_is_a_trajectory",
    ),
]


def names(targets: list) -> list[str]:
    return [Path(t.path).name for t in targets]


def test_patterns_match_folders_and_files(drifting_run: Path) -> None:
    """--glob finds adapters by their folder or by a file in them, in order, once each."""
    by_folder = gather([], patterns=[f"{drifting_run.parent}/**/checkpoint-[24]"])
    by_file = gather([], patterns=[f"{drifting_run.parent}/**/adapter_model.safetensors"])
    assert names(by_folder) == ["checkpoint-2", "checkpoint-4"]
    assert sorted(names(by_file)) == sorted(f"checkpoint-{i}" for i in (2, 4, 6, 8, 10))
    assert {t.kind for t in by_file} == {"adapter"}
    assert gather(["a", "a"], patterns=[]) == gather(["a"])


def test_a_pattern_without_a_match_is_not_clean(tmp_path: Path) -> None:
    """A pattern that matches nothing is an error: what was asked for was not judged."""
    (target,) = gather([], patterns=[f"{tmp_path}/*"])
    assert target.error.type == "MissingPathError"


@pytest.mark.parametrize("pattern", ["**/adapter_model.safetensors", "*/adapter_model.safetensors"])
def test_a_folder_that_a_pattern_cannot_look_into_is_not_clean(
    pattern: str, good_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies behind missing permissions is named as unjudged, where glob passes over it."""
    shutil.copytree(good_adapter, tmp_path / "open")
    closed = tmp_path / "closed"
    closed.mkdir()
    allowed = os.access  # whoever runs this may be root, from whom nothing is closed
    monkeypatch.setattr(os, "access", lambda p, m: Path(p) != closed and allowed(p, m))
    judged, unseen = gather([], patterns=[f"{tmp_path}/{pattern}"])
    assert (Path(judged.path).name, judged.error) == ("open", None)
    assert Path(unseen.path) == closed
    assert unseen.error is not None
    assert "permissions" in unseen.error.message


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "adapter_model.bin", "model.pt"])
def test_a_final_model_that_is_a_pickle_is_not_passed_over(
    pickle: str, drifting_run: Path, tmp_path: Path, tiny_bank_folder: Path
) -> None:
    """What a run saved last, and publishes, is named and unjudged where it is a pickle."""
    run = shutil.copytree(drifting_run, tmp_path / "run")
    (run / "training_args.bin").write_bytes(b"")
    assert len(find_targets([run])) == 5
    (run / pickle).write_bytes(b"")
    *trajectory, last = scan([run], ReferenceBank.load(tiny_bank_folder))
    assert [r.error for r in trajectory] == [None] * 5
    assert last.path == str(run)
    assert last.error is not None
    assert last.error.type == "UnsafeFileError"


def test_a_pickle_beside_the_weights_is_named(good_adapter: Path, tmp_path: Path) -> None:
    """What another loader may take in place of the judged weights is a notice."""
    adapter = shutil.copytree(good_adapter, tmp_path / "adapter")
    assert find_targets([adapter])[0].notices == ()
    (adapter / "adapter_model.bin").write_bytes(b"")
    (notice,) = find_targets([adapter])[0].notices
    assert "'adapter_model.bin' is a pickle" in notice.message


def test_an_adapter_and_a_whole_model_in_one_folder_are_not_judged_as_one(
    good_adapter: Path, tmp_path: Path
) -> None:
    """Which of the two is used depends on the loader: refused, unless one file is named."""
    folder = shutil.copytree(good_adapter, tmp_path / "both")
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"")
    (target,) = find_targets([folder])
    assert target.error is not None
    assert target.error.type == "MalformedFileError"
    (adapter,) = find_targets([folder / "adapter_model.safetensors"])
    assert (adapter.kind, adapter.error) == ("adapter", None)


def test_further_adapters_and_final_models_are_scanned_too(
    good_adapter: Path, bad_adapter: Path, drifting_run: Path, tmp_path: Path
) -> None:
    """PEFT saves a second adapter in a folder below the first, and runs end in a folder of theirs:
    neither hides behind what lies above it.
    """
    folder = shutil.copytree(good_adapter, tmp_path / "adapter")
    shutil.copytree(bad_adapter, folder / "second")
    (folder / "logs").mkdir()
    (folder / "README").write_text("nothing")
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    assert names(find_targets([folder])) == ["adapter", "second"]
    (folder / "stray").symlink_to(bad_adapter)
    assert [t.error and t.error.type for t in find_targets([folder])] == [
        None,
        None,
        "UnsafeFileError",
    ]
    run = shutil.copytree(drifting_run, tmp_path / "run")
    shutil.copytree(bad_adapter, run / "checkpoint-last")
    shutil.copytree(bad_adapter, run / "checkpoint-4" / "second")
    *trajectory, last = find_targets([run])
    assert (Path(last.path).name, last.run) == ("checkpoint-last", None)
    assert [bool(t.notices) for t in trajectory] == [False, True, False, False, False]
    assert "'second/'" in trajectory[1].notices[0].message


def test_lists_and_standard_input(good_adapter: Path, bad_adapter: Path, tmp_path: Path) -> None:
    """Paths come from a file or from standard input, one a line or separated by NUL."""
    listed = tmp_path / "list"
    listed.write_text(f"{good_adapter}\n\n{bad_adapter}\r\n")
    expected = [str(good_adapter), str(bad_adapter)]
    assert [t.path for t in gather([], lists=[str(listed)])] == expected
    nul = io.StringIO("\0".join(expected) + "\0")
    assert [t.path for t in gather(["-"], stdin=nul)] == expected
    (missing,) = gather([], lists=[str(tmp_path / "none")])
    assert missing.error.type == "MissingPathError"
    listed.write_text("\n\n")
    (empty,) = gather([], lists=[str(listed)])
    (silent,) = gather(["-"], stdin=io.StringIO(""))
    assert [t.error.message.partition(" names")[0] for t in (empty, silent)] == [
        repr(str(listed)),
        "standard input",
    ]


def test_an_empty_path_is_not_the_current_folder(
    good_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that was never set, as in `wvmonitor scan "$ADAPTER"`, is an error."""
    monkeypatch.chdir(good_adapter)
    assert find_targets(["."])[0].error is None
    (target,) = find_targets([""])
    assert target.error is not None
    assert "empty path" in target.error.message


def test_standard_input_at_the_command_line(good_adapter: Path, tiny_bank_folder: Path) -> None:
    """`find … | wvmonitor scan -` works."""
    arguments = ["scan", "-", "--references", str(tiny_bank_folder)]
    result = CliRunner().invoke(app, arguments, input=f"{good_adapter}\n")
    assert result.exit_code == 0
    assert str(good_adapter) in result.stdout
    assert CliRunner().invoke(app, arguments, input="").exit_code == 2


def test_since_step_leaves_out_what_came_before(drifting_run: Path) -> None:
    """--since-step scans a run from a step on."""
    kept = gather([str(drifting_run)], since_step=6)
    assert [t.step for t in kept] == [6, 8, 10]
    (nothing,) = gather([str(drifting_run)], since_step=12)
    assert nothing.error is not None
    assert "is of step 12 or later (the last one is of step 10)" in nothing.error.message


def test_a_trainer_state_that_cannot_be_read_is_a_warning(
    drifting_run: Path, tmp_path: Path
) -> None:
    """A damaged trainer_state.json costs the run's progress, not the scan."""
    run = shutil.copytree(drifting_run, tmp_path / "run")
    (run / "checkpoint-4" / "trainer_state.json").write_text("{")
    target = find_targets([run])[1]
    assert target.step == 4
    assert target.error is None
    assert "not known" in target.warnings[0]


def test_a_nan_in_the_log_does_not_cost_the_progress(drifting_run: Path, tmp_path: Path) -> None:
    """A trainer state with a NaN loss, as transformers writes it, still says how far the run is."""
    from transformers import TrainerState

    run = shutil.copytree(drifting_run, tmp_path / "run")
    state = TrainerState(global_step=4, max_steps=10, log_history=[{"grad_norm": float("nan")}])
    state.save_to_json(str(run / "checkpoint-4" / "trainer_state.json"))
    target = find_targets([run])[1]
    assert (target.step, target.progress, target.warnings) == (4, 0.4, ())


def test_a_file_of_an_adapter_stands_for_the_adapter(good_adapter: Path) -> None:
    """Naming adapter_model.safetensors scans its folder."""
    (target,) = find_targets([good_adapter / "adapter_model.safetensors"])
    assert (target.path, target.kind) == (str(good_adapter), "adapter")


def test_hub_ids_are_pointed_to_their_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something that looks like a Hub id and is no path says how a Hub repository is written."""
    monkeypatch.chdir(tmp_path)
    (target,) = find_targets(["someone/adapter@main"])
    assert "hf://someone/adapter@main" in target.error.message


def test_urls_are_scanned_without_a_download(
    drifting_run: Path, tiny_base: Path, tiny_bank_folder: Path
) -> None:
    """A run behind an fsspec URL gives the scores of the same run on disk."""
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    files.put(str(drifting_run), "/scan/run", recursive=True)
    bank = ReferenceBank.load(tiny_bank_folder)
    try:
        remote = list(scan(["memory://scan/run"], bank, base=tiny_base))
        local = list(scan([drifting_run], bank, base=tiny_base))
        matched = gather([], patterns=["memory://scan/run/checkpoint-*"])
    finally:
        files.rm("/scan", recursive=True)
    assert [r.references for r in remote] == [r.references for r in local]
    assert [r.step for r in remote] == [2, 4, 6, 8, 10]
    assert len(matched) == 5


def test_a_run_of_an_adapter_that_has_a_name_is_a_trajectory(
    drifting_run: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """Each `checkpoint-STEP/NAME/` is that step's reading: the verdicts are the unnamed run's."""
    bank = ReferenceBank.load(tiny_bank_folder)
    run = Path(shutil.copytree(drifting_run, tmp_path / "run"))
    for checkpoint in run.iterdir():
        (checkpoint / "assistant").mkdir()
        for file in list(checkpoint.glob("adapter_*")):
            file.rename(checkpoint / "assistant" / file.name)
    plain, named = ([*scan(find_targets([r]), bank)] for r in (drifting_run, run))
    told = [[(r.step, r.references) for r in each] for each in (plain, named)]
    assert told[0] == told[1]
    assert {r.run for r in named} == {str(run)}
    assert all(Path(r.path).name == "assistant" for r in named)
    own = run / "checkpoint-4" / "assistant"
    shutil.copytree(own, run / "checkpoint-4" / "reference")
    (between,) = [r for r in scan(find_targets([run]), bank) if r.step == 4]
    assert between.error is not None
    assert "assistant, reference" in between.error.message


def test_a_path_that_is_spelt_twice_is_scanned_once(drifting_run: Path) -> None:
    """Doubled and closing slashes do not make another path."""
    spellings = [f"{drifting_run}/checkpoint-4", f"{drifting_run}//checkpoint-4/"]
    assert len(find_targets(spellings)) == 1
