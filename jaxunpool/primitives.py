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

from jaxunpool.dispatch import Call, Implementation
from jaxunpool.geometry import Plane, WindowGeometry, along
from jaxunpool.sharding import correlate, place, run


def select(
    x: jax.Array, geometry: WindowGeometry, implementation: Implementation
) -> tuple[jax.Array, jax.Array]:
    """Window maximum and its offset."""
    call = Call("select", geometry, implementation)
    return (run if implementation == "xla" else _select_program)(call, *place(call, x))


def gather(
    u: jax.Array, indices: jax.Array, plane: Plane, implementation: Implementation
) -> jax.Array:
    """The element each index names."""
    call = Call("gather", plane, implementation)
    u, indices = place(call, u, indices)
    return run(call, u, indices) if implementation == "xla" else _gather(call, "sum", u, indices)


def scatter(
    y: jax.Array, indices: jax.Array, plane: Plane, duplicates: str, implementation: Implementation
) -> jax.Array:
    """Each value at the element its index names, zero elsewhere."""
    call = Call("scatter", plane, implementation, duplicates=duplicates)
    return (run if implementation == "xla" else _scatter)(call, *place(call, y, indices))


@functools.partial(jax.jit, static_argnums=(1, 2))
def mark(offsets: jax.Array, geometry: WindowGeometry, implementation: Implementation) -> jax.Array:
    """Which elements some offset names."""
    ones = jnp.ones(offsets.shape, jnp.uint8)
    return scatter(ones, offsets, geometry, "last", implementation) > 0


def reduce(
    u: jax.Array,
    geometry: WindowGeometry,
    implementation: Implementation,
    weights: str = "sum",
    pattern: jax.Array | None = None,
) -> jax.Array:
    """Weighted sum over each window."""
    call = Call("reduce", geometry, implementation, weights=weights)
    return (run if implementation == "xla" else _reduce)(call, *place(call, u, pattern))


def replicate(
    y: jax.Array,
    geometry: WindowGeometry,
    implementation: Implementation,
    weights: str = "sum",
    pattern: jax.Array | None = None,
) -> jax.Array:
    """Weighted copies of each value in its window, added where windows meet."""
    call = Call("replicate", geometry, implementation, weights=weights)
    return (run if implementation == "xla" else _replicate)(call, *place(call, y, pattern))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _select(call: Call, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return run(call, x)


# A program, so that an eager gradient makes the zeros of the offsets on the device.
_select_program = jax.jit(_select, static_argnums=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scatter(call: Call, y: jax.Array, indices: jax.Array) -> jax.Array:
    return run(call, y, indices)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather(call: Call, duplicates: str, u: jax.Array, indices: jax.Array) -> jax.Array:
    """The transpose of `_scatter`: under `"last"` an overwritten writer reads zero."""
    plane = call.geometry
    if duplicates == "sum" or (isinstance(plane, WindowGeometry) and not plane.overlaps):
        return run(call, u, indices)
    return _gather_of_winners(call, u, indices)


@functools.partial(jax.jit, static_argnums=0)
def _gather_of_winners(call: Call, u: jax.Array, indices: jax.Array) -> jax.Array:
    y = run(call, u, indices)
    return jnp.where(_wins(indices, call.geometry), y, jnp.zeros((), y.dtype))


def _wins(indices: jax.Array, plane: Plane) -> jax.Array:
    """Which writers are the last at their element: the ones that find their own label there."""
    sizes = [indices.shape[axis] for axis in plane.axes]
    numbers = [along(indices, axis) for axis in plane.axes]
    if isinstance(plane, WindowGeometry):
        # Only so many windows can meet in one element; powers of two make remainders cheap.
        sizes = [1 << (axis.most_covers - 1).bit_length() for axis in plane.spatial]
        numbers = [number & (size - 1) for number, size in zip(numbers, sizes)]
    weights = [math.prod(sizes[i + 1 :]) for i in range(plane.ndim)]
    label: Any = sum(number * weight for number, weight in zip(numbers, weights))
    labels = label.astype(np.min_scalar_type(math.prod(sizes)))
    call = Call("scatter", plane, duplicates="last")
    labels, indices = place(call, labels, indices)
    return run(call.to("gather"), run(call, labels, indices), indices) == labels


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _reduce(call: Call, u: jax.Array, pattern: jax.Array | None) -> jax.Array:
    return run(call, u, pattern)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _replicate(call: Call, y: jax.Array, pattern: jax.Array | None) -> jax.Array:
    return run(call, y, pattern)


def _select_fwd(call, x):
    y, offsets = _select(call, x)
    return (y, offsets), offsets


def _select_bwd(call, offsets, cotangents):
    return (_scatter(call.to("scatter", duplicates="sum"), cotangents[0], offsets),)


_select.defvjp(_select_fwd, _select_bwd)
_scatter.defvjp(
    lambda call, y, indices: (_scatter(call, y, indices), indices),
    lambda call, indices, du: (_gather(call.to("gather"), call.duplicates, du, indices), None),
)
_gather.defvjp(
    lambda call, duplicates, u, indices: (_gather(call, duplicates, u, indices), indices),
    lambda call, duplicates, indices, dy: (
        _scatter(call.to("scatter", duplicates=duplicates), dy, indices),
        None,
    ),
)
_reduce.defvjp(
    lambda call, u, pattern: (
        _reduce(call, u, pattern),
        None if pattern is None else (pattern, u),
    ),
    lambda call, kept, dy: (
        _replicate(call.to("replicate", weights=call.weights), dy, kept and kept[0]),
        kept and correlate(kept[1], dy, call.geometry).astype(kept[0].dtype),
    ),
)
_replicate.defvjp(
    lambda call, y, pattern: (
        _replicate(call, y, pattern),
        None if pattern is None else (pattern, y),
    ),
    lambda call, kept, du: (
        _reduce(call.to("reduce", weights=call.weights), du, kept and kept[0]),
        kept and correlate(du, kept[1], call.geometry).astype(kept[0].dtype),
    ),
)
