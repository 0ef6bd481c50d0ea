"""The durable record of a run.

Read `journal.py` (writing), `reader.py` (reading, also beside a live writer) and `outbox.py`
(alerts on their way); `snapshot_writer.py` and `snapshots.py` keep task vectors beside the numbers.
`tools.py` and `pruning.py` look after what is there. `writes.py`, `schema.py` and `pruning.py` hold
all the SQL that changes a file.
"""

from wvmonitor.journal.alerts import Alert, AlertPolicy
from wvmonitor.journal.journal import Journal
from wvmonitor.journal.reader import JournalReader, read_journal
from wvmonitor.journal.records import Attempt, Event, JournalRow

__all__ = [
    "Alert",
    "AlertPolicy",
    "Attempt",
    "Event",
    "Journal",
    "JournalReader",
    "JournalRow",
    "read_journal",
]
