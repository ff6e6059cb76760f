"""Checks every operator makes of its arguments before any arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxunpool.geometry import (
    DATA_FORMATS,
    DataFormat,
    Plane,
    as_array,
    as_int,
    check_choice,
    spatial_sizes,
)

Sizes = int | Sequence[int]


def as_poolable(name: str, x: Any) -> jax.Array:
    """`x` as an array of integers or of floats of 16, 32 or 64 bits, or a TypeError."""
    x = as_array(name, x)
    if not (_is_float(x) or jnp.issubdtype(x.dtype, jnp.integer)):
        raise TypeError(f"{name}: expected integers or floats of 16 bits or more, got {x.dtype}")
    return x


def as_floats(name: str, x: Any) -> jax.Array:
    """`x` as an array of floats of 16, 32 or 64 bits, or a TypeError."""
    x = as_array(name, x)
    if not _is_float(x):
        raise TypeError(f"{name}: expected floats of 16 bits or more, got {x.dtype}")
    return x


def _is_float(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize > 1


def whole_plane(x: jax.Array, spatial_ndim: Any, data_format: DataFormat) -> Plane:
    """The spatial grid of `x`, of `spatial_ndim` axes (None: `x.ndim - 2`)."""
    check_choice("data_format", data_format, DATA_FORMATS)
    n = x.ndim - 2 if spatial_ndim is None else as_int("spatial_ndim", spatial_ndim)
    if not 1 <= n <= 3 or x.ndim < n + 1:
        raise ValueError(
            f"spatial_ndim={spatial_ndim!r} does not fit x of shape {x.shape}: expected 1 to 3"
            " spatial axes and a channel axis (None means x.ndim - 2 spatial axes)"
        )
    sizes = spatial_sizes("x", x.shape, n, data_format)
    return Plane(input_shape=sizes, data_format=data_format)
