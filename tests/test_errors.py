"""Wrong calls: the exception, and what its message names. Every one at trace time."""

import functools

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


def call(name, *args, **kwargs):
    function = functools.reduce(getattr, name.split("."), jup)
    return lambda: function(*args, **kwargs)


WRONG_CALLS = {
    # x
    "x text": (pool("photograph", 2), TypeError, "x: expected an array, got str"),
    "x complex": (
        pool(np.ones((4, 4, 1), "c8"), (2, 2)),
        TypeError,
        "x: .*got complex64, which has no order; pool_at reads",
    ),
    "x without zero": (
        pool(jnp.ones((4, 4, 1), "float8_e8m0fnu"), (2, 2)),
        TypeError,
        "x: expected a type that has a zero, got float8_e8m0fnu",
    ),
    "x float4": (pool(jnp.ones((4, 4, 1), "float4_e2m1fn"), (2, 2)), TypeError, "x: .*float4"),
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
        pool(X.astype(np.int32), (2, 2), implementation="mosaic_gpu"),
        NotImplementedError,
        "'mosaic_gpu' has no kernel for this select: .*int32.*'xla'",
    ),
    # reading
    "at text": (call("pool_at", "x", INDICES), TypeError, "x: expected an array"),
    "at another array": (
        call("pool_at", X[:, 1:], INDICES),
        ValueError,
        r"x: expected the shape \(2, 6, 7, 3\) that the indices are for, got \(2, 5, 7, 3\): Pool",
    ),
    "at raw channels": (
        call("pool_at", X, FLAT[..., :1]),
        ValueError,
        r"indices: expected the shape of x, \(2, 6, 7, 3\), but .* 2 .*, got \(2, 3, 3, 1\)",
    ),
    "at raw rank": (call("pool_at", X, FLAT[0]), ValueError, "indices: expected the shape of x"),
    "at floats": (call("pool_at", X, FLAT * 1.0), TypeError, "indices: expected integers"),
    "at axes": (
        call("pool_at", X, INDICES, spatial_ndim=1),
        ValueError,
        "spatial_ndim=1: the PoolIndices were made for 2",
    ),
    "at raw axes": (call("pool_at", X, FLAT, spatial_ndim=4), ValueError, "spatial_ndim=4"),
    "at layout": (
        call("pool_at", X, INDICES, data_format="channels_first"),
        ValueError,
        "data_format='channels_first': the PoolIndices were made with 'channels_last'",
    ),
    "at layout of raw": (
        call("pool_at", X, FLAT, data_format="NCHW"),
        ValueError,
        "data_format='NCHW'",
    ),
    "at implementation": (
        call("pool_at", X, INDICES, implementation="cuda"),
        ValueError,
        "implementation='cuda'",
    ),
    # unpooling
    "y text": (unpool("y", INDICES), TypeError, "y: expected an array"),
    "y float4": (unpool(Y.astype("float4_e2m1fn"), INDICES), TypeError, "y: .*got float4"),
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
        unpool(Y, FLAT, output_shape=(6, 7), implementation="mosaic_tpu"),
        NotImplementedError,
        "'mosaic_tpu' has no kernel for this scatter: indices without a window",
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


# One row per wrong call of the other functions: name, arguments, keywords, exception, message.
KEY = jax.random.key(0)
KERNEL = np.zeros((3, 3, 3, 4), np.float32)
INTEGERS = np.zeros((4, 4, 1), np.int32)
KEYS = jax.random.split(jax.random.key(0), 16).reshape(4, 4, 1)
GEOMETRY = INDICES.geometry
NCHW = np.moveaxis(np.asarray(FLAT), -1, 1)
TWO = (2, 2)
HALVES = np.full((2, 3, 2), 0.5, np.float32)
MORE = [
    ("avg_pool", (KEYS, TWO), {}, TypeError, "x: expected numbers .*got key"),
    ("avg_pool", (X, TWO), {"divisor_override": 0}, ValueError, "divisor_override=0: expected"),
    ("avg_pool", (X, TWO), {"divisor_override": 2**40}, ValueError, "divisor_override=.*magnitude"),
    ("avg_pool", (X, TWO), {"divisor_override": 2.5}, TypeError, "divisor_override: .*got 2.5"),
    ("fractional_avg_pool", (X, TWO), {}, ValueError, "key, random_samples, sequences: expected"),
    ("fractional_avg_pool", (X,), {"key": KEY}, ValueError, "output_shape=None: .*output_ratio"),
    ("fractional_avg_pool", (X, TWO), {"key": KEY, "output_ratio": 0.5},
     ValueError, "output_ratio=0.5: not together with output_shape"),
    ("fractional_avg_pool", (X,), {"key": KEY, "output_ratio": 1.5},
     ValueError, "output_ratio=1.5: expected numbers above 0 and up to 1"),
    ("fractional_avg_pool", (X,), {"key": KEY, "output_ratio": "half"},
     TypeError, "output_ratio: expected a number"),
    ("fractional_avg_pool", (X,), {"key": KEY, "output_ratio": 0.1},
     ValueError, r"output_ratio=0.1: leaves nothing of \(6, 7\)"),
    ("fractional_avg_pool", (X, TWO), {"key": KEY, "implementation": "native_cpu"},
     NotImplementedError, "implementation='native_cpu': averaging over uneven windows"),
    ("avg_pool", ("x", TWO), {}, TypeError, "x: expected an array, got str"),
    ("avg_pool", (X, (7, 2)), {}, ValueError, r"window_shape=\(7, 2\).*larger"),
    ("avg_pool", (X, TWO), {"count_include_pad": 1}, TypeError, "count_include_pad: .*got 1"),
    ("avg_pool", (X, TWO), {"implementation": "cuda"}, ValueError, "implementation='cuda'"),
    ("avg_pool", (X, TWO, 2, 2), {}, ValueError, "padding=2.*less than"),
    ("avg_unpool", (KEYS, TWO), {}, TypeError, "y: expected numbers .*got key"),
    ("avg_unpool", (Y, TWO), {"mode": "sum"}, ValueError, "mode='sum'.*'mean', 'adjoint'"),
    ("avg_unpool", (Y, TWO), {"output_shape": (9, 7)}, ValueError,
     r"output_shape=\(9, 7\): .*\(4, 3\) windows, but y .*\(3, 3\)"),
    ("avg_unpool", (Y, TWO), {"output_shape": (6.0, 7)}, TypeError, "output_shape: .*got 6.0"),
    ("avg_unpool", (Y, TWO), {"output_shape": (6,)}, ValueError, r"output_shape=\(6,\)"),
    ("avg_unpool", (Y[0, 0], TWO), {}, ValueError, r"window_shape=\(2, 2\) does not fit y"),
    ("avg_unpool", (Y[:, :1, :1], (3, 3), 1, 2), {}, ValueError, "padding=2.*nothing but padding"),
    ("nearest_unpool", (KEYS, TWO), {}, TypeError, "y: .*got key"),
    ("nearest_unpool", (KEYS, TWO), {"duplicates": "mean"}, TypeError, "y: .*got key"),
    ("nearest_unpool", (Y, TWO), {"duplicates": "sum"}, ValueError, "duplicates='sum'.*'mean'"),
    ("nearest_unpool", (Y, TWO, 0), {}, ValueError, "strides=0: expected at least 1"),
    ("nearest_unpool", (Y, TWO), {"output_shape": (5, 7)}, ValueError, r"output_shape=\(5, 7\)"),
    ("fixed_unpool", (INTEGERS, np.ones(TWO)), {}, TypeError, "pattern: expected integers"),
    ("fixed_unpool", (Y > 0, np.ones(TWO, int)), {}, TypeError, "pattern: expected booleans"),
    ("fixed_unpool", (Y, np.ones(TWO, "c8")), {}, TypeError, "pattern: expected real numbers"),
    ("fixed_unpool", (Y, np.ones(())), {}, ValueError, "pattern: expected 1 to 3 axes"),
    ("fixed_unpool", (Y, np.ones((2, 0))), {}, ValueError, "pattern: .*none of size 0"),
    ("fixed_unpool", (Y, "pattern"), {}, TypeError, "pattern: expected an array, got str"),
    ("fixed_unpool", (Y, np.ones(TWO)), {"dilation": 0}, ValueError, "dilation=0"),
    ("bed_of_nails_unpool", (Y, TWO), {"position": (0, 2)}, ValueError,
     r"position=\(0, 2\): expected less than window_shape=\(2, 2\)"),
    ("bed_of_nails_unpool", (Y, TWO), {"position": -1}, ValueError, "position=-1: .*at least 0"),
    ("bed_of_nails_unpool", (Y, TWO), {"position": 0.5}, TypeError, "position: .*got 0.5"),
    ("bed_of_nails_unpool", (Y, TWO), {"data_format": "NHWC"}, ValueError, "data_format='NHWC'"),
    ("max_unpool_like", (X, Y[:1], TWO), {}, ValueError,
     r"unpool_input: expected the shape \(2, 3, 3, 3\)"),
    ("max_unpool_like", ("x", Y, TWO), {}, TypeError, "pool_input: expected an array"),
    ("max_unpool_like", (X, None, TWO), {}, TypeError, "unpool_input: expected an array"),
    ("max_unpool_like", (X, Y, TWO), {"duplicates": "mean"}, ValueError, "duplicates='mean'"),
    ("max_pool_with_argmax_and_mask", (X * 1j, TWO), {}, TypeError, "x: .*pool_at"),
    ("max_pool_with_argmax_and_mask", (X, 9), {}, ValueError, "window_shape=.*larger"),
    ("min_pool", (np.ones((4, 4, 1), "c8"), TWO), {}, TypeError, "x: .*got complex64"),
    ("min_pool", (X, TWO), {"padding": 2}, ValueError, "padding=2.*less than"),
    ("min_pool_with_indices", ("x", TWO), {}, TypeError, "x: expected an array, got str"),
    ("min_pool_with_indices", (X, TWO), {"ceil_mode": 1}, TypeError, "ceil_mode: .*got 1"),
    ("max_pool_with_indices", (X, TWO), {"ceil_mode": None}, TypeError, "ceil_mode: .*got None"),
    ("adaptive_max_pool", (X, (0, 3)), {},
     ValueError, r"output_shape=\(0, 3\): expected at least 1"),
    ("adaptive_max_pool", (X, (3,) * 4), {}, ValueError, "output_shape=.*1 to 3 spatial axes"),
    ("adaptive_max_pool", (X, 2.5), {}, TypeError, "output_shape: expected an int, got 2.5"),
    ("adaptive_max_pool", (X[:, :0], TWO), {}, ValueError, "x: spatial sizes"),
    ("adaptive_max_pool_with_indices", (X, None), {}, TypeError, "output_shape: .*got None"),
    ("adaptive_max_pool_with_indices", (X, TWO), {"data_format": 1}, ValueError, "data_format=1"),
    ("adaptive_avg_pool", (KEYS, TWO), {}, TypeError, "x: expected numbers"),
    ("adaptive_avg_pool", (X, "7"), {}, TypeError, "output_shape: expected an int, got '7'"),
    ("global_avg_pool", (KEYS,), {}, TypeError, "x: expected numbers"),
    ("global_avg_pool", (X[0, 0],), {}, ValueError, "spatial_ndim=None does not fit x"),
    ("global_avg_pool", (X,), {"spatial_ndim": 4}, ValueError, "spatial_ndim=4 does not fit"),
    ("global_max_pool", (X,), {"spatial_ndim": 1.5}, TypeError, "spatial_ndim: .*got 1.5"),
    ("global_max_pool", (None,), {}, TypeError, "x: expected an array"),
    ("global_max_pool_with_indices", (X,), {"data_format": "NCHW"}, ValueError, "data_format="),
    ("lp_pool", (X, 0, TWO), {}, ValueError, "norm_type=0: expected more than 0"),
    ("lp_pool", (X, np.array(0.0), TWO), {}, ValueError, "norm_type=0.0: expected more than 0"),
    ("lp_pool", (X, jnp.array(-1.0), TWO), {}, ValueError, "norm_type=-1.0: expected more than 0"),
    ("lp_pool", (X, "2", TWO), {}, TypeError, "norm_type: expected a number .*got '2'"),
    ("lp_pool", (X, jnp.ones(3), TWO), {}, TypeError, r"norm_type: .*got float\d\d\[3\]"),
    ("lp_pool", (X, np.nan, TWO), {}, ValueError, "norm_type=nan"),
    ("lp_pool", (INTEGERS, 2, TWO), {}, TypeError, "x: expected floats"),
    ("fractional_max_pool", (X, TWO, (4, 4)), {}, ValueError, "key, random_samples.*got none"),
    ("fractional_max_pool", (X, TWO, (4, 4)), {"key": KEY, "random_samples": HALVES}, ValueError,
     "got key and random_samples"),
    ("fractional_max_pool", (X, TWO, None), {"key": KEY}, ValueError, "output_shape=None"),
    ("fractional_max_pool", (X, TWO, (6, 4)), {"key": KEY},
     ValueError, "at most 5 windows of size 2"),
    ("fractional_max_pool", (X, None, (7, 4)), {"key": KEY}, ValueError, "at most the input's"),
    ("fractional_max_pool", (X, TWO, (4, 4)), {"key": 0},
     TypeError, "key: expected a jax.random key"),
    ("fractional_max_pool", (X, TWO, (4, 4)), {"random_samples": HALVES[:1]}, ValueError,
     r"random_samples: expected shape \(2, 3, 2\)"),
    ("fractional_max_pool", (X, TWO, (4, 4)), {"random_samples": HALVES > 0}, TypeError,
     "random_samples: expected floats"),
    ("fractional_max_pool", (X, None, (4, 4)), {"random_samples": HALVES}, ValueError,
     "random_samples: expected a window_shape"),
    ("fractional_max_pool", (X, TWO, (4, 4)), {"key": KEY, "overlapping": True}, ValueError,
     "overlapping=True: only without a window"),
    ("fractional_max_pool", (X, None, (4, 4)), {"key": KEY, "pseudo_random": 1}, TypeError,
     "pseudo_random: expected a bool"),
    ("fractional_max_pool_with_indices", (X, TWO, None), {"sequences": [[0, 6], [0, 7]]},
     ValueError, r"window_shape=\(2, 2\): expected None with sequences"),
    ("fractional_max_pool_with_indices", (X, None), {"sequences": [[0, 6], [0, 3, 6]]}, ValueError,
     r"sequences\[1\]: expected increasing integers from 0 to 7"),
    ("fractional_max_pool_with_indices", (X, None), {"sequences": [[0, 6], [0, 7.5]]}, TypeError,
     r"sequences\[1\]: expected a vector of integers"),
    ("fractional_max_pool_with_indices", (X, None, (2, 2)), {"sequences": [[0, 6], [0, 7]]},
     ValueError, r"output_shape=\(2, 2\): sequences have \(1, 1\)"),
    ("fractional_max_pool_with_indices", (X, None), {"sequences": 3}, TypeError, "sequences: "),
    ("fractional_max_pool", (X, TWO, (4, 4)), {"random_samples": HALVES + 0.5}, ValueError,
     r"random_samples\[0, 0, 0\] = 1.0: expected a number in \[0, 1\)"),
    ("fractional_max_pool", (X, TWO, (4, 4)), {"key": np.zeros(3, np.uint32)}, TypeError, "key: "),
    ("fractional_max_pool", (X, None), {"sequences": [5, 6]}, TypeError, r"sequences\[0\]: "),
    ("fractional_max_pool", (X, None), {"sequences": [np.array([0, 5, 3, 6], "u1"), [0, 7]]},
     ValueError, r"sequences\[0\]: expected increasing"),
    ("Plane", (), {"input_shape": [4, 4]}, TypeError, "input_shape: expected a tuple of ints"),
    ("Plane", (), {"input_shape": (4, 0)}, ValueError, r"input_shape=\(4, 0\): expected"),
    ("Plane", (), {"input_shape": (4,), "data_format": "NHWC"}, ValueError, "data_format='NHWC'"),
    ("fixed_unpool", (Y[0], np.ones((2,) * 3)), {}, ValueError, "pattern: shape .* 3 axes"),
    ("max_unpool_like", (X[0, 0], Y, TWO), {}, ValueError, "does not fit pool_input of shape"),
    ("max_pool", (X, TWO, 10**20), {}, ValueError, "strides=1000.*at most 2147483647"),
    ("interpolate", (X, None, 1e300), {}, ValueError, "scale=1e.300: gives no usable"),
    ("interpolate", (KEYS, TWO), {"mode": "area"}, TypeError, "x: expected numbers"),
    ("interpolate", (X,), {}, ValueError, "output_shape=None, scale=None: expected one"),
    ("interpolate", (X, TWO, 2.0), {}, ValueError, r"output_shape=\(2, 2\), scale=2.0"),
    ("interpolate", (X, TWO), {"mode": "bilinear"}, ValueError, "mode='bilinear'.*'linear'"),
    ("interpolate", (X, TWO), {"align_corners": True},
     ValueError, "align_corners=True: .*'nearest'"),
    ("interpolate", (X, TWO), {"mode": "area", "antialias": True}, ValueError, "antialias=True: "),
    ("interpolate", (X, TWO), {"mode": "linear", "antialias": 1}, TypeError, "antialias: .*bool"),
    ("interpolate", (X, TWO), {"mode": "linear", "coordinates": "tf"},
     ValueError, "coordinates='tf'"),
    ("interpolate", (X, TWO), {"mode": "cubic", "coordinates": "half_pixel", "align_corners": True},
     ValueError, "coordinates='half_pixel': contradicts"),
    ("interpolate", (X, TWO), {"mode": "cubic", "coordinates": "asymmetric", "antialias": True},
     ValueError, "antialias=True: not for coordinates='asymmetric'"),
    ("interpolate", (X, None, "2"), {}, TypeError, "scale: expected a number"),
    ("interpolate", (X, None, -1), {}, ValueError, "scale=-1: expected finite numbers above 0"),
    ("interpolate", (X, None, 0.1), {}, ValueError, "scale=0.1: gives no usable"),
    ("interpolate", (X, None, (2,) * 4), {}, ValueError, "scale=.*1 to 3 spatial axes"),
    ("conv_general_dilated", (X, KERNEL[0], (1, 1), "SAME"), {}, TypeError, "lhs and rhs ndim"),
    ("conv_transpose", (X, KERNEL[0, 0, 0]), {}, ValueError, "kernel: expected 1 to 3 window axes"),
    ("conv_transpose", (X[0, 0], KERNEL), {}, ValueError, "x: expected 2 spatial axes"),
    ("conv_transpose", (X[..., :2], KERNEL), {}, ValueError, "kernel: .*takes 3 input channels, x"),
    ("conv_transpose", (X, KERNEL.astype(np.float64)), {}, TypeError, "kernel: expected float32"),
    ("conv_transpose", (X, KERNEL, np.zeros(3, np.float32)), {}, ValueError,
     r"bias: expected shape \(4,\), got \(3,\)"),
    ("conv_transpose", (X, KERNEL), {"groups": 2},
     ValueError, "groups=2: expected a divisor of the 3"),
    ("conv_transpose", (X, KERNEL), {"output_padding": 1},
     ValueError, "output_padding=1: .*less than"),
    ("max_pool_with_packed_indices", (X * 1j, TWO), {}, TypeError, "x: .*got complex64"),
    ("max_pool_with_packed_indices", (X, (6, 3)), {}, ValueError,
     r"window_shape=\(6, 3\): expected at most 16 elements to pack, got 18"),
    ("conv_transpose", (X, KERNEL, None, 0), {}, ValueError, "strides=0"),
    ("conv_transpose", (X, KERNEL, None, 1, 4), {}, ValueError, "padding=4: leaves nothing"),
    ("conv_transpose", (X, KERNEL, None, 1, "FULL"), {}, ValueError, "padding='FULL': expected"),
    ("conv_transpose", (X, KERNEL, None, 1, ((0, 1), (2, 3), (0, 0))), {},
     ValueError, r"padding=\(\(0, 1\), .*expected 'VALID', 'SAME', 'SAME_LOWER', an int, 2 ints"),
    ("conv_transpose", (X, KERNEL, None, 1, (-1, 0)), {}, ValueError, r"padding=\(-1, 0\)"),
    ("conv_transpose", (X, KERNEL, None, 2, "SAME"), {"output_padding": 1},
     ValueError, "output_padding=1: not together with padding='SAME'"),
    ("conv_transpose", (X, KERNEL, None, 2), {"output_shape": (9, 9, 9)},
     ValueError, "output_shape=.*expected an int or 2 of them"),
    ("conv_transpose", (X, KERNEL, None, 2, "SAME"), {"output_shape": 50},
     ValueError, "output_shape=50: a convolution with padding='SAME' maps it to"),
    ("inverse", (3, X), {}, TypeError, "fn: expected a function, got int"),
    ("inverse", (abs, INTEGERS), {}, TypeError, "x: expected floats, got int32"),
    ("inverse", (abs, {"a": "b"}), {}, TypeError, r"x\['a'\]: expected floats, got str"),
    ("interop.from_torch", (NCHW + 0.5, GEOMETRY), {}, TypeError, "indices: expected integers"),
    ("interop.from_torch", (NCHW[0], (2, 2)), {}, TypeError, "geometry: expected a WindowGeometry"),
    ("interop.from_torch", (np.asarray(FLAT)[..., :2], GEOMETRY), {}, ValueError, "indices: shape"),
    ("interop.from_torch", (np.where(NCHW[1, 2, 0, 1] == NCHW, 41, NCHW), GEOMETRY), {}, ValueError,
     r"indices\[0, 0, 0, 1\] = 41: expected an element of its window"),
    ("interop.to_torch", (FLAT,), {}, TypeError, "indices: expected PoolIndices, got"),
    ("interop.from_tensorflow", (np.asarray(FLAT), GEOMETRY), {}, ValueError,
     r"argmax\[0, 0, 0, 1\] = 0: expected"),
    ("interop.from_tensorflow", (np.asarray(FLAT), GEOMETRY), {"include_batch_in_index": "yes"},
     TypeError, "include_batch_in_index: expected a bool"),
    ("interop.to_tensorflow", (None,), {},
     TypeError, "indices: expected PoolIndices, got NoneType"),
    ("interop.from_onnx", (NCHW, GEOMETRY), {}, ValueError, r"indices\[0, 1, 0, 0\] = 0: expected"),
    ("interop.from_onnx", (NCHW, GEOMETRY), {"storage_order": 2}, ValueError, "storage_order=2"),
    ("interop.from_onnx", ("NCHW", GEOMETRY), {}, TypeError, "indices: expected"),
    ("interop.to_onnx", (INDICES,), {"storage_order": "F"}, TypeError, "storage_order: .*got 'F'"),
    ("interpolate", (X,), {"output_shape": TWO, "implementation": "mosaic_gpu"},
     NotImplementedError, "'mosaic_gpu': resampling has no kernels"),
    ("adaptive_max_pool", (X, (4, 5)), {"implementation": "mosaic_tpu"},
     NotImplementedError, "'mosaic_tpu': pooling over uneven windows has no kernels"),
    ("explain", (None,), {}, TypeError, "fn: expected a function, got NoneType"),
    ("explain", (jnp.sin, X), {"platform": "cuda"}, ValueError, "platform='cuda'.*'gpu'"),
]  # fmt: skip
for number, (name, args, kwargs, exception, message) in enumerate(MORE):
    WRONG_CALLS[f"{number} {name}"] = call(name, *args, **kwargs), exception, message


def test_every_public_function_has_a_wrong_call():
    named = {name for name, *_ in MORE}
    named |= {"max_pool", "max_unpool", "pool_at", "validate_indices"}
    public = {name for name in jup.__all__ if callable(getattr(jup, name))}
    public |= {f"interop.{name}" for name in jup.interop.__all__}
    classes = {"PackedIndices", "PoolIndices", "WindowGeometry"}
    assert public - named == {*classes, "backends", "interop.load_torch"}  # test_load_torch.py


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
    with pytest.raises(TypeError, match=r"window_shape: expected a static value, got .a traced"):
        jax.jit(lambda k: jup.max_pool(X, (k, 2)))(2)
    with pytest.raises(TypeError, match="indices: expected integers"):
        jax.eval_shape(lambda y: jup.max_unpool(y, y, output_shape=(6, 7)), abstract)
    y = jax.ShapeDtypeStruct((2, 3, 4, 3), X.dtype)
    with pytest.raises(ValueError, match="indices: expected the shape of y"):
        jax.eval_shape(jup.max_unpool, y, INDICES)


@pytest.mark.parametrize("duplicates", ["last", "sum"])
def test_raw_indices_out_of_range_are_dropped(duplicates):
    y = np.arange(1.0, 5).reshape(2, 2, 1)

    @jax.jit
    def run(flat):
        unpool = lambda y: jup.max_unpool(y, flat, output_shape=(6, 7), duplicates=duplicates)
        u, pullback = jax.vjp(unpool, y)
        return u, pullback(jnp.ones_like(u))[0]

    for bad in (-1, -43, 42, 2**31 - 1, -(2**31), 2**40, 2**62):
        flat = np.arange(4).reshape(2, 2, 1).astype(np.int64)
        flat[0, 1] = bad
        u, gradient = run(flat)
        expected = np.zeros(42)
        expected[[0, 2, 3]] = [1, 3, 4]
        np.testing.assert_array_equal(np.ravel(u), expected)
        np.testing.assert_array_equal(np.ravel(gradient), [1, 0, 1, 1])


def test_unsigned_and_narrow_raw_indices():
    y = np.ones((1, 2, 1), np.float32)
    for dtype in (np.uint8, np.int8, np.int16, np.uint32, np.uint64):
        u = jup.max_unpool(y, np.array([[[1], [3]]], dtype), output_shape=(2, 2))
        np.testing.assert_array_equal(np.ravel(u), [0, 1, 0, 1])
    # A plane with more elements than the index type can name.
    u = jup.max_unpool(y, np.array([[[1], [100]]], np.int8), output_shape=(20, 20))
    np.testing.assert_array_equal(np.flatnonzero(u), [1, 100])


LONG = 2**31
X_LONG = jax.ShapeDtypeStruct((1, LONG, 1), np.float32)
Y_LONG = jax.ShapeDtypeStruct((1, LONG // 2 + 1, 1), np.float32)  # twice that is too long
FILTER = np.ones((2, 1, 1), np.float32)
OF_LONG_AXES = {
    "adaptive_avg_pool": lambda x: jup.adaptive_avg_pool(x, (4,)),
    "adaptive_max_pool": lambda x: jup.adaptive_max_pool(x, (4,)),
    "adaptive_max_pool_with_indices": lambda x: jup.adaptive_max_pool_with_indices(x, (3,)),
    "avg_pool": lambda x: jup.avg_pool(x, (2,)),
    "avg_unpool": lambda y: jup.avg_unpool(y, (2,)),
    "bed_of_nails_unpool": lambda y: jup.bed_of_nails_unpool(y, (2,)),
    "conv_transpose": lambda x: jup.conv_transpose(x, FILTER, strides=2),
    "fixed_unpool": lambda y: jup.fixed_unpool(y, np.ones(2, int)),
    "fractional_avg_pool": lambda x: jup.fractional_avg_pool(x, (4,), key=KEY),
    "fractional_max_pool": lambda x: jup.fractional_max_pool(x, (2,), (4,), key=KEY),
    "fractional_max_pool_with_indices": lambda x: jup.fractional_max_pool_with_indices(
        x, None, (4,), key=KEY
    ),
    "global_avg_pool": jup.global_avg_pool,
    "global_max_pool": jup.global_max_pool,
    "global_max_pool_with_indices": jup.global_max_pool_with_indices,
    "interpolate": lambda x: jup.interpolate(x, scale=2),
    "inverse": lambda x: jup.inverse(lambda x: jup.avg_pool(x, (2,)), x)(x[:, :4]),
    "lp_pool": lambda x: jup.lp_pool(x, 2, (2,)),
    "max_pool": lambda x: jup.max_pool(x, (2,)),
    "max_pool_with_argmax_and_mask": lambda x: jup.max_pool_with_argmax_and_mask(x, (2,)),
    "max_pool_with_indices": lambda x: jup.max_pool_with_indices(x, (2,)),
    "max_pool_with_packed_indices": lambda x: jup.max_pool_with_packed_indices(x, (2,)),
    "min_pool": lambda x: jup.min_pool(x, (2,)),
    "min_pool_with_indices": lambda x: jup.min_pool_with_indices(x, (2,)),
    "max_unpool": lambda y: jup.max_unpool(
        y, jnp.ones(y.shape, int), output_shape=min(2 * y.shape[1], LONG)
    ),
    "max_unpool_like": lambda x: jup.max_unpool_like(x, x[:, :4], (2,)),
    "nearest_unpool": lambda y: jup.nearest_unpool(y, (2,)),
    "pool_at": lambda x: jup.pool_at(x, jnp.zeros(x.shape, int)),
}
TAKE_INDICES = {"validate_indices"} | {f"interop.{name}" for name in jup.interop.__all__}
ENLARGE = [name for name in OF_LONG_AXES if "unpool" in name and "like" not in name]
ENLARGE += ["conv_transpose", "interpolate"]


def test_an_axis_longer_than_int32_is_refused_by_name():
    """By every function, before JAX fails to write its numbers; a channel or batch axis may be."""
    public = {name for name in jup.__all__ if not isinstance(getattr(jup, name), type)}
    public -= {"backends", "explain", "interop"}  # which take no arrays
    public -= {"conv_general_dilated"}  # which checks as JAX does
    assert set(OF_LONG_AXES) | {"validate_indices"} == public
    for name, run in OF_LONG_AXES.items():
        with pytest.raises(
            ValueError, match=r"^(x|y|pool_input|output_shape)\b.* at most 2147483647"
        ):
            jax.eval_shape(run, X_LONG)
        if name in ENLARGE:
            with pytest.raises(
                ValueError, match=r"^(strides|scale|output_shape)=.*(at most|usable)"
            ):
                jax.eval_shape(run, Y_LONG)
        jax.eval_shape(run, jax.ShapeDtypeStruct((LONG, 8, 1), np.float32))
        if name != "conv_transpose":  # takes its channels from the kernel
            jax.eval_shape(run, jax.ShapeDtypeStruct((1, 8, LONG), np.float32))


def test_indices_into_an_axis_longer_than_int32_are_refused_by_name():
    """No geometry has such an axis, so that functions of indices never see one."""
    with pytest.raises(ValueError, match=r"^input_shape: expected at most 2147483647"):
        jup.Plane(input_shape=(LONG,))
    with pytest.raises(ValueError, match=r"^output_shape=2147483648: expected at most 2147483647"):
        jup.validate_indices(np.zeros((1, 1, 1), int), output_shape=LONG)


ODD = ("int2", "uint4", "key")  # tests/test_types.py has the others


def small(shape, dtype):
    """Values that all types have: 0 and 1."""
    values = np.random.default_rng(0).integers(0, 2, shape)
    if dtype == "key":
        return jax.random.split(jax.random.key(0), np.prod(shape)).reshape(shape)
    return jnp.asarray(values).astype(dtype)


@pytest.mark.few(2)
@pytest.mark.parametrize("dtype", ODD)
def test_arrays_of_odd_types(dtype):
    """Every function runs on them as on int32, or refuses them by name."""
    refused = []
    for name, run in OF_LONG_AXES.items():
        x = small((1, 8, 1), dtype)
        try:
            found = jax.tree.leaves(run(x))
        except TypeError as error:
            assert str(error).split(":")[0] in ("x", "y", "pool_input")  # noqa: PT017
            assert "expected" in str(error)  # noqa: PT017
            assert str(x.dtype) in str(error)  # noqa: PT017
            refused.append(name)
            continue
        expected = jax.tree.leaves(run(small((1, 8, 1), "int32")))
        assert found[0].dtype == (jnp.float32 if "avg" in name else x.dtype)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a.astype(jnp.float32), b.astype(jnp.float32))
    need_floats = {"conv_transpose", "inverse", "lp_pool"}
    assert set(refused) == (need_floats if "int" in dtype else set(OF_LONG_AXES))
