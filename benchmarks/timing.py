"""Interleaved timing: every contender once per round, so that all see the same machine.

The order changes from round to round: what a call finds in caches and in the allocator depends on
the one before it.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator

import jax

# After a call that freed a large array the system is still giving its pages back.
SETTLE_SECONDS = 0.02


def interleaved(
    contenders: dict[str, Callable[[], object]], repeats: int, warmup: int, calls: int
) -> Iterator[dict[str, float]]:
    """One `{name: seconds per call}` per round, after `warmup` rounds that do not count."""
    order = random.Random(0)
    for number in range(-warmup, repeats):
        times = {}
        for name, run in order.sample(list(contenders.items()), len(contenders)):
            gc.collect()
            time.sleep(SETTLE_SECONDS)
            start = time.perf_counter()
            results = [run() for _ in range(calls)]
            wait_for(results)
            times[name] = (time.perf_counter() - start) / calls
            del results
        if number >= 0:
            yield times


def wait_for(results: list[object]) -> None:
    """Wait for asynchronous results, of JAX and of PyTorch on a GPU."""
    jax.block_until_ready(results)
    leaves = jax.tree.leaves(results)
    if leaves and getattr(leaves[0], "is_cuda", False):
        import torch

        torch.cuda.synchronize()


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Median over the rounds, per contender."""
    return {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
