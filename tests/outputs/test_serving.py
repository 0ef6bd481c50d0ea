"""The server of metrics: who gets in, and for how long."""
# ruff: noqa: S106, S104  tokens of tests, and an address that is refused

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wvmonitor.errors import SettingsError
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.outputs.exporter import Observation
from wvmonitor.outputs.prometheus import PrometheusExporter
from wvmonitor.outputs.server import Access

Make = Callable[..., Observation]
Get = Callable[..., tuple[int, bytes]]


def get(
    port: int | None, *, tls: ssl.SSLContext | None = None, **headers: str
) -> tuple[int, bytes]:
    """Status and body of one scrape."""
    assert port is not None
    kind: Any = http.client.HTTPConnection if tls is None else http.client.HTTPSConnection
    extra = {} if tls is None else {"context": tls}
    connection = kind("127.0.0.1", port, timeout=5, **extra)
    try:
        connection.request("GET", "/metrics", headers=headers)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA with a server's and a scraper's certificate, and a stranger's that it did not sign."""
    if shutil.which("openssl") is None:
        pytest.skip("real part: openssl is not installed: it makes the certificates of this test")
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for ca in ("ca", "stranger"):
        openssl(
            "req", "-x509", *new, "-keyout", f"{ca}.key", "-out", f"{ca}.pem", "-subj", f"/CN={ca}"
        )
    for name in ("server", "scraper"):
        openssl(
            "req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        (folder / "ext").write_text("subjectAltName=IP:127.0.0.1")
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-CAcreateserial", "-out", f"{name}.pem", "-extfile", "ext",
        )  # fmt: skip
    openssl(
        "ec",
        "-in",
        "server.key",
        "-aes256",
        "-passout",
        "pass:x",
        "-out",
        "locked.key",
    )
    return folder


@pytest.fixture
def serve(make_observation: Make) -> Iterator[Callable[..., PrometheusExporter]]:
    """Makes exporters with an observation on their page, and closes them."""
    made: list[PrometheusExporter] = []

    def build(linger: float = 0.0, **access: Any) -> PrometheusExporter:
        exporter = PrometheusExporter(port=0, access=Access(**access), linger=linger)
        made.append(exporter)
        exporter.export(make_observation())
        return exporter

    yield build
    for exporter in made:
        exporter.close()


def test_a_token_keeps_others_out(serve: Callable[..., PrometheusExporter]) -> None:
    """With a token set, a scrape without it or with another one gets nothing."""
    port = serve(token="s3cret-ü").port
    assert get(port)[0] == 401
    assert get(port, Authorization="Bearer s3cret")[0] == 401
    assert get(port, Authorization="s3cret-ü".encode().decode("latin-1"))[0] == 401
    status, body = get(port, Authorization="Bearer s3cret-ü".encode().decode("latin-1"))
    assert status == 200
    assert b"wvmonitor_score" in body


def test_metrics_over_tls(serve: Callable[..., PrometheusExporter], certificates: Path) -> None:
    """With a certificate the page is served over TLS only, to clients that check it."""
    port = serve(
        certificate=str(certificates / "server.pem"), key=str(certificates / "server.key")
    ).port
    trusting = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    assert get(port, tls=trusting)[0] == 200
    with pytest.raises(ssl.SSLCertVerificationError):
        get(port, tls=ssl.create_default_context())
    with pytest.raises((OSError, http.client.HTTPException)):
        get(port)


def test_mutual_tls(serve: Callable[..., PrometheusExporter], certificates: Path) -> None:
    """With a client CA only scrapers that show its certificate get in."""
    port = serve(
        certificate=str(certificates / "server.pem"),
        key=str(certificates / "server.key"),
        client_ca=str(certificates / "ca.pem"),
    ).port
    known = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    known.load_cert_chain(certificates / "scraper.pem", certificates / "scraper.key")
    assert get(port, tls=known)[0] == 200
    for name in (None, "stranger"):
        other = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
        if name:
            other.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
        with pytest.raises(OSError):  # noqa: PT011  the alert's name depends on OpenSSL
            get(port, tls=other)


def test_a_handshake_that_hangs_keeps_nobody_out(
    serve: Callable[..., PrometheusExporter], certificates: Path
) -> None:
    """A client that connects and says nothing does not delay the next one."""
    port = serve(
        certificate=str(certificates / "server.pem"), key=str(certificates / "server.key")
    ).port
    silent = socket.create_connection(("127.0.0.1", port or 0), 5)
    trusting = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    start = time.perf_counter()
    assert get(port, tls=trusting)[0] == 200
    assert time.perf_counter() - start < 3
    silent.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tls_cert": "missing.pem"}, "no TLS with"),
        ({"tls_cert": "server.pem", "tls_key": "scraper.key"}, "MISMATCH"),
        ({"tls_cert": "server.pem", "tls_key": "locked.key"}, "passphrase"),
        ({"tls_cert": "server.pem", "tls_key": "server.key", "client_ca": "ext"}, "no TLS with"),
        ({"client_ca": "ca.pem"}, "need a tls_cert"),
        ({"token": "s3cret", "host": "0.0.0.0"}, "needs https"),
        ({"host": "0.0.0.0"}, "neither a token nor TLS"),
        ({"token": "s3cret\nX-More: 1"}, "line breaks"),
        ({"pushgateway": {"url": "pushgateway:9091"}}, "must look like"),
        ({"pushgateway": {"url": "http://user:pw@host"}}, "user name or password"),
        ({"pushgateway": {"url": "http://gateway", "token": "s3cret"}}, "use https"),
        ({"pushgateway": {"url": "http://gateway", "intervall": 1}}, "'interval'"),
    ],
)
def test_what_cannot_be_served_is_refused_before_training(
    certificates: Path, options: dict[str, Any], words: str
) -> None:
    """Certificates, tokens and gateways that cannot work are one line when settings are made."""
    files = {"tls_cert", "tls_key", "client_ca"}
    filled = {k: certificates / v if k in files else v for k, v in options.items()}
    with pytest.raises(SettingsError, match=words) as error:
        MonitorSettings(prometheus={"enabled": True, **filled})
    assert "s3cret" not in str(error.value)
    assert ":pw" not in str(error.value)
    assert "\n" not in str(error.value)


def test_secrets_are_in_no_dump() -> None:
    """The token does not show in the settings that journals keep."""
    settings = MonitorSettings(
        prometheus={"token": "s3cret", "pushgateway": {"url": "https://g", "token": "s3cret2"}}
    )
    assert "s3cret" not in settings.redacted_json()
    assert "s3cret" not in repr(Access(token="s3cret"))


def test_closing_frees_the_port(serve: Callable[..., PrometheusExporter]) -> None:
    """When the run is over and nobody scrapes, the port is free at once."""
    exporter = serve()
    port = exporter.port
    exporter.close()
    with pytest.raises(OSError):  # noqa: PT011  refused
        get(port)
    again = PrometheusExporter(port=port)
    assert again.port == port
    again.close()


def test_the_last_values_wait_for_the_scraper(
    serve: Callable[..., PrometheusExporter], make_observation: Make
) -> None:
    """Whoever scrapes gets the last values once more after the end, and then the port is free."""
    exporter = serve(linger=10.0)
    port = exporter.port
    get(port)
    exporter.export(make_observation(step=99))
    exporter.close()
    assert b'wvmonitor_global_step{run="r1"} 99.0' in get(port)[1]
    time.sleep(1.0)
    with pytest.raises(OSError):  # noqa: PT011  refused
        get(port)


def test_the_process_waits_for_one_more_scrape() -> None:
    """The end of the training process waits for the scraper, and not where there is none."""
    code = (
        "import sys; from wvmonitor.outputs.prometheus import PrometheusExporter\n"
        "e = PrometheusExporter(port=0, linger=30.0); print(e.port, flush=True)\n"
        "sys.stdin.readline(); e.close()"
    )
    for scraped in (True, False):
        job = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert job.stdout is not None
        assert job.stdin is not None
        port = int(job.stdout.readline())
        if scraped:
            get(port)
        job.stdin.close()
        if scraped:
            time.sleep(0.5)
            assert get(port)[0] == 200
        job.stdout.close()
        assert job.wait(20) == 0


def test_killing_the_job_frees_its_port() -> None:
    """After kill −9 of the training job its port is free at once; nothing is left behind."""
    code = (
        "import time; from wvmonitor.outputs.prometheus import PrometheusExporter\n"
        "print(PrometheusExporter(port=0).port, flush=True); time.sleep(60)"
    )
    job = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    port = int(job.stdout.readline())
    assert get(port)[0] == 200
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    job.stdout.close()
    with pytest.raises(OSError):  # noqa: PT011  refused
        get(port)


def test_scrapes_do_not_wait_for_a_busy_job(serve: Callable[..., PrometheusExporter]) -> None:
    """Scrapes are answered while the job's own thread keeps Python busy without a pause."""
    exporter = serve()
    code = (
        "import http.client, sys\n"
        "for _ in range(20):\n"
        "    c = http.client.HTTPConnection('127.0.0.1', int(sys.argv[1]), timeout=5)\n"
        "    c.request('GET', '/metrics'); assert c.getresponse().read(); c.close()\n"
    )
    scraper = subprocess.Popen([sys.executable, "-c", code, str(exporter.port)])
    while scraper.poll() is None:
        sum(range(20_000))
    assert scraper.returncode == 0
