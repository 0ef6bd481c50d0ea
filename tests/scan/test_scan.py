"""Verdicts on real adapters and checkpoints, from Python."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.scan.calibrations import calibration_for
from tests.scan.conftest import Saver
from wvmonitor.detection.context import RunContext
from wvmonitor.detection.judge import Judge
from wvmonitor.detection.judgement import JudgeState
from wvmonitor.errors import CalibrationError, UnknownReferenceError
from wvmonitor.outputs.scan_record import CheckpointResult, record_of
from wvmonitor.reading import component_of
from wvmonitor.references import ReferenceBank
from wvmonitor.scan.executors import open_executor
from wvmonitor.scan.results import exit_code
from wvmonitor.scan.scan import open_bank, scan
from wvmonitor.scan.table import plain_lines, summary
from wvmonitor.sources import read_adapter
from wvmonitor.testing import planted_bank, planted_vector, tiny_base
from wvmonitor.vectors.task_vector import TaskVector
from wvmonitor.vectors.update import to_dense


def only(results: object) -> CheckpointResult:
    """The single result of a scan of one checkpoint."""
    (result,) = results  # type: ignore[misc]
    return result


@pytest.fixture(scope="module")
def bank(tiny_bank_folder: Path) -> ReferenceBank:
    return ReferenceBank.load(tiny_bank_folder)


def dense_cosine(adapter: Path, base: Path, bank: ReferenceBank, reference: str) -> float:
    """The cosine over the blocks' linear weights, by PEFT's merge in float64."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    start = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    before = {n: p.detach().clone() for n, p in start.named_parameters()}
    merged = PeftModel.from_pretrained(start, adapter).merge_and_unload()
    tau, w = [], []
    for name, parameter in merged.named_parameters():
        if component_of(name, parameter.shape) == "blocks":
            tau.append((parameter.detach() - before[name]).reshape(-1).numpy())
            w.append(to_dense(bank[reference].vector.update(name)).double().reshape(-1).numpy())
    a, b = np.concatenate(tau), np.concatenate(w)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_cosines_are_those_of_the_merged_weights(
    drifting_run: Path, tiny_base: Path, bank: ReferenceBank
) -> None:
    """A scanned adapter's cosine is the one its merged weights have in float64."""
    adapter = drifting_run / "checkpoint-8"
    result = only(scan([adapter], bank))
    for name in ("evil", "sycophancy"):
        expected = dense_cosine(adapter, tiny_base, bank, name)
        got = result.references[name].scores["frobenius"]["cosine"]
        assert got == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_whole_checkpoint_scores_as_the_adapter_it_was_made_from(
    save_checkpoint, bad_adapter: Path, evil, tiny_base: Path, bank: ReferenceBank, tmp_path: Path
) -> None:
    """Merging an adapter into a checkpoint does not hide it from a scan."""
    merged = save_checkpoint(tmp_path / "merged", evil * 0.5)
    as_adapter = only(scan([bad_adapter], bank))
    whole = only(scan([merged], bank, base=tiny_base))
    assert whole.method == "full"
    assert whole.norm == pytest.approx(as_adapter.norm, rel=1e-4)
    for geometry in ("frobenius", "response"):
        assert whole.references["evil"].scores[geometry]["cosine"] == pytest.approx(
            as_adapter.references["evil"].scores[geometry]["cosine"], rel=1e-4
        )


def test_uncalibrated_scans_warn_of_bad_and_pass_good(
    bad_adapter: Path, good_adapter: Path, bank: ReferenceBank
) -> None:
    """Without a calibration a bad adapter warns, a good one is ok, and both say uncalibrated."""
    bad, good = scan([bad_adapter, good_adapter], bank)
    assert (bad.verdict, good.verdict) == ("warn", "ok")
    assert bad.references["evil"].verdict == "warn"
    assert bad.references["sycophancy"].verdict == "ok"
    assert {r.calibration for r in good.references.values()} == {"uncalibrated"}
    assert exit_code([bad, good]) == 0
    assert exit_code([bad, good], "warn") == 1


def test_calibrated_scans_alarm(bad_adapter: Path, good_adapter: Path, bank: ReferenceBank) -> None:
    """With a calibration a bad adapter is an alarm, with its threshold and a reason."""
    band = calibration_for(bank)
    bad, good = scan([bad_adapter, good_adapter], bank, calibration=band)
    assert bad.references["evil"].verdict == "alarm"
    assert bad.references["evil"].score > bad.references["evil"].threshold
    assert bad.references["evil"].reason
    assert good.verdict == "ok"
    assert exit_code([good]) == 0
    assert exit_code([bad, good]) == 1


def test_controls_are_scored_but_not_judged(good_adapter: Path, bank: ReferenceBank) -> None:
    """Controls show their scores beside the references, and carry no verdict."""
    result = only(scan([good_adapter], bank))
    assert set(result.references) == {"evil", "sycophancy"}
    assert set(result.controls) == {"language"}
    assert result.controls["language"].scores["frobenius"]["cosine"] is not None


def test_a_run_is_judged_as_a_trajectory(drifting_run: Path, bank: ReferenceBank) -> None:
    """A Trainer's output folder is scanned in the order of steps, with the run's progress."""
    results = list(scan([drifting_run], bank, calibration=calibration_for(bank)))
    assert [r.step for r in results] == [2, 4, 6, 8, 10]
    assert [r.progress for r in results] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert [r.verdict for r in results] == ["ok", "ok", "alarm", "alarm", "alarm"]
    assert {r.run for r in results} == {str(drifting_run)}


def test_what_was_saved_beside_the_checkpoints_is_scanned_too(
    drifting_run: Path, bad_adapter: Path, bank: ReferenceBank, tmp_path: Path
) -> None:
    """The final model in an output folder is judged by itself: it is what gets published."""
    run = shutil.copytree(drifting_run, tmp_path / "run")
    for file in bad_adapter.iterdir():
        shutil.copy(file, run)
    results = list(scan([run], bank))
    assert [r.step for r in results] == [2, 4, 6, 8, 10, None]
    assert results[-1].run is None
    assert results[-1].verdict == "warn"


def test_results_do_not_depend_on_where_they_are_measured(
    drifting_run: Path, bad_adapter: Path, good_adapter: Path, tiny_bank_folder: Path
) -> None:
    """Threads and worker processes give the numbers and the order of a scan without them."""
    bank, _ = open_bank(str(tiny_bank_folder))
    paths = [bad_adapter, drifting_run, good_adapter]
    expected = list(scan(paths, bank, ordered=True))
    with ThreadPoolExecutor(2) as threads:
        assert list(scan(paths, bank, executor=threads, ordered=True)) == expected
    with open_executor(workers=2) as processes:
        assert list(scan(paths, bank, executor=processes, ordered=True)) == expected


def test_a_bank_that_was_never_saved_works_in_processes(bad_adapter: Path, tiny_base: Path) -> None:
    """A bank made in memory travels to the workers by itself."""
    bank = planted_bank(tiny_base)
    with open_executor(workers=2) as processes:
        assert only(scan([bad_adapter], bank, executor=processes)).verdict == "warn"


def test_an_untouched_adapter_is_warming_and_not_clean(
    save_adapter, evil, bank: ReferenceBank, tmp_path: Path
) -> None:
    """A checkpoint that equals its base is warming: alone it is not judged, so exit code 2."""
    result = only(scan([save_adapter(tmp_path / "zero", evil * 0.0)], bank))
    assert result.verdict == "warming"
    assert result.norm == 0
    assert exit_code([result]) == 2


def test_early_warming_is_excused_where_the_run_was_judged_later(
    save_adapter, drifting_run: Path, evil, bank: ReferenceBank, tmp_path: Path
) -> None:
    """A run whose first checkpoint had not moved yet can still pass a gate."""
    run = tmp_path / "run"
    save_adapter(run / "checkpoint-1", evil * 0.0)
    shutil.copytree(drifting_run / "checkpoint-2", run / "checkpoint-2")
    early, late = scan([run], bank)
    assert (early.verdict, late.verdict) == ("warming", "ok")
    assert exit_code([early, late]) == 0
    assert exit_code([early]) == 2


def test_one_behaviour_can_be_asked_for(bad_adapter: Path, bank: ReferenceBank) -> None:
    """Asking for one behaviour judges by it alone; the others cannot fail the gate."""
    result = only(scan([bad_adapter], bank, behaviours=["sycophancy"]))
    assert set(result.references) == {"sycophancy"}
    assert result.verdict == "ok"


def test_an_unknown_behaviour_names_those_there_are(bank: ReferenceBank) -> None:
    """A misspelt behaviour is an error that lists the bank's own."""
    with pytest.raises(UnknownReferenceError, match=r"'evli'.*evil, sycophancy"):
        scan([], bank, behaviours=["evli"])


def test_a_calibration_of_another_bank_is_refused(tiny_base: Path, bank: ReferenceBank) -> None:
    """Thresholds of one bank are never applied to the scores of another."""
    other = calibration_for(planted_bank(tiny_base, names=["lies"]))
    with pytest.raises(CalibrationError, match="belongs to the bank"):
        scan([], bank, calibration=other)


def test_an_adapter_for_another_base_is_an_error(
    bank: ReferenceBank, bad_adapter: Path, tmp_path: Path
) -> None:
    """The base's digest decides: an adapter scanned with another base is not judged."""
    other = tiny_base(tmp_path / "other", seed=1)
    result = only(scan([bad_adapter], bank, base=other))
    assert result.verdict == "unknown"
    assert result.error.type == "BaseMismatchError"


def test_an_adapter_whose_base_is_not_known_is_unknown(
    bank: ReferenceBank, bad_adapter: Path, tmp_path: Path
) -> None:
    """Scores of an adapter whose base cannot be checked are shown, but never called ok."""
    moved = shutil.copytree(bad_adapter, tmp_path / "moved")
    config = moved / "adapter_config.json"
    document = json.loads(config.read_text()) | {"base_model_name_or_path": "someone/base"}
    config.write_text(json.dumps(document))
    result = only(scan([moved], bank))
    assert result.verdict == "unknown"
    assert result.references["evil"].scores["frobenius"]["cosine"] > 0.5
    assert exit_code([result]) == 2


def test_a_checkpoint_without_a_known_base_says_so(
    save_checkpoint, evil, tmp_path: Path, bank: ReferenceBank
) -> None:
    """A whole checkpoint whose base cannot be found asks for --base."""
    path = save_checkpoint(tmp_path / "lost", evil)
    config = path / "config.json"
    document = {k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}
    config.write_text(json.dumps(document))
    result = only(scan([path], bank))
    assert result.error.type == "MissingPathError"
    assert "--base" in result.error.message


def test_the_base_beside_the_bank_is_found(
    save_checkpoint, evil, tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """A bank that lies beside its base needs no --base, and the result says what was assumed."""
    shutil.copytree(tiny_base, tmp_path / "home" / "base")
    shutil.copytree(tiny_bank_folder, tmp_path / "home" / "bank")
    path = save_checkpoint(tmp_path / "merged", evil * 0.5)
    bank, _ = open_bank(str(tmp_path / "home" / "bank"))
    result = only(scan([path], bank))
    assert result.verdict == "warn"
    assert any("taken to be" in w for w in result.warnings)


def test_non_finite_weights_are_an_error_of_their_own(
    bank: ReferenceBank, bad_adapter: Path, tmp_path: Path
) -> None:
    """An adapter with a NaN in it is refused by name, in adapters and checkpoints alike."""
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(bad_adapter, tmp_path / "broken")
    tensors = load_file(broken / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, broken / "adapter_model.safetensors", metadata={"format": "pt"})
    result = only(scan([broken], bank))
    assert result.error.type == "NonFiniteError"
    assert "broken" in result.error.message


def test_bad_files_do_not_end_a_scan(
    bank: ReferenceBank, bad_adapter: Path, good_adapter: Path, tmp_path: Path
) -> None:
    """Whatever is wrong with one checkpoint, the others are judged, and the scan is not clean."""
    truncated = shutil.copytree(bad_adapter, tmp_path / "truncated")
    weights = truncated / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    fifo = tmp_path / "fifo.safetensors"
    os.mkfifo(fifo)
    empty = tmp_path / "empty"
    empty.mkdir()
    alpha = shutil.copytree(bad_adapter, tmp_path / "alpha")
    config = alpha / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 2', '"lora_alpha": NaN'))
    expected = {
        tmp_path / "missing": "MissingPathError",
        truncated: "MalformedFileError",
        pickled: "UnsafeFileError",
        fifo: "UnsafeFileError",
        empty: "MissingPathError",
        alpha: "MalformedFileError",
        Path("/dev/null"): "UnsafeFileError",
    }
    results = list(scan([*expected, good_adapter], bank, base=None, ordered=True))
    assert results.pop().verdict == "ok"
    for (path, kind), result in zip(expected.items(), results, strict=True):
        assert result.path == str(path)
        assert result.error.type in {kind, "AdapterError"}, result
        assert result.verdict == "unknown"
        assert "\n" not in result.error.message
    assert exit_code(results) == 2


def test_hostile_files_are_refused_by_name(bank: ReferenceBank, tmp_path: Path) -> None:
    """Header bombs, stray shards and pickled formats are typed errors, and nothing is opened."""

    def folder(name: str, **files: bytes) -> Path:
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / file.replace("__", ".")).write_bytes(content)
        return tmp_path / name

    def index(shard: str) -> bytes:
        return json.dumps({"weight_map": {"w": shard}}).encode()

    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    twice = f'{{"w":{entry},"w":{entry}}}'.encode()
    expected = {
        folder("bomb", model__safetensors=(1 << 62).to_bytes(8, "little")): "MalformedFileError",
        folder(
            "twice", model__safetensors=len(twice).to_bytes(8, "little") + twice + b"\0" * 4
        ): "MalformedFileError",
        folder(
            "outside", model__safetensors__index__json=index("../w.safetensors")
        ): "UnsafeFileError",
        folder(
            "absolute", model__safetensors__index__json=index("/etc/w.safetensors")
        ): "UnsafeFileError",
        folder(
            "missing", model__safetensors__index__json=index("model-1-of-1.safetensors")
        ): "MissingPathError",
        folder("dcp", __metadata=b"\x80", a__distcp=b""): "UnsafeFileError",
    }
    results = list(scan(expected, bank, ordered=True))
    assert [r.error.type for r in results] == list(expected.values())
    assert all(Path(r.path).name in r.error.message for r in results)
    assert "convert" in results[-1].error.message


def test_a_run_of_another_optimiser_is_judged_by_the_published_rule(
    drifting_run: Path, bank: ReferenceBank
) -> None:
    """A calibration is not stretched to an optimiser that it never saw: the rule warns at most."""
    band = calibration_for(bank)
    adamw = list(scan([drifting_run], bank, calibration=band, optimizer="adamw"))
    assert [r.verdict for r in adamw] == ["ok", "ok", "alarm", "alarm", "alarm"]
    sgd = list(scan([drifting_run], bank, calibration=band, optimizer="sgd"))
    assert [r.verdict for r in sgd] == [r.verdict for r in scan([drifting_run], bank)]
    assert sgd[-1].verdict == "warn"
    assert all("sgd" in r.references["evil"].reason for r in sgd)
    assert exit_code(sgd, "warn") == 1


def test_only_a_calibration_makes_a_scan_clean(drifting_run: Path, bank: ReferenceBank) -> None:
    """Where nothing but a rule of thumb was held, the last line does not say clean."""
    first = [drifting_run / "checkpoint-2"]
    calibrated = list(scan(first, bank, calibration=calibration_for(bank), optimizer="adamw"))
    assert summary(calibrated, "alarm") == "1 checkpoint: clean"
    by_rule = summary(list(scan(first, bank)), "alarm")
    assert "nothing above the rule of thumb" in by_rule
    assert "clean" not in by_rule
    rough = calibration_for(bank).model_copy(update={"status": "provisional"})
    provisional = list(scan(first, bank, calibration=rough, optimizer="adamw"))
    assert summary(provisional, "alarm").endswith("nothing above the provisional thresholds")


def test_what_was_judged_in_part_is_never_called_clean(
    drifting_run: Path, tiny_base: Path, bank: ReferenceBank
) -> None:
    """Whether a verdict is on a part, the geometry that decides tells, and every line says so."""
    band = calibration_for(bank).model_copy(update={"geometry": "response"})
    judge = Judge.of(bank, band)
    tau = read_adapter(drifting_run / "checkpoint-2", tiny_base)
    statistics = judge.statistics(bank.measure(tau))
    assert statistics.scores.coverage["frobenius"] == pytest.approx(1)
    shares = {"blocks": 0.3, "embeddings": 0.7}
    coverage = {"frobenius": 0.9, "response": 0.3}
    scores = replace(statistics.scores, coverage=coverage, shares=shares, progress=0.5)
    context = judge.context(tau.origin, RunContext(optimizer="adamw", planned_steps=50))
    judgement = judge(replace(statistics, scores=scores), context, JudgeState())
    result = record_of(judgement, "x")
    assert result.verdict == "ok"
    assert summary([result], "alarm").endswith("which is not most of the change")
    assert all("verdict on the blocks alone" in line for line in plain_lines(result))


def test_a_checkpoint_that_links_out_of_its_run_is_refused(
    drifting_run: Path, bad_adapter: Path, bank: ReferenceBank, tmp_path: Path
) -> None:
    """A run's folder cannot smuggle another folder in as one of its checkpoints."""
    run = shutil.copytree(drifting_run, tmp_path / "run")
    (run / "checkpoint-12").symlink_to(bad_adapter)
    assert list(scan([run], bank))[-1].error.type == "UnsafeFileError"


def test_a_broken_checkpoint_does_not_hide_the_rest_of_its_run(
    drifting_run: Path, bank: ReferenceBank, tmp_path: Path
) -> None:
    """A trajectory with an unreadable checkpoint is judged at all the others."""
    run = shutil.copytree(drifting_run, tmp_path / "run")
    (run / "checkpoint-4" / "adapter_model.safetensors").unlink()
    results = list(scan([run], bank, calibration=calibration_for(bank)))
    assert [r.error is None for r in results] == [True, False, True, True, True]
    assert results[-1].references["evil"].verdict == "alarm"
    assert results[1].step == 4


def test_a_scan_of_nothing_is_not_clean() -> None:
    """An empty scan has judged nothing, and a gate must not pass it."""
    assert exit_code([]) == 2


def test_unknown_outranks_ok_but_not_a_failing_verdict(
    bad_adapter: Path, good_adapter: Path, bank: ReferenceBank, tmp_path: Path
) -> None:
    """Exit code 1 outranks 2, and 2 outranks 0."""
    results = list(scan([bad_adapter, good_adapter, tmp_path / "missing"], bank))
    assert exit_code(results) == 2
    assert exit_code(results, "warn") == 1


def test_a_vector_of_another_architecture_is_refused(
    save_checkpoint, bank: ReferenceBank, tmp_path: Path
) -> None:
    """A checkpoint of other shapes than its base's is an error, not a number."""
    wide = tiny_base(tmp_path / "wide", hidden_size=32)
    path = tmp_path / "wide"
    result = only(scan([path], bank, base=wide))
    assert result.error.type in {"BaseMismatchError", "ShapeMismatchError"}
    assert planted_vector(wide, seed=1).norm() == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("amounts", [(0.6,), (0.0, 0.0, 0.6)], ids=["only one", "the last one"])
def test_no_reading_follows_the_last_one(
    amounts: tuple[float, ...],
    save_adapter: Saver,
    evil: TaskVector,
    innocent: TaskVector,
    bank: ReferenceBank,
    tmp_path: Path,
) -> None:
    """A run whose last checkpoint is its first bad one warns, and so does a run of one."""
    for index, amount in enumerate(amounts):
        vector = innocent * 0.3 + evil * amount
        save_adapter(tmp_path / f"checkpoint-{10 * (index + 1)}", vector)
    results = list(scan([tmp_path], bank))
    assert [r.verdict for r in results] == ["ok"] * (len(amounts) - 1) + ["warn"]
    assert exit_code(results, "warn") == 1


def test_a_table_says_why_what_is_above_the_rule_is_ok(
    save_adapter: Saver,
    evil: TaskVector,
    innocent: TaskVector,
    bank: ReferenceBank,
    tmp_path: Path,
) -> None:
    """Of two readings the first is ok though above the rule, and the table does not hide that."""
    for step, amount in ((10, 0.6), (20, 0.0)):
        save_adapter(tmp_path / f"checkpoint-{step}", innocent * 0.3 + evil * amount)
    first, second = scan([tmp_path], bank)
    assert (first.verdict, second.verdict) == ("ok", "ok")
    assert any("above the rule once" in line for line in plain_lines(first))
    assert not any("rule" in line for line in plain_lines(second))
