"""ONNX's `ScatterElements` as a primitive of JAX, and unpooling at flat positions made of it."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.extend.core import Primitive

from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.geometry import Plane, in_range_or
from jaxunpool.kernels.common import accumulator, unsigned_zero

SCATTER_ELEMENTS = Primitive("jaxunpool_onnx_scatter_elements")


@SCATTER_ELEMENTS.def_abstract_eval
def _(data: Any, indices: Any, updates: Any, *, axis: int, reduction: str) -> Any:
    return data


def scatter(y: jax.Array, flat: jax.Array, *, plane: Plane, how: str) -> jax.Array:
    """As `kernels.xla.scatter_flat`: positions out of range go to an element more, which is cut."""
    first, sizes = y.ndim + plane.axes[0], plane.input_shape
    size = math.prod(sizes)
    merged = (*y.shape[:first], -1, *y.shape[first + plane.ndim :])
    values, flat = y.reshape(merged), in_range_or(flat.reshape(merged), size, size)
    shape = (*values.shape[:first], size + 1, *values.shape[first + 1 :])

    def scattered(fill: int, updates: jax.Array, reduction: str) -> jax.Array:
        data = jnp.full(shape, fill, updates.dtype)
        u = SCATTER_ELEMENTS.bind(data, flat, updates, axis=first, reduction=reduction)
        return lax.slice_in_dim(u, 0, size, axis=first)

    if how == "sum":
        u = unsigned_zero(scattered(0, values.astype(accumulator(y.dtype)), "add"))
    else:
        numbers = lax.broadcasted_iota(jnp.int32, values.shape, first)
        writers = scattered(-1, numbers, "max")
        read = jnp.take_along_axis(values, jnp.maximum(writers, 0), axis=first)
        u = jnp.where(writers >= 0, read, jnp.zeros((), read.dtype))
    return u.astype(y.dtype).reshape(plane.unpooled_shape(y.shape))
