"""Worked examples of unpooling that are passed around, with the numbers they should give."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxunpool as jup

FOUR_BY_FOUR = jnp.arange(1.0, 17).reshape(1, 1, 4, 4)


def test_two_by_two():
    """The tutorial pads its answer to 4x4; the input was 2x2, and so is the answer."""
    x = jnp.array([[1, 2], [3, 4]])[..., None]
    y, indices = jup.max_pool_with_indices(x, (2, 2))
    assert y.item() == 4
    assert indices.flat.item() == 3  # row 1, column 1
    np.testing.assert_array_equal(jup.max_unpool(y, indices)[..., 0], [[0, 0], [0, 4]])


def test_unpooling_uses_the_index_and_not_the_whole_window():
    """The tutorial's loop fills the window; an unpooled maximum has one place."""
    x = jnp.arange(16.0).reshape(4, 4, 1)
    y, indices = jup.max_pool_with_indices(x, (2, 2))
    assert np.count_nonzero(jup.max_unpool(y, indices)) == 4


def test_pytorchs_four_by_four():
    y, indices = jup.max_pool_with_indices(FOUR_BY_FOUR, (2, 2), data_format="channels_first")
    np.testing.assert_array_equal(y[0, 0], [[6, 8], [14, 16]])
    np.testing.assert_array_equal(indices.flat[0, 0], [[5, 7], [13, 15]])
    expected = [[0, 0, 0, 0], [0, 6, 0, 8], [0, 0, 0, 0], [0, 14, 0, 16]]
    np.testing.assert_array_equal(jup.max_unpool(y, indices)[0, 0], expected)


def test_pytorchs_four_by_four_read_in_a_plane_of_five():
    """Flat indices of a 4-wide plane land elsewhere in a 5-wide one; PoolIndices refuse."""
    y, indices = jup.max_pool_with_indices(FOUR_BY_FOUR, (2, 2), data_format="channels_first")
    u = jup.max_unpool(y, indices.flat, output_shape=(5, 5), data_format="channels_first")
    expected = [
        [0, 0, 0, 0, 0],
        [6, 0, 8, 0, 0],
        [0, 0, 0, 14, 0],
        [16, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(u[0, 0], expected)
    with pytest.raises(ValueError, match="output_shape"):
        jup.max_unpool(y, indices, output_shape=(5, 5))


def test_scatter_adds_where_argmax_repeats():
    """TensorFlow's scatter_nd recipe, with stride 1: one maximum is the maximum of four windows."""
    x = jnp.zeros((3, 3, 1)).at[1, 1, 0].set(5.0)
    y, indices = jup.max_pool_with_indices(x, (2, 2), 1)
    np.testing.assert_array_equal(indices.flat[..., 0], [[4, 4], [4, 4]])
    assert jup.max_unpool(y, indices)[1, 1, 0] == 5
    assert jup.max_unpool(y, indices, duplicates="sum")[1, 1, 0] == 20


def test_tensorflow_addons_default_padding():
    """MaxUnpooling2D() after max_pool_with_argmax(2, 2, "SAME") of an odd size."""
    x = jnp.arange(25.0).reshape(5, 5, 1)
    y, indices = jup.max_pool_with_indices(x, (2, 2), 2, "SAME")
    np.testing.assert_array_equal(y[..., 0], [[6, 8, 9], [16, 18, 19], [21, 23, 24]])
    u = jup.max_unpool(y, indices)
    assert u.shape == x.shape
    np.testing.assert_array_equal(np.flatnonzero(u), [6, 8, 9, 16, 18, 19, 21, 23, 24])
    np.testing.assert_array_equal(u[u > 0], x[u > 0])


def test_zero_filled_unpooling_is_pooled_back_to_itself():
    """A 3x6x6 array, each element in the corner of a 2x2 block, pooled again."""
    x = jnp.tile(jnp.array([1, 1, 2, 2, 3, 3]), (3, 6, 1))
    corner = jup.WindowGeometry.for_input((6, 12, 6), (2, 2))
    indices = jup.PoolIndices(jnp.zeros((3, 6, 6), jnp.uint8), corner)
    u = jup.max_unpool(x, indices)
    assert u.shape == (6, 12, 6)
    np.testing.assert_array_equal(u[::2, ::2], x)
    assert int(u.sum()) == int(x.sum())
    np.testing.assert_array_equal(jup.max_pool(u, (2, 2)), x)
