"""Putting an unpooled array together: every element looks at the windows that cover it.

The array is seen as blocks of `strides` elements. The windows that reach block `a` are `a + shift`
for a few shifts, the same for every block, and what they contribute is added shift by shift: no
scatter instruction, one write per element.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxunpool.geometry import WindowGeometry
from jaxunpool.kernels import varying
from jaxunpool.kernels.xla import regions, windows

# Up to here the shifts are unrolled; beyond, a loop keeps the program small.
UNROLLED_SHIFTS = 16


class Reached(NamedTuple):
    """What one shifted window means to every element of the blocks, along one spatial axis.

    Attributes:
        tap: number of the element in the window; meaningless where not `inside`.
        inside: whether the window has this element; True where all have.
        window: number of the window, whether it exists or not.
        start: tap times dilation of a block's first element.
    """

    tap: jax.Array
    inside: jax.Array | bool
    window: jax.Array
    start: Any


Contribute = Callable[..., jax.Array]


def assemble(
    sources: Sequence[tuple[jax.Array, Any]],
    geometry: WindowGeometry,
    contribute: Contribute,
    dtype: Any,
    *,
    borders_apart: bool,
    finish: Callable[[jax.Array, list[jax.Array]], jax.Array] = lambda u, positions: u,
) -> jax.Array:
    """The unpooled array, block by block.

    Args:
        sources: pooled arrays, each with what stands for it where there is no window.
        geometry: the windows.
        contribute: `(u, reached, *values) -> u`, where `reached` holds one `Reached` per spatial
            axis and `values` are the sources of the shifted window, broadcast to the blocks.
        dtype: of the result; sums are kept in the type of the first source.
        borders_apart: compute the blocks that need no padded source by themselves.
        finish: `(u, positions) -> u`, applied to the sums before they become `dtype`.
    """
    g, shape = geometry.blocked, sources[0][0].shape
    shifts = [axis.shifts for axis in g.spatial]
    blocks = [axis.blocks for axis in g.spatial]
    rolled = math.prod(map(len, shifts)) > UNROLLED_SHIFTS
    inner = [(0, n) for n in blocks]
    if borders_apart and not rolled:
        inner = [
            (max(0, -t[0]), min(n, o - t[-1])) for t, n, o in zip(shifts, blocks, g.output_shape)
        ]

    def compute(region: regions.Region) -> jax.Array:
        """The blocks of a region, each spatial axis split in two: (blocks, elements of a block)."""
        reach = [(start + t[0], stop + t[-1]) for (start, stop), t in zip(region, shifts)]
        slabs = [regions.slab(array, g.axes, reach, fill) for array, fill in sources]
        u = _shift_by_shift(slabs, g, contribute, region, shifts, rolled)
        u = finish(u, [_positions(g, i, region, u) for i in range(g.ndim)])
        return u.astype(dtype)

    def merged(u: jax.Array, ranges: Sequence[regions.Range]) -> jax.Array:
        """Blocks as elements again, without those beyond the end."""
        u = u.reshape(g.with_spatial(shape, tuple(u.shape[a] * u.shape[a + 1] for a in split(g))))
        for axis, (start, stop) in zip(g.axes, ranges):
            u = windows.strided(u, axis, 0, stop - start, 1)
        return u

    def compute_elements(ranges: regions.Region) -> tuple[jax.Array]:
        region = [(start // s, -(-stop // s)) for (start, stop), s in zip(ranges, g.strides)]
        return (merged(compute(tuple(region)), ranges),)

    if any(n % s for n, s in zip(g.input_shape, g.strides)):
        return regions.fill(compute_elements, inner, g.input_shape, g.axes, steps=g.strides)[0]
    # The reshape costs nothing as the last step, on the far side of the fence.
    (u,) = regions.fill(lambda r: (compute(r),), inner, blocks, split(g), fence=borders_apart)
    return merged(u, [(0, n) for n in g.input_shape])


def split(g: WindowGeometry) -> list[int]:
    """Axes of the blocks, once each spatial axis is split in two."""
    last = g.axes[-1] + 1
    return [last - 2 * (g.ndim - i) for i in range(g.ndim)]


def _positions(g: WindowGeometry, i: int, region: regions.Region, like: jax.Array) -> jax.Array:
    """Position along spatial axis `i` of every element of the blocks of a region."""
    axis = split(g)[i] % like.ndim
    block = lax.broadcasted_iota(jnp.int32, like.shape, axis) + region[i][0]
    return block * g.strides[i] + lax.broadcasted_iota(jnp.int32, like.shape, axis + 1)


def _reached(
    g: WindowGeometry, shift: Sequence[Any], region: regions.Region, like: jax.Array
) -> list[Reached] | None:
    """What the shifted windows mean to every element of the blocks; None if nothing to any.

    Computed from iotas, which XLA's CPU compiler vectorises where it would not a constant array.
    """
    found = []
    for i, axis in enumerate(split(g)):
        start = -g.spatial[i].position(shift[i])
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
        block = lax.broadcasted_iota(jnp.int32, like.shape, axis % like.ndim)
        found.append(Reached(tap, inside, block + (region[i][0] + shift[i]), start))
    return found


def _shift_by_shift(
    slabs: Sequence[jax.Array],
    g: WindowGeometry,
    contribute: Contribute,
    region: regions.Region,
    shifts: Sequence[range],
    rolled: bool,
) -> jax.Array:
    def shifted(array: jax.Array, shift: Sequence[Any]) -> jax.Array:
        for axis, t, ts, (start, stop) in zip(g.axes, shift, shifts, region):
            array = windows.strided(array, axis, t - ts[0], stop - start, 1)
        array = jnp.expand_dims(array, [axis + 1 for axis in split(g)])
        blocks = list(array.shape)
        for axis, stride in zip(split(g), g.strides):
            blocks[axis + 1] = stride
        return jnp.broadcast_to(array, blocks)

    def add(u: jax.Array, shift: Sequence[Any]) -> jax.Array:
        reached = _reached(g, shift, region, u)
        if reached is None:
            return u
        return contribute(u, reached, *(shifted(array, shift) for array in slabs))

    first = shifted(slabs[0], [ts[0] for ts in shifts])
    nothing = varying.along(jnp.zeros_like(first), varying.axes(varying.together(*slabs)[0]))
    if not rolled:
        return functools.reduce(add, itertools.product(*shifts), nothing)

    def body(number: jax.Array, u: jax.Array) -> jax.Array:
        shift: list[jax.Array] = []
        for ts in reversed(shifts):
            number, t = jnp.divmod(number, len(ts))
            shift.insert(0, t + ts[0])
        return add(u, shift)

    return lax.fori_loop(0, math.prod(map(len, shifts)), body, nothing)
