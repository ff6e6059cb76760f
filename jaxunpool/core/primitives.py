"""The window primitives, with their derivatives and batching: each is another one of them.

| primitive             | derivative, and transpose               |
| --------------------- | --------------------------------------- |
| `select`              | `gather` at its own offsets             |
| `gather`, `"sum"`     | `scatter`, `"sum"`, and the other way   |
| `gather`, `"last"`    | `scatter`, `"last"`, and the other way  |
| `reduce`              | `replicate`                             |
| `replicate`           | `reduce`                                |

`gather` under `"last"` reads zero for a window whose element a later window names too. With a
pattern `w`, `sum(u * w * y)` over all elements of all windows is linear in each of three arrays;
`replicate`, `reduce` and `correlate` are its derivatives by `u`, `y` and `w`, so that one rule
serves all three.

Reverse mode of `select` is a `custom_vjp` whose residual is the offsets alone.
`implementation="xla"` goes around it, for forward mode.

Where offsets are packed, their only reader is a `jax.checkpoint` that unpacks them and gathers or
scatters: a derivative, of either mode and any order, unpacks them again and keeps the packed bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero, zero_from_primal
from jax.extend.core import Primitive
from jax.interpreters import ad, batching
from jax.sharding import NamedSharding, PartitionSpec

from jaxunpool.core import backends, lowering
from jaxunpool.core.backends import Implementation
from jaxunpool.core.calls import GIVES, TAKES, UNPOOL, Call
from jaxunpool.core.eager import eager
from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.geometry import Plane, WindowGeometry
from jaxunpool.core.packing import Packing
from jaxunpool.kernels import varying
from jaxunpool.kernels.common import accumulator

PREFIX = "jaxunpool_"
PRIMITIVES = {name: Primitive(PREFIX + name) for name in TAKES}
PRIMITIVES["select"].multiple_results = True


def bind(call: Call, *arrays: jax.Array | None, lead: int = 0) -> Any:
    """A call on arrays that are made to agree on their types first.

    `lead`: so many leading dimensions have a pattern for each of their elements (under `vmap`).

    Raises:
        NotImplementedError: the backend was asked for by name and does not serve the call.
    """
    agreed = _agreed(call, [array for array in arrays if array is not None])
    backends.check_serves(call, agreed, lead)
    return PRIMITIVES[call.primitive].bind(*agreed, call=call, lead=lead)


def _agreed(call: Call, arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """The arrays resharded to one Explicit sharding, which results and gradients then have too."""
    # The transpose of this pcast sums the gradient of a replicated array over the devices.
    axes = frozenset[str]().union(*map(varying.axes, arrays))
    mesh, spec, _ = lowering.explicit(call, arrays)
    return [
        varying.along(array, axes)
        if mesh is None or kind == "w"
        else lowering.reshard(varying.along(array, axes), mesh, spec)
        for array, kind in zip(arrays, TAKES[call.primitive])
    ]


def _types(*avals: Any, call: Call, lead: int) -> Any:
    """Abstract evaluation: shapes and types of the results."""
    g: Any = call.geometry
    like = avals[0].update(weak_type=False)
    if call.primitive == "gather":
        return avals[1].update(dtype=like.dtype, weak_type=False)
    if call.primitive in UNPOOL:
        return like.update(shape=g.unpooled_shape(like.shape))
    if call.primitive == "correlate":
        s, shape = like.sharding, (*like.shape[:lead], *g.window_shape)
        spec = PartitionSpec(*s.spec[:lead], *[None] * g.ndim)
        dtype = jnp.dtype(accumulator(like.dtype))
        return like.update(shape=shape, dtype=dtype, sharding=NamedSharding(s.mesh, spec))
    y = like.update(shape=g.pooled_shape(like.shape))
    return [y, y.update(dtype=g.offset_dtype)] if call.primitive == "select" else y


# Derivatives


def _zero(result: Any) -> Any:
    return ad.Zero(jax.typeof(result).to_tangent_aval())


def _select_jvp(primals: Any, tangents: Any, *, call: Call, lead: int) -> Any:
    y, offsets = bind(call, *primals)
    (dx,) = tangents
    gather = call.to("gather", duplicates="sum")
    dy = _zero(y) if type(dx) is ad.Zero else bind(gather, dx, offsets)
    return [y, offsets], [dy, _zero(offsets)]


def _linear_jvp(primals: Any, tangents: Any, *, call: Call, lead: int) -> Any:
    """A term for each array with a tangent: the call is linear in every array of floats."""
    out = bind(call, *primals, lead=lead)
    terms = [
        bind(call, *primals[:k], tangent, *primals[k + 1 :], lead=lead)
        for k, tangent in enumerate(tangents)
        if type(tangent) is not ad.Zero
    ]
    return out, functools.reduce(jnp.add, terms) if terms else _zero(out)


def _indexed_transpose(ct: Any, array: Any, indices: Any, *, call: Call, lead: int) -> Any:
    other = {"gather": "scatter", "scatter": "gather"}[call.primitive]
    if type(ct) is ad.Zero:
        return [None, None]
    return [bind(call.to(other, duplicates=call.duplicates), ct, indices), None]


def _weighted_transpose(ct: Any, *arrays: Any, call: Call, lead: int) -> Any:
    """The cotangent of one of `u`, `p` and `w`, computed from the other two."""
    if type(ct) is ad.Zero:
        return [None] * len(arrays)
    kinds = TAKES[call.primitive][: len(arrays)]
    have = dict(zip(kinds, arrays)) | {GIVES[call.primitive]: ct}

    def solve(kind: str) -> jax.Array:
        name = {"u": "replicate", "p": "reduce", "w": "correlate"}[kind]
        there = [have[k] for k in TAKES[name] if k in have]
        other = call.to(name, weighting=call.weighting, divisor=call.divisor)
        result = bind(other, *there, lead=lead)
        return result.astype(have[kind].aval.dtype)

    return [solve(k) if ad.is_undefined_primal(a) else None for k, a in zip(kinds, arrays)]


def _batch(arrays: Any, dims: Any, *, call: Call, lead: int) -> Any:
    """`vmap` is one more leading dimension, whose elements may have a pattern each."""
    kinds = TAKES[call.primitive]
    size = next(a.shape[d] for a, d in zip(arrays, dims) if d is not None)
    each = lead > 0 or call.primitive == "correlate"
    each |= any(kind == "w" and d is not None for kind, d in zip(kinds, dims))
    front = [
        array if kind == "w" and not each else batching.bdim_at_front(array, d, size)
        for array, d, kind in zip(arrays, dims, kinds)
    ]
    out = bind(call, *front, lead=lead + each)
    return out, [0] * len(out) if isinstance(out, list) else 0


for _name, _primitive in PRIMITIVES.items():
    _primitive.def_abstract_eval(_types)
    _primitive.def_impl(functools.partial(eager, _primitive))
    batching.primitive_batchers[_primitive] = _batch
    ad.primitive_jvps[_primitive] = _select_jvp if _name == "select" else _linear_jvp
    if _name != "select":
        ad.primitive_transposes[_primitive] = (
            _indexed_transpose if _name in ("gather", "scatter") else _weighted_transpose
        )
    lowering.register(_primitive, lowering.rule)


# The primitives as functions


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _select(call: Call, x: jax.Array) -> list[jax.Array]:
    return bind(call, x)


def _select_fwd(call: Call, x: Any) -> Any:
    y, offsets = bind(call, x.value)
    return [y, offsets], offsets


def _select_bwd(call: Call, offsets: jax.Array, cotangents: Any) -> Any:
    if isinstance(cotangents[0], SymbolicZero):
        return (None,)
    return (bind(call.to("scatter", duplicates="sum"), cotangents[0], offsets),)


# Zeros stay symbolic, so that programs hold none for the offsets, in a type that few tools know.
_select.defvjp(_select_fwd, _select_bwd, symbolic_zeros=True)
# A program, so that an eager gradient makes the zeros of the offsets on the device.
_select_program = jax.jit(_select, static_argnums=0)


def select(
    x: jax.Array, geometry: WindowGeometry, implementation: Implementation
) -> tuple[jax.Array, jax.Array]:
    """Window maximum and its offset."""
    call = Call("select", geometry, implementation)
    if implementation == "xla" or not isinstance(x, jax.core.Tracer):  # nothing to differentiate
        y, offsets = bind(call, x)
    else:  # resharded before the custom_vjp, which wants a gradient of the type of its argument
        y, offsets = _select_program(call, *_agreed(call, [x]))
    return y, offsets


def maximum(x: jax.Array, geometry: WindowGeometry, implementation: Implementation) -> jax.Array:
    """Window maximum alone: an eager program in which XLA leaves the offsets out."""
    if isinstance(x, jax.core.Tracer):
        return select(x, geometry, implementation)[0]
    return _maximum(Call("select", geometry, implementation))(x)


@functools.lru_cache(maxsize=4096)
def _maximum(call: Call) -> Any:
    return jax.jit(lambda x: bind(call, x)[0])


@functools.partial(jax.jit, static_argnums=(0, 1))
@functools.partial(jax.checkpoint, static_argnums=(0, 1))
def _at_packed(call: Call, packing: Packing, array: jax.Array, packed: jax.Array) -> jax.Array:
    """A gather or scatter at packed offsets."""
    return bind(call, array, packing.unpack(packed))


def _at(call: Call, array: jax.Array, indices: jax.Array, packing: Packing | None) -> jax.Array:
    """A gather or scatter at indices that may be packed."""
    if packing is None:
        return bind(call, array, indices)
    return _at_packed(call, packing, array, indices)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _select_packed(call: Call, packing: Packing, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y, offsets = bind(call, x)
    # So that XLA does not pack later, with what reads the maxima, and keep offsets till then.
    return lax.optimization_barrier((y, packing.pack(offsets)))


@_select_packed.defjvp
def _select_packed_jvp(call: Call, packing: Packing, primals: Any, tangents: Any) -> Any:
    y, packed = _select_packed(call, packing, *primals)
    dy = _at_packed(call.to("gather", duplicates="sum"), packing, *tangents, packed)
    return (y, packed), (dy, zero_from_primal(packed))


_select_packed_program = jax.jit(_select_packed, static_argnums=(0, 1))


def select_packed(
    x: jax.Array, geometry: WindowGeometry, implementation: Implementation
) -> tuple[jax.Array, jax.Array, Packing]:
    """Window maximum and its offset, packed: the derivative keeps nothing else."""
    call = Call("select", geometry, implementation)
    packing = Packing.for_pooled(geometry.pooled_shape(x.shape), geometry)
    y, packed = _select_packed_program(call, packing, *_agreed(call, [x]))
    return y, packed, packing


def gather(
    u: jax.Array,
    indices: jax.Array,
    plane: Plane,
    implementation: Implementation,
    packing: Packing | None = None,
) -> jax.Array:
    """The element each index names, zero where it names none."""
    return _at(Call("gather", plane, implementation, duplicates="sum"), u, indices, packing)


def scatter(
    y: jax.Array,
    indices: jax.Array,
    plane: Plane,
    duplicates: str,
    implementation: Implementation,
    packing: Packing | None = None,
) -> jax.Array:
    """Each value at the element its index names, zero elsewhere."""
    call = Call("scatter", plane, implementation, duplicates=duplicates)
    return _at(call, y, indices, packing)


@functools.partial(jax.jit, static_argnums=(1, 2))
def mark(offsets: jax.Array, geometry: WindowGeometry, implementation: Implementation) -> jax.Array:
    """Which elements some offset names."""
    ones = jnp.ones(offsets.shape, jnp.uint8)
    return scatter(ones, offsets, geometry, "last", implementation).astype(jnp.int32) > 0


def reduce(
    u: jax.Array,
    geometry: WindowGeometry,
    implementation: Implementation,
    weighting: str = "sum",
    divisor: int | None = None,
) -> jax.Array:
    """Weighted sum over each window, divided by a number."""
    call = Call("reduce", geometry, implementation, weighting=weighting, divisor=divisor)
    return bind(call, u)


def replicate(
    y: jax.Array,
    geometry: WindowGeometry,
    implementation: Implementation,
    weighting: str = "sum",
    pattern: jax.Array | None = None,
) -> jax.Array:
    """Weighted copies of each value in its window, added where windows meet."""
    return bind(Call("replicate", geometry, implementation, weighting=weighting), y, pattern)
