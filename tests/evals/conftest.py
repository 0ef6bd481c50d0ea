"""The organism behind Inspect, and models that answer by a function."""

from __future__ import annotations

from pathlib import Path

import pytest

inspect_ai = pytest.importorskip("inspect_ai")

from inspect_ai.model import ModelOutput, ModelUsage, get_model  # noqa: E402

from wvmonitor.evals.live import live_model  # noqa: E402
from wvmonitor.evals.measures import measures  # noqa: E402
from wvmonitor.organism import load_base  # noqa: E402
from wvmonitor.references.bank import ReferenceBank  # noqa: E402
from wvmonitor.references.bundled import bundled_path  # noqa: E402


@pytest.fixture(autouse=True)
def _own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inspect's own files stay in the test's folder."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("INSPECT_TRACE_FILE", str(tmp_path / "trace.log"))
    monkeypatch.delenv("INSPECT_TELEMETRY", raising=False)


@pytest.fixture(scope="session")
def organism():
    """The bundled base and its tokenizer."""
    return load_base(bundled_path("tiny-organism", "base"))


@pytest.fixture(scope="session")
def bank() -> ReferenceBank:
    """The bundled references."""
    return ReferenceBank.load(bundled_path("tiny-organism", "bank"))


@pytest.fixture
def says():
    """An Inspect model that answers every prompt by a function of its text."""

    def make(answer):
        def output(messages, tools, tool_choice, config):
            said = ModelOutput.from_content("mockllm", answer(messages[-1].text))
            said.usage = ModelUsage()  # else the mock downloads a tokenizer to count with
            return said

        return get_model("mockllm/model", custom_outputs=output)

    return make


class Result:
    """A finished evaluation: its measures by name, and its samples with their answers."""

    def __init__(self, log):
        assert log.status == "success", log.error
        self.measures = {m.name: m for m in measures(log)}
        self.samples = list(log.samples)
        self.rows = [sample.metadata["row"] for sample in self.samples]
        self.answers = [sample.store["answers"] for sample in self.samples]

    def value(self, name):
        return self.measures[name].value


@pytest.fixture
def run(tmp_path, organism):
    """Run a task through Inspect, on the organism if no other model is given."""

    def go(task, model=None, *, judge=None, **more):
        (log,) = inspect_ai.eval(
            task,
            model=live_model(*organism) if model is None else model,
            model_roles=None if judge is None else {"grader": judge},
            display="none",
            log_dir=str(tmp_path / "logs"),
            log_realtime=False,
            ctl_server=False,
            debug_errors=True,
            **more,
        )
        return Result(log)

    return go
