"""The five primitives: our kernels, our XLA path and their peers, at sizes that fill a GPU."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.cases import LAYOUTS, WINDOWS, Case
from jaxunpool.core import backends, primitives
from jaxunpool.core.calls import Call
from jaxunpool.core.geometry import WindowGeometry

SHAPES = ((32, 224, 224, 64), (32, 56, 56, 256))
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

Run = Callable[[], object]


def cases(
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    dtypes: Sequence[str] = DTYPES,
    device: str = "cuda",
    only: str = "",
    layouts: Sequence[str] = LAYOUTS[:1],
) -> Iterator[Case]:
    """Every primitive whose "primitive window layout dtype shape" contains `only`."""
    for shape in shapes:
        for dtype in dtypes:
            for window in WINDOWS:
                for layout in layouts:
                    for primitive in PRIMITIVES:
                        name = f"{primitive} {window} {layout} {dtype} {shape}"
                        if only in name:
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


def _case(
    primitive: str, window: str, layout: Any, shape: tuple[int, ...], dtype: str, device: str
) -> Case:
    k, s, p = WINDOWS[window]
    batch, height, width, channels = shape
    ours = shape if layout == "channels_last" else (batch, channels, height, width)
    geometry = WindowGeometry.for_input(ours, (k, k), s, p, data_format=layout)
    call = Call(primitive, geometry, None, **OPTIONS.get(primitive, {}))
    keys = jax.random.split(jax.random.key(0), SETS)
    sets = [arrays_for(primitive, geometry, ours, dtype, key) for key in keys]
    results = jax.eval_shape(functools.partial(primitives.bind, call), *sets[0])
    moved = sum(a.size * a.dtype.itemsize for a in [*sets[0], *jax.tree.leaves(results)])
    contenders: dict[str, Run] = {}
    for implementation in available(call, sets[0]):
        named = dataclasses.replace(call, implementation=implementation)
        contenders[implementation] = one_after_another(
            functools.partial(primitives.bind, named), sets
        )
    contenders |= _torch(primitive, (k, s, p), layout, shape, dtype, device)
    if layout == "channels_last" and primitive in ("select", "reduce"):
        pool = flax.linen.max_pool if primitive == "select" else flax.linen.avg_pool
        pool = functools.partial(
            pool, window_shape=(k, k), strides=(s, s), padding=((p, p), (p, p))
        )
        contenders["flax"] = one_after_another(pool, sets)
    sources = [(jax.random.normal(key, moved // 8, jnp.float32),) for key in keys]
    contenders["copy"] = one_after_another(lambda a: -a, sources)
    name = f"{primitive} {dtype} {'x'.join(map(str, shape))}"
    return Case(name, window, layout, moved, contenders, runs=SETS)


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
