"""Memory of a training step: `python -m benchmarks.memory`.

SegNet of `jaxunpool.models`, one step of SGD, with indices, packed indices and without, beside the
same convolutions with `nnx.max_pool` of Flax and two ways back that its users write, and the same
network in PyTorch. Nothing is run but PyTorch's forward pass: JAX says what it keeps when it traces
and what it needs when it compiles. `--times` adds what packing takes; it wants an idle machine.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import itertools
import json
import os
import pathlib
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import jaxunpool as jup
from benchmarks import timing
from jaxunpool import models
from jaxunpool.models.segnet import VGG16, VGG16_BACK

CLASSES, RATE = 11, 0.1
MIB = 2**20
PACKAGES = ("jax", "flax", "torch")
Widths = Sequence[Sequence[int]]
Row = dict[str, int | None]


class OfFlax(models.EncoderDecoder):
    """The convolutions of SegNet with Flax's pooling and a way back of one's own."""

    def __init__(self, back_over: Callable[..., jax.Array], *sizes: Any, rngs: nnx.Rngs):
        super().__init__(*sizes, decoder="nearest", rngs=rngs)
        self.back_over = back_over

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, height, width, in_features]` to the same size with `out_features`."""
        kept = []
        for blocks in self.encoder.stages:
            for block in blocks:
                x = block(x)
            y = nnx.max_pool(x, (2, 2), (2, 2))
            kept.append((x, y))
            x = y
        for blocks in self.stages:
            x = self.back_over(x, *kept.pop())
            for block in blocks:
                x = block(x)
        return self.last(x)


def masked(y: jax.Array, before: jax.Array, pooled: jax.Array) -> jax.Array:
    """Each value where its window has its maximum, which is everywhere where elements are equal."""

    def copies(a: jax.Array) -> jax.Array:
        large = jnp.repeat(jnp.repeat(a, 2, 1), 2, 2)
        missing = (n - m for n, m in zip(before.shape, large.shape))
        return jnp.pad(large, [(0, n) for n in missing])

    return jnp.where(before == copies(pooled), copies(y), 0)


def resized(y: jax.Array, before: jax.Array, pooled: jax.Array) -> jax.Array:
    """The nearest value, by `jax.image.resize`."""
    return jax.image.resize(y, before.shape[:-1] + y.shape[-1:], "nearest")


def networks(widths: Widths = VGG16, back: Widths = VGG16_BACK) -> dict[str, Callable[..., Any]]:
    """What makes each network in JAX, given `rngs`; ours come first."""
    sizes = (3, CLASSES, widths, back)
    ours = functools.partial(models.EncoderDecoder, *sizes)
    return {
        "jaxunpool, indices": ours,
        "jaxunpool, packed indices": functools.partial(ours, pack_indices=True),
        "jaxunpool, nearest": functools.partial(ours, decoder="nearest"),
        "Flax, mask of the maxima": functools.partial(OfFlax, masked, *sizes),
        "Flax, nearest": functools.partial(OfFlax, resized, *sizes),
    }


def training(model: nnx.Module) -> tuple[Callable[..., Any], Callable[..., Any], Any, Any]:
    """The loss and the step of SGD of a network, its parameters and its statistics."""
    parts: tuple[Any, ...] = nnx.split(model, nnx.Param, ...)
    graph, parameters, statistics = parts

    def loss(parameters: Any, statistics: Any, x: jax.Array, labels: jax.Array) -> Any:
        model = nnx.merge(graph, parameters, statistics, copy=True)
        chances = jax.nn.log_softmax(model(x))
        value = -jnp.take_along_axis(chances, labels[..., None], -1).mean()
        return value, nnx.state(model, nnx.Not(nnx.Param))

    def step(parameters: Any, statistics: Any, x: jax.Array, labels: jax.Array) -> Any:
        (value, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(
            parameters, statistics, x, labels
        )
        parameters = jax.tree.map(lambda p, g: p - RATE * g, parameters, gradient)
        return parameters, statistics, value

    return loss, step, parameters, statistics


def of_jax(make: Callable[..., Any], images: tuple[int, ...]) -> Row:
    """Bytes of one network's training step."""
    model = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    loss, step, parameters, statistics = training(model)
    x = jax.ShapeDtypeStruct((*images, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct(images, jnp.int32)
    kept: list[tuple[int, Any]] = []  # number of elements and type of each array

    def forward(*arguments: Any) -> None:
        """Note what the backward pass reads, but for what the step is given."""
        parameters, *rest = arguments
        pullback = jax.vjp(lambda p: loss(p, *rest), parameters, has_aux=True)[1]
        leaves = {id(leaf): leaf for leaf in jax.tree.leaves(pullback)}
        given = {id(leaf) for leaf in jax.tree.leaves(arguments)}
        kept.extend((leaf.size, leaf.dtype) for n, leaf in leaves.items() if n not in given)

    arguments = (parameters, statistics, x, labels)
    jax.eval_shape(forward, *arguments)
    used: Any = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments).compile().memory_analysis()
    whole = used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes
    # Only indices are uint8, here; of int32 are the labels, in the form that the loss reads.
    indices = [n for n, dtype in kept if dtype == jnp.uint8]
    return {
        "kept": sum(n * dtype.itemsize for n, dtype in kept),
        "of them indices": sum(indices),
        "parameters": sum(p.size * p.dtype.itemsize for p in jax.tree.leaves(parameters)),
        "peak": whole + used.temp_size_in_bytes,
    }


def torch_segnet(
    widths: Widths = VGG16,
    back: Widths = VGG16_BACK,
    classes: int = CLASSES,
    *,
    kernel: int = 3,
    last: int = 3,
    relu: bool = True,
) -> Any:
    """SegNet as PyTorch's users write it: VGG16 with batch normalisation and its mirror image.

    Args:
        widths, back: channels of the convolutions of each stage, on both ways.
        classes: channels of the logits.
        kernel, last: sizes of all kernels but the last, and of the last.
        relu: whether the way back rectifies.
    """
    import torch

    nn: Any = torch.nn

    def stages(i: int, widths: Widths, relu: bool = True) -> Any:
        made = nn.ModuleList()
        for stage in widths:
            pairs = itertools.pairwise((i, *stage))
            made.append(nn.Sequential(*(block for pair in pairs for block in layer(*pair, relu))))
            i = stage[-1]
        return made

    def layer(i: int, o: int, relu: bool) -> Any:
        conv = nn.Conv2d(i, o, kernel, padding=kernel // 2)
        return conv, nn.BatchNorm2d(o), nn.ReLU() if relu else nn.Identity()

    class SegNet(nn.Module):
        """`[batch, channels, height, width]` to logits of the same size."""

        def __init__(self) -> None:
            super().__init__()
            self.down = stages(3, widths)
            self.up = stages(widths[-1][-1], back, relu)
            self.classifier = nn.Conv2d(back[-1][-1], classes, last, padding=last // 2)

        def forward(self, x: Any) -> Any:
            """The logits."""
            kept = []
            for stage in self.down:
                x = stage(x)
                size = x.shape
                x, indices = nn.functional.max_pool2d(x, 2, return_indices=True)
                kept.append((indices, size))
            for stage in self.up:
                indices, size = kept.pop()
                x = stage(nn.functional.max_unpool2d(x, indices, 2, output_size=size))
            return self.classifier(x)

    return SegNet()


def of_torch(images: tuple[int, ...], widths: Widths = VGG16, back: Widths = VGG16_BACK) -> Row:
    """Bytes of the tensors that PyTorch saves; each storage counts once, parameters apart."""
    import torch

    model = torch_segnet(widths, back)
    batch, *sizes = images
    x = torch.zeros(batch, 3, *sizes)
    labels = torch.zeros(*images, dtype=torch.int64)
    given = {t.untyped_storage().data_ptr() for t in (*model.parameters(), x, labels)}
    saved: dict[int, Any] = {}  # holds the tensors, so that no address is used again

    def pack(tensor: Any) -> Any:
        if tensor.untyped_storage().data_ptr() not in given:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = torch.nn.functional.cross_entropy(model(x), labels)
    del loss
    held = {tensor: tensor.untyped_storage().nbytes() for tensor in saved.values()}
    return {
        "kept": sum(held.values()),
        "of them indices": sum(n for tensor, n in held.items() if tensor.dtype == torch.int64),
        "parameters": sum(p.numel() * p.element_size() for p in model.parameters()),
        "peak": None,
    }


def planes(images: tuple[int, ...], widths: Widths = VGG16) -> list[tuple[int, ...]]:
    """The shapes that the network pools."""
    batch, *sizes = images
    return [(batch, *(n >> i for n in sizes), stage[-1]) for i, stage in enumerate(widths)]


def operations(shape: tuple[int, ...]) -> timing.Runs:
    """Pooling and unpooling of one plane, with indices and packed ones, and packing by itself."""
    x = jax.random.normal(jax.random.key(0), shape)
    pool = jax.jit(lambda x: jup.max_pool_with_indices(x, (2, 2)))
    packed_pool = jax.jit(lambda x: jup.max_pool_with_packed_indices(x, (2, 2)))
    unpool = jax.jit(jup.max_unpool)
    pack, unpack = jax.jit(jup.PoolIndices.pack), jax.jit(jup.PackedIndices.unpack)
    y, indices = pool(x)
    packed = pack(indices)
    return {
        "pool": functools.partial(pool, x),
        "pool, packed": functools.partial(packed_pool, x),
        "unpool": functools.partial(unpool, y, indices),
        "unpool, packed": functools.partial(unpool, y, packed),
        "pack": functools.partial(pack, indices),
        "unpack": functools.partial(unpack, packed),
    }


def table(rows: dict[str, Row]) -> str:
    """Rows as a table of MiB, in Markdown."""
    names = list(next(iter(rows.values())))
    lines = [["MiB", *names], ["---", *["---:"] * len(names)]]
    for name, row in rows.items():
        lines.append([name, *(f"{n / MIB:.2f}" if n is not None else "" for n in row.values())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table_of_times(times: dict[str, dict[str, list[float]]]) -> str:
    """Medians in microseconds, in Markdown."""
    names = list(next(iter(times.values())))
    lines = [["µs", *names], ["---", *["---:"] * len(names)]]
    for shape, row in times.items():
        lines.append([shape, *(f"{statistics.median(row[name]) * 1e6:.0f}" for name in names)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--images", default="2x180x240", help="batch and sizes (default 2x180x240)")
    parser.add_argument("--times", action="store_true", help="also what packing takes, here")
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds (default 15)")
    parser.add_argument("--json", type=pathlib.Path, help="also write what was found to this file")
    parsed = parser.parse_args(arguments)
    try:
        parsed.sizes = tuple(int(n) for n in parsed.images.split("x"))
    except ValueError:
        parsed.sizes = ()
    if len(parsed.sizes) != 3 or min(parsed.sizes) < 1 or min(parsed.sizes[1:]) < 2 ** len(VGG16):
        parser.error(f"--images {parsed.images}: expected a batch and two sizes of at least 32")
    return parsed


def main(arguments: list[str] | None = None) -> None:
    """Measure and report."""
    from rich.console import Console
    from rich.markdown import Markdown

    options = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    found: dict[str, Any] = {
        "images": options.images,
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in PACKAGES
            if importlib.util.find_spec(name)
        },
    }
    rows: dict[str, Row] = {}
    for name, make in networks().items():
        with console.status(name):
            rows[name] = of_jax(make, options.sizes)
    if "torch" in found["versions"]:
        rows["PyTorch, indices"] = of_torch(options.sizes)
    found["bytes"] = rows
    console.print(Markdown(table(rows)))
    if options.times:
        found["seconds"] = {
            "x".join(map(str, shape)): timing.measure(operations(shape), options.repeats, warmup=1)
            for shape in planes(options.sizes)
        }
        console.print(Markdown(table_of_times(found["seconds"])))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
