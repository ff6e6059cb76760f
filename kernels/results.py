"""What a kernel is told about its results."""

from __future__ import annotations

from collections.abc import Sequence

import jax


def result_like(
    array: jax.Array, shape: Sequence[int], dtype: jax.typing.DTypeLike
) -> jax.ShapeDtypeStruct:
    """An array that differs between the devices of a `shard_map` wherever an argument does."""
    axes = jax.typeof(array).manual_axis_type
    return jax.ShapeDtypeStruct(tuple(shape), dtype, manual_axis_type=axes)
