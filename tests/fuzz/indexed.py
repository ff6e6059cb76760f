"""Functions at indices that are given, norms, and inverses."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

import jaxunpool as jup

from .calls import Call, Spec, implementation, keywords, text
from .draws import WINDOW
from .kinds import draw, kinds_of
from .linear import means
from .operators import Matrix, Moves, Operator, Transposed, rounded, to_planes
from .windows import InvalidCallError, Table, last_only, windows, winners, written


def _positions(spec: Spec, table: Table) -> np.ndarray:
    """A position for each window, `(planes, windows)`; some are equal, and some hostile."""
    rng, size = spec.rng(4), math.prod(spec.sizes)
    ties = rng.integers(0, 3, (1, spec.planes, size))
    at = winners(ties, table)[0]
    if spec.settings["_form"] != "hostile":
        return at
    at = rng.integers(-2, size + 2, at.shape)
    return np.where(rng.random(at.shape) < 0.05, 2**31 - 1, at)


def _both_parts(at: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Positions for the planes of real numbers, or for the two parts of complex ones."""
    return np.concatenate([at] * (x.shape[1] // max(len(at), 1)) or [at])[None]


def _writing(at: np.ndarray, size: int, duplicates: str) -> Callable[[np.ndarray], Operator]:
    """The operator that writes at positions, `(planes, windows)`."""
    if duplicates == "sum":
        return lambda x: Transposed(Moves(_both_parts(at, x), size))
    last = written(last_only(at), size)
    return lambda x: Moves(_both_parts(last, x), at.shape[1])


def indexed(spec: Spec) -> Call:
    """`max_unpool` and `pool_at`, at raw integers and at `PoolIndices`."""
    table, form = windows(spec.sizes, spec.settings), spec.settings["_form"]
    if form == "packed" and table.volume > 16:
        raise InvalidCallError
    function, reads, size = getattr(jup, spec.function), spec.function == "pool_at", table.size
    planes, is_raw = _positions(spec, table), form in ("flat", "hostile")
    flat = planes.reshape(*spec.batch, spec.channels, *table.outputs)
    if spec.data_format == "channels_last":
        flat = np.moveaxis(flat, -spec.ndim - 1, -1)
    flat = flat.astype(("int32", "int64")[spec.seed % 2])
    given = {name: value for name, value in keywords(spec).items() if name not in WINDOW}
    if is_raw:
        given |= {"spatial_ndim": spec.ndim} if reads else {"output_shape": spec.sizes}
    else:
        given.pop("data_format", None)
    pooling = {k: v for k, v in keywords(spec).items() if k in (*WINDOW, "data_format")}
    geometry = jup.WindowGeometry.for_input(spec.shape(spec.sizes), **pooling)

    def as_indices(flat: Any) -> Any:
        if is_raw:
            return flat
        indices = jup.PoolIndices.from_flat(flat, geometry)
        return indices.pack() if form == "packed" else indices

    def run(backend: Any) -> Callable[..., Any]:
        options = {**given, **implementation(backend)}
        return lambda x, flat: (function(x, as_indices(flat), **options), [])

    at = np.where((planes >= 0) & (planes < size), planes, -1)
    operator = _writing(at, size, spec.settings.get("duplicates", "last"))
    if reads:
        operator = lambda x: Moves(_both_parts(at, x), size)
    shapes = (spec.shape(spec.sizes), spec.shape(table.outputs))
    made = "flat" if is_raw else f"jup.PoolIndices.from_flat(flat, {geometry!r})"
    made += ".pack()" * (form == "packed")
    return Call(
        run,
        lambda x: (operator(x), None, []),
        shapes if reads else shapes[::-1],
        text(spec.function, f"x, {made}", given),
        {"flat": flat},
    )


def max_unpool_like(spec: Spec) -> Call:
    """The array that was pooled is of a kind and type at random."""
    table, rng = windows(spec.sizes, spec.settings), spec.rng(5)
    dtype = np.dtype(("float32", "float16", "int8")[rng.integers(3)])
    kind = list(kinds_of(dtype))[rng.integers(len(kinds_of(dtype)))]
    pool_input = draw(kind, rng, spec.shape(spec.sizes), dtype)
    at = winners(to_planes(pool_input[None], spec.ndim, spec.data_format), table)[0]
    operator = _writing(at, table.size, spec.settings.get("duplicates", "sum"))

    def run(backend: Any) -> Callable[..., Any]:
        options = {**keywords(spec), **implementation(backend)}
        return lambda y, pool_input: (jup.max_unpool_like(pool_input, y, **options), [])

    shapes = (spec.shape(table.outputs), spec.shape(spec.sizes))
    code = text("max_unpool_like", "pool_input, x", keywords(spec))
    return Call(run, lambda x: (operator(x), None, []), shapes, code, {"pool_input": pool_input})


def inverse(spec: Spec) -> Call:
    """The transposed Jacobian of max pooling and of average pooling."""
    table, name = windows(spec.sizes, spec.settings), spec.settings["_of"]
    point = draw("plain", spec.rng(6), spec.shape(spec.sizes), np.dtype(spec.dtype))
    operator: Any = Matrix(means(table, table.size, {}))
    if name == "max_pool":
        at = winners(to_planes(point[None], spec.ndim, spec.data_format), table)
        operator = Moves(at, table.size)

    def run(backend: Any) -> Callable[..., Any]:
        options = {**keywords(spec), **implementation(backend)}
        pool = functools.partial(getattr(jup, name), **options)
        return lambda y, point: (jup.inverse(pool, point)(y), [])

    shapes = (spec.shape(table.outputs), spec.shape(spec.sizes))
    code = f"jup.inverse(lambda x: {text(name, 'x', keywords(spec))}, point)(x)"
    define = lambda x: (Transposed(operator), None, [])
    return Call(run, define, shapes, code, {"point": point})


def _norms(table: Table, p: float, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The p-norm of windows and its slopes, `(inputs, planes, windows, elements)`."""
    there, wide = table.positions[0] >= 0, x.astype(np.float64)
    taken = np.where(there, wide[..., np.maximum(table.positions[0], 0)], 0)
    sizes, signs = abs(taken), np.sign(taken)
    largest = sizes.max(-1, keepdims=True)
    if p == math.inf:
        first = np.arange(table.volume) == sizes.argmax(-1)[..., None]
        return largest[..., 0], _scattered(table, signs * first)
    scale = np.where(largest > 0, largest, 1)
    y = scale * ((sizes / scale) ** p).sum(-1, keepdims=True) ** (1 / p)
    with np.errstate(divide="ignore"):
        powers = (sizes / np.where(y > 0, y, 1)) ** (p - 1)
    return y[..., 0], _scattered(table, np.where(taken == 0, 0, signs * powers))


def _scattered(table: Table, slopes: np.ndarray) -> np.ndarray:
    matrix = np.zeros((*slopes.shape[:3], table.size))
    window, tap = np.nonzero(table.positions[0] >= 0)
    matrix[:, :, window, table.positions[0][window, tap]] = slopes[:, :, window, tap]
    return matrix


def lp_pool(spec: Spec) -> Call:
    table, p = windows(spec.sizes, spec.settings), spec.settings["norm_type"]
    roundings = 16 + 8 * int(min(p, 8))  # of powers and roots, more for larger exponents

    def run(backend: Any) -> Callable[..., Any]:
        options = {**keywords(spec), **implementation(backend)}
        return lambda x: (jup.lp_pool(x, **options), [])

    def define(x: np.ndarray) -> Any:
        y, matrix = _norms(table, p, x)
        terms = np.broadcast_to(table.volume + roundings, y.shape)
        known = rounded(y, terms, y, x.dtype, np.zeros(y.shape, bool))
        return Matrix(matrix, roundings + table.volume), known, []

    shapes = (spec.shape(spec.sizes), spec.shape(table.outputs))
    return Call(run, define, shapes, text("lp_pool", "x", keywords(spec)))
