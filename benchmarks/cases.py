"""Max pooling and unpooling, and the same operations of their peers."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np

import jaxunpool
from jaxunpool.core.geometry import DataFormat

WINDOWS = {"2x2/2": (2, 2, 0), "3x3/2 pad 1": (3, 2, 1)}
LAYOUTS: tuple[DataFormat, ...] = ("channels_last", "channels_first")
OPERATIONS = (
    "pool with indices",
    "unpool",
    "unpool gradient",
    "pool gradient",
    "pool and gradient",
)


@dataclasses.dataclass
class Case:
    """One operation on one layout and window.

    Attributes:
        operation, window, layout: its names.
        moved_bytes: the least any implementation has to read and write.
        contenders: name -> a call without arguments.
        runs: how many times each call runs the operation.
    """

    operation: str
    window: str
    layout: str
    moved_bytes: int
    contenders: dict[str, Callable[[], object]]
    runs: int = 1


def cases(shape: tuple[int, ...], dtype: str, device: str, only: str = "") -> Iterator[Case]:
    """Every operation whose "operation window layout" contains `only`.

    `shape` is (batch, height, width, channels); arrays are made when a case is reached.
    """
    for window in WINDOWS:
        for layout in LAYOUTS:
            if any(only in f"{operation} {window} {layout}" for operation in OPERATIONS):
                for case in _pooling_cases(window, layout, shape, dtype, device):
                    if only in f"{case.operation} {window} {layout}":
                        yield case


def _pooling_cases(
    window: str, layout: Any, shape: tuple[int, ...], dtype: str, device: str
) -> Iterator[Case]:
    k, s, p = WINDOWS[window]
    ours = _Ours(k, s, p, layout, image(shape, layout, dtype))
    peers = _torch_peers(k, s, p, layout, shape, dtype, device)
    flax = _Flax(k, s, p, ours.x) if layout == "channels_last" else None
    # Each of them reads or writes x, y and the offsets once; a pooling and its gradient, twice.
    once = ours.x.nbytes + ours.y.nbytes + ours.indices.nbytes
    for operation in OPERATIONS:
        moved_bytes = 2 * once if operation == "pool and gradient" else once
        method = operation.replace(" ", "_")
        contenders = {"jaxunpool": getattr(ours, method)}
        contenders |= {name: getattr(peer, method) for name, peer in peers.items()}
        if flax is not None and hasattr(flax, method):
            contenders["flax"] = getattr(flax, method)
        contenders["copy"] = copy_moving(moved_bytes)
        yield Case(operation, window, layout, moved_bytes, contenders)


def image(shape: tuple[int, ...], layout: str, dtype: str) -> jax.Array:
    """Random numbers of a channels-last shape, in either layout."""
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    x = np.ascontiguousarray(np.moveaxis(x, -1, 1)) if layout == "channels_first" else x
    return jnp.asarray(x, dtype)


def copy_moving(moved_bytes: int) -> Callable[[], object]:
    """A copy that reads and writes that many bytes together."""
    source = jnp.zeros(moved_bytes // 8, jnp.float32)
    return functools.partial(jax.jit(lambda a: a + 1), source)


def _value_and_pullback(function: Callable, x: jax.Array, dy: jax.Array) -> object:
    y, pullback = jax.vjp(function, x)
    return y, pullback(dy)


class _Ours:
    def __init__(self, k: int, s: int, p: int, layout: Any, x: jax.Array) -> None:
        options: dict[str, Any] = {
            "window_shape": (k, k),
            "strides": s,
            "padding": p,
            "data_format": layout,
        }
        pool = functools.partial(jaxunpool.max_pool, **options)
        self.x = x
        self._with_indices = jax.jit(functools.partial(jaxunpool.max_pool_with_indices, **options))
        self.y, self.indices = self._with_indices(x)
        self._unpool = jax.jit(jaxunpool.max_unpool)
        self._pool_and_pullback = jax.jit(functools.partial(_value_and_pullback, pool))
        self._pullback = jax.jit(lambda pullback, cotangent: pullback(cotangent))
        self._of_pool = jax.vjp(pool, x)[1]
        self._of_unpool = jax.vjp(lambda y: jaxunpool.max_unpool(y, self.indices), self.y)[1]

    def pool_with_indices(self) -> object:
        return self._with_indices(self.x)

    def unpool(self) -> object:
        return self._unpool(self.y, self.indices)

    def unpool_gradient(self) -> object:
        return self._pullback(self._of_unpool, self.x)

    def pool_gradient(self) -> object:
        return self._pullback(self._of_pool, self.y)

    def pool_and_gradient(self) -> object:
        return self._pool_and_pullback(self.x, self.y)


class _Flax:
    """Flax has the pooling alone: no indices, no unpooling."""

    def __init__(self, k: int, s: int, p: int, x: jax.Array) -> None:
        pool = functools.partial(
            flax.linen.max_pool, window_shape=(k, k), strides=(s, s), padding=((p, p), (p, p))
        )
        self._x, self._y = x, pool(x)
        self._pool_and_pullback = jax.jit(functools.partial(_value_and_pullback, pool))

    def pool_and_gradient(self) -> object:
        return self._pool_and_pullback(self._x, self._y)


def _torch_peers(
    k: int, s: int, p: int, layout: str, shape: tuple[int, ...], dtype: str, device: str
) -> dict[str, Any]:
    """PyTorch in the memory formats a user could choose: one for channels first, two for last."""
    if importlib.util.find_spec("torch") is None:
        return {}
    nchw = _Torch(k, s, p, shape, dtype, device, channels_last=False)
    if layout == "channels_first":
        return {"torch nchw": nchw}
    return {
        "torch nchw": nchw,
        "torch nhwc": _Torch(k, s, p, shape, dtype, device, channels_last=True),
    }


class _Torch:
    def __init__(
        self,
        k: int,
        s: int,
        p: int,
        shape: tuple[int, ...],
        dtype: str,
        device: str,
        *,
        channels_last: bool,
    ) -> None:
        import torch

        functional: Any = torch.nn.functional
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        first = torch.from_numpy(np.array(image(shape, "channels_first", "float32")))
        window: dict[str, Any] = {"kernel_size": k, "stride": s, "padding": p}
        self._grad = torch.autograd.grad
        self._pool = functools.partial(functional.max_pool2d, **window)
        self._x = first.to(device, getattr(torch, dtype), memory_format=memory_format)
        self._y, indices = self._pool(self._x, return_indices=True)
        self._unpool = functools.partial(
            functional.max_unpool2d, indices=indices, output_size=self._x.shape[2:], **window
        )
        self._x_leaf = self._x.detach().requires_grad_()
        self._y_leaf = self._y.detach().requires_grad_()
        self._pooled = self._pool(self._x_leaf)
        self._unpooled = self._unpool(self._y_leaf)

    def pool_with_indices(self) -> object:
        return self._pool(self._x, return_indices=True)

    def unpool(self) -> object:
        return self._unpool(self._y)

    def unpool_gradient(self) -> object:
        return self._grad(self._unpooled, self._y_leaf, self._x, retain_graph=True)

    def pool_gradient(self) -> object:
        return self._grad(self._pooled, self._x_leaf, self._y, retain_graph=True)

    def pool_and_gradient(self) -> object:
        y = self._pool(self._x_leaf)
        return y, self._grad(y, self._x_leaf, self._y)
