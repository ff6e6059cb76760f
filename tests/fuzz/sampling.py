"""Specs drawn at random: number `i` of a function and a seed is always the same."""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from backend_cases import TESTED

from jaxunpool.kernels.native_cpu import library

from . import pytorch
from .calls import Function, Spec
from .functions import FUNCTIONS
from .programs import HOWS, INTERPRETED
from .windows import InvalidCallError

# How often each is drawn.
HOW_OFTEN = (0.3, 0.15, 0.2, 0.1, 0.05, 0.1, 0.1)
# Batches and channels that kernels for other devices serve.
FOR_LANES = (((2,), 64), ((1, 3), 40), ((8,), 130), ((128,), 32))
FOR_THREADS = (((8,), 16), ((8,), 48), ((4,), 32), ((2, 2), 64), ((1, 2), 128))
# Types that they serve.
FEW_TYPES = {
    "mosaic_tpu": ("float32", "bfloat16", "int8", "uint8", "int32"),
    "mosaic_gpu": ("float32", "bfloat16", "float16"),
}


def one_of(rng: np.random.Generator, values: Sequence[Any]) -> Any:
    return values[rng.integers(len(values))]


def backends_of(function: Function) -> list[str | None]:
    """The backends that a function is run with here."""
    found: list[str | None] = list(function.backends)
    if "native_cpu" in found and library.missing():
        found.remove("native_cpu")
    return found or [None]


def draw(name: str, number: int, seed: int, backend: str | None = None) -> Spec:
    """A call that the library has to serve; of a backend that is interpreted, if one is named."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
    while True:
        spec = _attempt(name, FUNCTIONS[name], rng)
        if backend is not None:
            spec = _interpreted(spec, rng, backend)
        try:
            FUNCTIONS[name].make(spec)
        except InvalidCallError:
            continue
        return spec


def _attempt(name: str, function: Function, rng: np.random.Generator) -> Spec:
    n = int(rng.choice([1, 2, 3], p=[0.3, 0.5, 0.2]))
    settings = function.draw(rng, n)
    sizes = settings.pop("_sizes")
    spec = Spec(
        function=name,
        sizes=sizes,
        batch=one_of(rng, [(), (), (2,), (2,), (3,), (1, 2), (0,)]),
        channels=int(rng.integers(1, 4)),
        dtype=one_of(rng, function.dtypes),
        data_format=one_of(rng, ["channels_last", "channels_first"]),
        settings=settings,
        backend=one_of(rng, backends_of(function)),
        how=one_of(rng, function.hows) if function.hows else str(rng.choice(HOWS, p=HOW_OFTEN)),
        seed=int(rng.integers(2**31)),
    )
    there = [name for name in INTERPRETED if TESTED[name].runs]
    if rng.random() < 0.03 and there and has_kernels(function):
        return _interpreted(spec, rng, one_of(rng, there))
    if spec.how in ("Auto", "Explicit"):
        return _divisible(spec, rng)
    return spec


def _divisible(spec: Spec, rng: np.random.Generator) -> Spec:
    """Sizes of which some divide over devices."""
    eights = rng.random(spec.ndim) < 0.5
    changed = {"channels": int(one_of(rng, [1, 2, 4])), "batch": one_of(rng, [(), (2,), (4,)])}
    if not any(isinstance(v, tuple) and k in ("sequences",) for k, v in spec.settings.items()):
        changed["sizes"] = tuple(8 if e else size for e, size in zip(eights, spec.sizes))
    return dataclasses.replace(spec, **changed)


def peers(spec: Spec) -> list[Spec]:
    """The same call of PyTorch, where it has it."""
    if not pytorch.answers_it(spec):
        return []
    return [dataclasses.replace(spec, backend="pytorch", how="batch")]


def has_kernels(function: Function) -> bool:
    """Whether there are kernels of other devices to ask for by name."""
    return "native_cpu" in function.backends and function.differentiable


def _interpreted(spec: Spec, rng: np.random.Generator, backend: str) -> Spec:
    """A call for kernels of other devices, which may not serve it."""
    batch, channels = one_of(rng, FOR_LANES if backend == "mosaic_tpu" else FOR_THREADS)
    return dataclasses.replace(
        spec,
        backend=backend,
        how="eager",
        batch=batch,
        channels=channels,
        dtype=one_of(rng, sorted(set(FEW_TYPES[backend]) & set(FUNCTIONS[spec.function].dtypes))),
    )
