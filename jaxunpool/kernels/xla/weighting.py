"""How much an element counts in a window: the fixed weights of `reduce` and `replicate`.

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
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxunpool.geometry import WindowGeometry

PER_WINDOW = ("mean", "mean_inside")


def by_window(y: jax.Array, g: WindowGeometry, weighting: str, windows: Sequence[Any]) -> jax.Array:
    """`y` divided by what a weighting divides by in each window."""
    if weighting not in PER_WINDOW:
        return y
    inside = weighting == "mean_inside"
    if g.volume.bit_count() == 1 and all(_is_full(g, i, inside) for i in range(g.ndim)):
        return y / g.volume  # exact as a product, too
    counts = [_taps(g, i, window, inside) for i, window in enumerate(windows)]
    return divide(y, functools.reduce(operator.mul, counts))


def by_element(u: jax.Array, g: WindowGeometry, positions: Sequence[Any]) -> jax.Array:
    """`u` divided by the number of windows that cover each element (one at least)."""
    if not g.overlaps:
        return u
    covers = [_covers(g, i, position) for i, position in enumerate(positions)]
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


def is_last(g: WindowGeometry, i: int, tap: Any, window: Any) -> Any:
    """Whether no later window along spatial axis `i` has this element; True if that is so always.

    The next window that could is the next whose distance is a multiple of the dilation.
    """
    step = g.dilation[i] // math.gcd(g.dilation[i], g.strides[i])
    distance = step * g.strides[i] // g.dilation[i]  # in taps
    if distance >= g.window_shape[i] or step >= g.output_shape[i]:
        return True
    return (tap < distance) | (window + step >= g.output_shape[i])


def _is_full(g: WindowGeometry, i: int, inside: bool) -> bool:
    """Whether every window has all its elements along spatial axis `i`."""
    low, high = g.padding[i]
    end = (g.output_shape[i] - 1) * g.strides[i] - low + g.spans[i]
    return end <= g.input_shape[i] + (0 if inside else high) and not (inside and low)


def _taps(g: WindowGeometry, i: int, window: Any, inside: bool) -> Any:
    """Elements of each window along spatial axis `i`."""
    (low, high), size, d = g.padding[i], g.input_shape[i], g.dilation[i]
    start = window * g.strides[i] - low
    stop = size - start if inside else size + high - start
    first = jnp.maximum(-start, 0) if inside else 0
    if d > 1:
        stop, first = (stop + d - 1) // d, (first + d - 1) // d
    return jnp.minimum(stop, g.window_shape[i]) - first


def _covers(g: WindowGeometry, i: int, position: Any) -> Any:
    """Windows along spatial axis `i` that have each position."""
    stride, k, outputs = g.strides[i], g.window_shape[i], g.output_shape[i]
    distance = position + g.padding[i][0]  # from the start of the first window
    if g.dilation[i] == 1:
        last = jnp.minimum(distance // stride, outputs - 1)
        periods = -(-k // stride)  # keeps the dividend from being negative
        first = jnp.maximum((distance - k + periods * stride) // stride - periods + 1, 0)
        return jnp.maximum(last - first + 1, 0)

    def count(tap: Any, found: Any) -> Any:
        start = distance - tap * g.dilation[i]
        has = (start >= 0) & (start % stride == 0) & (start // stride < outputs)
        return found + has.astype(jnp.int32)

    nothing = jnp.zeros(jnp.shape(position), jnp.int32)
    if k <= 8:
        return functools.reduce(lambda found, tap: count(tap, found), range(k), nothing)
    return jax.lax.fori_loop(0, k, count, nothing)
