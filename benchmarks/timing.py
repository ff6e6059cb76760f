"""Interleaved timing: every contender once per round, so that all see the same machine.

The order changes from round to round: what a call finds in the allocator depends on the one before
it. Caches are each contender's own: its first calls of a round do not count.
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
# A timing of short calls is a row of them that takes this long, after some that fill the caches and
# wake the other cores: a process that slept is slow for some milliseconds.
ROW_SECONDS, FILL_SECONDS = 0.005, 0.01
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
            for its own, as a program's steps do, as many of them as a timing needs to be long
            enough, after some that do not count.
        seconds: where `calls` is None, and when they have passed, there are no more than
            `LEAST_ROUNDS` rounds.
    """
    seconds = seconds if calls is None else math.inf
    order = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    gc.disable()
    try:
        rows = {name: _row(run, calls) for name, run in contenders.items()}
        start = time.perf_counter()
        for number in range(-warmup, repeats):
            if number >= LEAST_ROUNDS and time.perf_counter() - start > seconds:
                break
            for name, row in order.sample(list(rows.items()), len(rows)):
                taken = row.seconds(together=calls is not None)
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


@dataclasses.dataclass(frozen=True)
class _Row:
    """Calls one after the other: so many that only fill the caches, and so many that count."""

    run: Run
    wait: Callable[[object], object]
    filling: int
    counted: int

    def seconds(self, *, together: bool = False) -> float:
        """How long a call takes."""
        _settle()
        for _ in range(self.filling):
            self.wait(self.run())
        start = time.perf_counter()
        if together:
            self.wait([self.run() for _ in range(self.counted)])
        else:
            for _ in range(self.counted):
                self.wait(self.run())
        return (time.perf_counter() - start) / self.counted


def _row(run: Run, calls: int | None) -> _Row:
    """So many calls, or as many as make a timing that is long enough."""
    row = _Row(run, _waiting_for(run()), 0, calls or 1)
    if calls is not None:
        return row
    once = row.seconds()
    if once < ROW_SECONDS:  # what was not yet warm is now
        once = min(once, row.seconds())
    filling, counted = (math.ceil(seconds / once) for seconds in (FILL_SECONDS, ROW_SECONDS))
    return dataclasses.replace(row, filling=filling, counted=counted)


def _waiting_for(result: object) -> Callable[[object], object]:
    """What waits for such results: those of JAX are asynchronous, and of PyTorch on a GPU."""
    leaves = jax.tree.leaves(result)
    if any(isinstance(leaf, jax.Array) for leaf in leaves):
        return jax.block_until_ready
    if any(getattr(leaf, "is_cuda", False) for leaf in leaves):
        import torch

        return lambda _: torch.cuda.synchronize()
    return lambda _: None
