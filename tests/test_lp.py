"""lp_pool against the norm of each window."""

import functools

import derivatives
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunpool as jup


@pytest.mark.parametrize("norm", [1, 1.5, 2, 3, np.inf])
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


def test_derivatives(rng):
    x = jnp.asarray(rng.standard_normal((5, 6, 2)))
    pool = functools.partial(jup.lp_pool, window_shape=(3, 2), strides=2)
    run = lambda x, how=None: pool(x, 2, implementation=how) + pool(x, 2.5, implementation=how)
    (gradient,) = derivatives.check(run, x)
    (expected,) = derivatives.check(functools.partial(run, how="xla"), x, forward=True)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-12)
