"""PoolIndices as a value."""

import contextlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backend_cases import skip_if_not_compiled
from strategies import INTEGERS, only

import jaxunpool as jup
from jaxunpool import PoolIndices, WindowGeometry


def indices_of(shape, *args, **kwargs):
    return jup.max_pool_with_indices(jnp.zeros(shape), *args, **kwargs)[1]


def test_a_pytree_with_one_leaf():
    indices = indices_of((4, 4, 1), (2, 2))
    (leaf,), structure = jax.tree.flatten(indices)
    assert leaf is indices.offsets
    assert jax.tree.unflatten(structure, [leaf]).geometry == indices.geometry
    assert jax.tree.structure(indices) != jax.tree.structure(indices_of((5, 4, 1), (2, 2)))
    path, _ = jax.tree_util.tree_flatten_with_path(indices)[0][0]
    assert jax.tree_util.keystr(path) == ".offsets"


def test_one_byte_where_pytorch_keeps_eight():
    indices = indices_of((2, 8, 8, 3), (2, 2))
    assert indices.nbytes == 2 * 4 * 4 * 3
    assert indices_of((600, 1), (300,)).nbytes == 2 * 2
    assert jax.eval_shape(lambda: indices).nbytes == indices.nbytes


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            ((4, 4, 1), (2, 2)),
            "PoolIndices(uint8[2,2,1], window=(2, 2), strides=(2, 2), input=(4, 4), 4 bytes)",
        ),
        (
            ((9, 9, 500), (3, 3), 2, "SAME"),
            "PoolIndices(uint8[5,5,500], window=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)),"
            " input=(9, 9), 12,500 bytes)",
        ),
    ],
)
def test_repr(call, expected):
    assert repr(indices_of(*call)) == expected
    assert "dilation=(2,)" in repr(indices_of((5, 1), (2,), dilation=2))
    assert "channels_first" in repr(indices_of((1, 4), (2,), data_format="channels_first"))


def test_repr_of_what_transformations_put_in_place():
    geometry = WindowGeometry.for_input((4, 1), (2,))
    assert "object object" in repr(PoolIndices(object(), geometry))
    assert "PoolIndices(uint8[2,1]" in repr(jax.eval_shape(lambda: indices_of((4, 1), (2,))))
    jax.jit(lambda i: repr(i) and i)(indices_of((4, 1), (2,)))


def test_flat_positions_inside_jit_that_are_in_no_window_select_nothing():
    geometry = WindowGeometry.for_input((4, 4, 1), (2, 2))
    flat = jnp.array([[5, 2], [8, 99]])[..., None]  # the second and third belong elsewhere
    flat = flat.at[1, 0].set(0)
    with pytest.raises(ValueError, match=r"flat\[1, 0, 0\] = 0: .*\(2 of 4 are wrong\)"):
        PoolIndices.from_flat(flat, geometry)
    indices = jax.jit(PoolIndices.from_flat, static_argnums=1)(flat, geometry)
    np.testing.assert_array_equal(np.ravel(indices.offsets), [3, 0, 4, 4])
    np.testing.assert_array_equal(np.ravel(indices.flat), [5, 2, -1, -1])
    y = jnp.arange(1.0, 5).reshape(2, 2, 1)
    for duplicates in ("last", "sum"):
        run = lambda y: jup.max_unpool(y, indices, duplicates=duplicates)
        expected = np.zeros(16)
        expected[[5, 2]] = [1, 2]
        np.testing.assert_array_equal(np.ravel(run(y)), expected)
        np.testing.assert_array_equal(np.ravel(jax.grad(lambda y: run(y).sum())(y)), [1, 1, 0, 0])


def test_an_offset_of_padding_or_of_nothing_has_no_position():
    geometry = WindowGeometry.for_input((4, 5, 11), (3, 3), 2, ((1, 1), (2, 1)))
    offsets = np.broadcast_to(np.arange(11, dtype=np.uint8), geometry.pooled_shape((4, 5, 11)))
    flat = np.asarray(PoolIndices(offsets, geometry).flat)
    for (oh, ow, offset), found in np.ndenumerate(flat):
        row, column = 2 * oh - 1 + offset // 3, 2 * ow - 2 + offset % 3
        is_inside = offset < 9 and 0 <= row < 4 and 0 <= column < 5
        assert found == (5 * row + column if is_inside else -1)


def test_flat_positions_inside_jit_that_are_in_no_plane_select_nothing():
    plane = jup.Plane(input_shape=(2, 3))
    flat = jnp.array([-7, -1, 0, 5, 6, 2**31 - 1])[:, None, None]
    made = jax.jit(PoolIndices.from_flat, static_argnums=1)(flat, plane)
    for indices in (made, PoolIndices(flat, plane)):
        np.testing.assert_array_equal(np.ravel(indices.flat), [-1, -1, 0, 5, -1, -1])
    np.testing.assert_array_equal(made.offsets, made.flat)


SOURCES = {
    "from_flat": PoolIndices.from_flat,
    "from_torch": jup.interop.from_torch,
    "from_tensorflow": jup.interop.from_tensorflow,
    "from_onnx": jup.interop.from_onnx,
}


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("volume", "dtype"),
    [(255, np.uint8), (256, np.uint16), (65535, np.uint16), (65536, np.uint32)],
)
def test_offsets_have_one_type_for_one_geometry(volume, dtype):
    """Whoever made them: they can be branches of one `lax.cond`. And there is room for nothing."""
    geometry = WindowGeometry.for_input((volume, 1), (volume,))
    assert geometry.offset_dtype == dtype
    flat = jnp.array([[volume - 1]])

    @jax.jit
    def run(which, x, last, nowhere):
        pooled = lambda: jup.max_pool_with_indices(x, (volume,))[1]
        made = [lambda f=f: f(last, geometry) for f in SOURCES.values()]
        selected = jax.lax.switch(which, [pooled, *made])
        nothing = [f(nowhere, geometry) for f in SOURCES.values()]
        return selected, nothing, [jup.max_unpool(jnp.ones((1, 1)), n).sum() for n in nothing]

    for which in range(5):
        x = jnp.arange(volume, dtype=jnp.float32)[:, None]
        selected, nothing, sums = run(which, x, flat, -flat)
        assert selected.offsets.dtype == dtype
        assert selected.flat == volume - 1
        assert [int(n.flat.squeeze()) for n in nothing] == [-1] * 4
        assert sums == [0] * 4


WRAPS = [0, *(sign * 2**bits for bits in (8, 16, 32) for sign in (-1, 1))]
ODD = ("int2", "int4", "uint2", "uint4", "bool", "float8_e4m3fn", "float16", "complex64", "key")


def cast(values, dtype):
    if dtype == "key":
        return jax.random.split(jax.random.key(0), np.size(values)).reshape(np.shape(values))
    return jnp.asarray(values).astype(dtype)


@pytest.mark.parametrize("dtype", ODD)
def test_offsets_of_odd_types_are_refused_by_name(dtype):
    indices = indices_of((4, 4, 1), (2, 2))
    odd = PoolIndices(cast(indices.offsets, dtype), indices.geometry)
    for use in (
        lambda: jup.max_unpool(jnp.ones((2, 2, 1)), odd),
        lambda: jup.validate_indices(odd),
        lambda: jup.interop.to_torch(odd),
        lambda: jup.interop.to_tensorflow(odd),
        lambda: jup.interop.to_onnx(odd),
    ):
        with pytest.raises(
            TypeError, match=r"indices\.offsets: expected integers.* got \S*" + dtype
        ):
            use()


SIZES = (3, 127, 128, 144, 255, 256, 300, 32768, 65536)


@pytest.mark.few(8)
@pytest.mark.parametrize("size", only(144, 256, among=SIZES))
@pytest.mark.parametrize("implementation", only("xla", among=["xla", "native_cpu"]))
@pytest.mark.parametrize("kind", ["window", "plane"])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_offsets_may_be_integers_of_other_types(dtype, kind, implementation, size):
    """Also where these are too narrow for the number of elements, or wider than positions are."""
    skip_if_not_compiled(implementation)
    limits = np.iinfo(dtype)
    near = [value + wrap for value in (-1, 0, 1, size // 2, size - 1, size) for wrap in WRAPS]
    offsets = np.unique(np.clip(near, limits.min, limits.max)).astype(dtype)[:, None, None]
    wide = offsets.astype(np.int64)
    inside = (wide >= 0) & (wide < size)
    x, y = (np.arange(1.0, n + 1, dtype=np.float32) for n in (size, wide.size))
    x, y = np.broadcast_to(x[:, None], (wide.size, size, 1)), y[:, None, None]
    window = WindowGeometry.for_input(x.shape, (size,))
    geometry = window if kind == "window" else jup.Plane(input_shape=(size,))
    with jax.enable_x64(dtype == "int64"):
        indices = PoolIndices(jnp.asarray(offsets), geometry)
        unpooled = jup.max_unpool(y, indices, implementation=implementation)
        read = jup.pool_at(x, indices, implementation=implementation)
        np.testing.assert_array_equal(indices.flat, np.where(inside, wide, -1))
        first = np.argmin(inside)
        named = re.escape(f"indices[{first}, 0, 0] = {offsets[first].item()}: expected")
        with contextlib.nullcontext() if inside.all() else pytest.raises(ValueError, match=named):
            jup.validate_indices(indices)
    np.testing.assert_array_equal(unpooled, np.where(wide == np.arange(size)[:, None], y, 0))
    np.testing.assert_array_equal(read, np.where(inside, wide + 1, 0))


@pytest.mark.parametrize("dtype", ODD)
def test_raw_indices_of_odd_types(dtype):
    """Integers of any width are converted; what is no integer is refused by name."""
    y, flat = np.ones((1, 2, 1), np.float32), cast([[[1], [0]]], dtype)
    unpool = lambda: jup.max_unpool(y, flat, output_shape=(1, 2))
    plane = jup.Plane(input_shape=(1, 2))
    if "int" in dtype:
        np.testing.assert_array_equal(unpool(), np.ones((1, 2, 1)))
        jup.validate_indices(flat, output_shape=(1, 2))
        assert PoolIndices.from_flat(flat, plane).offsets.dtype == np.int32
        return
    for use in (
        unpool,
        lambda: jup.validate_indices(flat, output_shape=(1, 2)),
        lambda: PoolIndices.from_flat(flat, plane),
        lambda: jup.interop.from_onnx(flat, plane),
    ):
        with pytest.raises(TypeError, match=r"(indices|flat): expected .*integers"):
            use()


def test_indices_of_dilated_and_padded_windows_survive_the_flat_form(rng):
    x = rng.standard_normal((2, 9, 8, 3))
    _, indices = jup.max_pool_with_indices(x, (3, 2), (2, 1), ((2, 1), (0, 1)), dilation=(1, 3))
    again = PoolIndices.from_flat(indices.flat, indices.geometry)
    np.testing.assert_array_equal(again.offsets, indices.offsets)


@pytest.mark.parametrize("dtype", ["int64", "uint32", "uint64"])
@pytest.mark.parametrize("x64", [False, True])
def test_large_host_integers_do_not_wrap_around(dtype, x64):
    large = {"int64": 2**32, "uint32": 2**32 - 1, "uint64": 2**64 - 1}[dtype]
    flat = np.array([[[large], [1]]], dtype)  # 2**32 wraps to 0 in 32 bits
    plane = jup.Plane(input_shape=(1, 2))
    with jax.enable_x64(x64):
        u = jup.max_unpool(np.ones((1, 2, 1), np.float32), flat, output_shape=(1, 2))
        np.testing.assert_array_equal(np.ravel(u), [0, 1])
        with pytest.raises(ValueError, match=rf"indices\[0, 0, 0\] = {large}: "):
            jup.validate_indices(flat, output_shape=(1, 2))
        with pytest.raises(ValueError, match=rf"flat\[0, 0, 0\] = {large}: "):
            PoolIndices.from_flat(flat, plane)


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
@pytest.mark.parametrize("x64", [False, True])
def test_large_offsets_do_not_wrap_around(dtype, x64):
    geometry = jup.WindowGeometry.for_input((4, 1), (2,))
    host = np.array([[2**32 + 1], [1]], dtype)
    with jax.enable_x64(x64):
        for offsets in (host, jnp.asarray(host)) if x64 else (host,):
            indices = PoolIndices(offsets, geometry)
            np.testing.assert_array_equal(np.ravel(indices.flat), [-1, 3])
            for run in (jup.max_unpool, jax.jit(jup.max_unpool)) if x64 else (jup.max_unpool,):
                u = run(np.ones((2, 1), np.float32), indices)
                np.testing.assert_array_equal(np.ravel(u), [0, 0, 0, 1])
            with pytest.raises(ValueError, match=rf"indices\[0, 0\] = {2**32 + 1}: "):
                jup.validate_indices(indices)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_an_array_without_a_channel_axis_is_refused(n):
    sizes = (4,) * n
    flat, geometry = np.zeros((2,) * n, np.int32), WindowGeometry.for_input((*sizes, 1), (2,) * n)
    for plane in (geometry, jup.Plane(input_shape=sizes)):
        indices = PoolIndices(flat, plane)
        for name, use in {
            "output_shape=": lambda: jup.max_unpool(flat, flat, output_shape=sizes),
            "output_shape=.*": lambda: jup.validate_indices(flat, output_shape=sizes),
            "flat:": lambda: PoolIndices.from_flat(flat, plane),
            "indices.offsets:": lambda: jup.max_unpool(flat, indices),
        }.items():
            with pytest.raises(ValueError, match=rf"^{name}.* does not fit "):
                use()
    jup.validate_indices(flat[..., None], output_shape=sizes)
    jup.validate_indices(flat[None, ..., None], output_shape=4)  # of all but batch and channels
    PoolIndices.from_flat(flat[..., None], jup.Plane(input_shape=sizes))


def test_not_an_array():
    """It would become one of objects, without a word."""
    indices = indices_of((4, 4, 1), (2, 2))
    for use in (np.asarray, np.array, jnp.asarray, lambda i: np.zeros((2, 2, 1)) + np.asarray(i)):
        with pytest.raises(TypeError, match=r"indices\.flat .*indices\.offsets"):
            use(indices)
    with pytest.raises(TypeError, match="x: expected an array, got PoolIndices"):
        jup.max_pool(indices, (2, 2))


SAVED = """
import sys
import numpy as np

def check():
    import jaxunpool as jup
    assert ("flax" in sys.modules) == was_imported
    x = np.arange(36, dtype=np.float32).reshape(6, 6, 1)
    y, indices = jup.max_pool_with_indices(x, (2, 2))
    from flax import serialization

    target = {"state": [indices, (y, indices)], "packed": indices.pack()}
    restored = serialization.from_bytes(target, serialization.to_bytes(target))
    packed = restored["packed"]
    assert type(packed) is type(indices.pack())
    for again in (restored["state"][0], restored["state"][1][1], packed.unpack()):
        assert again.geometry == indices.geometry
        assert again.offsets.dtype == np.uint8
        np.testing.assert_array_equal(jup.max_unpool(y, again), jup.max_unpool(y, indices))
    try:
        serialization.from_state_dict(indices, {"flat": indices.flat})
    except ValueError as error:
        assert "expected a state of 'offsets', got ['flat']" in str(error)
    else:
        raise AssertionError("a state of something else")

was_imported = False
check()
for name in [name for name in sys.modules if name.startswith("jaxunpool")]:
    del sys.modules[name]
was_imported = True
check()
"""


def test_flax_saves_indices():
    """Whichever is imported first; and `import jaxunpool` does not import Flax."""
    subprocess.run([sys.executable, "-c", SAVED], check=True, timeout=300)
