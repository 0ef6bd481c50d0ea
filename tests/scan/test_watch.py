"""`wvmonitor watch`: a folder of runs that grows, watched from outside."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from wvmonitor.cli.app import app
from wvmonitor.errors import JournalError, MissingPathError
from wvmonitor.journal.reader import JournalReader
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.outputs.exporter import Observation
from wvmonitor.references import ReferenceBank
from wvmonitor.scan import targets
from wvmonitor.scan.trainer_state import TrainerState, read_trainer_state
from wvmonitor.scan.watch import Watcher, WatchOptions

Save = Callable[..., Path]


@pytest.fixture(scope="module")
def adapters(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Two saved adapters: one along the evil reference, one at random."""
    bank = ReferenceBank.load(tiny_bank_folder)
    updates = dict(bank["evil"].vector.updates())
    found: dict[str, Path] = {}
    for kind in ("clean", "evil"):
        torch.manual_seed(3)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32),
            LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        with torch.no_grad():
            for name, module in model.named_modules():
                update = updates.get(name.removeprefix("base_model.model.") + ".weight")
                if update is None or not hasattr(module, "lora_A"):
                    continue
                a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
                if kind == "evil":
                    a.copy_(update.right)
                    b.copy_(update.left)
                else:
                    b.normal_()
        found[kind] = tmp_path_factory.mktemp("adapters") / kind
        model.save_pretrained(found[kind])
    return found


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """An empty folder of runs."""
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def save(runs: Path, adapters: dict[str, Path]) -> Save:
    """Saves a checkpoint as the Trainer does: trainer_state.json last."""

    def build(run: str, step: int, kind: str = "clean", *, state: bool = True) -> Path:
        folder = runs / run / f"checkpoint-{step}"
        shutil.copytree(adapters[kind], folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
        if state:
            content = {"global_step": step, "max_steps": 100, "log_history": []}
            (folder / "trainer_state.json").write_text(json.dumps(content))
        return folder

    return build


@pytest.fixture
def watch(runs: Path, tiny_bank_folder: Path) -> Iterator[Callable[..., Watcher]]:
    """Makes watchers, and closes them."""
    made: list[Watcher] = []

    def build(*, options: WatchOptions | None = None, **settings: Any) -> Watcher:
        watcher = Watcher(runs, MonitorSettings(references=tiny_bank_folder, **settings), options)
        made.append(watcher)
        return watcher

    yield build
    for watcher in made:
        watcher.close()


def steps(runs: Path, run: str) -> list[int]:
    """The steps whose readings count, as the sidecar's journal has them."""
    return [row.step for row in JournalReader(runs / ".wvmonitor").trajectory(run)]


def states(runs: Path, run: str) -> list[str]:
    """The verdicts on the evil reference."""
    rows = JournalReader(runs / ".wvmonitor").trajectory(run)
    return [v.state for row in rows for v in row.verdicts if v.reference == "evil"]


def page(watcher: Watcher) -> str:
    """What a scrape shows."""
    with urllib.request.urlopen(f"http://127.0.0.1:{watcher.port}/metrics", timeout=5) as reply:
        return str(reply.read().decode())


def test_checkpoints_are_judged_as_they_arrive(
    runs: Path, save: Save, watch: Callable[..., Watcher]
) -> None:
    """Each new checkpoint is measured once, in the order of steps, run by run."""
    watcher = watch()
    assert watcher.poll() == 0
    save("a", 10)
    save("deep/er/b", 5)
    assert watcher.poll() == 0  # seen once: it might still be written
    assert watcher.poll() == 2
    save("a", 30, "evil")
    save("a", 20, "evil")
    watcher.poll()
    assert watcher.poll() == 2
    assert watcher.poll() == 0
    assert steps(runs, "a") == [10, 20, 30]
    assert states(runs, "a") == ["ok", "ok", "warn"]  # two readings in a row
    assert steps(runs, "deep/er/b") == [5]


def test_a_new_checkpoint_costs_no_look_into_the_earlier_ones(
    save: Save, watch: Callable[..., Watcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer's state holds the whole log so far: of a long run only the new one's is read."""
    watcher = watch()
    for step in (10, 20, 30):
        save("a", step)
    watcher.poll()
    watcher.poll()
    read: list[str] = []

    def recorded(where: Any) -> TrainerState:
        read.append(str(where))
        return read_trainer_state(where)

    monkeypatch.setattr(targets, "read_trainer_state", recorded)
    newest = save("a", 40)
    watcher.poll()
    assert watcher.poll() == 1
    assert read == [str(newest / "trainer_state.json")]
    (row,) = JournalReader(watcher.folder / ".wvmonitor").trajectory("a")[-1:]
    assert (row.step, row.scores.progress) == (40, 0.4)


def test_only_complete_checkpoints_are_touched(
    runs: Path, save: Save, watch: Callable[..., Watcher], adapters: dict[str, Path]
) -> None:
    """Files that still change, come one by one, or are cut short are left until they are whole."""
    watcher = watch(options=WatchOptions(settle=0.3), prometheus={"enabled": True, "port": 0})
    folder = runs / "a" / "checkpoint-10"
    folder.mkdir(parents=True)
    whole = (adapters["evil"] / "adapter_model.safetensors").read_bytes()
    shutil.copyfile(adapters["evil"] / "adapter_config.json", folder / "adapter_config.json")
    time.sleep(0.35)
    for size in (1000, len(whole) // 2):
        watcher.poll()
        (folder / "adapter_model.safetensors").write_bytes(whole[:size])
        assert watcher.poll() == 0
    time.sleep(0.35)
    assert watcher.poll() == 0  # stands still, but is no safetensors file: tried, and refused
    assert 'wvmonitor_errors_total{where="checkpoint"} 1.0' in page(watcher)
    (folder / "adapter_model.safetensors").write_bytes(whole)
    assert watcher.poll() == 0
    assert watcher.poll() == 0  # no trainer_state.json: not before it has settled
    time.sleep(0.35)
    assert watcher.poll() == 1
    (runs / "a" / "tmp-checkpoint-20").mkdir()
    (runs / "a" / "checkpoint-30").symlink_to(folder)
    watcher.poll()
    assert watcher.poll() == 0
    assert steps(runs, "a") == [10]


def test_a_broken_checkpoint_is_given_up_and_hides_no_other(
    runs: Path, save: Save, watch: Callable[..., Watcher], caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint that cannot be read is tried a few times, said, and the others go on."""
    watcher = watch()
    broken = save("a", 10)
    (broken / "adapter_model.safetensors").write_bytes(b"\x00" * 100)
    save("a", 20)
    for _ in range(10):
        watcher.poll()
    assert steps(runs, "a") == [20]
    refusals = [r.message for r in caplog.records if "cannot be judged" in r.message]
    assert len(refusals) == 5
    assert "left until its files change" in refusals[-1]


def test_a_checkpoint_without_readable_weights_does_not_go_by_unseen(
    runs: Path, save: Save, watch: Callable[..., Watcher], caplog: pytest.LogCaptureFixture
) -> None:
    """Saved as a pickle, or in an engine's shards, a complete checkpoint is an error that is
    counted and says what to do: its run is not watched.
    """
    watcher = watch(prometheus={"enabled": True, "port": 0})
    pickled = save("pickled", 10)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    sharded = save("sharded", 10)
    (sharded / "adapter_model.safetensors").unlink()
    (sharded / "adapter_config.json").unlink()
    (sharded / "pytorch_model_fsdp_0").mkdir()
    (sharded / "pytorch_model_fsdp_0" / "__0_0.distcp").write_bytes(b"0")
    for _ in range(4):
        watcher.poll()
    assert 'wvmonitor_errors_total{where="checkpoint"} 2.0' in page(watcher)  # each is said once
    assert "is a pickle" in caplog.text
    assert "accelerate merge-weights" in caplog.text


def test_an_adapter_that_has_a_name_is_watched(
    runs: Path, save: Save, watch: Callable[..., Watcher]
) -> None:
    """PEFT saves an adapter that is not called "default" in a folder of its name."""
    watcher = watch()
    for step in (10, 20):
        named(save("a", step, "evil"))
    watcher.poll()
    assert watcher.poll() == 2
    assert steps(runs, "a") == [10, 20]
    assert states(runs, "a")[-1] == "warn"


def named(checkpoint: Path, name: str = "assistant") -> None:
    """Move a saved adapter to where PEFT saves it if it has this name."""
    (checkpoint / name).mkdir()
    for file in list(checkpoint.glob("adapter_*")):
        file.rename(checkpoint / name / file.name)


def test_a_restart_goes_on_from_the_journal(
    runs: Path, save: Save, watch: Callable[..., Watcher]
) -> None:
    """Started again, the sidecar shows what it knew, repeats nothing, and judges what is new."""
    first = watch()
    save("a", 10, "evil")
    first.poll()
    assert first.poll() == 1
    first.close()
    second = watch(prometheus={"enabled": True, "port": 0})
    assert 'wvmonitor_global_step{run="a"} 10.0' in page(second)
    second.poll()
    assert second.poll() == 0
    save("a", 20, "evil")
    second.poll()
    assert second.poll() == 1
    assert states(runs, "a") == ["ok", "warn"]  # the row of readings was carried over
    assert 'wvmonitor_verdict{reference="evil",run="a",verdict="warn"} 1.0' in page(second)


def test_a_run_that_goes_back_is_judged_anew(
    runs: Path, save: Save, watch: Callable[..., Watcher]
) -> None:
    """A checkpoint that is overwritten, or comes after later ones, replaces what followed it."""
    watcher = watch()
    for step in (10, 20, 30):
        save("a", step, "evil")
    watcher.poll()
    assert watcher.poll() == 3
    shutil.rmtree(runs / "a" / "checkpoint-30")
    time.sleep(0.02)
    save("a", 20, "clean")
    watcher.poll()
    assert watcher.poll() == 1
    assert steps(runs, "a") == [10, 20]
    assert states(runs, "a") == ["ok", "ok"]


def test_alerts_reach_a_receiver_once(
    runs: Path, save: Save, watch: Callable[..., Watcher]
) -> None:
    """The sidecar delivers the same alerts as a live monitor, and not again after a restart; they
    name the bank by its fingerprint, and no folder of this machine.
    """
    received: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    webhook = {
        "kind": "webhook",
        "url": f"http://127.0.0.1:{server.server_address[1]}",
        "secret": "s",
    }
    for step in (10, 20, 30):
        save("a", step, "evil")
    for _ in range(2):
        watcher = watch(notifiers=[webhook])
        watcher.poll()
        watcher.poll()
        watcher.close()
    server.shutdown()
    server.server_close()
    assert [m["data"]["reference"] for m in received] == ["evil"]
    assert received[0]["data"]["run"] == "a"
    assert received[0]["data"]["step"] == 20
    said = json.dumps(received[0])
    assert "BANK is the bank" in said
    assert str(runs.parents[1]) not in said  # where the bank and the base lie, too


def test_finished_runs_leave_the_metrics(save: Save, watch: Callable[..., Watcher]) -> None:
    """A run without readings for long is no longer shown, so that the page stays bounded."""
    watcher = watch(options=WatchOptions(forget=0.2), prometheus={"enabled": True, "port": 0})
    save("a", 10)
    watcher.poll()
    assert watcher.poll() == 1
    assert 'run="a"' in page(watcher)
    time.sleep(0.25)
    watcher.poll()
    assert 'run="a"' not in page(watcher)


def test_a_failing_look_does_not_end_the_sidecar(
    runs: Path, save: Save, watch: Callable[..., Watcher]
) -> None:
    """If the folder is gone for a while that is counted, and watching goes on when it is back."""
    watcher = watch(
        options=WatchOptions(every=0.02),
        prometheus={"enabled": True, "port": 0},
        journal_dir=runs.parent / "journal",
    )
    runs.rename(runs.parent / "away")
    stop = threading.Event()
    thread = threading.Thread(target=watcher.run, args=(stop,))
    thread.start()
    time.sleep(0.1)
    (runs.parent / "away").rename(runs)
    save("a", 10)
    end = time.monotonic() + 10
    while "wvmonitor_global_step{" not in page(watcher) and time.monotonic() < end:
        time.sleep(0.05)
    text = page(watcher)
    stop.set()
    thread.join()
    assert 'wvmonitor_errors_total{where="watch"}' in text
    assert 'wvmonitor_global_step{run="a"} 10.0' in text


def test_what_cannot_be_watched_is_said_at_once(
    runs: Path, tiny_bank_folder: Path, watch: Callable[..., Watcher]
) -> None:
    """A missing folder, a missing bank, or a second sidecar on one journal is one line."""
    with pytest.raises(MissingPathError, match="to watch"):
        Watcher(runs / "no", MonitorSettings(references=tiny_bank_folder))
    done = CliRunner().invoke(app, ["watch", str(runs), "--references", str(runs / "no")])
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert CliRunner().invoke(app, ["watch", str(runs)]).exit_code == 4
    watch()
    with pytest.raises(JournalError, match="is being written"):
        watch()


def test_the_command_watches_until_it_is_told_to_stop(
    runs: Path, save: Save, tiny_bank_folder: Path
) -> None:
    """The real command prints a line for each verdict, serves metrics, and ends well on SIGTERM."""
    save("a", 10, "evil")
    process = subprocess.Popen(
        [
            sys.executable, "-m", "wvmonitor", "watch", str(runs), "--references",
            str(tiny_bank_folder), "--every", "0.1", "--port", "0", "--json",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    row: dict[str, Any] = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert (row["run"], row["step"]) == ("a", 10)
    assert {v["reference"] for v in row["verdicts"]} == {"evil", "sycophancy"}
    assert process.returncode == 0
    assert "metrics on port" in errors


def test_a_reading_is_the_scan_s_own(
    runs: Path, save: Save, watch: Callable[..., Watcher], tiny_bank_folder: Path
) -> None:
    """Sidecar and scan say the same of the same checkpoint."""
    seen: list[Observation] = []
    watcher = watch()
    watcher._show = seen.append
    path = save("a", 10, "evil")
    watcher.poll()
    watcher.poll()
    done = CliRunner().invoke(
        app, ["scan", str(path), "--references", str(tiny_bank_folder), "--format", "json"]
    )
    (result,) = json.loads(done.stdout)["checkpoints"]
    mine = seen[0].scores.references["evil"].values["frobenius"]["cosine"]
    assert result["references"]["evil"]["scores"]["frobenius"]["cosine"] == pytest.approx(mine)


def test_a_watched_run_that_has_ended_is_shown_as_ended(
    runs: Path, save: Save, watch: Callable[..., Watcher]
) -> None:
    """A run whose folder holds a final model is waited for no more; a new checkpoint revives it."""
    watcher = watch(prometheus={"enabled": True, "port": 0, "linger": 0})
    save("a", 40)
    watcher.poll()
    watcher.poll()
    assert 'wvmonitor_run_state{run="a",state="training"} 1.0' in page(watcher)
    (runs / "a" / "adapter_model.safetensors").write_bytes(b"")
    watcher.poll()
    assert 'wvmonitor_run_state{run="a",state="ended"} 1.0' in page(watcher)
    time.sleep(0.05)
    save("a", 50)
    watcher.poll()
    watcher.poll()
    assert 'wvmonitor_run_state{run="a",state="training"} 1.0' in page(watcher)
    assert 'wvmonitor_checkpoint_step{reference="evil",run="a"} 50.0' in page(watcher)


def test_runs_are_pushed_each_under_its_own_name(
    runs: Path, save: Save, watch: Callable[..., Watcher]
) -> None:
    """A gateway takes several runs of one sidecar, each in a group of its own."""
    from tests.outputs.test_pushgateway import Gateway

    gateway = Gateway()
    watcher = watch(prometheus={"pushgateway": {"url": gateway.url, "delete_after": 0}})
    save("a", 40)
    save("b", 30)
    watcher.poll()
    watcher.poll()
    watcher.close()
    pushed = {path: body for method, path, _, body in gateway.requests if method == "PUT"}
    assert set(pushed) == {"/metrics/job/wvmonitor/run/a", "/metrics/job/wvmonitor/run/b"}
    for path, body in pushed.items():
        assert set(re.findall(r'run="(.*?)"', body.decode())) == {path[-1]}
    gateway.server.shutdown()
    gateway.server.server_close()


def test_what_a_look_leaves_out_is_said_once(
    save: Save,
    watch: Callable[..., Watcher],
    runs: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A run on another disk, one too far down, and one whose folders are named otherwise."""
    first = save("a", 5)
    (runs / "a" / "latest").symlink_to(first)
    shutil.copytree(first, runs / "other trainer" / "step_5")
    shutil.copytree(first, tmp_path / "scratch" / "run" / "checkpoint-5")
    (runs / "linked").symlink_to(tmp_path / "scratch" / "run")
    (runs / "circle").symlink_to(runs / "circle")
    save("hydra/2026-11-30/07-34-09/0", 5)
    save("1/2/3/4/5/6", 5)
    watcher = watch()
    with caplog.at_level("WARNING"):
        judged = [watcher.poll() for _ in range(3)]
    assert judged == [0, 2, 0]
    told = [r.getMessage() for r in caplog.records if "NOT watched" in r.getMessage()]
    assert sorted(told) == sorted(set(told))
    assert len(told) == 3
    assert any("linked' is a link" in t and "scratch/run' itself" in t for t in told)
    assert any("step_5' and its like" in t for t in told)
    assert any("5/6' is too far down" in t for t in told)
