"""Names from outside: of runs, from settings, trainers and checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.live.test_monitor import lora_model
from wvmonitor.errors import SettingsError
from wvmonitor.live.monitor import Monitor, Run
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.outputs.prometheus import PrometheusExporter

BAD = ["x" * 200_000, "\ud800", "a\nb", "\x1b[31m", "\u202eevil", " a", ""]


@pytest.mark.parametrize("name", BAD, ids=range(len(BAD)))
def test_a_bad_name_from_a_checkpoint_is_replaced(
    tiny_base: Path,
    tiny_bank_folder: Path,
    tmp_path: Path,
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The run gets another id, with a warning; metrics are served, and stay small."""
    exporter = PrometheusExporter(port=None)
    monitor = Monitor(tiny_bank_folder, exporters=[exporter])
    monitor.start(lora_model(tiny_base), Run(folder=tmp_path, run_id=name, name=name))
    monitor.close()
    page = exporter.page()
    assert 1_000 < len(page) < 50_000
    assert "it gets another one" in caplog.text
    assert len(caplog.text) < 5_000
    assert monitor.run_name.isprintable()


@pytest.mark.parametrize("name", BAD, ids=range(len(BAD)))
def test_a_bad_name_in_the_settings_is_refused(name: str) -> None:
    """By the same rule, before training."""
    with pytest.raises(SettingsError, match="run: "):
        MonitorSettings(run=name)
