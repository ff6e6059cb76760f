"""Putting an unpooled array together: every element looks at the windows that cover it.

The array is seen as cells of `strides` elements. The windows that reach cell `a` are `a + shift`
for a few shifts, the same for every cell, and what they contribute is added shift by shift: no
scatter instruction, one write per element.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jaxunpool.core.frozen import jnp
from jaxunpool.core.geometry import WindowGeometry, along
from jaxunpool.kernels import varying
from jaxunpool.kernels.xla import windows

# Up to here the shifts are unrolled; beyond, a loop keeps the program small.
UNROLLED_SHIFTS = 16


class Reached(NamedTuple):
    """Which element of the shifted window each element of a cell is, as arrays like the cells.

    Attributes:
        windows: number of the window along each spatial axis, whether it exists or not.
        taps: number of the element along each; undefined where not `inside`.
        offset: number of the element in the window.
        entry: the same, of size 1 along the axes that it does not depend on.
        inside: whether the window has this element.
    """

    windows: Sequence[jax.Array]
    taps: Sequence[jax.Array]
    offset: jax.Array
    entry: jax.Array
    inside: jax.Array


def assemble(
    sources: Sequence[tuple[jax.Array, Any]],
    geometry: WindowGeometry,
    contribute: Callable[..., jax.Array],
    finish: Callable[[jax.Array, Callable[[int, jax.Array], jax.Array]], jax.Array],
) -> jax.Array:
    """The unpooled array, cell by cell.

    Each spatial axis is split in two until the end, cells and elements of a cell: XLA fuses nothing
    across a reshape.

    Args:
        sources: pooled arrays, each with what stands for it where there is no window. Sums are kept
            in the type of the first.
        geometry: the windows.
        contribute: `(u, reached, *values) -> u`, where `values` are the sources of the shifted
            window, of size 1 along the elements of a cell.
        finish: `(u, aligned) -> u`, applied to the sums; `aligned(i, vector)` lays a vector, one
            element for each of the cells along spatial axis `i`, along the two axes of the cells.
    """
    g, shape = geometry.in_cells, sources[0][0].shape
    first, cells = g.axes[0] % len(shape), [axis.cells for axis in g.spatial]
    inner = [size for pair in zip(cells, g.strides) for size in pair]
    split = (*shape[:first], *inner, *shape[first + g.ndim :])
    pads, shifts = [(0, 0)] * len(shape), [axis.shifts for axis in g.spatial]
    for i, (axis, some) in enumerate(zip(g.spatial, shifts)):
        pads[first + i] = (-some[0], axis.cells_without)
    padded = varying.together(*(windows.pad(array, pads, fill) for array, fill in sources))
    zeros = varying.along(jnp.zeros(split, padded[0].dtype), varying.axes(padded[0]))

    def add(u: jax.Array, number: Any) -> jax.Array:
        steps = windows.taps(number, list(map(len, shifts)))
        shift = [step + some[0] for step, some in zip(steps, shifts)]
        values = []
        for value in padded:
            for i, step in enumerate(steps):
                value = windows.strided(value, first + i, step, cells[i])
            values.append(jnp.expand_dims(value, [first + 2 * i + 1 for i in range(g.ndim)]))
        return contribute(u, _reached(g, shift, first, u), *values)

    u = windows.fold(add, zeros, range(math.prod(map(len, shifts))), UNROLLED_SHIFTS, 1)

    def aligned(i: int, vector: jax.Array) -> jax.Array:
        shape = [1] * u.ndim
        shape[first + 2 * i : first + 2 * i + 2] = cells[i], g.strides[i]
        return vector.reshape(shape)

    u = finish(u, aligned)
    u = u.reshape(g.with_spatial(shape, [n * stride for n, stride in zip(cells, g.strides)]))
    for i, size in enumerate(g.input_shape):  # without what is beyond the end
        u = windows.strided(u, first + i, 0, size)
    return u


def _numbers(g: WindowGeometry, first: int, u: jax.Array) -> tuple[list[jax.Array], ...]:
    """Along each spatial axis, the numbers of the cells and of the elements in their cells."""
    cell = [along(u, first + 2 * i) for i in range(g.ndim)]
    return cell, [along(u, first + 2 * i + 1) for i in range(g.ndim)]


def _reached(g: WindowGeometry, shift: Sequence[Any], first: int, u: jax.Array) -> Reached:
    cell, place = _numbers(g, first, u)
    # What a window has of a cell is the same for all cells.
    taps, has = zip(*(axis.tap(s, p) for axis, s, p in zip(g.spatial, shift, place)))
    short = [windows.iota(n, first + 2 * i + 1, u.ndim) for i, n in enumerate(g.strides)]
    entry = [axis.tap(s, p)[0] for axis, s, p in zip(g.spatial, shift, short)]
    return Reached(
        [c + s for c, s in zip(cell, shift)],
        taps,
        windows.raster(taps, g.window_shape),
        windows.raster(entry, g.window_shape),
        functools.reduce(operator.and_, has),
    )
