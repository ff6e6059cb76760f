"""reduce: u -> y, the sum over each window. The transpose of replicate."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels import common, varying
from jaxunpool.kernels.common import accumulator
from jaxunpool.kernels.xla import regions, windows

# Up to here every element of a window is a slice in one fused program; beyond, a loop over chunks
# of the window keeps the program small.
UNROLLED_VOLUME, CHUNK = 32, 16


def reduce(
    u: jax.Array,
    pattern: jax.Array | None,
    geometry: WindowGeometry,
    weighting: str = "sum",
    *,
    borders_apart: bool = True,
) -> jax.Array:
    """Sums of the elements times `pattern` (of the window's shape; None: ones), in raster order."""
    dtype = accumulator(u.dtype)
    over = range(geometry.ndim)
    axes, sizes = geometry.axes, geometry.output_shape
    values = u.astype(dtype)
    if weighting == "cover":
        positions = [lax.broadcasted_iota(jnp.int32, u.shape, axis % u.ndim) for axis in axes]
        values = common.by_element(values, geometry, positions)
    factors = None if pattern is None else pattern.astype(dtype)
    unrolled = geometry.volume <= UNROLLED_VOLUME
    inner = [(0, n) for n in sizes]
    if borders_apart and unrolled:
        inner = [axis.interior for axis in geometry.spatial]

    def compute(region: regions.Region) -> tuple[jax.Array]:
        part = regions.padded_slice(values, axes, windows.reach(geometry, over, region), 0)
        inside = None if factors is None else windows.inside(u, geometry, over, region)
        shape = list(part.shape)
        for axis, (start, stop) in zip(axes, region):
            shape[axis] = stop - start
        numbers = [
            lax.broadcasted_iota(jnp.int32, shape, axis % len(shape)) + start
            for axis, (start, _) in zip(axes, region)
        ]

        def add(y: jax.Array, taps: Sequence[Any]) -> jax.Array:
            value = windows.element(part, geometry, over, taps, region)
            if factors is not None:
                factor = lax.dynamic_index_in_dim(
                    factors.ravel(), _raster(taps, geometry), keepdims=False
                )
                value = common.times(value, factor)
            if inside is not None:  # mask: infinity times a zero of the padding is NaN
                value = jnp.where(windows.element(inside, geometry, over, taps, region), value, 0)
            if weighting == "last":
                is_last: Any = functools.reduce(
                    operator.and_,
                    [geometry.spatial[i].is_last(numbers[i], taps[i]) for i in over],
                )
                value = jnp.where(is_last, value, 0)
            return y + value

        zeros = varying.along(jnp.zeros(shape, dtype), varying.axes(part))
        y = _sum_over_window(add, zeros, geometry.window_shape, unrolled)
        return (common.by_window(y, geometry, weighting, numbers).astype(u.dtype),)

    return regions.fill(compute, inner, sizes, axes, fence=borders_apart)[0]


def _raster(taps: Sequence[Any], g: WindowGeometry) -> Any:
    offset: Any = 0
    for tap, k in zip(taps, g.window_shape):
        offset = offset * k + tap
    return offset


def _sum_over_window(add: Any, y: jax.Array, window: tuple[int, ...], unrolled: bool) -> jax.Array:
    """`y = add(y, taps)` for every element of the window, in raster order."""
    if unrolled:
        return functools.reduce(add, itertools.product(*map(range, window)), y)

    def taps_of(number: Any) -> list[Any]:
        taps: list[Any] = []
        for k in reversed(window):
            number, tap = divmod(number, k)
            taps.insert(0, tap)
        return taps

    def chunk(number: Any, y: jax.Array) -> jax.Array:
        for i in range(CHUNK):
            y = add(y, taps_of(number * CHUNK + i))
        return y

    volume = math.prod(window)
    y = lax.fori_loop(0, volume // CHUNK, chunk, y)
    for number in range(volume // CHUNK * CHUNK, volume):
        y = add(y, taps_of(number))
    return y
