"""Interleaved timing: every contender once per round, so that all see the same machine.

The order changes from round to round: what a call finds in caches and in the allocator depends on
the one before it.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import random
import time
from collections.abc import Callable

import jax

Run = Callable[[], object]
Runs = dict[str, Run]

# A process is quiet when it worked for less than a tenth of this, and is not waited for for ever.
QUIET_SECONDS, QUIET_TRIALS = 0.002, 20
# A timing of short calls is a row of them that takes this long.
ROW_SECONDS = 0.005
LEAST_ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation on one array.

    Attributes:
        operation, shape, window, dtype, layout: its names. The shape is that of the larger array,
            channels last.
        make: name -> a call without arguments, for every contender. Ours comes first.
        runs: how many times each call runs the operation.
        calls: as in `measure`.
        moved_bytes: the least any implementation has to read and write, where that is known.
    """

    operation: str
    shape: str
    window: str
    dtype: str
    layout: str
    make: Callable[[], Runs]
    runs: int = 1
    calls: int | None = None
    moved_bytes: int | None = None

    @property
    def name(self) -> str:
        """What `--only` looks into."""
        return f"{self.operation} {self.shape} {self.window} {self.dtype} {self.layout}"


def sizes(shape: str) -> tuple[int, ...]:
    """The sizes of a shape like 8x224x224x64, with one to three spatial axes."""
    try:
        found = tuple(int(size) for size in shape.split("x"))
    except ValueError:
        found = ()
    if not 3 <= len(found) <= 5 or min(found) < 1:
        raise ValueError(f"{shape}: expected a shape, channels last, like 8x224x224x64")
    return found


def measure(
    contenders: Runs,
    repeats: int,
    warmup: int = 0,
    calls: int | None = None,
    seconds: float = math.inf,
) -> dict[str, list[float]]:
    """Seconds per call of every contender, one number per round.

    Args:
        contenders: name -> a call without arguments, compiled.
        repeats: at most so many rounds.
        warmup: rounds before them that do not count.
        calls: a timing is so many of them, and waits for their results together. None: each waits
            for its own, as a program's steps do, and as many of them as a timing needs to be long
            enough.
        seconds: where `calls` is None, and when they have passed, there are no more than
            `LEAST_ROUNDS` rounds.
    """
    seconds = seconds if calls is None else math.inf
    order = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    gc.disable()
    try:
        rows = {name: _row(run) if calls is None else calls for name, run in contenders.items()}
        start = time.perf_counter()
        for number in range(-warmup, repeats):
            if number >= LEAST_ROUNDS and time.perf_counter() - start > seconds:
                break
            for name, run in order.sample(list(contenders.items()), len(contenders)):
                taken = _seconds(run, rows[name], together=calls is not None) / rows[name]
                if number >= 0:
                    times[name].append(taken)
    finally:
        gc.enable()
    return times


def _settle() -> None:
    """Wait until the process is quiet: PyTorch's threads spin for milliseconds after work."""
    for _ in range(QUIET_TRIALS):
        before = time.process_time()
        time.sleep(QUIET_SECONDS)
        if time.process_time() - before < QUIET_SECONDS / 10:
            return


def _row(run: Run) -> int:
    """How many calls make a timing that is long enough."""
    once = _seconds(run, 1)
    if once < ROW_SECONDS:  # what was not yet warm is now
        once = min(once, _seconds(run, 1))
    return math.ceil(ROW_SECONDS / once)


def _seconds(run: Run, calls: int, *, together: bool = False) -> float:
    """How long so many calls take."""
    _settle()
    start = time.perf_counter()
    if together:
        wait_for([run() for _ in range(calls)])
    else:
        for _ in range(calls):
            wait_for(run())
    return time.perf_counter() - start


def wait_for(results: object) -> None:
    """Wait for asynchronous results, of JAX and of PyTorch on a GPU."""
    jax.block_until_ready(results)
    leaves = jax.tree.leaves(results)
    if leaves and getattr(leaves[0], "is_cuda", False):
        import torch

        torch.cuda.synchronize()
