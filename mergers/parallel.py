"""Work on many modules at once, with the same bytes for any number of threads."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_modules(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return ``[function(item) for item in items]``, computed without gradients by several threads.

    Each call uses one BLAS thread. On many small matrices this is faster than threads inside one product, and
    it keeps the order of summation, hence the bytes, apart from how many threads there are.
    """
    if not items:
        return []
    before = torch.get_num_threads()
    workers = min(
        len(items), before, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else before
    )
    torch.set_num_threads(1)
    try:
        if workers <= 1:
            with torch.no_grad():
                return [function(item) for item in items]

        def call(item: Item) -> Result:
            with torch.no_grad():  # a setting of the thread
                return function(item)

        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(call, items))
    finally:
        torch.set_num_threads(before)
