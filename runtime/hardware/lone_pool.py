"""A pool of threads that run torch operations on one thread each.

Used by predictors that prepare layer by layer, by training and by counting. It does not decide how
many parts there are, and does not change numpy's own threads.

Torch's number of threads is a setting of the process, but each thread reads it only at its first
operation that torch itself splits. A product that MKL splits is not such an operation, so the first
products of a new thread would run on as many threads as the process began with. Which thread of a
pool is new depends on the machine's load, and then the last bits of a sum would, too. So every
thread here reads the setting before its first work.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def lone_pool(workers: int, precision: str = "highest") -> Iterator[ThreadPoolExecutor]:
    """A pool of threads with torch's operations on one thread each; the caller's too, meanwhile.

    Measured on two shared cores: one thread an operation is 1.7 times as fast as two, because each
    of thousands of small operations waits for the slower of its threads.

    Args:
        workers: threads of the pool.
        precision: of float32 products; "medium" lets CPUs with bfloat16 units use them.
    """
    threads, before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision(precision)
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(before)
