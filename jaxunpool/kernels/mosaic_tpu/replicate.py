"""replicate: y -> u, each window's value copied into its elements; where windows meet, added."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels import common
from jaxunpool.kernels.mosaic_tpu import blocks, counts
from jaxunpool.kernels.mosaic_tpu.unpooling import Window, unpool
from jaxunpool.kernels.mosaic_tpu.views import view


def replicate(
    y: jax.Array, pattern: jax.Array | None, geometry: WindowGeometry, weighting: str = "sum"
) -> jax.Array:
    """Copies times `pattern` (of the window's shape; None: ones), weighted, in raster order."""
    look = view(geometry, geometry.unpooled_shape(y.shape))

    def divide(line: jax.Array, numbers: Sequence[Any]) -> jax.Array:
        return common.divide(line, counts.elements(look.axes, numbers, weighting))

    def body(u: jax.Array, windows: Iterator[Window], *factors: Any) -> jax.Array:
        covers = []
        for window in windows:
            (value,), conditions = window.values, [True if window.exists is None else window.exists]
            covers += conditions
            for factor in factors:
                value = common.times(value, factor[window.offset])
            if weighting == "last":
                numbers, taps = look.spatial(window.numbers), look.spatial(window.taps)
                conditions += [
                    axis.is_last(number, tap)
                    for axis, number, tap in zip(geometry.spatial, numbers, taps)
                ]
            taken = blocks.all_of(value.shape, conditions)
            u = u + value if taken is None else jnp.where(taken, u + value, u)
        u = common.unsigned_zero(u)
        if weighting == "cover" and geometry.overlaps:
            u = common.divide(u, jnp.maximum(counts.number(covers), 1))
        return u

    factors = [] if pattern is None else [pattern.astype(blocks.wide(y.dtype)).ravel()]
    prepare = divide if weighting in common.PER_WINDOW else None
    return unpool(body, look, [y], scalars=factors, prepare=prepare)
