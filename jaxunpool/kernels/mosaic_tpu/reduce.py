"""reduce: u -> y, the sum over each window. The transpose of replicate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels import common
from jaxunpool.kernels.mosaic_tpu import blocks, counts
from jaxunpool.kernels.mosaic_tpu.pooling import Element, pool
from jaxunpool.kernels.mosaic_tpu.views import view


def reduce(
    u: jax.Array, pattern: jax.Array | None, geometry: WindowGeometry, weighting: str = "sum"
) -> jax.Array:
    """Sums of the elements times `pattern` (of the window's shape; None: ones), in raster order."""
    look = view(geometry, u.shape)

    def body(elements: Iterator[Element], numbers: Sequence[Any], *factors: Any) -> list[jax.Array]:
        windows = look.spatial(numbers)
        y: Any = 0
        for offset, taps, value, inside in elements:
            conditions = [] if inside is None else [inside]
            if weighting == "cover" and geometry.overlaps:
                value = common.divide(value, counts.covers(look.axes, numbers, taps))
            for factor in factors:
                value = common.times(value, factor[offset])
            if weighting == "last":
                conditions += [
                    axis.is_last(window, tap)
                    for axis, window, tap in zip(geometry.spatial, windows, look.spatial(taps))
                ]
            taken = blocks.all_of(value.shape, conditions)
            y += value if taken is None else jnp.where(taken, value, jnp.zeros_like(value))
        y = common.unsigned_zero(y)
        if weighting in common.PER_WINDOW:
            y = common.divide(y, counts.elements(look.axes, numbers, weighting))
        return [y]

    factors = [] if pattern is None else [pattern.astype(blocks.wide(u.dtype)).ravel()]
    return pool(body, look, u, [], [u.dtype], scalars=factors)[0]
