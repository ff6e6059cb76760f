"""scatter: (y, offsets) -> u, each window's value at the element its offset names, else zero."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunpool.geometry import WindowGeometry
from jaxunpool.kernels.common import accumulator
from jaxunpool.kernels.xla import blocks

NO_ELEMENT = -(2**28)  # negative also when summed over three axes with what is an element


def scatter(
    y: jax.Array,
    offsets: jax.Array,
    geometry: WindowGeometry,
    duplicates: str = "sum",
    *,
    borders_apart: bool = True,
) -> jax.Array:
    """Where windows meet, `"sum"` adds them in raster order and `"last"` keeps the last of them."""
    if np.iinfo(offsets.dtype).max < geometry.volume:  # room for an offset that names nothing
        offsets = offsets.astype(geometry.offset_dtype)
    weights = [math.prod(geometry.window_shape[i + 1 :]) for i in range(geometry.ndim)]

    def contribute(
        u: jax.Array, reached: list[blocks.Reached], value: jax.Array, name: jax.Array
    ) -> jax.Array:
        element: Any = 0  # the offset that names this element
        for axis, weight in zip(reached, weights):
            tap = axis.tap * weight
            element += tap if axis.inside is True else jnp.where(axis.inside, tap, NO_ELEMENT)
        hit = name.astype(jnp.int32) == element
        return jnp.where(hit, u + value if duplicates == "sum" else value, u)

    sources = [(y.astype(accumulator(y.dtype)), 0), (offsets, geometry.volume)]
    return blocks.assemble(sources, geometry, contribute, y.dtype, borders_apart=borders_apart)
