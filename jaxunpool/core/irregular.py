"""Maxima and means over windows that are not evenly spaced: each has a start and a stop.

For maxima, windows of one size are pooled at every position first (stride 1, no gather) and then
picked out at their starts; windows of several sizes are compared element by element, one axis after
the other.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import batching

from jaxunpool.core import backends, lowering, primitives
from jaxunpool.core.backends import Implementation, check_plain
from jaxunpool.core.calls import Call
from jaxunpool.core.carriers import carried, in_parts
from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.geometry import Plane, WindowGeometry
from jaxunpool.kernels import varying
from jaxunpool.kernels.common import accumulator, comparable

# Up to here the elements along one axis are unrolled; beyond, a loop keeps the program small.
UNROLLED_WIDTH = 8

Bounds = tuple[jax.Array, ...]


def select(
    x: jax.Array,
    starts: Sequence[jax.Array],
    stops: Sequence[jax.Array] | None,
    widths: Sequence[int],
    plane: Plane,
    implementation: Implementation,
) -> tuple[jax.Array, jax.Array]:
    """Maximum of each window and its flat position: the first of equals, the last NaN.

    Args:
        x: what is pooled.
        starts: per spatial axis, the first element of each window: integers that broadcast to the
            result along all axes but this one.
        stops: the elements after the last ones; None: all windows are as wide as `widths`.
        widths: per spatial axis, as many elements as no window exceeds.
        plane: the spatial grid of `x`.
        implementation: `"xla"` for plain JAX.
    """
    check_plain(implementation, "pooling over uneven windows")
    widths = tuple(widths)
    # Resharded before the custom_vjp, which wants a gradient of the type of its argument.
    x, *bounds = lowering.agreed([x, *starts, *(stops or ())], plane)
    starts, stops = tuple(bounds[: plane.ndim]), stops and tuple(bounds[plane.ndim :])
    if implementation != "xla":
        return _select_program(x, starts, stops, widths, plane)
    _, flat = _find(lax.stop_gradient(x), starts, stops, widths, plane, implementation)
    return primitives.gather(x, flat, plane, implementation), flat


def aligned(values: jax.typing.ArrayLike, axis: int, ndim: int) -> jax.Array:
    """A vector of integers along one axis of an array of `ndim` axes."""
    shape = [1] * ndim
    shape[axis] = -1
    return jnp.asarray(values, jnp.int32).reshape(shape)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _find(
    x: jax.Array,
    starts: Bounds,
    stops: Bounds | None,
    widths: tuple[int, ...],
    plane: Plane,
    implementation: Implementation = None,
) -> tuple[jax.Array, jax.Array]:
    call = Call("uneven", plane, implementation)
    y, flat = UNEVEN.bind(x, *starts, *(stops or ()), call=call, widths=widths)
    return y, flat


# One pass where a backend has a kernel for it, and else plain JAX.
UNEVEN = Primitive("jaxunpool_uneven")
UNEVEN.multiple_results = True


@UNEVEN.def_impl
def plain(x: jax.Array, *bounds: jax.Array, call: Call, widths: tuple[int, ...]) -> Any:
    """The uneven windows without a kernel."""
    plane = call.geometry
    starts, stops = bounds[: plane.ndim], bounds[plane.ndim :]
    if stops:
        find = functools.partial(_compare, widths=widths, plane=plane)
        return list(carried(find, call, x.dtype)(x, starts, stops))
    return list(_pick(x, starts, widths, plane, call.implementation))


@UNEVEN.def_abstract_eval
def _types(*avals: Any, **parameters: Any) -> Any:
    return jax.make_jaxpr(functools.partial(plain, **parameters))(*avals).out_avals


def _batch(arrays: Any, dims: Any, **parameters: Any) -> Any:
    size = next(array.shape[dim] for array, dim in zip(arrays, dims) if dim is not None)
    x, *bounds = (
        array[None] if dim is None else jnp.moveaxis(array, dim, 0)
        for array, dim in zip(arrays, dims)
    )
    x = jnp.broadcast_to(x, (size, *x.shape[1:]))
    return UNEVEN.bind(x, *bounds, **parameters), [0, 0]


def choose(
    arrays: Sequence[Any], platform: str, export: bool = False, *, call: Call, **_: Any
) -> backends.Choice:
    """What uneven windows run on; with plain JAX, windows of one size run as a `select` of all."""
    vectors = zip(arrays[1:], call.geometry.axes * 2)
    if not all(math.prod(array.shape) == array.shape[axis] for array, axis in vectors):
        return backends.Choice("xla", "no kernel takes windows for each plane")
    return backends.choose(call, arrays, platform, export=export)


def _kernel(
    backend: str, x: jax.Array, *bounds: jax.Array, call: Call, widths: tuple[int, ...]
) -> Any:
    starts, stops = bounds[: call.geometry.ndim], bounds[call.geometry.ndim :]
    stops = stops or tuple(start + width for start, width in zip(starts, widths))
    return list(backends.kernel(call, [x], backend)(x, starts, stops))


batching.primitive_batchers[UNEVEN] = _batch
lowering.register(UNEVEN, lowering.kernel_or_plain(UNEVEN, choose, plain, _kernel))


def mean(
    x: jax.Array,
    starts: Sequence[jax.Array],
    stops: Sequence[jax.Array],
    widths: Sequence[int],
    plane: Plane,
) -> jax.Array:
    """Mean of each window, from its start to its stop along each axis; see `select`."""
    run = functools.partial(_mean, widths=tuple(widths), plane=plane)
    of_type = in_parts(run) if jnp.iscomplexobj(x) else run
    return lowering.by_partitioner(of_type, [x, *starts, *stops], plane)


@functools.partial(jax.jit, static_argnames=("widths", "plane"))
def _mean(x: jax.Array, *bounds: jax.Array, widths: tuple[int, ...], plane: Plane) -> jax.Array:
    """Sums along one axis after the other, divided once."""
    starts, stops = bounds[: plane.ndim], bounds[plane.ndim :]
    total = x.astype(accumulator(x.dtype))
    for start, stop, width, axis in zip(starts, stops, widths, plane.axes):
        total = _sums(total, start, stop, width, axis)
    counts = functools.reduce(operator.mul, [b - a for a, b in zip(starts, stops)])
    return (total / counts.astype(total.dtype)).astype(x.dtype)


def _sums(x: jax.Array, start: jax.Array, stop: jax.Array, width: int, axis: int) -> jax.Array:
    """Sums from each start to its stop, along one axis."""

    def element(tap: Any) -> jax.Array:
        value = _take(x, jnp.minimum(start + tap, stop - 1).astype(jnp.int32), axis)
        return jnp.where(start + tap < stop, value, jnp.zeros((), x.dtype))

    if width > UNROLLED_WIDTH:
        return lax.fori_loop(1, width, lambda tap, total: total + element(tap), element(0))
    return functools.reduce(jnp.add, map(element, range(width)))


def _pick(
    x: jax.Array,
    starts: Bounds,
    widths: tuple[int, ...],
    plane: Plane,
    implementation: str | None,
) -> tuple[jax.Array, jax.Array]:
    """Windows of one size, from those that start at every element."""
    dense = WindowGeometry.for_input(x.shape, widths, 1, data_format=plane.data_format)
    y, offsets = primitives.bind(Call("select", dense, implementation), x)
    for start, axis in zip(starts, plane.axes):
        y, offsets = _take(y, start, axis), _take(offsets, start, axis)
    rest, flat, stride = offsets.astype(jnp.int32), jnp.int32(0), 1
    for i in reversed(range(plane.ndim)):
        rest, tap = jnp.divmod(rest, widths[i])
        flat += (starts[i] + tap) * stride
        stride *= plane.input_shape[i]
    return y, flat


def _compare(
    x: jax.Array, starts: Bounds, stops: Bounds, widths: tuple[int, ...], plane: Plane
) -> tuple[jax.Array, jax.Array]:
    """One axis after the other, the last first: the first maximum of the first best row wins."""
    y, flat, stride = x.astype(comparable(x.dtype)), None, 1
    for i in reversed(range(plane.ndim)):
        best = _pass(y, flat, starts[i], stops[i], widths[i], plane.axes[i], stride)
        # Without a barrier XLA computes this pass again for each element that the next one reads.
        y, flat = lax.optimization_barrier(best)
        stride *= plane.input_shape[i]
    assert flat is not None
    return y.astype(x.dtype), flat


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
        # Past its end a window compares its last element again, which changes nothing.
        position = jnp.minimum(start + tap, stop - 1).astype(jnp.int32)
        value = _take(x, position, axis)
        carried = 0 if flat is None else _take(flat, position, axis)
        return value, carried + position * stride + varying.full_like(value, 0, jnp.int32)

    def update(tap: int | jax.Array, best: tuple[jax.Array, jax.Array]):
        value, flat = candidate(tap)
        take = value > best[0]
        if jnp.issubdtype(x.dtype, jnp.floating):
            take |= value != value
        return jnp.where(take, value, best[0]), jnp.where(take, flat, best[1])

    if width > UNROLLED_WIDTH:
        return lax.fori_loop(1, width, update, varying.together(*candidate(0)))
    return functools.reduce(lambda best, tap: update(tap, best), range(1, width), candidate(0))


def _take(x: jax.Array, position: jax.Array, axis: int) -> jax.Array:
    """Elements at positions along an axis; the positions may differ along other axes."""
    if position.size == position.shape[axis]:
        return jnp.take(x, position.ravel(), axis=axis % x.ndim, mode="clip")
    return jnp.take_along_axis(x, position, axis=axis % x.ndim, mode="clip")


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _select(
    x: jax.Array, starts: Bounds, stops: Bounds | None, widths: tuple[int, ...], plane: Plane
) -> tuple[jax.Array, jax.Array]:
    return _find(x, starts, stops, widths, plane)


# A program, so that an eager gradient makes the zeros of the positions on the device.
_select_program = jax.jit(_select, static_argnums=(3, 4))


def _select_fwd(x, starts, stops, widths, plane):
    starts, stops = jax.tree.map(lambda primal: primal.value, (starts, stops))
    y, flat = _select(x.value, starts, stops, widths, plane)
    return (y, flat), flat


def _select_bwd(widths, plane, flat, cotangents):
    if isinstance(cotangents[0], SymbolicZero):
        return None, None, None
    return primitives.scatter(cotangents[0], flat, plane, "sum", None), None, None


_select.defvjp(_select_fwd, _select_bwd, symbolic_zeros=True)
