"""Random calls of functions that have a peer in PyTorch: ours, its, and how close they have to be.

Each maker draws one call from a generator and returns a `Call`. Arrays are channels first.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from strategies import KINDS, values
from torch.nn import functional as F
from torch_cases import random_pooling

import jaxunpool as jup

FIRST = {"data_format": "channels_first"}


@dataclasses.dataclass
class Call:
    """The same function twice.

    Attributes:
        ours: JAX arrays -> array, or (array, integers) where there are indices.
        theirs: the same of PyTorch.
        inputs: float arrays, all with a gradient.
        rounding: how far values may differ, in units of eps of the largest value; 0 where nothing
            is rounded.
        gradient_rounding: the same for gradients, which are sums where windows overlap.
    """

    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    inputs: tuple[np.ndarray, ...]
    rounding: float
    gradient_rounding: float = 8


def _floats(rng: np.random.Generator, shape: Any, special: bool = False) -> np.ndarray:
    kind = KINDS[rng.integers(3)] if special else "plain"
    return values(rng, tuple(shape), np.dtype(("float32", "float64")[rng.integers(2)]), kind)


def _sizes(rng: np.random.Generator, low: int, high: tuple[int, int, int], n: int) -> tuple:
    return tuple(rng.integers(low, high[n - 1] + 1, n).tolist())


def _torch(name: str, n: int) -> Callable[..., Any]:
    return getattr(F, f"{name}{n}d")


def _window(rng: np.random.Generator) -> tuple[Any, dict[str, Any], dict[str, Any], int]:
    """A random window without dilation, for us and for PyTorch's average pooling."""
    pooling = dataclasses.replace(random_pooling(rng), dilation=(1, 1, 1))
    n = len(pooling.sizes)
    pooling = dataclasses.replace(
        pooling,
        dilation=(1,) * n,
        sizes=tuple(max(size, k) for size, k in zip(pooling.sizes, pooling.window)),
    )
    ours = pooling.options
    theirs = {
        "kernel_size": pooling.window,
        "stride": pooling.strides,
        "padding": [low for low, _ in pooling.padding],
        "ceil_mode": pooling.ceil_mode,
    }
    return pooling, ours, theirs, n


def avg_pool(rng: np.random.Generator) -> Call:
    pooling, ours, theirs, n = _window(rng)
    counts = {"count_include_pad": bool(rng.integers(2))}
    if n > 1 and rng.integers(2):  # not of PyTorch's avg_pool1d
        counts["divisor_override"] = int(rng.integers(1, 9))
    return Call(
        functools.partial(jup.avg_pool, **ours, **counts),
        functools.partial(_torch("avg_pool", n), **theirs, **counts),
        (_floats(rng, pooling.shape),),
        rounding=2,
    )


def avg_unpool(rng: np.random.Generator) -> Call:
    """The adjoint is PyTorch's gradient; the mean of tiles is its nearest interpolation."""
    if rng.integers(2):
        n = int(rng.integers(1, 4))
        window = _sizes(rng, 1, (5, 4, 3), n)
        y = _floats(rng, (2, 2, *_sizes(rng, 1, (9, 6, 4), n)))
        return Call(
            lambda y: jup.avg_unpool(y, window, **FIRST),
            lambda y: F.interpolate(y, scale_factor=[float(k) for k in window]),
            (y,),
            rounding=0,
        )
    pooling, ours, theirs, n = _window(rng)
    counts = {"count_include_pad": bool(rng.integers(2))}
    pool = functools.partial(_torch("avg_pool", n), **theirs, **counts)
    like = torch.zeros(pooling.shape)
    y = _floats(rng, pool(like).shape)

    def transpose(y):
        x = torch.zeros(pooling.shape, dtype=y.dtype, requires_grad=True)
        return torch.autograd.grad(pool(x), x, y, create_graph=True)[0]

    return Call(
        lambda y: jup.avg_unpool(y, mode="adjoint", output_shape=pooling.sizes, **ours, **counts),
        transpose,
        (y,),
        rounding=2,
    )


def nearest_unpool(rng: np.random.Generator) -> Call:
    n = int(rng.integers(1, 4))
    window = _sizes(rng, 1, (6, 4, 3), n)
    return Call(
        lambda y: jup.nearest_unpool(y, window, **FIRST),
        lambda y: F.interpolate(y, scale_factor=[float(k) for k in window], mode="nearest"),
        (_floats(rng, (2, 2, *_sizes(rng, 1, (9, 6, 4), n))),),
        rounding=0,
    )


def _channelwise(n: int, y: Any, pattern: Any, strides: Any) -> Any:
    """One pattern for every channel, as a transposed convolution of single channels."""
    lines = y.reshape(-1, 1, *y.shape[2:])
    u = _torch("conv_transpose", n)(lines, pattern[None, None], stride=strides)
    return u.reshape(*y.shape[:2], *u.shape[2:])


def fixed_unpool(rng: np.random.Generator) -> Call:
    n = int(rng.integers(1, 4))
    window = _sizes(rng, 1, (5, 4, 3), n)
    strides = _sizes(rng, 1, (5, 4, 3), n) if rng.integers(2) else None
    y = _floats(rng, (2, 2, *_sizes(rng, 1, (9, 6, 4), n)))
    return Call(
        lambda y, pattern: jup.fixed_unpool(y, pattern, strides, **FIRST),
        lambda y, pattern: _channelwise(n, y, pattern, strides or window),
        (y, values(rng, window, y.dtype, "plain")),
        rounding=4,
        gradient_rounding=40,  # of the pattern: a sum over everything
    )


def bed_of_nails_unpool(rng: np.random.Generator) -> Call:
    n = int(rng.integers(1, 4))
    window = _sizes(rng, 1, (5, 4, 3), n)
    strides = _sizes(rng, 1, (5, 4, 3), n)
    position = tuple(int(rng.integers(k)) for k in window)
    nail = np.zeros(window)
    nail[position] = 1
    return Call(
        lambda y: jup.bed_of_nails_unpool(y, window, strides, position=position, **FIRST),
        lambda y: _channelwise(n, y, torch.from_numpy(nail).to(y.dtype), strides),
        (_floats(rng, (2, 2, *_sizes(rng, 1, (9, 6, 4), n))),),
        rounding=0,
    )


def max_unpool_like(rng: np.random.Generator) -> Call:
    """PyTorch's gradient of max pooling, applied to another array."""
    pooling, ours, theirs, n = _window(rng)
    pool = functools.partial(_torch("max_pool", n), **theirs)
    x = _floats(rng, pooling.shape, special=True)
    y = values(rng, pool(torch.from_numpy(x)).shape, x.dtype, "plain")

    def transpose(y):
        leaf = torch.from_numpy(x).requires_grad_()
        return torch.autograd.grad(pool(leaf), leaf, y, create_graph=True)[0]

    return Call(lambda y: jup.max_unpool_like(x, y, **ours), transpose, (y,), rounding=0)


def adaptive_max_pool_with_indices(rng: np.random.Generator) -> Call:
    n = int(rng.integers(1, 4))
    outputs = _sizes(rng, 1, (9, 6, 4), n)
    x = _floats(rng, (2, 2, *_sizes(rng, 1, (30, 12, 7), n)), special=True)
    return Call(
        lambda x: _flat(jup.adaptive_max_pool_with_indices(x, outputs, **FIRST)),
        lambda x: _torch("adaptive_max_pool", n)(x, outputs, return_indices=True),
        (x,),
        rounding=0,
    )


def adaptive_avg_pool(rng: np.random.Generator) -> Call:
    n = int(rng.integers(1, 4))
    outputs = _sizes(rng, 1, (9, 6, 4), n)
    sizes = _sizes(rng, 1, (30, 12, 7), n)
    return Call(
        lambda x: jup.adaptive_avg_pool(x, outputs, **FIRST),
        lambda x: _torch("adaptive_avg_pool", n)(x, outputs),
        (_floats(rng, (2, 2, *sizes)),),
        rounding=4,
    )


def fractional_max_pool_with_indices(rng: np.random.Generator) -> Call:
    n = int(rng.integers(2, 4))
    window = _sizes(rng, 1, (4, 4, 3), n)
    outputs = _sizes(rng, 1, (9, 8, 4), n)
    # In 3-D PyTorch asks for one window less than there is room for.
    room = [o + k - 1 + (n == 3) for o, k in zip(outputs, window)]
    sizes = tuple(int(rng.integers(r, 2 * r + 2)) for r in room)
    x = _floats(rng, (2, 3, *sizes), special=True)
    samples = rng.random((2, 3, n)).astype(x.dtype)
    pool = getattr(F, f"fractional_max_pool{n}d")
    return Call(
        lambda x: _flat(
            jup.fractional_max_pool_with_indices(
                x, window, outputs, random_samples=samples, **FIRST
            )
        ),
        lambda x: pool(
            x, window, outputs, return_indices=True, _random_samples=torch.from_numpy(samples)
        ),
        (x,),
        rounding=0,
    )


def interpolate(rng: np.random.Generator) -> Call:
    mode = ("nearest", "nearest-exact", "linear", "cubic", "area")[rng.integers(5)]
    antialias = mode in ("linear", "cubic") and bool(rng.integers(2))
    n = 2 if mode == "cubic" or antialias else int(rng.integers(1, 4))
    sizes = _sizes(rng, 1, (25, 12, 6), n)
    options: dict[str, Any] = {}
    if mode in ("linear", "cubic"):
        options = {"align_corners": bool(rng.integers(2)), "antialias": antialias}
    name = {"linear": ("linear", "bilinear", "trilinear")[n - 1], "cubic": "bicubic"}.get(
        mode, mode
    )
    scale = tuple((rng.uniform(1 / np.array(sizes), 3)).tolist())
    outputs = [int(size * factor) for size, factor in zip(sizes, scale)]
    # PyTorch's gradient of "nearest" is not that of its forward function in 1-D and 3-D if a scale
    # just about keeps or doubles a size, nor that of antialiasing if it keeps one; and antialiasing
    # to width 1 reads the first row only.
    kept = any(output == size for size, output in zip(sizes, outputs))
    doubled = any(output == 2 * size for size, output in zip(sizes, outputs))
    inconsistent = (mode == "nearest" and n != 2 and (kept or doubled)) or (
        antialias and (kept or 1 in outputs)
    )
    if rng.integers(2) or inconsistent:
        ours = {"output_shape": _sizes(rng, 1 + antialias, (25, 12, 6), n)}
        theirs = {"size": ours["output_shape"]}
    else:
        ours, theirs = {"scale": scale}, {"scale_factor": scale}
    return Call(
        functools.partial(jup.interpolate, mode=mode, **ours, **options, **FIRST),
        functools.partial(F.interpolate, mode=name, **theirs, **options),
        (values(rng, (2, 2, *sizes), np.dtype("float32"), "plain"),),
        rounding=0 if mode.startswith("nearest") else 8,  # 1e-6 in float32
        gradient_rounding=16,
    )


def conv_transpose(rng: np.random.Generator) -> Call:
    n = int(rng.integers(1, 4))
    window, strides = _sizes(rng, 1, (5, 4, 3), n), _sizes(rng, 1, (4, 3, 3), n)
    dilation = _sizes(rng, 1, (3, 3, 2), n)
    padding = tuple(int(rng.integers(0, d * (k - 1) + 2)) for d, k in zip(dilation, window))
    extra = tuple(int(rng.integers(0, max(s, d))) for s, d in zip(strides, dilation))
    least = [
        (2 * p - d * (k - 1) - e + s - 1) // s + 1
        for p, d, k, e, s in zip(padding, dilation, window, extra, strides)
    ]
    sizes = tuple(max(1, low) + int(rng.integers(0, 5)) for low in least)
    groups, inputs, outputs = (int(rng.integers(1, 4)) for _ in range(3))
    dtype = np.dtype(("float32", "float64")[rng.integers(2)])
    draw = lambda *shape: values(rng, shape, dtype, "plain")
    shared = {"padding": padding, "output_padding": extra, "groups": groups, "dilation": dilation}
    x = draw(2, inputs * groups, *sizes)
    return Call(
        functools.partial(jup.conv_transpose, strides=strides, **shared, **FIRST),
        functools.partial(_torch("conv_transpose", n), stride=strides, **shared),
        (x, draw(inputs * groups, outputs, *window), draw(outputs * groups)),
        rounding=8,  # 1e-6 in float32
        gradient_rounding=80,  # of the kernel: a sum over everything
    )


def lp_pool(rng: np.random.Generator) -> Call:
    n = int(rng.integers(1, 4))
    window, strides = _sizes(rng, 1, (6, 4, 3), n), _sizes(rng, 1, (4, 4, 3), n)
    sizes = tuple(k + int(rng.integers(0, 8)) for k in window)
    norm = (1, 2, 3, 2.5, 4, math.inf)[rng.integers(6)]
    x = np.abs(_floats(rng, (2, 2, *sizes))) + 0.1
    return Call(
        lambda x: jup.lp_pool(x, norm, window, strides, **FIRST),
        lambda x: _torch("lp_pool", n)(
            x, norm, *((window, strides) if n > 1 else window + strides)
        ),
        (x,),
        rounding=4,
    )


def global_max_pool_with_indices(rng: np.random.Generator) -> Call:
    n = int(rng.integers(1, 4))
    x = _floats(rng, (2, 3, *_sizes(rng, 1, (40, 15, 8), n)), special=True)
    return Call(
        lambda x: _flat(jup.global_max_pool_with_indices(x, **FIRST)),
        lambda x: _torch("adaptive_max_pool", n)(x, 1, return_indices=True),
        (x,),
        rounding=0,
    )


def global_avg_pool(rng: np.random.Generator) -> Call:
    n = int(rng.integers(1, 4))
    x = _floats(rng, (2, 3, *_sizes(rng, 1, (40, 15, 8), n)))
    return Call(
        lambda x: jup.global_avg_pool(x, **FIRST),
        lambda x: _torch("adaptive_avg_pool", n)(x, 1),
        (x,),
        rounding=8,
    )


def inverse(rng: np.random.Generator) -> Call:
    """The transposed Jacobian of a strided convolution, a rectifier and a pooling."""
    kernel, x = values(rng, (3, 3, 4, 2), np.dtype("float64"), "plain"), rng.standard_normal
    x = x((2, 2, *rng.integers(7, 14, 2).tolist()))
    k, s = (int(rng.integers(1, 4)) for _ in range(2))

    def ours(x):
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NCHW", "HWOI", "NCHW")
        )
        return jup.max_pool(jax.nn.relu(y), (k, k), s, **FIRST)

    def theirs(x):
        y = F.conv2d(x, torch.from_numpy(kernel).permute(2, 3, 0, 1), padding=1)
        return F.max_pool2d(F.relu(y), k, s)

    def transpose(y):
        leaf = torch.from_numpy(x).requires_grad_()
        return torch.autograd.grad(theirs(leaf), leaf, y, create_graph=True)[0]

    y = values(rng, theirs(torch.from_numpy(x)).shape, np.dtype("float64"), "plain")
    return Call(
        lambda y: jup.inverse(ours, x)(y), transpose, (y,), rounding=16, gradient_rounding=16
    )


def _flat(result: Any) -> Any:
    y, indices = result
    return y, indices.flat


MAKERS = {
    maker.__name__: maker
    for maker in (
        avg_pool, avg_unpool, nearest_unpool, fixed_unpool, bed_of_nails_unpool, max_unpool_like,
        adaptive_max_pool_with_indices, adaptive_avg_pool, fractional_max_pool_with_indices,
        interpolate, conv_transpose, lp_pool, global_max_pool_with_indices, global_avg_pool,
        inverse,
    )
}  # fmt: skip
