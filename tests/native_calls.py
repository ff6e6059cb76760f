"""Custom calls of the library for CPU with numbers made by hand, and what they give by definition.

Arrays are (batch, depth, height, width, channels). The numbers of a call are the batch, the
channels, and for each of the three axes its size, windows, window, stride, dilation and padding on
either side.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxunpool.kernels.native_cpu import library

ALONE = (1, 1, 1, 1, 1, 0, 0)
WEIGHTINGS = ("sum", "mean", "mean_inside", "cover", "last")


def numbers(batch: int, channels: int, *axes: Sequence[int]) -> np.ndarray:
    """The numbers of a call; axes that are not given are alone."""
    rows = [ALONE] * (3 - len(axes)) + [tuple(axis) for axis in axes]
    return np.array([batch, channels, *itertools.chain(*rows)], np.int64)


def unpooled(sizes: np.ndarray) -> tuple[int, ...]:
    """The shape of what is pooled."""
    return (int(sizes[0]), *map(int, sizes[2::7]), int(sizes[1]))


def pooled(sizes: np.ndarray) -> tuple[int, ...]:
    """The shape of what has an element for each window."""
    return (int(sizes[0]), *map(int, sizes[3::7]), int(sizes[1]))


def volume(sizes: np.ndarray) -> int:
    """Elements of a window."""
    return int(np.prod(sizes[4::7]))


def call(name: str, results: Any, *arrays: Any, **attributes: Any) -> Any:
    """A custom call as it is, of results of some (shape, type)s."""
    types = [jax.ShapeDtypeStruct(*result) for result in results]
    return jax.ffi.ffi_call(library.PREFIX + name, types)(*arrays, **attributes)


def define(
    name: str,
    sizes: np.ndarray,
    *arrays: Any,
    last: bool = False,
    pattern: Any = None,
    divides: str = "",
) -> list[np.ndarray]:
    """The results of a call, from loops over windows in raster order.

    Args:
        name, sizes, arrays: the call.
        last: of several windows at an element, only the last counts.
        pattern: what `reduce` and `replicate` multiply elements by.
        divides: the weighting `"mean"`, `"mean_inside"` or `"cover"`, if these two have it.
    """
    values, *others = map(np.asarray, arrays)
    is_sum = name in ("reduce", "replicate") or (name == "scatter" and not last)
    is_short = values.dtype.kind not in "iub" and values.dtype.itemsize == 2
    kept = np.dtype("float32") if is_sum and is_short else values.dtype
    y, u = (np.zeros(shape(sizes), kept) for shape in (pooled, unpooled))
    if name == "select":
        found, has = np.zeros(y.shape, np.int64), np.zeros(y.shape, bool)
        for window, element, tap in _elements(sizes):
            value = values[element]
            with np.errstate(invalid="ignore"):  # NaN, of bfloat16
                take = ~has[window] | (value > y[window]) | (value != value)
            y[window] = np.where(take, value, y[window])
            found[window] = np.where(take, tap, found[window])
            has[window] = True
        return [y, found]
    owner, number = np.full(u.shape, -1), np.arange(y.size).reshape(y.shape)
    held, covers = np.zeros(y.shape, np.int64), np.zeros(u.shape, np.int64)

    def named(window: Any, tap: int) -> Any:
        return others[0][window] == tap if others else np.True_

    for window, element, tap in _elements(sizes):
        owner[element] = np.where(named(window, tap), number[window], owner[element])
        covers[element] += 1
    for window, _, _ in _elements(sizes, padded=divides == "mean"):
        held[window] += 1
    values = values.astype(kept)
    by_window = divides in ("mean", "mean_inside")
    if name == "reduce" and divides == "cover":
        values = values / np.maximum(covers, 1).astype(kept)
    if name == "replicate" and by_window:
        values = values / held.astype(kept)
    for window, element, tap in _elements(sizes):
        uses = named(window, tap)
        if last:
            uses = uses & (owner[element] == number[window])
        factor = kept.type(1 if pattern is None else pattern[tap])
        to, at, value = (
            (y, window, values[element])
            if name in ("gather", "reduce")
            else (u, element, values[window])
        )
        to[at] = np.where(uses, to[at] + value * factor if is_sum else value, to[at])
    if name == "reduce" and by_window:
        y /= held.astype(kept)
    if name == "replicate" and divides == "cover":
        u /= np.maximum(covers, 1).astype(kept)
    with np.errstate(over="ignore"):  # sums beyond float16
        return [(y if name in ("gather", "reduce") else u).astype(arrays[0].dtype)]


def _elements(sizes: np.ndarray, padded: bool = False) -> Iterator[tuple[Any, Any, int]]:
    """Indices of windows and of their elements that are no padding, and these elements' offsets.

    `padded` counts padding too, but not what windows reach beyond it.
    """
    axes = [[int(n) for n in axis] for axis in np.reshape(sizes[2:], (3, 7))]
    pairs = []
    for size, outputs, window, stride, dilation, low, high in axes:
        position: Callable[[int, int], int] = lambda o, t: o * stride - low + t * dilation
        every = itertools.product(range(outputs), range(window))
        stop = size + high if padded else size
        start = -low if padded else 0
        pairs.append([(o, t, position(o, t)) for o, t in every if start <= position(o, t) < stop])
    for found in sorted(itertools.product(*pairs), key=lambda f: [o for o, _, _ in f]):
        outputs, taps, positions = zip(*found)
        offset = int(np.ravel_multi_index(taps, [axis[2] for axis in axes]))
        yield (slice(None), *outputs), (slice(None), *positions), offset
