"""The Mosaic GPU kernels: what they refuse, and what they compile to."""

import math
import os
import pathlib
import re
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from backend_cases import PRIMITIVES
from gpus import gpus

from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels import mosaic_gpu
from jaxunpool.kernels.mosaic_gpu import tiles

POOLED = ["select", "gather", "reduce"]  # those that compute windows
DTYPES = [np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)]


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
    if reason == "registers":  # of kernels that compute cells
        assert [f is None for f in found] == [name in POOLED for name in PRIMITIVES]
        found = [f for f in found if f]
    assert all(reason in f for f in found)


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

    # One kernel and nothing beside it: the first name in each line. The kernel's own text follows.
    text = program.as_text().split("ENTRY")[1]
    calls = re.findall(r"^ .*?= .*? ([\w-]+)\(", text, re.MULTILINE)
    assert calls.count("custom-call") == 1
    assert set(calls) <= {"parameter", "bitcast", "custom-call", "get-tuple-element", "tuple"}
    memory = program.memory_analysis()
    assert memory.temp_size_in_bytes <= 64  # pointers to the outputs

    # No spills, and registers for three programs per multiprocessor.
    assert re.findall(r"(\d+) bytes spill", dump) == ["0", "0"]
    assert int(re.search(r"Used (\d+) registers", dump)[1]) <= 168

    # Every array is read and written in the widest pieces, and written once.
    t = (tiles.of_windows if primitive in POOLED else tiles.of_cells)(geometry, shape, dtype)
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
