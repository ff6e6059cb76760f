"""The kernels from pooled arrays to an unpooled one: scatter and replicate.

The result is seen as cells of `stride` elements. The windows that reach cell `a` are `a + shift`
for a few shifts, the same for every cell; so each element of a cell looks at a fixed number of
windows, in raster order, and which of their elements it is does not depend on the cell.
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
from jaxunpool.kernels.mosaic_tpu.views import SUBLANES, View, round_up
from jaxunpool.kernels.varying import result_like


class Window(NamedTuple):
    """One window that covers each element of a line.

    Attributes:
        offset: number of the element in its window.
        taps: number of the element along each of the four axes.
        numbers: number of the window along each, a scalar or a line.
        values: line of values per source, undefined where the mask `exists` is False.
        exists: line that says where there is one; None if everywhere.
    """

    offset: int
    taps: tuple[int, ...]
    numbers: tuple[Any, ...]
    values: tuple[jax.Array, ...]
    exists: jax.Array | None


def unpool(
    body: Callable[..., jax.Array],
    view: View,
    sources: Sequence[jax.Array],
    *,
    scalars: Sequence[jax.Array] = (),
    prepare: Callable[..., jax.Array] | None = None,
) -> jax.Array:
    """An unpooled array of the type of the first source.

    Args:
        body: `(zero, windows, *scalars) -> u`: from a line of zeros and the windows that cover
            each element of the line, in raster order.
        view: how to look at the arrays.
        sources: pooled arrays.
        scalars: vectors read element by element.
        prepare: `(line, numbers) -> line`, applied to the values of the first source.
    """
    axes, lanes, dtype = view.axes, blocks.lane_block(view), sources[0].dtype
    cells = [axis.cells for axis in axes]
    rows = plan(view, [source.dtype for source in sources])
    assert rows is not None
    slab, line = _slab(axes, rows), axes[-1]
    heights = [count * axis.stride for count, axis in zip(rows, axes)]

    def kernel(*refs: Any) -> None:
        scalar_refs, rest = refs[: len(scalars)], refs[len(scalars) :]
        source_refs, u_ref = rest[: len(sources)], rest[len(sources)]
        *staged, whole = rest[len(sources) + 1 :]
        for source, target, change in zip(source_refs, staged, (prepare, None)):
            slab.stage(view, source, target, change)

        def row_of_cells(row: list[Any]) -> None:
            iota = lax.broadcasted_iota(jnp.int32, (cells[3], lanes), 0)
            zero = jnp.zeros(iota.shape, whole.dtype)
            numbers = [pl.program_id(i) * n + r for i, (n, r) in enumerate(zip(rows, row))]
            for outer in itertools.product(*(range(axis.stride) for axis in axes[:3])):
                for inner in range(line.stride):
                    element = (*outer, inner)
                    windows = _windows(axes, slab, staged, element, [*numbers, iota])
                    u = body(zero, windows, *scalar_refs)
                    stride = line.stride if line.stride > 1 else None
                    whole[pl.ds(inner, cells[3], stride=stride)] = u
                target = [r * axis.stride + o for r, axis, o in zip(row, axes, outer)]
                blocks.store(view, u_ref, target, whole[: line.size])

        blocks.for_each(rows, row_of_cells)

    length = round_up(cells[3] * line.stride, SUBLANES)
    grid = (*(-(-n // size) for n, size in zip(cells, rows)), -(-view.lanes // lanes))
    sizes = [*(axis.size for axis in axes[:3]), *view.swap(line.size, line.size, view.lanes)]
    out = result_like(sources[0], sizes, dtype)
    u = pl.pallas_call(
        kernel,
        out_shape=out,
        grid=grid,
        in_specs=[
            *[pl.BlockSpec(memory_space=pltpu.SMEM)] * len(scalars),
            *[slab.spec(view)] * len(sources),
        ],
        out_specs=blocks.spec(view, heights, line.size),
        scratch_shapes=[
            *[slab.scratch(lanes, source.dtype) for source in sources],
            pltpu.VMEM((length, lanes), blocks.wide(dtype)),
        ],
        cost_estimate=blocks.cost_estimate(
            view, [(slab, source.dtype) for source in sources], math.prod(grid), [out]
        ),
    )(*scalars, *map(view.bring, sources))
    return view.restore(u, view.shape)


def plan(view: View, dtypes: Sequence[Any]) -> tuple[int, ...] | None:
    """Rows of cells in a block, for sources of the given types."""
    lanes, cells = blocks.lane_block(view), [axis.cells for axis in view.axes]
    line = view.axes[-1]

    def cost(rows: Sequence[int]) -> int:
        """Buffers for every array, the staged slabs, and a line."""
        slab = _slab(view.axes, rows)
        staged = blocks.size_in_vmem(slab.sizes, slab.margin + slab.extent, lanes, jnp.float32)
        heights = [count * axis.stride for count, axis in zip(rows, view.axes)]
        whole = blocks.size_in_vmem([], cells[3] * line.stride, lanes, jnp.float32)
        buffers = blocks.buffers(view, heights, line.size, dtypes[0])
        buffers += sum(blocks.buffers(view, slab.sizes, slab.line, dtype) for dtype in dtypes)
        return len(dtypes) * staged + whole + buffers

    return blocks.plan(cells[:3], functools.partial(_slab, view.axes), cost)


def _slab(axes: Sequence[Axis], rows: Sequence[int]) -> blocks.Slab:
    """What a block of rows of cells reads."""
    shifts = [axis.reaching(1) for axis in axes]
    sizes = [
        min(count + shift[-1] - shift[0], axis.outputs)
        for axis, count, shift in zip(axes, rows, shifts)
    ]

    def start(axis: Axis, first: int, count: int, size: int, block: Any) -> Any:
        first = block * jnp.int32(count) + first
        return jnp.clip(first, 0, axis.outputs - size).astype(jnp.int32)

    starts = [
        functools.partial(start, axis, shift[0], count, size)
        for axis, shift, count, size in zip(axes, shifts, rows, sizes)
    ]
    line, shift = axes[-1], shifts[-1]
    extent = max(line.outputs, line.cells + shift[-1])
    return blocks.Slab(tuple(sizes), tuple(starts), line.outputs, max(0, -shift[0]), extent)


def _windows(
    axes: Sequence[Axis],
    slab: blocks.Slab,
    staged: Sequence[Any],
    element: Sequence[int],
    cells: Sequence[Any],
) -> Iterator[Window]:
    """The windows that cover an element of each cell of a line, in raster order."""
    starts = [start(pl.program_id(i)) for i, start in enumerate(slab.starts)]
    for covering in itertools.product(*(a.covering(p) for a, p in zip(axes, element))):
        shifts, taps = zip(*covering)
        numbers = tuple(cell + shift for cell, shift in zip(cells, shifts))
        conditions = [
            blocks.between(number, axis.outputs, (shift, axis.cells - 1 + shift))
            for number, axis, shift in zip(numbers, axes, shifts)
        ]
        row = [
            jnp.clip(number, 0, axis.outputs - 1) - start
            for number, axis, start in zip(numbers, axes, starts)
        ]
        part = pl.ds(slab.margin + shifts[-1], axes[-1].cells)
        values = tuple(ref[(*row, part)] for ref in staged)
        offset = functools.reduce(lambda n, pair: n * pair[0].window + pair[1], zip(axes, taps), 0)
        exists = blocks.all_of(values[0].shape, conditions)
        yield Window(offset, taps, numbers, values, exists)
