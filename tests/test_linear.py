"""Average pooling and unpooling, nearest, fixed and bed-of-nails unpooling against the oracle."""

import functools
import itertools

import derivatives
import hypothesis
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracle
import pytest
from hypothesis import strategies as st
from strategies import FLOATS, examples, only, poolings, values

import jaxunpool as jup


def oracle_weights(table, counts, sizes):
    """Name -> weight(window, position, offset) of each fixed weighting."""
    cover, last = np.zeros(np.prod(sizes), int), {}
    for o, members in enumerate(table):
        for position in members:
            cover[position] += 1
            last[position] = o
    return {
        "mean": lambda o, p, t: 1 / counts[o],
        "mean_inside": lambda o, p, t: 1 / len(table[o]),
        "cover": lambda o, p, t: 1 / cover[p],
        "last": lambda o, p, t: float(last[p] == o),
    }


def close(actual, expected, dtype, terms):
    """Equal but for roundings: one of the result, and one of the accumulator per term."""
    actual = np.asarray(actual)
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    eps = lambda t: float(ml_dtypes.finfo(t).eps)
    wide = eps(np.float32) if dtype.itemsize == 2 else eps(dtype)
    scale = max(1.0, np.abs(expected).max(initial=0))
    tolerance = eps(dtype) * np.abs(expected) + 2 * terms * wide * scale
    if dtype == np.float16:
        tolerance += 6e-8  # subnormal
    assert (np.abs(actual.astype(np.float64) - expected) <= tolerance).all()


@hypothesis.settings(max_examples=examples(4, 40))
@hypothesis.given(pooling=poolings(), dtype=st.sampled_from(FLOATS), seed=st.integers(0, 2**32 - 1))
def test_everything_agrees_with_the_oracle(pooling, dtype, seed):
    rng = np.random.default_rng(seed)
    n, layout, sizes = len(pooling.sizes), pooling.data_format, pooling.sizes
    try:
        geometry = jup.WindowGeometry.for_input(pooling.shape, **pooling.options)
    except ValueError:
        hypothesis.reject()  # tests/test_geometry.py says when
    outputs, table, counts = oracle.windows(
        sizes, pooling.window, pooling.strides, pooling.padding, pooling.dilation, pooling.ceil_mode
    )
    weights = oracle_weights(table, counts, sizes)
    x = values(rng, pooling.shape, dtype, "plain")
    y = values(rng, geometry.pooled_shape(pooling.shape), dtype, "plain")
    pattern = values(rng, pooling.window, np.dtype(np.float32), "plain")
    weights["pattern"] = lambda o, p, t: float(pattern.ravel()[t])
    terms = geometry.volume + 4

    def sums(x, name):
        run = lambda x: oracle.window_sums(x, table, outputs, weights[name])
        return oracle.over_layout(run, n, layout, x)

    def copies(y, name):
        run = lambda y: oracle.window_copies(y, table, sizes, weights[name])
        return oracle.over_layout(run, n, layout, y)

    options = pooling.options
    unpool = options | {"output_shape": sizes}
    without_window = {k: v for k, v in unpool.items() if k != "window_shape"}
    pools = {
        "mean": functools.partial(jup.avg_pool, **options),
        "mean_inside": functools.partial(jup.avg_pool, **options, count_include_pad=False),
    }
    unpools = {
        "mean": functools.partial(jup.avg_unpool, mode="adjoint", **unpool),
        "mean_inside": functools.partial(
            jup.avg_unpool, mode="adjoint", count_include_pad=False, **unpool
        ),
        "cover": functools.partial(jup.avg_unpool, **unpool),
        "last": functools.partial(jup.nearest_unpool, **unpool),
        "pattern": lambda y: jup.fixed_unpool(y, pattern, **without_window),
    }
    position = tuple(int(rng.integers(k)) for k in pooling.window)
    number = int(np.ravel_multi_index(position, pooling.window))
    weights["nail"] = lambda o, p, t: float(t == number)
    nails = functools.partial(jup.bed_of_nails_unpool, position=position, **unpool)
    unpools["nail"] = nails
    mean = functools.partial(jup.nearest_unpool, duplicates="mean", **unpool)

    def with_gradient(run, a, cotangent):
        result, pullback = jax.vjp(run, a)
        return result, pullback(cotangent)[0]

    @jax.jit
    def everything(x, y):
        pooled = {name: with_gradient(pool, x, y) for name, pool in pools.items()}
        return pooled, {name: with_gradient(run, y, x) for name, run in unpools.items()}, mean(y)

    pooled, unpooled, again = everything(x, y)
    for name, (result, gradient) in pooled.items():
        close(result, sums(x, name), dtype, terms)
        close(gradient, copies(y, name), dtype, terms)
    for name, (result, gradient) in unpooled.items():
        assert result.shape == x.shape  # the exact size, whatever the padding
        close(result, copies(y, name), dtype, terms)
        close(gradient, sums(x, name), dtype, terms)
    np.testing.assert_array_equal(again, unpooled["cover"][0])


@pytest.mark.parametrize(
    ("window", "strides"),
    only(
        ((12, 11), 5),
        ((300,), None),
        among=itertools.product([(12, 11), (40, 40), (7, 7, 7), (300,)], [None, 1, 5]),
    ),
)
def test_large_windows(rng, window, strides):
    sizes = tuple(k + 6 for k in window)
    x = rng.standard_normal((*sizes, 2))
    n = len(window)
    steps = window if strides is None else (strides,) * n
    padding = ((1, 2),) * n
    outputs, table, counts = oracle.windows(sizes, window, steps, padding, (1,) * n, False)
    weights = oracle_weights(table, counts, sizes)
    y, pullback = jax.vjp(lambda x: jup.avg_pool(x, window, strides, padding), x)
    close(y, oracle.window_sums(x, table, outputs, weights["mean"]), x.dtype, np.prod(window))
    dy = rng.standard_normal(y.shape)
    expected = oracle.window_copies(dy, table, sizes, weights["mean"])
    close(pullback(dy)[0], expected, x.dtype, len(table))
    shape = {"output_shape": sizes}
    for name, run in (
        ("cover", lambda y: jup.avg_unpool(y, window, strides, padding, **shape)),
        ("last", lambda y: jup.nearest_unpool(y, window, strides, padding, **shape)),
    ):
        u, pullback = jax.vjp(run, dy)
        close(u, oracle.window_copies(dy, table, sizes, weights[name]), x.dtype, len(table))
        expected = oracle.window_sums(x, table, outputs, weights[name])
        close(pullback(x)[0], expected, x.dtype, np.prod(window))
    pattern = rng.standard_normal(window)
    u, pullback = jax.vjp(
        lambda y, p: jup.fixed_unpool(y, p, strides, padding, **shape), dy, pattern
    )
    _, dpattern = pullback(x)
    by_hand = np.zeros(window)
    for o, members in enumerate(table):
        for position, offset in members.items():
            product = dy.reshape(-1, 2)[o] * x.reshape(-1, 2)[position]
            by_hand.ravel()[offset] += product.sum()
    np.testing.assert_allclose(dpattern, by_hand, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("window", [(64, 64), (56, 56), (7, 7, 7)])
@pytest.mark.parametrize("strides", [None, 1])
def test_programs_stay_small_for_large_windows(window, strides):
    def count(k):
        x = jax.ShapeDtypeStruct((1, *(2 * n for n in k), 1), np.float32)
        run = jax.jit(lambda x: jax.vjp(lambda x: jup.avg_pool(x, k, strides), x))
        return len(run.lower(x).as_text().splitlines())

    assert count(window) < 1.5 * count((9,) * len(window)) + 200


@pytest.mark.parametrize("size", range(6, 14))
@pytest.mark.parametrize(
    "options",
    [
        {"window_shape": (2, 3)},
        {"window_shape": (3, 3), "strides": 2, "padding": 1},
        {"window_shape": (3, 2), "padding": "SAME"},
        {"window_shape": (3, 3), "strides": 2, "ceil_mode": True},
    ],
)
def test_unpooling_restores_the_size_without_a_crop(size, options):
    x = jax.ShapeDtypeStruct((size, 7, 2), np.float32)
    rest = {k: v for k, v in options.items() if k != "window_shape"}
    pattern = np.ones(options["window_shape"], np.float32)

    def every_unpooled(x):
        y, shape = jup.avg_pool(x, **options), {"output_shape": (size, 7)}
        for unpool in (jup.avg_unpool, jup.nearest_unpool, jup.bed_of_nails_unpool):
            yield unpool(y, **options, **shape)
        yield jup.fixed_unpool(y, pattern, **rest, **shape)

    assert jax.eval_shape(lambda x: list(every_unpooled(x)), x) == [x] * 4


@pytest.mark.parametrize("window", [(2, 2), (4, 1), (1, 2), (1, 1)])
def test_pooling_an_unpooled_average_gives_it_back(rng, window):
    """Exactly, where adding the copies does not round; otherwise but for that."""
    y = rng.standard_normal((2, 3, 5, 2)).astype(np.float32)
    np.testing.assert_array_equal(jup.avg_pool(jup.avg_unpool(y, window), window), y)
    y = rng.standard_normal((2, 3, 5, 2))
    again = jup.avg_pool(jup.avg_unpool(y, (3, 5), output_shape=(10, 26)), (3, 5))
    np.testing.assert_allclose(again, y, rtol=1e-14)


@pytest.mark.few(1)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.complex64])
def test_sums_divided_by_a_given_number(rng, dtype):
    """The sum of a window, padding included as zeros, divided and rounded once."""
    x = rng.integers(-9, 10, (2, 7, 8, 3)).astype(dtype)
    options = {"window_shape": (3, 2), "strides": 2, "padding": 1, "ceil_mode": True}
    run = lambda x, divisor: jup.avg_pool(x, **options, divisor_override=divisor)
    total = np.asarray(run(x, 1))
    wide = np.complex128 if dtype == np.complex64 else np.float64
    padded = np.pad(x.astype(wide), ((0, 0), (1, 2), (1, 1), (0, 0)))
    expected = sum(padded[:, i : i + 7 : 2, j : j + 9 : 2] for i in range(3) for j in range(2))
    np.testing.assert_array_equal(total, expected)
    for divisor in (3, -7):
        np.testing.assert_array_equal(run(x, divisor), (expected / divisor).astype(dtype))
        by_jit = jax.jit(run, static_argnums=1)(x, divisor)
        np.testing.assert_array_equal(by_jit, run(x, divisor))


@pytest.mark.parametrize("include", [True, False])
def test_dot_product_with_the_adjoint(rng, include):
    """<A x, y> = <x, A* y>, exactly: small integers, and counts that divide them."""
    options = {"window_shape": (4, 4), "strides": 2, "padding": 1, "count_include_pad": include}
    x = rng.integers(-50, 50, (2, 9, 11, 3)) * 144.0
    y = rng.integers(-50, 50, jup.avg_pool(x, **options).shape) * 144.0
    adjoint = jup.avg_unpool(y, mode="adjoint", output_shape=(9, 11), **options)
    assert np.vdot(jup.avg_pool(x, **options), y) == np.vdot(x, adjoint)


def test_kronecker_product(rng):
    y, pattern = rng.standard_normal((4, 5, 3)), rng.standard_normal((2, 3))
    u = jup.fixed_unpool(y, pattern)
    for channel in range(3):
        np.testing.assert_array_equal(u[..., channel], np.kron(y[..., channel], pattern))


def test_integers():
    y = jnp.arange(1, 7, dtype=jnp.int16).reshape(2, 3, 1)
    assert jup.nearest_unpool(y, (2, 2)).dtype == jnp.int16
    np.testing.assert_array_equal(jup.nearest_unpool(y, (1, 2)), np.repeat(y, 2, 1))
    u = jup.fixed_unpool(y, np.array([[1, 2]]))
    np.testing.assert_array_equal(u[..., 0], np.kron(y[..., 0], [[1, 2]]))
    assert u.dtype == jnp.int16


def test_the_last_copy_wins():
    y = jnp.array([1.0, 2, 3])[:, None]
    np.testing.assert_array_equal(jup.nearest_unpool(y, (3,), 2)[:, 0], [1, 1, 2, 2, 3, 3, 3])
    np.testing.assert_array_equal(jup.avg_unpool(y, (3,), 2)[:, 0], [1, 1, 1.5, 2, 2.5, 3, 3])
    np.testing.assert_array_equal(jup.nearest_unpool(y, (1,), 2)[:, 0], [1, 0, 2, 0, 3])
    gradient = jax.grad(lambda y: jup.nearest_unpool(y, (3,), 2).sum())(y)
    np.testing.assert_array_equal(gradient[:, 0], [2, 2, 3])


def test_what_no_window_covers_is_zero():
    y = jnp.ones((1, 2, 1))
    u = jup.avg_unpool(y, (2, 2), (2, 3), output_shape=(3, 7))
    np.testing.assert_array_equal(u[..., 0], [[1, 1, 0, 1, 1, 0, 0]] * 2 + [[0] * 7])


OPTIONS = {
    "disjoint": {"window_shape": (2, 3)},
    "overlapping": {"window_shape": (3, 3), "strides": 2, "padding": 1},
    "dense": {"window_shape": (2, 2), "strides": 1, "padding": "SAME"},
    "gaps": {"window_shape": (2, 1), "strides": 3},
    "dilated": {"window_shape": (2, 2), "strides": 1, "dilation": 2},
    "large": {"window_shape": (6, 6), "strides": (2, 1), "padding": 2},
}


@pytest.mark.parametrize("name", only("dense", among=OPTIONS))
def test_derivatives(rng, name):
    x = jnp.asarray(rng.standard_normal((6, 7, 2)))
    options = OPTIONS[name]
    y = jup.avg_pool(x, **options)
    unpool = options | {"output_shape": (6, 7)}
    rest = {k: v for k, v in unpool.items() if k != "window_shape"}
    pattern = jnp.asarray(rng.standard_normal(options["window_shape"]))

    def run(x, y, pattern, implementation=None):
        how = {"implementation": implementation}
        results = (
            jup.avg_pool(x, **options, **how),
            jup.avg_pool(x, count_include_pad=False, **options, **how),
            jup.avg_unpool(y, **unpool, **how),
            jup.avg_unpool(y, mode="adjoint", **unpool, **how),
            jup.nearest_unpool(y, **unpool, **how),
            jup.bed_of_nails_unpool(y, **unpool, **how),
            jup.fixed_unpool(y, pattern, **rest, **how),
        )
        return jnp.concatenate([result.ravel() for result in results])

    gradients = derivatives.check(run, x, y, pattern)
    plain = functools.partial(run, implementation="xla")
    for a, b in zip(gradients, derivatives.check(plain, x, y, pattern, forward=True)):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.few(1)
@pytest.mark.parametrize("implementation", [None, "xla"])
def test_an_infinite_pattern_stays_in_its_windows(implementation):
    """No window, and no element of one, contributes nothing: not zero times infinity."""
    unpool = functools.partial(jup.fixed_unpool, implementation=implementation)
    infinite = jnp.array([jnp.inf, 1.0, 1.0])
    u = unpool(jnp.ones((2, 1)), infinite[:2], output_shape=(5,))
    np.testing.assert_array_equal(u[:, 0], [np.inf, 1, np.inf, 1, 0])
    u = unpool(jnp.ones((2, 1)), infinite[::-1], 2)
    np.testing.assert_array_equal(u[:, 0], [1, 1, np.inf, 1, np.inf])
    padded = lambda y, p: unpool(y, p, (2,), ((1, 0),)).sum()
    gradient = jax.grad(padded)(jnp.ones((2, 1)), infinite)
    np.testing.assert_array_equal(gradient[:, 0], [2, np.inf])
    y = jnp.array([[jnp.inf], [1.0]])
    gradient = jax.grad(padded, 1)(y, jnp.ones(3))
    np.testing.assert_array_equal(gradient, [1, np.inf, np.inf])
    hanging = lambda p: unpool(y[::-1], p, output_shape=(4,), ceil_mode=True).sum()
    np.testing.assert_array_equal(jax.grad(hanging)(jnp.ones(3)), [np.inf, 1, 1])


def test_infinities_and_nan_stay_in_their_windows():
    x = np.ones((4, 6, 1), np.float32)
    x[0, 0], x[3, 5] = np.inf, np.nan
    y = jup.avg_pool(x, (2, 2))
    np.testing.assert_array_equal(y[..., 0], [[np.inf, 1, 1], [1, 1, np.nan]])
    u = jup.fixed_unpool(y, np.array([[1.0, 2], [3, 4]], np.float32))
    assert np.isfinite(u).sum() == 16
    u = jup.avg_unpool(y, (3, 3), 2)  # 5x7, where windows meet in row 2, columns 2 and 4
    expected = np.ones((5, 7))
    expected[:3, :3] = np.inf
    expected[2:, 4:] = np.nan
    np.testing.assert_array_equal(u[..., 0], expected)
