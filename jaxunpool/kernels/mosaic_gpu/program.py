"""What a kernel is written with: positions, and boxes of elements at them."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxunpool.kernels.mosaic_gpu.tiles import Shift, Tiles, elements_of, windows_of


def run(kernel: Callable[..., None], tiles: Tiles, arrays: Sequence[jax.Array], out: Any) -> Any:
    """The outputs of a kernel that gets references to arrays and outputs."""
    programs = math.prod(-(-size // covered) for size, covered in tiles.extents)
    # No array is both read and written and threads do not communicate: no barriers are needed.
    params = plgpu.CompilerParams(unsafe_no_auto_barriers=True)
    launch = plgpu.kernel(
        kernel, out_type=out, grid=(programs,), grid_names=("program",), compiler_params=params
    )
    return launch(*arrays)


class Index(NamedTuple):
    """A position along an axis, maybe traced, and the range it is known to lie in."""

    value: Any
    least: int
    most: int

    def shifted(self, by: int) -> Index:
        """The position further along."""
        return Index(self.value + by, self.least + by, self.most + by)

    def scaled(self, by: int) -> Index:
        """The position in units that are smaller by a factor."""
        return Index(self.value * by, self.least * by, self.most * by)

    def within(self, size: int) -> Any:
        """Whether it lies in `[0, size)`; a bool where that is known."""
        if self.most < 0 or self.least >= size:
            return False
        bounds = [self.value >= 0] * (self.least < 0) + [self.value < size] * (self.most >= size)
        return functools.reduce(operator.and_, bounds, True)

    def clamped(self, size: int) -> Any:
        """The nearest position in `[0, size)`."""
        value = self.value if self.least >= 0 else jnp.maximum(self.value, 0)
        return value if self.most < size else jnp.minimum(value, size - 1)


Position = list[Index]  # along every spatial axis


def shifted(position: Position, shift: Shift) -> Position:
    """A position at a distance from another."""
    return [index.shifted(by) for index, by in zip(position, shift)]


class Program:
    """A program: the box it covers of the parallel axes, and where it starts along spatial ones.

    Attributes:
        tiles: how its call is cut up.
        first: its first window, or cell.
        shape: of its box.
    """

    def __init__(self, tiles: Tiles) -> None:
        """The program that runs this."""
        self.tiles = tiles
        number, starts = lax.axis_index("program"), list[Any]()
        for size, covered in reversed(tiles.extents):
            n: int = -(-size // covered)
            start: Any = 0
            if n > 1:
                start = lax.rem(number, np.int32(n)) * covered
                number = lax.div(number, np.int32(n))
            if size % covered:  # the last program is moved back, to end with the axis
                start = jnp.minimum(start, size - covered)
            starts.insert(0, start)
        extents = zip(starts[1::2], tiles.counts, tiles.steps)
        self.first = [Index(start, 0, size - covered) for start, size, covered in extents]
        self._starts = starts[::2]
        kept = [0, *(behind for _, behind in tiles.runs)]
        self.shape = tuple(tiles.box[i] for i in kept)

    def window_corner(self) -> Position:
        """Where the first window starts."""
        axes = self.tiles.geometry.spatial
        return [Index(*map(axis.position, index)) for axis, index in zip(axes, self.first)]

    def cell_corner(self) -> Position:
        """Where the first cell starts."""
        return [index.scaled(s) for index, s in zip(self.first, self.tiles.geometry.strides)]

    def pooled(self, ref: Any) -> Operand:
        """The operand of a pooled array."""
        return Operand(self, ref, self.tiles.geometry.output_shape)

    def unpooled(self, ref: Any) -> Operand:
        """The operand of an unpooled array."""
        return Operand(self, ref, self.tiles.geometry.input_shape)

    def read_elements(self, ref: Any) -> dict[Shift, Loaded]:
        """The elements of its windows, by the distance from the corner of the first."""
        t = self.tiles
        return self.unpooled(ref).read(self.window_corner(), elements_of(t.geometry, t.steps))

    def read_windows(self, ref: Any) -> dict[Shift, Loaded]:
        """The windows that reach its cells, by the shift from the first cell."""
        t = self.tiles
        return self.pooled(ref).read(self.first, windows_of(t.geometry, t.steps))

    def numbers(self, position: Position) -> list[jax.Array]:
        """A position as boxes."""
        return [self.full(index.value, jnp.int32) for index in position]

    def shared_out(self, box: jax.Array) -> jax.Array:
        """A box in the layout in which each thread has the same elements of every box."""
        return plgpu.layout_cast(box, plgpu.Layout.WG_STRIDED(self.shape, self.tiles.vector))

    def full(self, value: Any, dtype: Any) -> jax.Array:
        """A box of one value."""
        return jnp.full(self.shape, value, dtype)

    def unless(self, condition: Any) -> jax.Array:
        """All bits set where a scalar condition fails: OR-ed with an offset, it names no element.

        A compiler may turn a `where` of a box that was read into branches and into reads of single
        elements.
        """
        return self.where(condition, self.full(0, jnp.int32), -1)

    def where(self, condition: Any, value: jax.Array, other: Any) -> jax.Array:
        """`jnp.where` of a scalar condition."""
        other = self.full(other, value.dtype) if jnp.ndim(other) == 0 else other
        if isinstance(condition, bool):
            return value if condition else other
        return jnp.where(jnp.broadcast_to(condition, self.shape), value, other)


class Loaded(NamedTuple):
    """A box, where it is, and whether that is inside the array; if not, its value is undefined."""

    value: jax.Array
    position: Position
    exists: Any


class Operand(NamedTuple):
    """An array in global memory, of which a program reads and writes boxes."""

    program: Program
    ref: Any
    sizes: tuple[int, ...]

    def read(self, origin: Position, shifts: Iterable[Shift]) -> dict[Shift, Loaded]:
        """The boxes at distances from a position."""
        return {shift: self._read(shifted(origin, shift)) for shift in shifts}

    def _read(self, position: Position) -> Loaded:
        p, exists = self.program, self._exists(position)
        if exists is False:
            return Loaded(p.full(0, self.ref.dtype), position, exists)
        at = self._at([index.clamped(size) for index, size in zip(position, self.sizes)])
        return Loaded(p.shared_out(self.ref[at]), position, exists)

    def write(self, position: Position, value: jax.Array) -> None:
        """A box, unless it is beyond the end."""
        exists, value = self._exists(position), self.program.shared_out(value)

        def store() -> None:
            self.ref[self._at([index.value for index in position])] = value

        if exists is True:
            store()
        elif exists is not False:
            pl.when(exists)(store)

    def _exists(self, position: Position) -> Any:
        return all_of(index.within(size) for index, size in zip(position, self.sizes))

    def _at(self, position: Sequence[Any]) -> tuple[Any, ...]:
        starts, box = self.program._starts, self.program.tiles.box
        at = [pl.ds(starts[0], box[0])]
        for axes, behind in self.program.tiles.runs:
            number: Any = 0
            for i in axes:
                number = number * self.sizes[i] + position[i]
            at += [number, pl.ds(starts[behind], box[behind])]
        return tuple(at)


def rounded(x: jax.Array) -> jax.Array:
    """A float32 product or quotient that is rounded before it is added to a sum, as XLA does.

    A fused multiply-add would not round it. No compiler knows that a square has no sign (for all it
    knows, it is NaN), so none removes what is done to the bits here.
    """
    bits, square = (lax.bitcast_convert_type(value, jnp.int32) for value in (x, x * x))
    nothing = lax.shift_right_logical(square, jnp.full(x.shape, 31, jnp.int32))
    return lax.bitcast_convert_type(bits ^ nothing, x.dtype)


def all_of(conditions: Iterable[Any]) -> Any:
    """Whether all hold; a bool where that is known."""
    conditions = list(conditions)
    if any(condition is False for condition in conditions):
        return False
    return functools.reduce(operator.and_, conditions, True)


def raster(tap: Sequence[Any], window: Sequence[int]) -> Any:
    """Offset of an element of a window."""
    return functools.reduce(lambda offset, part: offset * part[1] + part[0], zip(tap, window), 0)
