"""A batch in shards, one on each device, and sums over them that are the same bits everywhere.

The order in which an all-reduce adds depends on how devices are connected: within one process, over
a network, in a ring or in a tree. So sums over shards are made of collectives that only move data.
Each device then adds what it received in the order of the shards. The bits follow from the number
of shards, whatever the number of processes that these are in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Model = TypeVar("Model", bound=nnx.Module)
AXIS = "batch"
# Up to so many values are gathered whole, in one collective. More take two, each of which
# moves as many bytes as there are, however many shards.
GATHERED = 2**14


class Shards:
    """The devices that share each batch, in equal parts.

    Of one device, nothing here does anything.

    Args:
        batch: examples in a batch.
        devices: as many of them are used as divide the batch, the same number of each process. All
            processes have the same number.
    """

    def __init__(self, batch: int, devices: Sequence[jax.Device]):
        used = devices_for(batch, devices)
        # `jax.make_mesh` may change the order; here each process has consecutive rows of a batch.
        self.mesh = Mesh(np.array(used), (AXIS,), axis_types=(AxisType.Auto,))
        self.batch = batch
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self.sharded = NamedSharding(self.mesh, PartitionSpec(AXIS))

    @property
    def count(self) -> int:
        """How many there are."""
        return self.mesh.size

    def replicate(self, tree: Any) -> Any:
        """The same arrays on every device; each process has them."""
        return jax.tree.map(lambda leaf: placed(leaf, self.replicated), tree)

    def feed(self, tree: Any) -> Any:
        """A batch on the devices, of the rows that this process has."""
        return jax.tree.map(
            lambda rows: jax.make_array_from_process_local_data(
                self.sharded, rows, (self.batch, *rows.shape[1:])
            ),
            tree,
        )

    def run(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function(replicated, *batches)` on each shard; its result is the same on all."""
        if self.count == 1:
            return function

        def shared(replicated: Any, *batches: Any) -> Any:
            return jax.shard_map(
                function,
                mesh=self.mesh,
                in_specs=(PartitionSpec(), *[PartitionSpec(AXIS)] * len(batches)),
                out_specs=PartitionSpec(),
                check_vma=False,  # it cannot know that `total` is the same on all devices
            )(replicated, *batches)

        return shared

    def rows(self, array: jax.Array) -> jax.Array:
        """In `run`: this shard's rows of what all shards have."""
        if self.count == 1:
            return array
        size = self.batch // self.count
        return jax.lax.dynamic_slice_in_dim(array, jax.lax.axis_index(AXIS) * size, size)

    def apart(self, keys: Any) -> Any:
        """In `run`: random keys of this shard's own, so that no two drop the same channels."""
        if self.count == 1:
            return keys
        own = jax.lax.axis_index(AXIS)
        return jax.tree.map(lambda key: jax.random.fold_in(key, own), keys)

    def total(self, tree: Any) -> Any:
        """In `run`: the sum over shards, in their order, of every array. Differentiable."""
        return tree if self.count == 1 else _total(tree)

    def synchronise(self, model: Model) -> Model:
        """In `run`: the network, normalising with the statistics of the whole batch."""
        if self.count > 1:
            for _, module in list(nnx.iter_modules(model)):
                for name, value in list(vars(module).items()):
                    if isinstance(value, nnx.BatchNorm):
                        setattr(module, name, SynchronisedBatchNorm(value, self))
        return model


class SynchronisedBatchNorm(nnx.BatchNorm):
    """Batch normalisation with the statistics of all shards, in training.

    Args:
        norm: whose weights and statistics it shares.
        shards: of the batch.
    """

    def __init__(self, norm: nnx.BatchNorm, shards: Shards):
        super().__init__(
            norm.num_features,
            use_running_average=norm.use_running_average,
            momentum=norm.momentum,
            epsilon=norm.epsilon,
            dtype=norm.dtype,
            param_dtype=norm.param_dtype,
            rngs=nnx.Rngs(0),
        )
        self.mean, self.var, self.scale, self.bias = norm.mean, norm.var, norm.scale, norm.bias
        self.shards = shards

    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:  # type: ignore[override]
        """As of `nnx.BatchNorm`."""
        running = self.use_running_average if use_running_average is None else use_running_average
        if running:
            return super().__call__(x, use_running_average=True)
        values = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        axes = tuple(range(x.ndim - 1))
        moments = jnp.stack([values.mean(axes), jnp.square(values).mean(axes)])
        mean, square = self.shards.total(moments) / self.shards.count
        var = jnp.maximum(square - jnp.square(mean), 0)
        before = self.mean[...], self.var[...]
        self.mean[...], self.var[...] = mean, var
        y = super().__call__(x, use_running_average=True)
        old, new = self.momentum, 1 - self.momentum
        self.mean[...] = old * before[0] + new * mean
        self.var[...] = old * before[1] + new * var
        return y


@jax.custom_vjp
def _total(tree: Any) -> Any:
    flat, unravel = ravel_pytree(tree)
    count = jax.lax.axis_size(AXIS)
    if flat.size <= GATHERED:
        return unravel(jax.lax.all_gather(flat, AXIS).sum(0))
    size = math.ceil(flat.size / count)
    parts = jnp.pad(flat, (0, size * count - flat.size)).reshape(count, size)
    mine = jax.lax.all_to_all(parts, AXIS, 0, 0).sum(0)
    return unravel(jax.lax.all_gather(mine, AXIS, tiled=True)[: flat.size])


# A sum over shards that each of them has: what reaches a term is the sum of what reaches the sums.
_total.defvjp(lambda tree: (_total(tree), None), lambda _, cotangent: (_total(cotangent),))


def devices_for(batch: int, devices: Sequence[jax.Device]) -> list[jax.Device]:
    """As many of the devices as divide the batch, as many of each process, in their order."""
    of: dict[int, list[jax.Device]] = {}
    for device in devices:
        of.setdefault(device.process_index, []).append(device)
    each = min(map(len, of.values()))
    used = max(n for n in range(1, each + 1) if batch % (n * len(of)) == 0)
    return [device for process in sorted(of) for device in of[process][:used]]


def placed(array: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """An array that every process has, on devices that may be of several of them."""
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def local(tree: Any) -> Any:
    """Replicated arrays, as one device of this process has them."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)
