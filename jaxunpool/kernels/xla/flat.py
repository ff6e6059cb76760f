"""gather and scatter by flat spatial position, for indices that come without a window.

Without a window nothing bounds where an index points, so these two use XLA's gather and scatter.
"""

from __future__ import annotations

import math

import jax

from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.geometry import Plane, in_range_or
from jaxunpool.kernels.common import accumulator, comparable, unsigned_zero

Axes = tuple[int, ...]


def gather_flat(u: jax.Array, flat: jax.Array, geometry: Plane) -> jax.Array:
    """`u` at flat positions of a plane; zero where out of range."""
    return _gather(u, flat, geometry.axes)


def _gather(u: jax.Array, flat: jax.Array, axes: Axes) -> jax.Array:
    if flat.size == 0:
        return jnp.zeros(flat.shape, u.dtype)
    lines, axis = _lines(u.astype(comparable(u.dtype)), axes), axes[-1] % (u.ndim - len(axes) + 1)
    batching = tuple(d for d in range(lines.ndim) if d != axis)
    numbers = lax.GatherDimensionNumbers(
        offset_dims=(),
        collapsed_slice_dims=(axis,),
        start_index_map=(axis,),
        operand_batching_dims=batching,
        start_indices_batching_dims=batching,
    )
    positions = _positions(_lines(flat, axes), lines.shape[axis])
    mode = lax.GatherScatterMode.FILL_OR_DROP
    y = lax.gather(lines, positions, numbers, (1,) * lines.ndim, mode=mode, fill_value=0)
    return y.astype(u.dtype).reshape(flat.shape)


def scatter_flat(
    y: jax.Array, flat: jax.Array, geometry: Plane, duplicates: str = "sum"
) -> jax.Array:
    """Zeros with `y` written at flat positions of a plane; out of range: dropped.

    `duplicates="last"` lets the last writer in raster order win on every platform: the writers'
    numbers are scattered with a maximum, whose order does not matter, and then looked up.
    `"sum"` adds; on GPU XLA does not promise an order for these additions.
    """
    axes, output_shape = geometry.axes, geometry.unpooled_shape(y.shape)
    if y.size == 0:
        return jnp.zeros(output_shape, y.dtype)
    values, axis = _lines(y, axes), axes[-1] % (y.ndim - len(axes) + 1)
    size = math.prod(output_shape[a] for a in axes)
    shape = (*values.shape[:axis], size, *values.shape[axis + 1 :])
    batching = tuple(d for d in range(values.ndim) if d != axis)
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=(),
        inserted_window_dims=(axis,),
        scatter_dims_to_operand_dims=(axis,),
        operand_batching_dims=batching,
        scatter_indices_batching_dims=batching,
    )
    positions = _positions(_lines(flat, axes), size)
    mode = lax.GatherScatterMode.FILL_OR_DROP
    if duplicates == "sum":
        zeros = jnp.zeros(shape, accumulator(y.dtype))
        values = values.astype(zeros.dtype)
        u = lax.scatter_add(zeros, positions, values, numbers, mode=mode)
        return unsigned_zero(u).astype(y.dtype).reshape(output_shape)
    writers = lax.broadcasted_iota(jnp.int32, values.shape, axis)
    none = jnp.full(shape, -1, jnp.int32)
    writers = lax.scatter_max(none, positions, writers, numbers, mode=mode)
    return _gather(values, writers, (axis - values.ndim,)).reshape(output_shape)


def _lines(x: jax.Array, axes: Axes) -> jax.Array:
    """`x` with its spatial axes merged into one."""
    first = axes[0] % x.ndim
    merged = math.prod(x.shape[a] for a in axes)
    return x.reshape((*x.shape[:first], merged, *x.shape[first + len(axes) :]))


def _positions(flat: jax.Array, size: int) -> jax.Array:
    """Index vectors for XLA, with one out-of-range value for all that are (of any integer type)."""
    return in_range_or(flat, size, size)[..., None]
