"""Where the elements of a range of windows lie in the input, and slices that fetch them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxunpool.core.geometry import Range, WindowGeometry
from jaxunpool.kernels.xla import regions


def reach(geometry: WindowGeometry, over: Sequence[int], region: Sequence[Range]) -> list[Range]:
    """The positions of a region of windows, padding included, along spatial axes `over`."""
    return [geometry.spatial[i].reach(windows) for i, windows in zip(over, region)]


def element(
    array: jax.Array,
    geometry: WindowGeometry,
    over: Sequence[int],
    taps: Sequence[Any],
    region: Sequence[Range],
) -> jax.Array:
    """Element `taps` of every window of a region, from the part of the input the region reaches."""
    for i, tap, (start, stop) in zip(over, taps, region):
        axis = geometry.spatial[i]
        array = strided(array, geometry.axes[i], tap * axis.dilation, stop - start, axis.stride)
    return array


def inside(
    like: jax.Array, geometry: WindowGeometry, over: Sequence[int], region: Sequence[Range]
) -> jax.Array | None:
    """Which elements that the windows of a region reach are no padding; None if all are.

    An array like the part of the input the region reaches, for `element`, with 1 along other axes.
    """
    ranges = reach(geometry, over, region)
    if all(geometry.spatial[i].holds(positions) for i, positions in zip(over, ranges)):
        return None
    shape, axes = [1] * like.ndim, [geometry.axes[i] for i in over]
    for i, axis in zip(over, axes):
        shape[axis] = geometry.input_shape[i]
    return regions.padded_slice(jnp.ones(shape, bool), axes, ranges, False)


def strided(array: jax.Array, axis: int, start: Any, count: int, stride: int) -> jax.Array:
    """`count` elements along an axis from `start`, which may be traced."""
    axis, extent = axis % array.ndim, (count - 1) * stride + 1
    if isinstance(start, int):
        return lax.slice_in_dim(array, start, start + extent, stride, axis)
    array = lax.dynamic_slice_in_dim(array, start, extent, axis)
    return lax.slice_in_dim(array, 0, extent, stride, axis)
