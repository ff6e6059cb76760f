"""Right and wrong calls at random: each works, or its error names what is wrong.

A right call of every public function, of which one or two arguments are replaced by what may come
from a slip: other types, ranks, sizes, texts, None, huge numbers, traced values. To draw as many as
wanted: `python tests/test_wrong_calls.py 10000`.
"""

import collections
import functools
import inspect
import re
import sys
import tracemalloc

import hypothesis
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.experimental import checkify
from strategies import examples

import jaxunpool as jup

X = np.arange(2 * 5 * 6 * 3, dtype=np.float32).reshape(2, 5, 6, 3)
Y = X[:, :3, :3]
KERNEL = np.ones((3, 3, 3, 2), np.float32)
WINDOW = {"window_shape": (3, 3), "strides": 2, "padding": 1}
SIZE = {"output_shape": (5, 6)}
INDICES = jup.max_pool_with_indices(X, **WINDOW)[1]
OTHER = jup.max_pool_with_indices(X, (2, 2))[1]
GEOMETRY = INDICES.geometry
FIRST = jup.WindowGeometry.for_input((2, 3, 5, 6), **WINDOW, data_format="channels_first")
FLAT = np.asarray(INDICES.flat)
KEY = jax.random.key(0)
NUMBERS = ("NHWC", "HWIO", "NHWC")

# Every public function, as it is called.
RIGHT = {
    "PoolIndices.from_flat": {"flat": FLAT, "geometry": GEOMETRY},
    "Plane": {"input_shape": (5, 6), "data_format": "channels_last"},
    "WindowGeometry.for_input": {"shape": X.shape, **WINDOW},
    "WindowGeometry.for_output": {"shape": Y.shape, **WINDOW, **SIZE},
    "adaptive_avg_pool": {"x": X, "output_shape": (3, 4)},
    "adaptive_max_pool": {"x": X, "output_shape": (3, None)},
    "adaptive_max_pool_with_indices": {"x": X, "output_shape": (3, 4)},
    "avg_pool": {"x": X, **WINDOW, "count_include_pad": False},
    "avg_unpool": {"y": Y, **WINDOW, **SIZE, "mode": "adjoint"},
    "bed_of_nails_unpool": {"y": Y, **WINDOW, **SIZE, "position": (0, 1)},
    "conv_transpose": {"x": Y, "kernel": KERNEL, "strides": 2, "output_padding": 1},
    "fixed_unpool": {"y": Y, "pattern": np.ones((2, 2), np.float32)},
    "fractional_avg_pool": {"x": X, "output_shape": (4, 5), "key": KEY},
    "fractional_max_pool": {"x": X, "window_shape": None, "output_shape": (4, 5), "key": KEY},
    "fractional_max_pool_with_indices": {"x": X, "window_shape": 2, "output_shape": 4, "key": KEY},
    "global_avg_pool": {"x": X, "spatial_ndim": 2},
    "global_max_pool": {"x": X, "spatial_ndim": None},
    "global_max_pool_with_indices": {"x": X, "data_format": "channels_first"},
    "interop.from_onnx": {"indices": np.asarray(jup.interop.to_onnx(INDICES)), "geometry": FIRST},
    "interop.from_tensorflow": {
        "argmax": np.asarray(jup.interop.to_tensorflow(INDICES)),
        "geometry": GEOMETRY,
    },
    "interop.from_torch": {"indices": np.moveaxis(FLAT, -1, 1), "geometry": FIRST},
    "interop.to_onnx": {"indices": INDICES, "storage_order": 0},
    "interop.to_tensorflow": {"indices": INDICES, "include_batch_in_index": True},
    "interop.to_torch": {"indices": INDICES},
    "interpolate": {"x": X, "output_shape": (7, 8), "mode": "cubic", "align_corners": True},
    "inverse": {"fn": lambda x: jax.tree.map(jnp.sin, x), "x": X},
    "lp_pool": {"x": X, "norm_type": 2, **WINDOW},
    "max_pool": {"x": X, **WINDOW, "dilation": 2},
    "max_pool_with_argmax_and_mask": {"x": X, **WINDOW, "ceil_mode": True},
    "max_pool_with_indices": {"x": X, **WINDOW},
    "max_pool_with_packed_indices": {"x": X, **WINDOW},
    "max_unpool": {"y": Y, "indices": FLAT, **SIZE, "duplicates": "sum"},
    "max_unpool_like": {"pool_input": X, "unpool_input": Y, **WINDOW},
    "min_pool": {"x": X, **WINDOW},
    "min_pool_with_indices": {"x": X, **WINDOW},
    "nearest_unpool": {"y": Y, **WINDOW, **SIZE, "duplicates": "mean"},
    "pool_at": {"x": X, "indices": FLAT, "spatial_ndim": 2},
    "validate_indices": {"indices": FLAT, **SIZE},
}
OF_VALUES = {"PoolIndices.from_flat", "validate_indices"}
OF_VALUES |= {name for name in RIGHT if name.startswith("interop.")}
# `conv_general_dilated` checks as `lax` does, whose names and errors it keeps.
APART = {"PackedIndices", "PoolIndices", "WindowGeometry", "backends", "conv_general_dilated"}
APART |= {"explain", "interop.load_torch"}

WORDS = ["VALID", "SAME", "channels_last", "channels_first", "last", "sum", "mean", "adjoint"]
WORDS += ["nearest", "nearest-exact", "linear", "cubic", "area", "asymmetric", "xla", "native_cpu"]
WORD = st.sampled_from([None, 2, *WORDS])
INTEGERS = st.sampled_from([-(2**63), -1, 0, 1, 2, 3, 7, 64, 10**4, 10**9, 2**31, 2**63, 10**30])
ODD = st.sampled_from(
    [None, True, False, 1.0, 2.5, -0.5, np.nan, np.inf, 1e300, 1j, "", "NCHW", "bilinear",
     "mosaic_gpu", b"22", {}, {"a": 1}, {2}, object, len,
     np.float32(2), np.int64(3), np.bool_(True), np.array(2), np.array([2, 2]), np.array([2.5, 2]),
     range(2), slice(2), ..., KEY, GEOMETRY, INDICES, INDICES.pack(), OTHER, jup.Plane, Y.tolist()]
)  # fmt: skip
FLAGS = ["ceil_mode", "count_include_pad", "align_corners", "antialias", "include_batch_in_index"]
SIZES = st.integers(0, 4)
PAIRS = st.tuples(SIZES, SIZES)
LIKELY = {
    "padding": st.one_of(SIZES, st.tuples(PAIRS, PAIRS), st.sampled_from(["VALID", "SAME"])),
    "output_shape": st.one_of(st.integers(1, 9), st.tuples(st.integers(1, 9), st.integers(1, 9))),
    "data_format": st.sampled_from(["channels_last", "channels_first"]),
    "implementation": st.sampled_from([None, "xla", "native_cpu"]),
    "norm_type": st.floats(1, 9),
    "scale": st.floats(0.3, 4),
    **dict.fromkeys(FLAGS, st.booleans()),
    **dict.fromkeys(("window_shape", "strides", "dilation"), st.one_of(st.integers(1, 3), PAIRS)),
}
SETTINGS = st.recursive(
    st.one_of(INTEGERS, ODD),
    lambda each: st.lists(each, max_size=4).map(tuple) | st.lists(each, max_size=4),
    max_leaves=5,
)
TYPES = ["float32", "float16", "float64", "int8", "uint8", "int32", "uint64", "int64", "bool"]
TYPES += ["complex64", "S3", "U2", "object", "datetime64[s]", "V4"]
TYPES += [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4]
SHAPES = st.one_of(
    st.lists(st.integers(0, 6), max_size=6),
    st.sampled_from([X.shape, Y.shape, Y.shape[1:], (2, 3, 5, 6), (3, 3, 3, 2), (1,) * 5]),
)


@st.composite
def arrays(draw):
    """Of any type and rank, with integers in and out of a plane."""
    shape, dtype = tuple(draw(SHAPES)), np.dtype(draw(st.sampled_from(TYPES)))
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    values = values * draw(st.sampled_from([0, 1, -1, 2**40]))
    with np.errstate(all="ignore"):
        return values.astype(np.int64 if dtype.kind == "V" and dtype.names else dtype)


@st.composite
def calls(draw):
    """(name, arguments, those that were replaced, those that are traced)."""
    name = draw(st.sampled_from(sorted(RIGHT)))
    arguments, parameters = dict(RIGHT[name]), list(inspect.signature(found(name)).parameters)
    replaced = draw(st.lists(st.sampled_from(parameters), max_size=2, unique=True))
    for parameter in replaced:
        is_array = isinstance(RIGHT[name].get(parameter), np.ndarray)
        either = (
            (arrays(), SETTINGS) if is_array else (LIKELY.get(parameter, WORD), SETTINGS, arrays())
        )
        arguments[parameter] = draw(st.one_of(*either))
    traced = [key for key, value in arguments.items() if can_be_traced(value, key in replaced)]
    are_traced = name != "interop.to_torch" and draw(
        st.booleans()
    )  # which takes known values alone
    return name, arguments, replaced, traced if are_traced else []


def found(name):
    return functools.reduce(getattr, name.split("."), jup)


def can_be_traced(value, replaced):
    """Arrays and indices, and a number where it was put."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biufc" or value.dtype.name in ("bfloat16", "float8_e4m3fn")
    is_number = type(value) in (int, float, bool) and abs(value) < 2**31
    return isinstance(value, jup.PoolIndices) or (replaced and is_number)


def outcome(name, arguments, traced):
    """`"works"`, or the error. Programs are traced; only checks of values run."""

    def run(given):
        result = found(name)(**arguments | given)
        if name == "inverse":
            result = result(arguments["x"])
        return [leaf for leaf in jax.tree.leaves(result) if isinstance(leaf, jax.Array)]

    try:
        if name in OF_VALUES and not traced:
            run({})
            return "works"
        jax.eval_shape(checkify.checkify(run), {key: arguments[key] for key in traced})
    except Exception as error:
        return error
    return "works"


def check(name, arguments, replaced, traced):
    error = outcome(name, arguments, traced)
    if error == "works":
        return "works"
    assert replaced, f"a right call fails: {error}"
    text, parameters = str(error), inspect.signature(found(name)).parameters
    assert type(error) in (TypeError, ValueError, NotImplementedError), repr(error)
    assert any(re.search(rf"\b{parameter}\b", text) for parameter in parameters), text
    assert len(text) < 500, text
    return type(error).__name__


def test_every_public_function_is_called():
    public = {name for name in jup.__all__ if callable(getattr(jup, name))}
    public |= {f"interop.{name}" for name in jup.interop.__all__}
    assert public - {name for name in RIGHT if name[0].islower() or name == "Plane"} == APART


@hypothesis.settings(max_examples=examples(200, 2000))
@hypothesis.given(calls())
def test_each_call_works_or_says_what_is_wrong(call):
    check(*call)


BILLION = 10**9
SMALL = np.ones((1, 8, 1), np.float32)
HUGE = {
    "window_shape": lambda: jup.max_pool(SMALL, BILLION, 1, "SAME"),
    "window_shape, averages": lambda: jup.avg_pool(SMALL, BILLION, 1, "SAME"),
    "window_shape, squared": lambda: jup.max_pool(SMALL[..., None], BILLION, 1, "SAME"),
    "window_shape, dilated": lambda: jup.max_pool(SMALL, BILLION // 5, 1, "SAME", dilation=9),
    "window_shape, unpooled": lambda: jup.nearest_unpool(SMALL, BILLION, 1, "SAME"),
    "dilation": lambda: jup.max_pool(SMALL, 3, 1, BILLION, dilation=BILLION),
    "strides": lambda: jup.max_pool(SMALL, 3, BILLION, "SAME", dilation=BILLION),
    "strides, unpooled": lambda: jup.avg_unpool(SMALL, 2, BILLION),
    "padding": lambda: jup.max_pool(SMALL, 2, 1, BILLION),
    "output_shape": lambda: jup.fractional_max_pool(SMALL, 2, BILLION, key=KEY),
    "scale": lambda: jup.interpolate(SMALL, scale=1e9),
}


@pytest.mark.parametrize("name", HUGE)
def test_small_calls_with_huge_numbers_take_no_memory(name):
    """Each runs, or its error names the number."""
    tracemalloc.start()  # NumPy's arrays too
    try:
        HUGE[name]()
    except ValueError as error:
        named = name.partition(",")[0]
        assert re.search(rf"\b({named}|padding)\b", str(error))  # noqa: PT017
    finally:
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most < 10 * 2**20


if __name__ == "__main__":
    outcomes = collections.Counter()

    @hypothesis.settings(max_examples=int(sys.argv[1]), deadline=None, database=None)
    @hypothesis.given(calls())
    def draw(call):
        outcomes[check(*call)] += 1

    draw()
    print(dict(outcomes))
