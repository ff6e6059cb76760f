"""The custom calls: arrays and windows as the library takes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxunpool.core.frozen import jnp
from jaxunpool.core.geometry import Axis, Plane, WindowGeometry, in_range_or
from jaxunpool.kernels.common import accumulator
from jaxunpool.kernels.native_cpu import library

INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
DTYPES = frozenset(map(jnp.dtype, ["float16", "bfloat16", "float32", "float64", *INTEGERS]))
WEIGHTINGS = ("sum", "mean", "mean_inside", "cover", "last")  # in the library's order
Ints = tuple[int, ...]
ALONE = Axis(1, 1)  # stands for a spatial axis that is not there


def unsupported(
    primitive: str, geometry: Plane, shape: tuple[int, ...], dtype: Any, **options: Any
) -> str | None:
    """Why there is no kernel for this; None if there is."""
    reason = library.missing()
    if reason is None and jnp.dtype(dtype) not in DTYPES:
        reason = f"values of type {jnp.dtype(dtype).name}"
    return reason


def select(x: jax.Array, geometry: WindowGeometry) -> tuple[jax.Array, jax.Array]:
    """Maximum of each window and its offset: the first of equals, the last NaN, never padding."""
    shape = geometry.pooled_shape(x.shape)
    types = [_type(x, shape, dtype) for dtype in (x.dtype, geometry.offset_dtype)]
    y, offsets = _call("select", types, x, sizes=_sizes(geometry, x.shape))
    return y, offsets


def gather(u: jax.Array, offsets: jax.Array, geometry: WindowGeometry) -> jax.Array:
    """One element per window; zero where the offset names none."""
    return _gather(u, offsets, geometry, winners=False)


def gather_last(u: jax.Array, offsets: jax.Array, geometry: WindowGeometry) -> jax.Array:
    """Zero also where a later window names the same element."""
    return _gather(u, offsets, geometry, winners=True)


def _gather(u: jax.Array, offsets: jax.Array, geometry: WindowGeometry, winners: bool) -> jax.Array:
    y, sizes = _type(offsets, offsets.shape, u.dtype), _sizes(geometry, u.shape)
    offsets = _narrowed(offsets, geometry)
    return _call("gather", y, u, offsets, sizes=sizes, winners=winners)


def scatter(
    y: jax.Array, offsets: jax.Array, geometry: WindowGeometry, duplicates: str = "sum"
) -> jax.Array:
    """Where windows meet, `"sum"` adds them in raster order and `"last"` keeps the last of them."""
    shape = geometry.unpooled_shape(y.shape)
    u, last = _type(y, shape, y.dtype), duplicates == "last"
    offsets = _narrowed(offsets, geometry)
    return _call("scatter", u, y, offsets, sizes=_sizes(geometry, shape), last=last)


def reduce(
    u: jax.Array, pattern: jax.Array | None, geometry: WindowGeometry, weighting: str = "sum"
) -> jax.Array:
    """Weighted sums of the elements times `pattern` (None: ones), in raster order."""
    y = _type(u, geometry.pooled_shape(u.shape), u.dtype)
    if weighting in ("cover", "last") and not geometry.overlaps:
        weighting = "sum"  # equal there, and the handler has the fastest loops for it
    return _weighted("reduce", y, u, pattern, weighting, _sizes(geometry, u.shape))


def replicate(
    y: jax.Array, pattern: jax.Array | None, geometry: WindowGeometry, weighting: str = "sum"
) -> jax.Array:
    """Copies times `pattern` (None: ones), weighted, in raster order."""
    shape = geometry.unpooled_shape(y.shape)
    u = _type(y, shape, y.dtype)
    return _weighted("replicate", u, y, pattern, weighting, _sizes(geometry, shape))


def _weighted(
    name: str,
    result: Any,
    array: jax.Array,
    pattern: jax.Array | None,
    weighting: str,
    sizes: np.ndarray,
) -> jax.Array:
    """`reduce` or `replicate`; an empty pattern stands for ones."""
    is_float = jnp.issubdtype(array.dtype, jnp.floating)
    dtype = accumulator(array.dtype) if is_float else array.dtype  # the library's sums run in it
    factors = jnp.zeros(0, dtype) if pattern is None else pattern.astype(dtype)
    number = np.int64(WEIGHTINGS.index(weighting))
    return _call(name, result, array, factors, sizes=sizes, weighting=number)


def gather_flat(u: jax.Array, flat: jax.Array, geometry: Plane) -> jax.Array:
    """`u` at flat positions of a plane; zero where out of range."""
    return _gather_flat(u, flat, geometry, winners=False)


def gather_last_flat(u: jax.Array, flat: jax.Array, geometry: Plane) -> jax.Array:
    """Zero also where a later position is the same."""
    return _gather_flat(u, flat, geometry, winners=True)


def _gather_flat(u: jax.Array, flat: jax.Array, geometry: Plane, winners: bool) -> jax.Array:
    y, sizes = _type(flat, flat.shape, u.dtype), _planes(geometry, u.shape, flat.shape)
    return _call("gather_flat", y, u, _positions(flat, sizes), sizes=sizes, winners=winners)


def scatter_flat(
    y: jax.Array, flat: jax.Array, geometry: Plane, duplicates: str = "sum"
) -> jax.Array:
    """Zeros with `y` written at flat positions of a plane; out of range: dropped."""
    shape = geometry.unpooled_shape(y.shape)
    u, sizes = _type(y, shape, y.dtype), _planes(geometry, shape, y.shape)
    last = duplicates == "last"
    return _call("scatter_flat", u, y, _positions(flat, sizes), sizes=sizes, last=last)


def uneven_flat(
    x: jax.Array, starts: Sequence[jax.Array], stops: Sequence[jax.Array], geometry: Plane
) -> tuple[jax.Array, jax.Array]:
    """Maximum of each window, from its start to its stop along each axis, and its flat position.

    Starts and stops are vectors along their axes.
    """
    missing = 3 - geometry.ndim
    lists = [
        [jnp.full(1, end, jnp.int32)] * missing
        + [array.ravel().astype(jnp.int32) for array in some]
        for end, some in enumerate((starts, stops))
    ]
    outputs = tuple(start.size for start in starts)
    ones, shape = [1] * missing, geometry.with_spatial(x.shape, outputs)
    sizes = [*_around(geometry, x.shape), *ones, *geometry.input_shape, *ones, *outputs]
    types = [_type(x, shape, dtype) for dtype in (x.dtype, jnp.int32)]
    numbers = np.array(sizes, np.int64)
    y, flat = _call("select_uneven", types, x, *lists[0], *lists[1], sizes=numbers)
    return y, flat


def resample_flat(
    x: jax.Array, tables: Sequence[Any], transposed: bool, geometry: Plane
) -> jax.Array:
    """Sums along axes of a plane, as tables of `core/resample.py` say."""
    axes = [table.axis % x.ndim for table in tables]
    first, missing = min(axes), 3 - geometry.ndim
    shape = list(x.shape)
    moves = all(
        len(t.weights) == t.gapless == 1 and not t.weighted and t.divisors is None for t in tables
    )
    real = jnp.float64 if x.dtype == jnp.float64 and not moves else jnp.float32
    nothing = [jnp.zeros(0, jnp.int32), jnp.zeros(0, real), jnp.zeros(0, real)]
    arrays, order = [nothing] * 3, []
    for axis, table in zip(axes, tables):
        order.append(missing + axis - first)
        divisors = nothing[2] if table.divisors is None else table.divisors
        arrays[order[-1]] = [table.elements, table.weights.astype(real), divisors]
        shape[axis] = table.elements.shape[1]
    stop = first + geometry.ndim
    around = [math.prod(x.shape[:first]), math.prod(x.shape[stop:])]
    sizes = [size for axis in range(first, stop) for size in (x.shape[axis], shape[axis])]
    return _call(
        "resample",
        _type(x, tuple(shape), x.dtype),
        x,
        *(array for axis in arrays for array in axis),
        sizes=np.array([*around, *[1] * 2 * missing, *sizes, *order], np.int64),
        moves=moves,
        divides_first=transposed,
    )


def convolve(
    wanted: str, spatial: Sequence[Axis], sizes: Sequence[int], shape: Ints, *arrays: jax.Array
) -> jax.Array:
    """A convolution, or one of its gradients.

    Args:
        wanted: `"y"`, the results of an input and a kernel; `"u"`, the gradient by the input, of
            results and a kernel; `"k"`, that by the kernel, of an input and results.
        spatial: the axes, of which the first of `arrays` has as many.
        sizes: the number of examples and of groups, and each group's of inputs and of outputs.
        shape: of the result.
        arrays: (batch, *spatial, channels), the kernel (*window, inputs, groups * outputs).
    """
    numbers = np.array([*sizes, *_numbers(spatial)], np.int64)
    result = _type(arrays[0], shape, arrays[0].dtype)
    return _call("convolve", result, *arrays, sizes=numbers, wanted=np.int64("yuk".index(wanted)))


def _call(name: str, results: Any, *arrays: jax.Array, **attributes: Any) -> Any:
    return jax.ffi.ffi_call(library.PREFIX + name, results)(*arrays, **attributes)


def _positions(flat: jax.Array, sizes: np.ndarray) -> jax.Array:
    """Positions in int32, with -1 for all that name no element."""
    if flat.dtype == jnp.int32:
        return flat
    return in_range_or(flat, int(sizes[1]), -1)


def _planes(g: Plane, unpooled: tuple[int, ...], pooled: tuple[int, ...]) -> np.ndarray:
    """Of the batch, the two planes and the channels."""
    batch, channels = _around(g, unpooled)
    planes = [math.prod(shape[axis] for axis in g.axes) for shape in (unpooled, pooled)]
    return np.array([batch, *planes, channels], np.int64)


def _narrowed(offsets: jax.Array, geometry: WindowGeometry) -> jax.Array:
    """Offsets of the geometry's type, also where they were made by hand."""
    if offsets.dtype == geometry.offset_dtype:
        return offsets
    volume = geometry.volume  # names no element
    return in_range_or(offsets, volume, volume).astype(geometry.offset_dtype)


def _type(like: jax.Array, shape: tuple[int, ...], dtype: Any) -> Any:
    """The type of a result, which differs along the axes of a `shard_map` as an argument does."""
    return jax.typeof(like).update(shape=shape, dtype=jnp.dtype(dtype), weak_type=False)


def _around(g: Plane, shape: tuple[int, ...]) -> tuple[int, int]:
    """The sizes of what is before and after the spatial axes."""
    last = g.axes[-1] % len(shape) + 1
    return math.prod(shape[: last - g.ndim]), math.prod(shape[last:])


def _sizes(g: WindowGeometry, shape: tuple[int, ...]) -> np.ndarray:
    """Of the batch, the channels and three spatial axes; channels first is part of the batch."""
    return np.array([*_around(g, shape), *_numbers(g.spatial)], np.int64)


def _numbers(spatial: Sequence[Axis]) -> list[int]:
    """Of three spatial axes, the first of which may not be there."""
    return [
        number
        for a in (*[ALONE] * (3 - len(spatial)), *spatial)
        for number in (a.size, a.outputs, a.window, a.stride, a.dilation, a.low, a.high)
    ]
