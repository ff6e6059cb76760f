"""Max pooling, with and without indices, and max unpooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxunpool import primitives
from jaxunpool.dispatch import Implementation, check_implementation
from jaxunpool.geometry import (
    DATA_FORMATS,
    DataFormat,
    Padding,
    Plane,
    WindowGeometry,
    as_array,
    as_sequence,
    check_choice,
    per_axis,
)
from jaxunpool.indices import PoolIndices, as_indices, check_pool_indices, plane_sizes

Sizes = int | Sequence[int]


def max_pool(
    x: jax.typing.ArrayLike,
    window_shape: Sizes,
    strides: Sizes | None = None,
    padding: Padding = "VALID",
    *,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    data_format: DataFormat = "channels_last",
    implementation: Implementation = None,
) -> jax.Array:
    """Maximum of each window.

    Equal to `torch.nn.functional.max_pool1d/2d/3d` and, without dilation, to `flax.linen.max_pool`,
    with a gradient that keeps one byte per window instead of `x`. The first of equal elements wins,
    a window that holds NaN yields NaN, and padding is never selected.

    Args:
        x: floats or integers of shape `(*batch, *spatial, channels)`, 1 to 3 spatial axes, any
            number of batch axes; `(*batch, channels, *spatial)` under `"channels_first"`.
        window_shape: sizes of the window; an int means the same for all `x.ndim - 2` spatial axes.
        strides: distance between windows; the window by default.
        padding: `"VALID"`, `"SAME"` (TensorFlow's rule), or a `(low, high)` pair or int per axis.
        dilation: distance between the elements of a window.
        ceil_mode: let the last window hang over the end, as in PyTorch.
        data_format: `"channels_last"` or `"channels_first"`.
        implementation: None chooses; `"xla"` is plain JAX without custom derivatives, so that
            forward mode works.

    Returns:
        An array of x's type, one element per window.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it. At trace time.
        NotImplementedError: there is no such kernel for this implementation.

    Example:
        >>> max_pool(jnp.arange(16.0).reshape(4, 4, 1), (2, 2))[..., 0]
        Array([[ 5.,  7.],
               [13., 15.]], dtype=float32)
    """
    x, geometry = _prepare(
        x, window_shape, strides, padding, dilation, ceil_mode, data_format, implementation
    )
    return primitives.select(x, geometry, implementation)[0]


def max_pool_with_indices(
    x: jax.typing.ArrayLike,
    window_shape: Sizes,
    strides: Sizes | None = None,
    padding: Padding = "VALID",
    *,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    data_format: DataFormat = "channels_last",
    implementation: Implementation = None,
) -> tuple[jax.Array, PoolIndices]:
    """Maximum of each window and where it was.

    Equal to `torch.nn.functional.max_pool2d(..., return_indices=True)` (and 1d, 3d); `indices.flat`
    is PyTorch's index. Ties, NaN and padding as in `max_pool`; of several NaN the last is selected.

    Args:
        x, window_shape, strides, padding, dilation, ceil_mode, data_format, implementation:
            as in `max_pool`.

    Returns:
        The pooled array, and `PoolIndices` of the same shape: one byte per window.

    Raises:
        ValueError, TypeError, NotImplementedError: as in `max_pool`.

    Example:
        >>> y, indices = max_pool_with_indices(jnp.arange(16.0).reshape(4, 4, 1), (2, 2))
        >>> indices.offsets[..., 0]
        Array([[3, 3],
               [3, 3]], dtype=uint8)
    """
    x, geometry = _prepare(
        x, window_shape, strides, padding, dilation, ceil_mode, data_format, implementation
    )
    y, offsets = primitives.select(x, geometry, implementation)
    return y, PoolIndices(offsets, geometry)


def max_unpool(
    y: jax.typing.ArrayLike,
    indices: PoolIndices | jax.typing.ArrayLike,
    *,
    output_shape: Sizes | None = None,
    duplicates: str = "last",
    data_format: DataFormat | None = None,
    implementation: Implementation = None,
) -> jax.Array:
    """Zeros with each element of `y` written where its index says.

    With `PoolIndices` the result has exactly the size of the pooled input. With raw integers it
    equals `torch.nn.functional.max_unpool2d(..., output_size=output_shape)` (and 1d, 3d), gradients
    excepted: where indices repeat, PyTorch's gradient also reaches overwritten elements.

    Args:
        y: floats or integers, the pooled array or one of its shape.
        indices: `PoolIndices`, or integers of y's shape: flat positions in the output plane, which
            is PyTorch's rule. Integers outside the plane are dropped; see `validate_indices`.
        output_shape: spatial sizes of the result, for raw integers; an int means the same for all
            `y.ndim - 2` spatial axes.
        duplicates: what happens where indices repeat. `"last"`: the last in raster order is kept,
            and alone has a gradient. `"sum"`: all are added, which is the transpose of reading at
            the indices and TensorFlow's `scatter_nd`. For raw indices XLA chooses the order of
            these additions; on GPU it can differ from run to run.
        data_format: for raw integers; `"channels_last"` by default. `PoolIndices` know theirs.
        implementation: as in `max_pool`.

    Returns:
        An array of y's type.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it. At trace time.
        NotImplementedError: as in `max_pool`.

    Example:
        >>> y, indices = max_pool_with_indices(jnp.array([[1, 2], [3, 4]])[..., None], (2, 2))
        >>> max_unpool(y, indices)[..., 0]
        Array([[0, 0],
               [0, 4]], dtype=int32)
    """
    y = as_poolable("y", y)
    check_choice("duplicates", duplicates, ("last", "sum"))
    check_implementation(implementation)
    if data_format is not None:
        check_choice("data_format", data_format, DATA_FORMATS)
    plane: Plane
    if isinstance(indices, PoolIndices):
        check_pool_indices(indices)
        values, plane = indices.offsets, indices.geometry
        _check_owner(indices, output_shape, data_format)
    else:
        values = as_indices("indices", indices)
        sizes = plane_sizes("y", y.shape, output_shape)
        plane = Plane(input_shape=sizes, data_format=data_format or "channels_last")
    if values.shape != y.shape:
        raise ValueError(
            f"indices: expected the shape of y, {y.shape}, got {values.shape}"
            + (f", made by {indices!r}" if isinstance(indices, PoolIndices) else "")
        )
    return primitives.scatter(y, values, plane, duplicates, implementation)


def as_poolable(name: str, x: Any) -> jax.Array:
    """`x` as an array of integers or of floats of 16, 32 or 64 bits, or a TypeError."""
    x = as_array(name, x)
    is_float = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize > 1
    if not (is_float or jnp.issubdtype(x.dtype, jnp.integer)):
        raise TypeError(f"{name}: expected integers or floats of 16 bits or more, got {x.dtype}")
    return x


def _prepare(
    x: Any,
    window_shape: Sizes,
    strides: Sizes | None,
    padding: Padding,
    dilation: Sizes,
    ceil_mode: bool,
    data_format: DataFormat,
    implementation: Implementation,
) -> tuple[jax.Array, WindowGeometry]:
    """The checked input and the geometry that every pooling starts from."""
    x = as_poolable("x", x)
    check_implementation(implementation)
    return x, WindowGeometry.for_input(
        x.shape,
        window_shape,
        strides,
        padding,
        dilation=dilation,
        ceil_mode=ceil_mode,
        data_format=data_format,
    )


def _check_owner(indices: PoolIndices, output_shape: Any, data_format: str | None) -> None:
    """PoolIndices carry their geometry: what is said besides may only repeat it."""
    geometry = indices.geometry
    if data_format not in (None, geometry.data_format):
        raise ValueError(
            f"data_format={data_format!r}: the PoolIndices were made with {geometry.data_format!r}"
        )
    if output_shape is not None:
        sizes = per_axis("output_shape", as_sequence(output_shape), geometry.ndim, minimum=1)
        if sizes != geometry.input_shape:
            raise ValueError(
                f"output_shape={output_shape!r}: the PoolIndices were made for an input of spatial"
                f" size {geometry.input_shape}"
            )
