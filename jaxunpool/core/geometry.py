"""WindowGeometry: everything static about a sliding window, resolved and checked once."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Self, get_args

import jax
import numpy as np
from jax import export
from jax.errors import InconclusiveDimensionOperation

from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.messages import named, named_padding, public, shown

DataFormat = Literal["channels_last", "channels_first"]
PaddingName = Literal["VALID", "SAME", "SAME_LOWER", "valid", "same", "same_lower"]
Padding = PaddingName | int | Sequence[int] | Sequence[tuple[int, int]]

DATA_FORMATS = get_args(DataFormat)
PADDING_NAMES = ("VALID", "SAME", "SAME_LOWER")
MAX_INT32 = np.iinfo(np.int32).max
# Plain JAX pads what windows reach, and visits all of their elements.
FURTHEST = 2**24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plane:
    """The spatial axes that indices point into: their positions and sizes.

    Attributes:
        input_shape: spatial sizes of the array before pooling, and after unpooling.
        data_format: `"channels_last"` or `"channels_first"`.

    Example:
        >>> Plane(input_shape=(6, 7)).unpooled_shape((8, 3, 3, 64))
        (8, 6, 7, 64)
    """

    input_shape: tuple[int, ...]
    data_format: DataFormat = "channels_last"

    def __post_init__(self) -> None:
        sizes = self.input_shape
        if not isinstance(sizes, tuple) or not all(map(_is_size, sizes)):
            raise TypeError(f"input_shape: expected a tuple of ints, got {shown(sizes)}")
        if not 1 <= len(sizes) <= 3 or any(size < 1 for size in sizes):
            raise ValueError(f"input_shape={sizes}: expected 1 to 3 sizes of at least 1")
        check_axes("input_shape", sizes)
        check_choice("data_format", self.data_format, DATA_FORMATS)

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.input_shape)

    @property
    def overlaps(self) -> bool:
        """Whether an element can be named more than once: always, where there are no windows."""
        return True

    @property
    def axes(self) -> tuple[int, ...]:
        """The spatial axes, counted from the end, so that leading dimensions do not matter."""
        last = -1 if self.data_format == "channels_last" else 0
        return tuple(range(last - self.ndim, last))

    def with_spatial(self, shape: Sequence[int], sizes: Sequence[int]) -> tuple[int, ...]:
        """A full shape with its spatial sizes replaced."""
        full = list(shape)
        for axis, size in zip(self.axes, sizes):
            full[axis] = size
        return tuple(full)

    def unpooled_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Full shape after unpooling an array of the given full shape."""
        return self.with_spatial(shape, self.input_shape)


@dataclasses.dataclass(frozen=True)
class Axis:
    """Windows along one spatial axis, and all arithmetic of their borders.

    Element `tap` of window `o` lies at position `o * stride - low + tap * dilation`. Positions
    outside `[0, size)` are padding. Methods take numbers of windows, taps and positions as ints or
    as integer arrays, traced or not.

    Attributes:
        size: elements of what is pooled.
        outputs: number of windows.
        window: elements of a window.
        stride: distance between neighbouring windows.
        dilation: distance between neighbouring elements of a window.
        low: padding before the first element.
        high: padding after the last element, before any overhang that `ceil_mode` allows.
    """

    size: int
    outputs: int
    window: int = 1
    stride: int = 1
    dilation: int = 1
    low: int = 0
    high: int = 0

    @property
    def span(self) -> int:
        """Extent of a window, dilation included."""
        return _span(self.window, self.dilation)

    @property
    def overlaps(self) -> bool:
        """Whether an element can belong to more than one window."""
        return self.stride < self.span and self.outputs != 1

    @property
    def is_tiled(self) -> bool:
        """Whether whole cells, each with one window inside it, make up the axis."""
        return not self.low and self.span <= self.stride and self.divides(1)

    def divides(self, shards: int) -> bool:
        """Whether every one of so many equal parts has a window for every `stride` elements."""
        return self.outputs * self.stride == self.size and self.outputs % shards == 0

    @property
    def halo(self) -> int:
        """Windows of each neighbour that a part of the axis needs beside its own, if it `divides`.

        With them it has every element of its own windows, and every window of these elements.
        """
        if not self.low and self.span <= self.stride:
            return 0
        return -(-(self.span - 1) // self.stride)  # padding is less than a span

    # Windows and the positions of their elements

    def position(self, window: Any, tap: Any = 0) -> Any:
        """Where an element of a window is."""
        return window * self.stride + (tap * self.dilation - self.low)

    @property
    def stop(self) -> int:
        """The position after the last element of the last window."""
        return self.position(self.outputs - 1) + self.span

    def is_full(self, *, padded: bool) -> bool:
        """Whether every window has all its elements in the input, or in it and its padding.

        False for symbolic sizes that leave it open.
        """
        if self.low and not padded:
            return False
        return decided(lambda: self.stop <= self.size + (self.high if padded else 0), False)

    @property
    def overhang(self) -> int:
        """How far windows reach beyond the end; the most, if symbolic sizes leave it open.

        Sizes that leave open whether windows reach beyond the padding are refused before.
        """
        return decided(lambda: max(self.stop - self.size, 0), self.high)

    def has(self, window: Any, tap: Any) -> Any:
        """Whether an element of a window is no padding; True if that is so for all."""
        if self.is_full(padded=False):
            return True
        position = self.position(window, tap)
        return (position >= 0) & (position < self.size)

    def first(self, window: Any) -> Any:
        """The first element of a window that is not padding."""
        return self._taps(jnp.maximum(-self.position(window), 0))

    def count(self, window: Any, *, padded: bool) -> Any:
        """Elements of a window that are in the input, or in it and its padding (no overhang)."""
        stop = self.size + (self.high if padded else 0) - self.position(window)
        first = 0 if padded else self.first(window)
        return jnp.minimum(self._taps(stop), self.window) - first

    def _taps(self, distance: Any) -> Any:
        """Elements of a window that begin within a distance of its start."""
        if self.dilation == 1:
            return distance
        return (distance + self.dilation - 1) // self.dilation

    # Elements and the windows that cover them

    def tap(self, window: Any, position: Any) -> tuple[Any, Any]:
        """Which element of a window is at a position, and whether it is one."""
        distance = position - self.position(window)
        tap, rest = (distance, 0) if self.dilation == 1 else jnp.divmod(distance, self.dilation)
        return tap, (rest == 0) & (tap >= 0) & (tap < self.window)

    def covers(self, position: Any) -> Any:
        """Number of windows that have an element at a position."""
        distance = position + self.low  # from the start of the first window
        if self.dilation == 1:
            last = jnp.minimum(distance // self.stride, self.outputs - 1)
            periods = -(-self.window // self.stride)  # added, so that the dividend is not negative
            first = (distance - self.window + periods * self.stride) // self.stride - periods + 1
            return jnp.maximum(last - jnp.maximum(first, 0) + 1, 0)

        def count(tap: Any, found: Any) -> Any:
            start = distance - tap * self.dilation
            window = start // self.stride
            has = (start >= 0) & (start % self.stride == 0) & (window < self.outputs)
            return found + jnp.asarray(has, jnp.int32)

        nothing = jnp.zeros(jnp.shape(position), jnp.int32)
        if self.window <= 8:
            return functools.reduce(lambda n, tap: count(tap, n), range(self.window), nothing)
        return lax.fori_loop(0, self.window, count, nothing)

    @property
    def most_covers(self) -> int:
        """Windows that can have an element in common, or more."""
        return -(-self.span // self.stride)

    def is_last(self, window: Any, tap: Any) -> Any:
        """Whether no later window has this element; True if that is so for all windows and taps.

        The next window that could is the next whose distance is a multiple of the dilation.
        """
        step = self.dilation // math.gcd(self.dilation, self.stride)
        distance = step * self.stride // self.dilation  # in taps
        if distance >= self.window or step >= self.outputs:
            return True
        return (tap < distance) | (window + step >= self.outputs)

    # The axis as cells of `stride` elements

    @property
    def cells(self) -> int:
        """Cells of `stride` elements that the axis is made of, the last one perhaps in part."""
        return -(-self.size // self.stride)

    @property
    def shifts(self) -> range:
        """From the first to the last window that reaches cell 0, counted beyond the first."""
        low, high = self.low - (self.span - 1), self.low + self.stride - 1
        return range(-(-low // self.stride), high // self.stride + 1)

    @property
    def cells_without(self) -> int:
        """How far the last shift takes cells beyond the last window.

        Never less than 0: the last window begins before the end of the input.
        """
        return self.cells + self.shifts[-1] - self.outputs

    def covering(self, element: int) -> Iterator[tuple[int, int]]:
        """The windows that have an element, in order, and as which tap: (window, tap).

        Windows are counted beyond the first and the last.
        """
        for tap in reversed(range(self.window)):
            start = element - self.position(0, tap)
            if start % self.stride == 0:
                yield start // self.stride, tap

    def reaching(self, cells: int) -> list[int]:
        """The windows that have an element of the first so many cells, counted as there."""
        elements = range(cells * self.stride)
        return sorted({window for e in elements for window, _ in self.covering(e)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowGeometry(Plane):
    """The windows of a pooling: static and hashable.

    Element `tap` of window `o` lies at input position `o * strides - padding_low + tap * dilation`
    along each spatial axis; positions outside the input are padding.

    Attributes:
        window_shape: elements of the window per spatial axis.
        strides: distance between neighbouring windows.
        padding: resolved `(low, high)` pairs, before any overhang that `ceil_mode` allows.
        dilation: distance between neighbouring elements of a window.
        output_shape: spatial sizes of the pooled array: one element per window.

    Build it with `WindowGeometry.for_input`, which resolves defaults and checks every argument.
    """

    window_shape: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    output_shape: tuple[int, ...]

    @classmethod
    @public
    def for_input(
        cls,
        shape: Sequence[int],
        window_shape: int | Sequence[int],
        strides: int | Sequence[int] | None = None,
        padding: Padding = "VALID",
        *,
        dilation: int | Sequence[int] = 1,
        ceil_mode: bool = False,
        data_format: DataFormat = "channels_last",
        name: str = "x",
    ) -> Self:
        """The geometry of a window sliding over an array of the given full shape.

        Args:
            shape: shape of the array: any leading batch dimensions, 1 to 3 spatial ones, channels
                (or channels before the spatial ones under `"channels_first"`).
            window_shape: one size per spatial axis; an int means `len(shape) - 2` equal sizes.
            strides: the window by default.
            padding: `"VALID"`, `"SAME"` (TensorFlow's rule), `"SAME_LOWER"` (the same, with an odd
                element at the low end: ONNX's rule), or per axis a `(low, high)` pair or one int
                for both sides (PyTorch's rule for the output size).
            dilation: distance between neighbouring elements of a window.
            ceil_mode: the last window may extend beyond the end, if it starts inside the input or
                its low padding (PyTorch's rule). No effect with `"SAME"` and `"SAME_LOWER"`.
            data_format: `"channels_last"` or `"channels_first"`.
            name: the name of the array in messages.

        Raises:
            ValueError, TypeError: an argument is wrong; the message names it.

        Example:
            >>> WindowGeometry.for_input((8, 224, 224, 64), (3, 3), 2, 1).output_shape
            (112, 112)
        """
        window = _Window(name, shape, window_shape, strides, dilation, ceil_mode, data_format)
        return cls._over(window, window.sizes, padding)

    @classmethod
    @public
    def for_output(
        cls,
        shape: Sequence[int],
        window_shape: int | Sequence[int],
        strides: int | Sequence[int] | None = None,
        padding: Padding = "VALID",
        *,
        output_shape: int | Sequence[int] | None = None,
        dilation: int | Sequence[int] = 1,
        ceil_mode: bool = False,
        data_format: DataFormat = "channels_last",
    ) -> Self:
        """The geometry whose pooled array has the given full shape.

        Args:
            shape: shape of the pooled array.
            output_shape: spatial sizes of the unpooled array, which become the `input_shape` of the
                result. By default the size that the windows cover exactly, or with `"SAME"` and
                `"SAME_LOWER"` the pooled size times the strides.
            window_shape, strides, padding, dilation, ceil_mode, data_format: as in `for_input`.

        Raises:
            ValueError, TypeError: an argument is wrong; the message names it.

        Example:
            >>> WindowGeometry.for_output((8, 112, 112, 64), (3, 3), 2, 1).input_shape
            (223, 223)
            >>> WindowGeometry.for_output((112, 112, 1), (3, 3), 2, 1, output_shape=224).input_shape
            (224, 224)
        """
        window = _Window("y", shape, window_shape, strides, dilation, ceil_mode, data_format)
        n, padding, pooled = len(window.sizes), as_sequence(padding), window.sizes
        if output_shape is not None:
            sizes = per_axis("output_shape", as_sequence(output_shape), n, minimum=1)
        elif is_same(padding):
            sizes = tuple(size * stride for size, stride in zip(pooled, window.strides))
        else:
            pads = _resolve_padding(padding, pooled, window.spans, window.strides)
            sizes = tuple(
                (size - 1) * stride + span - sum(pad)
                for size, stride, span, pad in zip(pooled, window.strides, window.spans, pads)
            )
            if any(size < 1 for size in sizes):
                raise ValueError(
                    f"padding={padding!r}: {pooled} windows of span {window.spans} hold nothing"
                    f" but padding (spatial sizes {sizes})"
                )
        geometry = cls._over(window, sizes, padding)
        if geometry.output_shape != pooled:
            raise ValueError(
                f"output_shape={output_shape!r}: spatial sizes {sizes} have"
                f" {geometry.output_shape} windows, but y of shape {tuple(shape)} has {pooled}"
            )
        return geometry

    @classmethod
    def _over(cls, window: _Window, sizes: tuple[int, ...], padding: Any) -> Self:
        """A checked window over a grid of the given sizes."""
        check_axes(f"strides={window.strides} with window_shape={window.window_shape}", sizes)
        if math.prod(window.window_shape) > MAX_INT32:
            raise ValueError(
                f"window_shape={window.window_shape}: expected at most {MAX_INT32} elements"
            )
        if any(isinstance(n, int) and span - n > FURTHEST for n, span in zip(sizes, window.spans)):
            raise ValueError(
                f"window_shape={window.window_shape} with dilation={window.dilation} spans"
                f" {window.spans}: expected at most {FURTHEST} elements more than the spatial sizes"
                f" {sizes}, with any padding (padding={padding!r})"
            )
        padding = as_sequence(padding)
        pads = _resolve_padding(padding, sizes, window.spans, window.strides)
        ceil_mode = (window.ceil_mode and not is_same(padding),) * len(sizes)
        outputs = tuple(map(_output_size, sizes, window.spans, window.strides, pads, ceil_mode))
        if any(size < 1 for size in outputs):
            raise ValueError(
                f"window_shape={window.window_shape} with dilation={window.dilation} spans"
                f" {window.spans}, which is larger than the padded input"
                f" {tuple(s + lo + hi for s, (lo, hi) in zip(sizes, pads))}"
                f" (spatial sizes {sizes}, padding {pads})"
            )
        ends = (
            max(n + lo + hi, (o - 1) * stride + span)  # a window can hang over the padding
            for n, (lo, hi), o, stride, span in zip(
                sizes, pads, outputs, window.strides, window.spans
            )
        )
        check_axes(f"padding={padding!r}", tuple(ends))
        geometry = cls(
            window_shape=window.window_shape,
            strides=window.strides,
            padding=pads,
            dilation=window.dilation,
            input_shape=sizes,
            output_shape=outputs,
            data_format=window.data_format,
        )
        geometry._check_no_window_is_empty()
        return geometry

    @property
    def volume(self) -> int:
        """Number of elements in a window."""
        return math.prod(self.window_shape)

    @property
    def spans(self) -> tuple[int, ...]:
        """Extent of a window along each axis, dilation included."""
        return tuple(map(_span, self.window_shape, self.dilation))

    @functools.cached_property
    def spatial(self) -> tuple[Axis, ...]:
        """The windows along each spatial axis."""
        pads = zip(*self.padding)
        sizes = (self.input_shape, self.output_shape, self.window_shape, self.strides)
        return tuple(map(Axis, *sizes, self.dilation, *pads))

    @property
    def overlaps(self) -> bool:
        """Whether an element can belong to more than one window."""
        return any(axis.overlaps for axis in self.spatial)

    @property
    def in_cells(self) -> Self:
        """The same windows; the stride of a single window, which has no effect, becomes its span.

        An unpooled array is then made of cells of `strides` elements that few windows reach.
        """
        strides = (a.span if a.outputs == 1 else a.stride for a in self.spatial)
        return dataclasses.replace(self, strides=tuple(strides))

    @property
    def offset_dtype(self) -> np.dtype:
        """The smallest unsigned type for offsets: `uint8` up to 255 elements.

        It has room for one value more than there are elements: an offset that selects nothing.
        """
        return np.min_scalar_type(self.volume)

    def pooled_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Full shape after pooling an array of the given full shape."""
        return self.with_spatial(shape, self.output_shape)

    def names_element(self, offsets: Any) -> jax.Array:
        """Whether each offset names an element of the window."""
        return in_range(offsets, self.volume)

    def positions(self, offsets: Any) -> list[Any]:
        """Input position of every offset, one int32 array per spatial axis."""
        rest, found = jnp.asarray(offsets, jnp.int32), []
        for i in reversed(range(self.ndim)):
            rest, tap = (rest, rest) if i == 0 else jnp.divmod(rest, self.window_shape[i])
            found.append(self.spatial[i].position(along(rest, self.axes[i]), tap))
        return found[::-1]

    def _check_no_window_is_empty(self) -> None:
        """A dilated window can straddle a small input; its maximum would have no position."""
        for i, axis in enumerate(self.spatial):
            if axis.dilation <= axis.size:  # elements are too close to straddle the input
                continue
            # Every window begins before the end of the input. It has an element there if its
            # start, modulo the dilation, is less than the size. These numbers repeat: if none of
            # the first `size + 1` windows is empty, none is.
            starts = axis.position(np.arange(min(axis.outputs, axis.size + 1)))
            empty = np.flatnonzero(starts % axis.dilation >= axis.size)
            if empty.size:
                start = int(starts[empty[0]])
                taps = range(start, start + axis.span, axis.dilation)
                raise ValueError(
                    f"padding={self.padding}: window {empty[0]} of spatial axis {i} would hold"
                    f" padding alone (positions {shown(list(taps[:9]))} of an input of size"
                    f" {axis.size})"
                )


class _Window:
    """The arguments that describe a window, checked against the array it is for."""

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        window_shape: Any,
        strides: Any,
        dilation: Any,
        ceil_mode: Any,
        data_format: Any,
    ) -> None:
        self.data_format = check_choice("data_format", data_format, DATA_FORMATS)
        if not isinstance(shape, Sequence) or not all(map(_is_size, shape)):
            raise TypeError(f"shape: expected a tuple of ints, got {shown(shape)}")
        window_shape, strides, dilation = map(as_sequence, (window_shape, strides, dilation))
        n = spatial_ndim(name, shape, "window_shape", window_shape)
        window = per_axis("window_shape", window_shape, n, minimum=1)
        self.window_shape = window
        self.strides = window if strides is None else per_axis("strides", strides, n, minimum=1)
        spacing = per_axis("dilation", dilation, n, minimum=1)
        self.dilation = tuple(1 if k == 1 else d for k, d in zip(window, spacing))  # of one element
        self.ceil_mode = check_flag("ceil_mode", ceil_mode)
        self.spans = tuple(map(_span, window, self.dilation))
        self.sizes = spatial_sizes(name, shape, n, self.data_format)


def spatial_sizes(
    name: str, shape: Sequence[int], n: int, data_format: DataFormat
) -> tuple[int, ...]:
    """The `n` spatial sizes in a full shape; a ValueError if one of them is 0."""
    first = len(shape) - n - (data_format == "channels_last")
    sizes = tuple(shape[first : first + n])
    if any(size < 1 for size in sizes):
        raise ValueError(f"{name}: spatial sizes must be at least 1, got {sizes} in {tuple(shape)}")
    check_axes(name, sizes)
    return sizes


def decided(value: Callable[[], Any], otherwise: Any) -> Any:
    """A value or condition that compares sizes, or what to take if symbolic ones leave it open."""
    try:
        return value()
    except InconclusiveDimensionOperation:
        return otherwise


def check_axes(name: str, sizes: tuple[int, ...]) -> None:
    """Positions along an axis are int32: a ValueError if one has more, as far as is known."""
    if any(isinstance(size, int) and size > MAX_INT32 for size in sizes):
        raise ValueError(
            f"{name}: expected at most {MAX_INT32} elements along an axis, got {sizes}"
        )


def check_known(name: str, sizes: Sequence[int]) -> None:
    """A ValueError for symbolic sizes, where a program is made of their numbers."""
    if not all(isinstance(size, int) for size in sizes):
        raise ValueError(f"{name}: expected spatial sizes that are known, got {tuple(sizes)}")


def in_range(numbers: Any, count: int) -> jax.Array:
    """Whether integers, of any type, are among 0, 1, ..., count - 1.

    Narrow ones are compared in 32 bits: JAX converts `count` to their type, where it may wrap
    around.
    """
    numbers = jnp.asarray(numbers)
    if numbers.dtype.itemsize < 4:
        numbers = numbers.astype(jnp.int32)
    return (numbers >= 0) & (numbers < count)


def in_range_or(numbers: Any, count: int, otherwise: int) -> jax.Array:
    """Integers of any type in int32, and `otherwise` for those that are not in range."""
    wide = jnp.asarray(numbers).astype(jnp.int32)
    return jnp.where(in_range(numbers, count), wide, otherwise)


def along(like: jax.Array, axis: int) -> jax.Array:
    """0, 1, ... along one axis of an array of another's shape, and sharded as it is; int32.

    Computed in the program, which a constant array would make grow with the sizes.
    """
    sharding = jax.typeof(like).sharding
    known = sharding if sharding.mesh.explicit_axes else None
    return lax.broadcasted_iota(jnp.int32, like.shape, axis % like.ndim, out_sharding=known)


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """`value` if it is one of `choices`, else a ValueError that lists them."""
    if not isinstance(value, str | None) or value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{name}={shown(value)}: expected one of {listed}{named(value, choices)}")
    return value


def as_array(name: str, value: Any) -> jax.Array:
    """`value` as an array of its own type, or a TypeError."""
    try:
        return value if isinstance(value, jax.Array) else jnp.asarray(value)
    except (TypeError, ValueError, OverflowError):
        if isinstance(value, np.ndarray):
            hint = " (NumPy makes objects of images of different sizes)" * (value.dtype == object)
            raise TypeError(f"{name}: expected numbers, got {shown(value)}{hint}") from None
        raise TypeError(f"{name}: expected an array, got {type(value).__name__}") from None


def as_sequence(value: Any) -> Any:
    """NumPy arrays of a few sizes as lists; anything else as it is."""
    is_sizes = isinstance(value, np.ndarray) and value.size <= 6 and value.ndim <= 2
    return value.tolist() if is_sizes else value


def as_int(name: str, value: Any) -> int:
    """`value` as a Python int; floats, arrays of them and booleans are a TypeError."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected an int, got {shown(value)}")
    try:
        return operator.index(value)
    except (TypeError, InconclusiveDimensionOperation):
        raise TypeError(f"{name}: expected an int, got {shown(value)}") from None


def check_flag(name: str, value: Any) -> bool:
    """`value` as a bool; anything else is a TypeError."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected a bool, got {shown(value)}")
    return bool(value)


def spatial_ndim(name: str, shape: Sequence[int], argument: str, value: Any) -> int:
    """Number of spatial axes an argument asks for, checked against the rank of the array `name`."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        n, least = len(value), len(value) + 1
    else:
        as_int(argument, value)
        n, least = len(shape) - 2, 3
    if not 1 <= n <= 3 or len(shape) < least:
        raise ValueError(
            f"{argument}={shown(value)} does not fit {name} of shape {tuple(shape)}: expected"
            f" 1 to 3 spatial axes and a channel axis (an int means {name}.ndim - 2 spatial axes)"
        )
    return n


def per_axis(name: str, value: Any, n: int, minimum: int) -> tuple[int, ...]:
    """An int or a sequence of `n` ints as a tuple of `n` ints of at least `minimum`."""
    if isinstance(value, str | bytes):
        raise TypeError(f"{name}: expected an int or {n} of them, got {shown(value)}")
    values = tuple(value) if isinstance(value, Sequence) else (value,) * n
    if len(values) != n:
        raise ValueError(
            f"{name}={shown(value)}: expected an int or {n} of them, got {len(values)}"
        )
    may_be_symbolic = name == "output_shape"
    values = tuple(v if may_be_symbolic and _is_size(v) else as_int(name, v) for v in values)
    if any(v < minimum for v in values):
        raise ValueError(f"{name}={shown(value)}: expected at least {minimum} along every axis")
    if any(isinstance(v, int) and v > MAX_INT32 for v in values):
        raise ValueError(f"{name}={shown(value)}: expected at most {MAX_INT32} along every axis")
    return values


def padding_rule(padding: str, expected: str) -> PaddingName:
    """`"VALID"`, `"SAME"` or `"SAME_LOWER"` for a word of any case, or a ValueError."""
    if padding.upper() not in PADDING_NAMES:
        raise ValueError(
            f"padding={shown(padding)}: {expected}{named_padding(padding, PADDING_NAMES)}"
        )
    return padding.upper()  # type: ignore[return-value]


def is_same(padding: Any) -> bool:
    """Whether padding is one of the two rules that give `ceil(size / stride)` windows."""
    return isinstance(padding, str) and padding.upper() in ("SAME", "SAME_LOWER")


def padding_pairs(padding: Any, n: int, expected: str) -> tuple[tuple[int, int], ...]:
    """An int, or per axis an int or a pair, as `n` pairs of ints; bounds are left to the caller."""
    pads = padding if isinstance(padding, Sequence) else (as_int("padding", padding),) * n
    if len(pads) != n:
        raise ValueError(f"padding={shown(padding)}: {expected}, got {len(pads)}")
    pairs = []
    for pair in pads:
        pair = tuple(pair) if isinstance(pair, Sequence) else (pair, pair)
        if len(pair) != 2:
            raise ValueError(f"padding={shown(padding)}: {expected}, got {shown(pair)}")
        pairs.append((as_int("padding", pair[0]), as_int("padding", pair[1])))
    return tuple(pairs)


def _is_size(value: Any) -> bool:
    """Whether it is an int, or a symbolic size of `jax.export`."""
    return type(value) is int or export.is_symbolic_dim(value)


def _span(window: int, dilation: int) -> int:
    return (window - 1) * dilation + 1


def _resolve_padding(
    padding: Any, sizes: tuple[int, ...], spans: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    n = len(sizes)
    expected = f"expected 'VALID', 'SAME', 'SAME_LOWER', an int, or {n} (low, high) pairs"
    if isinstance(padding, str):
        rule = padding_rule(padding, expected)
        if rule == "VALID":
            return ((0, 0),) * n
        totals = [
            max((-(-size // stride) - 1) * stride + span - size, 0)
            for size, span, stride in zip(sizes, spans, strides)
        ]
        if not all(isinstance(total, int) for total in totals):
            raise ValueError(
                f"padding={padding!r}: depends on the symbolic sizes {sizes}; expected multiples of"
                f" strides={strides}, such as '{strides[0]}*h', or (low, high) pairs"
            )
        pairs = ((total // 2, total - total // 2) for total in totals)
        return tuple(pair[::-1] if rule == "SAME_LOWER" else pair for pair in pairs)
    given = padding_pairs(padding, n, expected)
    for (low, high), span in zip(given, spans):
        if not (0 <= low < span and 0 <= high < span):
            raise ValueError(
                f"padding={padding!r}: expected at least 0 and less than the window's span"
                f" {span}, got {(low, high)}"
            )
    return given


def _output_size(size: int, span: int, stride: int, pad: tuple[int, int], ceil_mode: bool) -> int:
    """PyTorch's formula; for resolved SAME padding it equals TensorFlow's `ceil(size / stride)`."""
    low, high = pad
    room = size + low + high - span
    windows = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (windows - 1) * stride >= size + low:
        windows -= 1  # the last window has to start inside the input or its low padding
    return windows
