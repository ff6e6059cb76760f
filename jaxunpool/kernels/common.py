"""What the kernels of all backends agree on, to the bit: types, and the weights of elements.

The fixed weights of `reduce` and `replicate`:

| weighting       | weight of an element in a window                                         |
| --------------- | ------------------------------------------------------------------------ |
| `"sum"`         | 1                                                                        |
| `"mean"`        | 1 / elements of the window, padding included, overhang not               |
| `"mean_inside"` | 1 / elements of the window that are not padding                          |
| `"cover"`       | 1 / windows that cover the element                                       |
| `"last"`        | 1 in the last window, in raster order, that covers the element, 0 before |

Counts are divided by, never multiplied with as rounded reciprocals; see `divide`.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxunpool.core.geometry import WindowGeometry

PER_WINDOW = ("mean", "mean_inside")


def by_window(y: jax.Array, g: WindowGeometry, weighting: str, windows: Sequence[Any]) -> jax.Array:
    """`y` divided by what a weighting divides by in each window."""
    if weighting not in PER_WINDOW:
        return y
    padded = weighting == "mean"
    if g.volume.bit_count() == 1 and all(axis.is_full(padded=padded) for axis in g.spatial):
        return y / g.volume  # by a power of two: exact however it is compiled
    counts = [axis.count(window, padded=padded) for axis, window in zip(g.spatial, windows)]
    return divide(y, functools.reduce(operator.mul, counts))


def by_element(u: jax.Array, g: WindowGeometry, positions: Sequence[Any]) -> jax.Array:
    """`u` divided by the number of windows that cover each element (one at least)."""
    if not g.overlaps:
        return u
    covers = [axis.covers(position) for axis, position in zip(g.spatial, positions)]
    return divide(u, jnp.maximum(functools.reduce(operator.mul, covers), 1))


def times(value: jax.Array, weight: jax.Array) -> jax.Array:
    """`value * weight`, rounded before it is added to anything.

    Compilers contract a product and a sum to one operation, in some programs and not in others. A
    comparison in between keeps them apart.
    """
    return jnp.where(value != value, value, value * weight)


def divide(y: jax.Array, counts: Any) -> jax.Array:
    """`y / counts`, correctly rounded.

    XLA turns division by what does not vary along some axis into a product with its rounded
    reciprocal, in some programs and not in others. So the divisor is made to depend on `y`.
    """
    return y / jnp.where(y != y, 1, counts).astype(y.dtype)


def accumulator(dtype: jax.typing.DTypeLike) -> jax.typing.DTypeLike:
    """The type sums run in: 16-bit floats are added in float32 and rounded once."""
    small = jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 4
    return jnp.float32 if small else dtype


def lowest(dtype: Any) -> np.ndarray:
    """The identity of the maximum: -inf, or the smallest integer."""
    is_float = jnp.issubdtype(dtype, jnp.floating)
    return np.array(-np.inf if is_float else jnp.iinfo(dtype).min, dtype)


def fence(arrays: tuple[jax.Array, ...], axis: int) -> tuple[jax.Array, ...]:
    """The arrays, written out: XLA does not recompute them in each of their consumers.

    An optimization barrier; on CPU, where that is not enough before jax 0.11, the last row along an
    axis is written again in a loop of two steps.
    """
    rows = [lax.slice_in_dim(a, a.shape[axis] - 1, None, axis=axis) for a in arrays]

    def write(_: Any, arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(
            lax.dynamic_update_slice_in_dim(a, row, a.shape[axis] - 1, axis)
            for a, row in zip(arrays, rows)
        )

    return lax.platform_dependent(
        arrays, cpu=lambda a: lax.fori_loop(0, 2, write, a), default=lax.optimization_barrier
    )
