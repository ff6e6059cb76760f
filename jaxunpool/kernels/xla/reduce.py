"""reduce: u -> y, the sum over each window. The transpose of replicate."""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax

from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels import common, varying
from jaxunpool.kernels.common import accumulator
from jaxunpool.kernels.xla import windows

# Up to here every element of a window is a slice in one fused program; beyond, a loop over chunks
# of the window keeps the program small.
UNROLLED_VOLUME, CHUNK = 32, 16


def reduce(
    u: jax.Array, pattern: jax.Array | None, geometry: WindowGeometry, weighting: str = "sum"
) -> jax.Array:
    """Sums of the elements times `pattern` (of the window's shape; None: ones), in raster order."""
    dtype = accumulator(u.dtype)
    values = u.astype(dtype)
    if weighting == "cover":
        values = common.by_element(values, geometry, windows.positions(geometry, u.ndim))
    values = windows.padded(values, geometry, 0)
    factors = None if pattern is None else pattern.astype(dtype).ravel()
    numbers = windows.numbers(geometry, u.ndim)

    def add(y: jax.Array, number: Any) -> jax.Array:
        taps = windows.taps(number, geometry.window_shape)
        value, conditions = windows.element(values, geometry, taps), list[Any]()
        places = list(zip(geometry.spatial, numbers, taps))
        if factors is not None:
            factor = lax.dynamic_index_in_dim(factors, number, keepdims=False)
            value = common.times(value, factor)
            # Infinity times a zero of the padding is NaN.
            conditions += [axis.has(window, tap) for axis, window, tap in places]
        if weighting == "last":
            conditions += [axis.is_last(window, tap) for axis, window, tap in places]
        counts = functools.reduce(operator.and_, conditions, True)
        return y + (value if counts is True else jnp.where(counts, value, jnp.zeros_like(value)))

    zeros = jnp.zeros(geometry.pooled_shape(u.shape), dtype)
    zeros = varying.along(zeros, varying.axes(values))
    y = windows.fold(add, zeros, range(geometry.volume), UNROLLED_VOLUME, CHUNK)
    y = common.unsigned_zero(y)
    return common.by_window(y, geometry, weighting, numbers).astype(u.dtype)
