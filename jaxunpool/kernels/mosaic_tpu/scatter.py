"""scatter: (y, offsets) -> u, each window's value at the element its offset names, else zero."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels import common
from jaxunpool.kernels.mosaic_tpu.unpooling import Window, unpool
from jaxunpool.kernels.mosaic_tpu.views import view


def scatter(
    y: jax.Array, offsets: jax.Array, geometry: WindowGeometry, duplicates: str = "sum"
) -> jax.Array:
    """Where windows meet, `"sum"` adds them in raster order and `"last"` keeps the last of them."""

    def body(u: jax.Array, windows: Iterator[Window]) -> jax.Array:
        for window in windows:
            value, name = window.values
            hit = name == window.offset
            if window.exists is not None:
                hit &= window.exists
            u = jnp.where(hit, u + value if duplicates == "sum" else value, u)
        return common.unsigned_zero(u) if duplicates == "sum" else u

    return unpool(body, view(geometry, geometry.unpooled_shape(y.shape)), [y, offsets])
