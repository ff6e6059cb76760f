"""gather: (u, offsets) -> y, the element of each window that its offset names."""

from __future__ import annotations

import jax

from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels.common import comparable
from jaxunpool.kernels.xla import windows

# Up to here every element is compared; beyond, fetching one per window costs less.
COMPARED_VOLUME = 32


def gather(u: jax.Array, offsets: jax.Array, geometry: WindowGeometry) -> jax.Array:
    """One element per window; zero where the offset names none."""
    values, names = u.astype(comparable(u.dtype)), offsets.astype(jnp.int32)
    if geometry.volume > COMPARED_VOLUME:
        return _fetch(values, names, geometry).astype(u.dtype)
    values = windows.padded(values, geometry, 0)
    y = jnp.zeros(offsets.shape, values.dtype)
    for number in range(geometry.volume):
        taps = windows.taps(number, geometry.window_shape)
        y = jnp.where(names == number, windows.element(values, geometry, taps), y)
    return y.astype(u.dtype)


def _fetch(u: jax.Array, offsets: jax.Array, geometry: WindowGeometry) -> jax.Array:
    """XLA's gather, one element per window: its cost does not grow with the window."""
    positions = jnp.stack(geometry.positions(offsets), -1)
    # An offset outside its window must not read an element of the next one.
    positions = jnp.where(geometry.names_element(offsets)[..., None], positions, -1)
    spatial = tuple(axis % u.ndim for axis in geometry.axes)
    batching = tuple(axis for axis in range(u.ndim) if axis not in spatial)
    numbers = lax.GatherDimensionNumbers(
        offset_dims=(),
        collapsed_slice_dims=spatial,
        start_index_map=spatial,
        operand_batching_dims=batching,
        start_indices_batching_dims=batching,
    )
    return lax.gather(
        u, positions, numbers, (1,) * u.ndim, mode=lax.GatherScatterMode.FILL_OR_DROP, fill_value=0
    )
