"""Worked examples of unpooling that are passed around, with the numbers they should give."""

import jax
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


def test_zero_filled_and_fixed_unpooling_agree():
    """The same 3x6x6 array by a fixed position, by the Kronecker product, and pooled back."""
    x = jnp.tile(jnp.array([1, 1, 2, 2, 3, 3]), (3, 6, 1))
    u = jup.bed_of_nails_unpool(x, (2, 2))
    assert u.shape == (6, 12, 6)
    np.testing.assert_array_equal(u[::2, ::2], x)
    assert int(u.sum()) == int(x.sum())
    np.testing.assert_array_equal(jup.fixed_unpool(x, jnp.array([[1, 0], [0, 0]])), u)
    np.testing.assert_array_equal(jup.max_pool(u, (2, 2)), x)


def test_filling_with_copies_and_other_strides():
    x = jnp.arange(1, 7).reshape(2, 3, 1)
    u = jup.nearest_unpool(x, (1, 3))
    np.testing.assert_array_equal(u[..., 0], np.repeat(x[..., 0], 3, 1))
    u = jup.nearest_unpool(x, (2, 2), (2, 3))
    np.testing.assert_array_equal(u[0, :, 0], [1, 1, 0, 2, 2, 0, 3, 3])


def test_nearest_unpooling_of_the_tutorial(rng):
    pool = rng.standard_normal((2, 3, 4, 5))
    expected = np.zeros((2, 3, 12, 15))
    for i, j in np.ndindex(12, 15):
        expected[:, :, i, j] = pool[:, :, i // 3, j // 3]
    u = jup.nearest_unpool(pool, 3, data_format="channels_first")
    np.testing.assert_array_equal(u, expected)


def test_average_unpooling_restores_eight_by_nine():
    """A (8, 9) input pooled by (2, 3); every block of the result has its average."""
    pooled = jnp.array(
        [
            [-0.6849, -0.1410, 0.3709],
            [0.3756, -0.0544, 0.1330],
            [-0.1566, -0.0414, 0.1511],
            [-0.0715, 0.4222, -0.1394],
        ]
    )[None, None]
    first = {"data_format": "channels_first"}
    u = jup.avg_unpool(pooled, (2, 3), **first)
    assert u.shape == (1, 1, 8, 9)
    np.testing.assert_array_equal(u[0, 0], np.kron(pooled[0, 0], np.ones((2, 3))))
    for mode in ("nearest", "area"):  # the text says area, its call is nearest: here they agree
        np.testing.assert_array_equal(jup.interpolate(pooled, (8, 9), mode=mode, **first), u)
    np.testing.assert_allclose(jup.avg_pool(u, (2, 3), **first), pooled, rtol=1e-6)


@pytest.mark.few(1)
@pytest.mark.parametrize("size", [(9, 10), (8, 11)])
def test_average_unpooling_needs_no_crop(size):
    """Padded or indivisible pooling, whose result the post crops by hand."""
    x = jnp.arange(float(np.prod(size))).reshape(1, 1, *size)
    for options in ({"padding": 1}, {"padding": "SAME"}, {"ceil_mode": True}, {}):
        options |= {"window_shape": (2, 3), "data_format": "channels_first"}
        y = jup.avg_pool(x, **options)
        assert jup.avg_unpool(y, output_shape=size, **options).shape == x.shape


def test_unpooling_by_the_gradient_of_pooling(rng):
    """pool_input says where, unpool_input says what, and gradients flow to the latter."""
    x, maps = rng.standard_normal((2, 9, 8, 3)), rng.standard_normal((2, 5, 4, 3))
    pool = lambda x: jup.max_pool(x, (2, 2), padding="SAME")
    expected = jax.vjp(pool, x)[1](maps)[0]
    unpool = lambda maps: jup.max_unpool_like(x, maps, (2, 2), padding="SAME")
    np.testing.assert_array_equal(unpool(maps), expected)
    # Its own gradient reads the same places (TensorFlow's max_pool_grad_grad).
    du = rng.standard_normal(x.shape)
    y, indices = jup.max_pool_with_indices(x, (2, 2), padding="SAME")
    read = du.reshape(-1)[jup.interop.to_tensorflow(indices, include_batch_in_index=True)]
    np.testing.assert_array_equal(jax.vjp(unpool, maps)[1](du)[0], read)
    np.testing.assert_array_equal(pool(unpool(np.abs(y))), np.abs(y))


def test_no_gradient_of_a_network_with_unpooling_is_zero(rng):
    """A convolution, pooling, unpooling by the pooled input, twice: all weights learn."""
    x = rng.standard_normal((4, 12, 12, 2))
    weights = [rng.standard_normal((3, 3, i, o)) / 5 for i, o in ((2, 4), (4, 6), (6, 4), (4, 2))]

    def conv(x, w):
        y = jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.nn.relu(y)

    def loss(weights):
        a = conv(x, weights[0])
        b = conv(jup.max_pool(a, 2), weights[1])
        c = conv(jup.max_unpool_like(b, jup.max_pool(b, 2), 2), weights[2])
        return ((conv(jup.max_unpool_like(a, c, 2), weights[3]) - x) ** 2).mean()

    for gradient in jax.grad(loss)(weights):
        assert (np.abs(gradient) > 0).mean() > 0.9


@pytest.mark.thorough
def test_miniature_cedn_learns():
    """The recipe: 12x20x20x3, two pools, ten steps of Adam at rate 1, dropout one half."""
    optax = pytest.importorskip("optax")
    rng = np.random.default_rng(123)
    x = np.where(rng.random((12, 20, 20, 3)) > 0.5, 1.0, -1.0).astype(np.float32)
    labels = np.where(rng.random((12, 20, 20, 1)) > 0.5, 1.0, 0.0).astype(np.float32)
    shapes = {"conv1": (3, 16), "conv2": (16, 32), "conv3": (32, 32), "deconv2": (32, 16)}
    shapes["deconv1"] = (16, 1)
    keys = jax.random.split(jax.random.key(123), 2 * len(shapes))
    parameters = {
        name: (
            jax.random.normal(key, (3, 3, *size), jnp.float32),
            jax.random.normal(other, size[1:], jnp.float32),
        )
        for (name, size), key, other in zip(shapes.items(), keys[::2], keys[1::2])
    }

    def conv(x, parameters):
        kernel, bias = parameters
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.nn.relu(y + bias)

    def network(p, key):
        pool = lambda x: jup.max_pool_with_argmax_and_mask(x, 2, padding="SAME")
        y, first, mask = pool(conv(x, p["conv1"]))
        assert mask.shape == (12, 20, 20, 16)
        y, second, _ = pool(conv(y, p["conv2"]))
        y = jup.max_unpool(conv(y, p["conv3"]), second)
        y = jax.nn.relu(jup.conv_transpose(y, *p["deconv2"], padding=1))
        if key is not None:
            y = jnp.where(jax.random.bernoulli(key, 0.5, y.shape), y * 2, 0)
        return jup.conv_transpose(jup.max_unpool(y, first), *p["deconv1"], padding=1)

    def loss(p, key=None):
        return optax.sigmoid_binary_cross_entropy(network(p, key), labels).sum()

    optimizer = optax.adam(1.0)

    @jax.jit
    def step(p, state, key):
        updates, state = optimizer.update(jax.grad(loss)(p, key), state)
        return optax.apply_updates(p, updates), state

    state, before = optimizer.init(parameters), float(jax.jit(loss)(parameters))
    for number in range(10):
        parameters, state = step(parameters, state, jax.random.key(number))
    assert float(jax.jit(loss)(parameters)) < 0.7 * before


def test_inverse_layer(rng):
    """Lasagne's: the transposed Jacobian of a pooling layer puts values where indices would."""
    x, maps = rng.standard_normal((1, 8, 8, 4)), rng.standard_normal((1, 4, 4, 4))
    _, indices = jup.max_pool_with_indices(x, (2, 2))
    undo = jup.inverse(lambda x: jup.max_pool(x, (2, 2)), x)
    np.testing.assert_array_equal(undo(maps), jup.max_unpool(maps, indices))
