"""Putting an unpooled array together: every element looks at the windows that cover it.

The array is seen as cells of `strides` elements. The windows that reach cell `a` are `a + shift`
for a few shifts, the same for every cell, and what they contribute is added shift by shift: no
scatter instruction, one write per element.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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
        inside: whether the window has this element.
    """

    windows: list[jax.Array]
    taps: list[jax.Array]
    offset: jax.Array
    inside: jax.Array


def assemble(
    sources: Sequence[tuple[jax.Array, Any]],
    geometry: WindowGeometry,
    contribute: Callable[..., jax.Array],
    finish: Callable[[jax.Array, list[jax.Array]], jax.Array],
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
        finish: `(u, positions) -> u`, applied to the sums.
    """
    g, shape = geometry.in_cells, sources[0][0].shape
    first, cells = g.axes[0] % len(shape), [axis.cells for axis in g.spatial]
    inner = [size for pair in zip(cells, g.strides) for size in pair]
    split = (*shape[:first], *inner, *shape[first + g.ndim :])
    pads, shifts = [(0, 0)] * len(shape), [axis.shifts for axis in g.spatial]
    for i, (axis, some) in enumerate(zip(g.spatial, shifts)):
        pads[first + i] = (-some[0], max(axis.cells + some[-1] - axis.outputs, 0))
    padded = varying.together(*(windows.pad(array, pads, fill) for array, fill in sources))
    zeros = varying.along(jnp.zeros(split, padded[0].dtype), varying.axes(padded[0]))
    cell = [along(zeros, first + 2 * i) for i in range(g.ndim)]
    place = [along(zeros, first + 2 * i + 1) for i in range(g.ndim)]

    def add(u: jax.Array, number: Any) -> jax.Array:
        steps = windows.taps(number, list(map(len, shifts)))
        shift = [step + some[0] for step, some in zip(steps, shifts)]
        values = []
        for value in padded:
            for i, step in enumerate(steps):
                value = windows.strided(value, first + i, step, cells[i])
            values.append(jnp.expand_dims(value, [first + 2 * i + 1 for i in range(g.ndim)]))
        return contribute(u, _reached(g, shift, cell, place), *values)

    u = windows.fold(add, zeros, range(math.prod(map(len, shifts))), UNROLLED_SHIFTS, 1)
    u = finish(u, [c * stride + p for c, stride, p in zip(cell, g.strides, place)])
    u = u.reshape(g.with_spatial(shape, [n * stride for n, stride in zip(cells, g.strides)]))
    for i, size in enumerate(g.input_shape):  # without what is beyond the end
        u = windows.strided(u, first + i, 0, size)
    return u


def _reached(
    g: WindowGeometry, shift: Sequence[Any], cell: Sequence[jax.Array], place: Sequence[jax.Array]
) -> Reached:
    numbers, taps = [c + s for c, s in zip(cell, shift)], []
    offset: Any = 0
    inside: Any = True
    for axis, s, p in zip(g.spatial, shift, place):
        tap, has_it = axis.tap(s, p)  # the same for all cells
        taps.append(tap)
        inside &= has_it
        offset = offset * axis.window + tap
    return Reached(numbers, taps, offset, inside)
