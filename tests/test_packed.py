"""PackedIndices: a few bits per window, and gradients that keep nothing else."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from strategies import examples, only, poolings

import jaxunpool as jup
from jaxunpool import PackedIndices, PoolIndices, WindowGeometry

WINDOWS = {"2x2": ((2, 2),), "3x3, overlapping": ((3, 3), 2, 1), "4x1": ((4, 1), (1, 2))}


def same(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), a, b)


def unpacked(packed):
    """The values that NumPy finds in the bytes."""
    bits, axis = packed.packing.bits, packed.packing.axis
    data = np.moveaxis(np.asarray(packed.data), axis, -1)
    values = np.unpackbits(data[..., None], axis=-1, bitorder="little")
    values = values.reshape(*data.shape[:-1], -1, bits) @ (1 << np.arange(bits))
    return np.moveaxis(values[..., : packed.packing.size], -1, axis)


@given(poolings(), st.integers(0, 2**32 - 1))
@settings(max_examples=examples(12, 300))
def test_round_trip(pooling, seed):
    """Of all values there is room for, be they elements of the window or not."""
    assume(math.prod(pooling.window) <= 16)
    try:
        geometry = WindowGeometry.for_input(pooling.shape, **pooling.options)
    except ValueError:
        assume(False)
    shape = geometry.pooled_shape(pooling.shape)
    bits = 2 if geometry.volume <= 4 else 4
    offsets = np.random.default_rng(seed).integers(0, 2**bits, shape, np.uint8)
    indices = PoolIndices(jnp.asarray(offsets), geometry)
    packed = indices.pack()
    same(packed.unpack().offsets, indices.offsets)
    np.testing.assert_array_equal(unpacked(packed), offsets)
    assert (packed.shape, packed.geometry, packed.packing.bits) == (shape, geometry, bits)
    assert packed.data.dtype == np.uint8
    assert packed.nbytes == packed.data.nbytes
    own = shape[-geometry.ndim - 1 :]  # the axes that are packed along, with the least left over
    least = min(math.prod(own) // n * -(-n * bits // 8) for n in own)
    assert packed.nbytes == math.prod(shape) // math.prod(own) * least


@pytest.mark.parametrize(
    ("shape", "window", "data_format", "share"),
    [
        ((2, 180, 240, 64), (2, 2), "channels_last", 4),
        ((2, 64, 180, 240), (2, 2), "channels_first", 4),
        ((2, 16, 16, 1), (2, 2), "channels_last", 4),  # one channel: along the rows
        ((2, 16, 16, 3), (4, 4), "channels_last", 2),
        ((2, 18, 18, 6), (3, 3), "channels_last", 2),
        ((16, 4), (1,), "channels_last", 4),
        ((8, 8, 8, 4), (2, 2, 2), "channels_last", 2),
    ],
)
def test_bytes(shape, window, data_format, share):
    """2 bits are a 32nd of PyTorch's index; 4 bits a 16th."""
    pool = lambda x: jup.max_pool_with_indices(x, window, data_format=data_format)[1]
    indices = jax.eval_shape(pool, jax.ShapeDtypeStruct(shape, jnp.float32))
    packed = jax.eval_shape(PoolIndices.pack, indices)
    assert packed.nbytes * share == indices.nbytes == math.prod(indices.shape)
    assert packed.shape == indices.shape


def geometry_of(window):
    return WindowGeometry.for_input((2 * window[0], 2 * window[1], 3), window)


@pytest.mark.few(9)
@pytest.mark.parametrize(
    ("window", "offset", "room"),
    [((2, 2), 4, 3), ((2, 2), -1, 3), ((1, 3), 4, 3), ((4, 4), 16, 15), ((3, 3), 16, 15)],
)
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "uint32", "int64", "uint64"])
def test_offsets_without_room(window, offset, room, dtype):
    """Refused where they are known; elsewhere the last value that there is room for."""
    offsets = jnp.zeros((2, 2, 3), dtype).at[1, 0, 2].set(jnp.asarray(offset).astype(dtype))
    indices = PoolIndices(offsets, geometry_of(window))
    said = (
        rf"indices\.offsets\[1, 0, 2\] = .*\({2 if room == 3 else 4} bits have room for 0..{room}"
    )
    with pytest.raises(ValueError, match=said):
        indices.pack()
    packed = jax.jit(PoolIndices.pack)(indices)
    expected = np.zeros((2, 2, 3))
    expected[1, 0, 2] = room
    np.testing.assert_array_equal(packed.unpack().offsets, expected)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32", "uint32", "int64", "uint64"])
def test_offsets_of_other_types(dtype):
    offsets = np.arange(12).reshape(2, 2, 3).astype(dtype)
    packed = PoolIndices(offsets, geometry_of((3, 4))).pack()
    assert packed.unpack().offsets.dtype == np.uint8
    np.testing.assert_array_equal(packed.unpack().offsets, offsets)


def test_an_offset_that_selects_nothing_where_there_is_room():
    flat = jnp.array([[0, -1, 5]])[..., None]
    geometry = WindowGeometry.for_input((1, 6, 1), (1, 2))
    indices = jax.jit(PoolIndices.from_flat, static_argnums=1)(flat, geometry)
    np.testing.assert_array_equal(np.ravel(indices.pack().unpack().flat), [0, -1, 5])
    y = jnp.array([[1.0, 2.0, 3.0]])[..., None]
    same(jup.max_unpool(y, indices.pack()), jup.max_unpool(y, indices))


X = np.random.default_rng(0).standard_normal((3, 9, 10, 6)).astype(np.float32)


def test_repr():
    _, packed = jup.max_pool_with_packed_indices(X, (3, 3), 2, 1)
    text = "PackedIndices(uint4[3,5,5,6], window=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)),"
    assert repr(packed) == text + " input=(9, 10), 225 bytes)"
    assert "object object" in repr(dataclasses.replace(packed, data=object()))
    assert repr(jax.eval_shape(lambda: packed)) == repr(packed)


def test_a_pytree_with_one_leaf():
    _, packed = jup.max_pool_with_packed_indices(X, (2, 2))
    (path, leaf), *rest = jax.tree_util.tree_flatten_with_path(packed)[0]
    assert (jax.tree_util.keystr(path), rest) == (".data", [])
    assert leaf is packed.data
    other = jup.max_pool_with_packed_indices(X[:, :7], (2, 2))[1]
    assert jax.tree.structure(packed) != jax.tree.structure(other)
    for use in (np.asarray, jnp.asarray):
        with pytest.raises(TypeError, match=r"PackedIndices are not an array: indices\.unpack\(\)"):
            use(packed)


@pytest.mark.thorough
def test_transformations():
    """`jit`, nested `vmap`, `scan` over leading axes and with a carry, `cond`, slices, devices."""
    y, indices = jup.max_pool_with_indices(X, (2, 2))
    packed = indices.pack()
    expected = jup.max_unpool(y, indices)
    run = jax.jit(lambda x: jup.max_pool_with_packed_indices(x, (2, 2)))
    same(run(X), (y, packed))
    same(jax.vmap(lambda x: jup.max_pool_with_packed_indices(x, (2, 2)))(X), (y, packed))
    same(jax.vmap(PoolIndices.pack)(indices), packed)
    same(jax.vmap(PackedIndices.unpack)(packed), indices)
    same(jax.vmap(jup.max_unpool)(y, packed), expected)
    lead = lambda tree: jax.tree.map(lambda a: a[None], tree)
    same(jax.vmap(jax.vmap(jup.max_unpool))(*lead((y, packed))), expected[None])
    one = jax.tree.map(lambda a: a[1], packed)
    same(one.unpack().offsets, indices.offsets[1])
    same(jax.vmap(jup.max_unpool, in_axes=(0, None))(y, one)[1], expected[1])

    @jax.jit
    def scanned(start, packed, y):
        def step(carry, each):
            return each[0], (jup.max_unpool(each[1], each[0]), carry.unpack().flat)

        last, (u, flat) = jax.lax.scan(step, start, (packed, y))
        swapped = jax.lax.cond(y.sum() > 1e9, lambda: start, lambda: last)
        return swapped, u, flat

    last, u, flat = scanned(one, packed, y)
    same(last.unpack().offsets, indices.offsets[2])
    same((u, flat[1:]), (expected, indices.flat[:2]))
    same(jax.device_put(packed, jax.devices()[1]).unpack().offsets, indices.offsets)


def test_checkpoints(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    _, packed = jup.max_pool_with_packed_indices(X, (2, 2))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", {"indices": packed})
        checkpointer.wait_until_finished()
        target = jax.eval_shape(lambda: {"indices": packed})
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(lambda a: a.update(sharding=device), target)
        restored = checkpointer.restore(tmp_path / "state", target)
    assert restored["indices"].geometry == packed.geometry
    same(restored["indices"].unpack(), packed.unpack())


def through(packed, *window, implementation=None, duplicates="last"):
    """Pool, something that keeps nothing, unpool."""
    pool = jup.max_pool_with_packed_indices if packed else jup.max_pool_with_indices

    def run(x):
        y, indices = pool(x, *window, implementation=implementation)
        options = {"implementation": implementation, "duplicates": duplicates}
        return jup.max_unpool(-y, indices, **options)

    return run


@pytest.mark.few(2)
@pytest.mark.parametrize("implementation", [None, "xla"])
@pytest.mark.parametrize("window", WINDOWS)
def test_nothing_else_is_kept(window, implementation):
    """Neither `x` nor offsets of a byte, by pooling, by unpooling, by both; in programs as well."""
    x = jnp.asarray(X)
    y, indices = jup.max_pool_with_packed_indices(x, *WINDOWS[window])
    options = {"implementation": implementation}
    pool = lambda x: jup.max_pool_with_packed_indices(x, *WINDOWS[window], **options)[0]
    unpool = lambda y: jup.max_unpool(y, indices, **options)
    both = through(True, *WINDOWS[window], **options)
    for run, at in ((pool, x), (unpool, y), (both, x)):
        for program in (run, jax.jit(run)):
            kept = jax.tree.leaves(jax.eval_shape(lambda at: jax.vjp(program, at)[1], at))
            assert [(leaf.shape, leaf.dtype) for leaf in kept] == [(indices.data.shape, np.uint8)]
            linear = jax.linearize(program, at)[1]
            assert sum(a.size for a in jax.tree.leaves(linear)) == indices.nbytes


@pytest.mark.few(1)
@pytest.mark.parametrize("implementation", [None, "xla"])
@pytest.mark.parametrize("duplicates", only("last", among=["last", "sum"]))
@pytest.mark.parametrize("window", only("3x3, overlapping", among=WINDOWS))
def test_derivatives_are_those_without_packing(window, duplicates, implementation):
    options = {"implementation": implementation, "duplicates": duplicates}

    @jax.jit
    def derivatives(x, v):
        found = []
        for packed in (True, False):
            run = through(packed, *WINDOWS[window], **options)
            loss = lambda x, run=run: (run(x) ** 3).sum()
            slope = lambda x, loss=loss: jnp.vdot(jax.grad(loss)(x), v)
            found.append((run(x), jax.grad(loss)(x), jax.grad(slope)(x)))
            if packed or implementation == "xla":
                forward = jax.jvp(loss, (x,), (v,))[1], jax.jvp(jax.grad(loss), (x,), (v,))[1]
        return found, forward, jnp.vdot(found[0][1], v)

    x, v = jnp.asarray(X, jnp.float64), jnp.cos(jnp.arange(X.size, dtype=jnp.float64))
    (packed, plain), (first, second), expected = derivatives(x, v.reshape(x.shape))
    same(packed, plain)
    np.testing.assert_allclose(first, expected, rtol=1e-12)
    np.testing.assert_allclose(second, packed[2], rtol=1e-12, atol=1e-12)


@pytest.mark.few(1)
@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("channels", [16, 1])
def test_shards_are_packed_by_themselves(mode, channels):
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(mode, mode))
    x = jax.random.normal(jax.random.key(0), (2, 16, 16, channels))

    def run(x):
        y, packed = jup.max_pool_with_packed_indices(x, (2, 2))
        return (jup.max_unpool(y, packed) ** 3).sum(), packed

    run = jax.jit(jax.value_and_grad(run, has_aux=True))
    (_, packed), gradient = run(x)
    specs = [P("a", "b")] + [P("a", None, None, "b")] * (channels > 1)
    with jax.set_mesh(mesh):
        for spec in specs:
            compiled = run.lower(jax.device_put(x, NamedSharding(mesh, spec))).compile()
            (_, found), split = compiled(jax.device_put(x, NamedSharding(mesh, spec)))
            same(jax.device_get((found, split)), jax.device_get((packed, gradient)))
            assert len(found.data.sharding.device_set) == 4
            assert not found.data.is_fully_replicated
            assert "all-gather" not in compiled.as_text()


@pytest.mark.thorough
def test_gradient_in_shard_map():
    """With the check of what varies over devices."""
    mesh = jax.make_mesh((4,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jax.random.normal(jax.random.key(0), (4, 6, 6, 8))
    run = jax.grad(lambda x: (jup.max_pool_with_packed_indices(x, (2, 2))[0] ** 2).sum())
    split = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=P("a"), out_specs=P("a")))
    same(jax.device_get(split(x)), jax.device_get(run(x)))


def test_whatever_takes_indices_takes_packed_ones():
    y, indices = jup.max_pool_with_indices(X, (2, 2))
    packed = indices.pack()
    same(jup.max_unpool(y, packed, output_shape=(9, 10)), jup.max_unpool(y, indices))
    jup.validate_indices(packed)
    for into in (jup.interop.to_torch, jup.interop.to_tensorflow, jup.interop.to_onnx):
        same(into(packed), into(indices))
    flat = jup.adaptive_max_pool_with_indices(X, (3, 5))
    same(jup.max_unpool(flat[0], flat[1].pack()), jup.max_unpool(*flat))


PACKED = jup.max_pool_with_packed_indices(X, (2, 2))[1]
Y = np.ones(PACKED.shape, np.float32)
LARGE = jup.max_pool_with_indices(X, (3, 6))[1]
WRONG = {
    "window": (LARGE.pack, ValueError, r"window_shape=\(3, 6\): expected at most 16 .*got 18"),
    "pooling": (
        lambda: jup.max_pool_with_packed_indices(X, (5, 4)),
        ValueError,
        r"window_shape=\(5, 4\): expected at most 16 elements to pack, got 20",
    ),
    "no windows": (
        jup.adaptive_max_pool_with_indices(X, (4, 5))[1].pack,
        ValueError,
        r"indices\.geometry: expected a WindowGeometry to pack, got Plane",
    ),
    "floats": (
        PoolIndices(Y, PACKED.geometry).pack,
        TypeError,
        r"indices\.offsets: expected integers",
    ),
    "y": (
        lambda: jup.max_unpool(Y[..., :5], PACKED),
        ValueError,
        r"expected the shape of y, \(3, 4, 5, 5\), got \(3, 4, 5, 6\), made by PackedIndices\(",
    ),
    "output_shape": (
        lambda: jup.max_unpool(Y, PACKED, output_shape=(8, 10)),
        ValueError,
        r"output_shape=\(8, 10\)",
    ),
    "data": (
        lambda: jup.max_unpool(Y, dataclasses.replace(PACKED, data=Y)),
        TypeError,
        r"indices\.data: expected an array of uint8, got float32",
    ),
    "no data": (
        dataclasses.replace(PACKED, data=[1]).unpack,
        TypeError,
        r"indices\.data: expected an array of uint8, got list",
    ),
    "rank": (
        dataclasses.replace(PACKED, data=PACKED.data[0, 0]).unpack,
        ValueError,
        r"indices\.data: shape \(5, 6\) does not fit",
    ),
    "shape": (
        dataclasses.replace(PACKED, data=PACKED.data[:, :0]).unpack,
        ValueError,
        r"indices\.data: shape \(3, 0, 5, 6\) does not fit",
    ),
    "another geometry": (
        lambda: jup.validate_indices(dataclasses.replace(PACKED, geometry=LARGE.geometry)),
        ValueError,
        r"indices: shape \(3, 4, 5, 6\) does not fit",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use(name):
    use, kind, message = WRONG[name]
    with pytest.raises(kind, match=message):
        use()
