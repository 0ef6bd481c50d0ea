"""prometheus_client binds to 0.0.0.0, raises where a port is taken and where names repeat."""

import prometheus_client

from wvmonitor.outputs.prometheus import PrometheusExporter


def test_two_monitors_on_one_machine() -> None:
    """The second takes the next free port; both listen on loopback, beside a program's own."""
    first = PrometheusExporter(port=0)
    assert first.port is not None
    second = PrometheusExporter(port=first.port)
    try:
        assert second.port is not None
        assert second.port > first.port
        for exporter in (first, second):
            assert exporter._server is not None
            assert exporter._server.host == "127.0.0.1"
            assert b"wvmonitor_build_info" in exporter.page()
        assert b"wvmonitor" not in prometheus_client.generate_latest()
    finally:
        first.close()
        second.close()
