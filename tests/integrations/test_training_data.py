"""Digests of training sets: equal for the seeds of one dataset, and nothing is run to have them."""

from __future__ import annotations

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
