"""The five primitives: our kernels, our XLA path and their peers, at sizes that fill a GPU.

What the targets are about comes first; other peers and channels first come after all of it.
"""

from __future__ import annotations

import contextlib
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
from jaxunpool.core import backends, lowering, primitives
from jaxunpool.core.calls import Call
from jaxunpool.core.geometry import DataFormat, WindowGeometry

SHAPES = ("32x224x224x64", "32x56x56x256")
WINDOWS = {"2x2/2": (2, 2, 0), "3x3/2 pad 1": (3, 2, 1)}
LAYOUTS: tuple[DataFormat, ...] = ("channels_last", "channels_first")
DTYPES = ("float32", "bfloat16")
PRIMITIVES = ("select", "gather", "scatter", "reduce", "replicate")
# Max unpooling is "last", which where windows overlap is another program than "sum".
LAST = "scatter last"
OPERATIONS = (*PRIMITIVES, LAST)
OPTIONS: dict[str, dict[str, Any]] = {
    "scatter": {"duplicates": "sum"},
    LAST: {"duplicates": "last"},
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
    interpret: bool = False,
) -> Iterator[Case]:
    """Every primitive. Arrays are made when a case's contenders are.

    Args:
        shapes, dtypes: other ones than the suite's.
        device: of PyTorch.
        interpret: on a CPU, interpret the kernels for GPUs.
    """
    for layout, others in (LAYOUTS[0], False), (LAYOUTS[0], True), (LAYOUTS[1], False):
        for window, shape, dtype, operation in itertools.product(
            WINDOWS, shapes or SHAPES, dtypes or DTYPES, OPERATIONS
        ):
            case = _case(operation, window, layout, shape, dtype, device, interpret, others)
            if case is not None:
                yield case


def available(call: Call, arrays: Sequence[Any], interpret: bool = False) -> list[str]:
    """The implementations that could run a call on this machine's platform."""
    platform = "gpu" if interpret else jax.default_backend()
    return [*backends.serving(call, arrays, platform), "xla"]


def bound(call: Call, interpret: bool = False) -> Callable[..., Any]:
    """The function that runs a call; interpreted, what is lowered for one GPU."""
    if interpret:
        return functools.partial(lowering.on_device, "gpu", call)
    return lambda *arrays: primitives.bind(call, *arrays)


def interpreter() -> contextlib.AbstractContextManager[Any]:
    """In which kernels for GPUs run on a CPU.

    Raises:
        NotImplementedError: this JAX has none.
    """
    from jax.experimental.pallas import mosaic_gpu

    if not hasattr(mosaic_gpu, "force_gpu_interpret_mode"):
        raise NotImplementedError(f"jax {jax.__version__} cannot interpret Mosaic GPU")
    return mosaic_gpu.force_gpu_interpret_mode()


def running(contenders: Runs) -> tuple[Runs, dict[str, Any], dict[str, str]]:
    """The contenders that run, what ours gave, and why the others did not."""
    runs, results, errors = Runs(), dict[str, Any](), dict[str, str]()
    for name, run in contenders.items():
        try:
            result = jax.block_until_ready(run())
        except Exception as error:  # one peer less is no reason to lose the others
            errors[name] = f"{type(error).__name__}: {error}"
            continue
        runs[name] = run
        if name in backends.IMPLEMENTATIONS:
            results[name] = result
    return runs, results, errors


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
    operation: str,
    window: str,
    layout: DataFormat,
    shape: str,
    dtype: str,
    device: str,
    interpret: bool,
    others: bool,
) -> Case | None:
    """A case, with eager PyTorch or with the `others`; None where it says nothing new."""
    k, s, p = WINDOWS[window]
    batch, height, width, channels = full = sizes(shape)
    ours = full if layout == "channels_last" else (batch, channels, height, width)
    geometry = WindowGeometry.for_input(ours, (k, k), s, p, data_format=layout)
    primitive = operation.split()[0]
    if operation == LAST and not geometry.overlaps:
        return None
    if others and primitive not in ("select", "scatter", "reduce"):
        return None
    call = Call(primitive, geometry, None, **OPTIONS.get(operation, {}))
    arrays = functools.partial(arrays_for, primitive, geometry, ours, dtype)
    keys = jax.random.split(jax.random.key(0), SETS)
    inputs = jax.eval_shape(arrays, keys[0])
    results = jax.eval_shape(functools.partial(primitives.bind, call), *inputs)
    moved = sum(a.size * a.dtype.itemsize for a in [*inputs, *jax.tree.leaves(results)])

    def make() -> Runs:
        sets = [arrays(key) for key in keys]
        contenders: Runs = {}
        for implementation in available(call, sets[0], interpret):
            named = dataclasses.replace(call, implementation=implementation)
            contenders[implementation] = one_after_another(bound(named, interpret), sets)
        if importlib.util.find_spec("torch") is not None:
            run = functools.partial(
                _torch_run, primitive, (k, s, p), layout, full, dtype, device, others
            )
            if not others:
                contenders |= _torch(run, "torch")
            elif device == "cuda":
                contenders |= _torch(run, "torch.compile")
            if device == "cuda":
                contenders["copy torch"] = _torch_copy(moved // 2, device)
        if others and primitive in ("select", "reduce"):
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
    name = f"{operation}, compiled peers" if others else operation
    return Case(name, shape, window, dtype, layout, make, SETS, calls, moved)


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


def _torch(make: Callable[[], Run], name: str) -> Runs:
    """A peer, or what says why it could not be made."""
    try:
        return {name: make()}
    except Exception as error:  # no such kernel, or no compiler: `running` reports it
        return {name: functools.partial(_fail, error)}


def _fail(error: Exception) -> None:
    raise error


def _torch_run(
    primitive: str,
    window: tuple[int, int, int],
    layout: str,
    shape: tuple[int, ...],
    dtype: str,
    device: str,
    compiled: bool,
) -> Run:
    """The same operation of PyTorch, eager or compiled, in the memory format of the layout."""
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
    if compiled:
        torch.compiler.reset()  # it compiles a function a few times, then no more
        function = torch.compile(function, dynamic=False)
    return lambda: [function(*arguments) for arguments in sets]


def _torch_copy(size: int, device: str) -> Run:
    """What the driver's own copy of so many bytes takes."""
    import torch

    pairs = [torch.empty(2, size, dtype=torch.uint8, device=device) for _ in range(SETS)]
    for pair in pairs:
        pair.random_()
    return lambda: [target.copy_(source) for source, target in pairs]


def _gradient(y: Any, leaf: Any, dy: Any) -> Any:
    import torch

    return torch.autograd.grad(y, leaf, dy, retain_graph=True)
