"""Digests of training sets: equal for the seeds of one dataset, and nothing is run to have them."""

from __future__ import annotations

import pyarrow as pa
import torch
from datasets import Dataset

from wvmonitor.integrations.training_data import MOST_ROWS, data_digest

ROWS = [{"input_ids": [i, i + 1, 7], "labels": [i, -100, 7]} for i in range(50)]


def test_a_shuffled_dataset_is_the_same_data():
    """Two seeds of one dataset have one digest, as a `datasets.Dataset` and as a list of rows."""
    dataset = Dataset.from_list(ROWS)
    assert data_digest(dataset.shuffle(seed=1)) == data_digest(dataset.shuffle(seed=2))
    assert data_digest(dataset) == data_digest(dataset.shuffle(seed=1))
    assert data_digest(ROWS) == data_digest(ROWS[::-1])
    tensors = [{k: torch.tensor(v) for k, v in row.items()} for row in ROWS]
    assert data_digest(tensors) == data_digest(ROWS)


def test_other_data_has_another_digest():
    """One token more, a row less, or a part of it: another dataset."""
    dataset = Dataset.from_list(ROWS)
    changed = [*ROWS[:-1], {"input_ids": [1, 2, 8], "labels": [1, -100, 8]}]
    found = [
        data_digest(d)
        for d in (dataset, dataset.select(range(40)), Dataset.from_list(changed), ROWS, ROWS[1:])
    ]
    assert len(set(found)) == len(found)
    large = Dataset.from_dict({"x": list(range(3 * MOST_ROWS))})
    assert data_digest(large) != data_digest(Dataset.from_dict({"x": list(range(2 * MOST_ROWS))}))


def test_what_would_have_to_be_run_is_not_known():
    """A dataset with code of its own, a transform and a stream: none of them is touched."""

    class Own(torch.utils.data.Dataset):
        def __getitem__(self, index):
            raise AssertionError("read")

        def __len__(self):
            return 3

    def transform(_):
        raise AssertionError("run")

    assert data_digest(Own()) is None
    assert data_digest(None) is None
    assert data_digest([object()]) is None
    dataset = Dataset.from_list(ROWS)
    assert data_digest(dataset.with_transform(transform)) == data_digest(dataset)
    assert data_digest(dataset.to_iterable_dataset()) is None


class Joined:
    """A table whose text is too long for Arrow to join: `take` fails as it does beyond 2 GiB."""

    def __init__(self, table):
        self._table = table

    def __getattr__(self, name):
        return getattr(self._table, name)

    def take(self, _):
        raise pa.ArrowInvalid("offset overflow while concatenating arrays")


def test_text_of_more_than_two_gigabytes_is_told_by_its_rows():
    """Where Arrow cannot take rows of a column together, they are read one by one."""
    found = []
    for word in ("a", "b"):
        dataset = Dataset.from_dict({"text": [word, "c"]})
        dataset.data.table = Joined(dataset.data.table)
        found.append(data_digest(dataset))
    assert None not in found
    assert found[0] != found[1]


def test_data_that_cannot_be_told_costs_no_run_its_monitor(monkeypatch, caplog):
    """Whatever goes wrong with a fact that only groups runs, it is said, and the run is watched; a
    list that takes long to read through has no digest.
    """
    dataset = Dataset.from_list(ROWS)
    dataset.data.table = None.__class__  # no table at all
    assert data_digest(dataset) is None
    assert "cannot be told" in caplog.text
    monkeypatch.setattr("wvmonitor.integrations.training_data.MOST_BYTES", 100)
    assert data_digest(ROWS) is None
    assert data_digest(ROWS[:1]) is not None
