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


def pool(x: jax.Array, geometry: WindowGeometry) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Maxima and offsets, and the indices of ONNX."""
    y, indices = MAX_POOL.bind(_planes(x, geometry), geometry=geometry)
    size = math.prod(geometry.input_shape)
    flat = _back(POSITIONS.bind(indices, size=size), x.shape, geometry)
    return _back(y, x.shape, geometry), _offsets(flat, geometry), indices


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


def unpool(y: jax.Array, indices: jax.Array, geometry: WindowGeometry) -> jax.Array:
    """Each value at the element that its index names."""
    u = MAX_UNPOOL.bind(_planes(y, geometry), indices, geometry=geometry)
    return _back(u, y.shape, geometry)


def planes_shape(shape: tuple[Any, ...], geometry: Plane) -> tuple[Any, ...]:
    """`(batch, channels, *spatial)` for the shape of a pooled or unpooled array."""
    return jax.eval_shape(lambda: _planes(jnp.zeros(shape), geometry)).shape


def _planes(x: jax.Array, geometry: Plane) -> jax.Array:
    n = geometry.ndim
    if geometry.data_format == "channels_last":
        x = jnp.moveaxis(x, -1, -n - 1)
    batch = x.shape[: -n - 1]
    return x if len(batch) == 1 else x.reshape((math.prod(batch), *x.shape[-n - 1 :]))


def _back(planes: jax.Array, shape: tuple[Any, ...], geometry: Plane) -> jax.Array:
    n = geometry.ndim
    batch = shape[: -n - 1]
    x = planes if len(batch) == 1 else planes.reshape((*batch, *planes.shape[1:]))
    return jnp.moveaxis(x, -n - 1, -1) if geometry.data_format == "channels_last" else x
