"""reduce: u -> y, the sum over each window. The transpose of replicate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxunpool.geometry import WindowGeometry
from jaxunpool.kernels.mosaic_tpu import blocks
from jaxunpool.kernels.mosaic_tpu.pooling import Element, pool
from jaxunpool.kernels.mosaic_tpu.views import view
from jaxunpool.kernels.xla import weighting


def reduce(
    u: jax.Array, pattern: jax.Array | None, geometry: WindowGeometry, weights: str = "sum"
) -> jax.Array:
    """Sums of the elements times `pattern` (of the window's shape; None: ones), in raster order."""
    look = view(geometry, u.shape)

    def divide_by_cover(line: jax.Array, positions: Sequence[Any]) -> jax.Array:
        return weighting.by_element(line, geometry, look.spatial(positions))

    def body(elements: Iterator[Element], numbers: Sequence[Any], *factors: Any) -> list[jax.Array]:
        windows = look.spatial(numbers)
        y: Any = 0
        for offset, taps, value, inside in elements:
            conditions = [] if inside is None else [inside]
            for factor in factors:
                value = weighting.times(value, factor[offset])
            if weights == "last":
                conditions += [
                    weighting.is_last(geometry, i, tap, window)
                    for i, (tap, window) in enumerate(zip(look.spatial(taps), windows))
                ]
            counts = blocks.all_of(value.shape, conditions)
            if counts is not None:
                value = jnp.where(counts, value, jnp.zeros_like(value))
            y += value
        return [weighting.by_window(y, geometry, weights, windows)]

    factors = [] if pattern is None else [pattern.astype(blocks.wide(u.dtype)).ravel()]
    prepare = divide_by_cover if weights == "cover" else None
    return pool(body, look, u, [], [u.dtype], scalars=factors, prepare=prepare)[0]
