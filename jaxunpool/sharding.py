"""Primitives over more than one device: every device computes its own part of the result.

Leading dimensions and channels are independent of each other, so their shards need nothing from
elsewhere. Where windows divide the shards of a spatial axis, neighbours exchange what their windows
have in common, and each device pools its extended shard and keeps its own part. Only where they do
not is that axis gathered first.

| axes of the mesh        | how                                                        |
| ----------------------- | ---------------------------------------------------------- |
| Auto                    | `custom_partitioning`: XLA decides on a sharding, and asks |
| Explicit                | `shard_map` over the sharding in the arrays' types         |
| Manual (a `shard_map`)  | nothing: an array is one device's share already            |
| Auto, and `"xla"` named | left to XLA's partitioner: plain JAX all the way           |
| Auto beside the others  | the same: nobody asks there                                |
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from jaxunpool.dispatch import KERNELS, Call, on_device
from jaxunpool.geometry import Plane, WindowGeometry
from jaxunpool.kernels import varying, xla

# What a primitive takes and gives: (u)npooled and (p)ooled arrays, and perhaps the (w)eights of a
# window.
TAKES = {"select": "u", "gather": "up", "scatter": "pp", "reduce": "uw", "replicate": "pw"}
GIVES = {"select": "pp", "gather": "p", "scatter": "u", "reduce": "p", "replicate": "u"}

Names = tuple[str, ...]  # axes of the mesh that one dimension is split over
Parts = dict[int, tuple[Names, int]]  # per spatial axis that is split: over what, and in how many


@functools.partial(jax.jit, static_argnums=0)
def run(call: Call, *arguments: jax.Array | None) -> Any:
    """A call on arrays that may be sharded, batched by `vmap`, or both; a pattern may be None."""
    arrays = [array for array in arguments if array is not None]
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        call = dataclasses.replace(call, implementation=call.implementation or "xla")
    with jax.named_scope(f"jaxunpool.{call.primitive}"):
        if call.implementation == "xla":
            return _by_type(call, arrays, on_device)
        return _vmappable(call)(*arrays)


@functools.lru_cache(maxsize=1024)
def _vmappable(call: Call) -> Callable[..., Any]:
    """A call to which `vmap` is one leading dimension more."""

    @custom_vmap
    def program(*arrays: jax.Array) -> Any:
        return _by_type(call, arrays, _by_compiler)

    @program.def_vmap
    def batched(size: int, flags: Sequence[bool], *arrays: jax.Array) -> Any:
        kinds = TAKES[call.primitive]
        if any(flag and kind == "w" for flag, kind in zip(flags, kinds)):
            if call.implementation in KERNELS:
                raise NotImplementedError(
                    f"implementation={call.implementation!r}: no kernel takes a pattern for each"
                    " example, as vmap over pattern asks; None and 'xla' do"
                )
            plain = functools.partial(run, dataclasses.replace(call, implementation="xla"))
            result = jax.vmap(plain, [0 if flag else None for flag in flags])(*arrays)
        else:
            result = run(
                call,
                *(
                    a if flag or kind == "w" else jnp.broadcast_to(a, (size, *a.shape))
                    for a, flag, kind in zip(arrays, flags, kinds)
                ),
            )
        return result, jax.tree.map(lambda _: True, result)

    return program


def place(call: Call, *arrays: jax.Array | None) -> tuple[Any, ...]:
    """The arrays sharded as the call will have them, where their types say how they are sharded.

    What comes of them is sharded like them then, and so is what comes of that in a gradient.
    """
    # In a shard_map the gradient of what is the same on all devices is summed over them.
    axes = frozenset[str]().union(*(varying.axes(a) for a in arrays if a is not None))
    mesh, spec, _ = _explicit(call, arrays)

    def placed(array: jax.Array | None, kind: str) -> jax.Array | None:
        if array is None:
            return None
        array = varying.along(array, axes)
        return array if mesh is None or kind == "w" else _reshard(array, mesh, spec)

    return tuple(map(placed, arrays, TAKES[call.primitive]))


def _by_type(call: Call, arrays: Sequence[jax.Array], local: Callable[..., Any]) -> Any:
    """`local(call, *arrays)`, by `shard_map` if the arrays' types say how they are sharded."""
    mesh, spec, parts = _explicit(call, arrays)
    names = set() if mesh is None else _free_axes(mesh)
    if not names:
        return local(call, *arrays)
    specs = tuple(
        PartitionSpec() if kind == "w" else spec for kind in TAKES[call.primitive][: len(arrays)]
    )
    program = jax.shard_map(
        lambda *shards: _on_shard(call, parts, shards, local),
        mesh=mesh,
        in_specs=specs,
        out_specs=(spec, spec) if len(GIVES[call.primitive]) > 1 else spec,
        axis_names=names,
    )
    return program(*(_reshard(array, mesh, s) for array, s in zip(arrays, specs)))


@functools.partial(jax.jit, static_argnums=2)
def correlate(u: jax.Array, y: jax.Array, geometry: WindowGeometry) -> jax.Array:
    """Per element of the window, the sum over all windows of the two arrays' product."""
    plane = Plane(input_shape=geometry.input_shape, data_format=geometry.data_format)
    mesh, spec, _ = _explicit(Call("gather", plane), (u, y))  # planes stay whole
    names = set() if mesh is None else _free_axes(mesh)
    if not names:
        return xla.correlate(u, y, geometry)
    sums_over = [name for entry in spec for name in _names(entry)]
    program = jax.shard_map(
        lambda u, y: lax.psum(xla.correlate(u, y, geometry), sums_over),
        mesh=mesh,
        in_specs=(spec, spec),
        out_specs=PartitionSpec(),
        axis_names=names,
    )
    return program(_reshard(u, mesh, spec), _reshard(y, mesh, spec))


def _explicit(call: Call, arrays: Sequence[Any]) -> tuple[Any, PartitionSpec, Parts]:
    """The mesh with Explicit axes, or None, and what `_agree` says of the arrays on it."""
    there = [a for a, kind in zip(arrays, TAKES[call.primitive]) if a is not None and kind != "w"]
    shardings = [jax.typeof(array).sharding for array in there]
    mesh = next((s.mesh for s in shardings if s.mesh.explicit_axes), None)
    if mesh is None:
        return None, PartitionSpec(), {}
    return mesh, *_agree(call, mesh, [(a.shape, s) for a, s in zip(there, shardings)])


def _reshard(array: jax.Array, mesh: Any, spec: PartitionSpec) -> jax.Array:
    wanted = NamedSharding(mesh, spec)
    return array if jax.typeof(array).sharding == wanted else jax.sharding.reshard(array, wanted)


def _free_axes(mesh: Any) -> set[str]:
    """The Explicit axes of a mesh, without those a `vmap` in progress has taken for its own.

    JAX has no question for that, but `shard_map` refuses them.
    """
    free = set()
    for name in mesh.explicit_axes:
        nothing = jax.shard_map(tuple, mesh=mesh, in_specs=((),), out_specs=(), axis_names={name})
        with contextlib.suppress(ValueError):
            jax.eval_shape(nothing, ())
            free.add(name)
    return free


def _by_compiler(call: Call, *arrays: jax.Array) -> Any:
    """A call on arrays that XLA's partitioner may split."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.manual_axes and not mesh.are_all_axes_manual:
        # A shard_map over some axes: what is left is not asked about, so it has to be plain JAX.
        return on_device(
            dataclasses.replace(call, implementation=call.implementation or "xla"), *arrays
        )
    return _partitioned(call)(*arrays)


@functools.lru_cache(maxsize=1024)
def _partitioned(call: Call) -> Callable[..., Any]:
    """A call that XLA's partitioner asks how to split it.

    One for each: with a static argument `custom_partitioning` of jax 0.12 keeps tracers alive.
    """
    partitioned = custom_partitioning(functools.partial(on_device, call))
    partitioned.def_partition(
        functools.partial(_partition, call), sharding_rule=functools.partial(_rule, call)
    )
    return partitioned


def _partition(call: Call, mesh: Any, arguments: Sequence[Any], results: Any) -> Any:
    """The program of one device, and the shardings it takes and gives."""
    wide = any(argument.dtype.itemsize == 8 for argument in arguments)
    if wide and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise NotImplementedError(
            "sharded 64-bit arrays inside the context jax.enable_x64(True), which the compiler's"
            " thread does not see: use jax.config.update('jax_enable_x64', True)"
        )
    kinds = TAKES[call.primitive]
    arrays = [a for a, kind in zip(arguments, kinds) if kind != "w"]
    seen = [(a.shape, a.sharding) for a in (*arrays, *jax.tree.leaves(results))]
    whole, parts = NamedSharding(mesh, PartitionSpec()), Parts()
    if mesh.empty:
        sharding = next((s for shape, s in seen if _splits_no_window(call, shape, s)), whole)
    else:
        spec, parts = _agree(call, mesh, seen)
        sharding = NamedSharding(mesh, spec)

    def program(*shards: jax.Array) -> Any:
        # Shards have no mesh, but from jax 0.12 on the compiler's thread is in that of `set_mesh`.
        with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
            return _on_shard(call, parts, shards, on_device)

    return (
        mesh,
        program,
        jax.tree.map(lambda _: sharding, results),
        tuple(whole if kind == "w" else sharding for kind, _ in zip(kinds, arguments)),
    )


def _splits_no_window(call: Call, shape: Sequence[int], sharding: Any) -> bool:
    """Whether a sharding whose mesh is not known splits batch and channels alone.

    Under `set_mesh`, where no argument of a program has a `NamedSharding`, JAX does not say how the
    shardings that XLA chose are laid out over the mesh. Neighbours are not known then.
    """
    try:
        shard = sharding.shard_shape(tuple(shape))
    except ValueError:  # shards of different sizes
        return False
    if sharding.is_fully_replicated:
        return False
    return all(shard[axis] == shape[axis] for axis in call.geometry.axes)


def _rule(call: Call, mesh: Any, arguments: Sequence[Any], _: Any) -> Any:
    """Which dimensions correspond; a spatial one of the input has some elements for each window."""
    g, rank = call.geometry, arguments[0].rank
    unpooled = [f"d{d}" for d in range(rank)]
    pooled, window = list(unpooled), [f"w{i}" for i in range(g.ndim)]
    whole, sizes = set(window), {}
    for i, axis in enumerate(g.axes):
        if not all(_divides(g, i, count) for count in _counts(mesh, g.input_shape[i])):
            unpooled[axis], pooled[axis] = f"u{i}", f"p{i}"
            whole |= {f"u{i}", f"p{i}"}
        elif (step := _length(g, i, "u", 1)) > 1:
            unpooled[axis] = f"({pooled[axis]} s{i})"
            whole, sizes[f"s{i}"] = whole | {f"s{i}"}, step
    factors = {"u": " ".join(unpooled), "p": " ".join(pooled), "w": " ".join(window)}
    rule = " -> ".join(
        ", ".join(factors[kind] for kind in kinds)
        for kinds in (TAKES[call.primitive][: len(arguments)], GIVES[call.primitive])
    )
    in_order = dict.fromkeys(re.findall(r"\w+", rule))
    return rule, {"need_replication_factors": tuple(f for f in in_order if f in whole), **sizes}


def _agree(
    call: Call, mesh: Any, arrays: Iterable[tuple[Sequence[int], Any]]
) -> tuple[PartitionSpec, Parts]:
    """One sharding for all arrays, given as (shape, sharding), and how it splits spatial axes.

    The first array that is split along a dimension decides, as far as that can be.
    """
    g, parts = call.geometry, Parts()
    dimensions: dict[int, Names] = {}
    for shape, sharding in arrays:
        for d, names in enumerate(sharding.spec):
            names = _names(names)
            taken = {name for others in dimensions.values() for name in others}
            if not names or d in dimensions or taken.intersection(names):
                continue
            count = math.prod(mesh.shape[name] for name in names)
            spatial = [i for i, axis in enumerate(g.axes) if axis % len(shape) == d]
            # ppermute numbers the devices of several axes in the order of the mesh.
            exchanges = sorted(names, key=mesh.axis_names.index) == list(names)
            exchanges &= not (mesh.explicit_axes and mesh.auto_axes)  # XLA fails to split both
            if count == 1:
                dimensions[d] = names
            elif shape[d] % count == 0 and all(
                exchanges and _can_split(g, i, count) for i in spatial
            ):
                dimensions[d] = names
                parts |= dict.fromkeys(spatial, (names, count))
        rank = len(shape)
    return PartitionSpec(*(dimensions.get(d) for d in range(rank))), parts


def _names(entry: Any) -> Names:
    """The axes of the mesh in an entry of a `PartitionSpec`."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def _counts(mesh: Any, size: int) -> set[int]:
    """In how many shards any axes of a mesh can split so many elements; one among them."""
    sizes = mesh.shape.values()
    some = (itertools.combinations(sizes, n) for n in range(len(sizes) + 1))
    products = map(math.prod, itertools.chain.from_iterable(some))
    return {count for count in products if size % count == 0}


def _divides(g: Plane, i: int, count: int) -> bool:
    """Whether so many shards of a spatial axis have a window for every `strides` elements."""
    if not isinstance(g, WindowGeometry) or g.output_shape[i] == 1:
        return False
    return g.spatial[i].divides(count)


def _can_split(g: Plane, i: int, count: int) -> bool:
    """Whether a spatial axis can be split so that its shards need their neighbours' at most."""
    if not isinstance(g, WindowGeometry) or not _divides(g, i, count):
        return False
    return g.spatial[i].halo <= g.output_shape[i] // count


def _on_shard(
    call: Call, parts: Parts, shards: Sequence[jax.Array], local: Callable[..., Any]
) -> Any:
    """The part of the result that belongs to one device, from the parts of the arrays it has."""
    if not parts:
        return local(call, *shards)
    g = call.geometry
    assert isinstance(g, WindowGeometry)
    margins = {i: g.spatial[i].halo for i in parts}
    kinds = TAKES[call.primitive]

    def trim(array: jax.Array, kind: str, kept: dict[int, tuple[int, int]]) -> jax.Array:
        """An array without so many windows on either side; the weights of a window have none."""
        for i, windows in kept.items() if kind != "w" else ():
            low, high = (_length(g, i, kind, n) for n in windows)
            size = array.shape[g.axes[i]]
            array = lax.slice_in_dim(array, low, size - high, axis=g.axes[i])
        return array

    for i, (names, count) in parts.items():
        shards = [
            shard
            if kind == "w"
            else _extend(shard, g.axes[i], _length(g, i, kind, margins[i]), names, count)
            for shard, kind in zip(shards, kinds)
        ]

    def compute(*around: tuple[int, int]) -> Callable[..., Any]:
        """The program of a device that has so many windows more on either side."""
        inputs, outputs = list(g.input_shape), list(g.output_shape)
        for (i, (_, count)), more in zip(parts.items(), around):
            outputs[i] = g.output_shape[i] // count + sum(more)
            inputs[i] = _length(g, i, "u", outputs[i])
        extended = dataclasses.replace(g, input_shape=tuple(inputs), output_shape=tuple(outputs))
        missing = {
            i: (margins[i] - low, margins[i] - high) for i, (low, high) in zip(parts, around)
        }

        def program(*shards: jax.Array) -> Any:
            there = [trim(shard, kind, missing) for shard, kind in zip(shards, kinds)]
            results = local(dataclasses.replace(call, geometry=extended), *there)
            kind, surplus = GIVES[call.primitive][0], dict(zip(parts, around))
            return jax.tree.map(lambda array: trim(array, kind, surplus), results)

        return program

    # The first and the last device of an axis have neighbours on one side only: three programs per
    # axis that is split and whose windows overlap, of which each device runs one.
    cases = [
        ((0, m), *((m, m),) * (count > 2), (m, 0)) if m else ((0, 0),)
        for m, (_, count) in zip(margins.values(), parts.values())
    ]
    programs = [compute(*around) for around in itertools.product(*cases)]
    number: Any = 0
    for (names, count), some in zip(parts.values(), cases):
        if len(some) > 1:
            place = lax.axis_index(names)
            number = number * len(some) + (place > 0) + (place == count - 1) * (count > 2)
    return lax.switch(number, programs, *shards) if len(programs) > 1 else programs[0](*shards)


def _length(g: Plane, i: int, kind: str, windows: int) -> int:
    """Elements of an (u)npooled or (p)ooled array that so many windows are, along an axis."""
    assert isinstance(g, WindowGeometry)
    return windows * (g.strides[i] if kind == "u" else 1)


def _extend(shard: jax.Array, axis: int, length: int, names: Names, count: int) -> jax.Array:
    """A shard with the adjoining elements of its neighbours, and zeros where it has none."""
    if length == 0:
        return shard
    size = shard.shape[axis]
    last = lax.slice_in_dim(shard, size - length, size, axis=axis)
    first = lax.slice_in_dim(shard, 0, length, axis=axis)
    before = lax.ppermute(last, names, [(k, k + 1) for k in range(count - 1)])
    after = lax.ppermute(first, names, [(k + 1, k) for k in range(count - 1)])
    return jnp.concatenate([before, shard, after], axis)
