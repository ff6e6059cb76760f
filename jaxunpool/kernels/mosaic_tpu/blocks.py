"""Blocks of an array in VMEM, and lines of them in 32 bits.

Every kernel stages its blocks first: it copies them into a scratch of 32-bit elements whose lines
have room on either side, so that any window can be read from it with a strided load. What lies
beyond the ends is never initialised, but masked.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxunpool.kernels.mosaic_tpu.views import LANES, SUBLANES, View, round_up

# What blocks may take of VMEM, of which a kernel gets 16 MiB on a TPU v5e: small blocks let copies
# and computation overlap, but a line has to fit.
GOOD_BYTES, MOST_BYTES = 8 << 20, 12 << 20
# Most elements of a line. A line is read as a whole, for a few arrays at a time, into 64 vector
# registers of 1024 elements.
LINE_ELEMENTS = 4 * 1024


class Slab(NamedTuple):
    """The part of an operand that one block of the result needs.

    Attributes:
        sizes: rows of it along the outer axes.
        starts: first row along each, from the number of the block.
        line: elements of a line.
        low: room a line needs before its first element.
        extent: elements of a line from there to the last one read, or past its end.
    """

    sizes: tuple[int, ...]
    starts: tuple[Callable[[Any], Any], ...]
    line: int
    low: int
    extent: int

    @property
    def margin(self) -> int:
        """Where a staged line begins: at a whole tile."""
        return round_up(self.low, SUBLANES)

    def spec(self, view: View) -> pl.BlockSpec:
        """Rows may overlap those of the next block, so their elements are counted, not blocks."""
        lanes = lane_block(view)
        beyond = round_up(view.lanes, lanes) - view.lanes
        tail = view.swap(self.line, pl.Element(self.line), pl.Element(lanes, (0, beyond)))

        def begin(*block: Any) -> tuple[Any, ...]:
            rows = [start(b) for start, b in zip(self.starts, block)]
            # A block that is no multiple of the lanes is the only one along this axis.
            lane = jnp.int32(0) if lanes % LANES else pl.multiple_of(block[-1] * lanes, LANES)
            return (*rows, *view.swap(self.line, jnp.int32(0), lane))

        return pl.BlockSpec((*map(pl.Element, self.sizes), *tail), begin)

    def scratch(self, lanes: int, dtype: Any) -> Any:
        """Where the slab is staged."""
        length = round_up(self.margin + self.extent, SUBLANES)
        return pltpu.VMEM((*self.sizes, length, lanes), wide(dtype))

    def stage(
        self,
        view: View,
        source: Any,
        target: Any,
        prepare: Callable[..., jax.Array] | None = None,
    ) -> None:
        """Copies a block into its scratch; `prepare(line, positions)` may change its values."""
        starts = [start(pl.program_id(i)) for i, start in enumerate(self.starts)]

        def copy(row: list[Any]) -> None:
            line = load(view, source, row, self.line, target.dtype)
            if prepare is not None:
                outer = [start + r for start, r in zip(starts, row)]
                line = prepare(line, [*outer, lax.broadcasted_iota(jnp.int32, line.shape, 0)])
            target[(*row, pl.ds(self.margin, self.line))] = line

        for_each(self.sizes, copy)


def spec(view: View, rows: Sequence[int], line: int) -> pl.BlockSpec:
    """Blocks of whole lines that do not overlap."""
    shape = (*rows, *view.swap(line, line, lane_block(view)))

    def number(*block: Any) -> tuple[Any, ...]:
        return (*block[:-1], *view.swap(line, jnp.int32(0), block[-1]))

    return pl.BlockSpec(shape, number)


def load(view: View, ref: Any, row: Sequence[Any], size: int, dtype: Any) -> jax.Array:
    """A line of a block, which has a size, in a 32-bit type."""
    line = ref[(*row,)].astype(dtype)
    return line.T if view.turned(size) else line


def store(view: View, ref: Any, row: Sequence[Any], line: jax.Array) -> None:
    """Writes a line of 32-bit values to a block."""
    line = line.T if view.turned(line.shape[0]) else line
    ref[(*row,)] = line.astype(ref.dtype)


def wide(dtype: Any) -> Any:
    """The 32-bit type a kernel computes in."""
    return jnp.float32 if jnp.issubdtype(dtype, jnp.floating) else jnp.int32


def for_each(sizes: Sequence[int], body: Callable[[list[Any]], None]) -> None:
    """Calls `body` with the indices of every row of a block, in raster order."""

    def step(number: Any, _: None) -> None:
        row: list[Any] = []
        for size in reversed(sizes):
            row.insert(0, lax.rem(number, jnp.int32(size)) if size > 1 else jnp.int32(0))
            number = lax.div(number, jnp.int32(size)) if size > 1 else number
        body(row)

    lax.fori_loop(jnp.int32(0), jnp.int32(math.prod(sizes)), step, None)


def all_of(shape: Sequence[int], conditions: Sequence[Any]) -> jax.Array | None:
    """The conjunction of scalars and arrays, none of which may be False; None if all are True."""
    found = None
    for condition in conditions:
        if condition is True:
            continue
        if jnp.ndim(condition) == 0:
            condition = jnp.full(shape, condition.astype(jnp.int32)) > 0
        found = condition if found is None else found & condition
    return found


def between(value: Any, size: int, range_: tuple[int, int]) -> Any:
    """Whether `0 <= value < size`, for a value known to be in a range; True if it always is."""
    low, high = range_
    if low >= 0 and high < size:
        return True
    return (value >= 0) & (value < size)


def lane_block(view: View) -> int:
    """Lanes of a block: few enough for a line, and one register where loads are strided."""
    if view.lanes <= LANES:
        return view.lanes
    line, count = view.axes[-1], -(-view.lanes // LANES)
    most = LINE_ELEMENTS // (round_up(line.size, SUBLANES) * LANES) if line.stride == 1 else 1
    return LANES * max(n for n in range(1, max(most, 1) + 1) if count % n == 0)


def plan(
    counts: Sequence[int],
    slab: Callable[[Sequence[int]], Slab],
    cost: Callable[[Sequence[int]], int],
) -> tuple[int, ...] | None:
    """Rows of a block along each outer axis; None if not even one of each fits in VMEM.

    Of the blocks that make good use of VMEM, those that read least, and so share least with their
    neighbours; among these the largest.
    """
    if cost((1,) * len(counts)) > MOST_BYTES:
        return None
    sizes = [
        {-(-count // n) for n in (*range(1, 8), *(8 << i for i in range(count.bit_length())))}
        for count in counts
    ]

    def traffic(rows: Sequence[int]) -> tuple[int, int]:
        steps = math.prod(-(-count // n) for count, n in zip(counts, rows))
        return steps * math.prod(slab(rows).sizes), steps

    good = (rows for rows in itertools.product(*sizes) if cost(rows) <= GOOD_BYTES)
    return min(good, key=traffic, default=(1,) * len(counts))


def cost_estimate(
    view: View, slabs: Sequence[tuple[Slab, Any]], steps: int, arrays: Sequence[Any]
) -> pl.CostEstimate:
    """What a kernel costs: each step moves slabs of some types, all of them together the arrays."""
    lanes, volume = lane_block(view), view.geometry.volume
    read = sum(math.prod(s.sizes) * s.line * lanes * jnp.dtype(t).itemsize for s, t in slabs)
    whole = sum(array.size * array.dtype.itemsize for array in arrays)
    windows = math.prod(axis.outputs for axis in view.axes) * view.lanes
    return pl.CostEstimate(
        flops=4 * windows * volume, bytes_accessed=steps * read + whole, transcendentals=0
    )


def buffers(view: View, rows: Sequence[int], line: int, dtype: Any) -> int:
    """Bytes of the two buffers of an operand or result."""
    return 2 * size_in_vmem(rows, *view.swap(line, line, lane_block(view)), dtype)


def size_in_vmem(sizes: Sequence[int], line: int, lanes: int, dtype: Any) -> int:
    """Bytes of a block, tiles being padded."""
    bits = jnp.dtype(dtype).itemsize
    return math.prod(sizes) * round_up(line, SUBLANES * 4 // bits) * round_up(lanes, LANES) * bits
