"""Windows as tables of positions, and which element of each is its maximum."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import oracle

from .kinds import is_float
from .operators import flushed


class InvalidCallError(Exception):
    """A call that the library has to refuse."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Windows over a grid: positions of elements in raster order, -1 for padding.

    Attributes:
        outputs: windows along each axis.
        positions: `(planes or 1, windows, elements)`.
        counts: elements of each window, padding included.
        size: elements of the plane.
    """

    outputs: tuple[int, ...]
    positions: np.ndarray
    counts: np.ndarray
    size: int = 0

    @property
    def count(self) -> int:
        """How many windows there are."""
        return self.positions.shape[1]

    @property
    def volume(self) -> int:
        """Elements of a window."""
        return self.positions.shape[2]


def resolved(sizes: Sequence[int], settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """Arguments of windows as the oracle takes them; an error where the library has to raise."""
    n = len(sizes)
    each = lambda value: (value,) * n if isinstance(value, int) else tuple(value)
    window = each(settings["window_shape"])
    strides = each(settings.get("strides") or window)
    dilation = tuple(d if k > 1 else 1 for d, k in zip(each(settings.get("dilation", 1)), window))
    padding = settings.get("padding", "VALID")
    if not isinstance(padding, str):
        padding = tuple((p, p) if isinstance(p, int) else tuple(p) for p in each(padding))
        for (low, high), k, d in zip(padding, window, dilation):
            if max(low, high) > (k - 1) * d:
                raise InvalidCallError
    named = padding in ("SAME", "SAME_LOWER")
    return window, strides, padding, dilation, settings.get("ceil_mode", False) and not named


@functools.lru_cache(maxsize=512)
def _table(sizes: tuple[int, ...], *arguments: Any) -> Table:
    if min(oracle.pads_and_outputs(sizes, *arguments)[1]) < 1:
        raise InvalidCallError
    outputs, members, counts = oracle.windows(sizes, *arguments)
    if not all(members):
        raise InvalidCallError
    positions = np.full((1, len(members), math.prod(arguments[0])), -1)
    for window, elements in enumerate(members):
        for position, offset in elements.items():
            positions[0, window, offset] = position
    return Table(tuple(outputs), positions, np.array(counts), math.prod(sizes))


def windows(sizes: tuple[int, ...], settings: Mapping[str, Any]) -> Table:
    return _table(tuple(sizes), *resolved(sizes, settings))


def boxes(sizes: Sequence[int], bounds: Sequence[Sequence[tuple[int, int]]]) -> Table:
    """Windows that are products of (start, stop) pairs along each axis."""
    found = []
    for pairs in itertools.product(*bounds):
        places = itertools.product(*(range(*pair) for pair in pairs))
        found.append([int(np.ravel_multi_index(place, tuple(sizes))) for place in places])
    most = max(map(len, found))
    positions = np.array([places + [-1] * (most - len(places)) for places in found])
    outputs = tuple(map(len, bounds))
    return Table(outputs, positions[None], (positions >= 0).sum(-1), math.prod(sizes))


def winners(x: np.ndarray, table: Table, lowest: bool = False) -> np.ndarray:
    """The position of each window's maximum: the first of equals, the last NaN."""
    key = flushed(x) if is_float(x.dtype) else x.astype(np.uint64 if x.dtype == np.uint64 else int)
    if lowest:
        key = -key if key.dtype == float else ~key
    positions = np.broadcast_to(table.positions, (x.shape[1], *table.positions.shape[1:]))
    plane = np.arange(x.shape[1])[:, None, None]
    there, taken = positions >= 0, key[:, plane, np.maximum(positions, 0)]
    least = -np.inf if key.dtype == float else np.iinfo(key.dtype).min
    nan = np.isnan(taken) & there if key.dtype == float else np.zeros(taken.shape, bool)
    largest = np.where(there & ~nan, taken, least).max(-1, keepdims=True)
    first = ((taken == largest) & there).argmax(-1)
    last = nan.shape[-1] - 1 - nan[..., ::-1].argmax(-1)
    tap = np.where(nan.any(-1), last, first)
    every = np.broadcast_to(positions, taken.shape)
    return np.take_along_axis(every, tap[..., None], -1)[..., 0]


def dense(table: Table, size: int, weights: np.ndarray | float = 1.0) -> np.ndarray:
    """The matrix of sums over windows, with a weight for each element of each window."""
    positions = table.positions[0]
    weights = np.broadcast_to(weights, positions.shape)
    matrix = np.zeros((len(positions), size))
    rows = np.broadcast_to(np.arange(len(positions))[:, None], positions.shape)
    there = positions >= 0
    np.add.at(matrix, (rows[there], positions[there]), weights[there])
    return matrix


def last_only(at: np.ndarray) -> np.ndarray:
    """Positions, with -1 for those that a later window of the plane names too."""
    kept = np.full_like(at, -1)
    for plane, row in enumerate(at):
        last = {position: window for window, position in enumerate(row.tolist())}
        for position, window in last.items():
            kept[plane, window] = position
    return kept


def written(at: np.ndarray, size: int) -> np.ndarray:
    """Which window writes each element, where positions do not repeat; -1 where none does."""
    by = np.full((len(at), size + 1), -1)
    np.put_along_axis(by, np.where(at < 0, size, at), np.arange(at.shape[1])[None], 1)
    return by[:, :size]
