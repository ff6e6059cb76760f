"""Every implementation of every primitive against XLA's and the definition, before it is timed."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import itertools
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import kernels
from jaxunpool.core.calls import Call
from jaxunpool.core.geometry import WindowGeometry

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

Checked = tuple[Call, tuple[int, ...], str]  # a call, the shape of its unpooled array and its type


def _oracle() -> Any:
    """The definitions, by their path: an installed package may be called `tests` too."""
    path = pathlib.Path(__file__).parent.parent / "tests/oracle.py"
    spec = importlib.util.spec_from_file_location("oracle", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


oracle = _oracle()


class MismatchError(AssertionError):
    """Two implementations disagree."""


@dataclasses.dataclass
class Findings:
    """What comparing came to.

    Attributes:
        right: how many calls of each implementation were.
        wrong: what the others gave, or raised.
        left: what there was no time for.
    """

    right: dict[str, int] = dataclasses.field(default_factory=dict)
    wrong: list[str] = dataclasses.field(default_factory=list)
    left: list[Checked] = dataclasses.field(default_factory=list)

    def __add__(self, other: Findings) -> Findings:
        names = [*self.right, *other.right]
        right = {name: self.right.get(name, 0) + other.right.get(name, 0) for name in names}
        return Findings(right, self.wrong + other.wrong, self.left + other.left)

    def __str__(self) -> str:
        parts = ["right: " + ", ".join(f"{n} calls of {name}" for name, n in self.right.items())]
        parts += [f"not reached: {len(self.left)} calls"] if self.left else []
        return "; ".join(parts) + "".join(f"\nWRONG: {what}" for what in self.wrong)

    def in_json(self) -> dict[str, Any]:
        """What a file of results says of it."""
        return {"right": self.right, "wrong": self.wrong, "not_reached": len(self.left)}


def calls() -> Iterator[Checked]:
    """What is checked, what counts most first."""
    options: dict[str, Sequence[dict[str, Any]]] = {
        "scatter": [{"duplicates": "sum"}, {"duplicates": "last"}],
        "reduce": [{"weighting": "mean"}],
        "replicate": [{"weighting": "cover"}],
    }
    for layout, dtype, (shape, k, s, p) in itertools.product(kernels.LAYOUTS, DTYPES, SHAPES):
        full = shape if layout == "channels_last" else (shape[0], shape[3], *shape[1:3])
        geometry = WindowGeometry.for_input(full, (k, k), s, p, data_format=layout)
        for primitive in kernels.PRIMITIVES:
            for some in options.get(primitive, [{}]):
                yield Call(primitive, geometry, None, **some), full, dtype


def run(
    implementations: Callable[[Call, Any], Sequence[Any]] | None = None,
    seed: int | None = None,
    chosen: Sequence[Checked] | None = None,
    seconds: float = math.inf,
    interpret: bool = False,
) -> Findings:
    """Compare them all, on fresh random numbers.

    Args:
        implementations: of a call; default: all that run here.
        seed: of the numbers.
        chosen: what is checked, in place of `calls()`.
        seconds: when they have passed, the rest is left.
        interpret: on a CPU, interpret the kernels for GPUs.
    """
    seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
    rng, found, start = np.random.default_rng(seed), Findings(), time.perf_counter()
    for number, one in enumerate(todo := list(calls() if chosen is None else chosen)):
        if time.perf_counter() - start > seconds:
            found.left = todo[number:]
            break
        call, shape, dtype = one
        assert isinstance(call.geometry, WindowGeometry)
        arrays = _arrays(rng, call, shape, dtype)
        expected = definition(call, arrays)
        names = (
            implementations(call, arrays)
            if implementations
            else kernels.available(call, arrays, interpret)
        )
        plain = None
        for implementation in reversed(names):  # XLA's first
            named = dataclasses.replace(call, implementation=implementation)
            what = f"{call.primitive} ({named}) of {dtype}{list(shape)}, seed {seed}"
            _poison([*arrays, *jax.tree.leaves(plain)])
            try:
                program = jax.jit(kernels.bound(named, interpret))
                results = [np.asarray(r) for r in jax.tree.leaves(program(*arrays))]
                _compare(results, expected, plain, call.geometry.volume)
            except Exception as error:  # the other kernels are worth a look all the same
                kind = "" if isinstance(error, MismatchError) else f"{type(error).__name__}: "
                found.wrong.append(f"{what}: {kind}{error}")
                continue
            if implementation == names[-1]:
                plain = results
            found.right[implementation] = found.right.get(implementation, 0) + 1
    return found


def _compare(
    results: Sequence[np.ndarray],
    expected: Sequence[tuple[np.ndarray, bool]],
    plain: Sequence[np.ndarray] | None,
    volume: int,
) -> None:
    for got, (want, exact) in zip(results, expected, strict=True):
        if not is_close(got, want, exact, volume):
            raise MismatchError("not what the definition says")
    if plain is not None:
        for got, other in zip(results, plain, strict=True):
            if got.tobytes() != other.tobytes():
                raise MismatchError("not the bits of xla")


def same_bits(results: Mapping[str, Any]) -> list[str]:
    """What of the results of implementations, on large arrays, has not the bits of the last one."""
    *others, (last, plain) = results.items()
    differing = []
    for name, found in others:
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True)
        if not all(bool(_equal(*pair)) for pair in pairs):
            differing.append(f"{name}: not the bits of {last}")
    return differing


@jax.jit
def _equal(a: jax.Array, b: jax.Array) -> jax.Array:
    kind = f"uint{8 * a.dtype.itemsize}"
    bits = functools.partial(lax.bitcast_convert_type, new_dtype=jnp.dtype(kind))
    return jnp.array_equal(bits(a), bits(b))


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
