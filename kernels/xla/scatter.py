"""scatter: (y, offsets) -> u, each window's value at the element its offset names, zero elsewhere.

Output-stationary: `u` is seen as blocks of `strides` elements. The windows that reach block `a` are
`a + shift` for a few shifts, the same for every block, and `u` is put together shift by shift from
`where(the offset names this element, y, 0)`: no scatter instruction, one write per element.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxunpool.geometry import WindowGeometry
from jaxunpool.kernels.xla import regions, windows
from jaxunpool.kernels.xla.flat import accumulator

# Up to here the shifts are unrolled; beyond, a loop keeps the program small.
UNROLLED_SHIFTS = 16
NO_ELEMENT = -(2**28)  # negative also when summed over three axes with what is an element


def scatter(
    y: jax.Array,
    offsets: jax.Array,
    geometry: WindowGeometry,
    duplicates: str = "sum",
    *,
    borders_apart: bool = True,
) -> jax.Array:
    """Where windows meet, `"sum"` adds them in raster order and `"last"` keeps the last of them."""
    if np.iinfo(offsets.dtype).max < geometry.volume:  # room for an offset that names nothing
        offsets = offsets.astype(np.min_scalar_type(geometry.volume))
    g = _with_single_windows_as_blocks(geometry)
    shifts = [_shifts(g, i) for i in range(g.ndim)]
    blocks = [-(-size // stride) for size, stride in zip(g.input_shape, g.strides)]
    rolled = math.prod(map(len, shifts)) > UNROLLED_SHIFTS
    inner = [(0, n) for n in blocks]
    if borders_apart and not rolled:
        inner = [
            (max(0, -t[0]), min(n, o - t[-1])) for t, n, o in zip(shifts, blocks, g.output_shape)
        ]

    def compute(region: regions.Region) -> jax.Array:
        """The blocks of a region, each spatial axis split in two: (blocks, elements of a block)."""
        reach = [(start + t[0], stop + t[-1]) for (start, stop), t in zip(region, shifts)]
        values = regions.slab(y, g.axes, reach, 0).astype(accumulator(y.dtype))
        names = regions.slab(offsets, g.axes, reach, geometry.volume)
        return _shift_by_shift(values, names, g, duplicates, region, shifts, rolled).astype(y.dtype)

    def merged(u: jax.Array, ranges: Sequence[regions.Range]) -> jax.Array:
        """Blocks as elements again, without those beyond the end."""
        u = u.reshape(
            g.with_spatial(y.shape, tuple(u.shape[a] * u.shape[a + 1] for a in _split(g)))
        )
        for axis, (start, stop) in zip(g.axes, ranges):
            u = windows.strided(u, axis, 0, stop - start, 1)
        return u

    def compute_elements(ranges: regions.Region) -> tuple[jax.Array]:
        region = [(start // s, -(-stop // s)) for (start, stop), s in zip(ranges, g.strides)]
        return (merged(compute(tuple(region)), ranges),)

    if any(n % s for n, s in zip(g.input_shape, g.strides)):
        return regions.fill(compute_elements, inner, g.input_shape, g.axes, steps=g.strides)[0]
    # The reshape costs nothing as the last step, on the far side of the fence.
    (u,) = regions.fill(lambda r: (compute(r),), inner, blocks, _split(g), fence=borders_apart)
    return merged(u, [(0, n) for n in g.input_shape])


def _with_single_windows_as_blocks(g: WindowGeometry) -> WindowGeometry:
    """Where an axis has one window the stride means nothing, and blocks of its span are fewest."""
    strides = tuple(
        span if n == 1 else stride for stride, span, n in zip(g.strides, g.spans, g.output_shape)
    )
    return dataclasses.replace(g, strides=strides)


def _split(g: WindowGeometry) -> list[int]:
    """Axes of the blocks, once each spatial axis is split in two."""
    last = g.axes[-1] + 1
    return [last - 2 * (g.ndim - i) for i in range(g.ndim)]


def _shifts(g: WindowGeometry, i: int) -> range:
    """Window minus block, over all windows that can reach an element of the block."""
    low, stride = g.padding[i][0], g.strides[i]
    return range(-((g.spans[i] - 1 - low) // stride), (stride - 1 + low) // stride + 1)


def _elements(g: WindowGeometry, shift: Sequence[Any], like: jax.Array) -> jax.Array | None:
    """The offset that names each element of the blocks in the shifted window, if any does.

    Elements outside the window get a negative number. Computed from iotas, which XLA's CPU compiler
    vectorises where it would not a constant array.
    """
    offset: Any = 0
    for i, axis in enumerate(_split(g)):
        start = g.padding[i][0] - g.strides[i] * shift[i]
        taps = np.arange(g.strides[i]) + start if isinstance(start, int) else None
        k, d = g.window_shape[i], g.dilation[i]
        if taps is not None and not ((taps % d == 0) & (taps >= 0) & (taps < k * d)).any():
            return None
        distance = lax.broadcasted_iota(jnp.int32, like.shape, (axis + 1) % like.ndim) + start
        tap = distance // d if d > 1 else distance
        inside: Any = True
        if d > 1:
            inside = distance % d == 0
        if taps is None or taps[0] < 0:
            inside &= tap >= 0
        if taps is None or taps[-1] >= k * d:
            inside &= tap < k
        tap = tap * math.prod(g.window_shape[i + 1 :])
        offset = offset + (tap if inside is True else jnp.where(inside, tap, NO_ELEMENT))
    return offset


def _shift_by_shift(
    values: jax.Array,
    names: jax.Array,
    g: WindowGeometry,
    duplicates: str,
    region: regions.Region,
    shifts: Sequence[range],
    rolled: bool,
) -> jax.Array:
    def shifted(array: jax.Array, shift: Sequence[Any]) -> jax.Array:
        for axis, t, ts, (start, stop) in zip(g.axes, shift, shifts, region):
            array = windows.strided(array, axis, t - ts[0], stop - start, 1)
        array = jnp.expand_dims(array, [axis + 1 for axis in _split(g)])
        blocks = list(array.shape)
        for axis, stride in zip(_split(g), g.strides):
            blocks[axis + 1] = stride
        return jnp.broadcast_to(array, blocks)

    def add(u: jax.Array, shift: Sequence[Any]) -> jax.Array:
        value, name = shifted(values, shift), shifted(names, shift)
        elements = _elements(g, shift, value)
        if elements is None:
            return u
        hit = name.astype(jnp.int32) == elements
        return jnp.where(hit, u + value if duplicates == "sum" else value, u)

    nothing = jnp.zeros_like(shifted(values, [ts[0] for ts in shifts]))
    if not rolled:
        return functools.reduce(add, itertools.product(*shifts), nothing)

    def body(number: jax.Array, u: jax.Array) -> jax.Array:
        shift: list[jax.Array] = []
        for ts in reversed(shifts):
            number, t = jnp.divmod(number, len(ts))
            shift.insert(0, t + ts[0])
        return add(u, shift)

    return lax.fori_loop(0, math.prod(map(len, shifts)), body, nothing)
