"""Convolutions and their gradients: `python -m benchmarks.convolutions`.

Transposed convolutions, forward and with both gradients, beside Flax's, one whose input is dilated
by `lax.pad` (as in Equinox) and PyTorch's in its better layout; and convolutions, with each of
their gradients alone, beside JAX's own. Interleaved in one process, on an idle machine.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import math
import pathlib
import statistics
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxunpool as jup
from benchmarks import timing

# Input, channels last, and window, stride, padding, output_padding, outputs, groups.
TRANSPOSED = {
    "2/2": ((8, 112, 112, 64), 2, 2, 0, 0, 64, 1),
    "3/2": ((8, 56, 56, 64), 3, 2, 1, 1, 64, 1),
    "2/2, 256 to 128": ((8, 28, 28, 256), 2, 2, 0, 0, 128, 1),
    "4/2": ((8, 56, 56, 64), 4, 2, 1, 0, 64, 1),
    "5/2": ((8, 56, 56, 32), 5, 2, 2, 1, 32, 1),
    "3/2, 4 groups": ((8, 56, 56, 64), 3, 2, 1, 1, 64, 4),
    "16/8, 1-D": ((8, 1024, 64), 16, 8, 4, 0, 32, 1),
    "3/2, 3-D": ((1, 16, 16, 16, 64), 3, 2, 1, 1, 32, 1),
}
# Input, window, outputs, groups.
CONVOLUTIONS = {
    "180x240, 64": ((2, 180, 240, 64), 3, 64, 1),
    "90x120, 128": ((2, 90, 120, 128), 3, 128, 1),
    "45x60, 256": ((2, 45, 60, 256), 3, 256, 1),
    "48x48, 32, 5x5": ((16, 48, 48, 32), 5, 32, 1),
    "180x240, 3 to 64": ((2, 180, 240, 3), 3, 64, 1),
    "28x28, 128, 32 groups": ((8, 28, 28, 128), 3, 128, 32),
    "28x28, 128, 64 groups": ((8, 28, 28, 128), 3, 128, 64),
    "45x60, 64, depthwise": ((2, 45, 60, 64), 3, 64, 64),
    "45x60, 64 to 256, depthwise": ((2, 45, 60, 64), 3, 256, 64),
    "112x112, 32, depthwise": ((8, 112, 112, 32), 3, 32, 32),
    "14x14, 384, depthwise": ((8, 14, 14, 384), 3, 384, 384),
    "28x28, 192, depthwise, 7x7": ((8, 28, 28, 192), 7, 192, 192),
    "56x56, 64 to 256, 1x1": ((8, 56, 56, 64), 1, 256, 1),
    "24x24x24, 16": ((1, 24, 24, 24, 16), 3, 16, 1),
}
Run = Callable[[jax.Array, jax.Array], jax.Array]


def layout(n: int) -> tuple[str, str, str]:
    """The axes of images, kernel and results, channels last."""
    spatial = "HWD"[:n]
    return f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"


def transposed(name: str) -> dict[str, Run]:
    """Ours, Flax's formulation and Equinox's: of `x` and a kernel as ours has it."""
    shape, window, stride, padding, extra, _, groups = TRANSPOSED[name]
    n = len(shape) - 2
    low = window - 1 - padding
    pads = [(low, low + extra)] * n

    def kernel_of(k: jax.Array) -> jax.Array:
        """Turned around, with inputs and outputs where a convolution has them."""
        k = lax.rev(k, range(n)).reshape(*k.shape[:n], groups, -1, k.shape[-1])
        return jnp.moveaxis(k, n, -2).reshape(*k.shape[:n], k.shape[n + 1], -1)

    def flax(x: jax.Array, k: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            kernel_of(k),
            (1,) * n,
            pads,
            lhs_dilation=(stride,) * n,
            dimension_numbers=layout(n),
            feature_group_count=groups,
        )

    def equinox(x: jax.Array, k: jax.Array) -> jax.Array:
        around = [(0, 0, 0), *((before, after, stride - 1) for before, after in pads), (0, 0, 0)]
        return lax.conv_general_dilated(
            lax.pad(x, jnp.zeros((), x.dtype), around),
            kernel_of(k),
            (1,) * n,
            "VALID",
            dimension_numbers=layout(n),
            feature_group_count=groups,
        )

    ours = functools.partial(
        jup.conv_transpose,
        strides=stride,
        padding=padding,
        output_padding=extra,
        groups=groups,
    )
    return {"jaxunpool": lambda x, k: ours(x, k), "Flax": flax, "Equinox": equinox}


def of_transposed(name: str, rng: np.random.Generator, *, gradients: bool) -> timing.Runs:
    """Forward, or forward and both gradients, by everyone."""
    shape, window, stride, padding, extra, outputs, groups = TRANSPOSED[name]
    n = len(shape) - 2
    x = rng.standard_normal(shape, np.float32)
    k = rng.standard_normal((*[window] * n, shape[-1], outputs // groups), np.float32)
    runs: timing.Runs = {}
    for contender, run in transposed(name).items():

        def both(x: jax.Array, k: jax.Array, run: Run = run) -> Any:
            y, pullback = jax.vjp(run, x, k)
            return y, pullback(jnp.ones_like(y))

        compiled = jax.jit(both if gradients else run)
        runs[contender] = functools.partial(compiled, jnp.asarray(x), jnp.asarray(k))
    if not importlib.util.find_spec("torch"):
        return runs
    import torch

    for label, arrays in _torch_layouts(n, x, np.moveaxis(k, (n, n + 1), (0, 1))).items():
        of = getattr(torch.nn.functional, f"conv_transpose{n}d")
        runs[label] = _torch_run(
            lambda u, w, of=of: of(u, w, None, stride, padding, extra, groups), arrays, gradients
        )
    return runs


def of_convolution(name: str, rng: np.random.Generator, by: int | None) -> timing.Runs:
    """A padded convolution, or its gradient by the input (0) or by the kernel (1) alone."""
    shape, window, outputs, groups = CONVOLUTIONS[name]
    n = len(shape) - 2
    x = rng.standard_normal(shape, np.float32)
    k = rng.standard_normal((*[window] * n, shape[-1] // groups, outputs), np.float32)
    dy = jnp.asarray(rng.standard_normal((*shape[:-1], outputs), np.float32))
    options: dict[str, Any] = {"dimension_numbers": layout(n), "feature_group_count": groups}
    runs: timing.Runs = {}
    for label, of in (("jaxunpool", jup.conv_general_dilated), ("JAX", lax.conv_general_dilated)):
        convolve = functools.partial(of, window_strides=(1,) * n, padding="SAME", **options)

        def gradient(*args: jax.Array, of: Any = convolve, at: int = by or 0) -> jax.Array:
            *both, dy = args
            return jax.vjp(lambda a: of(*both[:at], a, *both[at + 1 :]), both[at])[1](dy)[0]

        compiled = jax.jit(convolve if by is None else gradient)
        operands = (jnp.asarray(x), jnp.asarray(k), dy)[: 2 if by is None else 3]
        runs[label] = functools.partial(compiled, *operands)
    if not importlib.util.find_spec("torch"):
        return runs
    import torch

    for label, (u, w) in _torch_layouts(n, x, np.moveaxis(k, (n + 1, n), (0, 1))).items():
        of = getattr(torch.nn.functional, f"conv{n}d")
        if by is None:
            runs[label] = functools.partial(of, u, w, None, 1, window // 2, 1, groups)
            continue
        result = torch.ones_like(of(u, w, None, 1, window // 2, 1, groups))
        zeros, ones = [0] * n, [1] * n
        arguments = (None, ones, [window // 2] * n, ones, False, zeros, groups)
        mask = [by == 0, by == 1, False]
        runs[label] = functools.partial(
            torch.ops.aten.convolution_backward, result, u, w, *arguments, mask
        )
    return runs


def _torch_layouts(n: int, x: np.ndarray, k: np.ndarray) -> dict[str, list[Any]]:
    """The arrays in both of PyTorch's layouts, of which 1-D has one."""
    import torch

    last = {2: torch.channels_last, 3: torch.channels_last_3d}.get(n)
    layouts = {"PyTorch channels_first": torch.contiguous_format}
    if last is not None:
        layouts["PyTorch channels_last"] = last
    return {
        label: [
            torch.tensor(array.copy()).contiguous(memory_format=memory_format)
            for array in (np.moveaxis(x, -1, 1), k)
        ]
        for label, memory_format in layouts.items()
    }


def _torch_run(of: Callable[..., Any], arrays: list[Any], gradients: bool) -> Callable[[], Any]:
    import torch

    u, w = (array.requires_grad_(gradients) for array in arrays)
    if not gradients:
        return functools.partial(of, u, w)
    ones = torch.ones_like(of(u, w))

    def run() -> Any:
        y = of(u, w)
        return torch.autograd.grad(y, (u, w), ones)

    return run


def table(times: dict[str, dict[str, list[float]]]) -> str:
    """Medians in milliseconds, PyTorch's better layout, and ratios, in Markdown."""
    head = ["ms", *next(iter(times.values())), "PyTorch", "ours / PyTorch"]
    head = [name for name in head if not name.startswith("PyTorch ")]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    ratios = []
    for name, row in times.items():
        medians = {who: statistics.median(seconds) for who, seconds in row.items()}
        peer = min((s for who, s in medians.items() if who.startswith("PyTorch")), default=math.nan)
        ratios.append(medians["jaxunpool"] / peer)
        own = [f"{s * 1e3:.3g}" for who, s in medians.items() if not who.startswith("PyTorch")]
        lines.append([name, *own, f"{peer * 1e3:.3g}", f"{ratios[-1]:.2f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convolutions", description=__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds (default 9)")
    parser.add_argument("--only", default="", help="cases whose names contain this")
    parser.add_argument("--json", type=pathlib.Path, help="also write what was found to this file")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure and report."""
    from rich.console import Console
    from rich.markdown import Markdown

    asked = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    rng = np.random.default_rng(0)
    parts: dict[str, tuple[Any, Callable[[str], timing.Runs]]] = {
        "Transposed": (TRANSPOSED, lambda name: of_transposed(name, rng, gradients=False)),
        "Transposed, with gradients": (
            TRANSPOSED,
            lambda name: of_transposed(name, rng, gradients=True),
        ),
        "Convolution": (CONVOLUTIONS, lambda name: of_convolution(name, rng, None)),
        "Gradient by the input": (CONVOLUTIONS, lambda name: of_convolution(name, rng, 0)),
        "Gradient by the kernel": (CONVOLUTIONS, lambda name: of_convolution(name, rng, 1)),
    }
    found: dict[str, dict[str, Any]] = {}
    for part, (names, make) in parts.items():
        found[part] = {}
        for name in names:
            if asked.only in name:
                found[part][name] = timing.measure(make(name), asked.repeats, warmup=1, seconds=4)
                if asked.json:
                    asked.json.write_text(json.dumps(found, indent=1) + "\n")
        if found[part]:
            console.print(Markdown(f"**{part}**\n\n{table(found[part])}"))


if __name__ == "__main__":
    main()
