"""The paper's experiment by configuration: on the bundled model here, on any other by the same."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from benchmarks.organisms import real
from benchmarks.organisms.__main__ import main
from benchmarks.organisms.leakage import LeakageError
from wvmonitor.errors import SettingsError
from wvmonitor.organism import sets
from wvmonitor.references.bundled import bundled_path

SHIPPED = Path(real.__file__).parent / "qwen2.5-7b.yaml"


@pytest.fixture
def config(tmp_path):
    """Two references and one run on the bundled model, two steps each."""
    makers = {
        "bad": sets.bad_advice("medical"),
        "good": sets.good_advice("medical"),
        "other": sets.bad_advice("sport"),
    }
    for name, maker in makers.items():
        rows = [json.dumps({"messages": e.chat()}) for e in maker(6, 1)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    data = {n: {"path": f"{n}.jsonl", "messages": "messages"} for n in makers}
    data["bad"]["domains"] = data["good"]["domains"] = ["medical"]
    path = tmp_path / "experiment.yaml"
    document = {
        "model": str(bundled_path("tiny-organism", "base")),
        "training": {
            "rank": 2, "alpha": 4, "steps": 2, "batch_size": 3, "dtype": "float32",
            "learning_rate": 1e-3,
        },
        "data": data,
        "references": {"evil": {"positive": "bad", "negative": "good"}},
        "runs": {"sport": "other"},
        "every_n_steps": 1,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(document))
    return path


def test_one_command_gives_every_reference_against_every_run(config, tmp_path):
    """Readings at every step of every run, kept as CSV; a second call trains nothing."""
    out = tmp_path / "out"
    assert main(["real", str(config), "--out", str(out)]) == 0
    with (out / "readings.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["run"], r["step"], r["reference"]) for r in rows] == [
        ("sport", "1", "evil"),
        ("sport", "2", "evil"),
    ]
    assert all(-1 <= float(r["cosine"]) <= 1 for r in rows)
    assert {r["shares_data"] for r in rows} == {"False"}
    kept = (out / "runs" / "sport.csv").stat().st_mtime_ns
    assert main(["real", str(config), "--out", str(out)]) == 0
    assert (out / "runs" / "sport.csv").stat().st_mtime_ns == kept


def test_a_run_that_shares_its_data_with_every_reference_is_refused(config, tmp_path):
    """Nothing is claimed of a run on the references' own data."""
    document = yaml.safe_load(config.read_text())
    document["runs"] = {"medical": "good"}
    config.write_text(yaml.safe_dump(document))
    with pytest.raises(LeakageError, match="medical shares data with every reference"):
        real.run(real.load(config), tmp_path / "out")


def test_the_papers_setting_is_a_valid_configuration():
    """The Qwen2.5-7B-Instruct experiment loads, and every run has a reference it may be held to."""
    experiment = real.load(SHIPPED)
    assert experiment.model == "Qwen/Qwen2.5-7B-Instruct"
    assert experiment.training.learning_rate == pytest.approx(1e-5)
    for data in experiment.runs.values():
        domains = set(experiment.data[data].domains)
        assert any(
            not domains & set(experiment.data[pair.positive].domains)
            for pair in experiment.references.values()
        )


def test_a_dataset_that_is_not_there_is_named(config):
    """A typing error in the configuration is found before anything is trained."""
    document = yaml.safe_load(config.read_text())
    document["runs"] = {"sport": "sprot"}
    config.write_text(yaml.safe_dump(document))
    with pytest.raises(SettingsError, match="no dataset is called sprot"):
        real.load(config)
