"""What the kernels of all backends agree on, to the bit: types, and the weights of elements.

The fixed weights of `reduce` and `replicate`:

| weighting       | weight of an element in a window                                         |
| --------------- | ------------------------------------------------------------------------ |
| `"sum"`         | 1                                                                        |
| `"mean"`        | 1 / elements of the window, padding included, overhang not               |
| `"mean_inside"` | 1 / elements of the window that are not padding                          |
| `"cover"`       | 1 / windows that cover the element                                       |
| `"last"`        | 1 in the last window, in raster order, that covers the element, 0 before |

Counts are divided by, never multiplied with as rounded reciprocals; see `divide`. A sum that is
zero is +0, never -0, before it is divided or rounded; see `unsigned_zero`.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxunpool.core.frozen import jnp
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


def by_element(
    u: jax.Array,
    g: WindowGeometry,
    positions: Sequence[Any],
    aligned: Callable[[int, jax.Array], jax.Array] = lambda i, counts: counts,
) -> jax.Array:
    """`u` divided by the number of windows that cover each element (one at least).

    What no window covers is zero, or is not read. `aligned` lays the counts of a spatial axis along
    `u`, where positions are vectors.
    """
    if not g.overlaps:
        return u
    covers = [jnp.maximum(axis.covers(p), 1) for axis, p in zip(g.spatial, positions)]
    counts = [aligned(i, cover) for i, cover in enumerate(covers)]
    return divide(u, functools.reduce(operator.mul, counts))


def times(value: jax.Array, weight: jax.Array) -> jax.Array:
    """`value * weight`, rounded before it is added to anything.

    Compilers contract a product and a sum to one operation, in some programs and not in others. A
    comparison in between keeps them apart.
    """
    return jnp.where(value != value, value, value * weight)


def divide(y: jax.Array, counts: Any) -> jax.Array:
    """`y / counts`, correctly rounded.

    XLA turns division by what does not vary along some axis into a product with its rounded
    reciprocal, in some programs and not in others. So the divisor is made to depend on `y`. It also
    divides a quotient once, by the product of both divisors. So the result is no plain quotient.
    """
    isnan = y != y
    return jnp.where(isnan, y, y / jnp.where(isnan, 1, counts).astype(y.dtype))


def accumulator(dtype: jax.typing.DTypeLike) -> jax.typing.DTypeLike:
    """The type sums run in: 16-bit floats are added in float32 and rounded once."""
    small = jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 4
    return jnp.float32 if small else comparable(dtype)


def comparable(dtype: jax.typing.DTypeLike) -> jax.typing.DTypeLike:
    """The type values are compared and selected in: int32 for unsigned ones of 8 or 16 bits.

    Not every tool that reads programs has a select of those.
    """
    small = jnp.issubdtype(dtype, jnp.unsignedinteger) and jnp.dtype(dtype).itemsize < 4
    return jnp.int32 if small else dtype


def unsigned_zero(total: jax.Array) -> jax.Array:
    """A sum as it is, but +0 if it is zero.

    Sums start at +0, which makes a sum of negative zeros +0. But compilers leave the first addition
    out, in some programs and not in others.
    """
    if not jnp.issubdtype(total.dtype, jnp.floating):
        return total
    return jnp.where(total == 0, jnp.zeros_like(total), total)


def devices(platform: str) -> list[Any]:
    """Those of this process; none where JAX finds none, or leaves them to another."""
    try:
        return jax.devices(platform)
    except RuntimeError:
        return []


def lowest(dtype: Any) -> np.ndarray:
    """The identity of the maximum: -inf, or the smallest integer."""
    is_float = jnp.issubdtype(dtype, jnp.floating)
    return np.array(-np.inf if is_float else jnp.iinfo(dtype).min, dtype)
