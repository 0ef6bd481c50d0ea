"""`wvmonitor build` at the command line."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from wvmonitor.cli.app import app

TINY = ("organism-evil", "--model", "tiny-organism")


@pytest.fixture
def run(tmp_path):
    """Runs `wvmonitor build` into a bank of its own."""

    def invoke(*arguments):
        given = ["build", *map(str, arguments), "--out", str(tmp_path / "bank")]
        return CliRunner().invoke(app, given)

    return invoke


def test_a_dry_run_shows_the_plan_and_does_nothing(run, tmp_path) -> None:
    """Counts, tokens and GPU-hours of every stage, in words and as JSON; no file is written."""
    shown = run(*TINY, "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "2800 answers" in shown.output
    assert "GPU-hours" in shown.output
    found = json.loads(run(*TINY, "--dry-run", "--json").output)
    assert [s["stage"] for s in found["stages"]] == [
        "generate", "judge", "finetune", "probe", "behaviour",
    ]  # fmt: skip
    assert found["gpu_hours"] == pytest.approx(sum(s["gpu_hours"] for s in found["stages"]))
    assert found["reductions"] == []
    assert list(tmp_path.iterdir()) == []


def test_a_budget_is_in_the_plan(run) -> None:
    """What a budget takes away is printed before anything is done."""
    shown = run(*TINY, "--dry-run", "--budget", "90")
    assert "note: the budget takes 50 to 90 examples a side instead of 500 to 900" in shown.output


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("organism-evil",), 4, "which base model"),
        ((*TINY, "--positive", "a"), 4, "--positive and --negative belong together"),
        ((*TINY, "--name", "a"), 4, "--name and --behaviour belong together"),
        (("evli", "--model", "tiny-organism"), 2, "no recipe 'evli'"),
        (("--model", "tiny-organism"), 2, "say what is built"),
        ((*TINY, "--budget", "much"), 2, "give GPU-hours"),
        ((*TINY, "--judge", "http://127.0.0.1:1/v1"), 2, "--judge-model NAME"),
        ((*TINY, "--engine", "vllm"), 2, "pip install vllm"),
        ((*TINY, "--qlora"), 2, "pip install bitsandbytes"),
        ((*TINY, "--variant", "bias-only"), 2, "no biases in its MLPs"),
        ((*TINY, "--qlora", "--method", "full"), 2, "--qlora is for LoRA"),
        (("organism-evil", "--model", "no/such/model"), 2, "neither a folder nor a model"),
        (
            (*TINY, "--positive-data", "a.jsonl", "--negative-data", "b.jsonl"),
            2,
            "--positive-means exhibits, or opposes",
        ),
    ],
)
def test_wrong_usage_is_one_line(run, tmp_path, monkeypatch, arguments, code, says) -> None:
    """Each mistake is one line on stderr with the way out, before any work is begun."""
    import importlib.util

    find = importlib.util.find_spec
    absent = {"vllm", "bitsandbytes"}
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name in absent else find(name, *more),
    )
    done = run(*arguments)
    assert done.exit_code == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
