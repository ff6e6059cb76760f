"""Calls on several threads of XLA: `python native_threads.py WHAT`, for `test_native_cpu.py`.

`bits` prints a digest of every result, of arrays that several threads share; `xla` compares sums
with XLA's; `many` makes 64 calls at once from 16 threads. `LIBRARY=` before them names a library
other than the one installed.
"""

import concurrent.futures
import functools
import hashlib
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxunpool.core import backends
from jaxunpool.core.calls import Call
from jaxunpool.core.geometry import Axis, WindowGeometry
from jaxunpool.kernels import native_cpu
from jaxunpool.kernels.native_cpu import library

# Rows for several threads, and one row that is cut into parts.
SHAPES = {"rows": (8, 64, 64, 36), "a row": (300_000, 4)}  # shared: more than 2 MB
USES: dict[str, dict[str, Any]] = {
    "select": {},
    "gather": {},
    "gather last": {"duplicates": "last"},
    "scatter sum": {"duplicates": "sum"},
    "scatter last": {"duplicates": "last"},
    "reduce sum": {"weighting": "sum"},
    "reduce mean": {"weighting": "mean"},
    "replicate sum": {"weighting": "sum"},
    "replicate cover": {"weighting": "cover"},
}
FLOATS = [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]


def cases(types: list[np.dtype]) -> Any:
    """Names, calls and arrays; half of the values are subnormal."""
    rng = np.random.default_rng(0)
    for (name, shape), dtype in ((s, d) for s in SHAPES.items() for d in types):
        geometry = WindowGeometry.for_input(shape, (3,) * (len(shape) // 2), 2, 1)
        pooled = geometry.pooled_shape(shape)
        offsets = rng.integers(0, geometry.volume + 1, pooled).astype(np.uint8)
        for use, options in USES.items():
            primitive = use.split()[0]
            of = pooled if primitive in ("scatter", "replicate") else shape
            units = rng.integers(-64, 64, of) * float(ml_dtypes.finfo(dtype).smallest_subnormal)
            array = np.where(rng.random(of) < 0.5, units, rng.standard_normal(of)).astype(dtype)
            arrays = [array, offsets] if primitive in ("gather", "scatter") else [array]
            call = Call(primitive, geometry, **options)
            yield f"{name}, {dtype}, {use}", call, list(map(jnp.asarray, arrays))


def convolutions(dtype: np.dtype) -> Any:
    """Names, functions and arrays."""
    rng, axes = np.random.default_rng(0), [Axis(size, size, 3, low=1, high=1) for size in (40, 50)]
    shapes = {"u": (2, 40, 50, 24), "k": (3, 3, 24, 40), "y": (2, 40, 50, 40)}
    arrays = {name: jnp.asarray(rng.standard_normal(s), dtype) for name, s in shapes.items()}
    for name, operands in (("y", "uk"), ("u", "yk"), ("k", "uy")):
        convolve = functools.partial(native_cpu.convolve, name, axes, (2, 1, 24, 40), shapes[name])
        yield f"convolution {name}, {dtype}", convolve, [arrays[other] for other in operands]


def everything(types: list[np.dtype]) -> Any:
    """Names, compiled functions and arrays."""
    for name, call, arrays in cases(types):
        yield name, jax.jit(backends.kernel(call, arrays, "native_cpu")), arrays
    for dtype in types:
        for name, convolve, arrays in convolutions(dtype):
            yield name, jax.jit(convolve), arrays


def bytes_of(results: Any) -> list[bytes]:
    return [np.asarray(result).tobytes() for result in jax.tree.leaves(results)]


def run(call: Call, arrays: list[jax.Array], backend: str) -> list[bytes]:
    return bytes_of(jax.jit(backends.kernel(call, arrays, backend))(*arrays))


def bits() -> None:
    for name, function, arrays in everything(FLOATS[1:3]):
        print(name, hashlib.sha256(b"".join(bytes_of(function(*arrays)))).hexdigest())


def xla() -> None:
    """Moves and sums. What XLA flushes to zero where it divides or compares differs by program."""
    for name, call, arrays in cases(FLOATS):
        if call.primitive != "select" and call.weighting in (None, "sum"):
            if call.primitive == "gather" and call.duplicates:
                continue
            assert run(call, arrays, "native_cpu") == run(call, arrays, "xla"), name


def many() -> None:
    functions = [
        (function, arrays, bytes_of(function(*arrays)))
        for _, function, arrays in everything([np.dtype(np.float32)])
    ]

    def one(i: int) -> None:
        function, arrays, wanted = functions[i % len(functions)]
        assert bytes_of(function(*arrays)) == wanted

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(64)))


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    *path, what = sys.argv[1:]
    if path:
        library.load(pathlib.Path(path[0].removeprefix("LIBRARY=")))
    else:
        assert library.missing() is None
    for word in what.split(","):
        {"bits": bits, "xla": xla, "many": many}[word]()
