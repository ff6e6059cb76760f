"""scatter: (y, offsets) -> u, each window's value at the element its offset names, zero elsewhere.

Output-stationary: `u` is seen as blocks of `strides` elements. The windows that reach block `a` are
`a + shift` for a few shifts, the same for every block, and `u` is put together shift by shift from
`where(the offset names this element, y, 0)`: no scatter instruction, one write per element.
"""

from __future__ import annotations

import dataclasses
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
        u = u.reshape(g.with_spatial(y.shape, tuple(u.shape[a] * u.shape[a + 1] for a in _split(g))))
        for axis, (start, stop) in zip(g.axes, ranges):
            u = windows.strided(u, axis, 0, stop - start, 1)
        return u

    def compute_elements(ranges: regions.Region) -> tuple[jax.Array]:
        region = [(start // s, -(-stop // s)) for (start, stop), s in zip(ranges, g.strides)]
        return (merged(compute(tuple(region)), ranges),)

    # The reshape is cheapest as the last step, and then the borders are written before it.
    divisible = all(n % s == 0 for n, s in zip(g.input_shape, g.strides))
    if divisible and y.ndim > -g.axes[0] and y.shape[g.axes[0] - 1] > 1:
        before = _split(g)[0] - 1
        (u,) = regions.fill(lambda r: (compute(r),), inner, blocks, _split(g), loop_axis=before)
        return merged(u, [(0, n) for n in g.input_shape])
    return regions.fill(compute_elements, inner, g.input_shape, g.axes, steps=g.strides)[0]


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


def _elements(g: WindowGeometry, i: int, shift: Any) -> Any:
    """Per element of a block, its number within the shifted window along one axis."""
    distance = np.arange(g.strides[i]) + g.padding[i][0] - g.strides[i] * shift
    tap = distance // g.dilation[i]
    is_element = (distance % g.dilation[i] == 0) & (tap >= 0) & (tap < g.window_shape[i])
    if isinstance(shift, int):
        return np.where(is_element, tap, NO_ELEMENT)
    return jnp.where(is_element, tap, NO_ELEMENT)


def _shift_by_shift(
    values: jax.Array,
    names: jax.Array,
    g: WindowGeometry,
    duplicates: str,
    region: regions.Region,
    shifts: Sequence[range],
    rolled: bool,
) -> jax.Array:
    weights = [math.prod(g.window_shape[i + 1 :]) for i in range(g.ndim)]

    def shifted(array: jax.Array, shift: Sequence[Any]) -> jax.Array:
        for axis, t, ts, (start, stop) in zip(g.axes, shift, shifts, region):
            array = windows.strided(array, axis, t - ts[0], stop - start, 1)
        return jnp.expand_dims(array, [a + 1 for a in _split(g)])

    def add(u: jax.Array | None, shift: Sequence[Any]) -> jax.Array:
        value, name = shifted(values, shift), shifted(names, shift).astype(jnp.int32)
        element = sum(
            weights[i] * _elements(g, i, t).reshape((-1,) + (1,) * (-axis - 2))
            for i, (t, axis) in enumerate(zip(shift, _split(g)))
        )
        hit = name == element
        if u is None:
            return jnp.where(hit, value, jnp.zeros((), value.dtype))
        return jnp.where(hit, u + value if duplicates == "sum" else value, u)

    if not rolled:
        u = None
        for shift in itertools.product(*shifts):
            if all((_elements(g, i, t) != NO_ELEMENT).any() for i, t in enumerate(shift)):
                u = add(u, shift)
        return u

    def body(number: jax.Array, u: jax.Array) -> jax.Array:
        shift = []
        for ts in reversed(shifts):
            number, t = jnp.divmod(number, len(ts))
            shift.insert(0, t + ts[0])
        return add(u, shift)

    first = add(None, [ts[0] for ts in shifts])
    return lax.fori_loop(1, math.prod(map(len, shifts)), body, first)
