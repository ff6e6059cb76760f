"""Fractional max pooling: windows, given and drawn, and maxima over them against the oracle."""

import functools
import itertools

import derivatives
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import strategies as st
from strategies import FLOATS, INTEGERS, KINDS, examples, only, values
from test_linear import close
from test_max import assert_same

import jaxunpool as jup

LAYOUTS = ("channels_last", "channels_first")


def pytorchs_starts(size, k, output, sample):
    """Its interval rule, in the sample's own precision."""
    if output == 1:
        return [size - k]
    alpha = type(sample)(size - k) / type(sample)(output - 1)
    first = int(sample * alpha)
    steps = [int((type(sample)(i) + sample) * alpha) - first for i in range(output - 1)]
    return [*steps, size - k]


@st.composite
def calls(draw):
    n = draw(st.integers(1, 3))
    axes = [
        (draw(st.integers(1, 3)), draw(st.integers(1, (12, 7, 4)[n - 1])), draw(st.integers(0, 9)))
        for _ in range(n)
    ]
    window, outputs, extra = zip(*axes)
    sizes = tuple(k + o - 1 + e for k, o, e in zip(window, outputs, extra))
    return window, outputs, sizes, draw(st.sampled_from(LAYOUTS)), draw(st.booleans())


@hypothesis.settings(max_examples=examples(4, 40))
@hypothesis.given(
    call=calls(),
    dtype=st.sampled_from(FLOATS + INTEGERS),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32 - 1),
)
def test_everything_agrees_with_the_oracle(call, dtype, kind, seed):
    window, outputs, sizes, layout, batched = call
    rng, n = np.random.default_rng(seed), len(sizes)
    batch = (2,) if batched else ()
    shape = (*batch, *sizes, 2) if layout == "channels_last" else (*batch, 2, *sizes)
    x = values(rng, shape, dtype, kind)
    samples = rng.random((*batch, 2, n)).astype(np.float32)
    planes = np.moveaxis(x, -1, len(batch)) if layout == "channels_last" else x
    expected = np.zeros((*planes.shape[: len(batch) + 1], *outputs), dtype)
    flat = np.zeros(expected.shape, np.int32)
    for number in np.ndindex(*planes.shape[: len(batch) + 1]):
        order = samples[number][::-1] if n == 2 else samples[number]
        bounds = [
            [(start, start + k) for start in pytorchs_starts(size, k, output, sample)]
            for size, k, output, sample in zip(sizes, window, outputs, order)
        ]
        y, places = oracle.irregular_max(planes[number][..., None], bounds)
        expected[number], flat[number] = y[..., 0], places[..., 0]
    if layout == "channels_last":
        expected, flat = (np.moveaxis(a, len(batch), -1) for a in (expected, flat))
    pool = functools.partial(
        jup.fractional_max_pool_with_indices,
        window_shape=window,
        output_shape=outputs,
        random_samples=samples,
        data_format=layout,
    )
    y, indices = pool(x)
    assert_same(y, expected)
    assert_same(indices.flat, flat)
    plain, places = pool(x, implementation="xla")
    assert_same(plain, expected)
    assert_same(places.flat, flat)
    jup.validate_indices(indices)
    u = jup.max_unpool(y, indices)
    assert u.shape == x.shape
    if kind == "plain":
        np.testing.assert_array_equal(np.asarray(u)[np.asarray(u) != 0], x[np.asarray(u) != 0])
    if dtype in FLOATS:
        dy = values(rng, expected.shape, dtype, "plain")
        dx = jax.vjp(lambda x: pool(x)[0], x)[1](dy)[0]
        add = functools.partial(oracle.max_unpool, sizes=sizes, duplicates="sum")
        exact = oracle.over_layout(add, n, layout, dy.astype(np.float64), flat)
        close(dx, exact, dtype, 8)


def test_tensorflows_example():
    """From its documentation: 16, at index 2, is in both windows."""
    x = np.array([20, 5, 16, 3, 7])[:, None]
    y = jup.fractional_max_pool(x, None, sequences=[[0, 2, 4]], overlapping=True)
    np.testing.assert_array_equal(y[:, 0], [20, 16])


@pytest.mark.parametrize("overlapping", [False, True])
def test_given_sequences(rng, overlapping):
    x = rng.standard_normal((2, 9, 7, 3))
    rows, columns = [0, 1, 3, 5, 7, 9], [0, 2, 3, 5, 7]
    ends = lambda s, size: [(a, min(b + overlapping, size)) for a, b in itertools.pairwise(s)]
    bounds = [ends(rows, 9), ends(columns, 7)]
    expected, flat = oracle.over_layout(
        functools.partial(oracle.irregular_max, bounds=bounds), 2, "channels_last", x
    )
    y, indices = jup.fractional_max_pool_with_indices(
        x, None, sequences=(np.array(rows), columns), overlapping=overlapping
    )
    assert_same(y, expected)
    assert_same(indices.flat, flat.astype(np.int32))


@pytest.mark.thorough
@pytest.mark.parametrize("overlapping", only(True, among=[False, True]))
def test_averages_of_given_sequences(rng, overlapping):
    """Means of boxes, in both layouts; rounded once from 16 bits; and the transpose."""
    x = rng.standard_normal((2, 9, 14, 3))
    rows, columns = [0, 1, 3, 5, 7, 9], [0, 2, 3, 14]  # one of them is in a loop
    ends = lambda s, size: [(a, min(b + overlapping, size)) for a, b in itertools.pairwise(s)]
    each = [[x[:, a:b, c:d].mean((1, 2)) for c, d in ends(columns, 14)] for a, b in ends(rows, 9)]
    expected = np.moveaxis(np.array(each), 2, 0)
    run = functools.partial(
        jup.fractional_avg_pool, sequences=(np.array(rows), columns), overlapping=overlapping
    )
    np.testing.assert_allclose(run(x), expected, rtol=1e-12, atol=1e-14)
    first = run(np.moveaxis(x, -1, 1), data_format="channels_first")
    np.testing.assert_array_equal(np.moveaxis(first, 1, -1), run(x))
    half = x.astype(np.float16)
    np.testing.assert_array_equal(run(half), run(half.astype(np.float32)).astype(np.float16))
    dy = rng.standard_normal(expected.shape)
    (dx,) = jax.linear_transpose(run, x)(dy)
    np.testing.assert_allclose(np.vdot(dx, x), np.vdot(dy, expected), rtol=1e-10)


@pytest.mark.thorough
def test_averages_over_drawn_windows_are_those_of_the_maxima():
    """The same key gives both the same windows."""
    x = jnp.arange(25.0)[:, None]
    for key in jax.random.split(jax.random.key(0), 5):
        for options in ({}, {"pseudo_random": False}, {"overlapping": True}):
            low = jup.fractional_max_pool(-x, None, (17,), key=key, **options)
            high = jup.fractional_max_pool(x, None, (17,), key=key, **options)
            found = jup.fractional_avg_pool(x, (17,), key=key, **options)
            np.testing.assert_allclose(found, (high - low) / 2, rtol=1e-15)


@pytest.mark.thorough
def test_sizes_from_a_ratio():
    """PyTorch's: rounded down, along each axis."""
    x = jnp.zeros((1, 10, 7, 2))
    key = jax.random.key(0)
    for ratio, sizes in ((0.5, (5, 3)), ((0.9, 0.3), (9, 2)), (1, (10, 7))):
        for window in (None, (1, 1)):
            run = functools.partial(jup.fractional_max_pool, window_shape=window, key=key)
            assert run(x, output_ratio=ratio).shape == (1, *sizes, 2)
        assert jup.fractional_avg_pool(x, output_ratio=ratio, key=key).shape == (1, *sizes, 2)


def drawn_windows(key, size, output, **options):
    """First positions of the windows: the index of the maximum of a falling input."""
    x = -np.arange(float(size))[:, None]
    _, indices = jup.fractional_max_pool_with_indices(x, None, (output,), key=key, **options)
    return np.asarray(indices.flat[:, 0])


@pytest.mark.few(3)
@pytest.mark.parametrize(("size", "output"), [(25, 17), (30, 20), (17, 16), (11, 11), (40, 9)])
@pytest.mark.parametrize("pseudo_random", [True, False])
def test_drawn_windows_are_grahams(size, output, pseudo_random):
    """They start at 0, end at the size, and step by the two integers around the ratio."""
    seen = set()
    for seed in range(40):
        key = jax.random.key(seed)
        starts = drawn_windows(key, size, output, pseudo_random=pseudo_random)
        assert starts[0] == 0
        steps = np.diff([*starts, size])
        assert set(steps) <= {size // output, -(-size // output)}
        assert steps.sum() == size
        overlapping = drawn_windows(
            key, size, output, pseudo_random=pseudo_random, overlapping=True
        )
        np.testing.assert_array_equal(overlapping, starts)
        if pseudo_random:  # as even as possible: any run of steps is within one of the ratio
            for width in (2, 3, 5):
                runs = np.convolve(steps, np.ones(width, int), "valid")
                assert np.ptp(runs) <= 1
        seen.add(tuple(starts))
    assert len(seen) > 1 or size % output == 0


@pytest.mark.parametrize("pseudo_random", [True, False])
def test_drawn_positions_of_fixed_windows(pseudo_random):
    x = np.broadcast_to(-np.arange(23.0)[None, :, None], (4, 23, 5))
    _, indices = jup.fractional_max_pool_with_indices(
        x, (3,), (9,), key=jax.random.key(1), pseudo_random=pseudo_random
    )
    starts = np.asarray(indices.flat)
    assert (starts[:, 0] == 0).all()
    assert (starts[:, -1] == 20).all()
    assert set(np.diff(starts, axis=1).ravel()) <= {2, 3}
    assert len(np.unique(starts.swapaxes(1, 2).reshape(-1, 9), axis=0)) > 1  # one for each plane


def test_samples_out_of_range_inside_jit_stay_in_the_plane():
    """Outside it they are refused; inside, index and value still name the same element."""
    x = jnp.arange(7.0)[:, None]
    pool = lambda s: jup.fractional_max_pool_with_indices(x, (2,), (3,), random_samples=s)
    for sample in (np.nan, -3.0, 1e9):
        y, indices = jax.jit(pool)(jnp.array([[sample]]))
        np.testing.assert_array_equal(x[indices.flat[:, 0], 0], y[:, 0])
        assert indices.flat[-1, 0] == 6


WAYS = {
    "window": {"window_shape": (2, 2)},
    "sequence, overlapping": {"window_shape": None, "pseudo_random": False, "overlapping": True},
    "window, random order": {"window_shape": (2, 2), "pseudo_random": False},
    "sequence": {"window_shape": None},
}


@pytest.mark.parametrize("way", only("window", among=WAYS))
def test_a_key_decides_everything(way):
    x, options = jax.random.normal(jax.random.key(7), (3, 12, 13, 2)), WAYS[way]
    pool = functools.partial(jup.fractional_max_pool_with_indices, output_shape=(8, 9), **options)
    one, two = pool(x, key=jax.random.key(3)), pool(x, key=jax.random.key(3))
    np.testing.assert_array_equal(one[1].flat, two[1].flat)
    jitted = jax.jit(lambda x, key, pool=pool: pool(x, key=key))(x, jax.random.key(3))
    np.testing.assert_array_equal(one[1].flat, jitted[1].flat)
    np.testing.assert_array_equal(one[0], jitted[0])
    if "pseudo_random" not in options:
        keys = jax.random.split(jax.random.key(3), 3)
        one_image = lambda x, key, pool=pool: pool(x, key=key)[0]
        mapped = jax.jit(jax.vmap(one_image))(x, keys)
        each = jnp.stack([one_image(image, key) for image, key in zip(x, keys)])
        np.testing.assert_array_equal(mapped, each)
    other = pool(x, key=jax.random.key(4))[1]
    assert (other.flat != one[1].flat).any()
    raw = pool(x, key=jax.random.PRNGKey(3))
    np.testing.assert_array_equal(raw[1].flat, one[1].flat)


@pytest.mark.parametrize("window", [(2,), None])
@pytest.mark.parametrize("pseudo_random", [True, False])
def test_programs_do_not_grow(window, pseudo_random):
    def length(size, output):
        run = lambda x, key: jup.fractional_max_pool(
            x, window, (output,), key=key, pseudo_random=pseudo_random
        )
        x = jax.ShapeDtypeStruct((size, 1), np.float32)
        return len(jax.jit(run).lower(x, jax.random.key(0)).as_text())

    assert length(160001, 90001) < 1.2 * length(29, 17)


def test_drawn_windows_of_a_large_axis_are_exact():
    """`alpha * i` has more bits than an int32 here."""
    size, output = 160001, 120007
    starts = drawn_windows(jax.random.key(0), size, output)
    steps = np.diff([*starts, size])
    assert set(steps) == {1, 2}
    assert np.ptp(np.convolve(steps, np.ones(1000, int), "valid")) <= 1


def test_derivatives(rng):
    x = jnp.asarray(rng.permutation(7 * 8 * 2).reshape(7, 8, 2) / 10.0)
    pool = functools.partial(jup.fractional_max_pool, output_shape=(4, 5), key=jax.random.key(2))
    run = lambda x, how=None: jnp.stack(
        [pool(x, window, implementation=how) for window in ((2, 2), None)]
    )
    (gradient,) = derivatives.check(run, x)
    (expected,) = derivatives.check(functools.partial(run, how="xla"), x, forward=True)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("key", [3, -(2**63), 10**30])
def test_an_int_is_no_key(key):
    with pytest.raises(TypeError, match=r"^key: expected a jax\.random key, got -?\d+$"):
        jup.fractional_avg_pool(jnp.ones((5, 6, 3)), (4, 5), key=key)
