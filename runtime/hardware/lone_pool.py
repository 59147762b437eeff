"""Work side by side, each part's torch operations on one thread.

Predictors that prepare layer by layer, training and counting call this. It decides nothing about
how many parts there are, and leaves numpy's own threads alone.

Torch's number of threads is a setting of the process that every thread takes up for itself, at its
first operation that torch splits: a product that MKL splits is not one of them, so the first
products of a new thread would run, and sum, on as many threads as the process began with. Which
thread of a pool is new depends on the machine's load; the last bits of a sum would, too. So every
thread here takes the setting up before its first work.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def lone_pool(workers: int, precision: str = "highest") -> Iterator[ThreadPoolExecutor]:
    """A pool of threads, torch's operations on one thread each; so are the caller's meanwhile.

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
