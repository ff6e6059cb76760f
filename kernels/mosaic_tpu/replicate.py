"""replicate: y -> u, each window's value copied into its elements; where windows meet, added."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxunpool.geometry import WindowGeometry
from jaxunpool.kernels.mosaic_tpu import blocks
from jaxunpool.kernels.mosaic_tpu.unpooling import Window, unpool
from jaxunpool.kernels.mosaic_tpu.views import view
from jaxunpool.kernels.xla import weighting


def replicate(
    y: jax.Array, pattern: jax.Array | None, geometry: WindowGeometry, weights: str = "sum"
) -> jax.Array:
    """Copies times `pattern` (of the window's shape; None: ones), weighted, in raster order."""
    look = view(geometry, geometry.unpooled_shape(y.shape))

    def divide_by_count(line: jax.Array, numbers: Sequence[Any]) -> jax.Array:
        return weighting.by_window(line, geometry, weights, look.spatial(numbers))

    def divide_by_cover(line: jax.Array, positions: Sequence[Any]) -> jax.Array:
        return weighting.by_element(line, geometry, look.spatial(positions))

    def body(u: jax.Array, windows: Iterator[Window], *factors: Any) -> jax.Array:
        for window in windows:
            (value,), conditions = window.values, [] if window.exists is None else [window.exists]
            for factor in factors:
                value = weighting.times(value, factor[window.offset])
            if weights == "last":
                numbers = look.spatial(window.numbers)
                conditions += [
                    weighting.is_last(geometry, i, tap, number)
                    for i, (tap, number) in enumerate(zip(look.spatial(window.taps), numbers))
                ]
            hit = blocks.all_of(value.shape, conditions)
            u = u + value if hit is None else jnp.where(hit, u + value, u)
        return u

    factors = [] if pattern is None else [pattern.astype(blocks.wide(y.dtype)).ravel()]
    return unpool(
        body,
        look,
        [y],
        scalars=factors,
        prepare=divide_by_count if weights in weighting.PER_WINDOW else None,
        finish=divide_by_cover if weights == "cover" else None,
    )
