"""The kernels from an unpooled array to pooled ones: select, gather and reduce.

A block of the result is a few rows of windows. They read their elements from a slab of the unpooled
array that holds all of them; slabs of neighbouring blocks share the rows their windows share.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxunpool.core.geometry import Axis
from jaxunpool.kernels.mosaic_tpu import blocks
from jaxunpool.kernels.mosaic_tpu.views import View
from jaxunpool.kernels.varying import result_like


class Element(NamedTuple):
    """One element of every window of a line.

    Attributes:
        offset: its number in the window.
        taps: its number along each of the four axes.
        value: line of values in 32 bits, undefined where the mask `inside` is False.
        inside: line that says which are no padding; None if all.
    """

    offset: int
    taps: tuple[int, ...]
    value: jax.Array
    inside: jax.Array | None


Body = Callable[..., Sequence[jax.Array]]


def pool(
    body: Body,
    view: View,
    u: jax.Array,
    pooled: Sequence[jax.Array],
    dtypes: Sequence[Any],
    *,
    scalars: Sequence[jax.Array] = (),
) -> list[jax.Array]:
    """Pooled arrays of the given types.

    Args:
        body: `(elements, numbers, *lines, *scalars) -> lines of the results`: the elements of the
            windows in raster order, the number of each window along the four axes, and a line of
            each array of `pooled`.
        view: how to look at the arrays.
        u: unpooled array.
        pooled: further operands, with an element per window.
        dtypes: of the results.
        scalars: vectors read element by element.
    """
    axes, lanes = view.axes, blocks.lane_block(view)
    windows = [axis.outputs for axis in axes]
    rows = plan(view, u.dtype, [*dtypes, *(array.dtype for array in pooled)])
    assert rows is not None
    slab = _slab(axes, rows)

    def kernel(*refs: Any) -> None:
        scalar_refs, (u_ref, *rest) = refs[: len(scalars)], refs[len(scalars) :]
        pooled_refs, result_refs, staged = rest[: len(pooled)], rest[len(pooled) : -1], rest[-1]
        slab.stage(view, u_ref, staged)

        def row_of_windows(row: list[Any]) -> None:
            line = lax.broadcasted_iota(jnp.int32, (windows[3], lanes), 0)
            outer = [pl.program_id(i) * n + r for i, (n, r) in enumerate(zip(rows, row))]
            elements = _elements(axes, slab, staged, [*outer, line])
            values = [blocks.load(view, r, row, windows[3], jnp.int32) for r in pooled_refs]
            results = body(elements, [*outer, line], *values, *scalar_refs)
            for ref, result in zip(result_refs, results):
                blocks.store(view, ref, row, result)

        blocks.for_each(rows, row_of_windows)

    spec = blocks.spec(view, rows, windows[3])
    grid = (*(-(-n // size) for n, size in zip(windows, rows)), -(-view.lanes // lanes))
    sizes = (*windows[:3], *view.swap(windows[3], windows[3], view.lanes))
    outputs = [result_like(u, sizes, dtype) for dtype in dtypes]
    results = pl.pallas_call(
        kernel,
        out_shape=outputs,
        grid=grid,
        in_specs=[
            *[pl.BlockSpec(memory_space=pltpu.SMEM)] * len(scalars),
            slab.spec(view),
            *[spec] * len(pooled),
        ],
        out_specs=[spec] * len(dtypes),
        scratch_shapes=[slab.scratch(lanes, u.dtype)],
        cost_estimate=blocks.cost_estimate(
            view, [(slab, u.dtype)], math.prod(grid), [*pooled, *outputs]
        ),
    )(*scalars, view.bring(u), *map(view.bring, pooled))
    return [view.restore(y, view.geometry.pooled_shape(view.shape)) for y in results]


def plan(view: View, dtype: Any, others: Sequence[Any]) -> tuple[int, ...] | None:
    """Rows of windows in a block, for the types of `u` and of the pooled arrays."""
    lanes, windows = blocks.lane_block(view), [axis.outputs for axis in view.axes]

    def cost(rows: Sequence[int]) -> int:
        """Buffers for every array, and the staged slab."""
        slab = _slab(view.axes, rows)
        staged = blocks.size_in_vmem(slab.sizes, slab.margin + slab.extent, lanes, jnp.float32)
        buffers = blocks.buffers(view, slab.sizes, slab.line, dtype)
        return staged + buffers + sum(blocks.buffers(view, rows, windows[3], o) for o in others)

    return blocks.plan(windows[:3], functools.partial(_slab, view.axes), cost)


def _slab(axes: Sequence[Axis], rows: Sequence[int]) -> blocks.Slab:
    """What a block of rows of windows reads."""
    sizes = [
        min((count - 1) * axis.stride + axis.span, axis.size) for axis, count in zip(axes, rows)
    ]

    def start(axis: Axis, count: int, size: int, block: Any) -> Any:
        first = axis.position(block * jnp.int32(count))
        return jnp.clip(first, 0, axis.size - size).astype(jnp.int32)

    starts = [
        functools.partial(start, axis, count, size) for axis, count, size in zip(axes, rows, sizes)
    ]
    line = axes[-1]
    extent = max(line.size, line.stop)
    return blocks.Slab(tuple(sizes), tuple(starts), line.size, line.low, extent)


def _elements(
    axes: Sequence[Axis], slab: blocks.Slab, staged: Any, numbers: Sequence[Any]
) -> Iterator[Element]:
    """The elements of a line of windows of the given numbers, in raster order."""
    starts = [start(pl.program_id(i)) for i, start in enumerate(slab.starts)]
    *_, line = axes
    for offset, taps in enumerate(itertools.product(*(range(axis.window) for axis in axes))):
        row, conditions = [], []
        for i, (axis, tap, number) in enumerate(zip(axes, taps, numbers)):
            position = axis.position(number, tap)
            range_ = axis.position(0, tap), axis.position(axis.outputs - 1, tap)
            conditions.append(blocks.between(position, axis.size, range_))
            if i < len(starts):
                row.append(jnp.clip(position, 0, axis.size - 1) - starts[i])
        first = slab.margin + line.position(0, taps[-1])
        stride = line.stride if line.stride > 1 else None
        value = staged[(*row, pl.ds(first, line.outputs, stride=stride))]
        yield Element(offset, taps, value, blocks.all_of(value.shape, conditions))
