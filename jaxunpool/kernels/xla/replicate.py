"""replicate: y -> u, each window's value copied into its elements; where windows meet, added."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable

import jax

from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels import common
from jaxunpool.kernels.common import accumulator
from jaxunpool.kernels.xla import cells, windows


def replicate(
    y: jax.Array, pattern: jax.Array | None, geometry: WindowGeometry, weighting: str = "sum"
) -> jax.Array:
    """Copies times `pattern` (of the window's shape; None: ones), weighted, in raster order."""
    dtype, spatial = accumulator(y.dtype), geometry.spatial
    value = common.by_window(
        y.astype(dtype), geometry, weighting, windows.numbers(geometry, y.ndim)
    )
    factors = None if pattern is None else pattern.astype(dtype).ravel()

    def contribute(u: jax.Array, reached: cells.Reached, value: jax.Array) -> jax.Array:
        hit = reached.inside
        if weighting == "last":
            is_last = [
                axis.is_last(window, tap)
                for axis, window, tap in zip(spatial, reached.windows, reached.taps)
            ]
            hit &= functools.reduce(operator.and_, is_last)
        if factors is not None:
            value = common.times(value, jnp.take(factors, reached.entry, axis=0, mode="clip"))
            for window, n in zip(reached.windows, geometry.output_shape):
                hit &= (window >= 0) & (window < n)  # infinity times the zero of no window is NaN
        return jnp.where(hit, u + value, u)

    def finish(u: jax.Array, aligned: Callable[[int, jax.Array], jax.Array]) -> jax.Array:
        u = common.unsigned_zero(u)
        if weighting == "cover":
            axes = geometry.in_cells.spatial
            positions = [lax.iota(jnp.int32, axis.cells * axis.stride) for axis in axes]
            u = common.by_element(u, geometry, positions, aligned)
        return u.astype(y.dtype)

    return cells.assemble([(value, 0)], geometry, contribute, finish)
