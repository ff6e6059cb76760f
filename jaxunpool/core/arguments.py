"""Checks every operator makes of its arguments before any arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxunpool.core.backends import Implementation, check_implementation
from jaxunpool.core.geometry import (
    DATA_FORMATS,
    DataFormat,
    Plane,
    WindowGeometry,
    as_array,
    as_int,
    check_choice,
    spatial_sizes,
)

Sizes = int | Sequence[int]


def as_poolable(name: str, x: Any) -> jax.Array:
    """`x` as an array of integers or of floats of 16, 32 or 64 bits, or a TypeError."""
    x = as_array(name, x)
    if not (is_float(x) or jnp.issubdtype(x.dtype, jnp.integer)):
        raise TypeError(f"{name}: expected integers or floats of 16 bits or more, got {x.dtype}")
    return x


def as_floats(name: str, x: Any) -> jax.Array:
    """`x` as an array of floats of 16, 32 or 64 bits, or a TypeError."""
    x = as_array(name, x)
    if not is_float(x):
        raise TypeError(f"{name}: expected floats of 16 bits or more, got {x.dtype}")
    return x


def is_float(x: jax.Array) -> bool:
    """Whether these are floats of 16 bits or more."""
    return jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize > 1


def pooling_window(
    x: jax.Array,
    window_shape: Any,
    strides: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: Any,
    data_format: Any,
    implementation: Implementation,
    name: str = "x",
) -> WindowGeometry:
    """The arguments that all poolings share, checked and resolved."""
    check_implementation(implementation)
    return WindowGeometry.for_input(
        x.shape,
        window_shape,
        strides,
        padding,
        dilation=dilation,
        ceil_mode=ceil_mode,
        data_format=data_format,
        name=name,
    )


def unpooling_window(
    y: jax.Array,
    window_shape: Any,
    strides: Any,
    padding: Any,
    output_shape: Any,
    dilation: Any,
    ceil_mode: Any,
    data_format: Any,
    implementation: Implementation,
) -> WindowGeometry:
    """The arguments that all unpoolings without indices share, checked and resolved."""
    check_implementation(implementation)
    return WindowGeometry.for_output(
        y.shape,
        window_shape,
        strides,
        padding,
        output_shape=output_shape,
        dilation=dilation,
        ceil_mode=ceil_mode,
        data_format=data_format,
    )


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
