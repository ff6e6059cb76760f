"""Along which axes of a `shard_map` the devices' values differ: part of an array's type."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from jaxunpool.core.frozen import jnp, lax


def axes(array: jax.Array) -> frozenset[str]:
    """The axes along which an array differs."""
    return jax.typeof(array).manual_axis_type.varying


def along(array: jax.Array, names: frozenset[str]) -> jax.Array:
    """An array that differs along these axes too, as far as its type says."""
    missing = names - axes(array)
    return lax.pcast(array, tuple(missing), to="varying") if missing else array


def together(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Arrays that all differ where any does: what a loop carries has to be of one type."""
    names = frozenset[str]().union(*map(axes, arrays))
    return tuple(along(array, names) for array in arrays)


def full_like(array: jax.Array, value: int, dtype: jax.typing.DTypeLike) -> jax.Array:
    """A constant with an array's shape, split over devices as the array is.

    It is computed from the array: outside `jax.set_mesh` JAX 0.12 takes no other sharding for it.
    """
    return lax.convert_element_type(lax.ne(array, array), dtype) * 0 + jnp.asarray(value, dtype)


def result_like(
    array: jax.Array, shape: Sequence[int], dtype: jax.typing.DTypeLike
) -> jax.ShapeDtypeStruct:
    """What a kernel is told about a result, which differs where its argument does."""
    kind = jax.typeof(array).manual_axis_type
    return jax.ShapeDtypeStruct(tuple(shape), dtype, manual_axis_type=kind)
