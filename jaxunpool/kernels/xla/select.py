"""select: x -> (y, offsets), the maximum of each window and which of its elements that was."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax

from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels import varying
from jaxunpool.kernels.common import comparable, lowest
from jaxunpool.kernels.xla import windows

# Up to here every element of a window is a slice in one fused program; beyond, axis after axis.
DIRECT_VOLUME, DIRECT_WIDTH = 16, 3
# Up to here the elements along one axis are unrolled; beyond, a loop over a few at a time keeps the
# program small.
UNROLLED_WIDTH, CHUNK = 8, 4


def select(x: jax.Array, geometry: WindowGeometry) -> tuple[jax.Array, jax.Array]:
    """Maximum of each window and its offset: the first of equals, the last NaN, never padding."""
    every = range(geometry.ndim)
    if geometry.volume <= DIRECT_VOLUME or max(geometry.window_shape) <= DIRECT_WIDTH:
        return _pass(x, None, geometry, every)
    # The last axis first: the first winner of the first best row is the first in raster order.
    y, offsets = _pass(x, None, geometry, every[-1:])
    for i in reversed(every[:-1]):
        y, offsets = _pass(y, offsets, geometry, [i])
    return y, offsets


def _pass(
    x: jax.Array, carried: jax.Array | None, geometry: WindowGeometry, over: Sequence[int]
) -> tuple[jax.Array, jax.Array]:
    """select over the spatial axes `over`, carrying the offsets found along later axes."""
    axes = [geometry.spatial[i] for i in over]
    window = [axis.window for axis in axes]
    raster = math.prod(geometry.window_shape[over[-1] + 1 :])  # offsets from a tap to the next
    dtype = comparable(x.dtype)
    values = windows.padded(x.astype(dtype), geometry, lowest(dtype), over)
    if carried is not None:
        carried = windows.padded(carried.astype(jnp.int32), geometry, 0, over)
    numbers = windows.numbers(geometry, x.ndim)
    first = [geometry.spatial[i].first(numbers[i]) for i in over]
    is_full = all(axis.is_full(padded=False) for axis in axes)

    def candidate(number: Any) -> tuple[jax.Array, jax.Array]:
        taps = windows.taps(number, window)
        value = windows.element(values, geometry, taps, over)
        offset = jnp.full(value.shape, number * raster, jnp.int32)
        if carried is not None:
            offset += windows.element(carried, geometry, taps, over)
        value, offset = varying.together(value, offset)
        return value, offset

    def update(best: tuple[jax.Array, jax.Array], number: Any) -> tuple[jax.Array, jax.Array]:
        value, offset = candidate(number)
        take = value > best[0]
        if jnp.issubdtype(dtype, jnp.floating):
            take |= value != value
        if not is_full:  # the elements before the first one are all padding
            taps = windows.taps(number, window)
            take |= functools.reduce(operator.and_, map(operator.eq, first, taps))
        return jnp.where(take, value, best[0]), jnp.where(take, offset, best[1])

    unrolled = UNROLLED_WIDTH if len(over) == 1 else geometry.volume
    others = range(1, math.prod(window))
    y, offsets = windows.fold(update, candidate(0), others, unrolled, CHUNK)
    y, offsets = y.astype(x.dtype), offsets.astype(geometry.offset_dtype)
    # Without a barrier XLA fuses the pass into its consumers: it is recomputed for each element
    # that they read, for which x stays in memory.
    return lax.optimization_barrier((y, offsets))
