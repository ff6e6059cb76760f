"""Splitting an output into an interior, which needs no padding, and its borders.

XLA's CPU compiler writes a padded input out before it reads it again, which costs more than the
pooling. So the interior is computed from the unpadded array at full speed, and each border from a
padded slice of its own and written over the interior's edge in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

from jaxunpool.core.geometry import Range
from jaxunpool.kernels import varying

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


def padded_slice(
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
    if all(pad == (0, 0, 0) for pad in pads):
        return x
    return lax.pad(x, lax.full((), value, x.dtype), pads)


def fill(
    compute: Callable[[Region], tuple[jax.Array, ...]],
    interiors: Sequence[Range],
    sizes: Sequence[int],
    axes: Sequence[int],
    *,
    steps: Sequence[int] | None = None,
    fence: bool = False,
) -> tuple[jax.Array, ...]:
    """The whole output of a function that computes any region of it.

    Args:
        compute: region -> arrays that extend over that region along `axes`.
        interiors: per axis, the range `compute` can do without padding.
        sizes: per axis, the size of the output.
        axes: axes of the outputs the regions refer to.
        steps: per axis, the granularity of `interiors`; 1 by default.
        fence: write the borders (the last row again, if there are none) in a loop, twice. XLA's
            CPU fusions stop at a loop of more than one step: otherwise what follows may be fused
            with what is computed here, and that means once more for each of its elements. (An
            optimization barrier does this too, but on CPU only from jax 0.11 on.)
    """
    steps = steps or (1,) * len(axes)
    inner, borders = split(interiors, sizes, steps)
    last_row = (sizes[0] - 1) // steps[0] * steps[0]
    if fence and not borders and last_row > 0:
        borders = [((last_row, sizes[0]), *inner[1:])]

    def padded(array: jax.Array) -> jax.Array:
        pads = [(0, 0, 0)] * array.ndim
        for axis, (start, stop), size in zip(axes, inner, sizes):
            pads[axis] = (start, size - stop, 0)
        return lax.pad(array, lax.full((), 0, array.dtype), pads)

    wholes = tuple(padded(array) for array in compute(inner))
    pieces = [(border, compute(border)) for border in borders]

    def write(wholes: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        for border, parts in pieces:
            starts = [0] * wholes[0].ndim
            for axis, (start, _) in zip(axes, border):
                starts[axis] = start
            wholes = tuple(map(lax.dynamic_update_slice, wholes, parts, [starts] * len(parts)))
        return wholes

    if not fence:
        return write(wholes)
    return lax.fori_loop(0, 2, lambda _, w: write(w), varying.together(*wholes))
