"""The window primitives with their gradients, each of which is another one of them.

    primitive              gradient with respect to its array
    select                 scatter, "sum"
    gather                 scatter, "sum"
    gather, of winners     scatter, "last"
    scatter, "sum"         gather
    scatter, "last"        gather, of winners
    reduce                 replicate
    replicate              reduce

The residual of the first five is the offsets alone; they are integers and have no gradient. The
last two are linear and keep nothing, unless they have a pattern. `implementation="xla"` goes around
these rules: JAX then derives everything itself, in forward mode too.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunpool import dispatch
from jaxunpool.dispatch import Implementation
from jaxunpool.geometry import Plane, WindowGeometry, along


def select(
    x: jax.Array, geometry: WindowGeometry, implementation: Implementation
) -> tuple[jax.Array, jax.Array]:
    """Window maximum and its offset."""
    return (dispatch.select if implementation == "xla" else _select)(x, geometry)


def gather(
    u: jax.Array, indices: jax.Array, plane: Plane, implementation: Implementation
) -> jax.Array:
    """The element each index names."""
    if implementation == "xla":
        return dispatch.gather(u, indices, plane)
    return _gather(u, indices, plane, "sum")


def scatter(
    y: jax.Array, indices: jax.Array, plane: Plane, duplicates: str, implementation: Implementation
) -> jax.Array:
    """Each value at the element its index names, zero elsewhere."""
    run = dispatch.scatter if implementation == "xla" else _scatter
    return run(y, indices, plane, duplicates)


def reduce(
    u: jax.Array,
    geometry: WindowGeometry,
    implementation: Implementation,
    weights: str = "sum",
    pattern: jax.Array | None = None,
) -> jax.Array:
    """Weighted sum over each window."""
    run = dispatch.reduce if implementation == "xla" else _reduce
    return run(u, pattern, geometry, weights)


def replicate(
    y: jax.Array,
    geometry: WindowGeometry,
    implementation: Implementation,
    weights: str = "sum",
    pattern: jax.Array | None = None,
) -> jax.Array:
    """Weighted copies of each value in its window, added where windows meet."""
    run = dispatch.replicate if implementation == "xla" else _replicate
    return run(y, pattern, geometry, weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _select(x: jax.Array, geometry: WindowGeometry) -> tuple[jax.Array, jax.Array]:
    return dispatch.select(x, geometry)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _scatter(y: jax.Array, indices: jax.Array, plane: Plane, duplicates: str) -> jax.Array:
    return dispatch.scatter(y, indices, plane, duplicates)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _gather(u: jax.Array, indices: jax.Array, plane: Plane, duplicates: str) -> jax.Array:
    """The transpose of `_scatter`: under `"last"` an overwritten writer reads zero."""
    y = dispatch.gather(u, indices, plane)
    if duplicates == "sum" or (isinstance(plane, WindowGeometry) and not plane.overlaps):
        return y
    return jnp.where(_wins(indices, plane), y, jnp.zeros((), y.dtype))


def _wins(indices: jax.Array, plane: Plane) -> jax.Array:
    """Which writers are the last at their element: the ones that find their own label there."""
    sizes = [indices.shape[axis] for axis in plane.axes]
    if isinstance(plane, WindowGeometry):  # only that many windows can meet in one element
        sizes = [-(-span // stride) for span, stride in zip(plane.spans, plane.strides)]
    weights = [math.prod(sizes[i + 1 :]) for i in range(plane.ndim)]
    label: Any = sum(
        along(np.arange(indices.shape[axis]) % size * weight, axis)
        for axis, size, weight in zip(plane.axes, sizes, weights)
    )
    labels = jnp.broadcast_to(label.astype(np.min_scalar_type(math.prod(sizes))), indices.shape)
    left = dispatch.scatter(labels, indices, plane, "last")
    return dispatch.gather(left, indices, plane) == labels


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _reduce(
    u: jax.Array, pattern: jax.Array | None, geometry: WindowGeometry, weights: str
) -> jax.Array:
    return dispatch.reduce(u, pattern, geometry, weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _replicate(
    y: jax.Array, pattern: jax.Array | None, geometry: WindowGeometry, weights: str
) -> jax.Array:
    return dispatch.replicate(y, pattern, geometry, weights)


def _select_fwd(x, geometry):
    y, offsets = _select(x, geometry)
    return (y, offsets), offsets


def _select_bwd(geometry, offsets, cotangents):
    return (_scatter(cotangents[0], offsets, geometry, "sum"),)


_select.defvjp(_select_fwd, _select_bwd)
_scatter.defvjp(
    lambda y, indices, plane, duplicates: (_scatter(y, indices, plane, duplicates), indices),
    lambda plane, duplicates, indices, du: (_gather(du, indices, plane, duplicates), None),
)
_gather.defvjp(
    lambda u, indices, plane, duplicates: (_gather(u, indices, plane, duplicates), indices),
    lambda plane, duplicates, indices, dy: (_scatter(dy, indices, plane, duplicates), None),
)
_reduce.defvjp(
    lambda u, pattern, geometry, weights: (
        _reduce(u, pattern, geometry, weights),
        None if pattern is None else (pattern, u),
    ),
    lambda geometry, weights, kept, dy: (
        _replicate(dy, kept and kept[0], geometry, weights),
        kept and dispatch.correlate(kept[1], dy, geometry).astype(kept[0].dtype),
    ),
)
_replicate.defvjp(
    lambda y, pattern, geometry, weights: (
        _replicate(y, pattern, geometry, weights),
        None if pattern is None else (pattern, y),
    ),
    lambda geometry, weights, kept, du: (
        _reduce(du, kept and kept[0], geometry, weights),
        kept and dispatch.correlate(du, kept[1], geometry).astype(kept[0].dtype),
    ),
)
