"""Every implementation of every primitive against XLA's and the definition, before it is timed."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import kernels
from jaxunpool.core import primitives
from jaxunpool.core.calls import Call
from jaxunpool.core.geometry import WindowGeometry
from tests import oracle

# Shape of a channels-last array, window, stride, padding: what fits a block, and what does not.
SHAPES = (
    ((1, 8, 12, 64), 2, 2, 0),
    ((8, 5, 7, 128), 3, 2, 1),
    ((8, 4, 5, 128), 3, 1, 1),
    ((1, 5, 6, 256), 2, 3, 0),
    ((1, 4, 256, 32), 2, 2, 0),
    ((1, 9, 14, 3), 2, 2, 0),
)
DTYPES = ("float32", "bfloat16", "float16")


class MismatchError(AssertionError):
    """Two implementations disagree."""


def calls() -> Iterator[tuple[Call, tuple[int, ...], str]]:
    """What is checked: a call, the shape of its unpooled array and its type."""
    options: dict[str, Sequence[dict[str, str]]] = {
        "scatter": [{"duplicates": "sum"}, {"duplicates": "last"}],
        "reduce": [{"weighting": "mean"}],
        "replicate": [{"weighting": "cover"}],
    }
    for (shape, k, s, p), layout in itertools.product(SHAPES, kernels.LAYOUTS):
        full = shape if layout == "channels_last" else (shape[0], shape[3], *shape[1:3])
        geometry = WindowGeometry.for_input(full, (k, k), s, p, data_format=layout)
        for primitive, dtype in itertools.product(kernels.PRIMITIVES, DTYPES):
            for some in options.get(primitive, [{}]):
                yield Call(primitive, geometry, None, **some), full, dtype


def run(
    implementations: Callable[[Call, Any], Sequence[Any]] = kernels.available,
    seed: int | None = None,
    chosen: Sequence[tuple[Call, tuple[int, ...], str]] | None = None,
) -> dict[str, int]:
    """Compare them all, on fresh random numbers; how many calls of each were right.

    Raises:
        MismatchError: the first wrong result.
    """
    seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
    rng, right = np.random.default_rng(seed), dict[str, int]()
    for call, shape, dtype in calls() if chosen is None else chosen:
        assert isinstance(call.geometry, WindowGeometry)
        arrays = _arrays(rng, call, shape, dtype)
        expected = definition(call, arrays)
        plain = None
        for implementation in reversed(implementations(call, arrays)):  # XLA's first
            named = dataclasses.replace(call, implementation=implementation)
            what = f"{call.primitive} ({named}) of {dtype}{list(shape)}, seed {seed}"
            _poison([*arrays, *jax.tree.leaves(plain)])
            results = jax.tree.leaves(jax.jit(functools.partial(primitives.bind, named))(*arrays))
            for got, (want, exact) in zip(results, expected, strict=True):
                if not is_close(got, want, exact, call.geometry.volume):
                    raise MismatchError(f"{what}: not what the definition says")
            if plain is not None:
                for got, other in zip(results, plain, strict=True):
                    if np.asarray(got).tobytes() != np.asarray(other).tobytes():
                        raise MismatchError(f"{what}: not the bits of xla")
            plain = plain or results
            right[implementation] = right.get(implementation, 0) + 1
    return right


def _arrays(
    rng: np.random.Generator, call: Call, shape: tuple[int, ...], dtype: str
) -> list[jax.Array]:
    g = call.geometry
    assert isinstance(g, WindowGeometry)
    pooled = g.pooled_shape(shape)
    first = pooled if call.primitive in ("scatter", "replicate") else shape
    values = jnp.asarray(rng.standard_normal(first).astype(jnp.dtype(dtype)))
    if call.primitive not in ("gather", "scatter"):
        return [values]
    return [values, jnp.asarray(rng.integers(0, g.volume, pooled).astype(g.offset_dtype))]


def _poison(like: Sequence[jax.Array]) -> None:
    """Leave memory behind that is full of what no result may hold."""
    filled = [jnp.full(a.shape, 123 if a.dtype == jnp.uint8 else jnp.nan, a.dtype) for a in like]
    jax.block_until_ready(filled)


def is_close(found: Any, wanted: np.ndarray, exact: bool, volume: int) -> bool:
    """Whether a result is what the definition says, but for roundings of sums."""
    found = np.asarray(found)
    if exact:
        return bool(np.array_equal(found.astype(wanted.dtype), wanted, equal_nan=True))
    if jnp.issubdtype(found.dtype, jnp.integer):  # sums wrap around
        return bool(np.array_equal(found, wanted.astype(np.int64).astype(found.dtype)))
    # Sums round once per element, in float32 at least, and once to their type.
    eps = float(jnp.finfo(found.dtype).eps)
    slack = 2 * eps + volume * min(eps, 2.0**-23)
    error = np.abs(found.astype(np.float64) - wanted)
    return bool((error <= slack * max(1.0, np.abs(wanted).max(initial=0))).all())


def definition(call: Call, arrays: Sequence[jax.Array]) -> list[tuple[np.ndarray, bool]]:
    """The results from NumPy and loops, in float64 if not exact, and whether they are exact."""
    g = call.geometry
    assert isinstance(g, WindowGeometry)
    sizes, n = g.input_shape, g.ndim
    resolved = (g.window_shape, g.strides, g.padding, g.dilation)
    options = ((*resolved, ceil_mode) for ceil_mode in (False, True))
    shared = next(o for o in options if tuple(oracle.windows(sizes, *o)[0]) == g.output_shape)
    outputs, table, counts = oracle.windows(sizes, *shared)
    values, *others = map(np.asarray, arrays)
    cover, last = np.zeros(int(np.prod(sizes)), int), {}
    for o, members in enumerate(table):
        for position in members:
            cover[position] += 1
            last[position] = o
    weights: dict[str, Callable[[int, int], float]] = {
        "sum": lambda o, p: 1,
        "mean": lambda o, p: 1 / counts[o],
        "mean_inside": lambda o, p: 1 / len(table[o]),
        "cover": lambda o, p: 1 / cover[p],
        "last": lambda o, p: last[p] == o,
    }

    def over(function: Callable[..., Any], *arrays: np.ndarray) -> Any:
        return oracle.over_layout(function, n, g.data_format, *arrays)

    def flat(offsets: np.ndarray) -> np.ndarray:
        """The flat position every offset names, or none (-1)."""
        found = np.full(offsets.shape, -1)
        for o, members in enumerate(table):
            at = np.unravel_index(o, outputs)
            for position, offset in members.items():
                found[at] = np.where(offsets[at] == offset, position, found[at])
        return found

    def weight(o: int, p: int, t: int) -> float:
        factor = 1 if not others else float(others[0].ravel()[t])
        return weights[call.weighting or "sum"](o, p) * factor

    if call.primitive == "select":
        y, found = over(lambda x: oracle.max_pool(x, *shared)[:2], values)
        return [(y, True), (found, True)]
    if call.primitive == "gather":
        read = lambda u, o: oracle.max_unpool_gradient(u, flat(o), call.duplicates or "sum")  # noqa: E731
        return [(over(read, values, *others), True)]
    if call.primitive == "scatter":
        how = call.duplicates or "last"
        write = lambda y, o: oracle.max_unpool(y, flat(o), sizes, how)  # noqa: E731
        return [(over(write, values, *others), how == "last")]
    if call.primitive == "reduce":
        run = lambda x: oracle.window_sums(x, table, outputs, weight)  # noqa: E731
    else:
        run = lambda y: oracle.window_copies(y, table, sizes, weight)  # noqa: E731
    return [(over(run, values), False)]
