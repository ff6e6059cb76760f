"""Every public function under every transformation of JAX.

The table below has to name all of them: a function that is added and not entered fails the test.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental import checkify

import jaxunpool as jup

WINDOW = {"window_shape": (3, 3), "strides": 2, "padding": 1}
SIZE = {"output_shape": (7, 8)}
GEOMETRY = jup.WindowGeometry.for_input((7, 8, 2), **WINDOW)
FIRST = dataclasses.replace(GEOMETRY, data_format="channels_first")
KEY = jax.random.key(0)


@dataclasses.dataclass
class Entry:
    """A function of one unbatched float array, `x` of shape (7, 8, 2) or `y` of (4, 4, 2)."""

    run: Callable[[jax.Array], Any]
    of: str = "x"
    differentiable: bool = True


def indices_of(x: jax.Array) -> jup.PoolIndices:
    return jup.max_pool_with_indices(x, **WINDOW)[1]


def validated(x: jax.Array) -> jax.Array:
    flat = indices_of(x).flat
    error, _ = checkify.checkify(lambda i: jup.validate_indices(i, **SIZE))(flat)
    return flat + (error.get_exception() is not None if not _is_traced(flat) else 0)


def _is_traced(x: jax.Array) -> bool:
    return isinstance(x, jax.core.Tracer)


def round_trip(into: Callable, out_of: Callable, geometry: Any) -> Entry:
    """Indices to another framework's and back."""

    def run(x):
        theirs = into(indices_of(x))
        return theirs, dataclasses.replace(out_of(theirs, geometry), geometry=GEOMETRY).offsets

    return Entry(run, differentiable=False)


interop = jup.interop
TABLE = {
    "adaptive_avg_pool": Entry(lambda x: jup.adaptive_avg_pool(x, (3, 4))),
    "adaptive_max_pool": Entry(lambda x: jup.adaptive_max_pool(x, (3, 4))),
    "adaptive_max_pool_with_indices": Entry(
        lambda x: jup.adaptive_max_pool_with_indices(x, (3, 4))
    ),
    "avg_pool": Entry(lambda x: jup.avg_pool(x, **WINDOW)),
    "avg_unpool": Entry(lambda y: jup.avg_unpool(y, **WINDOW, **SIZE), "y"),
    "bed_of_nails_unpool": Entry(
        lambda y: jup.bed_of_nails_unpool(y, **WINDOW, **SIZE, position=1), "y"
    ),
    "conv_transpose": Entry(
        lambda y: jup.conv_transpose(y, jnp.ones((3, 3, 2, 4), y.dtype), strides=2), "y"
    ),
    "fixed_unpool": Entry(
        lambda y: jup.fixed_unpool(y, jnp.arange(6.0, dtype=y.dtype).reshape(2, 3)), "y"
    ),
    "fractional_max_pool": Entry(lambda x: jup.fractional_max_pool(x, None, (4, 5), key=KEY)),
    "fractional_max_pool_with_indices": Entry(
        lambda x: jup.fractional_max_pool_with_indices(x, (2, 2), (4, 5), key=KEY)
    ),
    "global_avg_pool": Entry(lambda x: jup.global_avg_pool(x, spatial_ndim=2)),
    "global_max_pool": Entry(lambda x: jup.global_max_pool(x, spatial_ndim=2)),
    "global_max_pool_with_indices": Entry(
        lambda x: jup.global_max_pool_with_indices(x, spatial_ndim=2)
    ),
    "interop.from_onnx": round_trip(interop.to_onnx, interop.from_onnx, FIRST),
    "interop.from_tensorflow": round_trip(interop.to_tensorflow, interop.from_tensorflow, GEOMETRY),
    "interop.from_torch": round_trip(interop.to_torch, interop.from_torch, GEOMETRY),
    "interop.to_onnx": Entry(lambda x: interop.to_onnx(indices_of(x)), differentiable=False),
    "interop.to_tensorflow": Entry(
        lambda x: interop.to_tensorflow(indices_of(x)), differentiable=False
    ),
    "interop.to_torch": Entry(lambda x: interop.to_torch(indices_of(x)), differentiable=False),
    "interpolate": Entry(lambda x: jup.interpolate(x, (5, 11), mode="cubic")),
    "inverse": Entry(lambda x: jup.inverse(lambda x: jup.max_pool(x**2, **WINDOW), x)(x[:4, :4])),
    "lp_pool": Entry(lambda x: jup.lp_pool(x, 2, **WINDOW)),
    "max_pool": Entry(lambda x: jup.max_pool(x, **WINDOW)),
    "max_pool_with_argmax_and_mask": Entry(
        lambda x: jup.max_pool_with_argmax_and_mask(x, **WINDOW)
    ),
    "max_pool_with_indices": Entry(lambda x: jup.max_pool_with_indices(x, **WINDOW)),
    "max_unpool": Entry(lambda x: jup.max_unpool(x[:4, :4] ** 2, indices_of(x))),
    "max_unpool_like": Entry(lambda x: jup.max_unpool_like(x, x[:4, :4], **WINDOW)),
    "min_pool": Entry(lambda x: jup.min_pool(x, **WINDOW)),
    "min_pool_with_indices": Entry(lambda x: jup.min_pool_with_indices(x, **WINDOW)),
    "nearest_unpool": Entry(lambda y: jup.nearest_unpool(y, **WINDOW, **SIZE), "y"),
    "validate_indices": Entry(validated, differentiable=False),
}


def public_functions():
    found = [name for name in jup.__all__ if callable(getattr(jup, name))]
    found.remove("explain")  # of functions, not of arrays
    found += [f"interop.{name}" for name in jup.interop.__all__]
    return sorted(name for name in found if not isinstance(getattr(jup, name, None), type))


def test_the_table_is_complete():
    assert sorted(TABLE) == public_functions()


@pytest.fixture(params=TABLE)
def entry(request):
    return TABLE[request.param]


@pytest.fixture(params=[name for name, entry in TABLE.items() if entry.differentiable])
def differentiable(request):
    return TABLE[request.param]


def batch_for(entry):
    shape = (3, 7, 8, 2) if entry.of == "x" else (3, 4, 4, 2)
    return jax.random.normal(jax.random.key(1), shape, jnp.float32)


def loss_of(entry):
    """A scalar that depends on all floats of the result, not linearly."""

    def loss(x):
        leaves = jax.tree.leaves(entry.run(x))
        return sum((leaf**3).sum() for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating))

    return loss


def same(a, b):
    def compare(a, b):
        np.testing.assert_array_equal(a, b, strict=True)

    jax.tree.map(compare, a, b)


def close(a, b):
    """The same but for additions in another order."""
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-5), a, b)


def test_jit(entry):
    x = batch_for(entry)[0]
    close(jax.jit(entry.run)(x), entry.run(x))


def test_vmap(entry):
    xs = batch_for(entry)
    each = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(entry.run, xs))
    close(jax.vmap(entry.run)(xs), each)
    close(jax.vmap(jax.vmap(entry.run))(xs[None]), jax.tree.map(lambda a: a[None], each))


def test_scan(entry):
    xs = batch_for(entry)
    _, scanned = jax.lax.scan(lambda carry, x: (carry, entry.run(x)), 0, xs)
    close(scanned, jax.vmap(entry.run)(xs))


def test_export(entry):
    x = batch_for(entry)[0]
    run = jax.jit(lambda x: jax.tree.leaves(entry.run(x)))
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    exported = export.export(run, platforms=["cpu", "cuda", "tpu"])(shape)
    order = 1 if entry.differentiable else 0
    restored = export.deserialize(exported.serialize(vjp_order=order))
    close(restored.call(x), run(x))
    if entry.differentiable:
        total = lambda f: (
            lambda x: sum(leaf.sum() for leaf in f(x) if jnp.issubdtype(leaf.dtype, jnp.floating))
        )
        close(jax.grad(total(restored.call))(x), jax.grad(total(run))(x))


def test_gradients(differentiable):
    xs, loss = batch_for(differentiable), loss_of(differentiable)
    gradient = jax.grad(loss)(xs[0])
    assert np.abs(gradient).max() > 0
    close(jax.jit(jax.grad(loss))(xs[0]), gradient)
    close(jax.grad(jax.checkpoint(loss))(xs[0]), gradient)
    close(jax.vmap(jax.grad(loss))(xs)[0], gradient)


def test_gradients_of_gradients(differentiable):
    x, loss = batch_for(differentiable)[0].astype(jnp.float64), loss_of(differentiable)
    v = jax.random.normal(jax.random.key(2), x.shape, jnp.float64)
    slope = lambda x: jnp.vdot(jax.grad(loss)(x), v)
    second = jax.grad(slope)(x)
    step = 1e-5
    finite = (jax.grad(loss)(x + step * v) - jax.grad(loss)(x - step * v)) / (2 * step)
    np.testing.assert_allclose(second, finite, rtol=1e-5, atol=1e-5 * np.abs(finite).max())
    third = jax.grad(lambda x: jnp.vdot(jax.grad(slope)(x), v))(x)
    assert np.isfinite(third).all()
