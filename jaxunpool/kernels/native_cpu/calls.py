"""The custom calls: arrays and windows as the library takes them."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunpool.core.geometry import Axis, WindowGeometry
from jaxunpool.kernels.common import accumulator
from jaxunpool.kernels.native_cpu import library
from jaxunpool.kernels.varying import result_like

INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
DTYPES = frozenset(map(jnp.dtype, ["float16", "bfloat16", "float32", "float64", *INTEGERS]))
WEIGHTINGS = ("sum", "mean", "mean_inside", "cover", "last")  # in the library's order
MOST_TAPS = 65535  # what names them has 16 bits, and names nothing too
ALONE = Axis(1, 1)  # stands for a spatial axis that is not there


def unsupported(
    primitive: str, geometry: WindowGeometry, shape: tuple[int, ...], dtype: Any, **options: Any
) -> str | None:
    """Why there is no kernel for this; None if there is."""
    reason = library.missing()
    if reason is None and jnp.dtype(dtype) not in DTYPES:
        reason = f"values of type {jnp.dtype(dtype).name}"
    if reason is None and geometry.volume > MOST_TAPS:
        reason = f"windows of {geometry.volume} elements ({MOST_TAPS} at most)"
    return reason


def select(x: jax.Array, geometry: WindowGeometry) -> tuple[jax.Array, jax.Array]:
    """Maximum of each window and its offset: the first of equals, the last NaN, never padding."""
    shape = geometry.pooled_shape(x.shape)
    types = [result_like(x, shape, dtype) for dtype in (x.dtype, geometry.offset_dtype)]
    y, offsets = _call("select", types, x, sizes=_sizes(geometry, x.shape))
    return y, offsets


def gather(u: jax.Array, offsets: jax.Array, geometry: WindowGeometry) -> jax.Array:
    """One element per window; zero where the offset names none."""
    return _gather(u, offsets, geometry, winners=False)


def gather_last(u: jax.Array, offsets: jax.Array, geometry: WindowGeometry) -> jax.Array:
    """Zero also where a later window names the same element."""
    return _gather(u, offsets, geometry, winners=True)


def _gather(u: jax.Array, offsets: jax.Array, geometry: WindowGeometry, winners: bool) -> jax.Array:
    y, sizes = result_like(offsets, offsets.shape, u.dtype), _sizes(geometry, u.shape)
    return _call("gather", y, u, offsets, sizes=sizes, winners=winners)


def scatter(
    y: jax.Array, offsets: jax.Array, geometry: WindowGeometry, duplicates: str = "sum"
) -> jax.Array:
    """Where windows meet, `"sum"` adds them in raster order and `"last"` keeps the last of them."""
    shape = geometry.unpooled_shape(y.shape)
    u, last = result_like(y, shape, y.dtype), duplicates == "last"
    return _call("scatter", u, y, offsets, sizes=_sizes(geometry, shape), last=last)


def reduce(
    u: jax.Array, pattern: jax.Array | None, geometry: WindowGeometry, weighting: str = "sum"
) -> jax.Array:
    """Weighted sums of the elements times `pattern` (None: ones), in raster order."""
    y = result_like(u, geometry.pooled_shape(u.shape), u.dtype)
    return _weighted("reduce", y, u, pattern, weighting, _sizes(geometry, u.shape))


def replicate(
    y: jax.Array, pattern: jax.Array | None, geometry: WindowGeometry, weighting: str = "sum"
) -> jax.Array:
    """Copies times `pattern` (None: ones), weighted, in raster order."""
    shape = geometry.unpooled_shape(y.shape)
    u = result_like(y, shape, y.dtype)
    return _weighted("replicate", u, y, pattern, weighting, _sizes(geometry, shape))


def _weighted(
    name: str,
    result: jax.ShapeDtypeStruct,
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


def _call(name: str, results: Any, *arrays: jax.Array, **attributes: Any) -> Any:
    return jax.ffi.ffi_call(library.PREFIX + name, results)(*arrays, **attributes)


def _sizes(g: WindowGeometry, shape: tuple[int, ...]) -> np.ndarray:
    """Of the batch, the channels and three spatial axes; channels first is part of the batch."""
    last = g.axes[-1] % len(shape) + 1
    batch, channels = math.prod(shape[: last - g.ndim]), math.prod(shape[last:])
    axes = [ALONE] * (3 - g.ndim) + list(g.spatial)
    numbers = [
        number
        for a in axes
        for number in (a.size, a.outputs, a.window, a.stride, a.dilation, a.low, a.high)
    ]
    return np.array([batch, channels, *numbers], np.int64)
