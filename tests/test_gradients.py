"""Derivatives by finite differences, their order, and what is kept for them."""

import functools

import derivatives
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from strategies import only

import jaxunpool as jup

WINDOWS = {
    "disjoint": {"window_shape": (2, 3)},
    "overlapping": {"window_shape": (3, 3), "strides": 2, "padding": 1},
    "dense": {"window_shape": (2, 2), "strides": 1, "padding": "SAME"},
    "gaps": {"window_shape": (2, 1), "strides": 3},
    "dilated": {"window_shape": (2, 2), "strides": 1, "dilation": 2},
    "one axis at a time": {"window_shape": (5, 6), "strides": (2, 1), "padding": 2},
    "channels first": {
        "window_shape": (2, 2), "strides": 1, "padding": 1, "data_format": "channels_first",
    },
}  # fmt: skip


@pytest.fixture
def x(rng):
    # Far from ties, so that a finite difference does not change which element is selected.
    return jnp.asarray(rng.permutation(6 * 7 * 2).reshape(6, 7, 2) / 10.0 - 4)


@pytest.mark.parametrize("name", only("disjoint", "dense", among=WINDOWS))
def test_pool_and_unpool(x, name):
    """Max pooling in a chain with both unpoolings."""

    def run(x, implementation):
        options = WINDOWS[name] | {"implementation": implementation}
        y, indices = jup.max_pool_with_indices(x, **options)
        unpool = functools.partial(jup.max_unpool, y, indices, implementation=implementation)
        return unpool(duplicates="last") + jnp.sin(unpool(duplicates="sum"))

    (gradient,) = derivatives.check(functools.partial(run, implementation=None), x)
    plain = functools.partial(run, implementation="xla")
    (expected,) = derivatives.check(plain, x, forward=True)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("duplicates", ["last", "sum"])
@pytest.mark.parametrize("name", only("overlapping", among=WINDOWS))
def test_unpooling_by_flat_positions(x, name, duplicates):
    y, indices = jup.max_pool_with_indices(x, **WINDOWS[name])
    g = indices.geometry
    run = functools.partial(
        jup.max_unpool, indices=indices.flat, output_shape=g.input_shape,
        data_format=g.data_format, duplicates=duplicates,
    )  # fmt: skip
    (gradient,) = derivatives.check(run, y)
    plain = functools.partial(run, implementation="xla")
    (expected,) = derivatives.check(plain, y, forward=True)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-12)


def test_third_order(x):
    third = lambda f: jax.grad(jax.grad(jax.grad(f)))(2.0)
    run = lambda s: jup.max_pool((x * s) ** 3, (3, 3), 2, 1).sum()
    plain = lambda s: jup.max_pool((x * s) ** 3, (3, 3), 2, 1, implementation="xla").sum()
    np.testing.assert_allclose(third(run), third(plain), rtol=1e-13)


@pytest.mark.thorough
def test_hessian_by_forward_over_reverse():
    x = jnp.arange(9.0).reshape(3, 3, 1)
    f = lambda x: (jup.max_pool(x, (2, 2), 1, implementation="xla") ** 2).sum()
    hessian = jax.hessian(f)(x).reshape(9, 9)
    np.testing.assert_array_equal(hessian, np.diag([0, 0, 0, 0, 2, 2, 0, 2, 2]))


def test_the_gradient_of_last_goes_to_the_winner_alone():
    y = jnp.array([[1.0], [2.0], [3.0]])
    flat = jnp.array([[1], [1], [0]])
    unpool = functools.partial(jup.max_unpool, indices=flat, output_shape=(2,))
    u, pullback = jax.vjp(unpool, y)
    np.testing.assert_array_equal(u, [[3], [2]])
    np.testing.assert_array_equal(pullback(jnp.array([[5.0], [7.0]]))[0], [[0], [7], [5]])
    u, pullback = jax.vjp(functools.partial(unpool, duplicates="sum"), y)
    np.testing.assert_array_equal(u, [[3], [3]])
    np.testing.assert_array_equal(pullback(jnp.array([[5.0], [7.0]]))[0], [[7], [7], [5]])


@pytest.mark.parametrize("implementation", [None, "xla"])
def test_winners_among_many_windows(rng, implementation):
    """Up to fifteen in one element, and more of them than a small integer counts."""
    options = {"implementation": implementation}
    x = jnp.asarray(rng.permutation(600).reshape(100, 6, 1), jnp.float32)

    def run(x, du):
        y, indices = jup.max_pool_with_indices(x, (5, 3), 1, 1, **options)
        return indices.flat, jax.vjp(lambda y: jup.max_unpool(y, indices, **options), y)[1](du)[0]

    du = np.arange(1, x.size + 1, dtype=np.float32).reshape(x.shape)
    flat, dy = jax.jit(run)(x, du)
    flat = np.ravel(flat)
    last = {element: writer for writer, element in enumerate(flat)}
    wins = [last[element] == writer for writer, element in enumerate(flat)]
    np.testing.assert_array_equal(np.ravel(dy), np.where(wins, du.ravel()[flat], 0))


def residuals(f, *args):
    """Arrays that a reverse pass keeps from the forward pass."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.vjp(f, *args)[1])]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_only_offsets_are_kept(dtype):
    x = jnp.ones((4, 8, 8, 2), dtype)
    y, indices = jup.max_pool_with_indices(x, (3, 3), 2, 1)
    for f, arg in (
        (lambda x: jup.max_pool(x, (3, 3), 2, 1), x),
        (lambda x: jup.max_pool_with_indices(x, (3, 3), 2, 1)[0], x),
        (lambda y: jup.max_unpool(y, indices), y),
        (lambda y: jup.max_unpool(y, indices, duplicates="sum"), y),
    ):
        (kept,) = residuals(f, arg)
        assert kept.dtype == np.uint8
        assert kept.shape == y.shape


@pytest.mark.few(1)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_16_bit_sums_are_rounded_once(dtype):
    # Nine windows meet in one element: in 16 bits 2048 + 1 + 1 ... would stay 2048 (bfloat16: 256).
    big = 2048 if dtype == jnp.float16 else 256
    x = jnp.zeros((5, 5, 1), dtype).at[2, 2, 0].set(1)
    dy = jnp.ones((3, 3, 1), dtype).at[0, 0, 0].set(big)
    dx = jax.vjp(lambda x: jup.max_pool(x, (3, 3), 1), x)[1](dy)[0]
    assert dx[2, 2, 0] == big + 8
    flat = jnp.full((3, 3, 1), 12)
    u = jup.max_unpool(dy, flat, output_shape=(5, 5), duplicates="sum")
    assert u[2, 2, 0] == big + 8


@jax.custom_vjp
def stopped(y):
    """The same, with a gradient of zero that is no array."""
    return y


stopped.defvjp(lambda y: (y, None), lambda _, dy: (None,))


def test_a_zero_that_is_no_array_goes_through_every_transpose():
    x = jnp.ones((4, 4, 1))
    _, indices = jup.max_pool_with_indices(x, (2, 2))
    functions = (
        lambda x: jup.max_pool(x, (2, 2)),
        lambda x: jup.max_unpool(x[:2, :2], indices),
        lambda x: jup.pool_at(x, indices),
        lambda x: jup.avg_pool(x, (2, 2)),
        lambda x: jup.nearest_unpool(x, (2, 2)),
        lambda x: jup.fixed_unpool(x, x[:2, :2, 0]),
    )
    gradients = jax.jit(lambda x: [jax.grad(lambda x: stopped(f(x)).sum())(x) for f in functions])
    np.testing.assert_array_equal(gradients(x), jnp.zeros((len(functions), *x.shape)))
