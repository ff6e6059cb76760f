"""The five primitives: our kernels, our XLA path and their peers, at sizes that fill a GPU."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.timing import Case, Run, Runs, sizes
from jaxunpool.core import backends, primitives
from jaxunpool.core.calls import Call
from jaxunpool.core.geometry import DataFormat, WindowGeometry

SHAPES = ("32x224x224x64", "32x56x56x256")
WINDOWS = {"2x2/2": (2, 2, 0), "3x3/2 pad 1": (3, 2, 1)}
LAYOUTS: tuple[DataFormat, ...] = ("channels_last", "channels_first")
DTYPES = ("float32", "bfloat16")
PRIMITIVES = ("select", "gather", "scatter", "reduce", "replicate")
OPTIONS: dict[str, dict[str, str]] = {
    "scatter": {"duplicates": "sum"},
    "reduce": {"weighting": "mean"},
    "replicate": {"weighting": "mean"},
}
# A run works through this many sets of arrays, each larger than a cache, one after the other: a
# launch costs less than a kernel then, and no kernel finds its input where the last one left it.
SETS = 4


def cases(
    shapes: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    device: str = "cuda",
    layouts: Sequence[str] = LAYOUTS[:1],
) -> Iterator[Case]:
    """Every primitive. Arrays are made when a case's contenders are."""
    for shape, dtype, window, layout, primitive in itertools.product(
        shapes or SHAPES, dtypes or DTYPES, WINDOWS, layouts, PRIMITIVES
    ):
        yield _case(primitive, window, layout, shape, dtype, device)


def available(call: Call, arrays: Sequence[Any]) -> list[str]:
    """The implementations that could run a call on this machine's platform."""
    return [*backends.serving(call, arrays, jax.default_backend()), "xla"]


def arrays_for(
    primitive: str, geometry: WindowGeometry, shape: tuple[int, ...], dtype: str, key: jax.Array
) -> tuple[jax.Array, ...]:
    """Random inputs of a primitive, made where they are used."""
    numbers, places = jax.random.split(key)
    pooled = geometry.pooled_shape(shape)
    first = pooled if primitive in ("scatter", "replicate") else shape
    values = jax.random.normal(numbers, first, dtype)
    if primitive not in ("gather", "scatter"):
        return (values,)
    return values, jax.random.randint(places, pooled, 0, geometry.volume, geometry.offset_dtype)


def _case(primitive: str, window: str, layout: Any, shape: str, dtype: str, device: str) -> Case:
    k, s, p = WINDOWS[window]
    batch, height, width, channels = full = sizes(shape)
    ours = full if layout == "channels_last" else (batch, channels, height, width)
    geometry = WindowGeometry.for_input(ours, (k, k), s, p, data_format=layout)
    call = Call(primitive, geometry, None, **OPTIONS.get(primitive, {}))
    arrays = functools.partial(arrays_for, primitive, geometry, ours, dtype)
    keys = jax.random.split(jax.random.key(0), SETS)
    inputs = jax.eval_shape(arrays, keys[0])
    results = jax.eval_shape(functools.partial(primitives.bind, call), *inputs)
    moved = sum(a.size * a.dtype.itemsize for a in [*inputs, *jax.tree.leaves(results)])

    def make() -> Runs:
        sets = [arrays(key) for key in keys]
        contenders: Runs = {}
        for implementation in available(call, sets[0]):
            named = dataclasses.replace(call, implementation=implementation)
            contenders[implementation] = one_after_another(
                functools.partial(primitives.bind, named), sets
            )
        contenders |= _torch(primitive, (k, s, p), layout, full, dtype, device)
        if layout == "channels_last" and primitive in ("select", "reduce"):
            pool = flax.linen.max_pool if primitive == "select" else flax.linen.avg_pool
            pool = functools.partial(
                pool, window_shape=(k, k), strides=(s, s), padding=((p, p), (p, p))
            )
            contenders["flax"] = one_after_another(pool, sets)
        sources = [(jax.random.normal(key, moved // 8, jnp.float32),) for key in keys]
        contenders["copy"] = one_after_another(lambda a: -a, sources)
        return contenders

    # On a GPU calls wait in its queue.
    calls = -(-20 // SETS) if device == "cuda" else 1
    return Case(primitive, shape, window, dtype, layout, make, SETS, calls, moved)


def one_after_another(function: Callable[..., Any], sets: Sequence[Sequence[jax.Array]]) -> Run:
    """One program that applies a function to every set of arrays in turn."""

    @jax.jit
    def program(sets: Sequence[Sequence[jax.Array]]) -> list[Any]:
        results: list[Any] = []
        for arrays in sets:
            if results:  # not before the last one is done, and never together with it
                results[-1], arrays = lax.optimization_barrier((results[-1], arrays))
            results.append(function(*arrays))
        return results

    return functools.partial(program, sets)


def _torch(
    primitive: str,
    window: tuple[int, int, int],
    layout: str,
    shape: tuple[int, ...],
    dtype: str,
    device: str,
) -> dict[str, Run]:
    """The same operation of PyTorch, eager and compiled, in the memory format of the layout."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    functional: Any = torch.nn.functional
    k, s, p = window
    batch, height, width, channels = shape
    options: dict[str, Any] = {"kernel_size": k, "stride": s, "padding": p}
    size, kind = (batch, channels, height, width), getattr(torch, dtype)
    formats = {"channels_last": torch.channels_last, "channels_first": torch.contiguous_format}

    def random(*sizes: int) -> Any:
        x = torch.randn(sizes, device=device, dtype=kind)
        return x.to(memory_format=formats[layout])

    def pool(x: Any) -> Any:
        return functional.max_pool2d(x, return_indices=True, **options)

    def average(x: Any) -> Any:
        return functional.avg_pool2d(x, **options)

    def unpool(y: Any, indices: Any) -> Any:
        return functional.max_unpool2d(y, indices, output_size=size[2:], **options)

    def run_with(function: Callable[..., Any]) -> Run:
        return lambda: [function(*arguments) for arguments in sets]

    if primitive in ("select", "reduce"):
        function: Callable[..., Any] = pool if primitive == "select" else average
        sets: list[Any] = [(random(*size),) for _ in range(SETS)]
    elif primitive == "scatter":
        function, sets = unpool, [pool(random(*size)) for _ in range(SETS)]
    else:  # only a gradient does this
        function, sets = _gradient, []
        for _ in range(SETS):
            if primitive == "replicate":
                leaf = random(*size).requires_grad_()
                result = average(leaf)
            else:
                leaf, indices = pool(random(*size))
                result = unpool(leaf.requires_grad_(), indices)
            sets.append((result, leaf, random(*result.shape)))
    runs = {"torch": run_with(function)}
    if function is not _gradient and device == "cuda":
        runs["torch.compile"] = run_with(torch.compile(function))
    return runs


def _gradient(y: Any, leaf: Any, dy: Any) -> Any:
    import torch

    return torch.autograd.grad(y, leaf, dy, retain_graph=True)
