"""Every transformation of JAX, and that none changes a bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from strategies import only

import jaxunpool as jup

pytestmark = pytest.mark.usefixtures("compiled_as_users_do")

POOL = {"window_shape": (3, 3), "strides": 2, "padding": 1}


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.standard_normal((3, 7, 8, 2), np.float32))


def round_trip(x, duplicates="last"):
    y, indices = jup.max_pool_with_indices(x, **POOL)
    return jup.max_unpool(y, indices, duplicates=duplicates), indices


def same(a, b):
    jax.tree.map(functools.partial(np.testing.assert_array_equal, strict=True), a, b)


def test_jit_changes_nothing(x):
    same(jax.jit(round_trip)(x), round_trip(x))
    with jax.disable_jit():
        same(round_trip(x), jax.jit(round_trip)(x))


def test_vmap_and_nested_vmap(x):
    same(jax.vmap(round_trip)(x), round_trip(x))
    same(jax.vmap(jax.vmap(round_trip))(x[None]), round_trip(x[None]))
    u, _ = jax.vmap(round_trip, in_axes=1, out_axes=1)(jnp.moveaxis(x, 0, 1))
    same(jnp.moveaxis(u, 1, 0), round_trip(x)[0])


@pytest.mark.parametrize("raw", [False, True])
def test_vmap_over_every_argument(x, raw):
    y, indices = jup.max_pool_with_indices(x, **POOL)
    if raw:
        indices = indices.flat
        unpool = functools.partial(jup.max_unpool, output_shape=x.shape[1:3])
    else:
        unpool = jup.max_unpool
    same(jax.vmap(unpool)(y, indices), unpool(y, indices))
    one = jax.tree.map(lambda a: a[1], indices)
    each = jnp.stack([unpool(v, one) for v in y])
    same(jax.vmap(unpool, in_axes=(0, None))(y, one), each)
    each = jnp.stack([unpool(y[1], jax.tree.map(lambda a, i=i: a[i], indices)) for i in range(3)])
    same(jax.vmap(unpool, in_axes=(None, 0))(y[1], indices), each)


def test_vmap_over_patterns(rng):
    """Each example with each pattern; small integers, so that no sum is rounded."""
    draw = lambda *shape: rng.integers(-3, 4, shape).astype(np.float32)
    y, patterns = draw(2, 4, 1), draw(3, 2)

    def run(y, pattern):
        u, pullback = jax.vjp(jup.fixed_unpool, y, pattern)
        return u, *pullback(u)

    each = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(y, patterns)
    for n, k in np.ndindex(2, 3):
        one, pattern = y[n], patterns[k]
        expected = (
            np.kron(one, pattern[:, None]),
            one * (pattern**2).sum(),
            pattern * (one**2).sum(),
        )
        same(tuple(a[n, k] for a in each), expected)


@pytest.mark.thorough
@pytest.mark.parametrize("implementation", only(None, among=[None, "xla"]))
def test_vmap_of_gradients(x, implementation):
    def loss(x):
        y, indices = jup.max_pool_with_indices(x, **POOL, implementation=implementation)
        return (jup.max_unpool(y, indices, implementation=implementation) ** 3).sum()

    each = jnp.stack([jax.grad(loss)(image) for image in x])
    same(jax.vmap(jax.grad(loss))(x), each)
    jacobian = jax.jacrev(lambda x: jup.max_pool(x, (2, 2), implementation=implementation))
    same(jax.vmap(jacobian)(x), jnp.stack([jacobian(image) for image in x]))


def test_scan_over_and_with_indices(x):
    def step(carry, image):
        y, indices = jup.max_pool_with_indices(image, **POOL)
        return indices, (carry.flat, jup.max_unpool(y, carry))

    _, start = jup.max_pool_with_indices(x[0], **POOL)
    last, (flat, _) = jax.lax.scan(step, start, x)
    assert last.geometry == start.geometry
    same(last, jup.max_pool_with_indices(x[2], **POOL)[1])
    _, indices = jup.max_pool_with_indices(x, **POOL)
    same(flat[1:], indices.flat[:2])
    total, _ = jax.lax.scan(lambda c, i: (c + i.flat.sum(), None), jnp.int64(0), indices)
    assert total == indices.flat.sum()


def test_checkpoint(x):
    loss = lambda x: (round_trip(x)[0] ** 2).sum()
    same(jax.grad(jax.checkpoint(loss))(x), jax.grad(loss)(x))
    same(jax.jit(jax.grad(jax.checkpoint(loss)))(x), jax.grad(loss)(x))


def test_loops_and_branches(x):
    y, indices = jup.max_pool_with_indices(x, **POOL)
    body = lambda _, state: (jup.max_pool(jup.max_unpool(*state), **POOL), state[1])
    looped, _ = jax.lax.fori_loop(0, 3, body, (y, indices))
    assert looped.shape == y.shape
    branch = jax.lax.cond(True, lambda: indices, lambda: indices)
    same(branch, indices)


@pytest.mark.thorough
def test_export_round_trip(x):
    exported = export.export(jax.jit(lambda x: round_trip(x)[0]), platforms=["cpu", "cuda", "tpu"])(
        jax.ShapeDtypeStruct(x.shape, x.dtype)
    )
    restored = export.deserialize(exported.serialize(vjp_order=1))
    same(restored.call(x), round_trip(x)[0])
    loss = lambda f: jax.grad(lambda x: (f(x) ** 2).sum())(x)
    same(loss(restored.call), loss(lambda x: round_trip(x)[0]))


def test_export_of_an_open_batch(x):
    """A size that is not known: no kernel is asked for, and indices can still be looked at."""
    seen = []

    def run(x):
        y, indices = jup.max_pool_with_indices(x, (2, 2))
        seen.append(repr(indices))
        return jup.max_unpool(y, indices)

    shape = jax.ShapeDtypeStruct(export.symbolic_shape("batch, 8, 8, 32"), jnp.float32)
    restored = export.export(jax.jit(run), platforms=["cpu", "cuda", "tpu"])(shape)
    assert "512*batch bytes" in seen[0]
    images = jnp.arange(3 * 8 * 8 * 32, dtype=jnp.float32).reshape(3, 8, 8, 32)
    same(restored.call(images), run(images))


def test_lowering_ahead_of_time(x):
    compiled = jax.jit(round_trip).lower(jax.ShapeDtypeStruct(x.shape, x.dtype)).compile()
    same(compiled(x), round_trip(x))


def test_no_leaks(x):
    with jax.checking_leaks():
        jax.jit(jax.grad(lambda x: (round_trip(x, "sum")[0] ** 2).sum()))(x)
        jax.vmap(round_trip)(x)


def test_devices(x):
    _, indices = jup.max_pool_with_indices(x, **POOL)
    moved = jax.device_put(indices, jax.devices()[0])
    assert moved.geometry == indices.geometry
    same(moved, indices)


def test_batch_sharding_over_the_axes_of_a_mesh(x):
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("batch"))
    same(jax.jit(round_trip)(jax.device_put(x, sharding)), round_trip(x))
    mapped = jax.shard_map(
        lambda x: round_trip(x)[0], mesh=mesh, in_specs=jax.P("batch"), out_specs=jax.P("batch")
    )
    same(mapped(x), round_trip(x)[0])


def test_checkify_checks_indices_inside_jit(x):
    from jax.experimental import checkify

    y, indices = jup.max_pool_with_indices(x, **POOL)

    @jax.jit
    @checkify.checkify
    def unpool(y, flat):
        jup.validate_indices(flat, output_shape=x.shape[1:3])
        return jup.max_unpool(y, flat, output_shape=x.shape[1:3])

    error, u = unpool(y, indices.flat)
    assert error.get() is None
    same(u, jup.max_unpool(y, indices))
    error, _ = unpool(y, indices.flat + 30)
    assert "expected a flat position in 0..55" in error.get()
