"""What is linear has derivatives that do not depend on the data, and a transpose."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from namespace import public_functions
from strategies import only

import jaxunpool as jup

WINDOW = {"window_shape": (3, 3), "strides": 2, "padding": 1}
X, Y = (2, 7, 8, 3), (2, 4, 4, 3)
PATTERN = np.arange(6.0).reshape(2, 3) - 2
KERNEL = np.arange(54, dtype=np.float32).reshape(3, 3, 3, 2) - 20


@functools.cache
def indices():
    x = np.random.default_rng(0).standard_normal(X)
    with jax.ensure_compile_time_eval():
        return jup.max_pool_with_indices(x, **WINDOW)[1]


def flat_unpool(y, **options):
    return jup.max_unpool(y, indices().flat, output_shape=X[1:3], **options)


def like(y, **options):
    x = jax.random.normal(jax.random.key(0), X)
    return jup.max_unpool_like(x, y, **WINDOW, **options)


def inverse(y, **options):
    return jup.inverse(functools.partial(jup.avg_pool, **WINDOW, **options), jnp.zeros(X, y.dtype))(
        y
    )


def operators():
    """Every linear operator and mode: its argument's shape, and what takes an implementation."""
    partial = functools.partial
    table = {
        "max_unpool, last": (Y, lambda y, **o: jup.max_unpool(y, indices(), **o)),
        "max_unpool, sum": (
            Y,
            lambda y, **o: jup.max_unpool(y, indices(), duplicates="sum", **o),
        ),
        "max_unpool, flat, last": (Y, flat_unpool),
        "max_unpool, flat, sum": (Y, partial(flat_unpool, duplicates="sum")),
        "max_unpool_like": (Y, like),
        "pool_at": (X, lambda x, **o: jup.pool_at(x, indices(), **o)),
        "pool_at, flat": (X, lambda x, **o: jup.pool_at(x, indices().flat, **o)),
        "avg_pool": (X, partial(jup.avg_pool, **WINDOW)),
        "avg_pool, dilated": (X, partial(jup.avg_pool, window_shape=2, strides=1, dilation=3)),
        "avg_pool, without padding": (
            X,
            partial(jup.avg_pool, **WINDOW, count_include_pad=False),
        ),
        "avg_pool, divided": (X, partial(jup.avg_pool, **WINDOW, divisor_override=7)),
        "fractional_avg_pool": (
            X,
            partial(
                jup.fractional_avg_pool,
                output_shape=(4, 5),
                key=jax.random.key(0),
                overlapping=True,
            ),
        ),
        "avg_pool, large": (X, partial(jup.avg_pool, window_shape=(6, 6), strides=1)),
        "global_avg_pool": (X, lambda x, implementation: jup.global_avg_pool(x)),
        "avg_unpool, mean": (Y, partial(jup.avg_unpool, **WINDOW)),
        "avg_unpool, adjoint": (Y, partial(jup.avg_unpool, **WINDOW, mode="adjoint")),
        "nearest_unpool, last": (Y, partial(jup.nearest_unpool, **WINDOW)),
        "nearest_unpool, mean": (Y, partial(jup.nearest_unpool, **WINDOW, duplicates="mean")),
        "fixed_unpool": (Y, partial(jup.fixed_unpool, pattern=PATTERN)),
        "fixed_unpool, overlapping": (Y, partial(jup.fixed_unpool, pattern=PATTERN, strides=1)),
        "bed_of_nails_unpool": (Y, partial(jup.bed_of_nails_unpool, **WINDOW, position=1)),
        "adaptive_avg_pool": (X, partial(jup.adaptive_avg_pool, output_shape=(3, 5))),
        "conv_general_dilated": (
            X,
            lambda x, implementation: jup.conv_general_dilated(
                x, KERNEL, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ),
        ),
        "conv_transpose": (
            X,
            lambda x, implementation: jup.conv_transpose(x, KERNEL, strides=2),
        ),
        "inverse": (Y, inverse),
    }
    modes = {"nearest": {}, "nearest-exact": {}, "linear": {}, "cubic": {}, "area": {}}
    modes |= {"linear, aligned": {"align_corners": True}, "cubic, smooth": {"antialias": True}}
    for name, options in modes.items():
        run = partial(jup.interpolate, output_shape=(9, 5), mode=name.split(",")[0], **options)
        table[f"interpolate, {name}"] = (X, run)
    return table


OPERATORS = operators()
# Per primitive, and along one axis.
ONE_OF_EACH = ["max_unpool, last", "max_unpool, flat, sum", "avg_pool", "nearest_unpool, mean"]
ONE_OF_EACH += ["fixed_unpool, overlapping", "interpolate, linear", "adaptive_avg_pool"]
NOT_LINEAR = {
    "adaptive_max_pool", "adaptive_max_pool_with_indices", "fractional_max_pool",
    "fractional_max_pool_with_indices", "global_max_pool", "global_max_pool_with_indices",
    "lp_pool", "max_pool", "max_pool_with_argmax_and_mask", "max_pool_with_indices",
    "max_pool_with_packed_indices", "min_pool",
    "min_pool_with_indices", "validate_indices", "backends", "explain",
}  # fmt: skip


def test_all_are_here():
    linear = {name.split(",")[0] for name in OPERATORS} | NOT_LINEAR
    assert {name for name in public_functions() if not name.startswith("interop")} <= linear


@pytest.mark.few(7)
@pytest.mark.parametrize("implementation", [None, "xla"])
@pytest.mark.parametrize("name", only(*ONE_OF_EACH, among=OPERATORS))
def test_derivatives_do_not_depend_on_the_data(name, implementation, rng):
    shape, function = OPERATORS[name]
    run = functools.partial(function, implementation=implementation)
    wild = rng.choice([np.nan, np.inf, -np.inf, 3e38, 0, 1], shape).astype(np.float32)
    dx = rng.standard_normal(shape).astype(np.float32)
    dy = rng.standard_normal(jax.eval_shape(run, dx).shape).astype(np.float32)

    @jax.jit
    def program(x, dx, dy):
        (pulled,) = jax.vjp(run, x)[1](dy)
        (transposed,) = jax.linear_transpose(run, x)(dy)
        return pulled, transposed, jax.jvp(run, (x,), (dx,))[1], run(dx)

    want, found = program(np.zeros_like(dx), dx, dy), program(wild, dx, dy)
    jax.tree.map(np.testing.assert_array_equal, found, want)
    pulled, transposed, pushed, value = want
    np.testing.assert_allclose(transposed, pulled, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(pushed, value)
    np.testing.assert_allclose(np.vdot(pulled, dx), np.vdot(dy, pushed), rtol=1e-3)


@pytest.mark.parametrize("implementation", [None, "xla"])
def test_derivatives_for_a_pattern_do_not_depend_on_it(implementation, rng):
    y = jnp.asarray([[1.0], [2.0], [3.0]])
    run = functools.partial(jup.fixed_unpool, y, strides=1, implementation=implementation)
    dp = jnp.asarray(rng.standard_normal(2))
    dy = jnp.asarray(rng.standard_normal((4, 1)))
    found = [
        (jax.vjp(run, pattern)[1](dy), jax.jvp(run, (pattern,), (dp,))[1])
        for pattern in (jnp.zeros(2), jnp.array([jnp.nan, jnp.inf]))
    ]
    jax.tree.map(np.testing.assert_array_equal, *found)
    np.testing.assert_allclose(found[0][0][0], [jnp.vdot(y, dy[:3]), jnp.vdot(y, dy[1:])])
    np.testing.assert_array_equal(jax.linear_transpose(run, dp)(dy)[0], found[0][0][0])


def test_a_constant_pattern_keeps_no_other_residual():
    pull = jax.vjp(lambda y: jup.fixed_unpool(y, PATTERN), jnp.ones(Y))[1]
    assert [leaf.shape for leaf in jax.tree.leaves(pull)] == [PATTERN.shape]


@pytest.mark.parametrize("implementation", [None, "xla"])
def test_nan_in_a_window(implementation):
    x = jnp.array([1, jnp.nan, 3, 4, 5, 6])[:, None]
    pool = functools.partial(jup.avg_pool, window_shape=(3,), implementation=implementation)
    third = jnp.full((6, 1), 1 / 3)
    np.testing.assert_array_equal(jax.vjp(pool, x)[1](jnp.ones((2, 1)))[0], third)
    np.testing.assert_array_equal(jax.jvp(pool, (x,), (jnp.ones_like(x),))[1], [[1], [1]])
