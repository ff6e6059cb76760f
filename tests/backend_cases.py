"""What the tests of backends run: calls that each one serves, and how it is run without hardware.

A new backend adds a line to `TESTED`.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import hypothesis
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from gpus import gpus
from hypothesis import strategies as st
from jax.experimental import topologies
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.pallas import tpu as pltpu
from strategies import KINDS, per_axis, poolings, values

from jaxunpool.core import backends, lowering
from jaxunpool.core.calls import Call
from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels.mosaic_tpu import blocks
from jaxunpool.kernels.native_cpu import library

WEIGHTINGS = ("sum", "mean", "mean_inside", "cover", "last")
PRIMITIVES = ("select", "gather", "scatter", "reduce", "replicate")
SUMS = ("reduce", "replicate")
DTYPES = [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
DTYPES += [np.dtype(t) for t in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64")]


class Case(NamedTuple):
    """A geometry, and the full shape of its unpooled array."""

    geometry: WindowGeometry
    shape: tuple[int, ...]


def case_of(shape: tuple[int, ...], *window: Any, **options: Any) -> Case:
    """A case, or none where hypothesis drew windows of nothing but padding."""
    try:
        return Case(WindowGeometry.for_input(shape, *window, **options), shape)
    except ValueError:
        hypothesis.reject()


@st.composite
def small(draw) -> Case:
    """Any pooling."""
    pooling = draw(poolings())
    return case_of(pooling.shape, **pooling.options)


@st.composite
def for_lanes(draw, longest=(12, 7, 4)) -> Case:
    """Small arrays, of channels and batches that have each of the views of `mosaic_tpu`."""
    n = draw(st.integers(1, 3))

    def axes(low, high):
        return draw(st.tuples(*[st.integers(low, high)] * n))

    data_format = draw(st.sampled_from(["channels_last", "channels_first"]))
    batch, channels = draw(st.sampled_from([((2,), 64), ((1, 3), 40), ((8,), 130), ((128,), 32)]))
    sizes, window = axes(1, longest[n - 1]), axes(1, (5, 3, 2)[n - 1])
    if draw(st.booleans()):  # rows that are long for so few channels
        batch, channels, sizes = (1,), 32, (*sizes[:-1], sizes[-1] + 64)
    dilation = draw(st.one_of(st.just(1), st.integers(1, 2)))
    pads = [draw(st.tuples(*[st.integers(0, (k - 1) * dilation)] * 2)) for k in window]
    shape = (
        (*batch, *sizes, channels) if data_format == "channels_last" else (*batch, channels, *sizes)
    )
    return case_of(
        shape,
        window,
        axes(1, 3),
        draw(st.sampled_from(["VALID", "SAME", pads])),
        dilation=dilation,
        ceil_mode=draw(st.booleans()),
        data_format=data_format,
    )


@st.composite
def for_threads(draw) -> Case:
    """Arrays that give every thread of `mosaic_gpu` an element.

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
    least = 128 // math.gcd(channels, 128)  # of a batch
    batch = draw(st.sampled_from([(least,), (1, least + 1), (2, 2 * least)]))
    shape = (
        (*batch, *sizes, channels) if data_format == "channels_last" else (*batch, channels, *sizes)
    )
    return case_of(
        shape,
        window,
        strides,
        padding,
        dilation=dilation,
        ceil_mode=draw(st.booleans()),
        data_format=data_format,
    )


@contextlib.contextmanager
def interpreted_tpu(budget: int = blocks.GOOD_BYTES) -> Iterator[None]:
    """TPU kernels on the CPU, with blocks of as many bytes; of one row at least."""
    with pltpu.force_tpu_interpret_mode(), mock.patch.object(blocks, "GOOD_BYTES", budget):
        yield


def tpus() -> Any:
    """Four TPUs v5e to compile for."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")
    return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices


@dataclasses.dataclass(frozen=True)
class Tested:
    """How a backend is tested.

    Attributes:
        cases: geometries, most of which it serves.
        dtypes: the types it serves.
        sums: kinds of values whose sums have one result, however they are contracted.
        runs: contexts that it runs in on a CPU; none where this JAX has no interpreter for it.
        shape: of a small array that it serves.
        devices: four to compile for, which need not be there; skips without a compiler.
    """

    cases: st.SearchStrategy[Case]
    dtypes: list[np.dtype]
    sums: tuple[str, ...]
    runs: tuple[Callable[[], Any], ...]
    shape: tuple[int, ...] = (2, 6, 8, 3)
    devices: Callable[[], Any] = lambda: jax.devices()[:4]


HALVES = [np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)]
TESTED = {
    "xla": Tested(small(), DTYPES, ("plain", "ties"), (contextlib.nullcontext,)),
    "native_cpu": Tested(small(), DTYPES, KINDS, (contextlib.nullcontext,)),
    "mosaic_tpu": Tested(
        for_lanes(),
        [np.dtype(np.float32), HALVES[0], *DTYPES[4:9]],
        KINDS,
        tuple(functools.partial(interpreted_tpu, b) for b in (0, 1 << 16, blocks.GOOD_BYTES)),
        (1, 6, 8, 128),
        tpus,
    ),
    "mosaic_gpu": Tested(
        for_threads(),
        [np.dtype(np.float32), *HALVES],
        ("eighths",),
        (plgpu.force_gpu_interpret_mode,) if hasattr(plgpu, "force_gpu_interpret_mode") else (),
        (4, 8, 8, 64),
        functools.partial(gpus, 9, count=4),
    ),
}


def skip_if_not_compiled(backend: str) -> None:
    """The kernels for CPU are there where there was a compiler."""
    if backend == "native_cpu" and (reason := library.missing()):
        pytest.skip(reason)


def calls_of(primitive: str, geometry: WindowGeometry) -> list[Call]:
    """Every use of a primitive on some windows."""
    if primitive in SUMS:
        return [Call(primitive, geometry, weighting=weighting) for weighting in WEIGHTINGS]
    if primitive in ("scatter", "gather"):
        return [Call(primitive, geometry, duplicates=how) for how in ("sum", "last")]
    return [Call(primitive, geometry)]


def arrays_of(
    call: Call, shape: tuple[int, ...], dtype: np.dtype, kind: str, rng: Any, pattern: bool = False
) -> list[jax.Array]:
    """The arrays of a call; some of its offsets name no element."""
    g = call.geometry
    assert isinstance(g, WindowGeometry)
    pooled = g.pooled_shape(shape)
    first = pooled if call.primitive in ("scatter", "replicate") else shape
    arrays = [values(rng, first, dtype, kind)]
    if call.primitive in ("gather", "scatter"):
        arrays.append(rng.integers(0, g.volume + 2, pooled).astype(g.offset_dtype))
    if pattern:
        arrays.append(values(rng, g.window_shape, dtype, "eighths"))
    return list(map(jnp.asarray, arrays))


def run(backend: str, call: Call, arrays: list[jax.Array]) -> list[Any]:
    """The results of a backend's kernel, or of several where it has none for the call."""
    platform = {b.name: b.platform for b in backends.BACKENDS}.get(backend, "another")
    named = dataclasses.replace(call, implementation=backend)
    kernel = functools.partial(lowering.on_device, platform, named)
    return list(map(np.asarray, jax.tree.leaves(jax.jit(kernel)(*arrays))))


def same_bits(call: Call, found: list[Any], wanted: list[Any]) -> None:
    """Equal bit for bit; but NaN has no sign."""
    for a, b in zip(found, wanted, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        same = a.view(f"u{a.dtype.itemsize}") == b.view(f"u{b.dtype.itemsize}")
        if a.dtype in DTYPES[:4]:
            same |= (a != a) & (b != b)
        assert same.all()
