"""gather: (u, offsets) -> y, the element of each window that its offset names."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from jax import lax

from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels.xla import regions, windows

# Up to here every element is compared; beyond, fetching one per window costs less.
COMPARED_VOLUME = 32


def gather(
    u: jax.Array, offsets: jax.Array, geometry: WindowGeometry, *, borders_apart: bool = True
) -> jax.Array:
    """One element per window; zero where the offset names none."""
    if geometry.volume > COMPARED_VOLUME:
        return _fetch(u, offsets, geometry)
    axes, sizes = geometry.axes, geometry.output_shape
    axis_numbers = range(geometry.ndim)
    inner = [geometry.spatial[i].interior if borders_apart else (0, sizes[i]) for i in axis_numbers]

    def compute(region: regions.Region) -> tuple[jax.Array]:
        values = regions.padded_slice(u, axes, windows.reach(geometry, axis_numbers, region), 0)
        wanted = regions.padded_slice(offsets, axes, region, 0)
        y = jnp.zeros(wanted.shape, u.dtype)
        for offset, taps in enumerate(itertools.product(*map(range, geometry.window_shape))):
            element = windows.element(values, geometry, axis_numbers, taps, region)
            y = jnp.where(wanted == offset, element, y)
        return (y,)

    # Where windows overlap, the gradient of "last" compares two gathers. Fused into that comparison
    # they would be recomputed.
    fence = borders_apart and geometry.overlaps
    return regions.fill(compute, inner, sizes, axes, fence=fence)[0]


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
