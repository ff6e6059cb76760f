"""A window primitive on the shards of an array: which split it can have, and the exchange of halos.

Leading dimensions and channels are independent of each other, so their shards need nothing from
elsewhere. Where windows divide the shards of a spatial axis, each device takes a halo from its
neighbours (the windows and elements that theirs have in common with its own), computes on the
extended shard and keeps its own part of the result. Other splits of a spatial axis are gathered
first.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from jaxunpool.core.calls import GIVES, TAKES, Call
from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.geometry import Plane, WindowGeometry

Names = tuple[str, ...]  # axes of the mesh that one dimension is split over
Parts = dict[int, tuple[Names, int]]  # per spatial axis that is split: over what, and in how many


def agree(
    call: Call, mesh: Any, arrays: Iterable[tuple[Sequence[int], Any]]
) -> tuple[PartitionSpec, Parts]:
    """One sharding for all arrays, given as (shape, sharding), and how it splits spatial axes.

    The first array that is split along a dimension decides, as far as that can be.
    """
    g, parts = call.geometry, Parts()
    dimensions: dict[int, Names] = {}
    for shape, sharding in arrays:
        for d, entry in enumerate(sharding.spec):
            names = axis_names(entry)
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
                exchanges and _can_split(call, i, count) for i in spatial
            ):
                dimensions[d] = names
                parts |= dict.fromkeys(spatial, (names, count))
        rank = len(shape)
    return PartitionSpec(*(dimensions.get(d) for d in range(rank))), parts


def rule(call: Call, mesh: Any, arguments: Sequence[Any], _: Any) -> Any:
    """Which dimensions correspond: (windows, stride) unpooled, where shards can split them."""
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


def axis_names(entry: Any) -> Names:
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


def _can_split(call: Call, i: int, count: int) -> bool:
    """Whether a spatial axis can be split so that its shards need their neighbours' at most."""
    g = call.geometry
    if call.primitive == "correlate" or not _divides(g, i, count):
        return False
    assert isinstance(g, WindowGeometry)
    return g.spatial[i].halo <= g.output_shape[i] // count


def on_shard(
    call: Call, parts: Parts, shards: Sequence[jax.Array], local: Callable[..., Any]
) -> Any:
    """The part of the result that belongs to one device, from the parts of the arrays it has."""
    if not parts:
        return local(call, *shards)
    g = call.geometry
    assert isinstance(g, WindowGeometry)
    halos = {i: g.spatial[i].halo for i in parts}
    kinds = TAKES[call.primitive]

    def trim(array: jax.Array, kind: str, kept: dict[int, tuple[int, int]]) -> jax.Array:
        """An array without so many windows at each end; a pattern stays whole."""
        for i, windows in kept.items() if kind != "w" else ():
            low, high = (_length(g, i, kind, n) for n in windows)
            size = array.shape[g.axes[i]]
            array = lax.slice_in_dim(array, low, size - high, axis=g.axes[i])
        return array

    for i, (names, count) in parts.items():
        shards = [
            shard
            if kind == "w"
            else _extend(shard, g.axes[i], _length(g, i, kind, halos[i]), names, count)
            for shard, kind in zip(shards, kinds)
        ]

    def compute(*around: tuple[int, int]) -> Callable[..., Any]:
        """The program of a device that has so many windows more on either side."""
        inputs, outputs = list(g.input_shape), list(g.output_shape)
        for (i, (_, count)), more in zip(parts.items(), around):
            outputs[i] = g.output_shape[i] // count + sum(more)
            inputs[i] = _length(g, i, "u", outputs[i])
        extended = dataclasses.replace(g, input_shape=tuple(inputs), output_shape=tuple(outputs))
        missing = {i: (halos[i] - low, halos[i] - high) for i, (low, high) in zip(parts, around)}

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
        for m, (_, count) in zip(halos.values(), parts.values())
    ]
    programs = [compute(*around) for around in itertools.product(*cases)]
    number: Any = 0
    for (names, count), some in zip(parts.values(), cases):
        if len(some) > 1:
            device = lax.axis_index(names)
            number = number * len(some) + (device > 0) + (device == count - 1) * (count > 2)
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
