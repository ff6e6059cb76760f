"""Maxima over windows that are not evenly spaced: each has a start and a stop of its own."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxunpool import primitives
from jaxunpool.dispatch import Implementation
from jaxunpool.geometry import Plane

# Up to here the elements along one axis are unrolled; beyond, a loop keeps the program small.
UNROLLED_WIDTH = 8

Bounds = tuple[jax.Array, jax.Array]


def select(
    x: jax.Array,
    bounds: Sequence[Bounds],
    widths: Sequence[int],
    plane: Plane,
    implementation: Implementation,
) -> tuple[jax.Array, jax.Array]:
    """Maximum of each window and its flat position: the first of equals, the last NaN.

    Args:
        x: what is pooled.
        bounds: per spatial axis, first element and the one after the last of each window: integers
            that broadcast to the result along all axes but this one.
        widths: per spatial axis, as many elements as no window exceeds.
        plane: the spatial grid of `x`.
        implementation: `"xla"` for plain JAX.
    """
    bounds, widths = tuple(bounds), tuple(widths)
    if implementation != "xla":
        return _select(x, bounds, widths, plane)
    _, flat = _passes(lax.stop_gradient(x), bounds, widths, plane)
    return primitives.gather(x, flat, plane, implementation), flat


def aligned(values: jax.typing.ArrayLike, axis: int, ndim: int) -> jax.Array:
    """A vector of integers along one axis of an array of `ndim` axes."""
    shape = [1] * ndim
    shape[axis] = -1
    return jnp.asarray(values, jnp.int32).reshape(shape)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _passes(
    x: jax.Array, bounds: tuple[Bounds, ...], widths: tuple[int, ...], plane: Plane
) -> tuple[jax.Array, jax.Array]:
    """One axis after the other, the last first: the first maximum of the first best row wins."""
    y, flat, stride = x, None, 1
    for i in reversed(range(plane.ndim)):
        y, flat = _pass(y, flat, *bounds[i], widths[i], plane.axes[i], stride)
        stride *= plane.input_shape[i]
    assert flat is not None
    return y, flat


def _pass(
    x: jax.Array,
    flat: jax.Array | None,
    start: jax.Array,
    stop: jax.Array,
    width: int,
    axis: int,
    stride: int,
) -> tuple[jax.Array, jax.Array]:
    def candidate(tap: int | jax.Array) -> tuple[jax.Array, jax.Array]:
        # A window that is done offers its last element again, which changes nothing.
        position = jnp.minimum(start + tap, stop - 1).astype(jnp.int32)
        value = _take(x, position, axis)
        carried = 0 if flat is None else _take(flat, position, axis)
        return value, jnp.broadcast_to(carried + position * stride, value.shape)

    def update(tap: int | jax.Array, best: tuple[jax.Array, jax.Array]):
        value, place = candidate(tap)
        take = value > best[0]
        if jnp.issubdtype(x.dtype, jnp.floating):
            take |= value != value
        return jnp.where(take, value, best[0]), jnp.where(take, place, best[1])

    if width > UNROLLED_WIDTH:
        return lax.fori_loop(1, width, update, candidate(0))
    return functools.reduce(lambda best, tap: update(tap, best), range(1, width), candidate(0))


def _take(x: jax.Array, position: jax.Array, axis: int) -> jax.Array:
    """Elements at positions along an axis; the positions may differ along other axes."""
    if position.size == position.shape[axis]:
        return jnp.take(x, position.ravel(), axis % x.ndim, mode="clip")
    return jnp.take_along_axis(x, position, axis % x.ndim, mode="clip")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _select(
    x: jax.Array, bounds: tuple[Bounds, ...], widths: tuple[int, ...], plane: Plane
) -> tuple[jax.Array, jax.Array]:
    return _passes(x, bounds, widths, plane)


def _select_fwd(x, bounds, widths, plane):
    y, flat = _select(x, bounds, widths, plane)
    return (y, flat), flat


def _select_bwd(widths, plane, flat, cotangents):
    return primitives.scatter(cotangents[0], flat, plane, "sum", None), None


_select.defvjp(_select_fwd, _select_bwd)
