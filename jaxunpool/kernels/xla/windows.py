"""The elements of windows as strided slices of a padded array, and loops over them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.geometry import WindowGeometry


def padded(
    array: jax.Array, geometry: WindowGeometry, value: Any, over: Sequence[int] | None = None
) -> jax.Array:
    """An unpooled array with `value` where windows reach beyond it, along spatial axes `over`."""
    pads = [(0, 0)] * array.ndim
    for i in range(geometry.ndim) if over is None else over:
        axis = geometry.spatial[i]
        pads[geometry.axes[i]] = (axis.low, axis.overhang)
    return pad(array, pads, value)


def pad(array: jax.Array, pads: Sequence[tuple[int, int]], value: Any) -> jax.Array:
    """So many of `value` more at the ends of every axis."""
    if not any(map(any, pads)):
        return array
    return lax.pad(array, jnp.array(value, array.dtype), [(*ends, 0) for ends in pads])


def element(
    array: jax.Array,
    geometry: WindowGeometry,
    taps: Sequence[Any],
    over: Sequence[int] | None = None,
) -> jax.Array:
    """Element `taps` of every window, from the padded array."""
    for i, tap in zip(range(geometry.ndim) if over is None else over, taps):
        axis = geometry.spatial[i]
        start = tap * axis.dilation
        array = strided(array, geometry.axes[i], start, axis.outputs, axis.stride)
    return array


def strided(array: jax.Array, axis: int, start: Any, count: int, stride: int = 1) -> jax.Array:
    """`count` elements along an axis from `start`, which may be traced."""
    axis, extent = axis % array.ndim, (count - 1) * stride + 1
    if isinstance(start, int):
        return lax.slice_in_dim(array, start, start + extent, stride, axis)
    array = lax.dynamic_slice_in_dim(array, start, extent, axis)
    return lax.slice_in_dim(array, 0, extent, stride, axis)


def numbers(geometry: WindowGeometry, ndim: int) -> list[jax.Array]:
    """The numbers of the windows along each spatial axis."""
    return [iota(n, axis, ndim) for n, axis in zip(geometry.output_shape, geometry.axes)]


def positions(geometry: WindowGeometry, ndim: int) -> list[jax.Array]:
    """The positions of the elements along each spatial axis."""
    return [iota(n, axis, ndim) for n, axis in zip(geometry.input_shape, geometry.axes)]


def iota(size: int, axis: int, ndim: int) -> jax.Array:
    """0, 1, ... along one axis of `ndim`; int32, of size 1 along the others."""
    shape = [1] * ndim
    shape[axis] = size
    return lax.broadcasted_iota(jnp.int32, shape, axis % ndim)


def taps(number: Any, shape: Sequence[int]) -> list[Any]:
    """The number of an element of a grid along each axis, from its number in raster order."""
    found: list[Any] = []
    for size in reversed(shape):
        number, tap = divmod(number, size)
        found.insert(0, tap)
    return found


def raster(taps: Sequence[Any], shape: Sequence[int]) -> Any:
    """The number of an element of a grid in raster order, from that along each axis."""
    return functools.reduce(lambda number, pair: number * pair[0] + pair[1], zip(shape, taps), 0)


def fold(
    update: Callable[[Any, Any], Any], state: Any, numbers: range, unrolled: int, chunk: int
) -> Any:
    """`state = update(state, number)` for every number.

    If there are more than `unrolled`, a loop over `chunk` of them keeps the program small.
    """
    start, stop = numbers.start, numbers.stop
    loops = 0 if len(numbers) <= unrolled else len(numbers) // chunk

    def several(i: Any, state: Any) -> Any:
        for k in range(chunk):
            state = update(state, start + i * chunk + k)
        return state

    state = lax.fori_loop(0, loops, several, state) if loops else state
    for number in range(start + loops * chunk, stop):
        state = update(state, number)
    return state
