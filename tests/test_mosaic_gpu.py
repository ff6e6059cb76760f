"""The Mosaic GPU kernels: the bits of the plain implementation, and what they compile to."""

import math
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from gpus import gpus
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import mosaic_gpu as plgpu
from strategies import examples, per_axis

from jaxunpool.geometry import WindowGeometry
from jaxunpool.kernels import mosaic_gpu, xla
from jaxunpool.kernels.mosaic_gpu import tiles

DTYPES = [np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)]
PRIMITIVES = ["select", "gather", "scatter", "reduce", "replicate"]
POOLED = ["select", "gather", "reduce"]  # those that compute windows
WEIGHTS = ["sum", "mean", "mean_inside", "cover", "last"]

interpreted = pytest.mark.skipif(
    not hasattr(plgpu, "InterpretGPUParams"), reason="GPU interpret mode comes with jax 0.12"
)


@st.composite
def calls(draw):
    """A geometry the kernels serve, the full shape of its unpooled array, a type and a generator.

    Windows that tile the input may have any number of channels, on either side.
    """
    n = draw(st.integers(1, 3))
    window = draw(per_axis(n, 1, (5, 3, 2)[n - 1]))
    dilation, padding, data_format = (1,) * n, "VALID", "channels_last"
    if draw(st.booleans()):
        strides = tuple(k + draw(st.integers(0, 1)) for k in window)
        sizes = tuple(s * draw(st.integers(4, 6 - n // 2)) for s in strides)
        channels = draw(st.sampled_from([1, 3, 20, 64]))
        data_format = draw(st.sampled_from(["channels_last", "channels_first"]))
    else:
        strides = draw(per_axis(n, 1, 3))
        dilation = draw(st.one_of(st.just(dilation), per_axis(n, 1, 2)))
        spans = [(k - 1) * d + 1 for k, d in zip(window, dilation)]
        sizes = tuple(span + draw(st.integers(0, 8 // n)) for span in spans)
        pads = [st.tuples(*[st.integers(0, span - 1)] * 2) for span in spans]
        padding = draw(st.one_of(st.sampled_from(["VALID", "SAME"]), st.tuples(*pads)))
        channels = draw(st.sampled_from([16, 20, 32, 64, 96, 128]))
    least = 128 // math.gcd(channels, 128)  # of a batch, for every thread to have an element
    batch = draw(st.sampled_from([(least,), (1, least + 1), (2, 2 * least)]))
    shape = (*batch, *sizes, channels)
    if data_format == "channels_first":
        shape = (*batch, channels, *sizes)
    geometry = WindowGeometry.for_input(
        shape,
        window,
        strides,
        padding,
        dilation=dilation,
        ceil_mode=draw(st.booleans()),
        data_format=data_format,
    )
    dtype = draw(st.sampled_from(DTYPES))
    for primitive in ("select", "scatter"):
        assume(mosaic_gpu.unsupported(primitive, geometry, shape, dtype) is None)
    return geometry, shape, dtype, np.random.default_rng(draw(st.integers(0, 2**32)))


def values(rng, shape, dtype):
    """Floats of few bits, whose sums and products are exact enough to be the same everywhere."""
    return jnp.asarray((rng.integers(-64, 64, shape) / 8).astype(dtype))


def special(rng, shape, dtype):
    """Values with ties, zeros of both signs, NaN and infinities, and windows of -inf alone."""
    array = rng.choice(
        [-1.5, -0.0, 0.0, 2.0, np.nan, np.inf], shape, p=[0.2, 0.2, 0.2, 0.3, 0.05, 0.05]
    )
    return jnp.asarray(np.where(rng.random(shape) < 0.5, -np.inf, array).astype(dtype))


def offsets_of(rng, geometry, shape):
    """Offsets, among them such that name no element of the window."""
    shape = geometry.pooled_shape(shape)
    return jnp.asarray(rng.integers(0, geometry.volume + 2, shape), geometry.offset_dtype)


def bits(array):
    return np.asarray(array).view(f"u{array.dtype.itemsize}")


def check(primitive, arrays, *options, signed_zeros=True):
    """Equality with `xla`, bit for bit; but NaN has no sign, and a sum of zeros may have either."""
    with plgpu.force_gpu_interpret_mode():
        ours = jax.jit(lambda *a: getattr(mosaic_gpu, primitive)(*a, *options))(*arrays)
    plain = jax.jit(lambda *a: getattr(xla, primitive)(*a, *options, borders_apart=False))(*arrays)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.asarray(a), np.asarray(b)
        same = bits(a) == bits(b)
        if a.dtype in DTYPES:
            same |= (a != a) & (b != b)
            if not signed_zeros:
                same |= (a == 0) & (b == 0)
        assert same.all()


@interpreted
@settings(max_examples=examples(3, 25))
@given(calls())
def test_select_equals_xla(call):
    geometry, shape, dtype, rng = call
    check("select", [special(rng, shape, dtype)], geometry)


@interpreted
@settings(max_examples=examples(3, 25))
@given(calls())
def test_gather_equals_xla(call):
    geometry, shape, dtype, rng = call
    check("gather", [special(rng, shape, dtype), offsets_of(rng, geometry, shape)], geometry)


@interpreted
@settings(max_examples=examples(3, 25))
@given(calls(), st.sampled_from(["sum", "last"]))
def test_scatter_equals_xla(call, duplicates):
    geometry, shape, dtype, rng = call
    offsets = offsets_of(rng, geometry, shape)
    y = values(rng, offsets.shape, dtype)
    check("scatter", [y, offsets], geometry, duplicates, signed_zeros=duplicates == "last")


@interpreted
@settings(max_examples=examples(3, 25))
@given(calls(), st.sampled_from(WEIGHTS), st.booleans())
def test_reduce_equals_xla(call, weights, has_pattern):
    geometry, shape, dtype, rng = call
    u = values(rng, shape, dtype)
    pattern = values(rng, geometry.window_shape, np.float32) if has_pattern else None
    check("reduce", [u, pattern], geometry, weights, signed_zeros=False)


@interpreted
@settings(max_examples=examples(3, 25))
@given(calls(), st.sampled_from(WEIGHTS), st.booleans())
def test_replicate_equals_xla(call, weights, has_pattern):
    geometry, shape, dtype, rng = call
    y = values(rng, geometry.pooled_shape(shape), dtype)
    pattern = values(rng, geometry.window_shape, np.float32) if has_pattern else None
    check("replicate", [y, pattern], geometry, weights, signed_zeros=False)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_negative_zeros_stay(dtype):
    shape = (8, 4, 6, 16)
    geometry = WindowGeometry.for_input(shape, (2, 2))
    u, y = (jnp.full(s, -0.0, dtype) for s in (shape, geometry.pooled_shape(shape)))
    check("reduce", [u, None], geometry, "mean")
    check("replicate", [y, None], geometry, "mean")
    check("scatter", [y, jnp.zeros(y.shape, np.uint8)], geometry, "sum")


@pytest.mark.parametrize(
    ("reason", "shape", "dtype", "window", "options"),
    [
        ("float64", (8, 8, 8, 64), np.float64, (2, 2), {}),
        ("int32", (8, 8, 8, 64), np.int32, (2, 2), {}),
        ("more than 32 elements", (8, 8, 8, 64), np.float32, (6, 6), {}),
        ("empty", (0, 8, 8, 64), np.float32, (2, 2), {}),
        ("spatial positions", (8, 2**15, 2**16, 64), np.float32, (2, 2), {}),
        ("do not fill", (1, 9, 9, 64), np.float32, (2, 2), {}),
        ("registers", (8, 65, 65, 64), np.float32, (2, 2), {"strides": (16, 16)}),
        ("side by side", (128, 9, 9, 3), np.float32, (2, 2), {}),
        ("side by side", (8, 64, 9, 9), np.float32, (2, 2), {"data_format": "channels_first"}),
    ],
)
def test_unsupported(reason, shape, dtype, window, options):
    geometry = WindowGeometry.for_input(shape, window, **options)
    found = [mosaic_gpu.unsupported(name, geometry, shape, dtype) for name in PRIMITIVES]
    if reason == "registers":  # of kernels that compute blocks of strides
        assert [f is None for f in found] == [name in POOLED for name in PRIMITIVES]
        found = [f for f in found if f]
    assert all(reason in f for f in found)


def everything(kernels, geometry, shape, dtype, **how):
    """What each primitive makes of arrays of zeros, in every way."""
    u, y = jnp.zeros(shape, dtype), jnp.zeros(geometry.pooled_shape(shape), dtype)
    offsets = jnp.zeros(y.shape, geometry.offset_dtype)
    results = [
        kernels.select(u, geometry, **how),
        kernels.gather(u, offsets, geometry, **how),
        *(kernels.scatter(y, offsets, geometry, d, **how) for d in ("sum", "last")),
    ]
    for pattern in (None, jnp.ones(geometry.window_shape)):
        results += [kernels.reduce(u, pattern, geometry, w, **how) for w in WEIGHTS]
        results += [kernels.replicate(y, pattern, geometry, w, **how) for w in WEIGHTS]
    return results


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize(
    ("shape", "window", "options"),
    [
        ((8, 6, 6, 20), (2, 2), {}),
        ((32, 3, 8, 48), (2, 3), {"data_format": "channels_first"}),
        ((8, 7, 9, 32), (3, 3), {"strides": 2, "padding": 1}),
        ((4, 9, 64), (2,), {"strides": 1, "dilation": 3, "padding": "SAME"}),
        ((2, 5, 5, 5, 64), (2, 2, 2), {"strides": 3, "ceil_mode": True}),
    ],
    ids=str,
)
def test_kernels_can_be_traced_anywhere(shape, window, options, dtype):
    geometry = WindowGeometry.for_input(shape, window, **options)
    assert {mosaic_gpu.unsupported(name, geometry, shape, dtype) for name in PRIMITIVES} == {None}
    ours = jax.eval_shape(lambda: everything(mosaic_gpu, geometry, shape, dtype))
    assert ours == jax.eval_shape(
        lambda: everything(xla, geometry, shape, dtype, borders_apart=False)
    )


GOALS = [(32, 224, 224, 64), (32, 56, 56, 256)]
WINDOWS = {"2x2": ((2, 2), (2, 2), 0), "3x3": ((3, 3), (2, 2), 1)}


def sharding(major):
    """A GPU to compile for."""
    return jax.sharding.SingleDeviceSharding(gpus(major)[0])


def compiled(primitive, geometry, shape, dtype, device):
    """A primitive compiled for a GPU."""
    u = jax.ShapeDtypeStruct(shape, dtype, sharding=device)
    y = jax.ShapeDtypeStruct(geometry.pooled_shape(shape), dtype, sharding=device)
    offsets = jax.ShapeDtypeStruct(y.shape, geometry.offset_dtype, sharding=device)
    function = getattr(mosaic_gpu, primitive)
    arrays, call = {
        "select": ([u], lambda u: function(u, geometry)),
        "gather": ([u, offsets], lambda u, o: function(u, o, geometry)),
        "scatter": ([y, offsets], lambda y, o: function(y, o, geometry)),
        "reduce": ([u], lambda u: function(u, None, geometry)),
        "replicate": ([y], lambda y: function(y, None, geometry)),
    }[primitive]
    return jax.jit(call).lower(*arrays).compile()


def accesses(ptx, kind):
    """Bytes of every access to global memory in a kernel."""
    found = re.findall(rf"\b{kind}\.global\S*?(?:\.v(\d))?\.[bfsu](\d+)\s", ptx)
    return sorted(int(count or 1) * int(width) // 8 for count, width in found)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("shape", GOALS, ids=str)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_compiled_kernel(primitive, window, shape, dtype, monkeypatch, capfd):
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTX", "1")
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    geometry = WindowGeometry.for_input(shape, *WINDOWS[window])
    program = compiled(primitive, geometry, shape, dtype, sharding(9))
    dump = "".join(capfd.readouterr())

    # One kernel and nothing beside it.
    calls = re.findall(r"= .*? ([\w-]+)\(", program.as_text().split("ENTRY")[1])
    assert calls.count("custom-call") == 1
    assert set(calls) <= {"parameter", "bitcast", "custom-call", "get-tuple-element", "tuple"}
    memory = program.memory_analysis()
    assert memory.temp_size_in_bytes <= 64  # pointers to the outputs

    # No spills, and registers for three programs per multiprocessor.
    assert re.findall(r"(\d+) bytes spill", dump) == ["0", "0"]
    assert int(re.search(r"Used (\d+) registers", dump)[1]) <= 168

    # Every array is read and written in the widest pieces, and written once.
    t = (tiles.of_windows if primitive in POOLED else tiles.of_blocks)(geometry, shape, dtype)
    threads = tiles.THREADS * math.prod(-(-size // covered) for size, covered in t.extents)
    loads, stores = accesses(dump, "ld"), accesses(dump, "st")
    offsets = 16 // dtype.itemsize  # bytes of them beside 16 bytes of values
    assert set(loads) == ({16, offsets} if primitive in ("gather", "scatter") else {16})
    assert set(stores) == ({16, offsets} if primitive == "select" else {16})
    values = math.prod(shape) * dtype.itemsize
    pooled = math.prod(geometry.pooled_shape(shape)) * dtype.itemsize
    assert sum(stores) * threads == {
        "select": pooled + pooled // dtype.itemsize,
        "scatter": values,
        "replicate": values,
    }.get(primitive, pooled)
    # Where windows meet, programs read more than they share.
    again = 1 if window == "2x2" else 1.9 if primitive in POOLED else 3.5
    assert 1 <= sum(loads) * threads / memory.argument_size_in_bytes <= again


def test_compiles_for_blackwell():
    """In a process of its own: what kernels are compiled for is settled once per process."""
    sharding(9)  # skips where there is no compiler
    script = """
import test_mosaic_gpu as t
device = t.sharding(10)
for primitive in t.PRIMITIVES:
    for dtype in t.DTYPES[:2]:
        geometry = t.WindowGeometry.for_input(t.GOALS[1], *t.WINDOWS["3x3"])
        t.compiled(primitive, geometry, t.GOALS[1], dtype, device)
"""
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=pathlib.Path(__file__).parent,
        env={**os.environ, "MOSAIC_GPU_DUMP_PTXAS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    dump = run.stdout + run.stderr
    assert dump.count("for 'sm_100a'") == 10
    assert set(re.findall(r"(\d+) bytes spill", dump)) == {"0"}
