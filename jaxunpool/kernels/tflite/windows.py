"""What has windows: of all that they cover, one element of every window at a time."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax

from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels import common, xla
from jaxunpool.kernels.common import accumulator, unsigned_zero
from jaxunpool.kernels.tflite.axes import apart, merged
from jaxunpool.kernels.xla import windows


@merged
def select(x: jax.Array, geometry: WindowGeometry) -> tuple[jax.Array, jax.Array]:
    """As `xla.select`, but padding is looked up: TFLite pads with no infinity."""
    if all(axis.is_full(padded=False) for axis in geometry.spatial):
        return xla.select(x, geometry)
    values = windows.padded(x, geometry, 0)
    numbers = windows.numbers(geometry, x.ndim)
    first = [axis.first(number) for axis, number in zip(geometry.spatial, numbers)]
    # Not from zeros: quantized, what is selected has the range of what it is selected from.
    y = windows.element(values, geometry, [0] * geometry.ndim)
    offsets = jnp.zeros(y.shape, jnp.int32)
    for number, taps in _elements(geometry)[1:]:
        value = windows.element(values, geometry, taps)
        take = value > y
        if jnp.issubdtype(x.dtype, jnp.floating):
            take |= value != value
        places = list(zip(geometry.spatial, numbers, taps))
        inside = [axis.has(window, tap) for axis, window, tap in places]
        is_first = functools.reduce(operator.and_, map(operator.eq, first, taps))
        take = functools.reduce(operator.and_, inside, take) | is_first
        y, offsets = jnp.where(take, value, y), jnp.where(take, number, offsets)
    return y, offsets.astype(geometry.offset_dtype)


reduce = merged(xla.reduce)


@merged
def gather(u: jax.Array, offsets: jax.Array, geometry: WindowGeometry) -> jax.Array:
    """As `xla.gather`, with windows of any size compared element by element."""
    values, names = windows.padded(u, geometry, 0), offsets.astype(jnp.int32)
    y = jnp.zeros((), u.dtype)
    for number, taps in _elements(geometry):
        y = jnp.where(names == number, windows.element(values, geometry, taps), y)
    return y


@merged
def scatter(
    y: jax.Array, offsets: jax.Array, geometry: WindowGeometry, duplicates: str = "sum"
) -> jax.Array:
    """As `xla.scatter`."""
    if _in_cells(geometry):
        return xla.scatter(y, offsets, geometry, duplicates)
    values, names = y.astype(accumulator(y.dtype)), offsets.astype(jnp.int32)
    u = jnp.zeros((), values.dtype)
    for number, taps in _elements(geometry, backwards=True):
        hit = names == number
        moved = _placed(jnp.where(hit, values, 0), geometry, taps)
        if duplicates == "sum":
            u = u + moved
        else:
            u = jnp.where(_placed(hit.astype(jnp.int32), geometry, taps) > 0, moved, u)
    return unsigned_zero(u) if duplicates == "sum" else u


@merged
def replicate(
    y: jax.Array, pattern: jax.Array | None, geometry: WindowGeometry, weighting: str = "sum"
) -> jax.Array:
    """As `xla.replicate`."""
    if pattern is None and _in_cells(geometry):
        return xla.replicate(y, None, geometry, weighting)
    numbers = windows.numbers(geometry, y.ndim)
    value = common.by_window(y.astype(accumulator(y.dtype)), geometry, weighting, numbers)
    u = jnp.zeros((), value.dtype)
    for _, taps in _elements(geometry, backwards=True):
        copied = value
        if pattern is not None:
            copied = common.times(copied, pattern[tuple(taps)].astype(value.dtype))
        if weighting == "last":
            places = zip(geometry.spatial, numbers, taps)
            is_last = [axis.is_last(number, tap) for axis, number, tap in places]
            copied = jnp.where(functools.reduce(operator.and_, is_last), copied, 0)
        u = u + _placed(copied, geometry, taps)
    u = unsigned_zero(u)
    if weighting == "cover":
        u = common.by_element(u, geometry, windows.positions(geometry, u.ndim))
    return u


def _in_cells(geometry: WindowGeometry) -> bool:
    """Whether cells, which split every spatial axis in two, have few enough axes for TFLite.

    They are faster where they have; `benchmarks/NOTES.md` has numbers.
    """
    return geometry.ndim <= 2 and not geometry.overlaps and max(geometry.dilation) == 1


def _elements(geometry: WindowGeometry, backwards: bool = False) -> list[tuple[int, list[Any]]]:
    """The elements of a window by number; backwards, what windows write comes in their order."""
    numbers = range(math.prod(geometry.window_shape))
    order = reversed(numbers) if backwards else numbers
    return [(number, windows.taps(number, geometry.window_shape)) for number in order]


def _placed(y: jax.Array, geometry: WindowGeometry, taps: Sequence[int]) -> jax.Array:
    """The value of every window at one of its elements, and zero elsewhere."""
    pads = [(0, 0, 0)] * y.ndim
    for i, axis in enumerate(geometry.spatial):
        number = geometry.axes[i] % y.ndim
        y = apart(y, number, axis.stride)
        start = taps[i] * axis.dilation - axis.low
        stop = min(axis.size - start, axis.outputs * axis.stride)
        if stop <= max(-start, 0):  # of all windows this element is padding
            return jnp.zeros(geometry.unpooled_shape(y.shape), y.dtype)
        y = lax.slice_in_dim(y, max(-start, 0), stop, axis=number)
        pads[number] = (max(start, 0), axis.size - start - stop, 0)
    return lax.pad(y, jnp.zeros((), y.dtype), pads)
