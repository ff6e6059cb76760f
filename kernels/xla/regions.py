"""Splitting an output into an interior, which needs no padding, and its borders.

XLA's CPU compiler writes a padded input out before it reads it again, which costs more than the
pooling. So the interior is computed from the unpadded array at full speed, and each border from a
padded slab of its own and written over the interior's edge in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

Range = tuple[int, int]
Region = tuple[Range, ...]


def split(
    interiors: Sequence[Range], sizes: Sequence[int], steps: Sequence[int]
) -> tuple[Region, list[Region]]:
    """The interior of a grid, or all of it where there is none, and the borders around it.

    The borders of an axis span the later axes whole, so that there are two per axis at most.
    """
    inner = tuple(
        (start * step, min(stop * step, size))
        for (start, stop), size, step in zip(interiors, sizes, steps)
    )
    whole = tuple((0, size) for size in sizes)
    if any(start >= stop for start, stop in inner):
        return whole, []
    return inner, [
        (*inner[:i], border, *whole[i + 1 :])
        for i, ((start, stop), size) in enumerate(zip(inner, sizes))
        for border in ((0, start), (stop, size))
        if border[0] < border[1]
    ]


def slab(
    x: jax.Array, axes: Sequence[int], ranges: Sequence[Range], value: Any
) -> jax.Array:
    """`x[start:stop]` along every axis, with `value` wherever a range leaves the array."""
    starts, stops, pads = [0] * x.ndim, list(x.shape), [(0, 0, 0)] * x.ndim
    for axis, (start, stop) in zip(axes, ranges):
        size = x.shape[axis]
        starts[axis] = min(max(start, 0), size)
        stops[axis] = max(min(stop, size), starts[axis])
        pads[axis] = (starts[axis] - start, stop - stops[axis], 0)
    x = lax.slice(x, starts, stops)
    return x if all(pad == (0, 0, 0) for pad in pads) else lax.pad(x, lax.full((), value, x.dtype), pads)


def fill(
    compute: Callable[[Region], tuple[jax.Array, ...]],
    interiors: Sequence[Range],
    sizes: Sequence[int],
    axes: Sequence[int],
    *,
    steps: Sequence[int] | None = None,
    loop_axis: int | None = None,
) -> tuple[jax.Array, ...]:
    """The whole output of a function that computes any region of it.

    Args:
        compute: region -> arrays that extend over that region along `axes`.
        interiors: per axis, the range `compute` can do without padding.
        sizes: per axis, the size of the output.
        axes: axes of the outputs the regions refer to.
        steps: per axis, the granularity of `interiors`; 1 by default.
        loop_axis: another axis, to write the borders one slice of it at a time. XLA's fusions stop
            at a loop, so that what is done with the output afterwards cannot undo the in-place
            writes (a reshape fused into them costs a copy).
    """
    inner, borders = split(interiors, sizes, steps or (1,) * len(axes))

    def place(array: jax.Array) -> jax.Array:
        pads = [(0, 0, 0)] * array.ndim
        for axis, (start, stop), size in zip(axes, inner, sizes):
            pads[axis] = (start, size - stop, 0)
        return lax.pad(array, lax.full((), 0, array.dtype), pads)

    def write(whole: jax.Array, piece: jax.Array, border: Region, at: Any = 0) -> jax.Array:
        starts = [at if axis == loop_axis else 0 for axis in range(-whole.ndim, 0)]
        for axis, (start, _) in zip(axes, border):
            starts[axis] = start
        return lax.dynamic_update_slice(whole, piece, starts)

    wholes = tuple(place(array) for array in compute(inner))
    pieces = [(border, compute(border)) for border in borders]
    if loop_axis is None or not borders:
        for border, parts in pieces:
            wholes = tuple(write(whole, part, border) for whole, part in zip(wholes, parts))
        return wholes

    def write_slice(at: Any, wholes: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        for border, parts in pieces:
            parts = [lax.dynamic_slice_in_dim(part, at, 1, loop_axis) for part in parts]
            wholes = tuple(write(whole, part, border, at) for whole, part in zip(wholes, parts))
        return wholes

    return lax.fori_loop(0, wholes[0].shape[loop_axis], write_slice, wholes)
