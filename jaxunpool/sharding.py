"""Primitives over more than one device: every device computes its own part of the result.

`halo` says which part, and what it needs of its neighbours.

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
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from jaxunpool import halo
from jaxunpool.dispatch import KERNELS, Call, on_device
from jaxunpool.geometry import Plane, WindowGeometry
from jaxunpool.kernels import varying, xla


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
        kinds = halo.TAKES[call.primitive]
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

    return tuple(map(placed, arrays, halo.TAKES[call.primitive]))


def _by_type(call: Call, arrays: Sequence[jax.Array], local: Callable[..., Any]) -> Any:
    """`local(call, *arrays)`, by `shard_map` if the arrays' types say how they are sharded."""
    mesh, spec, parts = _explicit(call, arrays)
    names = set() if mesh is None else _free_axes(mesh)
    if not names:
        return local(call, *arrays)
    specs = tuple(
        PartitionSpec() if kind == "w" else spec
        for kind in halo.TAKES[call.primitive][: len(arrays)]
    )
    program = jax.shard_map(
        lambda *shards: halo.on_shard(call, parts, shards, local),
        mesh=mesh,
        in_specs=specs,
        out_specs=(spec, spec) if len(halo.GIVES[call.primitive]) > 1 else spec,
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
    sums_over = [name for entry in spec for name in halo.axis_names(entry)]
    program = jax.shard_map(
        lambda u, y: lax.psum(xla.correlate(u, y, geometry), sums_over),
        mesh=mesh,
        in_specs=(spec, spec),
        out_specs=PartitionSpec(),
        axis_names=names,
    )
    return program(_reshard(u, mesh, spec), _reshard(y, mesh, spec))


def _explicit(call: Call, arrays: Sequence[Any]) -> tuple[Any, PartitionSpec, halo.Parts]:
    """The mesh with Explicit axes, or None, and what `halo.agree` says of the arrays on it."""
    there = [
        a for a, kind in zip(arrays, halo.TAKES[call.primitive]) if a is not None and kind != "w"
    ]
    shardings = [jax.typeof(array).sharding for array in there]
    mesh = next((s.mesh for s in shardings if s.mesh.explicit_axes), None)
    if mesh is None:
        return None, PartitionSpec(), {}
    return mesh, *halo.agree(call, mesh, [(a.shape, s) for a, s in zip(there, shardings)])


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
        functools.partial(_partition, call), sharding_rule=functools.partial(halo.rule, call)
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
    kinds = halo.TAKES[call.primitive]
    arrays = [a for a, kind in zip(arguments, kinds) if kind != "w"]
    seen = [(a.shape, a.sharding) for a in (*arrays, *jax.tree.leaves(results))]
    whole, parts = NamedSharding(mesh, PartitionSpec()), halo.Parts()
    if mesh.empty:
        sharding = next((s for shape, s in seen if _splits_no_window(call, shape, s)), whole)
    else:
        spec, parts = halo.agree(call, mesh, seen)
        sharding = NamedSharding(mesh, spec)

    def program(*shards: jax.Array) -> Any:
        # Shards have no mesh, but from jax 0.12 on the compiler's thread is in that of `set_mesh`.
        with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
            return halo.on_shard(call, parts, shards, on_device)

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
