"""Arrays as TFLite's operators take them: of few axes and few types."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax

from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.geometry import Plane


def merged(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel that is run on at most one axis before the spatial ones, and on no small integers.

    Those axes are batches, and channels that come first. Integers of 8 and 16 bits are int32: few
    operators know other ones. Results are of the type of the array again.
    """

    @functools.wraps(kernel)
    def run(array: jax.Array, *others: jax.Array | None, geometry: Plane, **options: Any) -> Any:
        first = array.ndim + geometry.axes[0]
        before = array.shape[:first]

        def merge(other: jax.Array | None) -> jax.Array | None:
            if other is None:
                return None
            if jnp.issubdtype(other.dtype, jnp.integer) and other.dtype.itemsize < 4:
                other = other.astype(jnp.int32)
            if other.ndim != array.ndim or first < 2:  # a pattern has no such axes
                return other
            return other.reshape((math.prod(before), *other.shape[first:]))

        def unmerge(result: jax.Array) -> jax.Array:
            return result if first < 2 else result.reshape((*before, *result.shape[1:]))

        results = kernel(*map(merge, (array, *others)), geometry=geometry, **options)
        if isinstance(results, tuple):
            y, offsets = results
            return unmerge(y).astype(array.dtype), unmerge(offsets)
        return unmerge(results).astype(array.dtype)

    return run


def apart(x: jax.Array, axis: int, stride: int) -> jax.Array:
    """Elements along an axis each followed by zeros; of four axes, without interior padding."""
    if stride == 1:
        return x
    before, size, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    lone = x.reshape((math.prod(before), size, 1, math.prod(after)))
    widths = [(0, 0, 0), (0, 0, 0), (0, stride - 1, 0), (0, 0, 0)]
    return lax.pad(lone, jnp.zeros((), x.dtype), widths).reshape((*before, size * stride, *after))
