"""gather: (u, offsets) -> y, the element of each window that its offset names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels.mosaic_tpu.pooling import Element, pool
from jaxunpool.kernels.mosaic_tpu.views import view


def gather(u: jax.Array, offsets: jax.Array, geometry: WindowGeometry) -> jax.Array:
    """One element per window; zero where the offset names none."""

    def body(elements: Iterator[Element], _: Any, wanted: jax.Array) -> list[jax.Array]:
        y: Any = 0
        for offset, _, value, inside in elements:
            hit = wanted == offset
            if inside is not None:
                hit &= inside
            y = jnp.where(hit, value, y)
        return [y]

    return pool(body, view(geometry, u.shape), u, [offsets], [u.dtype])[0]
