"""What `reduce` and `replicate` divide by: elements of a window, windows that cover an element.

These are the numbers of `Axis.count` and `Axis.covers`, found by comparing: a kernel for TPU does
not divide lines of integers.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp

from jaxunpool.core.geometry import Axis
from jaxunpool.kernels.mosaic_tpu.blocks import between


def elements(axes: Sequence[Axis], windows: Sequence[Any], weighting: str) -> Any:
    """Elements of windows of the given numbers: `"mean"` counts padding, `"mean_inside"` does not.

    Neither counts an overhang.
    """

    def along(axis: Axis, window: Any) -> Any:
        low, high = (0, 0) if weighting == "mean_inside" else (axis.low, axis.high)
        ranges = [
            (low + axis.position(0, tap), low + axis.position(axis.outputs - 1, tap))
            for tap in range(axis.window)
        ]
        return number(
            between(window * axis.stride + range_[0], low + axis.size + high, range_)
            for range_ in ranges
        )

    return functools.reduce(operator.mul, map(along, axes, windows))


def covers(axes: Sequence[Axis], windows: Sequence[Any], taps: Sequence[int]) -> Any:
    """Windows that cover the given element of each of the windows of the given numbers."""

    def along(axis: Axis, window: Any, tap: int) -> Any:
        shifts = [other for other, _ in axis.covering(axis.position(0, tap))]
        last = axis.outputs - 1
        return number(between(window + t, axis.outputs, (t, last + t)) for t in shifts)

    return functools.reduce(operator.mul, map(along, axes, windows, taps))


def number(conditions: Iterable[Any]) -> Any:
    """How many conditions hold, each True, a scalar or a line."""
    found: Any = jnp.int32(0)
    for condition in conditions:
        found += jnp.int32(1) if condition is True else condition.astype(jnp.int32)
    return found
