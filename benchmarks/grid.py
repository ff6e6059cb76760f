"""The grid: operators beside those of PyTorch and Flax, over shapes, windows, types and layouts.

`OPERATORS` says once what an operator is in each library; the rest makes calls of it. PyTorch runs
in every memory format that a user could choose, and what counts is the faster.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np

import jaxunpool
from benchmarks.timing import Case, Run, Runs, sizes
from jaxunpool.core.backends import Implementation

SHAPES = ("32x56x56x64", "16x14x14x512", "1x1024x1024x3", "1x32x64x64x32", "16x16384x64")
LARGE = "8x224x224x64"
# Size, stride and padding, the same along every axis.
WINDOWS = {
    "2/2": (2, 2, 0),
    "3/2 pad 1": (3, 2, 1),
    "3/1 pad 1": (3, 1, 1),
    "5/3 pad 2": (5, 3, 2),
    "7/7": (7, 7, 0),
}
TILES = {name: (k, s, p) for name, (k, s, p) in WINDOWS.items() if k == s}
DTYPES = ("float32", "bfloat16", "float16")
LAYOUTS = ("channels_last", "channels_first")
MEMORY_FORMATS = {1: (), 2: ("channels_last",), 3: ("channels_last_3d",)}
HAS_TORCH = importlib.util.find_spec("torch") is not None

Function = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Cell:
    """An array and a window, and how each library is told of them.

    Attributes:
        shape: of the array, channels last.
        window: size, stride and padding, or what else an operator has.
        dtype, layout: of the array.
        implementation: of ours.
    """

    shape: tuple[int, ...]
    window: tuple[Any, ...]
    dtype: str
    layout: str
    implementation: Implementation

    @property
    def spatial(self) -> tuple[int, ...]:
        """Sizes of the spatial axes."""
        return self.shape[1:-1]

    @property
    def ours(self) -> dict[str, Any]:
        """What all of our functions take."""
        return {"data_format": self.layout, "implementation": self.implementation}

    @property
    def our_window(self) -> dict[str, Any]:
        """The window, as we have it."""
        k, s, p = self.window
        window = {"window_shape": (k,) * len(self.spatial), "strides": s, "padding": p}
        return window | self.ours

    @property
    def torch_window(self) -> dict[str, Any]:
        """The window, as PyTorch has it."""
        return dict(zip(("kernel_size", "stride", "padding"), self.window))

    @property
    def flax_window(self) -> dict[str, Any]:
        """The window, as Flax has it."""
        (k, s, p), n = self.window, len(self.spatial)
        return {"window_shape": (k,) * n, "strides": (s,) * n, "padding": ((p, p),) * n}

    def torch(self, name: str) -> Function:
        """PyTorch's function for so many axes: `max_pool` is its `max_pool2d`."""
        functional = importlib.import_module("torch.nn.functional")
        return getattr(functional, f"{name}{len(self.spatial)}d")

    def numbers(self, *shape: int) -> np.ndarray:
        """Random numbers in [0, 1)."""
        return np.random.default_rng(1).random(shape, np.float32)


class Operator(NamedTuple):
    """One operator in three libraries.

    Attributes:
        windows: those it is measured for, by name.
        ours, torch, flax: the function for a cell; None where a library has none.
        takes: so many results of max pooling with indices; 0: the image itself.
        timed: what of it: itself (""), its "gradient" alone, or one "and gradient" after the other.
        ndims: the numbers of axes that PyTorch has it for.
        by_default: whether it is measured without `--full`.
    """

    windows: Mapping[str, tuple[Any, ...]]
    ours: Callable[[Cell], Function]
    torch: Callable[[Cell], Function]
    flax: Callable[[Cell], Function] | None = None
    takes: int = 0
    timed: tuple[str, ...] = ("",)
    ndims: tuple[int, ...] = (1, 2, 3)
    by_default: bool = False


bind = functools.partial
OPERATORS = {
    "max pool": Operator(
        WINDOWS,
        lambda cell: bind(jaxunpool.max_pool, **cell.our_window),
        lambda cell: bind(cell.torch("max_pool"), **cell.torch_window),
        lambda cell: bind(flax.linen.max_pool, **cell.flax_window),
        timed=("", "and gradient"),
        by_default=True,
    ),
    "max pool with indices": Operator(
        WINDOWS,
        lambda cell: bind(jaxunpool.max_pool_with_indices, **cell.our_window),
        lambda cell: bind(cell.torch("max_pool"), return_indices=True, **cell.torch_window),
        by_default=True,
    ),
    "max unpool": Operator(
        WINDOWS,
        lambda cell: bind(jaxunpool.max_unpool, implementation=cell.implementation),
        lambda cell: bind(cell.torch("max_unpool"), output_size=cell.spatial, **cell.torch_window),
        takes=2,
        timed=("", "gradient"),
        by_default=True,
    ),
    "avg pool": Operator(
        WINDOWS,
        lambda cell: bind(jaxunpool.avg_pool, **cell.our_window),
        lambda cell: bind(cell.torch("avg_pool"), **cell.torch_window),
        lambda cell: bind(flax.linen.avg_pool, **cell.flax_window),
        timed=("", "gradient"),
        by_default=True,
    ),
    "nearest unpool": Operator(
        TILES,
        lambda cell: bind(jaxunpool.nearest_unpool, **cell.our_window),
        lambda cell: bind(_interpolate(), scale_factor=cell.window[0], mode="nearest"),
        takes=1,
        timed=("", "gradient"),
    ),
    "adaptive max pool with indices": Operator(
        {"to 7": (7,)},
        lambda cell: bind(
            jaxunpool.adaptive_max_pool_with_indices, output_shape=cell.window[0], **cell.ours
        ),
        lambda cell: bind(
            cell.torch("adaptive_max_pool"), output_size=cell.window[0], return_indices=True
        ),
    ),
    "adaptive avg pool": Operator(
        {"to 7": (7,)},
        lambda cell: bind(jaxunpool.adaptive_avg_pool, output_shape=cell.window[0], **cell.ours),
        lambda cell: bind(cell.torch("adaptive_avg_pool"), output_size=cell.window[0]),
    ),
    "fractional max pool with indices": Operator(
        {"2 to 0.5": (2, 0.5), "2 to 0.7": (2, 0.7)},
        lambda cell: bind(
            jaxunpool.fractional_max_pool_with_indices,
            random_samples=_samples(cell),
            window_shape=cell.window[0],
            output_shape=_outputs(cell),
            **cell.ours,
        ),
        lambda cell: bind(
            cell.torch("fractional_max_pool"),
            _random_samples=_as_torch(_samples(cell), cell.dtype),
            kernel_size=cell.window[0],
            output_size=_outputs(cell),
            return_indices=True,
        ),
        ndims=(2, 3),
    ),
    "interpolate linear": Operator(
        {"2/2": WINDOWS["2/2"]},
        lambda cell: bind(jaxunpool.interpolate, scale=2, mode="linear", **cell.ours),
        lambda cell: bind(
            _interpolate(),
            scale_factor=2,
            mode=("linear", "bilinear", "trilinear")[len(cell.spatial) - 1],
        ),
        takes=1,
    ),
}
MAKER = OPERATORS["max pool with indices"]  # of what unpooling takes


def cases(
    shapes: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    implementation: Implementation = None,
    full: bool = False,
) -> Iterator[Case]:
    """The grid, or with `full` all of it. Arrays are made when a case's contenders are."""
    grid = itertools.product(
        shapes or ((*SHAPES, LARGE) if full else SHAPES),
        dtypes or DTYPES[: 3 if full else 2],
        LAYOUTS[: 2 if full else 1],
        dict.fromkeys(itertools.chain(*(operator.windows for operator in OPERATORS.values()))),
        OPERATORS.items(),
    )
    for shape, dtype, layout, window, (name, operator) in grid:
        if window in operator.windows and (full or operator.by_default):
            cell = Cell(sizes(shape), operator.windows[window], dtype, layout, implementation)
            for timed in operator.timed:
                make = functools.partial(contenders, operator, cell, timed)
                yield Case(f"{name} {timed}".strip(), shape, window, dtype, layout, make)


def contenders(operator: Operator, cell: Cell, timed: str) -> Runs:
    """Ours and those that have the operator, for this type too. They have run once."""
    runs: Runs = {}
    for name, make in _makers(operator, cell, timed):
        try:
            run = make()
            run()
        except NotImplementedError:  # no such kernel for this type, or for --implementation
            continue
        runs[name] = run
    return runs


def _makers(operator: Operator, cell: Cell, timed: str) -> Iterator[tuple[str, Callable[[], Run]]]:
    takes = operator.takes
    yield "jaxunpool", lambda: ours(operator, cell, timed)
    if HAS_TORCH and len(cell.spatial) in operator.ndims:
        for format in ("contiguous_format", *MEMORY_FORMATS[len(cell.spatial)]):
            yield (
                f"torch {format}",
                lambda: _torch_run(
                    operator.torch(cell),
                    timed,
                    *_torch_inputs(cell, takes, format),  # noqa: B023
                ),
            )
    if (flaxs := operator.flax) and cell.layout == "channels_last":
        yield "flax", lambda: _jax_run(flaxs(cell), timed, *_inputs(cell, takes))


def ours(operator: Operator, cell: Cell, timed: str) -> Run:
    """Our function, as a call without arguments."""
    return _jax_run(operator.ours(cell), timed, *_inputs(cell, operator.takes))


def _jax_run(function: Function, timed: str, x: jax.Array, *others: Any) -> Run:
    if not timed:
        return functools.partial(jax.jit(function), x, *others)

    @jax.jit
    def program(x: jax.Array, dy: jax.Array, *others: Any) -> object:
        y, pullback = jax.vjp(lambda x: function(x, *others), x)
        return pullback(dy) if timed == "gradient" else (y, pullback(dy))

    result = jax.eval_shape(function, x, *others)
    return functools.partial(program, x, jnp.ones(result.shape, result.dtype), *others)


def _torch_run(function: Function, timed: str, x: Any, *others: Any) -> Run:
    if not timed:
        return functools.partial(function, x, *others)
    import torch

    leaf = x.detach().requires_grad_()
    y = function(leaf, *others)
    dy = torch.ones_like(y)
    if timed == "gradient":
        return lambda: torch.autograd.grad(y, leaf, dy, retain_graph=True)

    def program() -> object:
        y = function(leaf, *others)
        return y, torch.autograd.grad(y, leaf, dy)

    return program


@functools.lru_cache(maxsize=1)
def _normal(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@functools.lru_cache(maxsize=1)
def _image(shape: tuple[int, ...], dtype: str, layout: str) -> jax.Array:
    x = _normal(shape)
    return jnp.asarray(np.moveaxis(x, -1, 1) if layout == "channels_first" else x, dtype)


@functools.lru_cache(maxsize=2)
def _torch_image(shape: tuple[int, ...], dtype: str, memory_format: str) -> Any:
    import torch

    x = np.ascontiguousarray(np.moveaxis(_normal(shape), -1, 1))
    return _as_torch(x, dtype).to(memory_format=getattr(torch, memory_format))


@functools.lru_cache(maxsize=1)
def _pooled(cell: Cell) -> tuple[Any, ...]:
    return jax.jit(MAKER.ours(cell))(_inputs(cell, 0)[0])


@functools.lru_cache(maxsize=2)
def _torch_pooled(cell: Cell, memory_format: str) -> tuple[Any, ...]:
    return MAKER.torch(cell)(_torch_inputs(cell, 0, memory_format)[0])


def _inputs(cell: Cell, takes: int) -> tuple[Any, ...]:
    return _pooled(cell)[:takes] if takes else (_image(cell.shape, cell.dtype, cell.layout),)


def _torch_inputs(cell: Cell, takes: int, memory_format: str) -> tuple[Any, ...]:
    if takes:
        return _torch_pooled(cell, memory_format)[:takes]
    return (_torch_image(cell.shape, cell.dtype, memory_format),)


def _as_torch(array: np.ndarray, dtype: str) -> Any:
    import torch

    return torch.from_numpy(array).to(getattr(torch, dtype))


def _interpolate() -> Function:
    return importlib.import_module("torch.nn.functional").interpolate


def _samples(cell: Cell) -> np.ndarray:
    return cell.numbers(cell.shape[0], cell.shape[-1], len(cell.spatial))


def _outputs(cell: Cell) -> tuple[int, ...]:
    return tuple(int(size * cell.window[1]) for size in cell.spatial)
