"""Several tensors at a time: hashing, reading and comparing let other threads run."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from wvmonitor.files.storage import is_url
from wvmonitor.sources.folder import ModelFolder
from wvmonitor.vectors.devices import cores

_THREADS = 4  # a disk or a page cache feeds no more
_Found = TypeVar("_Found")


def for_each(names: Collection[str], work: Callable[[str], _Found]) -> dict[str, _Found]:
    """What `work` makes of each name, in their order; at most one thread for each core.

    Worker processes share the cores already, and have one.
    """
    most = 1 if multiprocessing.parent_process() else min(_THREADS, cores())
    pool = ThreadPoolExecutor(most)
    try:
        # After a fork torch makes its own threads anew, which must not happen in two at once.
        pool.submit(torch.get_num_threads).result()
        return dict(zip(names, pool.map(work, names), strict=True))
    finally:
        pool.shutdown(cancel_futures=True)


def for_each_tensor(
    folder: ModelFolder, names: Collection[str], work: Callable[[ModelFolder, str], _Found]
) -> dict[str, _Found]:
    """What `work` makes of each tensor of a folder, which it is given as its thread has opened it.

    One after another behind a URL, and where tensors are made whole by the model's class.
    """
    if is_url(folder.path) or folder.needs_its_model:
        return {name: work(folder, name) for name in names}
    own, opened_here = threading.local(), []

    def through_own(name: str) -> _Found:
        if not hasattr(own, "folder"):  # descriptors are not shared between threads
            own.folder = ModelFolder(folder.path)
            opened_here.append(own.folder)
        return work(own.folder, name)

    try:
        return for_each(names, through_own)
    finally:
        for one in opened_here:
            one.files.close()
