"""replicate: y -> u, each window's value copied into its elements; where windows meet, added."""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels import common
from jaxunpool.kernels.common import accumulator
from jaxunpool.kernels.xla import cells


def replicate(
    y: jax.Array,
    pattern: jax.Array | None,
    geometry: WindowGeometry,
    weighting: str = "sum",
    *,
    borders_apart: bool = True,
) -> jax.Array:
    """Copies times `pattern` (of the window's shape; None: ones), weighted, in raster order."""
    dtype = accumulator(y.dtype)
    windows = [lax.broadcasted_iota(jnp.int32, y.shape, axis % y.ndim) for axis in geometry.axes]
    value = common.by_window(y.astype(dtype), geometry, weighting, windows)
    spread = None if pattern is None else _spread(pattern.astype(dtype), geometry)

    def contribute(u: jax.Array, reached: list[cells.Reached], value: jax.Array) -> jax.Array:
        conditions = [axis.inside for axis in reached]
        if weighting == "last":
            conditions += [
                axis.is_last(found.window, found.tap)
                for axis, found in zip(geometry.spatial, reached)
            ]
        if spread is not None:  # mask: infinity times the zero of a missing window is NaN
            value = common.times(value, _piece(spread, geometry, reached, u))
            conditions += [
                (axis.window >= 0) & (axis.window < n)
                for axis, n in zip(reached, geometry.output_shape)
            ]
        hit: Any = functools.reduce(operator.and_, conditions)
        return u + value if hit is True else jnp.where(hit, u + value, u)

    def finish(u: jax.Array, positions: list[jax.Array]) -> jax.Array:
        return common.by_element(u, geometry, positions) if weighting == "cover" else u

    return cells.assemble(
        [(value, 0)], geometry, contribute, y.dtype, borders_apart=borders_apart, finish=finish
    )


def _spread(pattern: jax.Array, g: WindowGeometry) -> jax.Array:
    """The pattern with its elements `dilation` apart, and zeros around it as wide as a cell."""
    pads = [(cell, cell, d - 1) for cell, d in zip(g.in_cells.strides, g.dilation)]
    return lax.pad(pattern, jnp.zeros((), pattern.dtype), pads)


def _piece(
    spread: jax.Array, g: WindowGeometry, reached: list[cells.Reached], like: jax.Array
) -> jax.Array:
    """The part of the pattern that the shifted window lays over a cell."""
    sizes = g.in_cells.strides
    starts = [axis.start + size for axis, size in zip(reached, sizes)]
    piece = lax.dynamic_slice(spread, starts, sizes)
    shape = [1] * like.ndim
    for axis, size in zip(cells.split(g), sizes):
        shape[axis + 1] = size
    return piece.reshape(shape)
