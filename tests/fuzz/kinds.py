"""Arrays of every kind: ties, NaN, infinities, signed zeros, subnormal numbers, extremes, ramps."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

Shape = tuple[int, ...]
Draw = Callable[[np.random.Generator, Shape, np.dtype], np.ndarray]


def is_float(dtype: np.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def is_complex(dtype: np.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.complexfloating)


def is_integer(dtype: np.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.integer)


def _ramp(shape: Shape) -> np.ndarray:
    """-1 to 1, in raster order."""
    return np.linspace(-1, 1, int(np.prod(shape))).reshape(shape)


def _some(rng: np.random.Generator, shape: Shape, values: list[float]) -> np.ndarray:
    return np.asarray(values)[rng.integers(0, len(values), shape)]


def _magnitudes(rng: np.random.Generator, shape: Shape, low: float, high: float) -> np.ndarray:
    return rng.choice([-1.0, 1.0], shape) * 2.0 ** rng.uniform(low, high, shape)


def _with(x: np.ndarray, rng: np.random.Generator, **shares: float) -> np.ndarray:
    """Some elements replaced: by NaN, infinity, or its negative."""
    values = {"nan": np.nan, "inf": np.inf, "lowest": -np.inf}
    for name, share in shares.items():
        x = np.where(rng.random(x.shape) < share, values[name], x)
    return x


def _one_nan(rng: np.random.Generator, shape: Shape, _: np.dtype) -> np.ndarray:
    x = rng.standard_normal(shape)
    if x.size:
        x.flat[rng.integers(x.size)] = np.nan
    return x


def _neighbours(rng: np.random.Generator, shape: Shape, dtype: np.dtype) -> np.ndarray:
    """Near-ties: 1 and the next few numbers of the type."""
    return 1 + rng.integers(0, 4, shape) * float(jnp.finfo(dtype).eps)


def _one(rng: np.random.Generator, shape: Shape, value: float, others: float) -> np.ndarray:
    """One element that is unlike the others."""
    x = np.full(shape, float(others))
    if x.size:
        x.flat[rng.integers(x.size)] = value
    return x


def _alternating(shape: Shape) -> np.ndarray:
    """1 and -1, as on a chessboard."""
    return 1.0 - 2 * (np.indices(shape).sum(0) % 2)


def _bits(rng: np.random.Generator, shape: Shape, dtype: np.dtype) -> np.ndarray:
    """Every number that the type has."""
    count = int(np.prod(shape)) * dtype.itemsize
    return rng.integers(0, 256, count, np.uint8).view(dtype).reshape(shape)


# Of floats. Sums of the exact ones are exact.
EXACT: dict[str, Draw] = {
    "ties": lambda rng, shape, _: rng.integers(-2, 3, shape),
    "eighths": lambda rng, shape, _: rng.integers(-8, 9, shape) / 8,
    "zero": lambda rng, shape, _: np.zeros(shape),
    "negative zero": lambda rng, shape, _: np.full(shape, -0.0),
    "signed zeros": lambda rng, shape, _: _some(rng, shape, [0.0, -0.0]),
    "ones": lambda rng, shape, _: np.ones(shape),
    "sparse": lambda rng, shape, _: (rng.random(shape) < 0.1) * rng.integers(-2, 3, shape),
    "zeros and ones": lambda rng, shape, _: _some(rng, shape, [0.0, -0.0, 1.0, -1.0]),
    "one one": lambda rng, shape, _: _one(rng, shape, 1, 0),
    "one zero": lambda rng, shape, _: _one(rng, shape, 0, -1),
    "one negative zero": lambda rng, shape, _: _one(rng, shape, -0.0, 0.0),
    "chessboard": lambda rng, shape, _: _alternating(shape),
    "minus ones": lambda rng, shape, _: np.full(shape, -1.0),
}
FINITE: dict[str, Draw] = {
    **EXACT,
    "plain": lambda rng, shape, _: rng.standard_normal(shape),
    "negative": lambda rng, shape, _: -1 - rng.random(shape),
    "positive": lambda rng, shape, _: 1 + rng.random(shape),
    "rising": lambda rng, shape, _: _ramp(shape),
    "falling": lambda rng, shape, _: -_ramp(shape),
    "neighbours": _neighbours,
    "magnitudes": lambda rng, shape, _: _magnitudes(rng, shape, -9, 9),
    "constant": lambda rng, shape, _: np.full(shape, rng.standard_normal()),
    "two values": lambda rng, shape, _: _some(rng, shape, list(rng.standard_normal(2))),
    "thirds": lambda rng, shape, _: rng.integers(-3, 4, shape) / 3,
}
FLOATS: dict[str, Draw] = {
    **FINITE,
    "special": lambda rng, shape, _: _with(
        rng.standard_normal(shape), rng, lowest=0.2, nan=0.1, inf=0.1
    ),
    "infinities": lambda rng, shape, _: _some(rng, shape, [np.inf, -np.inf]),
    "mostly lowest": lambda rng, shape, _: _with(rng.standard_normal(shape), rng, lowest=0.9),
    "lowest": lambda rng, shape, _: np.full(shape, -np.inf),
    "highest": lambda rng, shape, _: np.full(shape, np.inf),
    "nan": lambda rng, shape, _: np.full(shape, np.nan),
    "one nan": _one_nan,
    "one inf": lambda rng, shape, _: _one(rng, shape, np.inf, 1),
    "one lowest": lambda rng, shape, _: _one(rng, shape, -np.inf, -1),
    "one number": lambda rng, shape, _: _one(rng, shape, -1, -np.inf),
    "one number in nan": lambda rng, shape, _: _one(rng, shape, 1, np.nan),
    "nan and zeros": lambda rng, shape, _: _some(rng, shape, [np.nan, 0.0, -0.0]),
    "nan and highest": lambda rng, shape, _: _some(rng, shape, [np.nan, np.inf]),
    "few nan": lambda rng, shape, _: _with(rng.standard_normal(shape), rng, nan=0.05),
    "wide": lambda rng, shape, dtype: _magnitudes(
        rng,
        shape,
        *(float(np.log2(float(n))) for n in (jnp.finfo(dtype).tiny, jnp.finfo(dtype).max)),
    ),
    "bits": lambda rng, shape, dtype: _bits(rng, shape, dtype),
    "subnormal and zeros": lambda rng, shape, dtype: _some(
        rng, shape, [0.0, -0.0, float(jnp.finfo(dtype).smallest_subnormal)]
    ),
    "nan and lowest": lambda rng, shape, _: _some(rng, shape, [np.nan, -np.inf]),
    "huge": lambda rng, shape, dtype: _some(rng, shape, [1, -1, 0.5]) * float(jnp.finfo(dtype).max),
    "tiny": lambda rng, shape, dtype: (
        rng.integers(-4, 5, shape) * float(jnp.finfo(dtype).smallest_normal)
    ),
    "subnormal": lambda rng, shape, dtype: (
        rng.integers(-6, 7, shape) * float(jnp.finfo(dtype).smallest_subnormal)
    ),
}
INTEGERS: dict[str, Draw] = {
    "ties": lambda rng, shape, _: rng.integers(0, 3, shape),
    "zero": lambda rng, shape, _: np.zeros(shape, int),
    "ones": lambda rng, shape, _: np.ones(shape, int),
    "sparse": lambda rng, shape, _: (rng.random(shape) < 0.1) * rng.integers(0, 8, shape),
    "plain": lambda rng, shape, t: _integers(rng, shape, t),
    "rising": lambda rng, shape, _: np.arange(np.prod(shape, dtype=int)).reshape(shape) % 8,
    "falling": lambda rng, shape, _: -np.arange(np.prod(shape, dtype=int)).reshape(shape) % 8,
    "lowest": lambda rng, shape, t: np.full(shape, int(jnp.iinfo(t).min), t),
    "highest": lambda rng, shape, t: np.full(shape, int(jnp.iinfo(t).max), t),
    "extremes": lambda rng, shape, t: np.where(
        rng.random(shape) < 0.5, np.array(jnp.iinfo(t).min, t), np.array(jnp.iinfo(t).max, t)
    ),
    "one one": lambda rng, shape, _: _one(rng, shape, 1, 0),
    "one zero": lambda rng, shape, _: _one(rng, shape, 0, 1),
    "chessboard": lambda rng, shape, _: _alternating(shape) > 0,
    "two values": lambda rng, shape, t: np.where(
        rng.random(shape) < 0.5, *(_integers(rng, (), t) for _ in range(2))
    ),
    "constant": lambda rng, shape, t: np.full(shape, _integers(rng, (), t)),
    "near the highest": lambda rng, shape, t: (
        np.array(jnp.iinfo(t).max, t) - rng.integers(0, 3, shape).astype(t)
    ),
    "near the lowest": lambda rng, shape, t: (
        np.array(jnp.iinfo(t).min, t) + rng.integers(0, 3, shape).astype(t)
    ),
    "powers": lambda rng, shape, t: 1 << rng.integers(0, jnp.iinfo(t).bits - 1, shape),
}
BOOLEANS: dict[str, Draw] = {
    "plain": lambda rng, shape, _: rng.random(shape) < 0.5,
    "zero": lambda rng, shape, _: np.zeros(shape, bool),
    "ones": lambda rng, shape, _: np.ones(shape, bool),
    "sparse": lambda rng, shape, _: rng.random(shape) < 0.1,
    "one one": lambda rng, shape, _: _one(rng, shape, 1, 0) > 0,
    "one zero": lambda rng, shape, _: _one(rng, shape, 0, 1) > 0,
    "chessboard": lambda rng, shape, _: _alternating(shape) > 0,
}


def _integers(rng: np.random.Generator, shape: Shape, dtype: np.dtype) -> np.ndarray:
    """Of the whole range."""
    info = jnp.iinfo(dtype)
    wide = np.uint64 if info.min == 0 else np.int64
    return rng.integers(int(info.min), int(info.max), shape, wide, endpoint=True)


def kinds_of(dtype: np.dtype) -> dict[str, Draw]:
    """The kinds of arrays of a type."""
    if dtype.kind == "b":
        return BOOLEANS
    if is_integer(dtype):
        return INTEGERS
    if is_complex(dtype):
        return FINITE
    if dtype.itemsize == 1:  # whose ranges differ, and some have no infinities
        return EXACT
    return FLOATS


def draw(kind: str, rng: np.random.Generator, shape: Shape, dtype: np.dtype) -> np.ndarray:
    """An array of a kind."""
    make = kinds_of(dtype)[kind]
    with np.errstate(all="ignore"):
        if is_complex(dtype):
            parts = np.dtype(f"float{4 * dtype.itemsize}")
            return (make(rng, shape, parts) + 1j * make(rng, shape, parts)).astype(dtype)
        return np.asarray(make(rng, shape, dtype)).astype(dtype)
