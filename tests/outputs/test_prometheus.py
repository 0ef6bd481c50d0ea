"""Metrics as Prometheus itself would read them."""

from __future__ import annotations

import http.client
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from wvmonitor._version import __version__
from wvmonitor.outputs.exporter import Observation
from wvmonitor.outputs.prometheus import PrometheusExporter

Make = Callable[..., Observation]
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parsed(page: bytes) -> Samples:
    """Every sample of a page by name and labels, as the real parser reads it."""
    samples: Samples = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in samples, f"{key} twice"
            samples[key] = sample.value
    return samples


def get(port: int | None, path: str = "/metrics", method: str = "GET") -> tuple[int, str, bytes]:
    """Status, content type and body of one request."""
    assert port is not None
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request(method, path)
    reply = connection.getresponse()
    body = reply.read()
    connection.close()
    return reply.status, reply.headers["Content-Type"], body


@pytest.fixture
def exporter() -> Iterator[PrometheusExporter]:
    """An exporter on a free port."""
    exporter = PrometheusExporter(port=0)
    yield exporter
    exporter.close()


def labels(**values: str) -> tuple[tuple[str, str], ...]:
    """Labels as `parsed` has them."""
    return tuple(sorted(values.items()))


def test_a_scrape_shows_every_metric_of_the_design(
    exporter: PrometheusExporter, make_observation: Make
) -> None:
    """A scrape holds the documented names and labels, with the values of the last reading."""
    exporter.export(make_observation(step=30, cosine=0.9))
    exporter.export(make_observation(step=40))
    exporter.error("measure")
    exporter.set_outbox_pending(2)
    status, content_type, body = get(exporter.port)
    assert (status, content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    samples = parsed(body)
    run = {"run": "r1"}
    score = {**run, "reference": "evil", "kind": "behaviour"}
    expected = {
        ("wvmonitor_score", labels(**score, geometry="frobenius", score="cosine")): 0.2,
        ("wvmonitor_score", labels(**score, geometry="frobenius", score="residual")): 0.1,
        ("wvmonitor_score", labels(**score, geometry="response", score="cosine")): 0.6,
        ("wvmonitor_dose", labels(**run, reference="evil")): 0.4,
        ("wvmonitor_threshold", labels(**run, reference="evil", score="cosine")): 0.15,
        ("wvmonitor_task_vector_norm", labels(**run)): math.sqrt(20.0),
        ("wvmonitor_coverage_ratio", labels(**run)): 0.8,
        ("wvmonitor_component_share", labels(**run, component="blocks")): 0.8,
        ("wvmonitor_component_share", labels(**run, component="head")): 0.2,
        ("wvmonitor_progress_ratio", labels(**run)): 0.25,
        ("wvmonitor_global_step", labels(**run)): 40,
        ("wvmonitor_last_reading_timestamp_seconds", labels(**run)): 1_700_000_000.5,
        ("wvmonitor_readings_total", ()): 2,
        ("wvmonitor_measure_duration_seconds_count", ()): 2,
        ("wvmonitor_measure_duration_seconds_sum", ()): 0.04,
        ("wvmonitor_measure_duration_seconds_bucket", labels(le="0.01")): 0,
        ("wvmonitor_measure_duration_seconds_bucket", labels(le="0.03")): 2,
        ("wvmonitor_measure_duration_seconds_bucket", labels(le="+Inf")): 2,
        ("wvmonitor_errors_total", labels(where="measure")): 1,
        ("wvmonitor_outbox_pending", ()): 2,
        ("wvmonitor_build_info", labels(version=__version__)): 1,
    }
    assert {key: samples[key] for key in expected} == pytest.approx(expected)


def test_a_verdict_is_a_state_set(exporter: PrometheusExporter, make_observation: Make) -> None:
    """Exactly one state of a reference is 1; the others are there as 0, so that rules can fire."""
    for state in ("ok", "warn", "alarm", "warming", "unknown"):
        exporter.export(make_observation(state=state))
        found = {
            dict(key[1])["verdict"]: value
            for key, value in parsed(exporter.page()).items()
            if key[0] == "wvmonitor_verdict"
        }
        assert found == {
            s: float(s == state) for s in ("ok", "warn", "alarm", "warming", "unknown")
        }


def test_runs_are_side_by_side_until_forgotten(
    exporter: PrometheusExporter, make_observation: Make
) -> None:
    """Several runs share a page, each with its own label, until one is forgotten."""
    exporter.export(make_observation(run="a", step=1))
    exporter.export(make_observation(run="b", step=2))
    samples = parsed(exporter.page())
    assert samples["wvmonitor_global_step", labels(run="a")] == 1
    assert samples["wvmonitor_global_step", labels(run="b")] == 2
    exporter.forget("a")
    assert b'run="a"' not in exporter.page()


@given(name=st.text(min_size=1), value=st.floats())
def test_any_label_and_value_survive_the_format(name: str, value: float) -> None:
    """Whatever a run is called and whatever a score is, Prometheus reads back the same."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("c", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    name = name.encode("utf-8", "replace").decode().replace("\r", "")
    exporter = PrometheusExporter(port=None)
    exporter.export(module.build(run=name, cosine=value))
    key = labels(run=name, reference="evil", kind="behaviour", geometry="frobenius", score="cosine")
    np.testing.assert_equal(parsed(exporter.page())["wvmonitor_score", key], value)


def test_a_taken_port_gives_way_to_the_next(caplog: pytest.LogCaptureFixture) -> None:
    """Where the port is taken the next free one is used, and the log says which."""
    first = PrometheusExporter(port=0)
    assert first.port is not None
    with caplog.at_level(logging.WARNING):
        second = PrometheusExporter(port=first.port)
    assert second.port is not None
    assert second.port > first.port
    assert f"http://127.0.0.1:{second.port}/metrics" in caplog.text
    assert get(second.port)[0] == 200
    first.close()
    second.close()


def test_an_address_that_cannot_be_had_does_not_end_the_run(
    caplog: pytest.LogCaptureFixture, make_observation: Make
) -> None:
    """Where nothing can be listened on, that is said, and everything else goes on."""
    exporter = PrometheusExporter(host="192.0.2.1", port=9108)
    assert exporter.port is None
    assert "metrics are not served on 192.0.2.1" in caplog.text
    exporter.export(make_observation())
    assert b"wvmonitor_score" in exporter.page()
    exporter.close()


def test_only_this_machine_can_connect_by_default() -> None:
    """The default server listens on the loopback address only."""
    exporter = PrometheusExporter(port=0)
    assert exporter._server is not None
    assert exporter._server.host == "127.0.0.1"
    exporter.close()
    exporter.close()


def test_other_paths_and_methods_are_refused(exporter: PrometheusExporter) -> None:
    """Nothing but the metrics is served."""
    assert get(exporter.port, "/etc/passwd")[0] == 404
    assert get(exporter.port, method="POST")[0] == 405


def test_a_health_check_by_head_is_answered(
    exporter: PrometheusExporter, make_observation: Make
) -> None:
    """HEAD gets the headers of the page without the page."""
    exporter.export(make_observation())
    assert exporter.port is not None
    with socket.create_connection(("127.0.0.1", exporter.port), 5) as raw:
        raw.sendall(b"HEAD /metrics HTTP/1.0\r\n\r\n")
        head, _, body = b"".join(iter(lambda: raw.recv(65_536), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200")
    assert f"Content-Length: {len(exporter.page())}".encode() in head
    assert body == b""


def test_the_global_registry_is_left_alone(
    exporter: PrometheusExporter, make_observation: Make
) -> None:
    """A program's own prometheus_client metrics are neither served nor disturbed."""
    exporter.export(make_observation())
    assert b"wvmonitor" not in prometheus_client.generate_latest()
    assert b"python_info" not in exporter.page()


def test_the_textfile_is_always_whole(tmp_path: Path, make_observation: Make) -> None:
    """The textfile is replaced in one step at each reading, and stays when the run ends."""
    path = tmp_path / "wv.prom"
    exporter = PrometheusExporter(port=None, textfile=path)
    for step in (1, 2):
        exporter.export(make_observation(step=step))
        assert parsed(path.read_bytes())["wvmonitor_global_step", labels(run="r1")] == step
    exporter.close()
    assert [p.name for p in tmp_path.iterdir()] == ["wv.prom"]


def test_no_link_leads_the_textfile_elsewhere(tmp_path: Path, make_observation: Make) -> None:
    """A link at its name is replaced, and none that somebody could guess is followed."""
    mine, folder = tmp_path / "mine", tmp_path / "shared"
    mine.write_text("precious")
    folder.mkdir()
    for name in ("wv.prom", f".wv.prom.{os.getpid()}.tmp"):
        (folder / name).symlink_to(mine)
    exporter = PrometheusExporter(port=None, textfile=folder / "wv.prom")
    exporter.export(make_observation())
    assert mine.read_text() == "precious"
    assert not (folder / "wv.prom").is_symlink()


def test_the_textfile_of_a_monitor_that_only_fails_says_so(tmp_path: Path) -> None:
    """Errors reach the textfile at once, even where no reading ever does."""
    path = tmp_path / "wvmonitor.prom"
    PrometheusExporter(port=None, textfile=path).error("start")
    assert parsed(path.read_bytes())["wvmonitor_errors_total", labels(where="start")] == 1


def test_a_textfile_that_cannot_be_written_is_counted(
    tmp_path: Path, make_observation: Make
) -> None:
    """A missing folder for the textfile is logged and counted, and nothing fails."""
    exporter = PrometheusExporter(port=None, textfile=tmp_path / "no" / "wv.prom")
    exporter.export(make_observation())
    assert parsed(exporter.page())["wvmonitor_errors_total", labels(where="textfile")] == 1


def test_layer_series_are_opt_in_and_bounded(make_observation: Make) -> None:
    """Per-layer series exist only when asked for, for the largest layers of behaviours."""
    observation = make_observation(layers=40)
    plain, layered = PrometheusExporter(port=None), PrometheusExporter(port=None, layers=5)
    for exporter in (plain, layered):
        exporter.export(observation)
    assert b"wvmonitor_layer" not in plain.page()
    found = [k for k in parsed(layered.page()) if k[0] == "wvmonitor_layer_projection"]
    assert {dict(key[1])["layer"] for key in found} == {"35", "36", "37", "38", "39"}
    assert {dict(key[1])["reference"] for key in found} == {"evil"}


def test_exporting_costs_training_next_to_nothing(
    exporter: PrometheusExporter, make_observation: Make
) -> None:
    """Showing a reading takes well under a tenth of a millisecond of the training thread."""
    observations = [make_observation(step=step) for step in range(200)]
    start = time.thread_time()
    for observation in observations:
        exporter.export(observation)
    assert (time.thread_time() - start) / 200 < 1e-4


def test_scrapes_never_fail_while_readings_come(
    exporter: PrometheusExporter, make_observation: Make
) -> None:
    """While new readings arrive as fast as they can, every scrape is whole."""
    base = make_observation(layers=100)
    stop = threading.Event()

    def train() -> None:
        step = 0
        while not stop.is_set():
            step += 1
            exporter.export(replace(base, wall_time=float(step)))

    trainer = threading.Thread(target=train)
    trainer.start()
    for _ in range(10):
        status, _, body = get(exporter.port)
        assert status == 200
        assert ("wvmonitor_build_info", labels(version=__version__)) in parsed(body)
    stop.set()
    trainer.join()


def test_a_burst_of_scrapers_all_get_in(exporter: PrometheusExporter) -> None:
    """A hundred connections at once are all accepted, with none waiting for a retransmission."""
    assert exporter.port is not None
    start = time.perf_counter()
    sockets = [socket.create_connection(("127.0.0.1", exporter.port), 5) for _ in range(100)]
    assert time.perf_counter() - start < 0.9
    for connected in sockets:
        connected.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
    for connected in sockets:
        assert connected.recv(12) == b"HTTP/1.0 200"
        connected.close()
