"""correlate: (u, y) -> pattern, for the gradient of reduce and replicate for their pattern.

Element `t` is the sum, over all windows, of `y` times element `t` of the window. No backend needs
one of its own: it is a plain reduction.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax

from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels.common import accumulator
from jaxunpool.kernels.xla import windows
from jaxunpool.kernels.xla.reduce import UNROLLED_VOLUME


def correlate(u: jax.Array, y: jax.Array, geometry: WindowGeometry) -> jax.Array:
    """An array of the window's shape, in the type sums run in."""
    dtype = accumulator(y.dtype)
    values, y = windows.padded(u.astype(dtype), geometry, 0), y.astype(dtype)
    numbers = windows.numbers(geometry, y.ndim)

    def entry(number: Any) -> jax.Array:
        taps = windows.taps(number, geometry.window_shape)
        product = y * windows.element(values, geometry, taps)
        # Infinity times a zero of the padding is NaN.
        inside = [
            axis.has(window, tap) for axis, window, tap in zip(geometry.spatial, numbers, taps)
        ]
        counts = functools.reduce(operator.and_, inside)
        return jnp.sum(product if counts is True else jnp.where(counts, product, 0))

    if geometry.volume <= UNROLLED_VOLUME:
        entries = jnp.stack(list(map(entry, range(geometry.volume))))
    else:
        entries = lax.map(entry, jnp.arange(geometry.volume))
    return entries.reshape(geometry.window_shape)
