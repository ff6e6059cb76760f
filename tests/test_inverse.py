"""inverse: the transposed Jacobian of a function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxunpool as jup


def test_is_the_transposed_jacobian(rng):
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
def test_of_max_pooling_is_max_unpooling(rng, options):
    x = rng.standard_normal((2, 7, 8, 3))
    y, indices = jup.max_pool_with_indices(x, **options)
    expected = jup.max_unpool(y, indices, duplicates="sum")
    np.testing.assert_array_equal(jup.inverse(lambda x: jup.max_pool(x, **options), x)(y), expected)
    with_indices = functools.partial(jup.max_pool_with_indices, **options)
    np.testing.assert_array_equal(jup.inverse(with_indices, x)((y, indices)), expected)


def test_pytrees_and_a_whole_encoder(rng):
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


def test_what_does_not_fit_is_named(rng):
    x = rng.standard_normal((4, 4, 1))
    unpool = jup.inverse(lambda x: {"y": jup.max_pool(x, (2, 2))}, x)
    with pytest.raises(ValueError, match=r"y\['y'\]: expected float64\[2, 2, 1\].*float64\[4"):
        unpool({"y": x})
    with pytest.raises(ValueError, match=r"y\['y'\]: .*got float32\[2, 2, 1\]"):
        unpool({"y": np.zeros((2, 2, 1), np.float32)})
    with pytest.raises(ValueError, match="y: expected the structure of fn"):
        unpool([x])


@pytest.mark.parametrize(
    "leaf",
    [
        *map(np.asarray, ("text", b"bytes", {"object"})),
        np.zeros(2, [("field", np.float32)]),
        np.void(b"four"),
        np.datetime64("2000-01-01"),
        np.longdouble(1),
        10**400,
        "text",
    ],
    ids=repr,
)
def test_leaves_that_are_no_arrays_of_jax(leaf):
    name = type(leaf).__name__
    with pytest.raises(TypeError, match=rf"^x\['a'\]: expected floats, got {name}$"):
        jup.inverse(lambda x: x, {"a": leaf})
    with pytest.raises(ValueError, match=rf"^y\['a'\]: expected float32\[2\].*, got {name}$"):
        jup.inverse(lambda x: x, {"a": np.ones(2, np.float32)})({"a": leaf})


def test_shardings_need_not_agree():
    """What is inverted is resharded as the result of the function, on Explicit axes too."""
    mesh = jax.make_mesh((2,), ("a",), axis_types=(AxisType.Explicit,))
    x, y = np.arange(12.0).reshape(2, 6, 1), np.arange(6.0).reshape(2, 3, 1)
    run = jax.jit(lambda x, y: jup.inverse(lambda x: jup.max_pool(x, (2,)), x)(y))
    for spec, other in ((P(), P("a")), (P(None, "a"), P("a"))):
        placed = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in ((x, spec), (y, other))]
        np.testing.assert_array_equal(run(*placed), run(x, y))
