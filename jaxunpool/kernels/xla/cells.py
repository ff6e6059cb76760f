"""Putting an unpooled array together: every element looks at the windows that cover it.

The array is seen as cells of `strides` elements. The windows that reach cell `a` are `a + shift`
for a few shifts, the same for every cell, and what they contribute is added shift by shift: no
scatter instruction, one write per element.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels import varying
from jaxunpool.kernels.xla import regions, windows

# Up to here the shifts are unrolled; beyond, a loop keeps the program small.
UNROLLED_SHIFTS = 16


class Reached(NamedTuple):
    """Which element of the shifted window each element of a cell is, along one spatial axis.

    Attributes:
        tap: number of the element in the window; undefined where not `inside`.
        inside: whether the window has this element; True where all have.
        window: number of the window, whether it exists or not.
        start: distance from the window's first element to the cell's.
    """

    tap: jax.Array
    inside: jax.Array | bool
    window: jax.Array
    start: Any


Contribute = Callable[..., jax.Array]


def assemble(
    sources: Sequence[tuple[jax.Array, Any]],
    geometry: WindowGeometry,
    contribute: Contribute,
    dtype: Any,
    *,
    borders_apart: bool,
    finish: Callable[[jax.Array, list[jax.Array]], jax.Array] = lambda u, positions: u,
) -> jax.Array:
    """The unpooled array, cell by cell.

    Args:
        sources: pooled arrays, each with what stands for it where there is no window.
        geometry: the windows.
        contribute: `(u, reached, *values) -> u`, where `reached` holds one `Reached` per spatial
            axis and `values` are the sources of the shifted window, broadcast to the cells.
        dtype: of the result; sums are kept in the type of the first source.
        borders_apart: compute the cells that need no padded source by themselves.
        finish: `(u, positions) -> u`, applied to the sums before they become `dtype`.
    """
    g, shape = geometry.in_cells, sources[0][0].shape
    shifts = [axis.shifts for axis in g.spatial]
    cells = [axis.cells for axis in g.spatial]
    rolled = math.prod(map(len, shifts)) > UNROLLED_SHIFTS
    inner = [(0, n) for n in cells]
    if borders_apart and not rolled:
        inner = [
            (max(0, -t[0]), min(n, o - t[-1])) for t, n, o in zip(shifts, cells, g.output_shape)
        ]

    def compute(region: regions.Region) -> jax.Array:
        """The cells of a region, each spatial axis split in two: (cells, elements of a cell)."""
        reach = [(start + t[0], stop + t[-1]) for (start, stop), t in zip(region, shifts)]
        parts = [regions.padded_slice(array, g.axes, reach, fill) for array, fill in sources]
        u = _shift_by_shift(parts, g, contribute, region, shifts, rolled)
        u = finish(u, [_positions(g, i, region, u) for i in range(g.ndim)])
        return u.astype(dtype)

    def merged(u: jax.Array, ranges: Sequence[regions.Range]) -> jax.Array:
        """Cells as elements again, without those beyond the end."""
        u = u.reshape(g.with_spatial(shape, tuple(u.shape[a] * u.shape[a + 1] for a in split(g))))
        for axis, (start, stop) in zip(g.axes, ranges):
            u = windows.strided(u, axis, 0, stop - start, 1)
        return u

    def compute_elements(ranges: regions.Region) -> tuple[jax.Array]:
        region = [(start // s, -(-stop // s)) for (start, stop), s in zip(ranges, g.strides)]
        return (merged(compute(tuple(region)), ranges),)

    if any(n % s for n, s in zip(g.input_shape, g.strides)):
        return regions.fill(compute_elements, inner, g.input_shape, g.axes, steps=g.strides)[0]
    # The reshape follows the loop in `fill`: there XLA makes it a bitcast, without a copy.
    (u,) = regions.fill(lambda r: (compute(r),), inner, cells, split(g), fence=borders_apart)
    return merged(u, [(0, n) for n in g.input_shape])


def split(g: WindowGeometry) -> list[int]:
    """Axes of the cells, once each spatial axis is split in two."""
    last = g.axes[-1] + 1
    return [last - 2 * (g.ndim - i) for i in range(g.ndim)]


def _positions(g: WindowGeometry, i: int, region: regions.Region, like: jax.Array) -> jax.Array:
    """Position along spatial axis `i` of every element of the cells of a region."""
    axis = split(g)[i] % like.ndim
    cell = lax.broadcasted_iota(jnp.int32, like.shape, axis) + region[i][0]
    return cell * g.strides[i] + lax.broadcasted_iota(jnp.int32, like.shape, axis + 1)


def _reached(
    g: WindowGeometry, shift: Sequence[Any], region: regions.Region, like: jax.Array
) -> list[Reached] | None:
    """Per axis, which element of the shifted windows each element of the cells is; None if none.

    Computed from iotas, which XLA's CPU compiler vectorises where it would not a constant array.
    """
    found = []
    for i, axis in enumerate(split(g)):
        start = -g.spatial[i].position(shift[i])
        known = np.arange(g.strides[i]) + start if isinstance(start, int) else None  # distances
        k, d = g.window_shape[i], g.dilation[i]
        if known is not None and not ((known % d == 0) & (known >= 0) & (known < k * d)).any():
            return None
        distance = lax.broadcasted_iota(jnp.int32, like.shape, (axis + 1) % like.ndim) + start
        tap = distance // d if d > 1 else distance
        inside: Any = True
        if d > 1:
            inside = distance % d == 0
        if known is None or known[0] < 0:
            inside &= tap >= 0
        if known is None or known[-1] >= k * d:
            inside &= tap < k
        cell = lax.broadcasted_iota(jnp.int32, like.shape, axis % like.ndim)
        found.append(Reached(tap, inside, cell + (region[i][0] + shift[i]), start))
    return found


def _shift_by_shift(
    parts: Sequence[jax.Array],
    g: WindowGeometry,
    contribute: Contribute,
    region: regions.Region,
    shifts: Sequence[range],
    rolled: bool,
) -> jax.Array:
    def shifted(array: jax.Array, shift: Sequence[Any]) -> jax.Array:
        for axis, t, ts, (start, stop) in zip(g.axes, shift, shifts, region):
            array = windows.strided(array, axis, t - ts[0], stop - start, 1)
        array = jnp.expand_dims(array, [axis + 1 for axis in split(g)])
        cells = list(array.shape)
        for axis, stride in zip(split(g), g.strides):
            cells[axis + 1] = stride
        return jnp.broadcast_to(array, cells)

    def add(u: jax.Array, shift: Sequence[Any]) -> jax.Array:
        reached = _reached(g, shift, region, u)
        if reached is None:
            return u
        return contribute(u, reached, *(shifted(array, shift) for array in parts))

    first = shifted(parts[0], [ts[0] for ts in shifts])
    nothing = varying.along(jnp.zeros_like(first), varying.axes(varying.together(*parts)[0]))
    if not rolled:
        return functools.reduce(add, itertools.product(*shifts), nothing)

    def body(number: jax.Array, u: jax.Array) -> jax.Array:
        shift: list[jax.Array] = []
        for ts in reversed(shifts):
            number, t = jnp.divmod(number, len(ts))
            shift.insert(0, t + ts[0])
        return add(u, shift)

    return lax.fori_loop(0, math.prod(map(len, shifts)), body, nothing)
