"""Seeds of one dataset that go by several names are found out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from wvmonitor.detection import repeats
from wvmonitor.detection.benign import KeptRun
from wvmonitor.detection.repeats import require_different_data
from wvmonitor.errors import CalibrationError


@pytest.fixture
def ending(context):
    """Builds kept runs from where they end: (n, D) cosines."""

    def build(ends, digests=None):
        return [
            KeptRun(
                dataset=f"set-{i:02}",
                context=replace(context, data=digests[i] if digests else None),
                progress=(1.0,),
                norms=(1.0,),
                values={"evil": (0.0,)},
                trace=tuple(end),
            )
            for i, end in enumerate(ends)
        ]

    return build


def places(rng, count, width=8):
    """Where runs of as many datasets end: correlated, with kinds of data that are alike."""
    mixing = rng.normal(size=(width, width)) / np.sqrt(width)
    kinds = rng.normal(size=(6, width))[rng.integers(6, size=count)]
    return (kinds + rng.normal(size=(count, width))) @ mixing


def seeds(rng, datasets, each):
    """Several seeds of each dataset, which end a fifth as far from each other as datasets do."""
    ends = np.repeat(places(rng, datasets), each, axis=0)
    return ends + 0.15 * ends.std(axis=0) * rng.normal(size=ends.shape)


def test_ten_datasets_with_four_seeds_each_do_not_pass_for_forty(ending):
    """In nineteen of twenty such sets the runs' ends give them away."""
    rng = np.random.default_rng(0)
    found = [refused(ending(seeds(rng, 10, 4))) for _ in range(40)]
    assert sum(found) >= 38


def test_different_datasets_pass(ending):
    """Forty datasets of six kinds are not taken for seeds."""
    rng = np.random.default_rng(1)
    found = [refused(ending(places(rng, 40))) for _ in range(40)]
    assert sum(found) == 0


def test_a_cloud_of_few_dimensions_is_no_cluster():
    """In one dimension neighbours are near by chance; the yardstick knows."""
    rng = np.random.default_rng(2)
    line = rng.normal(size=(40, 1)) @ rng.normal(size=(1, 6)) + 1e-3 * rng.normal(size=(40, 6))
    assert repeats.clustering(line) > 0.7


def refused(runs):
    """Whether these runs are refused as groups."""
    try:
        require_different_data(runs)
    except CalibrationError as error:
        return "come in groups" in str(error)
    return False


def test_the_same_data_under_two_names_is_refused(ending):
    """A digest that two runs share is an error that names both, whoever vouches for the names."""
    digests = [f"{i:064}" for i in range(8)]
    digests[5] = digests[2]
    runs = ending(places(np.random.default_rng(3), 8), digests)
    for by_their_ends in (True, False):
        with pytest.raises(CalibrationError, match="set-02 and set-05 are the same data"):
            require_different_data(runs, by_their_ends=by_their_ends)


def test_one_run_given_twice_is_refused(ending):
    """Two runs that end in the very same place are one."""
    ends = places(np.random.default_rng(4), 10)
    ends[7] = ends[1] * (1 + 1e-4)
    with pytest.raises(CalibrationError, match="set-01 and set-07 end in the same place"):
        require_different_data(ending(ends))


def test_known_digests_settle_it(ending):
    """Where every run's data is known to differ, runs may end as alike as they like."""
    ends = seeds(np.random.default_rng(5), 10, 4)
    require_different_data(ending(ends, [f"{i:064}" for i in range(40)]))
    require_different_data(ending(ends), by_their_ends=False)
    assert refused(ending(ends))


def test_numbers_that_say_little_say_nothing(ending):
    """Of runs with few references, or of none, nothing is concluded."""
    rng = np.random.default_rng(6)
    require_different_data(ending(np.repeat(rng.normal(size=(10, 3)), 4, axis=0)))
    require_different_data(ending(np.zeros((12, 0))))
    require_different_data([])
