"""The other operations, each with the same one of its peers."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np

import jaxunpool
from benchmarks.cases import LAYOUTS, WINDOWS, Case, copy_moving, image

Run = Callable[[], object]


def cases(shape: tuple[int, ...], dtype: str, device: str, only: str = "") -> Iterator[Case]:
    """As `benchmarks.cases.cases`; `shape` is that of the larger array, the unpooled one."""
    for layout in LAYOUTS:
        peers = _Peers(shape, layout, dtype, device)
        for operation, make in (
            ("average", _average),
            ("nearest unpool", _nearest),
            ("average unpool", _nearest),
            ("interpolate linear", _nearest),
            ("adaptive max pool with indices", _adaptive),
            ("fractional max pool with indices", _fractional),
            ("conv_transpose", _conv_transpose),
        ):
            if only in f"{operation} {layout}" or operation == "average":
                for case in make(operation, peers):
                    if only in f"{case.operation} {case.window} {layout}":
                        yield case


class _Peers:
    """An image in one layout, for JAX and for PyTorch in the memory formats to compare with."""

    def __init__(self, shape: tuple[int, ...], layout: Any, dtype: str, device: str) -> None:
        self.shape, self.layout, self.dtype, self.device = shape, layout, dtype, device
        self.options: dict[str, Any] = {"data_format": layout}
        self.has_torch = importlib.util.find_spec("torch") is not None
        formats = {"torch nchw": False, "torch nhwc": True}
        self.formats = formats if layout == "channels_last" else {"torch nchw": False}

    def image(self, divisor: int = 1) -> jax.Array:
        batch, height, width, channels = self.shape
        return image(
            (batch, height // divisor, width // divisor, channels), self.layout, self.dtype
        )

    def torch(self, make: Callable[[Any, Any], Run], divisor: int = 1) -> dict[str, Run]:
        """`make(functional, tensor)` for every memory format."""
        if not self.has_torch:
            return {}
        import torch

        x = np.array(self.image(divisor).astype(jnp.float32))
        x = np.moveaxis(x, -1, 1) if self.layout == "channels_last" else x
        runs = {}
        for name, channels_last in self.formats.items():
            memory_format = torch.channels_last if channels_last else torch.contiguous_format
            tensor = torch.from_numpy(np.ascontiguousarray(x)).to(
                self.device, getattr(torch, self.dtype), memory_format=memory_format
            )
            runs[name] = make(torch.nn.functional, tensor)
        return runs

    def case(
        self, operation: str, window: str, moved_bytes: int, contenders: dict[str, Run]
    ) -> Case:
        contenders["copy"] = copy_moving(moved_bytes)
        return Case(operation, window, self.layout, moved_bytes, contenders)


def _average(_: str, peers: _Peers) -> Iterator[Case]:
    x = peers.image()
    for window, (k, s, p) in WINDOWS.items():
        ours = functools.partial(jaxunpool.avg_pool, window_shape=(k, k), strides=s, padding=p)
        ours = functools.partial(ours, **peers.options)
        y = jax.jit(ours)(x)
        poolings = {"jaxunpool": ours}
        if peers.layout == "channels_last":
            poolings["flax"] = functools.partial(
                flax.linen.avg_pool, window_shape=(k, k), strides=(s, s), padding=((p, p), (p, p))
            )
        forward: dict[str, Run] = {
            name: functools.partial(jax.jit(pool), x) for name, pool in poolings.items()
        }
        gradient: dict[str, Run] = {
            name: functools.partial(jax.jit(lambda dy, f=pool: jax.vjp(f, x)[1](dy)[0]), y)
            for name, pool in poolings.items()
        }
        theirs = functools.partial(_torch_average, window=(k, s, p))
        forward |= peers.torch(theirs)
        gradient |= peers.torch(functools.partial(theirs, gradient=True))
        moved = x.nbytes + y.nbytes
        yield peers.case("average pool", window, moved, forward)
        yield peers.case("average pool gradient", window, moved, gradient)


def _torch_average(
    functional: Any, x: Any, window: tuple[int, int, int], gradient: bool = False
) -> Run:
    if not gradient:
        return lambda: functional.avg_pool2d(x, *window)
    import torch

    leaf = x.detach().requires_grad_()
    y = functional.avg_pool2d(leaf, *window)
    dy = y.detach().clone()
    return lambda: torch.autograd.grad(y, leaf, dy, retain_graph=True)


def _nearest(operation: str, peers: _Peers) -> Iterator[Case]:
    y = peers.image(2)
    linear = operation == "interpolate linear"
    ours = {
        "nearest unpool": functools.partial(jaxunpool.nearest_unpool, window_shape=(2, 2)),
        "average unpool": functools.partial(jaxunpool.avg_unpool, window_shape=(2, 2)),
        "interpolate linear": functools.partial(jaxunpool.interpolate, scale=2, mode="linear"),
    }[operation]
    runs: dict[str, Run] = {
        "jaxunpool": functools.partial(jax.jit(functools.partial(ours, **peers.options)), y)
    }
    if linear:
        axes = (1, 2) if peers.layout == "channels_last" else (2, 3)
        sizes = tuple(2 * n if axis in axes else n for axis, n in enumerate(y.shape))
        runs["jax.image"] = functools.partial(
            jax.jit(functools.partial(jax.image.resize, shape=sizes, method="linear")), y
        )
    mode = "bilinear" if linear else "nearest"
    runs |= peers.torch(lambda f, y: lambda: f.interpolate(y, scale_factor=2, mode=mode), 2)
    yield peers.case(operation, "2x2/2", 5 * y.nbytes, runs)


def _adaptive(operation: str, peers: _Peers) -> Iterator[Case]:
    x = peers.image()
    pool = functools.partial(
        jaxunpool.adaptive_max_pool_with_indices, output_shape=(7, 7), **peers.options
    )
    runs: dict[str, Run] = {"jaxunpool": functools.partial(jax.jit(pool), x)}
    runs |= peers.torch(lambda f, x: lambda: f.adaptive_max_pool2d(x, 7, return_indices=True))
    yield peers.case(operation, "to 7x7", x.nbytes, runs)


def _fractional(operation: str, peers: _Peers) -> Iterator[Case]:
    x = peers.image()
    batch, height, _, channels = peers.shape
    samples = np.random.default_rng(0).random((batch, channels, 2), np.float32)
    for k, ratio in ((2, 0.5), (2, 0.7), (3, 0.5)):
        output = int(height * ratio)
        pool = functools.partial(
            jaxunpool.fractional_max_pool_with_indices,
            window_shape=(k, k),
            output_shape=(output, output),
            **peers.options,
        )
        runs: dict[str, Run] = {
            "jaxunpool": functools.partial(
                jax.jit(lambda x, s, pool=pool: pool(x, random_samples=s)), x, samples
            )
        }

        def theirs(functional: Any, x: Any, k: int = k, output: int = output) -> Run:
            import torch

            given = torch.from_numpy(samples).to(x)
            return lambda: functional.fractional_max_pool2d(
                x, k, output_size=output, return_indices=True, _random_samples=given
            )

        runs |= peers.torch(theirs)
        pooled = x.nbytes * output**2 // height**2
        yield peers.case(operation, f"{k}x{k} to {ratio}", x.nbytes + 2 * pooled, runs)


def _conv_transpose(operation: str, peers: _Peers) -> Iterator[Case]:
    y = peers.image(2)
    channels = peers.shape[-1]
    numbers = np.random.default_rng(1).standard_normal((2, 2, channels, channels), np.float32)
    kernel = jnp.asarray(numbers / channels, peers.dtype)
    theirs = jnp.moveaxis(kernel, (0, 1), (2, 3))
    is_last = peers.layout == "channels_last"
    ours = jax.jit(functools.partial(jaxunpool.conv_transpose, strides=2, **peers.options))
    spatial = ("NHWC", "HWIO", "NHWC") if is_last else ("NCHW", "HWIO", "NCHW")
    plain = jax.jit(
        functools.partial(
            jax.lax.conv_transpose, strides=(2, 2), padding="VALID", dimension_numbers=spatial
        )
    )
    runs: dict[str, Run] = {
        "jaxunpool": functools.partial(ours, y, kernel if is_last else theirs),
        # Its kernel is turned around.
        "jax.lax": functools.partial(plain, y, kernel[::-1, ::-1]),
    }

    def by_torch(functional: Any, y: Any) -> Run:
        import torch

        weight = torch.from_numpy(np.array(theirs.astype(jnp.float32))).to(y)
        return lambda: functional.conv_transpose2d(y, weight, stride=2)

    runs |= peers.torch(by_torch, 2)
    yield peers.case(operation, "2x2/2", 5 * y.nbytes, runs)
