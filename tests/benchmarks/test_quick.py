"""The benchmarks' quick forms: they run, write their JSON, and compute what the plain ways do."""

import importlib
import json

import pytest
import torch

FIGURE = {"name", "value", "unit", "target", "achieved", "detail", "why"}
MACHINE = {"cpu", "cores", "torch", "threads", "float32_matrix_gflops", "read_gb_per_s"}


@pytest.mark.parametrize(
    "name", ["overhead", "offline", "growth", "scan", "blame", "record", "steer", "waits"]
)
def test_a_quick_benchmark_agrees_with_the_plain_way(name, tmp_path, capsys):
    """Every benchmark runs in seconds, and its products and cosines are those of plain code."""
    threads = torch.get_num_threads()
    try:
        made = importlib.import_module(f"benchmarks.{name}").main(
            ["--quick", "--json", str(tmp_path / "out.json"), "--work", str(tmp_path)]
        )
    finally:
        torch.set_num_threads(threads)
    written = json.loads((tmp_path / "out.json").read_text())
    assert written == json.loads(json.dumps(made))
    assert written["benchmark"] == name
    assert written["quick"] is True
    assert set(written["machine"]) >= MACHINE
    assert written["figures"]
    for figure in written["figures"]:
        assert set(figure) == FIGURE
        assert isinstance(figure["value"], float | int)
        assert figure["achieved"] is None  # quick times mean nothing
    assert written["checks"]
    for check in written["checks"]:
        assert check["ours"] == pytest.approx(check["other"], rel=1e-4, abs=1e-7), check["name"]
    assert name in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]
