"""max_pool, max_pool_with_indices and max_unpool against the oracle."""

import functools

import hypothesis
import jax
import numpy as np
import oracle
import pytest
from hypothesis import strategies as st
from strategies import FLOATS, INTEGERS, KINDS, examples, only, poolings, values

import jaxunpool as jup


def oracle_pool(pooling, x):
    run = functools.partial(
        oracle.max_pool,
        window=pooling.window,
        strides=pooling.strides,
        padding=pooling.padding,
        dilation=pooling.dilation,
        ceil_mode=pooling.ceil_mode,
    )
    return oracle.over_layout(run, len(pooling.sizes), pooling.data_format, x)


def assert_same(actual, expected):
    """Same type, shape and values, NaN for NaN."""
    actual = np.asarray(actual)
    assert actual.dtype == expected.dtype
    if actual.dtype in FLOATS:
        actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    np.testing.assert_array_equal(actual, expected, strict=True)


@hypothesis.settings(max_examples=examples(7, 60))
@hypothesis.given(
    pooling=poolings(),
    dtype=st.sampled_from(FLOATS + INTEGERS),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32 - 1),
)
def test_everything_agrees_with_the_oracle(pooling, dtype, kind, seed):
    rng = np.random.default_rng(seed)
    x = values(rng, pooling.shape, dtype, kind)
    try:
        y, indices = jup.max_pool_with_indices(x, **pooling.options)
    except ValueError:
        hypothesis.reject()  # tests/test_geometry.py says when
    expected, offsets, flat = oracle_pool(pooling, x)
    assert_same(y, expected)
    assert_same(jup.max_pool(x, **pooling.options), expected)
    assert indices.offsets.dtype == np.min_scalar_type(np.prod(pooling.window))
    np.testing.assert_array_equal(indices.offsets, offsets)
    assert_same(indices.flat, flat.astype(np.int32))
    jup.validate_indices(indices)
    again = jup.PoolIndices.from_flat(flat, indices.geometry)
    np.testing.assert_array_equal(again.offsets, offsets)

    y = values(rng, expected.shape, dtype, "plain")
    n, layout = len(pooling.sizes), pooling.data_format
    for duplicates in ("last", "sum"):
        unpool = functools.partial(oracle.max_unpool, sizes=pooling.sizes, duplicates=duplicates)
        u = oracle.over_layout(unpool, n, layout, y, flat)
        by_indices = functools.partial(jup.max_unpool, duplicates=duplicates)
        by_flat = functools.partial(by_indices, output_shape=pooling.sizes, data_format=layout)
        assert_same(by_indices(y, indices), u)
        assert_same(by_flat(y, flat), u)
        if dtype in FLOATS:
            du = values(rng, u.shape, dtype, "plain")
            gradient = functools.partial(oracle.max_unpool_gradient, duplicates=duplicates)
            dy = oracle.over_layout(gradient, n, layout, du, flat)
            assert_same(jax.vjp(lambda y: by_indices(y, indices), y)[1](du)[0], dy)
            assert_same(jax.vjp(lambda y: by_flat(y, flat), y)[1](du)[0], dy)
    if dtype in FLOATS:  # the gradient of pooling is the transpose of reading the maxima
        dy = values(rng, expected.shape, dtype, "plain")
        dx = oracle.over_layout(
            functools.partial(oracle.max_unpool, sizes=pooling.sizes, duplicates="sum"),
            n, layout, dy, flat,
        )  # fmt: skip
        pool = functools.partial(jup.max_pool, **pooling.options)
        assert_same(jax.vjp(pool, x)[1](dy)[0], dx)
        with_indices = functools.partial(jup.max_pool_with_indices, **pooling.options)
        assert_same(jax.vjp(lambda x: with_indices(x)[0], x)[1](dy)[0], dx)


LARGE = [
    ((2, 56, 56, 3), (56, 56), None, "VALID"),
    ((1, 15, 15, 15, 2), (7, 7, 7), None, "VALID"),
    ((1, 300, 2), (257,), 1, "VALID"),
    ((1, 20, 20, 2), (13, 2), (1, 2), "SAME"),
    ((1, 80, 80, 2), (64, 64), None, "VALID"),
    ((1, 70, 70, 1), (64, 64), 3, 30),
    ((1, 9, 9, 9, 1), (7, 7, 7), 1, "SAME"),
    ((1, 32, 32, 1), (16, 16), 8, ((3, 9), (0, 15))),
]


@pytest.mark.parametrize(("shape", "window", "strides", "padding"), only(*LARGE[:4], among=LARGE))
def test_large_windows(rng, shape, window, strides, padding):
    x = values(rng, shape, np.dtype(np.float32), "special")
    y, indices = jup.max_pool_with_indices(x, window, strides, padding)
    strides = np.broadcast_to(window if strides is None else strides, len(window)).tolist()
    if isinstance(padding, int):
        padding = ((padding, padding),) * len(window)
    run = functools.partial(
        oracle.max_pool,
        window=window,
        strides=strides,
        padding=padding,
        dilation=(1,) * len(window),
        ceil_mode=False,
    )
    expected, offsets, flat = oracle.over_layout(run, len(window), "channels_last", x)
    assert_same(y, expected)
    assert_same(jup.max_pool(x, window, strides, padding), expected)
    np.testing.assert_array_equal(indices.offsets, offsets)
    dy = values(rng, y.shape, np.dtype(np.float32), "plain")
    for duplicates in ("last", "sum"):
        unpool = functools.partial(oracle.max_unpool, sizes=shape[1:-1], duplicates=duplicates)
        u = oracle.over_layout(unpool, len(window), "channels_last", dy, flat)
        assert_same(jup.max_unpool(dy, indices, duplicates=duplicates), u)


AT_LIMITS = [
    # The volume of the later axes is a power of two, and the window does not fit the strides.
    ((9, 32, 1), (3, 16), (2, 16), 0),
    ((6, 5, 20, 1), (2, 2, 16), (3, 1, 8), 0),
    # As many elements as the type of the offsets has values, one less and one more.
    ((600, 2), (257,), 50, 0),
    ((40, 40, 1), (16, 16), 3, 5),
    ((9, 24, 1), (3, 16), (2, 8), 0),
    ((9, 20, 1), (2, 16), (3, 16), 0),
    ((12, 40, 1), (5, 32), (2, 3), 2),
    ((9, 8, 8, 1), (3, 4, 4), (2, 4, 4), 0),
    ((40, 40, 1), (15, 17), 3, 5),
    ((300, 260, 1), (256, 256), (20, 3), 0),
]


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("shape", "window", "strides", "padding"), only(*AT_LIMITS[:4], among=AT_LIMITS)
)
@pytest.mark.parametrize("descending", [False, True])
def test_windows_at_the_limits_of_integer_types(rng, shape, window, strides, padding, descending):
    x = rng.permutation(int(np.prod(shape))).reshape(shape).astype(np.float64)
    if descending:  # the first element of every window is the largest
        x = -np.arange(x.size, dtype=np.float64).reshape(shape)
    n = len(window)
    y, indices = jup.max_pool_with_indices(x, window, strides, padding)
    expected, _, flat = oracle.max_pool(
        x,
        window,
        np.broadcast_to(strides, n).tolist(),
        ((padding, padding),) * n,
        (1,) * n,
        False,
    )
    assert_same(y, expected)
    assert_same(indices.flat, flat.astype(np.int32))
    jup.validate_indices(indices)
    dy = rng.standard_normal(y.shape)
    for duplicates in ("last", "sum"):
        unpool = functools.partial(jup.max_unpool, indices=indices, duplicates=duplicates)
        u, pullback = jax.vjp(unpool, dy)
        assert_same(u, oracle.max_unpool(dy, flat, shape[:-1], duplicates))
        du = rng.standard_normal(shape)
        assert_same(pullback(du)[0], oracle.max_unpool_gradient(du, flat, duplicates))


def test_nothing_to_unpool():
    y, flat = np.zeros((0, 0, 1), np.float32), np.zeros((0, 0, 1), np.int32)
    u, pullback = jax.vjp(lambda y: jup.max_unpool(y, flat, output_shape=(4, 4)), y)
    assert_same(u, np.zeros((4, 4, 1), np.float32))
    assert pullback(u)[0].shape == y.shape


def test_numpy_arrays_of_sizes():
    x = np.arange(42.0).reshape(6, 7, 1)
    expected = jup.max_pool(x, (2, 2), (2, 1), ((0, 1), (1, 1)))
    sizes = map(np.array, ((2, 2), (2, 1), ((0, 1), (1, 1))))
    assert_same(jup.max_pool(x, *sizes), np.asarray(expected))


@pytest.mark.few(7)
@pytest.mark.parametrize(
    ("shape", "window", "strides"),
    [
        ((2, 26, 27, 3), (13, 9), None),
        ((1, 40, 40, 2), (9, 20), (10, 20)),
        ((1, 9, 8, 10, 2), (9, 4, 5), None),
        ((1, 33, 5, 2), (11, 5), None),
        ((1, 21, 22, 1), (10, 10), None),
    ],
)
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_large_windows_that_tile(rng, shape, window, strides, layout, dtype):
    """Their axes are taken in another order: ties and NaN have to come out the same."""
    n = len(window)
    run = functools.partial(
        oracle.max_pool, window=window, strides=strides or window, padding="VALID",
        dilation=(1,) * n, ceil_mode=False,
    )  # fmt: skip
    for kind in KINDS:
        x = values(rng, shape, np.dtype(dtype), kind)
        x = np.moveaxis(x, -1, -n - 1) if layout == "channels_first" else x
        expected, offsets, _ = oracle.over_layout(run, n, layout, x)
        y, indices = jup.max_pool_with_indices(x, window, strides, data_format=layout)
        assert_same(y, expected)
        np.testing.assert_array_equal(indices.offsets, offsets)


@pytest.mark.parametrize("window", [(64, 64), (56, 56), (7, 7, 7)])
@pytest.mark.parametrize("strides", [None, 1])
def test_programs_stay_small_for_large_windows(window, strides):
    """What bounds the compile time: the number of operations does not grow with the volume."""

    def count(k):
        x = jax.ShapeDtypeStruct((1, *(2 * n for n in k), 1), np.float32)
        run = jax.jit(lambda x: jax.vjp(lambda x: jup.max_pool(x, k, strides), x))
        return len(run.lower(x).as_text().splitlines())

    assert count(window) < 1.5 * count((9,) * len(window)) + 200


def test_nan_and_ties_follow_pytorch(rng):
    x = np.array([1, np.nan, 3, np.nan, 2, 2, -np.inf, -np.inf, 5, 5, 4, 4]).reshape(3, 4, 1)
    y, indices = jup.max_pool_with_indices(x, (1, 4))
    np.testing.assert_array_equal(np.ravel(y), [np.nan, 2, 5])
    np.testing.assert_array_equal(np.ravel(indices.offsets), [3, 0, 0])


def test_padding_is_never_selected():
    x = np.full((3, 3, 1), -np.inf, np.float32)
    y, indices = jup.max_pool_with_indices(x, (3, 3), 2, 1)
    np.testing.assert_array_equal(y, np.full((2, 2, 1), -np.inf))
    np.testing.assert_array_equal(indices.flat[..., 0], [[0, 1], [3, 4]])


def test_empty_batches():
    x = np.zeros((0, 4, 4, 2), np.float32)
    y, indices = jup.max_pool_with_indices(x, (2, 2))
    assert y.shape == indices.shape == indices.flat.shape == (0, 2, 2, 2)
    assert jup.max_unpool(y, indices).shape == x.shape
    assert jup.max_unpool(y, indices.flat, output_shape=(4, 4)).shape == x.shape
    assert jax.grad(lambda x: jup.max_pool(x, (3, 3), 2, 1).sum())(x).shape == x.shape


def test_size_of_the_result_is_the_input_size():
    def round_trip(x):
        return jup.max_unpool(*jup.max_pool_with_indices(x, (3, 3), 2, 1, ceil_mode=True))

    for size in range(4, 12):
        x = jax.ShapeDtypeStruct((size, size, 1), np.float32)
        assert jax.eval_shape(round_trip, x) == x
