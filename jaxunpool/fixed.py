"""Unpooling that needs no indices: by a fixed pattern, and into one fixed place of each window."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from jaxunpool.core import lowering, primitives
from jaxunpool.core.arguments import Sizes, as_values, unpooling_window
from jaxunpool.core.backends import Implementation
from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.geometry import DataFormat, Padding, as_sequence, per_axis
from jaxunpool.core.messages import public, shown
from jaxunpool.kernels import varying

# From the narrowest to the widest.
KINDS = {
    jnp.bool_: "booleans",
    jnp.integer: "integers",
    jnp.floating: "real numbers",
    jnp.complexfloating: "numbers",
}


@public
def fixed_unpool(
    y: jax.typing.ArrayLike,
    pattern: jax.typing.ArrayLike,
    strides: Sizes | None = None,
    padding: Padding = "VALID",
    *,
    output_shape: Sizes | None = None,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    data_format: DataFormat = "channels_last",
    implementation: Implementation = None,
) -> jax.Array:
    """A copy of `pattern` for each value, multiplied by the value.

    If strides are the shape of the pattern, this is the Kronecker product of each plane with the
    pattern, and tensorpack's `FixedUnPooling`. If windows overlap, their products are added in
    raster order. The pattern has a gradient too, so it can be trained.

    Args:
        y: numbers or booleans, the pooled array or one of its shape.
        pattern: an array with one axis per spatial axis of `y`, the window. It is cast to y's type,
            and the same for all channels. It holds integers if `y` does, no complex numbers unless
            `y` does, and booleans if `y` does: their products are added by a logical or.
        strides, padding, dilation, ceil_mode, data_format, implementation: as in `max_pool`.
        output_shape: spatial sizes of the result, as in `avg_unpool`.

    Returns:
        An array of y's type.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it. Raised at trace time.
        NotImplementedError: as in `max_pool`.

    Example:
        >>> y = jnp.array([[1, 2], [3, 4]])[..., None]
        >>> fixed_unpool(y, jnp.array([[1, 0], [0, -1]]))[..., 0]
        Array([[ 1,  0,  2,  0],
               [ 0, -1,  0, -2],
               [ 3,  0,  4,  0],
               [ 0, -3,  0, -4]], dtype=int32)
    """
    y, pattern = as_values("y", y), as_values("pattern", pattern)
    _check_kind(y.dtype, pattern.dtype)
    if not 1 <= pattern.ndim <= 3 or 0 in pattern.shape:
        raise ValueError(
            f"pattern: expected 1 to 3 axes, one per spatial axis, none of size 0, got shape"
            f" {pattern.shape}"
        )
    if y.ndim <= pattern.ndim:
        raise ValueError(
            f"pattern: shape {pattern.shape} has {pattern.ndim} axes, more than the spatial ones of"
            f" y of shape {y.shape}"
        )
    geometry = unpooling_window(
        y,
        pattern.shape,
        strides,
        padding,
        output_shape,
        dilation,
        ceil_mode,
        data_format,
        implementation,
    )
    return primitives.replicate(y, geometry, implementation, pattern=pattern)


@public
def bed_of_nails_unpool(
    y: jax.typing.ArrayLike,
    window_shape: Sizes,
    strides: Sizes | None = None,
    padding: Padding = "VALID",
    *,
    position: Sizes = 0,
    output_shape: Sizes | None = None,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    data_format: DataFormat = "channels_last",
    implementation: Implementation = None,
) -> jax.Array:
    """Each value at the same position of its window, zeros elsewhere.

    With position 0 this is the zero-filled unpooling of FCN-like decoders ("bed of nails"), and
    tensorpack's 2x2 unpooling. A value is dropped if its position is in the padding. This is
    `lax.pad`, with its derivatives (slices), on every platform; where Explicit axes split rows or
    columns, it is a `max_unpool` to that position.

    Args:
        y: numbers or booleans, the pooled array or one of its shape.
        window_shape, strides, padding, dilation, ceil_mode, data_format, implementation: as in
            `max_pool`, for the pooling to undo.
        position: the position in the window, one int per spatial axis, or one int for all axes.
        output_shape: spatial sizes of the result, as in `avg_unpool`.

    Returns:
        An array of y's type.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it. Raised at trace time.
        NotImplementedError: as in `max_pool`.

    Example:
        >>> y = jnp.array([[1, 2], [3, 4]])[..., None]
        >>> bed_of_nails_unpool(y, (2, 2), position=(0, 1))[..., 0]
        Array([[0, 1, 0, 2],
               [0, 0, 0, 0],
               [0, 3, 0, 4],
               [0, 0, 0, 0]], dtype=int32)
    """
    y = as_values("y", y)
    geometry = unpooling_window(
        y,
        window_shape,
        strides,
        padding,
        output_shape,
        dilation,
        ceil_mode,
        data_format,
        implementation,
    )
    taps = per_axis("position", as_sequence(position), geometry.ndim, minimum=0)
    if any(tap >= k for tap, k in zip(taps, geometry.window_shape)):
        raise ValueError(
            f"position={shown(position)}: expected less than window_shape={geometry.window_shape}"
        )
    if lowering.is_split(y, geometry.axes):  # into shards that `lax.pad` does not take
        offset = np.ravel_multi_index(taps, geometry.window_shape)
        offsets = varying.full_like(y, int(offset), geometry.offset_dtype)
        return primitives.scatter(y, offsets, geometry, "last", implementation)
    pads = [(0, 0, 0)] * y.ndim
    for number, axis, tap in zip(geometry.axes, geometry.spatial, taps):
        first, last = (axis.position(window, tap) for window in (0, axis.outputs - 1))
        pads[number] = (first, axis.size - last - 1, axis.stride - 1)
    return _pad(y, tuple(pads))


def _check_kind(values: Any, factors: Any) -> None:
    """A TypeError for a pattern that the cast to y's type would change."""
    ranks = [
        next(rank for rank, kind in enumerate(KINDS) if jnp.issubdtype(dtype, kind))
        for dtype in (factors, values)
    ]
    if ranks[0] > ranks[1]:
        expected = list(KINDS.values())[ranks[1]]
        raise TypeError(f"pattern: expected {expected}, as y holds {values}, got {factors}")


@functools.partial(jax.jit, static_argnums=1)
def _pad(y: jax.Array, pads: tuple[tuple[int, int, int], ...]) -> jax.Array:
    # XLA's partitioner aborts the process for negative low padding: the result is cropped.
    crops = [max(-low, 0) for low, _, _ in pads]
    wider = [(low + crop, high, inner) for (low, high, inner), crop in zip(pads, crops)]
    u = lax.pad(y, jnp.zeros((), y.dtype), wider)
    return lax.slice(u, crops, u.shape) if any(crops) else u
