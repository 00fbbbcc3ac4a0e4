"""Compiled loops, and the threads that share them.

Work is shared by Python threads, since compiled code runs without the interpreter's lock. Numba's own parallel loops
are not used: they kill forked processes, and abort when two threads enter them.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numba
import torch
from llvmlite import ir
from numba.extending import intrinsic

# Sums may be reordered and fused; infinity and NaN keep their meaning.
_JIT = {"nogil": True, "fastmath": {"contract", "reassoc", "nsz", "arcp"}, "error_model": "numpy"}
# For parts of what `compiled` compiles: a part compiled by itself may round differently, and which of the two ran would
# depend on whether the code came from the disk.
inlined = numba.njit(**_JIT, forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)


@intrinsic
def wide_vectors(_context: object) -> tuple:
    """Within a function: its loops may use vectors of 512 bits. LLVM takes 256 where some processors are slower at 512,
    which is so for a few instructions among many; a loop of roots and divisions gains by a half."""

    def generate(context: object, builder: ir.IRBuilder, *_: object) -> ir.Constant:
        for attribute in ('"prefer-vector-width"="512"', '"min-legal-vector-width"="512"'):
            set.add(builder.function.attributes, attribute)  # llvmlite's own `add` knows no attributes with values
        return context.get_dummy_value()

    return numba.void(), generate


def compiled(function: Callable) -> Callable:
    """Compile at the first call and keep the code on disk, or in memory alone where no folder can be written."""
    try:
        return numba.njit(cache=True, **_JIT)(function)
    except (RuntimeError, OSError):
        return numba.njit(**_JIT)(function)


@lru_cache(maxsize=1)
def _pool(_process: int) -> ThreadPoolExecutor:
    """The process's threads; a forked process has none of its parent's, and makes its own."""
    return ThreadPoolExecutor(thread_name_prefix="repflow")


def shared(kernel: Callable, tasks: int, *arguments: object) -> None:
    """Call kernel(first, last, *arguments) for parts of range(tasks), on as many threads as PyTorch uses.

    In a DataLoader's worker that is one: the kernel then runs in the calling thread, and nothing else is touched.
    """
    threads = max(min(torch.get_num_threads(), tasks), 1)
    parts = min(tasks, 4 * threads) if threads > 1 else 1  # a thread that is held up leaves more to the others
    todo = iter([(tasks * i // parts, tasks * (i + 1) // parts) for i in range(parts)])

    def work() -> None:
        for part in todo:
            kernel(*part, *arguments)

    others = [_pool(os.getpid()).submit(work) for _ in range(threads - 1)]
    work()
    for other in others:
        other.result()
