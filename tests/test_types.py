"""Every function of arrays with every type of JAX: the table of the guide, values, derivatives."""

import functools
import itertools
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import strategies
from strategies import only

import jaxunpool as jup
from jaxunpool.kernels import native_cpu

FLOAT8 = ["float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"]
FLOAT8 += ["float8_e5m2", "float8_e5m2fnuz"]
INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (4, 8, 16, 32, 64)]
COMPLEX = ["complex64", "complex128"]
TYPES = {
    "bool": ["bool"],
    "integers": INTEGERS,
    "float8": FLOAT8,
    "floats": ["float16", "bfloat16", "float32", "float64"],
    "complex": COMPLEX,
}
ALL = [dtype for some in TYPES.values() for dtype in some]

X, Y = (2, 4, 6, 3), (2, 3, 5, 3)  # unpooled and pooled, by windows that overlap
SIZES, POOLED = X[1:3], Y[1:3]
WINDOW = {"window_shape": (2, 2), "strides": 1}
WINDOWS = ((2, 2), (1, 1), "VALID", (1, 1), False)  # as the oracle takes them
KERNEL = np.arange(36).reshape(2, 2, 3, 3) % 3 - 1
SEQUENCES = [(0, 1, 3, 4), (0, 2, 4, 5, 6)]


def each(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of channels-last images as one of batches."""
    return functools.partial(oracle.over_layout, function, 2, "channels_last")


def sums(x: np.ndarray) -> np.ndarray:
    outputs, table, _ = oracle.windows(SIZES, *WINDOWS)
    return each(lambda x: oracle.window_sums(x, table, outputs, lambda *_: 1))(x)


def copies(y: np.ndarray, weight: Callable[..., float]) -> np.ndarray:
    _, table, _ = oracle.windows(SIZES, *WINDOWS)
    return each(lambda y: oracle.window_copies(y, table, SIZES, weight))(y)


def covering(y: np.ndarray) -> np.ndarray:
    """Over how many windows each element's mean is taken."""
    return copies(np.ones(y.shape), lambda *_: 1)


def last(y: np.ndarray) -> np.ndarray:
    """The last window that covers an element begins there, if there is one."""
    return y[:, [0, 1, 2, 2]][:, :, [0, 1, 2, 3, 4, 4]]


def pooled(x: np.ndarray) -> Any:
    return each(lambda x: oracle.max_pool(x, *WINDOWS))(x)


def flat() -> np.ndarray:
    """Positions that no other type has a say in, of windows of 2x2, some of them twice."""
    return pooled(small(X, np.float64))[2]


def unpooled(y: np.ndarray, duplicates: str = "last") -> np.ndarray:
    unpool = functools.partial(oracle.max_unpool, sizes=SIZES, duplicates=duplicates)
    return each(unpool)(y, flat())


def read(x: np.ndarray) -> np.ndarray:
    lines = x.reshape(X[0], -1, X[-1])
    return np.take_along_axis(lines, flat().reshape(Y[0], -1, Y[-1]), 1).reshape(Y)


def marked(x: np.ndarray) -> np.ndarray:
    places = pooled(x)[2]
    return each(lambda y, f: oracle.max_unpool(y, f, SIZES, "last"))(np.ones(Y), places) > 0


def uneven(x: np.ndarray, bounds: Any) -> Any:
    return each(lambda x: oracle.irregular_max(x, bounds))(x)


ADAPTIVE = [oracle.adaptive_bounds(4, 3), oracle.adaptive_bounds(6, 4)]
FRACTIONAL = [list(itertools.pairwise(edges)) for edges in SEQUENCES]


def means(x: np.ndarray, bounds: Any) -> np.ndarray:
    rows, columns = bounds
    return np.stack(
        [
            np.stack([x[:, a:b, c:d].mean((1, 2)) for c, d in columns], 1)
            for a, b in rows
        ],
        1,
    )  # fmt: skip


def doubled(x: np.ndarray, axis: int) -> np.ndarray:
    """Twice the size, linear between the centres of the elements."""
    x = np.moveaxis(x, axis, 0)
    before, after = np.concatenate([x[:1], x[:-1]]), np.concatenate([x[1:], x[-1:]])
    both = np.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], 1)
    return np.moveaxis(both.reshape(-1, *x.shape[1:]), 0, axis)


def transposed(x: np.ndarray) -> np.ndarray:
    kernel = np.moveaxis(KERNEL, (2, 3), (0, 1))
    planes = np.moveaxis(x, -1, 1)
    found = oracle.conv_transpose(planes, kernel, (2, 2), (0, 0), (0, 0), (1, 1))
    return np.moveaxis(found, 1, -1)


class Case(NamedTuple):
    """A function and its definition.

    Attributes:
        run: `(array, implementation, indices)` of any type.
        define: the same of a NumPy array of float64, or of complex128 where the function is linear.
        of: the shape of the array.
    """

    run: Callable[..., Any]
    define: Callable[..., Any]
    of: tuple[int, ...] = X


CASES = {
    "adaptive_avg_pool": Case(
        lambda x, i, _: jup.adaptive_avg_pool(x, (3, 4)), lambda x: means(x, ADAPTIVE)
    ),
    "adaptive_max_pool": Case(
        lambda x, i, _: jup.adaptive_max_pool(x, (3, 4)), lambda x: uneven(x, ADAPTIVE)[0]
    ),
    "adaptive_max_pool_with_indices": Case(
        lambda x, i, _: flattened(jup.adaptive_max_pool_with_indices(x, (3, 4))),
        lambda x: uneven(x, ADAPTIVE),
    ),
    "avg_pool": Case(lambda x, i, _: jup.avg_pool(x, **WINDOW, **i), lambda x: sums(x) / 4),
    "avg_unpool": Case(
        lambda y, i, _: jup.avg_unpool(y, **WINDOW, **i),
        lambda y: copies(y, lambda *_: 1) / covering(y),
        Y,
    ),
    "bed_of_nails_unpool": Case(
        lambda y, i, _: jup.bed_of_nails_unpool(y, **WINDOW, position=1, **i),
        lambda y: np.pad(y, ((0, 0), (1, 0), (1, 0), (0, 0))),
        Y,
    ),
    "conv_transpose": Case(
        lambda x, i, _: jup.conv_transpose(x, jnp.asarray(KERNEL, x.dtype), strides=2), transposed
    ),
    "fixed_unpool": Case(
        lambda y, i, _: jup.fixed_unpool(y, jnp.eye(2).astype(y.dtype), 1, **i),
        lambda y: copies(y, lambda _, position, offset: float(offset in (0, 3))),
        Y,
    ),
    "fractional_avg_pool": Case(
        lambda x, i, _: jup.fractional_avg_pool(x[:, :, :4], sequences=[(0, 2, 4), (0, 1, 2, 4)]),
        lambda x: means(x, [[(0, 2), (2, 4)], [(0, 1), (1, 2), (2, 4)]]),
    ),
    "fractional_max_pool": Case(
        lambda x, i, _: jup.fractional_max_pool(x, None, sequences=SEQUENCES),
        lambda x: uneven(x, FRACTIONAL)[0],
    ),
    "fractional_max_pool_with_indices": Case(
        lambda x, i, _: flattened(
            jup.fractional_max_pool_with_indices(x, None, sequences=SEQUENCES)
        ),
        lambda x: uneven(x, FRACTIONAL),
    ),
    "global_avg_pool": Case(
        lambda x, i, _: jup.global_avg_pool(x[:, :, :4]),
        lambda x: x[:, :, :4].mean((1, 2), keepdims=True),
    ),
    "global_max_pool": Case(
        lambda x, i, _: jup.global_max_pool(x, **i), lambda x: x.max((1, 2), keepdims=True)
    ),
    "global_max_pool_with_indices": Case(
        lambda x, i, _: flattened(jup.global_max_pool_with_indices(x, **i)),
        lambda x: uneven(x, [[(0, 4)], [(0, 6)]]),
    ),
    "interpolate, area": Case(
        lambda x, i, _: jup.interpolate(x, (3, 4), mode="area"), lambda x: means(x, ADAPTIVE)
    ),
    "interpolate, cubic": Case(
        lambda x, i, _: jup.interpolate(x, SIZES, mode="cubic"), lambda x: x
    ),
    "interpolate, nearest": Case(
        lambda x, i, _: jup.interpolate(x, scale=2), lambda x: x.repeat(2, 1).repeat(2, 2)
    ),
    "interpolate, linear": Case(
        lambda x, i, _: jup.interpolate(x, scale=2, mode="linear"),
        lambda x: doubled(doubled(x, 1), 2),
    ),
    "inverse": Case(
        lambda x, i, _: jup.inverse(lambda x: jup.avg_pool(x, **WINDOW, **i), x)(x[:, :3, :5]),
        lambda x: copies(x[:, :3, :5], lambda *_: 1) / 4,
    ),
    "lp_pool": Case(lambda x, i, _: jup.lp_pool(x, 1, **WINDOW, **i), lambda x: sums(np.abs(x))),
    "max_pool": Case(lambda x, i, _: jup.max_pool(x, **WINDOW, **i), lambda x: pooled(x)[0]),
    "max_pool_with_argmax_and_mask": Case(
        lambda x, i, _: flattened(jup.max_pool_with_argmax_and_mask(x, **WINDOW, **i)),
        lambda x: (*pooled(x)[::2], marked(x)),
    ),
    "max_pool_with_indices": Case(
        lambda x, i, _: flattened(jup.max_pool_with_indices(x, **WINDOW, **i)),
        lambda x: pooled(x)[::2],
    ),
    "max_pool_with_packed_indices": Case(
        lambda x, i, _: flattened(jup.max_pool_with_packed_indices(x, **WINDOW, **i)),
        lambda x: pooled(x)[::2],
    ),
    "max_unpool": Case(lambda y, i, at: jup.max_unpool(y, at, **i), unpooled, Y),
    "max_unpool, sum": Case(
        lambda y, i, at: jup.max_unpool(y, at, duplicates="sum", **i),
        lambda y: unpooled(y, "sum"),
        Y,
    ),
    "max_unpool, raw": Case(
        lambda y, i, at: [
            jup.max_unpool(y, at.flat, output_shape=SIZES, duplicates=duplicates, **i)
            for duplicates in ("last", "sum")
        ],
        lambda y: (unpooled(y), unpooled(y, "sum")),
        Y,
    ),
    "max_unpool_like": Case(
        lambda y, i, _: jup.max_unpool_like(small(X, np.float64), y, **WINDOW, **i),
        lambda y: unpooled(y, "sum"),
        Y,
    ),
    "min_pool": Case(lambda x, i, _: jup.min_pool(x, **WINDOW, **i), lambda x: -pooled(-x)[0]),
    "min_pool_with_indices": Case(
        lambda x, i, _: flattened(jup.min_pool_with_indices(x, **WINDOW, **i)),
        lambda x: (-pooled(-x)[0], pooled(-x)[2]),
    ),
    "nearest_unpool": Case(lambda y, i, _: jup.nearest_unpool(y, **WINDOW, **i), last, Y),
    "nearest_unpool, mean": Case(
        lambda y, i, _: jup.nearest_unpool(y, **WINDOW, duplicates="mean", **i),
        lambda y: copies(y, lambda *_: 1) / covering(y),
        Y,
    ),
    "pool_at": Case(lambda x, i, at: jup.pool_at(x, at, **i), read),
    "pool_at, raw": Case(lambda x, i, at: jup.pool_at(x, at.flat, **i), read),
}


def flattened(results: Any) -> list[Any]:
    """A pooled array, flat positions, and what follows."""
    y, indices, *rest = results
    indices = indices.unpack() if isinstance(indices, jup.PackedIndices) else indices
    return [y, indices.flat, *rest]


def small(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Values that all types have and that averages of four keep exact: 0 to 2, signed if can be."""
    dtype = np.dtype(dtype)
    values = np.random.default_rng(0).integers(-2, 3, (2, *shape))
    if dtype.kind == "b":
        return values[0] > 0
    if dtype.kind == "c":
        return (values[0] + 1j * values[1]).astype(dtype)
    is_unsigned = jnp.issubdtype(dtype, jnp.unsignedinteger)
    return np.abs(values[0]).astype(dtype) if is_unsigned else values[0].astype(dtype)


def expected_type(cell: str, dtype: str) -> np.dtype | None:
    """The type of a result, as the table says it; None for an error."""
    if cell == "`TypeError`":
        return None
    dtype = jnp.dtype(dtype)
    if cell == "float":
        return jax.eval_shape(jnp.mean, jax.ShapeDtypeStruct((1,), dtype)).dtype
    assert cell == "same"
    return dtype


@functools.cache
def table() -> dict[str, dict[str, str]]:
    """What the guide says of each function, and of its modes, by groups of types."""
    page = (pathlib.Path(__file__).parent.parent / "docs/guide.md").read_text()
    lines = page[page.index("| function | bool |") :].split("\n\n")[0].splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    found = {}
    for names, *cells in rows:
        for name in re.findall(r"`(\w+)`(?: `\"([\w-]+)\"`)?", names):
            found[", ".join(filter(None, name))] = dict(zip(head[1:], cells, strict=True))
    return found


def said(name: str, dtype: str) -> np.dtype | None:
    """What the guide says of a case with a type."""
    group = next(group for group, some in TYPES.items() if dtype in some)
    row = table().get(name) or table()[name.split(",")[0]]
    return expected_type(row[group], dtype)


def test_the_table_of_the_guide_is_complete():
    names = {name.split(",")[0] for name in CASES}
    functions = {name for name in jup.__all__ if not isinstance(getattr(jup, name), type)}
    functions -= {"backends", "explain", "interop", "validate_indices", "conv_general_dilated"}
    assert {name.split(",")[0] for name in table()} == names == functions
    assert list(next(iter(table().values()))) == list(TYPES)
    kinds = {name for name in dir(jnp) if re.fullmatch(r"(u?int|b?float|complex)\d+(_\w+)?", name)}
    odd = {"int1", "int2", "uint1", "uint2", "float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn"}
    odd |= {"float8_e8m0fnu"}
    assert (kinds | {"bool"}) - odd == set(ALL)


IMPLEMENTATIONS = [None, "xla", *([] if native_cpu.missing() else ["native_cpu"])]


@pytest.mark.parametrize("dtype", only("bool", "complex64", among=ALL))
def test_every_function_with_every_type(dtype):
    """The type of the result or a TypeError, the values of the definition, and the same bits."""
    served = [name for name in CASES if said(name, dtype) is not None]
    for name in set(CASES) - set(served):
        with pytest.raises(TypeError, match=rf"^(x|y|pool_input).*: expected .*\b{dtype}\b"):
            CASES[name].run(jnp.asarray(small(CASES[name].of, dtype)), {}, None)
    with jax.ensure_compile_time_eval():
        at = jup.max_pool_with_indices(small(X, np.float64), **WINDOW)[1]
    ways = IMPLEMENTATIONS if strategies.THOROUGH else [None]
    if dtype.endswith("int4"):  # which no kernel loads
        ways = [None, "xla"]

    @jax.jit
    def program(x, y):
        arrays = {X: x, Y: y}
        return [
            {n: CASES[n].run(arrays[CASES[n].of], {"implementation": i}, at) for n in served}
            for i in ways
        ]

    found = program(*(jnp.asarray(small(shape, dtype)) for shape in (X, Y)))
    for name in served:
        results = [jax.tree.leaves(some[name]) for some in found]
        wide = small(CASES[name].of, dtype).astype(np.complex128 if dtype in COMPLEX else float)
        wanted = defined(CASES[name].define, wide)
        assert results[0][0].dtype == said(name, dtype), name
        for others in results[1:]:
            assert [r.tobytes() for r in others] == [r.tobytes() for r in results[0]], name
        for result, want in zip(results[0], wanted, strict=True):
            if want.dtype.kind in "fc":  # exact, or rounded once
                want = want.astype(result.dtype)
            np.testing.assert_array_equal(np.asarray(result), want, err_msg=name)


def defined(define: Callable[..., Any], x: np.ndarray) -> list[np.ndarray]:
    """A definition; of complex numbers, of their parts."""
    if x.dtype.kind == "c":
        parts = (defined(define, part) for part in (x.real, x.imag))
        return [real + 1j * imag for real, imag in zip(*parts)]
    found = define(x)
    return list(found) if isinstance(found, tuple) else [found]


# Derivatives of what is linear in complex numbers, against the same function in plain JAX.


def windowed(x: jax.Array) -> jax.Array:
    """Sums over the windows, as sums of slices."""
    rows, columns = POOLED
    return sum(x[:, i : i + rows, j : j + columns] for i in (0, 1) for j in (0, 1))


def planes(at: jax.Array, y: jax.Array) -> jax.Array:
    """Values added at flat positions."""
    batch, channel = np.arange(Y[0])[:, None, None, None], np.arange(Y[-1])
    u = jnp.zeros((X[0], X[1] * X[2], X[3]), y.dtype)
    return u.at[batch, at, channel].add(y).reshape(X)


def convolved(x: jax.Array, kernel: jax.Array) -> jax.Array:
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_transpose(x, kernel, (2, 2), "VALID", dimension_numbers=names)


COMPLEX_LINEAR = {
    "avg_pool": (
        lambda x, k, at: jup.avg_pool(x, **WINDOW),
        lambda x, k, at: windowed(x) / 4,
    ),
    "fixed_unpool": (
        lambda x, k, at: jup.fixed_unpool(x, k[..., 0, 0]),
        lambda x, k, at: (
            x[:, :, None, :, None] * k[None, None, :, None, :, :1, 0]
        ).reshape(X[0], 2 * X[1], 2 * X[2], X[3]),
    ),
    "pool_at": (
        lambda x, k, at: jup.pool_at(x, at),
        lambda x, k, at: x.reshape(X[0], -1, X[3])[
            np.arange(X[0])[:, None, None, None], at, np.arange(X[3])
        ],
    ),
    "max_unpool": (
        lambda x, k, at: jup.max_unpool(x[:, :3, :5], at, output_shape=SIZES, duplicates="sum"),
        lambda x, k, at: planes(at, x[:, :3, :5]),
    ),
    "interpolate": (
        lambda x, k, at: jup.interpolate(x, scale=2, mode="linear"),
        lambda x, k, at: jax.image.resize(x.real, (2, 8, 12, 3), "linear")
        + 1j * jax.image.resize(x.imag, (2, 8, 12, 3), "linear"),
    ),
    "conv_transpose": (
        lambda x, k, at: jup.conv_transpose(x, k, strides=2),
        lambda x, k, at: convolved(x, k[::-1, ::-1]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", only("avg_pool", "fixed_unpool", among=COMPLEX_LINEAR))
def test_derivatives_of_complex_numbers(rng, name):
    """Values, `jax.vjp`, `jax.jvp`, and reverse over reverse, for the kernel too."""
    ours, theirs = COMPLEX_LINEAR[name]
    draw = lambda shape: rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    x, dx, k, dk = draw(X), draw(X), draw(KERNEL.shape), draw(KERNEL.shape)
    dy = draw(jax.eval_shape(theirs, x, k, flat()).shape)

    def derivatives(function):
        run = lambda x, k: function(x, k, flat())
        loss = lambda x, k: jnp.sum(jnp.abs(run(x, k)) ** 4)
        y, pull = jax.vjp(run, x, k)
        pushed = jax.jvp(run, (x, k), (dx, dk))[1]
        gradient = jax.grad(loss, (0, 1))
        slope = lambda x, k: sum(jnp.vdot(a, b).real for a, b in zip(gradient(x, k), (dx, dk)))
        return y, pull(dy), pushed, gradient(x, k), jax.grad(slope, (0, 1))(x, k)

    close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-9)
    jax.tree.map(close, *jax.jit(lambda: (derivatives(ours), derivatives(theirs)))())


@pytest.mark.thorough
def test_gradients_of_float8_are_added_in_float32():
    """And rounded once: 1 and nine times 1/16 are about 1.5; one by one they would stay 1."""
    x = jnp.zeros((10, 1), jnp.float8_e4m3fn)
    dy = jnp.asarray([1.0] + [1 / 16] * 9, jnp.float8_e4m3fn)[:, None]
    _, indices = jup.max_pool_with_indices(jnp.arange(10.0)[:, None], (10,))
    for implementation in IMPLEMENTATIONS:
        unpool = lambda x, i=implementation: jup.pool_at(
            x, jnp.zeros((10, 1), int), spatial_ndim=1, implementation=i
        )
        (dx,) = jax.vjp(unpool, x)[1](dy)
        assert (dx.dtype, float(dx[0, 0])) == (x.dtype, 1.5)
        pool = functools.partial(jup.max_pool, window_shape=(3,), strides=1, padding=1)
        y, pull = jax.vjp(functools.partial(pool, implementation=implementation), x.at[4].set(1))
        assert pull(jnp.ones_like(y))[0].astype(float).sum() == y.size
    assert jup.max_unpool(dy[:1], indices).dtype == x.dtype


def test_more_than_255_booleans_in_one_place():
    """A logical or, which no number of them wraps around."""
    y = jnp.ones((256, 1), bool)
    for implementation in IMPLEMENTATIONS:
        options = {"duplicates": "sum", "implementation": implementation}
        u = jup.max_unpool(y, jnp.zeros((256, 1), int), output_shape=(2,), **options)
        assert u.tolist() == [[True], [False]]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "uint64", "bool"])
def test_averages_have_the_type_of_jnp_mean(dtype):
    for x64 in (False, True):
        with jax.enable_x64(x64):
            x = jax.ShapeDtypeStruct((1, 4, 4, 1), jax.dtypes.canonicalize_dtype(dtype))
            assert jax.eval_shape(jup.global_avg_pool, x).dtype == jax.eval_shape(jnp.mean, x).dtype
            pool = functools.partial(jup.avg_pool, window_shape=(2, 2))
            assert jax.eval_shape(pool, x).dtype == jax.eval_shape(jnp.mean, x).dtype


def test_no_result_has_a_weak_type():
    """One would take the type of what it is added to."""
    weak = jax.ShapeDtypeStruct((4, 4, 1), jnp.float32, weak_type=True)
    indices = jax.eval_shape(lambda x: jup.max_pool_with_indices(x, (2, 2))[1], weak)
    for f in (
        lambda x, i: jup.max_pool_with_indices(x, (2, 2)),
        lambda x, i: jup.max_unpool(x[:2, :2], i),
        lambda x, i: jup.pool_at(x, i),
        lambda x, i: jup.avg_pool(x, (2, 2)),
        lambda x, i: jup.nearest_unpool(x, (2, 2)),
        lambda x, i: jup.fixed_unpool(x, x[:2, :2, 0]),
    ):
        results = jax.eval_shape(f, weak, indices)
        assert not any(leaf.weak_type for leaf in jax.tree.leaves(results))
