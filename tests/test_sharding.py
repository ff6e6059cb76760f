"""Sharded over eight devices: the same bits as on one, and nothing fetched that is not needed."""

import collections
import functools
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
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from strategies import poolings
from test_namespace import TABLE, batch_for

import jaxunpool as jup
from jaxunpool import primitives

COLLECTIVE = re.compile(
    r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)
AXES = ("one", "two", "three")
MODES = [AxisType.Auto, AxisType.Explicit]
TILING = {"window_shape": (2, 2)}
OVERLAPPING = {"window_shape": (3, 3), "strides": 2, "padding": 1}
SHAPE = (8, 16, 16, 8)


def mesh_of(sizes, mode):
    return jax.make_mesh(sizes, AXES[: len(sizes)], axis_types=(mode,) * len(sizes))


def forward_and_backward(geometry, implementation=None):
    """All primitives, with all kinds of weights, and their transposes, of `x`, `y`, `offsets`."""
    pattern = jnp.linspace(-1, 2, geometry.volume, dtype=jnp.float32).reshape(geometry.window_shape)

    def every(x, y, offsets):
        yield primitives.select(x, geometry, implementation)[0]
        yield primitives.gather(x, offsets, geometry, implementation)
        yield primitives.scatter(y, offsets, geometry, "last", implementation)
        yield primitives.reduce(x, geometry, implementation, "mean_inside")
        yield primitives.replicate(y, geometry, implementation, "cover")
        yield primitives.replicate(y, geometry, implementation, "last")
        yield primitives.replicate(y, geometry, implementation, "sum", pattern)

    def run(x, y, offsets):
        values, pull = jax.vjp(lambda x, y: tuple(every(x, y, offsets)), x, y)
        winners = primitives.select(x, geometry, implementation)[1]
        return values, pull(tuple(map(jnp.cos, values))), winners

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


@functools.cache
def on_one_device(geometry, shape, implementation=None):
    return jax.jit(forward_and_backward(geometry, implementation))(*arrays_for(geometry, shape))


def collectives(compiled):
    return collections.Counter(COLLECTIVE.findall(compiled.as_text()))


def sharded(geometry, sharding, shape=SHAPE, implementation=None):
    """Collectives in the compiled program; the results are checked."""
    arrays = [jax.device_put(array, sharding) for array in arrays_for(geometry, shape)]
    compiled = jax.jit(forward_and_backward(geometry, implementation)).lower(*arrays).compile()
    results = compiled(*arrays)
    (values, gradients, winners), expected = results, on_one_device(geometry, shape, implementation)
    same((values, winners), (expected[0], expected[2]))
    if implementation is None:
        same(gradients, expected[1])
    else:  # JAX's own derivatives, products and sums contracted differently
        for a, b in zip(gradients, expected[1]):
            np.testing.assert_allclose(a, b, rtol=0, atol=16 * 2**-23 * np.abs(b).max())
    return collectives(compiled), results


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("options", "sizes", "spec", "implementation"),
    [
        (TILING, (2, 4), P("one", None, None, "two"), None),
        (TILING, (2, 4), P("one", None, None, "two"), "xla"),
        (OVERLAPPING, (2, 4), P("one", None, None, "two"), None),
        (OVERLAPPING, (2, 4), P("one", None, None, "two"), "xla"),
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


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("sizes", "spec"),
    [((4,), P(None, "one")), ((2, 2, 2), P("one", "two", "three"))],
    ids=["rows", "batch, rows and columns"],
)
@pytest.mark.parametrize(
    ("options", "allowed"),
    [(TILING, set()), (OVERLAPPING, {"collective-permute"})],
    ids=["2x2", "3x3"],
)
def test_neighbours_exchange_no_more_than_what_windows_share(mode, sizes, spec, options, allowed):
    geometry = jup.WindowGeometry.for_input(SHAPE, **options)
    sharding = NamedSharding(mesh_of(sizes, mode), spec)
    found, (values, _, winners) = sharded(geometry, sharding)
    assert set(found) == allowed
    for array in (*values, winners):
        assert array.sharding.is_equivalent_to(sharding, array.ndim)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_exchanged_is_a_few_rows(mode):
    """In bytes: the halo of a 3x3 window is two rows on either side of a shard, not the shard."""
    geometry = jup.WindowGeometry.for_input((1, 64, 16, 8), **OVERLAPPING)
    sharding = NamedSharding(mesh_of((4,), mode), P(None, "one"))
    x = jax.ShapeDtypeStruct((1, 64, 16, 8), jnp.float32, sharding=sharding)
    program = jax.jit(lambda x: primitives.select(x, geometry, None)).lower(x).compile().as_text()
    moved = re.findall(r"= f32\[([\d,]+)\][^=]* collective-permute(?:-start)?\(", program)
    assert sorted(moved) == ["1,2,16,8", "1,2,16,8"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 16, 16, 3), {"window_shape": (16, 16)}),  # one window for all shards
        ((1, 16, 16, 3), {"window_shape": (3, 3), "strides": 2}),  # 7 windows
        ((1, 24, 24, 3), {"window_shape": (2, 2), "strides": 3}),  # gaps
        ((1, 16, 16, 3), {"window_shape": (2, 2), "padding": ((0, 0), (1, 1))}),
        ((1, 6, 12, 3), {"window_shape": (2, 2)}),  # an odd number of windows
    ],
    ids=["global", "odd", "gaps", "shifted", "indivisible"],
)
def test_windows_that_do_not_divide_the_shards(mode, shape, options):
    geometry = jup.WindowGeometry.for_input(shape, **options)
    mesh = mesh_of((2, 2), mode)
    x, y, offsets = arrays_for(geometry, shape)
    x = jax.device_put(x, NamedSharding(mesh, P(None, "one", "two")))
    if mode == AxisType.Explicit:  # all arrays have to be on one mesh
        y, offsets = (jax.device_put(a, NamedSharding(mesh, P())) for a in (y, offsets))
    same(jax.jit(forward_and_backward(geometry))(x, y, offsets), on_one_device(geometry, shape))


@hypothesis.settings(max_examples=12)
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

    same(jax.jit(run)(jax.device_put(x, NamedSharding(mesh, spec))), jax.jit(run)(x))


@pytest.mark.parametrize("mode", MODES)
def test_vmap_of_what_is_sharded(mode):
    geometry = jup.WindowGeometry.for_input(SHAPE[1:], **OVERLAPPING)
    arrays = arrays_for(geometry, SHAPE)
    run = jax.vmap(forward_and_backward(geometry))
    placed = [jax.device_put(a, NamedSharding(mesh_of((8,), mode), P("one"))) for a in arrays]
    compiled = jax.jit(run).lower(*placed).compile()
    assert not collectives(compiled)
    same(compiled(*placed), jax.jit(run)(*arrays))


def pool_and_unpool(x):
    """Wrong if zeros for what is missing were taken for elements: `x` is negative."""
    y, indices = jup.max_pool_with_indices(x, **OVERLAPPING)
    return y, indices.offsets, jup.max_unpool(y, indices)


def negative(shape):
    return -1 - np.random.default_rng(0).random(shape, np.float32)


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
    x = negative((2, 16, 16, 4))
    placed = jax.device_put(x, NamedSharding(mesh_of(sizes, mode), spec))
    same(jax.jit(pool_and_unpool)(placed), jax.jit(pool_and_unpool)(x))


@pytest.mark.parametrize("rest", MODES)
def test_rows_over_what_a_shard_map_leaves(rest):
    mesh = jax.make_mesh((2, 4), AXES[:2], axis_types=(AxisType.Auto, rest))
    x = negative((4, 16, 16, 4))
    placed = jax.device_put(x, NamedSharding(mesh, P("one", "two")))
    run = jax.shard_map(
        pool_and_unpool, mesh=mesh, in_specs=P("one"), out_specs=P("one"), axis_names={"one"}
    )
    same(jax.jit(run)(placed), jax.jit(pool_and_unpool)(x))


@pytest.mark.parametrize("spec", [P("one"), P("one", "two"), P(None, "one", "two")])
def test_a_mesh_with_axes_of_both_kinds(spec):
    mesh = jax.make_mesh((2, 4), AXES[:2], axis_types=(AxisType.Explicit, AxisType.Auto))
    x = negative((4, 16, 16, 4))
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, NamedSharding(mesh, spec))
        sharded = jax.jit(pool_and_unpool)(placed)
    same(sharded, jax.jit(pool_and_unpool)(x))


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
    x = negative((2, 4, 4, 1))
    with jax.disable_jit():
        y = jax.vmap(lambda x: jup.max_pool(x, (2, 2)))(x)
    same(y, jup.max_pool(x, (2, 2)))


def test_sharded_float64_in_a_context_works_or_says_what_to_do():
    """The compiler's thread sees the context from jax 0.12 on."""
    code = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import jaxunpool as jup
jax.config.update("jax_num_cpu_devices", 2)
mesh = jax.make_mesh((2,), ("a",), axis_types=(AxisType.Auto,))
with jax.enable_x64(True):
    x = jax.device_put(np.ones((2, 4, 4, 1)), NamedSharding(mesh, P("a")))
    y = jax.jit(lambda x: jup.max_pool(x, (2, 2)))(x)
    assert y.dtype == np.float64 and (np.asarray(y) == 1).all()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        assert "use jax.config.update('jax_enable_x64', True)" in done.stderr


@pytest.mark.parametrize("manual", [{"one", "two"}, {"one"}], ids=["all axes", "one axis"])
def test_inside_shard_map(manual):
    mesh = mesh_of((2, 4), AxisType.Auto)
    geometry = jup.WindowGeometry.for_input(SHAPE, **OVERLAPPING)
    arrays = arrays_for(geometry, SHAPE)
    placed = [jax.device_put(a, NamedSharding(mesh, P("one", None, None, "two"))) for a in arrays]
    spec = P("one", None, None, "two" if "two" in manual else None)

    def pool_and_gradient(x, y, offsets):
        values, gradients, winners = forward_and_backward(geometry)(x, y, offsets)
        return values, gradients, winners

    mapped = jax.shard_map(
        pool_and_gradient, mesh=mesh, in_specs=spec, out_specs=spec, axis_names=manual
    )
    compiled = jax.jit(mapped).lower(*placed).compile()
    assert not collectives(compiled)
    same(compiled(*placed), on_one_device(geometry, SHAPE))


@pytest.mark.parametrize("implementation", [None, "xla"])
@pytest.mark.parametrize("mode", MODES)
def test_loops_carry_what_differs_between_devices(mode, implementation):
    """Large windows are compared in loops, whose types say along which axes values differ."""
    options = {"window_shape": (12, 11), "strides": (4, 2), "implementation": implementation}

    def run(x):
        y, indices = jup.max_pool_with_indices(x, **options)
        u = jup.max_unpool(jup.avg_pool(x, **options), indices, implementation=implementation)
        uneven = jup.adaptive_max_pool(x, (2, 2), implementation=implementation)
        return y, u, uneven, jup.global_max_pool(x, implementation=implementation)

    x = np.random.default_rng(0).standard_normal((8, 22, 23, 2), np.float32)
    mesh = mesh_of((8,), mode)
    if mode == AxisType.Explicit:
        sharded = jax.jit(run)(jax.device_put(x, NamedSharding(mesh, P("one"))))
    else:
        mapped = jax.shard_map(run, mesh=mesh, in_specs=P("one"), out_specs=P("one"))
        sharded = jax.jit(mapped)(x)
    same(sharded, jax.jit(run)(x))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name for name in TABLE if "." not in name])
def test_every_public_function_on_sharded_batches(name, mode):
    """Under vmap, so that each sees one example as the table has it."""
    if name in ("validate_indices", "inverse") and mode == AxisType.Explicit:
        pytest.skip("checkify and linear_transpose know nothing of explicit axes")
    entry = TABLE[name]
    x = jnp.concatenate([batch_for(entry)] * 3)[:8]
    mesh = mesh_of((8,), mode)
    run = jax.jit(jax.vmap(entry.run))
    want = run(x)
    with jax.set_mesh(mesh):
        sharded = run(jax.device_put(x, NamedSharding(mesh, P("one"))))
    for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-6, atol=1e-6)


def test_a_sharded_program_of_plain_jax_can_be_exported():
    sharding = NamedSharding(mesh_of((8,), AxisType.Auto), P("one"))
    x = jax.device_put(arrays_for(jup.WindowGeometry.for_input(SHAPE, 2), SHAPE)[0], sharding)
    run = jax.jit(lambda x: jup.max_pool(x, (2, 2), implementation="xla"))
    exported = jax.export.deserialize(jax.export.export(run)(x).serialize())
    same(jax.jit(exported.call)(x), run(x))


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
whole = np.random.default_rng(0).standard_normal((4, 16, 16, 3)).astype(np.float32)
for spec in (P("a"), P(None, "a")):
    sharding = NamedSharding(mesh, spec)
    x = jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
    def step(x):
        def loss(x):
            y, indices = jup.max_pool_with_indices(x, (3, 3), 2, 1)
            return (jup.max_unpool(y, indices) * x).sum()
        return jax.grad(loss)(x)
    want = np.asarray(jax.jit(step)(whole))
    for shard in jax.jit(step)(x).addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), want[shard.index])
print("same bits")
"""


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
