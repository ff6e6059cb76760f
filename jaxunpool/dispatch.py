"""Which implementation of a primitive runs where.

| implementation | platform | chosen by `None` | because |
| --- | --- | --- | --- |
| `xla`, borders apart | CPU | on CPU | a padded copy of the input costs more than the pooling |
| `xla`, padded | any other | elsewhere | there XLA fuses the padding: one kernel instead of nine |
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
from jax import lax

from jaxunpool.geometry import Plane, WindowGeometry, check_choice
from jaxunpool.kernels import xla

Implementation = Literal["xla", "mosaic_gpu", "mosaic_tpu"] | None

IMPLEMENTATIONS = (None, "xla", "mosaic_gpu", "mosaic_tpu")


def check_implementation(implementation: Implementation) -> Implementation:
    """Refuse an unknown name (ValueError) or one without kernels yet (NotImplementedError)."""
    check_choice("implementation", implementation, IMPLEMENTATIONS)
    if implementation not in (None, "xla"):
        raise NotImplementedError(
            f"implementation={implementation!r}: this version has no kernels for it;"
            " None and 'xla' run on every platform"
        )
    return implementation


@functools.partial(jax.jit, static_argnums=1)
def select(x: jax.Array, geometry: WindowGeometry) -> tuple[jax.Array, jax.Array]:
    """Window maximum and its offset."""
    return _by_platform(xla.select, geometry)(x)


@functools.partial(jax.jit, static_argnums=2)
def gather(u: jax.Array, indices: jax.Array, plane: Plane) -> jax.Array:
    """The element each offset (into a window) or flat index (into a bare plane) names."""
    if isinstance(plane, WindowGeometry):
        return _by_platform(xla.gather, plane)(u, indices)
    return xla.gather_flat(u, indices, plane.axes)


@functools.partial(jax.jit, static_argnums=(2, 3))
def scatter(y: jax.Array, indices: jax.Array, plane: Plane, duplicates: str) -> jax.Array:
    """Each value at the element its offset or flat index names, zero elsewhere."""
    if isinstance(plane, WindowGeometry):
        return _by_platform(xla.scatter, plane, duplicates=duplicates)(y, indices)
    return xla.scatter_flat(y, indices, plane.unpooled_shape(y.shape), plane.axes, duplicates)


@functools.partial(jax.jit, static_argnums=(2, 3))
def reduce(
    u: jax.Array, pattern: jax.Array | None, geometry: WindowGeometry, weights: str
) -> jax.Array:
    """Weighted sum over each window."""
    return _by_platform(xla.reduce, geometry, weights=weights)(u, pattern)


@functools.partial(jax.jit, static_argnums=(2, 3))
def replicate(
    y: jax.Array, pattern: jax.Array | None, geometry: WindowGeometry, weights: str
) -> jax.Array:
    """Weighted copies into each window, added where windows meet."""
    return _by_platform(xla.replicate, geometry, weights=weights)(y, pattern)


@functools.partial(jax.jit, static_argnums=2)
def correlate(u: jax.Array, y: jax.Array, geometry: WindowGeometry) -> jax.Array:
    """Per element of the window, the sum over all windows of the two arrays' product."""
    return xla.correlate(u, y, geometry)


def fence(arrays: tuple[jax.Array, ...], axis: int) -> tuple[jax.Array, ...]:
    """The same arrays, which XLA does not compute again for everything that reads them.

    An optimization barrier; on CPU, where that is not enough before jax 0.11, the last row along an
    axis is written again in a loop of two steps.
    """
    rows = [lax.slice_in_dim(a, a.shape[axis] - 1, None, axis=axis) for a in arrays]

    def write(_: Any, arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(
            lax.dynamic_update_slice_in_dim(a, row, a.shape[axis] - 1, axis)
            for a, row in zip(arrays, rows)
        )

    return lax.platform_dependent(
        arrays, cpu=lambda a: lax.fori_loop(0, 2, write, a), default=lax.optimization_barrier
    )


def _by_platform(kernel: Callable, geometry: WindowGeometry, **options: Any) -> Callable:
    """A kernel of the XLA backend, formulated for the platform it is lowered for."""
    kernel = functools.partial(kernel, geometry=geometry, **options)
    apart, padded = (functools.partial(kernel, borders_apart=flag) for flag in (True, False))
    return lambda *arrays: lax.platform_dependent(*arrays, cpu=apart, default=padded)
