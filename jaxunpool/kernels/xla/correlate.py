"""correlate: (u, y) -> pattern, for the gradient of reduce and replicate for their pattern.

Element `t` is the sum, over all windows, of `y` times element `t` of the window. No backend needs
one of its own: it is a plain reduction.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels.common import accumulator
from jaxunpool.kernels.xla import regions, windows
from jaxunpool.kernels.xla.reduce import UNROLLED_VOLUME


def correlate(u: jax.Array, y: jax.Array, geometry: WindowGeometry) -> jax.Array:
    """An array of the window's shape, in the type sums run in."""
    over, dtype = range(geometry.ndim), accumulator(y.dtype)
    region = [(0, size) for size in geometry.output_shape]
    reach = windows.reach(geometry, over, region)
    part = regions.padded_slice(u, geometry.axes, reach, 0).astype(dtype)
    y = y.astype(dtype)
    inside = windows.inside(u, geometry, over, region)

    def entry(taps: Sequence[Any]) -> jax.Array:
        product = y * windows.element(part, geometry, over, taps, region)
        if inside is not None:  # mask: infinity times a zero of the padding is NaN
            product = jnp.where(windows.element(inside, geometry, over, taps, region), product, 0)
        return jnp.sum(product)

    if geometry.volume <= UNROLLED_VOLUME:
        entries = list(map(entry, itertools.product(*map(range, geometry.window_shape))))
        return jnp.stack(entries).reshape(geometry.window_shape)
    taps = jnp.stack(jnp.unravel_index(jnp.arange(geometry.volume), geometry.window_shape), -1)
    return lax.map(entry, taps).reshape(geometry.window_shape)
