"""PoolIndices as a value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def test_a_full_window_of_256_elements_still_has_room_for_nothing():
    geometry = WindowGeometry.for_input((16, 16, 1), (16, 16))
    assert geometry.offset_dtype == np.uint8
    indices = jax.jit(PoolIndices.from_flat, static_argnums=1)(jnp.array([[[-1]]]), geometry)
    assert indices.offsets.dtype == np.uint16
    np.testing.assert_array_equal(
        jup.max_unpool(jnp.ones((1, 1, 1)), indices), np.zeros((16, 16, 1))
    )


def test_indices_of_dilated_and_padded_windows_survive_the_flat_form(rng):
    x = rng.standard_normal((2, 9, 8, 3))
    _, indices = jup.max_pool_with_indices(x, (3, 2), (2, 1), ((2, 1), (0, 1)), dilation=(1, 3))
    again = PoolIndices.from_flat(indices.flat, indices.geometry)
    np.testing.assert_array_equal(again.offsets, indices.offsets)


def test_host_integers_of_64_bits_do_not_wrap_around():
    with jax.enable_x64(False):
        flat = np.array([[[2**32], [1]]])  # wraps to 0 in 32 bits
        u = jup.max_unpool(np.ones((1, 2, 1), np.float32), flat, output_shape=(1, 2))
        np.testing.assert_array_equal(np.ravel(u), [0, 1])
        with pytest.raises(ValueError, match=r"indices\[0, 0, 0\] = "):
            jup.validate_indices(flat, output_shape=(1, 2))
