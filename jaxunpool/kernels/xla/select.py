"""select: x -> (y, offsets), the maximum of each window and which of its elements that was."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels import varying
from jaxunpool.kernels.common import lowest
from jaxunpool.kernels.xla import regions, windows

# Up to here every element of a window is a slice in one fused program; beyond, axis after axis.
DIRECT_VOLUME, DIRECT_WIDTH = 16, 3
# Up to here the elements along one axis are unrolled; beyond, a loop over a few at a time keeps the
# program small.
UNROLLED_WIDTH, CHUNK = 8, 4


def select(
    x: jax.Array, geometry: WindowGeometry, *, borders_apart: bool = True
) -> tuple[jax.Array, jax.Array]:
    """Maximum of each window and its offset: the first of equals, the last NaN, never padding."""
    if _is_direct(geometry):
        return _pass(x, None, geometry, range(geometry.ndim), borders_apart)
    # The last axis first: the first winner of the first best row is the first in raster order.
    # Where windows tile the input, rows are longer, and so faster, the other way around; equals are
    # then told apart by their offsets.
    tiles = not geometry.overlaps and all(
        axis.holds(axis.reach((0, axis.outputs))) for axis in geometry.spatial
    )
    first, *others = range(geometry.ndim) if tiles else reversed(range(geometry.ndim))
    y, offsets = _pass(x, None, geometry, [first], borders_apart)
    for i in others:
        y, offsets = _pass(y, offsets, geometry, [i], borders_apart, out_of_order=tiles)
    return y, offsets


def _is_direct(geometry: WindowGeometry) -> bool:
    return geometry.volume <= DIRECT_VOLUME or max(geometry.window_shape) <= DIRECT_WIDTH


def _pass(
    x: jax.Array,
    carried: jax.Array | None,
    geometry: WindowGeometry,
    over: Sequence[int],
    borders_apart: bool,
    out_of_order: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """select over the spatial axes `over`, carrying the offsets found along other axes.

    `out_of_order`: the carried offsets are of earlier axes, so that ties go to the smaller offset.
    There must be no padding then.
    """
    axes = [geometry.axes[i] for i in over]
    sizes = [geometry.output_shape[i] for i in over]
    inner = [geometry.spatial[i].interior if borders_apart else (0, n) for i, n in zip(over, sizes)]

    def compute(region: regions.Region) -> tuple[jax.Array, jax.Array]:
        reach = windows.reach(geometry, over, region)
        values = regions.padded_slice(x, axes, reach, lowest(x.dtype))
        found = None if carried is None else regions.padded_slice(carried, axes, reach, 0)
        inside = all(geometry.spatial[i].holds(part) for i, part in zip(over, reach))
        first = None if inside else _first_elements(geometry, over, region, x.ndim)
        return _running_maximum(values, found, geometry, over, region, first, out_of_order)

    is_loop = _is_rolled([geometry.window_shape[i] for i in over])
    is_loop &= all(part == (0, n) for part, n in zip(inner, sizes))
    fence = borders_apart and not is_loop  # XLA fuses nothing across a loop
    y, offsets = regions.fill(compute, inner, sizes, axes, fence=fence)
    # Without a barrier XLA fuses the pass into its consumers: it is recomputed for each element
    # that they read, for which x stays in memory. On CPU the loop in `fill` prevents this.
    return lax.optimization_barrier((y, offsets))


def _first_elements(
    geometry: WindowGeometry, over: Sequence[int], region: regions.Region, ndim: int
) -> list[jax.Array]:
    """Per axis, the first element of each window that is not padding."""
    firsts = []
    for i, (start, stop) in zip(over, region):
        shape = [1] * ndim
        shape[geometry.axes[i]] = stop - start
        window = lax.broadcasted_iota(jnp.int32, shape, geometry.axes[i] % ndim) + start
        firsts.append(geometry.spatial[i].first(window))
    return firsts


def _running_maximum(
    values: jax.Array,
    carried: jax.Array | None,
    geometry: WindowGeometry,
    over: Sequence[int],
    region: regions.Region,
    first: list[jax.Array] | None,
    out_of_order: bool,
) -> tuple[jax.Array, jax.Array]:
    """Compare the elements of the windows of a region in raster order (or by their offsets)."""
    window = [geometry.window_shape[i] for i in over]
    rasters = [math.prod(geometry.window_shape[i + 1 :]) for i in over]  # offsets per tap
    is_float = jnp.issubdtype(values.dtype, jnp.floating)

    def candidate(taps: Sequence[Any]) -> tuple[jax.Array, jax.Array]:
        value = windows.element(values, geometry, over, taps, region)
        step = jnp.asarray(sum(tap * raster for tap, raster in zip(taps, rasters)))
        step = step.astype(geometry.offset_dtype)
        if carried is None:
            return value, jnp.broadcast_to(step, value.shape)
        return value, windows.element(carried, geometry, over, taps, region) + step

    def update(best: tuple[jax.Array, jax.Array], taps: Sequence[Any]):
        value, offset = candidate(taps)
        take, is_nan = value > best[0], value != value
        if out_of_order:
            take |= (value == best[0]) & (offset < best[1])
            is_nan &= (best[0] == best[0]) | (offset > best[1])
        if is_float:
            take |= is_nan
        if first is not None:  # the elements before it were all padding
            take |= functools.reduce(operator.and_, [f == tap for f, tap in zip(first, taps)])
        return jnp.where(take, value, best[0]), jnp.where(take, offset, best[1])

    taps = list(itertools.product(*map(range, window)))
    if not _is_rolled(window):
        return functools.reduce(update, taps[1:], candidate(taps[0]))
    # The remainder, less than a chunk, is compared before the loop, so that the loop is the last
    # step: XLA fuses nothing across a loop.
    begin = 1 + (len(taps) - 1) % CHUNK

    def chunk(number: jax.Array, best: tuple[jax.Array, jax.Array]):
        return functools.reduce(update, ([begin + number * CHUNK + i] for i in range(CHUNK)), best)

    best = varying.together(*functools.reduce(update, taps[1:begin], candidate(taps[0])))
    return lax.fori_loop(0, (len(taps) - begin) // CHUNK, chunk, best)


def _is_rolled(window: Sequence[int]) -> bool:
    """Whether the elements of a window are compared in a loop."""
    return len(window) == 1 and window[0] > UNROLLED_WIDTH
