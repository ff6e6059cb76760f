"""conv_transpose against loops over its definition."""

import functools

import derivatives
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from strategies import only

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


@pytest.mark.few(5)
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


@pytest.mark.few(3)
@pytest.mark.parametrize("rule", only("SAME", "VALID", among=["SAME", "SAME_LOWER", "VALID"]))
@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_rules_of_tensorflow(rng, rule, window):
    """The gradient of the convolution that pads by the same rule, of all sizes it comes from."""
    x = rng.standard_normal((1, 4, 5, 2))
    for strides, dilation in (((2, 3), (1, 1)), ((1, 2), (2, 1))):
        kernel = rng.standard_normal((window, window, 3, 2)).swapaxes(-1, -2)
        conv = lambda u: jax.lax.conv_general_dilated(
            u,
            kernel,
            strides,
            rule,
            rhs_dilation=dilation,
            dimension_numbers=("NHWC", "HWOI", "NHWC"),
        )
        spans = [(window - 1) * d + 1 for d in dilation]
        beyond = [max(k - s, 0) if rule == "VALID" else 0 for k, s in zip(spans, strides)]
        default = tuple(n * s + more for n, s, more in zip((4, 5), strides, beyond))
        smaller = tuple(size - (s > 1) for size, s in zip(default, strides))
        if jax.eval_shape(conv, jnp.zeros((1, *smaller, 3))).shape != x.shape:
            smaller = default
        for output_shape, sizes in ((None, default), (smaller, smaller)):
            u = jup.conv_transpose(
                x, kernel, None, strides, rule, dilation=dilation, output_shape=output_shape
            )
            assert u.shape == (1, *sizes, 3)
            _, pullback = jax.vjp(conv, jnp.zeros(u.shape))
            np.testing.assert_allclose(u, pullback(x)[0], atol=1e-12)


def test_same_is_not_what_pads_by_one(rng):
    """For 3x3 and stride 2 both double the sizes; their values differ."""
    x, kernel = rng.standard_normal((1, 4, 5, 2)), rng.standard_normal((3, 3, 2, 1))
    same = jup.conv_transpose(x, kernel, None, 2, "SAME")
    ones = jup.conv_transpose(x, kernel, None, 2, 1, output_padding=1)
    assert same.shape == ones.shape == (1, 8, 10, 1)
    np.testing.assert_allclose(same[:, 1:, 1:], ones[:, :-1, :-1], atol=1e-12)
    pairs = jup.conv_transpose(x, kernel, None, 2, ((0, 1), (0, 1)))
    np.testing.assert_array_equal(same, pairs)


def test_output_shape_is_output_padding(rng):
    x, kernel = rng.standard_normal((1, 4, 5, 2)), rng.standard_normal((3, 3, 2, 1))
    run = functools.partial(jup.conv_transpose, x, kernel, None, (2, 3), 1)
    for extra in ((0, 0), (1, 2)):
        y = run(output_padding=extra)
        np.testing.assert_array_equal(run(output_shape=y.shape[1:3]), y)
        np.testing.assert_array_equal(run(output_shape=y.shape[1:3], output_padding=1), y)
