"""Every public function under every transformation of JAX.

The table in namespace.py has to name all of them: one that is added and not entered fails the test.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from namespace import (
    TABLE,
    batch_for,
    floats,
    public_functions,
    strict,
    with_gradient,
)
from strategies import only

DIFFERENTIABLE = [name for name, entry in TABLE.items() if entry.differentiable]

# One for each way to a derivative: per primitive, without windows, along one axis, nonlinear.
ONE_OF_EACH = {"max_pool", "max_unpool", "avg_pool", "fixed_unpool"}
ONE_OF_EACH |= {"adaptive_max_pool", "interpolate", "lp_pool"}
OTHERS = {"conv_transpose", "fractional_max_pool_with_indices", "interop.to_onnx", "inverse"}
OTHERS |= {"max_pool_with_packed_indices", "pool_at", "validate_indices"}


def test_the_table_is_complete():
    assert sorted(TABLE) == public_functions()


def close(a, b):
    """The same but for additions in another order."""
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-5), a, b)


@functools.cache
def compiled(name):
    """Results and gradient as one program, that the tests below compare with."""
    return jax.jit(with_gradient(TABLE[name]))


@pytest.fixture(params=only(*ONE_OF_EACH, *OTHERS, among=TABLE))
def name(request):
    return request.param


@pytest.mark.few(7)
def test_eager(name):
    """Without `jit` nothing comes from the host, nothing is promoted, and there is no NaN."""
    x = batch_for(TABLE[name])[0]
    with strict(transfer_guard="disallow", debug_nans=True, enable_checks=True):
        found = with_gradient(TABLE[name])(x)
    close(compiled(name)(x), found)
    if TABLE[name].differentiable:
        assert np.abs(found[1][0]).max() > 0


def test_vmap_scan_and_checkpoint(name):
    """A scan over batches of batches, each computed again for its gradient."""
    entry = TABLE[name]
    xs = batch_for(entry, 4)
    run = with_gradient(dataclasses.replace(entry, run=jax.checkpoint(entry.run)))

    @jax.jit
    def program(xs):
        return jax.lax.scan(lambda carry, x: (carry, jax.vmap(jax.vmap(run))(x)), 0, xs)[1]

    found = program(xs.reshape(2, 1, 2, *xs.shape[1:]))
    each = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(compiled(name), xs))
    close(jax.tree.map(lambda a: a.reshape(-1, *a.shape[3:]), found), each)


@pytest.mark.few(4)
@pytest.mark.parametrize("name", only(*ONE_OF_EACH, "min_pool_with_indices", among=TABLE))
def test_export(name):
    """A program of results and gradients for every platform, and what it becomes here."""
    x = batch_for(TABLE[name])[0]
    run = jax.jit(lambda x: jax.tree.leaves(with_gradient(TABLE[name])(x)))
    exported = export.export(run, platforms=["cpu", "cuda", "tpu"])(
        jax.ShapeDtypeStruct(x.shape, x.dtype)
    )
    restored = export.deserialize(exported.serialize())
    close(restored.call(x), jax.tree.leaves(compiled(name)(x)))


@pytest.mark.thorough
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_export_with_gradients(name):
    x = batch_for(TABLE[name])[0]
    run = jax.jit(lambda x: floats(TABLE[name].run(x)))
    exported = export.export(run, platforms=["cpu", "cuda", "tpu"])(
        jax.ShapeDtypeStruct(x.shape, x.dtype)
    )
    restored = export.deserialize(exported.serialize(vjp_order=1))
    total = lambda f: lambda x: sum(leaf.sum() for leaf in f(x))
    close(jax.grad(total(restored.call))(x), jax.grad(total(run))(x))


def slopes(name):
    """A float64 argument, a direction, and the gradient of a loss along it, as programs."""
    entry = TABLE[name]
    shape = entry.shape()
    x, v = (jax.random.normal(jax.random.key(i), shape, jnp.float64) for i in (1, 2))
    gradient = jax.grad(entry.loss)
    return x, v, gradient, lambda x: jnp.vdot(gradient(x), v)


@pytest.mark.parametrize("name", only(*ONE_OF_EACH, among=DIFFERENTIABLE))
def test_gradients_of_gradients(name):
    x, v, gradient, slope = slopes(name)
    step = 1e-5

    @jax.jit
    def program(x):
        shifted = jax.lax.map(gradient, jnp.stack([x + step * v, x - step * v]))
        return jax.grad(slope)(x), (shifted[0] - shifted[1]) / (2 * step)

    second, finite = program(x)
    np.testing.assert_allclose(second, finite, rtol=1e-5, atol=1e-5 * np.abs(finite).max())


@pytest.mark.thorough
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_third_derivatives(name):
    x, v, _, slope = slopes(name)
    third = jax.jit(jax.grad(lambda x: jnp.vdot(jax.grad(slope)(x), v)))(x)
    assert np.isfinite(third).all()
