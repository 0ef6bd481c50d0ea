"""The durable record of a run.

Read `journal.py` (writing), `reader.py` (reading, also beside a live writer) and `outbox.py`
(alerts on their way); `recorder.py` and `snapshots.py` keep task vectors beside the numbers.
`writes.py` and `schema.py` hold all the SQL that changes a file.
"""
