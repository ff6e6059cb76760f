"""All axes before the spatial ones as one: batches, and channels that come first."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax

from jaxunpool.core.geometry import Plane


def merged(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel that is run on arrays with at most one axis before the spatial ones."""

    @functools.wraps(kernel)
    def run(array: jax.Array, *others: jax.Array | None, geometry: Plane, **options: Any) -> Any:
        first = array.ndim + geometry.axes[0]
        before = array.shape[:first]

        def merge(other: jax.Array | None) -> jax.Array | None:
            if other is None or other.ndim != array.ndim:  # a pattern
                return other
            return other.reshape((math.prod(before), *other.shape[first:]))

        if first < 2:
            return kernel(array, *others, geometry=geometry, **options)
        results = kernel(*map(merge, (array, *others)), geometry=geometry, **options)
        return jax.tree.map(lambda r: r.reshape((*before, *r.shape[1:])), results)

    return run
