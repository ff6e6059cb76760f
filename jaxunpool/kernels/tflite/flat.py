"""gather and scatter by flat spatial position, along one line of all elements."""

from __future__ import annotations

import math

import jax

from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.geometry import Plane, in_range_or
from jaxunpool.kernels.common import accumulator, unsigned_zero
from jaxunpool.kernels.tflite.axes import merged


@merged
def gather_flat(u: jax.Array, flat: jax.Array, geometry: Plane) -> jax.Array:
    """As `xla.gather_flat`."""
    if flat.size == 0:
        return jnp.zeros(flat.shape, u.dtype)
    line = jnp.append(u.ravel(), jnp.zeros(1, u.dtype))
    return _read(line, _places(flat, u.shape, geometry)).reshape(flat.shape)


@merged
def scatter_flat(
    y: jax.Array, flat: jax.Array, geometry: Plane, duplicates: str = "sum"
) -> jax.Array:
    """As `xla.scatter_flat`, whose order the interpreter keeps: it sets one after the other.

    Sums take as many rounds as values meet at an element. In each, every value writes its number,
    and the one whose number is found is added.
    """
    shape = geometry.unpooled_shape(y.shape)
    if y.size == 0:
        return jnp.zeros(shape, y.dtype)
    size, places = math.prod(shape), _places(flat, shape, geometry)
    dtype = accumulator(y.dtype) if duplicates == "sum" else y.dtype
    values, line = y.astype(dtype).ravel(), jnp.zeros(size + 1, dtype)
    if duplicates == "last":
        return _written(line, places, values)[:size].reshape(shape)
    numbers, none = lax.iota(jnp.int32, values.size), jnp.full(line.shape, -1, jnp.int32)

    def add(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        line, left = state  # `left`: the places of values not added yet
        adds = (left < size) & (_read(_written(none, left, numbers), left) == numbers)
        now = jnp.where(adds, left, size)
        line = _written(line, now, _read(line, now) + values)
        return line, jnp.where(adds, size, left)

    line, _ = lax.while_loop(lambda state: jnp.any(state[1] < size), add, (line, places))
    return unsigned_zero(line[:size]).reshape(shape)


def _places(flat: jax.Array, shape: tuple[int, ...], geometry: Plane) -> jax.Array:
    """Positions in planes of an array as positions in the array; its size where out of range."""
    axes = [axis % flat.ndim for axis in geometry.axes]
    plane, channels = math.prod(shape[axis] for axis in axes), math.prod(shape[axes[-1] + 1 :])
    merged = flat.reshape((-1, math.prod(flat.shape[axis] for axis in axes), channels))
    position = in_range_or(merged, plane, plane)
    batch, channel = (lax.broadcasted_iota(jnp.int32, merged.shape, axis) for axis in (0, 2))
    place = (batch * plane + position) * channels + channel
    return jnp.where(position < plane, place, math.prod(shape)).ravel()


def _read(line: jax.Array, places: jax.Array) -> jax.Array:
    return jnp.take(line, places, mode="clip")


def _written(line: jax.Array, places: jax.Array, values: jax.Array) -> jax.Array:
    numbers = lax.ScatterDimensionNumbers((), (0,), (0,))
    mode = lax.GatherScatterMode.PROMISE_IN_BOUNDS
    return lax.scatter(line, places[:, None], values, numbers, mode=mode)
