"""How a primitive becomes a program: first where it runs, then which kernel runs there.

| axes of the mesh                 | how                                                        |
| -------------------------------- | ---------------------------------------------------------- |
| none, or all Manual              | on the arrays as they are                                  |
| Explicit                         | `shard_map` over the sharding in the arrays' types         |
| Auto                             | `custom_partitioning`: XLA's partitioner calls back with   |
|                                  | the shardings it chose                                     |
| Auto beside Manual, for export,  | plain JAX, which XLA's partitioner splits as it does any   |
| or a mesh that is not known      | other program                                              |

`correlate`, and calls with a pattern for each example, are plain JAX on Auto axes too. Both are
decided at lowering, once per platform, so that a traced or exported program runs everywhere.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from jaxunpool.core import backends, halo
from jaxunpool.core.calls import GIVES, TAKES, Call
from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.geometry import Plane, WindowGeometry, along
from jaxunpool.kernels import varying, xla
from jaxunpool.kernels.common import comparable

Where = Literal["local", "plain", "asked"]

# The tool that programs are lowered for, as `backends.TOOLS` names it; "" for JAX itself.
TOOL: ContextVar[str] = ContextVar("tool", default="")


def rule(platform: str) -> Callable[..., Any]:
    """The lowering rule of all primitives for a platform, as a user names it."""

    def lower(ctx: mlir.LoweringRuleContext, *values: Any, call: Call, lead: int) -> Any:
        export = ctx.module_context.lowering_parameters.for_export
        target = TOOL.get() or platform
        backends.check_runs_on(call, target, export)
        where, axis_context = _where(ctx)
        module = ctx.module_context.replace(
            # In a program for several platforms, this part is for one of them.
            platforms=ctx.platforms or ctx.module_context.platforms,
            axis_context=axis_context,
        )
        run = functools.partial(_program, target, where, export, call, lead)
        several = len(GIVES[call.primitive]) > 1
        return mlir.lower_fun(run, multiple_results=several)(
            ctx.replace(module_context=module), *values
        )

    return lower


def _where(ctx: mlir.LoweringRuleContext) -> tuple[Where, Any]:
    """How a call is split over devices, and what JAX is told of the mesh for that.

    What the context of a lowering says of devices is not public in JAX. It is read here alone;
    where something is missing, the call is left to XLA's partitioner as plain JAX.
    """
    avals: Any = ctx.avals_in
    module, mesh_around = ctx.module_context, jax.sharding.get_abstract_mesh()
    axis_context: Any = module.axis_context
    count = getattr(axis_context, "num_devices", None)
    if count == 1 or mesh_around.are_all_axes_manual:
        return "local", axis_context
    if count is None or mesh_around.manual_axes or module.lowering_parameters.for_export:
        return "plain", axis_context
    # The arrays' types say what mesh there is, or an argument of the program, or `set_mesh`.
    types = (aval.sharding.mesh for aval in avals)
    known = (*types, axis_context.abstract_mesh, mesh_around)
    mesh = next((m for m in known if m is not None and not m.empty), None)
    # Only the shape and the axis names of the mesh matter here, so any devices will do.
    devices = axis_context.device_assignment or tuple(jax.devices()[:count])
    if mesh is None or len(devices) != count or mesh.size != count:
        return "plain", axis_context
    return "asked", dataclasses.replace(axis_context, abstract_mesh=mesh, device_assignment=devices)


def is_local(ctx: mlir.LoweringRuleContext) -> bool:
    """Whether a program runs on one device, or on shards each by itself."""
    return _where(ctx)[0] == "local"


def kernel_or_plain(
    primitive: Primitive,
    choose: Callable[..., backends.Choice],
    plain: Callable[..., Any],
    kernel: Callable[..., Any],
) -> Callable[[str], Callable[..., Any]]:
    """Rules for what has kernels for one device alone: elsewhere XLA splits the plain program.

    Args:
        primitive: which it is.
        choose: `(arrays, platform, export, **parameters)`: what it runs on.
        plain: `(*arrays, **parameters)` in plain JAX.
        kernel: `(backend, *arrays, **parameters)`.
    """

    def of_platform(platform: str) -> Callable[..., Any]:
        def lower(ctx: mlir.LoweringRuleContext, *values: Any, **parameters: Any) -> Any:
            export = ctx.module_context.lowering_parameters.for_export
            target = TOOL.get() or platform
            chosen = choose(ctx.avals_in, target, export, **parameters).implementation
            use_kernel = chosen in backends.NAMES and is_local(ctx)
            run = functools.partial(kernel, chosen) if use_kernel else plain
            program = functools.partial(run, **parameters)
            return mlir.lower_fun(program, primitive.multiple_results)(ctx, *values)

        return lower

    return of_platform


def register(primitive: Primitive, of_platform: Callable[[str], Callable[..., Any]]) -> None:
    """Lower a primitive by the rule of each platform, which a user's name of it gives."""
    # Not inlined: a call that occurs often in a program is one function in it.
    mlir.register_lowering(primitive, of_platform("other platforms"), inline=False)
    for platform, lowered in backends.PLATFORMS.items():
        mlir.register_lowering(primitive, of_platform(platform), platform=lowered, inline=False)


def _program(
    platform: str, where: Where, export: bool, call: Call, lead: int, *arrays: jax.Array
) -> Any:
    """A call on arrays that may be sharded."""
    local = functools.partial(on_device, platform, lead=lead, export=export)
    automatic: Callable[..., Any] = functools.partial(local, call, split=where != "local")
    if where == "asked" and not lead and call.primitive != "correlate":
        automatic = _by_compiler(platform, call)
    mesh, spec, parts = explicit(call, arrays)
    if mesh is None:
        return automatic(*arrays)
    specs = {"u": spec, "p": spec, "w": PartitionSpec(*spec[:lead], *[None] * call.geometry.ndim)}
    ins = tuple(specs[kind] for kind, _ in zip(TAKES[call.primitive], arrays))
    out = specs[GIVES[call.primitive][0]]  # of every result
    around = jax.sharding.get_abstract_mesh()
    if not around.empty and mesh != around:
        # JAX lowers every `shard_map` for the mesh of `set_mesh`, whatever mesh it is given.
        with jax.sharding.use_abstract_mesh(mesh):
            return jax.sharding.auto_axes(automatic, out_sharding=out)(*arrays)

    def on_shards(*shards: jax.Array) -> Any:
        results = halo.on_shard(call, parts, shards, local)
        if call.primitive != "correlate":
            return results
        return lax.psum(results, [n for entry in spec[lead:] for n in halo.axis_names(entry)])

    program = jax.shard_map(
        on_shards,
        mesh=mesh,
        in_specs=ins,
        out_specs=out,
        axis_names=set(mesh.explicit_axes),
    )
    return program(*(reshard(array, mesh, s) for array, s in zip(arrays, ins)))


@functools.lru_cache(maxsize=1024)  # JAX keeps what is partitioned, so once for each call
def _by_compiler(platform: str, call: Call) -> Callable[..., Any]:
    """A call on arrays that XLA's partitioner splits as it is told when it calls back."""
    local = functools.partial(on_device, platform)
    # Inside a `jit`, because `custom_partitioning` refuses constants, and NumPy arrays are such.
    program = custom_partitioning(jax.jit(lambda *arrays: local(call, *arrays)))

    def partition(mesh: Any, arguments: Sequence[Any], results: Any) -> Any:
        widths = (a.dtype.itemsize // (2 if a.dtype.kind == "c" else 1) for a in arguments)
        wide = 8 in widths
        if wide and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
            raise NotImplementedError(
                "sharded 64-bit arrays: the context jax.enable_x64(True) does not reach the"
                " compiler's thread; use jax.config.update('jax_enable_x64', True)"
            )
        kinds = TAKES[call.primitive] + GIVES[call.primitive]
        leaves = (*arguments, *jax.tree.leaves(results))
        seen = [(a.shape, a.sharding) for a, kind in zip(leaves, kinds) if kind != "w"]
        spec, parts = halo.agree(call, mesh, seen)
        sharding, whole = NamedSharding(mesh, spec), NamedSharding(mesh, PartitionSpec())

        def on_shards(*shards: jax.Array) -> Any:
            # A shard has no mesh, while jax 0.12 calls this inside the mesh of `set_mesh`.
            with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
                return halo.on_shard(call, parts, shards, local)

        return (
            mesh,
            on_shards,
            jax.tree.map(lambda _: sharding, results),
            tuple(whole if kind == "w" else sharding for kind, _ in zip(kinds, arguments)),
        )

    program.def_partition(partition, sharding_rule=functools.partial(halo.rule, call))
    return program


def explicit(call: Call, arrays: Sequence[Any]) -> tuple[Any, PartitionSpec, halo.Parts]:
    """The mesh with Explicit axes, or None, and what `halo.agree` says of the arrays on it."""
    kinds = zip(arrays, TAKES[call.primitive])
    return _agreement(call, [a for a, kind in kinds if a is not None and kind != "w"])


def _agreement(call: Call, arrays: Sequence[Any]) -> tuple[Any, PartitionSpec, halo.Parts]:
    shardings = [jax.typeof(array).sharding for array in arrays]
    mesh = next((s.mesh for s in shardings if s.mesh.explicit_axes), None)
    if mesh is None:
        return None, PartitionSpec(), {}
    return mesh, *halo.agree(call, mesh, [(a.shape, s) for a, s in zip(arrays, shardings)])


def agreed(arrays: Sequence[jax.Array], plane: Plane) -> list[jax.Array]:
    """Arrays that broadcast together, in one sharding over Explicit axes; no plane is split."""
    mesh, spec, _ = _agreement(Call("gather", plane), arrays)

    def placed(array: jax.Array) -> jax.Array:
        on_mesh = (
            isinstance(array, jax.core.Tracer) or jax.typeof(array).sharding.mesh.explicit_axes
        )
        if mesh is None or not on_mesh:  # a constant outside of a program, which is on one device
            return array
        entries = (name if size > 1 else None for name, size in zip(spec, array.shape))
        return reshard(array, mesh, PartitionSpec(*entries))

    return [placed(array) for array in arrays]


def by_partitioner(
    run: Callable[..., jax.Array], arrays: Sequence[jax.Array], plane: Plane
) -> jax.Array:
    """Plain JAX on arrays of one sharding, whose Explicit axes are as Auto axes to it.

    JAX 0.12 cannot transpose `jnp.take` over Explicit axes outside `jax.set_mesh`.
    """
    arrays = agreed(arrays, plane)
    mesh, spec, _ = _agreement(Call("gather", plane), arrays)
    if mesh is None:
        return run(*arrays)
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.sharding.auto_axes(run, axes=mesh.explicit_axes, out_sharding=spec)(*arrays)


def reshard(array: jax.Array, mesh: Any, spec: PartitionSpec) -> jax.Array:
    """An array with a sharding in its type."""
    wanted = NamedSharding(mesh, spec)
    return array if jax.typeof(array).sharding == wanted else jax.sharding.reshard(array, wanted)


def is_split(array: jax.Array, axes: Sequence[int]) -> bool:
    """Whether an array has Explicit shards along some of these axes."""
    spec = jax.typeof(array).sharding.spec
    return any(halo.axis_names(spec[axis]) for axis in axes)


def gathered(array: jax.Array, axes: Sequence[int], sizes: Sequence[int] = ()) -> jax.Array:
    """An array whose Explicit shards along some axes are gathered, as XLA gathers those of Auto.

    Args:
        array: the array, of any sharding.
        axes: along which elements of a result read elements of any shard.
        sizes: of the result along them. An axis stays split where its shards divide that size;
            without sizes it never does.
    """
    sharding = jax.typeof(array).sharding
    mesh, entries = sharding.mesh, list(sharding.spec)
    for axis, size in itertools.zip_longest(axes, sizes):
        count = math.prod(mesh.shape[name] for name in halo.axis_names(entries[axis]))
        if size is None or size % count:
            entries[axis] = None
    return reshard(array, mesh, PartitionSpec(*entries)) if mesh.explicit_axes else array


# One device


def on_device(
    platform: str,
    call: Call,
    *arrays: jax.Array,
    lead: int = 0,
    split: bool = False,
    export: bool = False,
) -> Any:
    """A call on the arrays of one device, by the backend chosen for its platform.

    Args:
        platform: where, as a user names it.
        call, arrays: the call.
        lead: so many leading dimensions have a pattern for each of their elements.
        split: XLA's partitioner will split the program, which it can with plain JAX alone.
        export: the program is for `jax.export`.

    Raises:
        NotImplementedError: the backend that was asked for by name does not serve that.
    """
    if split and call.implementation in backends.NAMES:
        raise NotImplementedError(
            f"implementation={call.implementation!r}: exported programs for several devices, and"
            " programs for meshes with both kinds of axes, are split by XLA, which cannot split a"
            " kernel; None falls back to 'xla'"
        )
    run = functools.partial(on_device, platform, split=split, export=export)
    if lead:
        call = dataclasses.replace(call, implementation="xla")
        inner = functools.partial(run, call, lead=lead - 1)
        return (_one_by_one if platform in backends.TOOLS else jax.vmap)(inner)(*arrays)
    if call.primitive == "correlate":
        assert isinstance(call.geometry, WindowGeometry)
        return xla.correlate(arrays[0], arrays[1], call.geometry)
    backend = "xla"
    if not split:
        backend = backends.choose(call, arrays, platform, export=export).implementation
    last = call.primitive == "gather" and call.duplicates == "last" and call.geometry.overlaps
    if last and not backends.finds_winners(backend):
        y = run(call.to("gather", duplicates="sum"), *arrays)
        y, wins = y.astype(comparable(y.dtype)), _wins(run, call, arrays[1])
        return jnp.where(wins, y, jnp.zeros((), y.dtype)).astype(arrays[0].dtype)
    return backends.kernel(call, arrays, backend)(*arrays)


def _one_by_one(run: Callable[..., Any]) -> Callable[..., Any]:
    """As `jax.vmap`, for tools that take few axes."""

    def mapped(*arrays: jax.Array) -> Any:
        def stacked(*leaves: jax.Array) -> jax.Array:
            line = jnp.concatenate([leaf.ravel() for leaf in leaves])
            return line.reshape((len(leaves), *leaves[0].shape))

        return jax.tree.map(stacked, *(run(*one) for one in zip(*arrays)))

    return mapped


def _wins(run: Callable[..., Any], call: Call, indices: jax.Array) -> jax.Array:
    """Which writers are the last at their element: the ones that find their own label there."""
    plane = call.geometry
    numbers = [along(indices, axis) for axis in plane.axes]
    sizes = [indices.shape[axis] for axis in plane.axes]
    if isinstance(plane, WindowGeometry):
        # Windows that meet are fewer than this apart along each axis. So their labels differ, by
        # less than `count`, and still do where the type of labels wraps around.
        sizes = [axis.most_covers for axis in plane.spatial]
    rasters = [math.prod(sizes[i + 1 :]) for i in range(plane.ndim)]
    label: Any = sum(number * raster for number, raster in zip(numbers, rasters))
    count = math.prod(sizes)
    labels = label.astype(np.min_scalar_type(count) if isinstance(count, int) else np.int32)
    labels = varying.along(labels, varying.axes(indices))
    if call.implementation != "xla":  # another kernel may not serve the type of labels
        call = dataclasses.replace(call, implementation=None)
    written = run(call.to("scatter", duplicates="last"), labels, indices)
    found = run(call.to("gather", duplicates="sum"), written, indices)
    wide = comparable(labels.dtype)
    return found.astype(wide) == labels.astype(wide)
