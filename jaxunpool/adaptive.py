"""Pooling to a given size: windows that share the input out as evenly as integers allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from jaxunpool.core import irregular, primitives
from jaxunpool.core.arguments import as_averaged, as_ordered
from jaxunpool.core.backends import Implementation, check_implementation
from jaxunpool.core.geometry import (
    DATA_FORMATS,
    DataFormat,
    Plane,
    WindowGeometry,
    as_sequence,
    check_choice,
    check_known,
    per_axis,
    spatial_ndim,
    spatial_sizes,
)
from jaxunpool.core.messages import public
from jaxunpool.core.resample import Mean, resample, widest_window, windows
from jaxunpool.indices import PoolIndices, check_plane

Parts = int | Sequence[int | None]


@public
def adaptive_max_pool(
    x: jax.typing.ArrayLike,
    output_shape: Parts,
    *,
    data_format: DataFormat = "channels_last",
    implementation: Implementation = None,
) -> jax.Array:
    """Maximum over windows that divide the input into `output_shape` parts.

    Equal to `torch.nn.functional.adaptive_max_pool1d/2d/3d`: window `i` of `o` over an axis of size
    `n` goes from `floor(i * n / o)` to `ceil((i + 1) * n / o)`. Neighbouring windows can
    share an element, and `o` can be larger than `n`. Ties, NaN and subnormal numbers are treated as
    in `max_pool`.

    Args:
        x: floats, integers or booleans, as in `max_pool`.
        output_shape: spatial sizes of the result. None as one of them keeps the size of `x`. An int
            is the size along each of `x.ndim - 2` spatial axes.
        data_format, implementation: as in `max_pool`.

    Returns:
        An array of x's type.

    Raises:
        ValueError, TypeError, NotImplementedError: as in `max_pool`.

    Example:
        >>> adaptive_max_pool(jnp.arange(5).reshape(5, 1), (3,))[..., 0]
        Array([1, 3, 4], dtype=int32)
        >>> adaptive_max_pool(jnp.ones((8, 5, 7, 64)), (None, 1)).shape
        (8, 5, 1, 64)
    """
    return adaptive_max_pool_with_indices(
        x, output_shape, data_format=data_format, implementation=implementation
    )[0]


@public
def adaptive_max_pool_with_indices(
    x: jax.typing.ArrayLike,
    output_shape: Parts,
    *,
    data_format: DataFormat = "channels_last",
    implementation: Implementation = None,
) -> tuple[jax.Array, PoolIndices]:
    """Maximum of each of `output_shape` parts of the input, and its position.

    Equal to `torch.nn.functional.adaptive_max_pool2d(..., return_indices=True)` (and 1d, 3d).

    Args:
        x, output_shape, data_format, implementation: as in `adaptive_max_pool`.

    Returns:
        The pooled array and `PoolIndices` for `max_unpool`: one byte per window if the output sizes
        divide the input sizes, otherwise flat int32 positions.

    Raises:
        ValueError, TypeError, NotImplementedError: as in `max_pool`.

    Example:
        >>> y, indices = adaptive_max_pool_with_indices(jnp.arange(5).reshape(5, 1), (3,))
        >>> jaxunpool.max_unpool(y, indices)[..., 0]
        Array([0, 1, 0, 3, 4], dtype=int32)
    """
    x = as_ordered("x", x)
    plane, outputs = _parts(x, output_shape, data_format, implementation)
    geometry = _even_windows(x, plane, outputs)
    if geometry is not None:
        y, offsets = primitives.select(x, geometry, implementation)
        return y, PoolIndices(offsets, geometry)
    check_plane("x", plane.input_shape)
    starts, stops, widths = [], [], []
    for size, output, axis in zip(plane.input_shape, outputs, plane.axes):
        start, count = windows(size, output)
        starts.append(irregular.aligned(start, axis, x.ndim))
        stops.append(irregular.aligned(start + count, axis, x.ndim))
        widths.append(widest_window(size, output))
    y, flat = irregular.select(x, starts, stops, widths, plane, implementation)
    return y, PoolIndices(flat, plane)


@public
def adaptive_avg_pool(
    x: jax.typing.ArrayLike,
    output_shape: Parts,
    *,
    data_format: DataFormat = "channels_last",
    implementation: Implementation = None,
) -> jax.Array:
    """Mean over windows that divide the input into `output_shape` parts.

    Equal to `torch.nn.functional.adaptive_avg_pool1d/2d/3d` up to the order of additions. The
    windows are those of `adaptive_max_pool`; 16-bit floats are added in float32 and rounded once.

    Args:
        x: numbers or booleans, as in `avg_pool`.
        output_shape, data_format, implementation: as in `adaptive_max_pool`.

    Returns:
        An array of the type that `avg_pool` returns.

    Raises:
        ValueError, TypeError, NotImplementedError: as in `max_pool`.

    Example:
        >>> adaptive_avg_pool(jnp.arange(5.0).reshape(5, 1), (3,))[..., 0]
        Array([0.5, 2. , 3.5], dtype=float32)
    """
    x = as_averaged("x", x)
    plane, outputs = _parts(x, output_shape, data_format, implementation)
    geometry = _even_windows(x, plane, outputs)
    if geometry is not None:
        return primitives.reduce(x, geometry, implementation, "mean")
    maps = [Mean(size, output) for size, output in zip(plane.input_shape, outputs)]
    return resample(x, maps, plane.axes, implementation)


def _parts(
    x: jax.Array, output_shape: Any, data_format: DataFormat, implementation: Implementation
) -> tuple[Plane, tuple[int, ...]]:
    check_choice("data_format", data_format, DATA_FORMATS)
    check_implementation(implementation)
    output_shape = as_sequence(output_shape)
    n = spatial_ndim("x", x.shape, "output_shape", output_shape)
    sizes = spatial_sizes("x", x.shape, n, data_format)
    if isinstance(output_shape, Sequence):
        output_shape = tuple(n if m is None else m for m, n in zip(output_shape, sizes))
    outputs = per_axis("output_shape", output_shape, n, minimum=1)
    return Plane(input_shape=sizes, data_format=data_format), outputs


def _even_windows(x: jax.Array, plane: Plane, outputs: tuple[int, ...]) -> WindowGeometry | None:
    """The windows as those of ordinary pooling, where the sizes divide."""
    if any(size % output != 0 for size, output in zip(plane.input_shape, outputs)):
        check_known("x", plane.input_shape)
        check_known("output_shape", outputs)
        return None
    window = tuple(size // output for size, output in zip(plane.input_shape, outputs))
    check_known("x", window)
    return WindowGeometry.for_input(x.shape, window, data_format=plane.data_format)
