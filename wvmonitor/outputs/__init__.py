"""Where readings are shown (exporters), and who is told of them (notifiers).

One protocol for each: `Exporter` and `Notifier`.
"""

from typing import TYPE_CHECKING

from wvmonitor import lazily

if TYPE_CHECKING:
    from wvmonitor.outputs.exporter import VERDICT_CODES, Exporter, Observation
    from wvmonitor.outputs.notifier import Notifier
    from wvmonitor.outputs.prometheus import PrometheusExporter
    from wvmonitor.outputs.scan_record import CheckpointResult, ReferenceResult
    from wvmonitor.outputs.trainer_log import log_values

_HOMES = {
    "CheckpointResult": "scan_record",
    "Exporter": "exporter",
    "Notifier": "notifier",
    "Observation": "exporter",
    "PrometheusExporter": "prometheus",
    "ReferenceResult": "scan_record",
    "VERDICT_CODES": "exporter",
    "log_values": "trainer_log",
}

__all__ = [
    "VERDICT_CODES",
    "CheckpointResult",
    "Exporter",
    "Notifier",
    "Observation",
    "PrometheusExporter",
    "ReferenceResult",
    "log_values",
]

__getattr__ = lazily(__name__, _HOMES)
