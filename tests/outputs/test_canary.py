"""No secret is seen anywhere: not in a log, an error, a journal, a page or an alert."""

from __future__ import annotations

import logging
import socket
import traceback
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.live.test_monitor import lora_model, push
from tests.receiver import Receiver
from wvmonitor.cli.app import app
from wvmonitor.errors import WVMonitorError
from wvmonitor.live.monitor import Monitor, Run
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.outputs.prometheus import PrometheusExporter

CANARY = "CaNaRy7f3a"


def settings(form: str, url: str, folder: Path) -> dict[str, Any]:
    """Every setting that holds a secret, given in one form."""
    return {
        "prometheus": {
            "enabled": True,
            "port": 0,
            "linger": 0,
            "token": form,
            "textfile": folder / "wv.prom",
            "pushgateway": {"url": url, "token": form, "interval": 0.05, "delete_after": 0},
        },
        "notifiers": [
            {"kind": "alertmanager", "url": f"{url}/{CANARY}", "token": form},
            {"kind": "webhook", "url": f"{url}/{CANARY}?key={CANARY}", "secret": form},
            {"kind": "chat", "url": f"json://user:{CANARY}@127.0.0.1:{url.rpartition(':')[2]}"},
        ],
    }


@pytest.mark.parametrize("given", ["plain", "env", "file"])
@pytest.mark.parametrize("answers", ["fine", "refused", "broken", "nobody"])
def test_no_secret_is_seen(
    tiny_base: Path,
    tiny_bank_folder: Path,
    tmp_path: Path,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    given: str,
    answers: str,
) -> None:
    """A watched run, its failures and everything that shows it hold no secret; the token works."""
    (tmp_path / "token").write_text(f"{CANARY}\n")
    monkeypatch.setenv("CANARY_TOKEN", f"{CANARY}\n")  # as `export T=$(cat file)` would not
    form = {"plain": CANARY, "env": "env:CANARY_TOKEN", "file": f"file:{tmp_path / 'token'}"}[given]
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
    receiver.answers = {"refused": [401] * 50, "broken": ["drop"] * 50}.get(answers, [])
    url = nobody if answers == "nobody" else receiver.url
    run = tmp_path / "run"
    with caplog.at_level(logging.DEBUG):
        monitor = Monitor(
            tiny_bank_folder, every_n_steps=1, **settings(form, url, tmp_path),
        )  # fmt: skip
        model = lora_model(tiny_base)
        monitor.start(model, Run(folder=run, run_id="r"))
        monkeypatch.setattr(monitor.bank, "measure", lambda *a, **k: 1 / 0)
        for step in range(1, 5):
            push(model)
            monitor.observe(model, step)
        (exporter,) = [e for e in monitor._outputs._exporters if isinstance(e, PrometheusExporter)]
        page = exporter.page().decode()
        monitor.close()
        shown = CliRunner().invoke(app, ["journal", "export", str(run)]).output
        report = CliRunner().invoke(app, ["report", str(run), "--out", str(tmp_path / "r.html")])
    assert '"type": "reading"' in shown
    assert report.exit_code == 0, report.output
    if answers == "fine":
        sent = [h.get("Authorization") for _, h, _ in receiver.received]
        assert f"Bearer {CANARY}" in sent
    printed = capfd.readouterr()
    for place, text in {
        "log": caplog.text,
        "tracebacks": "".join(
            "".join(traceback.format_exception(*r.exc_info)) for r in caplog.records if r.exc_info
        ),
        "metrics": page,
        "textfile": (tmp_path / "wv.prom").read_text(),
        "journal": (run / "wvmonitor.db").read_bytes().decode("latin-1"),
        "export": shown,
        "report": (tmp_path / "r.html").read_text(),
        "bodies": "".join(body.decode() for _, _, body in receiver.received),
        "printed": printed.out + printed.err,
        "repr": repr(monitor.settings) + repr(monitor.settings.build_notifiers()),
    }.items():
        assert CANARY not in text, place


@pytest.mark.parametrize(
    "wrong",
    [
        {"prometheus": {"token": f"{CANARY}\nx"}},
        {"prometheus": {"token": CANARY, "host": "10.0.0.1", "enabled": True}},
        {"prometheus": {"pushgateway": {"url": f"http://u:{CANARY}@h"}}},
        {"prometheus": {"pushgateway": {"url": "http://h", "token": CANARY}}},
        {"notifiers": [{"kind": "webhook", "url": f"http://h/{CANARY}", "secret": CANARY}]},
        {"notifiers": [{"kind": "webhook", "url": f"{CANARY}", "secret": CANARY}]},
        {"notifiers": [{"kind": "webhook", "url": "https://h", "secret": f"whsec_{CANARY}!"}]},
        {"notifiers": [{"kind": "alertmanager", "url": "https://h", "tokn": CANARY}]},
        {"notifiers": [{"kind": "alertmanager", "url": f"https://u:{CANARY}@h"}]},
        {"notifiers": [{"kind": "chat", "url": f"nosuch://{CANARY}"}]},
    ],
    ids=range(10),
)
def test_no_refusal_shows_a_secret(wrong: dict[str, Any]) -> None:
    """What is wrong with a setting is said without the secret in it, in the traceback too."""
    with pytest.raises(WVMonitorError) as caught:
        MonitorSettings(**wrong)
    assert CANARY not in "".join(traceback.format_exception(caught.value, chain=True))
