"""Where the elements of a range of windows lie in the input, and slices that fetch them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxunpool.geometry import WindowGeometry
from jaxunpool.kernels.xla import regions
from jaxunpool.kernels.xla.regions import Range


def interior(geometry: WindowGeometry, i: int) -> Range:
    """The windows that lie inside the input along spatial axis `i`."""
    stride, low = geometry.strides[i], geometry.padding[i][0]
    last_start = geometry.input_shape[i] - geometry.spans[i] + low
    return -(-low // stride), min(last_start // stride + 1, geometry.output_shape[i])


def reach(geometry: WindowGeometry, i: int, windows: Range) -> Range:
    """Input positions a range of windows covers along spatial axis `i`, padding included."""
    stride, low = geometry.strides[i], geometry.padding[i][0]
    return windows[0] * stride - low, (windows[1] - 1) * stride - low + geometry.spans[i]


def element(
    array: jax.Array,
    geometry: WindowGeometry,
    over: Sequence[int],
    taps: Sequence[Any],
    region: Sequence[Range],
) -> jax.Array:
    """Element `taps` of every window of a region, from the part of the input the region reaches."""
    for i, tap, (start, stop) in zip(over, taps, region):
        begin, stride = tap * geometry.dilation[i], geometry.strides[i]
        array = strided(array, geometry.axes[i], begin, stop - start, stride)
    return array


def inside(
    like: jax.Array, geometry: WindowGeometry, over: Sequence[int], region: Sequence[Range]
) -> jax.Array | None:
    """Which elements that the windows of a region reach are no padding; None if all are.

    An array like the part of the input the region reaches, for `element`, with 1 along other axes.
    """
    ranges = [reach(geometry, i, part) for i, part in zip(over, region)]
    sizes = [geometry.input_shape[i] for i in over]
    if all(start >= 0 and stop <= n for (start, stop), n in zip(ranges, sizes)):
        return None
    shape, axes = [1] * like.ndim, [geometry.axes[i] for i in over]
    for axis, size in zip(axes, sizes):
        shape[axis] = size
    return regions.slab(jnp.ones(shape, bool), axes, ranges, False)


def strided(array: jax.Array, axis: int, start: Any, count: int, stride: int) -> jax.Array:
    """`count` elements along an axis from `start`, which may be traced."""
    axis, extent = axis % array.ndim, (count - 1) * stride + 1
    if isinstance(start, int):
        return lax.slice_in_dim(array, start, start + extent, stride, axis)
    array = lax.dynamic_slice_in_dim(array, start, extent, axis)
    return lax.slice_in_dim(array, 0, extent, stride, axis)
