"""conv_transpose against loops over its definition; inverse and lp_pool against theirs."""

import functools

import derivatives
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import jaxunpool as jup

CASES = [
    # sizes, window, strides, padding, output_padding, dilation
    ((5,), (3,), (2,), (1,), (1,), (1,)),
    ((4, 3), (3, 3), (1, 1), (0, 0), (0, 0), (1, 1)),
    ((4, 3), (2, 2), (2, 2), (0, 0), (0, 0), (1, 1)),
    ((4, 5), (3, 2), (2, 3), (1, 0), (1, 2), (1, 1)),
    ((4, 5), (3, 2), (1, 2), (2, 1), (0, 1), (2, 3)),
    ((4, 5), (1, 2), (3, 3), (1, 2), (0, 0), (1, 1)),  # padding beyond the kernel
    ((2, 3, 2), (2, 3, 2), (2, 1, 3), (0, 1, 1), (1, 0, 2), (1, 2, 1)),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("groups", [1, 2])
def test_agrees_with_the_oracle(rng, case, groups):
    sizes, window, strides, padding, extra, dilation = case
    n = len(sizes)
    x = rng.standard_normal((2, 2 * groups, *sizes))
    kernel = rng.standard_normal((2 * groups, 3, *window))
    bias = rng.standard_normal(3 * groups)
    parts = [
        oracle.conv_transpose(
            x[:, 2 * g : 2 * g + 2], kernel[2 * g : 2 * g + 2], strides, padding, extra, dilation
        )
        for g in range(groups)
    ]
    expected = np.concatenate(parts, 1) + bias.reshape(-1, *(1,) * n)
    run = functools.partial(
        jup.conv_transpose,
        strides=strides,
        padding=padding,
        output_padding=extra,
        groups=groups,
        dilation=dilation,
    )
    y = run(x, kernel, bias, data_format="channels_first")
    np.testing.assert_allclose(y, expected, atol=1e-12)
    last = np.moveaxis(kernel, (0, 1), (-2, -1))
    y = run(np.moveaxis(x, 1, -1), last, bias)
    np.testing.assert_allclose(y, np.moveaxis(expected, 1, -1), atol=1e-12)
    np.testing.assert_allclose(
        run(np.moveaxis(x, 1, -1)[0], last, bias), np.moveaxis(expected, 1, -1)[0], atol=1e-12
    )
    three = np.moveaxis(x, 1, -1)[:, None, None]
    np.testing.assert_allclose(run(three, last)[:, 0, 0], run(three[:, 0, 0], last), atol=1e-12)


def test_it_is_the_gradient_of_a_convolution(rng):
    x, kernel = rng.standard_normal((2, 9, 8, 3)), rng.standard_normal((3, 3, 4, 3))
    conv = lambda x: jax.lax.conv_general_dilated(
        x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWOI", "NHWC")
    )
    y, pullback = jax.vjp(conv, x)
    u = jup.conv_transpose(y, kernel, strides=2, padding=1, output_padding=(0, 1))
    np.testing.assert_allclose(u, pullback(y)[0], atol=1e-12)
    np.testing.assert_allclose(u, jup.inverse(conv, x)(y), atol=1e-12)


def test_derivatives(rng):
    x, kernel, bias = (jnp.asarray(rng.standard_normal(s)) for s in ((3, 4, 2), (3, 2, 2, 3), (3,)))
    run = lambda *a: jup.conv_transpose(*a, strides=2, padding=1, output_padding=1)
    derivatives.check(run, x, kernel, bias, forward=True)


class TestInverse:
    def test_is_the_transposed_jacobian(self, rng):
        x, w = rng.standard_normal(5), rng.standard_normal((3, 5))
        fn = lambda x: jnp.tanh(w @ x)
        y = rng.standard_normal(3)
        np.testing.assert_allclose(jup.inverse(fn, x)(y), jax.jacobian(fn)(x).T @ y, rtol=1e-12)

    @pytest.mark.parametrize(
        "options",
        [
            {"window_shape": (2, 3)},
            {"window_shape": (3, 3), "strides": 2, "padding": 1},
            {"window_shape": (2, 2), "strides": 1, "padding": "SAME"},
        ],
    )
    def test_of_max_pooling_is_max_unpooling(self, rng, options):
        x = rng.standard_normal((2, 7, 8, 3))
        y, indices = jup.max_pool_with_indices(x, **options)
        expected = jup.max_unpool(y, indices, duplicates="sum")
        np.testing.assert_array_equal(
            jup.inverse(lambda x: jup.max_pool(x, **options), x)(y), expected
        )
        with_indices = functools.partial(jup.max_pool_with_indices, **options)
        np.testing.assert_array_equal(jup.inverse(with_indices, x)((y, indices)), expected)

    def test_pytrees_and_a_whole_encoder(self, rng):
        x = {"image": rng.standard_normal((1, 8, 8, 2)), "scale": rng.standard_normal()}
        kernel = rng.standard_normal((3, 3, 2, 4))

        def encode(x):
            y = jax.lax.conv_general_dilated(
                x["image"], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            return [jup.max_pool(jax.nn.relu(y * x["scale"]), (2, 2)), y.mean()]

        decode = jup.inverse(encode, x)
        y = encode(x)
        u = decode(y)
        assert jax.tree.structure(u) == jax.tree.structure(x)
        expected = jax.vjp(encode, x)[1](y)[0]
        jax.tree.map(np.testing.assert_array_equal, u, expected)
        loss = lambda x, y: jup.inverse(encode, x)(y)["image"].sum()
        assert np.isfinite(jax.jit(jax.grad(loss))(x, y)["scale"])

    def test_what_does_not_fit_is_named(self, rng):
        x = rng.standard_normal((4, 4, 1))
        unpool = jup.inverse(lambda x: {"y": jup.max_pool(x, (2, 2))}, x)
        with pytest.raises(ValueError, match=r"y\['y'\]: expected float64\[2, 2, 1\].*float64\[4"):
            unpool({"y": x})
        with pytest.raises(ValueError, match=r"y\['y'\]: .*got float32\[2, 2, 1\]"):
            unpool({"y": np.zeros((2, 2, 1), np.float32)})
        with pytest.raises(ValueError, match="y: expected the structure of fn"):
            unpool([x])


class TestLpPool:
    @pytest.mark.parametrize("norm", [1, 1.5, 2, 3, np.inf])
    @pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
    def test_is_the_norm_of_each_window(self, rng, norm, layout):
        x = rng.standard_normal((2, 7, 8, 3))
        expected = np.zeros((2, 3, 3, 3))
        for i, j in np.ndindex(3, 3):
            window = x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].reshape(2, -1, 3)
            expected[:, i, j] = np.linalg.norm(window, norm, axis=1)
        move = lambda a: np.moveaxis(a, -1, 1) if layout == "channels_first" else a
        y = jup.lp_pool(move(x), norm, (3, 3), 2, data_format=layout)
        np.testing.assert_allclose(y, move(expected), rtol=1e-12)

    def test_gradient_of_zero_is_zero(self):
        for norm in (1, 1.0, 2, np.int64(2), np.float32(2.5), np.inf):
            loss = lambda x, norm=norm: jup.lp_pool(x, norm, (2, 2)).sum()
            np.testing.assert_array_equal(jax.grad(loss)(jnp.zeros((4, 4, 1))), 0)

    def test_an_element_that_is_zero_has_finite_derivatives(self):
        x = jnp.array([0.0, 3.0])[:, None]
        for norm in (1, 1.0, 2, 2.0, 3.0):
            slope = jax.grad(lambda x, norm=norm: jup.lp_pool(x, norm, (2,)).sum())
            np.testing.assert_allclose(slope(x)[:, 0], [0, 1], rtol=1e-15 * 4)
            assert np.isfinite(jax.grad(lambda x, slope=slope: (slope(x) ** 2).sum())(x)).all()

    def test_nan_and_16_bits(self):
        x = jnp.array([[300.0, 400], [0, np.nan]], jnp.float16)[..., None]
        y = jup.lp_pool(x, 2, (1, 2))
        assert y.dtype == jnp.float16
        np.testing.assert_array_equal(y[..., 0], [[500], [np.nan]])

    def test_derivatives(self, rng):
        x = jnp.asarray(rng.standard_normal((5, 6, 2)))
        pool = functools.partial(jup.lp_pool, window_shape=(3, 2), strides=2)
        run = lambda x, how=None: pool(x, 2, implementation=how) + pool(x, 2.5, implementation=how)
        (gradient,) = derivatives.check(run, x)
        (expected,) = derivatives.check(functools.partial(run, how="xla"), x, forward=True)
        np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-12)
