"""One self-contained HTML page from a journal, a scan or a bank."""

from typing import TYPE_CHECKING

from wvmonitor import lazily

if TYPE_CHECKING:
    from wvmonitor.report.document import write_page
    from wvmonitor.report.inputs import from_journal, from_scan, read_runs
    from wvmonitor.report.page import render
    from wvmonitor.report.view import RunView

_HOMES = {
    "RunView": "view",
    "from_journal": "inputs",
    "from_scan": "inputs",
    "read_runs": "inputs",
    "render": "page",
    "write_page": "document",
}

__all__ = [
    "RunView",
    "from_journal",
    "from_scan",
    "read_runs",
    "render",
    "write_page",
]

__getattr__ = lazily(__name__, _HOMES)
