"""lp_pool against the norm of each window."""

import functools

import derivatives
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from strategies import only

import jaxunpool as jup
import jaxunpool.linen
import jaxunpool.nnx

NORMS = [0.5, 1, 1.5, 2, 3, 4.5, 50, np.inf]


@pytest.mark.parametrize("norm", only(1, 2, 4.5, np.inf, among=NORMS))
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
def test_is_the_norm_of_each_window(rng, norm, layout):
    x = rng.standard_normal((2, 7, 8, 3))
    expected = np.zeros((2, 3, 3, 3))
    for i, j in np.ndindex(3, 3):
        window = x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].reshape(2, -1, 3)
        expected[:, i, j] = np.linalg.norm(window, norm, axis=1)
    move = lambda a: np.moveaxis(a, -1, 1) if layout == "channels_first" else a
    y = jup.lp_pool(move(x), norm, (3, 3), 2, data_format=layout)
    np.testing.assert_allclose(y, move(expected), rtol=1e-12)


def test_gradient_of_zero_is_zero():
    for norm in (1, 1.0, 2, np.int64(2), np.float32(2.5), np.inf):
        loss = lambda x, norm=norm: jup.lp_pool(x, norm, (2, 2)).sum()
        np.testing.assert_array_equal(jax.grad(loss)(jnp.zeros((4, 4, 1))), 0)


def test_an_element_that_is_zero_has_finite_derivatives():
    x = jnp.array([0.0, 3.0])[:, None]
    for norm in (1, 1.0, 2, 2.0, 3.0):
        slope = jax.grad(lambda x, norm=norm: jup.lp_pool(x, norm, (2,)).sum())
        np.testing.assert_allclose(slope(x)[:, 0], [0, 1], rtol=1e-15 * 4)
        assert np.isfinite(jax.grad(lambda x, slope=slope: (slope(x) ** 2).sum())(x)).all()


def test_nan_and_16_bits():
    x = jnp.array([[300.0, 400], [0, np.nan]], jnp.float16)[..., None]
    y = jup.lp_pool(x, 2, (1, 2))
    assert y.dtype == jnp.float16
    np.testing.assert_array_equal(y[..., 0], [[500], [np.nan]])


def norms(x, p, window, stride):
    """In extended precision, with elements divided by the largest."""
    starts = range(0, len(x) - window + 1, stride)
    windows = np.stack([x[i : i + window] for i in starts]).astype(np.longdouble)
    largest = np.abs(windows).max(1, keepdims=True)
    return (largest[:, 0] * ((np.abs(windows) / largest) ** p).sum(1) ** (1 / np.longdouble(p))).T


@pytest.mark.few(1)
@pytest.mark.parametrize(("window", "stride"), [(4, 4), (3, 2), (20, 1)])
def test_large_powers_neither_overflow_nor_vanish(rng, window, stride):
    """Tens, tiny and huge numbers to the power of 50; windows that tile, overlap, and are large."""
    x = np.float32(10 + rng.standard_normal(24))
    scales = jnp.asarray([1, -1, 1e-30, 1e30], jnp.float32)
    pool = lambda x: jup.lp_pool(x[:, None], 50, (window,), stride)[:, 0]

    @jax.jit
    def program(x):
        each = lambda x: (pool(x), jax.grad(lambda x: pool(x).sum())(x))
        return [each(x * scale) for scale in scales]

    expected = norms(x, 50, window, stride)
    (_, slope), *_ = found = program(x)
    step = 1e-3 * rng.standard_normal(24)
    wanted = (norms(x + step, 50, window, stride) - norms(x - step, 50, window, stride)).sum() / 2
    np.testing.assert_allclose(np.vdot(slope, step), np.float64(wanted), rtol=1e-3)
    for scale, (y, gradient) in zip(scales, found):
        np.testing.assert_allclose(y, np.float64(np.abs(scale) * expected), rtol=1e-5)
        np.testing.assert_allclose(gradient, np.sign(scale) * slope, rtol=1e-4, atol=1e-6)


@pytest.mark.few(1)
@pytest.mark.parametrize("window", [(2,), (3,)])
def test_what_cannot_divide(window):
    """Infinity, NaN and zeros, under exponents that are divided."""
    x = jnp.array([0, 0, jnp.inf, 1, jnp.nan, 1, -jnp.inf, 0])[:, None]
    for exponent in (5, jnp.asarray(5.0)):
        y = jup.lp_pool(x, exponent, window, 2)[:, 0]
        if window == (2,):
            np.testing.assert_array_equal(y, [0, np.inf, np.nan, np.inf])
        else:
            np.testing.assert_array_equal(y, [np.inf, np.nan, np.nan])
        zeros = jnp.zeros((4, 1))
        loss = lambda x, p=exponent: jup.lp_pool(x, p, window, 1).sum()
        np.testing.assert_array_equal(jax.grad(loss)(zeros), zeros)


def test_second_derivatives_at_zero():
    """Those of the Euclidean norm are right; where they would be infinite, they are zero."""
    x = jnp.array([0.0, 4.0])[:, None]
    exponents = (2, 1.5, 3, jnp.asarray(1.5))
    norms = lambda x: jnp.stack([jup.lp_pool(x, p, (2,)).sum() for p in exponents])
    curvatures = jax.jit(jax.hessian(norms))(x)[:, 0, 0, 0, 0]
    np.testing.assert_array_equal(curvatures, [0.25, 0, 0, 0])
    assert jax.grad(lambda x: jup.lp_pool(x, 0.5, (2,)).sum())(x).tolist() == [[0], [1]]


@pytest.mark.parametrize("size", only(2, among=[2, 3]))
def test_an_exponent_that_is_an_array(rng, size):
    """The value of the number, and a gradient, which is the difference of values."""
    x = jnp.asarray(rng.standard_normal((2, 6, 6, 3)).astype(np.float64)).at[:, 0].set(0)
    pool = jax.jit(lambda x, p: jup.lp_pool(x, p, (size, size), 2, 1))
    for p in (0.5, 3.0):
        np.testing.assert_allclose(pool(x, p), jup.lp_pool(x, p, (size, size), 2, 1), rtol=1e-12)
    slope = jax.jit(jax.grad(lambda p: pool(x, p).sum()))
    found = slope(3.0), slope(0.7)
    wanted = [(pool(x, p + 1e-6).sum() - pool(x, p - 1e-6).sum()) / 2e-6 for p in (3.0, 0.7)]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    derivatives.check(pool, x + 3, jnp.asarray(3.0))


def test_modules_learn_the_exponent(rng):
    x = rng.random((2, 4, 4, 3), np.float32)
    wanted = jax.grad(lambda p: jup.lp_pool(x, p, (4, 4)).sum())(jnp.float32(3))
    module = jaxunpool.nnx.LpPool(nnx.Param(jnp.float32(3)), (4, 4))
    gradient = nnx.grad(lambda module: module(x).sum())(module)
    np.testing.assert_array_equal(gradient.norm_type.get_value(), wanted)
    assert jax.tree.leaves(jaxunpool.nnx.LpPool(3, (4, 4))) == []

    module = jaxunpool.linen.LpPool(3.0, (4, 4), learnable=True)
    variables = module.init(jax.random.key(0), x)
    assert variables == {"params": {"norm_type": 3}}
    gradient = jax.grad(lambda v: module.apply(v, x).sum())(variables)
    np.testing.assert_array_equal(gradient["params"]["norm_type"], wanted)
    assert isinstance(module, nn.Module)


def test_derivatives(rng):
    x = jnp.asarray(rng.standard_normal((5, 6, 2)))
    pool = functools.partial(jup.lp_pool, window_shape=(2, 2), strides=1)
    run = lambda x, how=None: sum(pool(x, p, implementation=how) for p in (2, 4.5))
    (gradient,) = derivatives.check(run, x)
    (expected,) = derivatives.check(functools.partial(run, how="xla"), x, forward=True)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-12)
