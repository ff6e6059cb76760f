"""scatter: (y, offsets) -> u, each window's value at the element its offset names, else zero."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels.common import accumulator
from jaxunpool.kernels.xla import cells

# Marks taps outside the window. The sum over three axes is negative if one of them is marked.
NO_ELEMENT = -(2**28)


def scatter(
    y: jax.Array,
    offsets: jax.Array,
    geometry: WindowGeometry,
    duplicates: str = "sum",
    *,
    borders_apart: bool = True,
) -> jax.Array:
    """Where windows meet, `"sum"` adds them in raster order and `"last"` keeps the last of them."""
    # The fill value, `volume`, has to fit: it stands for windows that do not exist.
    if np.iinfo(offsets.dtype).max < geometry.volume:
        offsets = offsets.astype(geometry.offset_dtype)
    rasters = [math.prod(geometry.window_shape[i + 1 :]) for i in range(geometry.ndim)]

    def contribute(
        u: jax.Array, reached: list[cells.Reached], value: jax.Array, name: jax.Array
    ) -> jax.Array:
        element: Any = 0  # the offset that names this element
        for axis, raster in zip(reached, rasters):
            tap = axis.tap * raster
            element += tap if axis.inside is True else jnp.where(axis.inside, tap, NO_ELEMENT)
        hit = name.astype(jnp.int32) == element
        return jnp.where(hit, u + value if duplicates == "sum" else value, u)

    sources = [(y.astype(accumulator(y.dtype)), 0), (offsets, geometry.volume)]
    return cells.assemble(sources, geometry, contribute, y.dtype, borders_apart=borders_apart)
