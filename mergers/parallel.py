"""Work on many modules at once, with the same bytes for any number of threads."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from mergers.errors import SheetbendError

Item = TypeVar("Item")
Result = TypeVar("Result")

# glibc's malloc learns from what is freed: after one block of this size, up to twice as much is kept for the next
# temporary tensors, instead of going back to the system each time, which cost a third of the time.
_TAUGHT_BYTES = 31 << 20


# How many streams a thread has open, and how many threads torch had before the first.
_open = threading.local()


@contextlib.contextmanager
def _single_threaded() -> Iterator[int]:
    """Let torch use one thread; yield how many it had. Streams may overlap, and end in any order."""
    if getattr(_open, "count", 0) == 0:
        _open.count, _open.threads = 0, torch.get_num_threads()
    _open.count += 1
    torch.set_num_threads(1)
    try:
        yield _open.threads
    finally:
        _open.count -= 1
        if _open.count == 0:
            torch.set_num_threads(_open.threads)


def map_modules(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int | None = None
) -> Iterator[Result]:
    """Yield ``function(item)`` for each item in order, without gradients, on ``workers`` threads.

    Each call uses one BLAS thread. On many small matrices this is faster than threads inside one product, and
    it keeps the order of summation, hence the bytes, apart from how many threads there are.

    Args:
        function: Called with one item.
        items: All of them.
        workers: By default as many as torch has threads.

    Raises:
        SheetbendError: Values of an item overflow, so that they cannot be decomposed.
    """

    def call(item: Item) -> Result:
        try:
            with torch.no_grad():  # a setting of the thread
                return function(item)
        except torch.linalg.LinAlgError:  # of infinite products of finite factors, as far as is known
            raise SheetbendError(
                f"{item} overflows: it has no singular values; give adapters of sane size and scale"
            ) from None
        except RuntimeError as error:
            if "without overflow" not in str(error):  # of a number that float32 does not have
                raise
            raise SheetbendError(f"{item} overflows; give smaller coefficients, or adapters of sane size") from None

    torch.empty(_TAUGHT_BYTES, dtype=torch.uint8)
    with _single_threaded() as threads:
        workers = workers or threads
        if min(workers, len(items)) <= 1:
            for item in items:
                yield call(item)
        else:
            with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                waiting: deque[Future[Result]] = deque()
                for item in items:
                    waiting.append(pool.submit(call, item))
                    if len(waiting) > workers:  # results wait for whoever consumes them: no more than a few
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
