"""Offsets of small windows in fewer bits than a byte."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from jaxunpool.core import lowering
from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels.common import comparable


@dataclasses.dataclass(frozen=True)
class Packing:
    """How values of 2 or 4 bits share bytes: neighbours along one axis, the first lowest.

    The axis keeps its place, and all others stay as they are: a part of an array along these, or a
    shard of it, is packed by itself. A shard along the axis itself has to hold whole bytes; where
    shards would not, over Explicit axes, the axis is not split.

    Attributes:
        bits: of each value.
        axis: along which values share a byte, counted from the end.
        size: number of values along it; what is left of the last byte is zero.
    """

    bits: int
    axis: int
    size: int

    @classmethod
    def for_pooled(cls, shape: tuple[int, ...], geometry: WindowGeometry) -> Packing:
        """The packing of offsets of a pooled shape.

        The axis is that of the channels, which networks have in multiples of four, or else a
        spatial one that leaves less of its last byte empty.

        Raises:
            ValueError: the window has more than 16 elements.
        """
        if geometry.volume > 16:
            raise ValueError(
                f"window_shape={geometry.window_shape}: expected at most 16 elements to pack, got"
                f" {geometry.volume}; PoolIndices have {geometry.offset_dtype.itemsize} byte(s) for"
                " each window already"
            )
        bits = 2 if geometry.volume <= 4 else 4
        spatial = geometry.axes
        channels = -1 if geometry.data_format == "channels_last" else spatial[0] - 1
        known = [axis for axis in (channels, *spatial) if isinstance(shape[axis], int)]
        if not known:
            raise ValueError(
                f"x: expected an axis to pack of known size, channels or a spatial one; got {shape}"
            )
        least = min(known, key=lambda axis: _ceil(shape[axis], 8 // bits) / max(shape[axis], 1))
        return cls(bits, least, shape[least])

    @property
    def largest(self) -> int:
        """The largest value there is room for."""
        return 2**self.bits - 1

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the bytes that values of a shape are packed into."""
        return _replaced(shape, self.axis, _ceil(self.size, 8 // self.bits))

    def unpacked_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the values that bytes of a shape hold."""
        return _replaced(shape, self.axis, self.size)

    def pack(self, values: jax.Array) -> jax.Array:
        """Unsigned integers in bytes; those without room become the largest that there is."""
        count = 8 // self.bits
        whole = self.size // count if self.size % count == 0 else 1  # bytes, or none to share out
        return _pack(lowering.gathered(values, [self.axis], [whole]), self)

    def unpack(self, packed: jax.Array) -> jax.Array:
        """The values, uint8."""
        return _unpack(lowering.gathered(packed, [self.axis], [self.size]), self)


def _ceil(size: Any, count: int) -> Any:
    return -(-size // count)


def _replaced(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    changed = list(shape)
    changed[axis] = size
    return tuple(changed)


# The values of a byte are an axis of their own, right of the packed one. Both loops are vectors, of
# sums in int32: not all tools that read programs have operations on bytes and on bits.


@functools.partial(jax.jit, static_argnums=1)
def _pack(values: jax.Array, how: Packing) -> jax.Array:
    count, axis = 8 // how.bits, values.ndim + how.axis
    values = values.astype(comparable(values.dtype))
    small = lax.min(values, jnp.asarray(how.largest, values.dtype)).astype(jnp.int32)
    *_, size = shape = how.packed_shape(values.shape)[: axis + 1]
    widths = [(0, 0, 0)] * values.ndim
    widths[axis] = (0, size * count - how.size, 0)
    apart = lax.pad(small, jnp.int32(0), widths).reshape(*shape, count, *values.shape[axis + 1 :])
    parts = [lax.index_in_dim(apart, k, axis + 1, keepdims=False) for k in range(count)]
    placed = [part * np.int32(1 << k * how.bits) for k, part in enumerate(parts)]
    return functools.reduce(jnp.add, placed).astype(jnp.uint8)


@functools.partial(jax.jit, static_argnums=1)
def _unpack(packed: jax.Array, how: Packing) -> jax.Array:
    count, axis = 8 // how.bits, packed.ndim + how.axis
    before, size, after = packed.shape[:axis], packed.shape[axis], packed.shape[axis + 1 :]
    shape = (*before, size, count, *after)
    apart = jnp.broadcast_to(jnp.expand_dims(packed.astype(jnp.int32), axis + 1), shape)
    rest = apart >> (lax.broadcasted_iota(jnp.int32, shape, axis + 1) * np.int32(how.bits))
    above = (rest >> np.int32(how.bits)) * np.int32(1 << how.bits)
    values = (rest - above).astype(jnp.uint8)
    together = values.reshape(*before, size * count, *after)
    return lax.slice_in_dim(together, 0, how.size, axis=axis)
