"""ONNX's `MaxPool` and `MaxUnpool` as primitives of JAX, and select and scatter made of them.

Both take arrays `(batch, channels, *spatial)`. Indices are those of ONNX, positions in the whole
tensor. They are int64 in the ONNX graph, whatever JAX takes them for.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Primitive

from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.geometry import Plane, WindowGeometry
from jaxunpool.kernels.xla import windows

MAX_POOL = Primitive("jaxunpool_onnx_max_pool")
MAX_POOL.multiple_results = True
MAX_UNPOOL = Primitive("jaxunpool_onnx_max_unpool")
POSITIONS = Primitive("jaxunpool_onnx_positions")


@MAX_POOL.def_abstract_eval
def _(x: Any, *, geometry: WindowGeometry) -> list[Any]:
    shape = (*x.shape[:2], *geometry.output_shape)
    return [ShapedArray(shape, x.dtype), ShapedArray(shape, np.dtype(np.int32))]


@MAX_UNPOOL.def_abstract_eval
def _(y: Any, indices: Any, *, geometry: WindowGeometry) -> Any:
    return ShapedArray((*y.shape[:2], *geometry.input_shape), y.dtype)


@POSITIONS.def_abstract_eval
def _(indices: Any, *, size: int) -> Any:
    return ShapedArray(indices.shape, np.dtype(np.int32))


def serves(geometry: Plane, x: Any) -> bool:
    """Whether ONNX Runtime's `MaxPool` is defined for such windows and this array."""
    if not isinstance(geometry, WindowGeometry) or x.dtype != np.float32:
        return False
    fits = all(max(pads) < k for pads, k in zip(padding(geometry), geometry.window_shape))
    counts = [
        (axis.size + low + high - axis.span) // axis.stride + 1
        for axis, (low, high) in zip(geometry.spatial, padding(geometry))
    ]
    return fits and counts == list(geometry.output_shape)


def padding(geometry: WindowGeometry) -> list[tuple[int, int]]:
    """As far as windows reach: `ceil_mode` needs no word of its own."""
    return [(axis.low, max(axis.stop - axis.size, 0)) for axis in geometry.spatial]


def pool(x: jax.Array, geometry: WindowGeometry) -> tuple[jax.Array, ...]:
    """Maxima and offsets; the maxima and the indices as ONNX has them."""
    y, indices = MAX_POOL.bind(planes(x, geometry), geometry=geometry)
    size = math.prod(geometry.input_shape)
    flat = _back(POSITIONS.bind(indices, size=size), x.shape, geometry)
    return _back(y, x.shape, geometry), _offsets(flat, geometry), y, indices


def _offsets(flat: jax.Array, geometry: WindowGeometry) -> jax.Array:
    """Offsets from flat positions that are elements of their windows."""
    offsets, raster = jnp.zeros_like(flat), 1
    for i in reversed(range(geometry.ndim)):
        axis, size = geometry.spatial[i], geometry.input_shape[i]
        above = lax.div(flat, jnp.full_like(flat, size))
        position, flat = flat - above * size, above
        start = axis.position(windows.iota(axis.outputs, geometry.axes[i], flat.ndim))
        tap = position - start
        if axis.dilation > 1:
            tap = lax.div(tap, jnp.full_like(tap, axis.dilation))
        offsets, raster = offsets + tap * raster, raster * axis.window
    return offsets.astype(geometry.offset_dtype)


def unpool(
    y: jax.Array, indices: jax.Array, geometry: WindowGeometry, shape: tuple[Any, ...]
) -> jax.Array:
    """Each value of ONNX's pooled array at the element that its index names.

    `shape` is that of the pooled array in JAX.
    """
    return _back(MAX_UNPOOL.bind(y, indices, geometry=geometry), shape, geometry)


def planes(x: jax.Array, geometry: Plane) -> jax.Array:
    """A pooled or unpooled array as ONNX has it: `(batch, channels, *spatial)`."""
    n = geometry.ndim
    if geometry.data_format == "channels_last":
        x = jnp.moveaxis(x, -1, -n - 1)
    batch = x.shape[: -n - 1]
    return x if len(batch) == 1 else x.reshape((math.prod(batch), *x.shape[-n - 1 :]))


def _back(planes: jax.Array, shape: tuple[Any, ...], geometry: Plane) -> jax.Array:
    """Such an array with the batch and the layout of an array of a shape."""
    n = geometry.ndim
    batch = shape[: -n - 1]
    x = planes if len(batch) == 1 else planes.reshape((*batch, *planes.shape[1:]))
    return jnp.moveaxis(x, -n - 1, -1) if geometry.data_format == "channels_last" else x
