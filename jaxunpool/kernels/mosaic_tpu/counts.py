"""What `reduce` and `replicate` divide by: elements of a window, windows that cover an element.

These are the numbers of `kernels.xla.weighting`, found by comparing, as lines of integers are not
to be divided in a kernel.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp

from jaxunpool.kernels.mosaic_tpu.blocks import between
from jaxunpool.kernels.mosaic_tpu.views import Axis


def elements(axes: Sequence[Axis], windows: Sequence[Any], weights: str) -> Any:
    """Elements of windows of the given numbers: `"mean"` counts padding, `"mean_inside"` does not.

    Neither counts an overhang.
    """

    def along(axis: Axis, window: Any) -> Any:
        low, high = (0, 0) if weights == "mean_inside" else (axis.low, axis.high)
        begins = [tap * axis.dilation - axis.low + low for tap in range(axis.taps)]
        last, size = (axis.windows - 1) * axis.stride, low + axis.size + high
        return number(
            between(window * axis.stride + begin, size, (begin, last + begin)) for begin in begins
        )

    return functools.reduce(operator.mul, map(along, axes, windows))


def covers(axes: Sequence[Axis], windows: Sequence[Any], taps: Sequence[int]) -> Any:
    """Windows that cover the given element of each of the windows of the given numbers."""

    def along(axis: Axis, window: Any, tap: int) -> Any:
        distances = [(tap - other) * axis.dilation for other in range(axis.taps)]
        shifts = [d // axis.stride for d in distances if d % axis.stride == 0]
        last = axis.windows - 1
        return number(between(window + t, axis.windows, (t, last + t)) for t in shifts)

    return functools.reduce(operator.mul, map(along, axes, windows, taps))


def number(conditions: Iterable[Any]) -> Any:
    """How many conditions hold, each True, a scalar or a line."""
    found: Any = jnp.int32(0)
    for condition in conditions:
        found += jnp.int32(1) if condition is True else condition.astype(jnp.int32)
    return found
