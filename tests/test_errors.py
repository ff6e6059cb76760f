"""Wrong calls: the exception, and what its message names. Every one at trace time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunpool as jup

X = np.zeros((2, 6, 7, 3), np.float32)
Y, INDICES = jup.max_pool_with_indices(X, (2, 2))
FLAT = INDICES.flat
OTHER = jup.max_pool_with_indices(X, (3, 3))[1]


def pool(*args, **kwargs):
    return lambda: jup.max_pool(*args, **kwargs)


def unpool(*args, **kwargs):
    return lambda: jup.max_unpool(*args, **kwargs)


WRONG_CALLS = {
    # x
    "x text": (pool("photograph", 2), TypeError, "x: expected an array, got str"),
    "x bool": (pool(np.ones((4, 4, 1), bool), (2, 2)), TypeError, "x: .*got bool"),
    "x complex": (pool(np.ones((4, 4, 1), "c8"), (2, 2)), TypeError, "x: .*got complex64"),
    "x float8": (pool(jnp.ones((4, 4, 1), "float8_e4m3fn"), (2, 2)), TypeError, "x: .*float8"),
    "x None": (pool(None, 2), TypeError, "x: expected an array"),
    "rank too low": (
        pool(X[0, 0], (2, 2)),
        ValueError,
        r"window_shape=\(2, 2\).*x of shape \(7, 3\)",
    ),
    "rank of an int": (pool(X[0, 0], 2), ValueError, "window_shape=2 .*x.ndim - 2"),
    "four spatial axes": (pool(np.zeros((2,) * 6), (1,) * 4), ValueError, "1 to 3 spatial axes"),
    "int window, rank 6": (pool(np.zeros((2,) * 6), 1), ValueError, "1 to 3 spatial axes"),
    "empty window": (pool(X, ()), ValueError, "1 to 3 spatial axes"),
    "zero spatial size": (pool(X[:, :0], (2, 2)), ValueError, r"spatial sizes .*\(0, 7\)"),
    # window_shape, strides, dilation
    "window float": (pool(X, (2.0, 2)), TypeError, "window_shape: expected an int, got 2.0"),
    "window text": (pool(X, "22"), TypeError, "window_shape: expected an int, got '22'"),
    "window bool": (pool(X, True), TypeError, "window_shape: expected an int, got True"),
    "window zero": (pool(X, (0, 2)), ValueError, r"window_shape=\(0, 2\): expected at least 1"),
    "window negative": (pool(X, (2, -2)), ValueError, r"window_shape=\(2, -2\)"),
    "window too large": (pool(X, (7, 2)), ValueError, r"window_shape=\(7, 2\).*larger.*\(6, 7\)"),
    "window spread too far": (pool(X, (3, 3), dilation=3), ValueError, r"dilation=\(3, 3\)"),
    "strides zero": (pool(X, (2, 2), 0), ValueError, "strides=0: expected at least 1"),
    "strides length": (
        pool(X, (2, 2), (2, 2, 2)),
        ValueError,
        r"strides=\(2, 2, 2\): .* 2 of them",
    ),
    "strides float": (pool(X, (2, 2), 2.5), TypeError, "strides: expected an int, got 2.5"),
    "strides text": (pool(X, (2, 2), "SAME"), TypeError, "strides: .*got 'SAME'"),
    "dilation zero": (pool(X, (2, 2), dilation=0), ValueError, "dilation=0"),
    "dilation length": (pool(X, (2, 2), dilation=(1,)), ValueError, r"dilation=\(1,\)"),
    # padding
    "padding word": (pool(X, (2, 2), padding="FULL"), ValueError, "padding='FULL'.*'VALID'"),
    "padding length": (pool(X, (2, 2), padding=[(0, 0)]), ValueError, r"padding=\[\(0, 0\)\].*2"),
    "padding triple": (pool(X, (2, 2), padding=((0, 0, 0),) * 2), ValueError, "padding=.*pairs"),
    "padding negative": (pool(X, (2, 2), padding=-1), ValueError, "padding=-1.*at least 0"),
    "padding too wide": (pool(X, (2, 2), padding=2), ValueError, "padding=2.*less than .* 2"),
    "padding float": (pool(X, (2, 2), padding=0.5), TypeError, "padding: expected an int, got 0.5"),
    "padding None": (pool(X, (2, 2), padding=None), TypeError, "padding: .*got None"),
    "padding alone in a window": (
        pool(np.zeros((1, 1)), (2,), 1, 2, dilation=3),
        ValueError,
        "window 0 .*padding alone",
    ),
    # the rest
    "data_format": (
        pool(X, (2, 2), data_format="NHWC"),
        ValueError,
        "data_format='NHWC'.*'channels",
    ),
    "data_format None": (pool(X, (2, 2), data_format=None), ValueError, "data_format=None"),
    "implementation": (pool(X, (2, 2), implementation="cuda"), ValueError, "implementation='cuda'"),
    "implementation type": (pool(X, (2, 2), implementation=1), ValueError, "implementation=1"),
    "no kernel": (
        pool(X, (2, 2), implementation="mosaic_gpu"),
        NotImplementedError,
        "'mosaic_gpu'.*'xla'",
    ),
    # unpooling
    "y text": (unpool("y", INDICES), TypeError, "y: expected an array"),
    "y bool": (unpool(np.ones(Y.shape, bool), INDICES), TypeError, "y: .*got bool"),
    "duplicates": (
        unpool(Y, INDICES, duplicates="first"),
        ValueError,
        "duplicates='first'.*'last'",
    ),
    "unpool implementation": (
        unpool(Y, INDICES, implementation="x"),
        ValueError,
        "implementation='x'",
    ),
    "no unpool kernel": (
        unpool(Y, INDICES, implementation="mosaic_tpu"),
        NotImplementedError,
        "'mosaic_tpu'",
    ),
    "indices of another pooling": (
        unpool(Y, OTHER),
        ValueError,
        r"indices: expected the shape of y, \(2, 3, 3, 3\).*PoolIndices",
    ),
    "indices of another shape": (
        unpool(Y, FLAT[:1], output_shape=(6, 7)),
        ValueError,
        "indices: expected the shape of y",
    ),
    "indices float": (
        unpool(Y, FLAT * 1.0, output_shape=(6, 7)),
        TypeError,
        "indices: expected integers, got float",
    ),
    "indices bool": (unpool(Y, FLAT > 3, output_shape=(6, 7)), TypeError, "indices: .*got bool"),
    "offsets float": (
        unpool(Y, jup.PoolIndices(INDICES.offsets * 1.0, INDICES.geometry)),
        TypeError,
        "indices.offsets: expected integers",
    ),
    "offsets of another geometry": (
        unpool(Y, jup.PoolIndices(INDICES.offsets, OTHER.geometry)),
        ValueError,
        r"indices.offsets: shape \(2, 3, 3, 3\) does not fit",
    ),
    "indices None": (unpool(Y, None, output_shape=(6, 7)), TypeError, "indices: expected an array"),
    "output_shape missing": (unpool(Y, FLAT), ValueError, "output_shape: raw indices"),
    "output_shape rank": (
        unpool(Y, FLAT, output_shape=(6, 7, 3, 1)),
        ValueError,
        "output_shape=.*1 to 3 spatial axes",
    ),
    "output_shape zero": (
        unpool(Y, FLAT, output_shape=(0, 7)),
        ValueError,
        r"output_shape=\(0, 7\)",
    ),
    "output_shape float": (
        unpool(Y, FLAT, output_shape=(6.0, 7)),
        TypeError,
        "output_shape: expected an int, got 6.0",
    ),
    "output_shape too large": (
        unpool(Y, FLAT, output_shape=(2**16, 2**16)),
        ValueError,
        "output_shape: .*int32",
    ),
    "output_shape of others": (
        unpool(Y, INDICES, output_shape=(8, 8)),
        ValueError,
        r"output_shape=\(8, 8\).*\(6, 7\)",
    ),
    "unpool data_format": (
        unpool(Y, FLAT, output_shape=6, data_format="NCHW"),
        ValueError,
        "data_format='NCHW'",
    ),
    "data_format of others": (
        unpool(Y, INDICES, data_format="channels_first"),
        ValueError,
        "made with 'channels_last'",
    ),
    "ceil_mode": (pool(X, (2, 2), ceil_mode="no"), TypeError, "ceil_mode: expected a bool"),
    "x too large for any type": (pool([[2**70], [1]], (2,)), TypeError, "x: expected an array"),
    "window bytes": (pool(X, b"22"), TypeError, "window_shape: expected an int"),
    "indices too large": (
        unpool(Y, 2**70, output_shape=(6, 7)),
        TypeError,
        "indices: expected an array",
    ),
    "indices without geometry": (
        unpool(Y, jup.PoolIndices(INDICES.offsets, None)),
        TypeError,
        "indices.geometry: expected a WindowGeometry",
    ),
    "offsets in a list": (
        unpool(Y, jup.PoolIndices([0], INDICES.geometry)),
        TypeError,
        "indices.offsets: expected an array, got list",
    ),
    # indices by themselves
    "from_flat without geometry": (
        lambda: jup.PoolIndices.from_flat(FLAT, (2, 2)),
        TypeError,
        "geometry: expected a WindowGeometry",
    ),
    "validate float offsets": (
        lambda: jup.validate_indices(jup.PoolIndices(INDICES.offsets * 1.0, INDICES.geometry)),
        TypeError,
        "indices.offsets: expected integers",
    ),
    "validate shape float": (
        lambda: jup.validate_indices(FLAT, output_shape=(6.0, 7)),
        TypeError,
        "output_shape: expected an int",
    ),
    "validate shape negative": (
        lambda: jup.validate_indices(FLAT, output_shape=(-6, -7)),
        ValueError,
        "output_shape=",
    ),
    "from_flat float": (
        lambda: jup.PoolIndices.from_flat(FLAT * 1.0, INDICES.geometry),
        TypeError,
        "flat: .*integers",
    ),
    "from_flat shape": (
        lambda: jup.PoolIndices.from_flat(FLAT[:, :2], INDICES.geometry),
        ValueError,
        "flat: shape",
    ),
    "from_flat outside": (
        lambda: jup.PoolIndices.from_flat(FLAT.at[1, 2, 0, 1].set(0), INDICES.geometry),
        ValueError,
        r"flat\[1, 2, 0, 1\] = 0: expected an element of its window",
    ),
    "validate outside": (
        lambda: jup.validate_indices(FLAT.at[0, 0, 1, 2].set(42), output_shape=(6, 7)),
        ValueError,
        r"indices\[0, 0, 1, 2\] = 42: expected a flat position in 0..41 of a \(6, 7\)",
    ),
    "validate negative": (
        lambda: jup.validate_indices(FLAT - 9, output_shape=(6, 7)),
        ValueError,
        "are wrong",
    ),
    "validate without shape": (lambda: jup.validate_indices(FLAT), ValueError, "output_shape: "),
    "validate with shape": (
        lambda: jup.validate_indices(INDICES, output_shape=(6, 7)),
        ValueError,
        "output_shape=",
    ),
    "validate float": (
        lambda: jup.validate_indices(1.5, output_shape=(6, 7)),
        TypeError,
        "indices: .*integers",
    ),
    "validate offsets": (
        lambda: jup.validate_indices(jup.PoolIndices(INDICES.offsets + 4, INDICES.geometry)),
        ValueError,
        r"indices\[0, 0, 0, 0\] = 4: expected an offset to an element of its window",
    ),
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_a_wrong_call_says_what_is_wrong(name):
    call, exception, message = WRONG_CALLS[name]
    with pytest.raises(exception, match=message) as caught:
        call()
    assert type(caught.value) is exception
    assert "\n" not in str(caught.value)


def test_wrong_calls_raise_while_tracing():
    abstract = jax.ShapeDtypeStruct(X.shape, X.dtype)
    with pytest.raises(ValueError, match="window_shape"):
        jax.eval_shape(lambda x: jup.max_pool(x, (7, 2)), abstract)
    with pytest.raises(TypeError, match="window_shape: expected an int"):
        jax.jit(lambda k: jup.max_pool(X, (k, 2)))(2)
    with pytest.raises(TypeError, match="indices: expected integers"):
        jax.eval_shape(lambda y: jup.max_unpool(y, y, output_shape=(6, 7)), abstract)
    y = jax.ShapeDtypeStruct((2, 3, 4, 3), X.dtype)
    with pytest.raises(ValueError, match="indices: expected the shape of y"):
        jax.eval_shape(jup.max_unpool, y, INDICES)


@pytest.mark.parametrize("bad", [-1, -43, 42, 2**31 - 1, -(2**31), 2**40, 2**62])
@pytest.mark.parametrize("duplicates", ["last", "sum"])
def test_raw_indices_out_of_range_are_dropped(bad, duplicates):
    flat = np.arange(4).reshape(2, 2, 1).astype(np.int64)
    flat[0, 1] = bad
    y = np.arange(1.0, 5).reshape(2, 2, 1)
    unpool = jax.jit(
        lambda y, flat: jup.max_unpool(y, flat, output_shape=(6, 7), duplicates=duplicates)
    )
    u, pullback = jax.vjp(lambda y: unpool(y, flat), y)
    expected = np.zeros(42)
    expected[[0, 2, 3]] = [1, 3, 4]
    np.testing.assert_array_equal(np.ravel(u), expected)
    np.testing.assert_array_equal(np.ravel(pullback(jnp.ones_like(u))[0]), [1, 0, 1, 1])


def test_unsigned_and_narrow_raw_indices():
    y = np.ones((1, 2, 1), np.float32)
    for dtype in (np.uint8, np.int8, np.int16, np.uint32, np.uint64):
        u = jup.max_unpool(y, np.array([[[1], [3]]], dtype), output_shape=(2, 2))
        np.testing.assert_array_equal(np.ravel(u), [0, 1, 0, 1])
    # A plane with more elements than the index type can name.
    u = jup.max_unpool(y, np.array([[[1], [100]]], np.int8), output_shape=(20, 20))
    np.testing.assert_array_equal(np.flatnonzero(u), [1, 100])
