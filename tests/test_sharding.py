"""Sharded over eight devices: the same bits as on one, and nothing fetched that is not needed."""

import collections
import contextlib
import functools
import itertools
import os
import pathlib
import re
import subprocess
import sys

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from namespace import TABLE, batch_for
from strategies import only, poolings

import jaxunpool as jup
from jaxunpool.core import primitives
from jaxunpool.models import SegNetBasic

COLLECTIVE = re.compile(
    r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)
AXES = ("one", "two", "three")
MODES = [AxisType.Auto, AxisType.Explicit]
# Windows along one axis: nine times cheaper to compile than 3x3, and shards meet along an axis.
SHAPE = (8, 16, 8)
TILING = {"window_shape": (2,)}
OVERLAPPING = {"window_shape": (3,), "strides": 2, "padding": 1}
SHIFTED = {"window_shape": (3,), "strides": 3, "padding": 1}  # by a part of a stride
PLANES = {"window_shape": (3, 3), "strides": 2, "padding": 1}


def cheaply(function):
    """Jitted, and compiled in half the time: for what rounds nothing, or is compared with such."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def mesh_of(sizes, mode):
    return jax.make_mesh(sizes, AXES[: len(sizes)], axis_types=(mode,) * len(sizes))


def forward_and_backward(geometry, implementation=None, weights=("mean_inside", "sum")):
    """All primitives and their transposes, of `x`, `y`, `offsets`; `weights` with a pattern last.

    The gradients of `scatter` under `"last"` are made of `gather` and `scatter`.
    """
    pattern = jnp.linspace(-1, 2, geometry.volume, dtype=jnp.float32).reshape(geometry.window_shape)

    def every(x, y, offsets):
        pooled, winners = primitives.select(x, geometry, implementation)
        values = [pooled, primitives.scatter(y, offsets, geometry, "last", implementation)]
        values += [primitives.reduce(x, geometry, implementation, weights[0])]
        values += [primitives.replicate(y, geometry, implementation, w) for w in weights[1:-1]]
        values += [primitives.replicate(y, geometry, implementation, weights[-1], pattern)]
        return values, winners

    def run(x, y, offsets):
        values, pull, winners = jax.vjp(lambda x, y: every(x, y, offsets), x, y, has_aux=True)
        return values, pull([jnp.cos(value) for value in values]), winners

    return run


def arrays_for(geometry, shape, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.integers(-3, 4, shape).astype(np.float32) / 3  # ties, and sums that round
    pooled = geometry.pooled_shape(shape)
    y = rng.standard_normal(pooled).astype(np.float32)
    return x, y, rng.integers(0, geometry.volume + 1, pooled).astype(np.uint8)


def same(a, b):
    for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(p), np.asarray(q), strict=True)


def negative(shape):
    return -1 - np.random.default_rng(0).random(shape, np.float32)


@functools.cache
def on_one_device(geometry, shape, implementation=None, **options):
    run = jax.jit(forward_and_backward(geometry, implementation, **options))
    return run(*arrays_for(geometry, shape))


def collectives(compiled):
    return collections.Counter(COLLECTIVE.findall(compiled.as_text()))


def sharded(geometry, sharding, shape=SHAPE, implementation=None, **options):
    """Collectives in the compiled program; the results are checked."""
    arrays = [jax.device_put(array, sharding) for array in arrays_for(geometry, shape)]
    run = jax.jit(forward_and_backward(geometry, implementation, **options))
    compiled = run.lower(*arrays).compile()
    results = compiled(*arrays)
    values, gradients, winners = results
    expected = on_one_device(geometry, shape, implementation, **options)
    same((values, winners), (expected[0], expected[2]))
    if implementation is None:
        same(gradients, expected[1])
    else:  # JAX's own derivatives, products and sums contracted differently
        for a, b in zip(gradients, expected[1]):
            np.testing.assert_allclose(a, b, rtol=0, atol=16 * 2**-23 * np.abs(b).max())
    return collectives(compiled), results


@pytest.mark.few(4)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("options", "sizes", "spec", "implementation"),
    [
        (OVERLAPPING, (2, 4), P("one", None, "two"), None),
        (OVERLAPPING, (2, 4), P("one", None, "two"), "xla"),
        (TILING, (4, 2), P("one"), None),  # an axis of the mesh that is not used
    ],
)
def test_batch_and_channels_need_no_collective(mode, options, sizes, spec, implementation):
    geometry = jup.WindowGeometry.for_input(SHAPE, **options)
    sharding = NamedSharding(mesh_of(sizes, mode), spec)
    found, (values, _, winners) = sharded(geometry, sharding, implementation=implementation)
    assert not found
    for array in (*values, winners):
        assert array.sharding.is_equivalent_to(sharding, array.ndim)


@pytest.mark.few(3)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("options", "size", "allowed"),
    [
        (TILING, 16, set()),
        (OVERLAPPING, 16, {"collective-permute"}),
        (SHIFTED, 24, {"collective-permute"}),
    ],
    ids=["2", "3", "shifted"],
)
def test_neighbours_exchange_no_more_than_what_windows_share(mode, options, size, allowed):
    shape = (SHAPE[0], size, SHAPE[2])
    geometry = jup.WindowGeometry.for_input(shape, **options)
    sharding = NamedSharding(mesh_of((4,), mode), P(None, "one"))
    found, (values, _, winners) = sharded(geometry, sharding, shape)
    assert set(found) == allowed
    for array in (*values, winners):
        assert array.sharding.is_equivalent_to(sharding, array.ndim)


@pytest.mark.thorough
@pytest.mark.parametrize("mode", only(AxisType.Explicit, among=MODES))
@pytest.mark.parametrize(
    "dtype", only("complex64", among=["bool", "float8_e4m3fn", "float8_e5m2", "complex64"])
)
def test_rows_of_every_kind_of_type(mode, dtype):
    """Pooled, read and unpooled with halos that are exchanged, as those of floats are."""
    values = np.random.default_rng(0).integers(-3, 4, (2, *SHAPE))
    x = jnp.asarray(values[0] + 1j * values[1] if dtype == "complex64" else values[0]).astype(dtype)

    def run(x):
        ordered = jnp.abs(x) if jnp.iscomplexobj(x) else x
        _, indices = jup.max_pool_with_indices(ordered, **OVERLAPPING)
        y = jup.pool_at(x, indices)
        unpooled = [jup.max_unpool(y, indices, duplicates=d) for d in ("last", "sum")]
        return y, unpooled, jup.avg_pool(x, **OVERLAPPING)

    placed = jax.device_put(x, NamedSharding(mesh_of((8,), mode), P(None, "one")))
    compiled = cheaply(run).lower(placed).compile()
    same(compiled(placed), cheaply(run)(x))
    assert set(collectives(compiled)) == {"collective-permute"}
    with jax.enable_x64(False):  # complex64 is two floats of 32 bits
        same(cheaply(run)(placed), cheaply(run)(x))


@pytest.mark.thorough
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("options", "allowed"),
    [({"window_shape": (2, 2)}, set()), (PLANES, {"collective-permute"})],
    ids=["2x2", "3x3"],
)
def test_neighbours_in_a_plane_exchange_no_more_than_what_windows_share(mode, options, allowed):
    shape = (2, 16, 16, 2)
    geometry = jup.WindowGeometry.for_input(shape, **options)
    sharding = NamedSharding(mesh_of((2, 2, 2), mode), P("one", "two", "three"))
    weights = ("mean_inside", "cover", "last", "sum")
    found, (values, _, winners) = sharded(geometry, sharding, shape, weights=weights)
    assert set(found) == allowed
    for array in (*values, winners):
        assert array.sharding.is_equivalent_to(sharding, array.ndim)


@pytest.mark.parametrize("mode", MODES)
def test_batch_rows_and_columns(mode):
    x = negative(PLANE)
    sharding = NamedSharding(mesh_of((2, 2, 2), mode), P("one", "two", "three"))
    x = jax.device_put(x, sharding)
    compiled = cheaply(pool_and_unpool).lower(x).compile()
    assert set(collectives(compiled)) == {"collective-permute"}
    results = compiled(x)
    same(results, unpooled_on_one_device(x.shape))
    for array in results:
        assert array.sharding.is_equivalent_to(sharding, array.ndim)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_exchanged_is_a_few_rows(mode):
    """In bytes: the halo of a 3x3 window is two rows on either side of a shard, not the shard."""
    geometry = jup.WindowGeometry.for_input((1, 64, 16, 8), **PLANES)
    sharding = NamedSharding(mesh_of((4,), mode), P(None, "one"))
    x = jax.ShapeDtypeStruct((1, 64, 16, 8), jnp.float32, sharding=sharding)
    program = cheaply(lambda x: primitives.select(x, geometry, None)).lower(x).compile().as_text()
    moved = re.findall(r"= f32\[([\d,]+)\][^=]* collective-permute(?:-start)?\(", program)
    assert sorted(moved) == ["1,2,16,8", "1,2,16,8"]


INDIVISIBLE = {
    "global": (16, {"window_shape": (16,)}),  # one window for all shards
    "odd": (16, {"window_shape": (3,), "strides": 2}),  # 7 windows
    "gaps": (24, {"window_shape": (2,), "strides": 3}),
    "shifted": (16, {"window_shape": (2,), "padding": ((1, 1),)}),
    "indivisible": (6, {"window_shape": (2,)}),  # an odd number of windows
}


def of_all_indivisible(xs):
    """All primitives, of the pooled array and offsets that `select` gives."""
    found = {}
    for name, (_, options) in INDIVISIBLE.items():
        x = xs[name]
        g = jup.WindowGeometry.for_input(x.shape, **options)
        y, offsets = primitives.select(x, g, None)
        u = primitives.scatter(y, offsets, g, "last", None)
        found[name] = (y, offsets, u, primitives.gather(jnp.sin(x), offsets, g, None))
        mean = primitives.reduce(x, g, None, "mean_inside")
        found[name] += (mean, primitives.replicate(mean, g, None, "cover"))
    return found


@functools.cache
def of_all_indivisible_on_one_device():
    xs = {name: negative((2, size, 3)) for name, (size, _) in INDIVISIBLE.items()}
    return xs, cheaply(of_all_indivisible)(xs)


@pytest.mark.few(1)
@pytest.mark.parametrize("mode", MODES)
def test_windows_that_do_not_divide_the_shards(mode):
    xs, expected = of_all_indivisible_on_one_device()
    sharding = NamedSharding(mesh_of((2, 2), mode), P("two", "one"))
    run = cheaply(of_all_indivisible)
    found = run({name: jax.device_put(x, sharding) for name, x in xs.items()})
    for name, results in found.items():
        same((name, results), (name, expected[name]))


@pytest.mark.thorough
@hypothesis.settings(max_examples=30)
@hypothesis.given(
    pooling=poolings(),
    mode=st.sampled_from(MODES),
    scale=st.sampled_from([1, 2, 4]),
    names=st.permutations(["one", "two", None, None, None, None]),
)
def test_any_sharding_of_any_pooling(pooling, mode, scale, names):
    shape = tuple(size * scale for size in pooling.shape)
    try:
        geometry = jup.WindowGeometry.for_input(shape, **pooling.options)
    except ValueError:
        hypothesis.reject()
    mesh = mesh_of((2, 2), mode)
    spec = P(*(name if size % 2 == 0 else None for name, size in zip(names, shape)))
    x = arrays_for(geometry, shape)[0]

    def run(x):
        y, indices = jup.max_pool_with_indices(x, **pooling.options)
        u = jup.max_unpool(jup.avg_pool(x, **pooling.options), indices, duplicates="sum")
        return y, indices.offsets, u

    run = cheaply(run)
    same(run(jax.device_put(x, NamedSharding(mesh, spec))), run(x))


@pytest.mark.parametrize("mode", MODES)
def test_vmap_of_what_is_sharded(mode):
    geometry = jup.WindowGeometry.for_input(SHAPE[1:], **OVERLAPPING)
    arrays = arrays_for(geometry, SHAPE)
    run = jax.vmap(forward_and_backward(geometry))
    placed = [jax.device_put(a, NamedSharding(mesh_of((8,), mode), P("one"))) for a in arrays]
    compiled = jax.jit(run).lower(*placed).compile()
    assert not collectives(compiled)
    whole = jup.WindowGeometry.for_input(SHAPE, **OVERLAPPING)
    same(compiled(*placed), on_one_device(whole, SHAPE))


def pool_and_unpool(x):
    """Wrong if zeros for what is missing were taken for elements: `x` is negative."""
    y, indices = jup.max_pool_with_indices(x, 3, 2, 1)
    return y, indices.offsets, jup.max_unpool(y, indices)


@functools.cache
def unpooled_on_one_device(shape):
    return cheaply(pool_and_unpool)(negative(shape))


LINES, PLANE = (2, 16, 2), (2, 16, 16, 2)


@pytest.mark.few(3)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("sizes", "spec"),
    [
        ((1,), P(None, "one")),
        ((4, 1), P(None, "two", "one")),
        ((2, 2, 2), P(None, ("one", "two"))),
        ((2, 2, 2), P(None, ("two", "one"), "three")),  # not in the order of the mesh
    ],
)
def test_axes_of_the_mesh_in_any_order_and_of_size_one(mode, sizes, spec):
    shape = PLANE if len(spec) > 2 else LINES
    placed = jax.device_put(negative(shape), NamedSharding(mesh_of(sizes, mode), spec))
    same(cheaply(pool_and_unpool)(placed), unpooled_on_one_device(shape))


@pytest.mark.few(1)
@pytest.mark.parametrize("rest", MODES)
def test_rows_over_what_a_shard_map_leaves(rest):
    mesh = jax.make_mesh((2, 4), AXES[:2], axis_types=(AxisType.Auto, rest))
    placed = jax.device_put(negative(LINES), NamedSharding(mesh, P("one", "two")))
    run = jax.shard_map(
        pool_and_unpool, mesh=mesh, in_specs=P("one"), out_specs=P("one"), axis_names={"one"}
    )
    same(cheaply(run)(placed), unpooled_on_one_device(LINES))


@pytest.mark.parametrize("spec", [P("one"), P("one", "two"), P(None, "one", "two")])
def test_a_mesh_with_axes_of_both_kinds(spec):
    mesh = jax.make_mesh((2, 4), AXES[:2], axis_types=(AxisType.Explicit, AxisType.Auto))
    shape = PLANE if len(spec) > 2 else LINES
    with jax.set_mesh(mesh):
        placed = jax.device_put(negative(shape), NamedSharding(mesh, spec))
        sharded = cheaply(pool_and_unpool)(placed)
    same(sharded, unpooled_on_one_device(shape))


@pytest.mark.parametrize("mode", MODES)
def test_gradient_of_a_pattern_sums_over_the_shards(mode):
    mesh = mesh_of((8,), mode)
    y = np.random.default_rng(0).integers(-3, 4, (8, 4, 4, 3)).astype(np.float32)
    pattern = np.arange(4, dtype=np.float32).reshape(2, 2)
    gradient = jax.jit(jax.grad(lambda p, y: (jup.fixed_unpool(y, p) ** 2).sum()))
    placed = (
        jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in ((pattern, P()), (y, P("one")))
    )
    same(gradient(*placed), gradient(pattern, y))


def test_without_jit():
    x = negative((2, 4, 1))
    with jax.disable_jit():
        y = jax.vmap(lambda x: jup.max_pool(x, (2,)))(x)
    same(y, jup.max_pool(x, (2,)))


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_sharded_64_bit_numbers_in_a_context_work_or_say_what_to_do(dtype):
    """The compiler's thread sees the context from jax 0.12 on."""
    sharding = NamedSharding(mesh_of((2,), AxisType.Auto), P("one"))
    pool = jax.jit(lambda x: jup.avg_pool(x, (2,)))
    # Each of another NumPy array: jax 0.12 may give again, as 64 bits, the 32 bits it has placed.
    placed = lambda: jax.device_put(np.ones((2, 4, 1), dtype), sharding)
    jax.config.update("jax_enable_x64", False)
    with contextlib.ExitStack() as stack:
        stack.callback(jax.config.update, "jax_enable_x64", True)
        half = placed()  # of 32 bits, which need no context
        same(pool(half), np.ones((2, 2, 1), half.dtype))
        if jax.__version_info__ < (0, 12):
            hint = re.escape("use jax.config.update('jax_enable_x64', True)")
            stack.enter_context(pytest.raises(jax.errors.JaxRuntimeError, match=hint))
        stack.enter_context(jax.enable_x64(True))
        same(pool(placed()), np.ones((2, 2, 1), dtype))


@pytest.mark.parametrize("manual", [{"one", "two"}, {"one"}], ids=["all axes", "one axis"])
def test_inside_shard_map(manual):
    mesh = mesh_of((2, 4), AxisType.Auto)
    geometry = jup.WindowGeometry.for_input(SHAPE, **OVERLAPPING)
    arrays = arrays_for(geometry, SHAPE)
    placed = [jax.device_put(a, NamedSharding(mesh, P("one", None, "two"))) for a in arrays]
    spec = P("one", None, "two" if "two" in manual else None)

    def pool_and_gradient(x, y, offsets):
        values, gradients, winners = forward_and_backward(geometry)(x, y, offsets)
        return values, gradients, winners

    mapped = jax.shard_map(
        pool_and_gradient, mesh=mesh, in_specs=spec, out_specs=spec, axis_names=manual
    )
    compiled = jax.jit(mapped).lower(*placed).compile()
    assert not collectives(compiled)
    same(compiled(*placed), on_one_device(geometry, SHAPE))


def over_large_windows(x, implementation=None):
    options = {"window_shape": (36,), "strides": 2, "implementation": implementation}
    y, indices = jup.max_pool_with_indices(x, **options)
    u = jup.max_unpool(jup.avg_pool(x, **options), indices, implementation=implementation)
    uneven = jup.adaptive_max_pool(x, (2,), implementation=implementation)
    return y, u, uneven, jup.global_max_pool(x, implementation=implementation)


@functools.cache
def over_large_windows_on_one_device():
    x = np.random.default_rng(0).standard_normal((2, 43, 2), np.float32)
    return cheaply(over_large_windows)(x)


@pytest.mark.parametrize("implementation", [None, "xla"])
@pytest.mark.parametrize("mode", MODES)
def test_loops_carry_what_differs_between_devices(mode, implementation):
    """Large windows are compared in loops, whose types say along which axes values differ."""
    run = functools.partial(over_large_windows, implementation=implementation)
    x = np.random.default_rng(0).standard_normal((2, 43, 2), np.float32)
    mesh = mesh_of((2,), mode)
    spec = P("one")
    if mode == AxisType.Explicit:
        x = jax.device_put(x, NamedSharding(mesh, spec))
    else:
        run = jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec)
    same(cheaply(run)(x), over_large_windows_on_one_device())


def every_public_function(x, y):
    arrays = {"x": x, "y": y}
    return {name: f.run(arrays[f.of]) for name, f in TABLE.items() if "." not in name}


@functools.cache
def every_public_function_on_one_device():
    """Under vmap, so that each sees one example as the table has it."""
    arrays = [np.asarray(batch_for(TABLE[name]))[:2] for name in ("max_pool", "avg_unpool")]
    run = cheaply(jax.vmap(every_public_function))
    return arrays, run(*arrays)


@pytest.mark.thorough
@pytest.mark.parametrize("mode", only(AxisType.Explicit, among=MODES))
def test_every_public_function_on_batches_that_nobody_placed(mode):
    """Under `set_mesh`; those that are placed are in test_exactness.py."""
    arrays, expected = every_public_function_on_one_device()
    run = jax.vmap(every_public_function, spmd_axis_name="one")
    with jax.set_mesh(mesh_of((2,), mode)):
        found = cheaply(run)(*arrays)
    for name, results in found.items():
        for a, b in zip(jax.tree.leaves(results), jax.tree.leaves(expected[name]), strict=True):
            np.testing.assert_allclose(
                np.asarray(a), np.asarray(b), rtol=1e-6, atol=1e-6, err_msg=name
            )


@pytest.mark.parametrize("mode", MODES)
def test_arrays_that_nobody_placed_under_set_mesh(mode):
    """NumPy arrays and those made before: no argument of the program says what the mesh is."""
    geometry = jup.WindowGeometry.for_input(SHAPE, **OVERLAPPING)
    arrays = arrays_for(geometry, SHAPE)
    before = [jnp.asarray(a) for a in arrays]
    mapped = jax.jit(jax.vmap(forward_and_backward(geometry), spmd_axis_name="one"))
    with jax.set_mesh(mesh_of((2, 4), mode)):
        same((mapped(*arrays), mapped(*before)), (on_one_device(geometry, SHAPE),) * 2)
        same(pool_and_unpool(jnp.asarray(negative(LINES))), unpooled_on_one_device(LINES))
        same(pool_and_unpool(negative(LINES)), unpooled_on_one_device(LINES))


def pool_and_gradient(x):
    def both(x, z):
        return jup.max_pool(x, **OVERLAPPING), jup.avg_pool(z, **OVERLAPPING)

    values, pull = jax.vjp(both, x, x)
    return values, pull(tuple(map(jnp.cos, values)))


@functools.cache
def pool_and_gradient_on_one_device():
    return cheaply(pool_and_gradient)(negative(SHAPE))


@pytest.mark.few(1)
@pytest.mark.parametrize("mode", MODES)
def test_arrays_placed_in_any_way_under_set_mesh(mode):
    x, mesh, run = negative(SHAPE), mesh_of((2, 4), mode), cheaply(pool_and_gradient)
    specs = P(), P("two", "one")
    arrays = [x, jnp.asarray(x), *(jax.device_put(x, NamedSharding(mesh, s)) for s in specs)]
    want = pool_and_gradient_on_one_device()
    reshaped = jax.device_put(x, NamedSharding(mesh_of((8,), mode), P(None, "one")))
    with jax.set_mesh(mesh):
        for array in (*arrays, jnp.array(x)):
            same(run(array), want)
        if mode == AxisType.Auto:
            same(run(reshaped), want)
        else:  # the cosine of what is on another mesh than that of the context JAX refuses
            same(jax.jit(lambda x: jup.max_pool(x, **OVERLAPPING))(reshaped), want[0][0])


@pytest.mark.parametrize("mode", MODES)
def test_devices_that_jax_refuses_under_set_mesh_are_its_own_error(mode):
    x, mesh = negative(LINES), mesh_of((2, 4), mode)
    turned = jax.sharding.Mesh(mesh.devices.T[::-1], ("three", "four"), axis_types=(mode,) * 2)
    elsewhere = jax.devices()[3], NamedSharding(turned, P(None, "three"))
    for array in (jax.device_put(x, place) for place in elsewhere):
        for function in (jnp.abs, lambda x: jup.max_pool(x, 3, 2, 1)):
            with (
                jax.set_mesh(mesh),
                pytest.raises(ValueError, match=r"incompatible devices|context mesh"),
            ):
                jax.jit(function)(array)


@pytest.mark.few(1)
@pytest.mark.parametrize("mode", MODES)
def test_sharded_inside_a_program_under_set_mesh(mode):
    x = negative(LINES)
    move = jax.lax.with_sharding_constraint if mode == AxisType.Auto else jax.sharding.reshard
    with jax.set_mesh(mesh_of((2, 2), mode)):
        for spec, allowed in (
            (P("one", None, "two"), set()),
            (P("one", "two"), {"collective-permute"}),
        ):
            run = cheaply(lambda x, spec=spec: pool_and_unpool(move(x, spec)))
            compiled = run.lower(x).compile()
            assert set(collectives(compiled)) == allowed
            results = compiled(x)
            same(results, unpooled_on_one_device(LINES))
            assert results[0].sharding.shard_shape(results[0].shape)[0] == 1
        by_argument = jax.jit(pool_and_unpool, in_shardings=P("one", "two"))
        assert set(collectives(by_argument.lower(x).compile())) == {"collective-permute"}
        same(by_argument(x), unpooled_on_one_device(LINES))


def test_shards_of_different_sizes_inside_a_program_under_set_mesh():
    x = negative((3, 16, 3))
    with jax.set_mesh(mesh_of((2, 2), AxisType.Auto)):
        run = cheaply(
            lambda x: pool_and_unpool(
                jax.lax.with_sharding_constraint(x + x, P("one", None, "two"))
            )
        )
        found = run(x)
    same(found, cheaply(pool_and_unpool)(x + x))


@pytest.mark.few(1)
@pytest.mark.parametrize("mode", MODES)
def test_a_network_from_before_set_mesh(mode):
    model = SegNetBasic(1, 2, features=2, kernel_size=3, stages=1, rngs=nnx.Rngs(0))
    model.eval()
    static, state = nnx.split(model)
    run = cheaply(lambda state, x: nnx.merge(static, state)(x))
    x = negative((2, 4, 4, 1))
    expected = run(state, x)
    with jax.set_mesh(mesh_of((2,), mode)):  # where convolutions are XLA's
        np.testing.assert_allclose(run(state, x), expected, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_lowered_for_more_devices_than_there_are(mode):
    """Auto axes are left to XLA's partitioner, which no callback then helps."""
    mesh = jax.sharding.AbstractMesh((16,), ("one",), axis_types=(mode,))
    x = jax.ShapeDtypeStruct((16, 4, 1), jnp.float32, sharding=NamedSharding(mesh, P("one")))
    traced = jax.jit(lambda x: jup.max_pool(x, (2,))).trace(x)
    program = traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "CustomSPMDPartitioning" not in program
    assert ("sdy.manual_computation" in program) == (mode == AxisType.Explicit)


@pytest.mark.parametrize("implementation", [None, "xla"])
def test_a_sharded_program_can_be_exported(implementation):
    sharding = NamedSharding(mesh_of((8,), AxisType.Auto), P("one"))
    x = jax.device_put(arrays_for(jup.WindowGeometry.for_input(SHAPE, 2), SHAPE)[0], sharding)
    run = jax.jit(lambda x: jup.max_pool(x, 2, implementation=implementation))
    exported = jax.export.deserialize(jax.export.export(run)(x).serialize())
    same(jax.jit(exported.call)(x), run(x))


@pytest.mark.few(1)
@pytest.mark.parametrize("implementation", [None, "xla"])
def test_gradients_where_windows_do_not_divide_the_shards(implementation):
    """That axis is gathered, and the gradient still has the type of the array."""
    x = negative((2, 10, 3))

    def loss(x):
        y, indices = jup.max_pool_with_indices(x, 3, implementation=implementation)
        averages = jup.avg_pool(x, 3, implementation=implementation)
        u = jup.max_unpool(y * averages, indices, implementation=implementation)
        return (u * x).sum()

    run = cheaply(jax.grad(loss))
    placed = jax.device_put(x, NamedSharding(mesh_of((2,), AxisType.Explicit), P(None, "one")))
    same(run(placed), run(x))


@pytest.mark.thorough
@pytest.mark.parametrize("implementation", [None, "xla"])
@pytest.mark.parametrize("mode", MODES)
def test_derivatives_of_patterns_on_sharded_rows(mode, implementation, rng):
    """A pattern for each example, and second derivatives, on shards that windows do not divide."""
    y = jnp.asarray(rng.standard_normal((4, 8, 3, 2)), jnp.float32)
    patterns = jnp.asarray(rng.standard_normal((4, 3, 3)), jnp.float32)
    placed = jax.device_put(y, NamedSharding(mesh_of((4,), mode), P(None, "one")))

    def unpool(y, pattern):
        return jnp.sin(jup.fixed_unpool(y, pattern, 2, implementation=implementation)).sum()

    def derivatives(y, patterns):
        each = jax.vmap(jax.grad(unpool, (0, 1)))(y, patterns)
        return each, jax.jacrev(jax.grad(unpool, 1), 1)(y, patterns[0])

    found, wanted = (jax.jit(derivatives)(a, patterns) for a in (placed, y))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, found, wanted)


@pytest.mark.parametrize("implementation", only(None, among=[None, "xla"]))
@pytest.mark.parametrize(
    "pool",
    only(
        jup.adaptive_max_pool,
        jup.fractional_avg_pool,
        among=[jup.adaptive_max_pool, jup.adaptive_avg_pool, jup.fractional_avg_pool],
    ),
)
def test_uneven_windows_of_a_sharded_batch(pool, implementation):
    x = negative((4, 8, 7, 2))
    windows = {"output_shape": 5}
    if pool is jup.fractional_avg_pool:
        windows = {"sequences": [[0, 2, 3, 5, 6, 8], [0, 1, 3, 4, 6, 7]]}
    pool = functools.partial(pool, implementation=implementation, **windows)
    run = cheaply(jax.grad(lambda x: jnp.sum(pool(x) ** 2)))
    want = run(x)
    for mode in MODES:
        mesh = mesh_of((2,), mode)
        placed = jax.device_put(x, NamedSharding(mesh, P("one")))
        same(run(placed), want)
        with jax.set_mesh(mesh):
            same(run(placed), want)


PROCESS = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
port, number = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(number))
import numpy as np
import jaxunpool as jup
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
assert jax.device_count() == 4 and jax.local_device_count() == 2
mesh = jax.make_mesh((4,), ("a",), axis_types=(AxisType.Auto,))
whole = np.random.default_rng(0).standard_normal((4, 16, 3)).astype(np.float32)
def step(x):
    def loss(x):
        y, indices = jup.max_pool_with_indices(x, 3, 2, 1)
        return (jup.max_unpool(y, indices) * x).sum()
    return jax.grad(loss)(x)
run = jax.jit(step, compiler_options={"xla_backend_optimization_level": 0})
want = np.asarray(run(whole))
for spec in (P("a"), P(None, "a")):
    sharding = NamedSharding(mesh, spec)
    x = jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
    for shard in run(x).addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), want[shard.index])
print("same bits")
"""


@pytest.mark.thorough
def test_two_processes(tmp_path):
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    port = str(20000 + os.getpid() % 20000)
    root = str(pathlib.Path(__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), port, str(number)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        for process in processes:
            out, errors = process.communicate(timeout=180)
            assert out.strip().endswith("same bits"), errors[-3000:]
    finally:
        for process in processes:
            process.kill()


CROPPED = {
    "conv_transpose": functools.partial(
        jup.conv_transpose, kernel=jnp.ones((3, 2, 1, 1)), strides=3, padding=((3, 0), (2, 0))
    ),
    "bed_of_nails_unpool": functools.partial(
        jup.bed_of_nails_unpool, window_shape=(3, 3), strides=2, padding=1
    ),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("name", CROPPED)
def test_what_crops_the_low_end_of_sharded_rows(name, mode):
    """XLA's partitioner aborts the process where negative padding and gaps meet."""
    x = jnp.arange(64.0).reshape(1, 8, 8, 1)

    @jax.jit
    def program(x):
        y, pullback = jax.vjp(CROPPED[name], x)
        return y, pullback(y)[0]

    expected = program(x)
    for spec in (P(None, AXES[0]), P(None, None, AXES[0])):
        rows = NamedSharding(mesh_of((4,), mode), spec)
        jax.tree.map(np.testing.assert_array_equal, program(jax.device_put(x, rows)), expected)


@pytest.mark.few(1)
@pytest.mark.parametrize("mode", only(AxisType.Explicit, among=MODES))
@pytest.mark.parametrize("implementation", only(None, among=[None, "xla"]))
@pytest.mark.parametrize("function", ["fractional_max_pool", "fractional_max_pool_with_indices"])
def test_windows_split_as_the_array_is_not(function, implementation, mode, rng):
    """Sequences for each plane; the gradient has the sharding of the array all the same."""
    x, samples = rng.integers(0, 99, (2, 11, 4)).astype(np.float32), rng.random((2, 4, 1))
    mesh = mesh_of((2, 4), mode)

    @jax.jit
    def program(x, samples):
        options = {"random_samples": samples, "implementation": implementation}
        pool = functools.partial(getattr(jup, function), window_shape=3, output_shape=4, **options)
        y, pullback = jax.vjp(lambda x: jax.tree.leaves(pool(x))[0], x)
        return y, pullback(y)[0]

    expected = program(x, samples)
    one, two, _ = AXES
    for ours, theirs in itertools.product(
        [P(), P(one), P(None, None, one), P(None, None, two)], [P(one), P(None, one), P(None, two)]
    ):
        arrays = [
            jax.device_put(array, NamedSharding(mesh, spec))
            for array, spec in ((x, ours), (samples, theirs))
        ]
        found = program(*arrays)
        same(found, expected)
        if mode == AxisType.Explicit:
            assert jax.typeof(found[1]).sharding == jax.typeof(arrays[0]).sharding


@pytest.mark.few(1)
@pytest.mark.parametrize("spec", [P(), P(None, AXES[0]), P(None, None, AXES[0])], ids=str)
def test_eager_windows_of_their_own_over_explicit_axes(spec, rng):
    """Bounds are constants on one device there, and stay so."""
    x = rng.integers(0, 99, (2, 12, 4)).astype(np.float32)
    placed = jax.device_put(x, NamedSharding(mesh_of((2,), AxisType.Explicit), spec))
    for pool in (
        lambda x: jup.adaptive_max_pool(x, 5),
        lambda x: jup.adaptive_max_pool(x, 5, implementation="xla"),
        lambda x: jup.fractional_max_pool(x, 3, 4, random_samples=np.full((2, 4, 1), 0.6)),
    ):
        same(pool(placed), pool(x))
