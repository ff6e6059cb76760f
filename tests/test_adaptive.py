"""Adaptive and global pooling against the oracle."""

import functools

import derivatives
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import strategies as st
from strategies import FLOATS, INTEGERS, KINDS, examples, per_axis, values
from test_linear import close
from test_max import assert_same

import jaxunpool as jup


@st.composite
def calls(draw):
    n = draw(st.integers(1, 3))
    sizes, outputs = draw(per_axis(n, 1, (30, 11, 6)[n - 1])), draw(per_axis(n, 1, 9))
    batch, layout = draw(st.sampled_from([(), (2,), (1, 2)])), draw(st.sampled_from(LAYOUTS))
    shape = (*batch, *sizes, 2) if layout == "channels_last" else (*batch, 2, *sizes)
    return sizes, outputs, shape, layout


LAYOUTS = ("channels_last", "channels_first")


@hypothesis.settings(max_examples=examples(6, 60))
@hypothesis.given(
    call=calls(),
    dtype=st.sampled_from(FLOATS + INTEGERS),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32 - 1),
)
def test_everything_agrees_with_the_oracle(call, dtype, kind, seed):
    sizes, outputs, shape, layout = call
    rng = np.random.default_rng(seed)
    x = values(rng, shape, dtype, kind)
    n, options = len(sizes), {"data_format": layout}
    bounds = [oracle.adaptive_bounds(*pair) for pair in zip(sizes, outputs)]
    expected, flat = oracle.over_layout(
        functools.partial(oracle.irregular_max, bounds=bounds), n, layout, x
    )
    for implementation in (None, "xla"):
        y, indices = jup.adaptive_max_pool_with_indices(
            x, outputs, implementation=implementation, **options
        )
        assert_same(y, expected)
        assert_same(indices.flat, flat.astype(np.int32))
    assert_same(jup.adaptive_max_pool(x, outputs, **options), expected)
    jup.validate_indices(indices)
    again = jup.PoolIndices.from_flat(flat, indices.geometry)
    assert_same(again.offsets, np.asarray(indices.offsets).astype(again.offsets.dtype))
    dy = values(rng, expected.shape, dtype, "plain")
    unpool = functools.partial(oracle.max_unpool, sizes=sizes, duplicates="last")
    assert_same(jup.max_unpool(dy, indices), oracle.over_layout(unpool, n, layout, dy, flat))
    if dtype not in FLOATS:
        return
    pool = functools.partial(jup.adaptive_max_pool, output_shape=outputs, **options)
    add = functools.partial(oracle.max_unpool, sizes=sizes, duplicates="sum")
    dx = oracle.over_layout(add, n, layout, dy.astype(np.float64), flat)
    close(jax.vjp(pool, x)[1](dy)[0], dx, dtype, 8)

    x = values(rng, shape, dtype, "plain")
    means = lambda image: _means(image, bounds)
    y, pullback = jax.vjp(
        functools.partial(jup.adaptive_avg_pool, output_shape=outputs, **options), x
    )
    close(y, oracle.over_layout(means, n, layout, x), dtype, np.prod(sizes) + 4)
    spread = lambda image: _spread(image, bounds, sizes)
    close(pullback(dy)[0], oracle.over_layout(spread, n, layout, dy), dtype, np.prod(outputs) + 4)


@pytest.mark.few(1)
@pytest.mark.parametrize("shape", [(1, 20011), (1, 9, 41), (1, 3, 6, 17)])
def test_rows_of_one_channel(shape):
    """Planes in rows that fill vectors once, or as often as a lane can count and again."""
    bounds = [oracle.adaptive_bounds(size, 2) for size in shape[1:]]
    find = functools.partial(oracle.irregular_max, bounds=bounds)
    for dtype in [*FLOATS[1:], np.dtype("int8")]:
        for kind in KINDS:
            x = values(np.random.default_rng(0), shape, dtype, kind)
            y, indices = jup.adaptive_max_pool_with_indices(
                x, [2] * len(bounds), data_format="channels_first"
            )
            expected, flat = oracle.over_layout(find, len(bounds), "channels_first", x)
            assert_same(y, expected)
            assert_same(indices.flat, flat.astype(np.int32))


def _means(image, bounds):
    y = np.zeros((*map(len, bounds), image.shape[-1]))
    for o in np.ndindex(*y.shape[:-1]):
        part = image[tuple(slice(*b[i]) for b, i in zip(bounds, o))].astype(np.float64)
        y[o] = part.reshape(-1, image.shape[-1]).mean(0)
    return y


def _spread(image, bounds, sizes):
    """The transpose of `_means`."""
    u = np.zeros((*sizes, image.shape[-1]))
    for o in np.ndindex(*image.shape[:-1]):
        part = tuple(slice(*b[i]) for b, i in zip(bounds, o))
        u[part] += image[o].astype(np.float64) / np.prod(
            [b[i][1] - b[i][0] for b, i in zip(bounds, o)]
        )
    return u


@pytest.mark.few(1)
@pytest.mark.parametrize("size", [(5, 7), (6, 8)])
def test_derivatives(rng, size):
    x = jnp.asarray(rng.permutation(2 * 70 * 2)[: 2 * size[0] * size[1]] / 10.0)
    x = x.reshape(*size, 2)

    def run(x, implementation=None):
        pools = (jup.adaptive_max_pool, jup.adaptive_avg_pool)
        found = [pool(x, (3, 4), implementation=implementation).ravel() for pool in pools]
        return jnp.concatenate([*found, jup.global_avg_pool(x, spatial_ndim=2).ravel()])

    (gradient,) = derivatives.check(run, x)
    plain = functools.partial(run, implementation="xla")
    (expected,) = derivatives.check(plain, x, forward=True)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("sizes", "outputs"), [((1001,), (2,)), ((225, 225), (2, 2))])
def test_the_mean_of_equal_numbers_is_one_of_them(sizes, outputs):
    x = jnp.full((*sizes, 1), 3.0, jnp.float32)
    for run in (jup.adaptive_avg_pool, functools.partial(jup.interpolate, mode="area")):
        np.testing.assert_array_equal(run(x, outputs), 3)
        np.testing.assert_array_equal(jax.jit(lambda x, run=run: run(x, outputs))(x), 3)


def test_larger_than_the_input():
    x = jnp.array([1.0, 2, 3])[:, None]
    np.testing.assert_array_equal(jup.adaptive_max_pool(x, (5,))[:, 0], [1, 2, 2, 3, 3])
    np.testing.assert_array_equal(jup.adaptive_avg_pool(x, (5,))[:, 0], [1, 1.5, 2, 2.5, 3])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_global(rng, layout):
    x = rng.standard_normal((2, 9, 10, 4)).astype(np.float32)
    axes = (1, 2) if layout == "channels_last" else (2, 3)
    y, indices = jup.global_max_pool_with_indices(x, data_format=layout)
    np.testing.assert_array_equal(y, x.max(axes, keepdims=True))
    np.testing.assert_array_equal(jup.global_max_pool(x, data_format=layout), y)
    assert jup.max_unpool(y, indices).shape == x.shape
    mean = jup.global_avg_pool(x, data_format=layout)
    np.testing.assert_allclose(mean, x.mean(axes, keepdims=True, dtype=np.float64), atol=1e-6)
    np.testing.assert_array_equal(
        jup.global_max_pool(x[0], spatial_ndim=1), x[0].max(1, keepdims=True)
    )


def test_indices_know_their_plane():
    y, indices = jup.adaptive_max_pool_with_indices(jnp.arange(35.0).reshape(5, 7, 1), (2, 3))
    assert repr(indices) == "PoolIndices(int32[2,3,1], flat, input=(5, 7), 24 bytes)"
    assert jup.max_unpool(y, indices).shape == (5, 7, 1)
    with pytest.raises(ValueError, match="made for an input of spatial size"):
        jup.max_unpool(y, indices, output_shape=(5, 8))
    even = jup.adaptive_max_pool_with_indices(jnp.zeros((6, 8, 1)), (2, 4))[1]
    assert even.offsets.dtype == np.uint8


@pytest.mark.few(3)
@pytest.mark.parametrize(("size", "output"), [(1, 3), (5, 3), (9, 12), (160, 44), (1000, 7)])
def test_windows_are_the_definitions(size, output):
    """In values and gradients: the windows that hold an element read it, and no other."""
    rows = np.zeros((output, size))
    for row, (start, stop) in zip(rows, oracle.adaptive_bounds(size, output)):
        row[start:stop] = 1 / (stop - start)

    @jax.jit
    def both(x, dy):
        run = functools.partial(jup.adaptive_avg_pool, output_shape=(output,))
        return run(x), jax.vjp(run, jnp.zeros((size, output)))[1](dy)[0]

    y, dx = both(np.eye(size), np.eye(output))
    np.testing.assert_allclose(y, rows, rtol=1e-15)
    np.testing.assert_allclose(dx, rows.T, rtol=1e-15)


@pytest.mark.parametrize("pool", ["adaptive_avg_pool", "adaptive_max_pool"])
def test_programs_hold_no_tables(pool):
    """Nothing of an axis's size: not when the sizes are thousands of times as large."""

    def length(size, output):
        run = functools.partial(getattr(jup, pool), output_shape=(output,))
        x, dy = (jax.ShapeDtypeStruct((2, n, 3), np.float32) for n in (size, output))
        back = lambda x, dy: jax.vjp(run, x)[1](dy)
        return len(jax.jit(back).lower(x, dy).as_text())

    # Products of more than 32 bits are divided by digits, which is one loop more.
    small, long = length(29, 8), length(100003, 60013)
    assert small < long < 2 * small
    assert length(160001, 44100) < 1.1 * long
    assert length(2**29 + 5, 2**27 + 1) < 1.3 * long


@pytest.mark.parametrize("size", [224, 223])
def test_programs_stay_small(size):
    """The number of operations grows neither with the input nor with the output."""

    def count(size, outputs):
        x = jax.ShapeDtypeStruct((1, size, size, 4), np.float32)
        run = jax.jit(lambda x: jax.vjp(lambda x: jup.adaptive_max_pool(x, outputs), x))
        return len(run.lower(x).as_text().splitlines())

    assert count(size, 7) < 1.5 * count(70 + size % 7, 7) + 200


@pytest.mark.few(1)
@pytest.mark.parametrize("output_shape", [(None, 1), (3, None), (None, None)])
def test_none_keeps_an_axis(rng, output_shape):
    torch = pytest.importorskip("torch")
    x = rng.standard_normal((2, 5, 7, 3)).astype(np.float32)
    theirs = torch.tensor(np.moveaxis(x, -1, 1))
    last = lambda array: np.moveaxis(np.asarray(array), 1, -1)
    y, indices = jup.adaptive_max_pool_with_indices(x, output_shape)
    expected = torch.nn.functional.adaptive_max_pool2d(theirs, output_shape, return_indices=True)
    np.testing.assert_array_equal(y, last(expected[0]))
    np.testing.assert_array_equal(indices.flat, last(expected[1]))
    np.testing.assert_array_equal(jup.adaptive_max_pool(x, list(output_shape)), y)
    mean = torch.nn.functional.adaptive_avg_pool2d(theirs, output_shape)
    np.testing.assert_allclose(jup.adaptive_avg_pool(x, output_shape), last(mean), 1e-6, 1e-7)


def test_none_alone_is_refused_as_in_pytorch():
    for pool in (
        jup.adaptive_max_pool,
        jup.adaptive_max_pool_with_indices,
        jup.adaptive_avg_pool,
    ):
        with pytest.raises(TypeError, match="output_shape: expected an int, got None"):
            pool(np.zeros((1, 5, 7, 3)), None)
        assert jax.eval_shape(lambda x: pool(x, (None, 2, None)), np.zeros((4, 5, 6, 1)))


def test_vmap_over_nothing():
    """The windows have no such axis, only the arrays."""
    pool = jax.vmap(lambda x: jup.adaptive_max_pool(x, (5, 5)))
    assert pool(jnp.zeros((0, 2, 13, 13, 4))).shape == (0, 2, 5, 5, 4)
