"""`wvmonitor ack`, while a run is watched and when it is over."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import yaml
from typer.testing import CliRunner

from tests.outputs.test_delivery import begun, run_states
from tests.receiver import Receiver
from wvmonitor.cli.ack import silence
from wvmonitor.cli.app import app
from wvmonitor.journal.outbox import Outbox
from wvmonitor.journal.reader import JournalReader
from wvmonitor.outputs.webhook import WebhookNotifier


def ack(folder: Path, *more: str) -> str:
    """What the command says."""
    done = CliRunner().invoke(
        app, ["ack", "r", "--reference", "evil", "--why", "it's play", "--journal", str(folder),
              *more],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_run_that_is_watched_hears_of_it_by_itself(tmp_path: Path) -> None:
    """While a process writes the journal nothing more has to be done, and that is said."""
    journal = begun(tmp_path)
    run_states(journal, "alarm")
    shown = ack(tmp_path)
    journal.close()
    assert "resolved at its next reading" in shown
    assert "amtool" not in shown


def test_a_run_that_is_over_is_resolved_at_once(tmp_path: Path, receiver: Receiver) -> None:
    """With the run's settings its notifiers are told; Prometheus's rules get their silence."""
    journal = begun(tmp_path, ("webhook",))
    outbox = Outbox(journal, {"webhook": WebhookNotifier(receiver.url, "s").send})
    run_states(journal, "alarm")
    outbox.close()
    journal.close()
    settings = tmp_path / "settings.yml"
    notifier = {"kind": "webhook", "url": receiver.url, "secret": "s"}
    settings.write_text(yaml.safe_dump({"notifiers": [notifier]}))
    shown = ack(tmp_path, "--settings", str(settings))
    alerts = [json.loads(body)["data"] for _, _, body in receiver.received]
    assert [a["status"] for a in alerts] == ["firing", "resolved"]
    assert alerts[-1]["reason"] == "acknowledged: it's play"
    assert "was resolved at: webhook" in shown
    assert "for up to 12 hours" in shown
    assert silence("r", "evil", "it's play") in shown
    assert "No alert of the notifiers was open" in ack(tmp_path, "--settings", str(settings))


def test_without_settings_it_is_said_who_was_not_told(tmp_path: Path) -> None:
    """Addresses and secrets are in no journal, so nobody is told, and how they could be is said."""
    journal = begun(tmp_path)
    run_states(journal, "alarm")
    journal.close()
    assert "give --settings FILE" in ack(tmp_path)


def test_the_run_is_found_below_a_folder_of_runs(tmp_path: Path) -> None:
    """Where `wvmonitor runs` has shown it, `ack` finds it; a name that two runs have is refused,
    and other commands name the journals that there are.
    """
    for name in ("a", "b/c"):
        journal = begun(tmp_path / name)
        run_states(journal, "alarm")
        journal.close()
    asked = ["ack", "r", "--reference", "evil", "--why", "x", "--journal", str(tmp_path)]
    both = CliRunner().invoke(app, asked)
    assert both.exit_code == 2
    assert "2 journals below" in both.stderr
    assert "b/c/wvmonitor.db" in both.stderr
    lost = CliRunner().invoke(app, ["journal", "verify", str(tmp_path)])
    assert lost.exit_code == 2
    assert f"one of those below it: '{tmp_path}/a/wvmonitor.db'" in lost.stderr
    (tmp_path / "b" / "c" / "wvmonitor.db").write_bytes(b"damaged")
    assert "is acknowledged" in ack(tmp_path)
    assert JournalReader(tmp_path / "a").acknowledged("r") == {"evil": "it's play"}
    absent = CliRunner().invoke(app, ["ack", "q", *asked[2:]])
    assert "none of the 2 journals" in absent.stderr


def test_the_silence_is_one_shell_command() -> None:
    """Names with quotes and spaces in them are still one argument each."""
    words = shlex.split(silence('a "b"', "evil", "it's play; rm -rf /"))
    assert words[:3] == ["amtool", "silence", "add"]
    assert words[-3:] == ["--comment=it's play; rm -rf /", 'run="a \\"b\\""', 'reference="evil"']
