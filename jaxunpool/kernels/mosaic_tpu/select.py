"""select: x -> (y, offsets), the maximum of each window and which of its elements that was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels.mosaic_tpu.pooling import Element, pool
from jaxunpool.kernels.mosaic_tpu.views import view


def select(x: jax.Array, geometry: WindowGeometry) -> tuple[jax.Array, jax.Array]:
    """Maximum of each window and its offset: the first of equals, the last NaN, never padding."""

    def body(elements: Iterator[Element], _: Any) -> tuple[jax.Array, jax.Array]:
        first = next(elements)
        best, offsets = first.value, jnp.zeros(first.value.shape, jnp.int32)
        if first.inside is not None:  # -1: all elements so far are padding
            offsets = jnp.where(first.inside, offsets, jnp.int32(-1))
        for offset, _, value, inside in elements:
            take = (value > best) | (value != value) | (offsets < 0)
            if inside is not None:
                take &= inside
            best, offsets = (
                jnp.where(take, value, best),
                jnp.where(take, jnp.int32(offset), offsets),
            )
        return best, offsets

    y, offsets = pool(body, view(geometry, x.shape), x, [], [x.dtype, geometry.offset_dtype])
    return y, offsets
