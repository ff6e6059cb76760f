"""The Pallas kernels for TPU: the bits of plain JAX when interpreted, and what they compile to.

No TPU is needed: libtpu compiles for one that is not there.
"""

import functools
import importlib.util
import os
from typing import NamedTuple
from unittest import mock

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.experimental import topologies
from jax.experimental.pallas import tpu as pltpu
from strategies import KINDS, examples, only, values

from jaxunpool.geometry import WindowGeometry
from jaxunpool.kernels import mosaic_tpu, xla
from jaxunpool.kernels.mosaic_tpu import blocks
from jaxunpool.kernels.mosaic_tpu.views import view

WEIGHTS = ("sum", "mean", "mean_inside", "cover", "last")
FLOATS = [np.dtype("float32"), np.dtype(jnp.bfloat16)]
INTEGERS = [np.dtype(name) for name in ("int32", "int16", "int8", "uint16", "uint8")]


class Case(NamedTuple):
    """A geometry, and the full shape of its unpooled array."""

    geometry: WindowGeometry
    shape: tuple[int, ...]


@st.composite
def cases(draw, longest=(12, 7, 4)) -> Case:
    """Small arrays, of channels and batches that have each of the views."""
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
    try:
        geometry = WindowGeometry.for_input(
            shape,
            window,
            axes(1, 3),
            draw(st.sampled_from(["VALID", "SAME", pads])),
            dilation=dilation,
            ceil_mode=draw(st.booleans()),
            data_format=data_format,
        )
    except ValueError:  # nothing but padding
        hypothesis.reject()
    return Case(geometry, shape)


def settings(test):
    """Examples with blocks of one row and with few large blocks, of every kind of values."""
    given = hypothesis.given(
        case=cases(),
        budget=st.sampled_from([0, 1 << 16, blocks.GOOD_BYTES]),
        kind=st.sampled_from(KINDS),
        seed=st.integers(0, 2**32 - 1),
        data=st.data(),
    )
    return hypothesis.settings(max_examples=examples(2, 15))(given(test))


def assert_same(name, case, budget, arrays, **options):
    """The kernel and plain JAX give the same bits, signs of zero sums and NaNs apart."""
    dtype = arrays[0].dtype
    declared = {**options, "pattern": True} if name in ("reduce", "replicate") else options
    reason = mosaic_tpu.unsupported(name, case.geometry, case.shape, dtype, **declared)
    if reason is not None:
        hypothesis.reject()

    def run(kernels):
        call = functools.partial(getattr(kernels, name), geometry=case.geometry, **options)
        return jax.tree.leaves(jax.jit(call)(*arrays))

    with pltpu.force_tpu_interpret_mode(), mock.patch.object(blocks, "GOOD_BYTES", budget):
        actual = run(mosaic_tpu)
    moves_values = name in ("select", "gather") or options.get("duplicates") == "last"
    for result, expected in zip(actual, run(xla), strict=True):
        assert result.dtype == expected.dtype
        is_float = result.dtype in FLOATS
        if is_float:
            result, expected = result.astype(np.float32), expected.astype(np.float32)
        np.testing.assert_array_equal(result, expected, strict=True)
        if is_float and moves_values:
            signs = [np.signbit(a) | np.isnan(a) for a in (result, expected)]
            np.testing.assert_array_equal(*signs)


def drawn(case, dtype, kind, seed):
    """Unpooled values, pooled ones, and offsets some of which name no element."""
    rng, g = np.random.default_rng(seed), case.geometry
    pooled = g.pooled_shape(case.shape)
    u, y = (values(rng, shape, dtype, kind) for shape in (case.shape, pooled))
    return u, y, rng.integers(0, g.volume + 2, pooled).astype(g.offset_dtype), rng


@settings
def test_select(case, budget, kind, seed, data):
    dtype = data.draw(st.sampled_from(FLOATS + INTEGERS))
    u, *_ = drawn(case, dtype, kind, seed)
    assert_same("select", case, budget, [u])


@settings
def test_gather(case, budget, kind, seed, data):
    dtype = data.draw(st.sampled_from(FLOATS + INTEGERS))
    u, _, offsets, _ = drawn(case, dtype, kind, seed)
    assert_same("gather", case, budget, [u, offsets])


@settings
def test_scatter(case, budget, kind, seed, data):
    dtype = data.draw(st.sampled_from(FLOATS + INTEGERS))
    _, y, offsets, _ = drawn(case, dtype, kind, seed)
    duplicates = data.draw(st.sampled_from(["sum", "last"]))
    assert_same("scatter", case, budget, [y, offsets], duplicates=duplicates)


@pytest.mark.parametrize("name", ["reduce", "replicate"])
@settings
def test_sums(name, case, budget, kind, seed, data):
    dtype = data.draw(st.sampled_from(FLOATS + INTEGERS[:1]))
    u, y, _, rng = drawn(case, dtype, kind, seed)
    options = {"weights": data.draw(st.sampled_from(WEIGHTS if dtype in FLOATS else WEIGHTS[:1]))}
    pattern = None
    if data.draw(st.booleans()):
        pattern = values(rng, case.geometry.window_shape, dtype, "plain")
    assert_same(name, case, budget, [u if name == "reduce" else y, pattern], **options)


VIEWS = {
    "NDHWC": (2, 4, 8, 64),
    "NDHCW": (1, 3, 70, 32),
    "DHWNC": (8, 4, 7, 130),
    "DHWCN": (128, 3, 4, 32),
}


def overlapping(order):
    """Windows that overlap and are padded, over an array that has a view."""
    shape = VIEWS[order]
    geometry = WindowGeometry.for_input(shape, (2, 3), (1, 2), ((0, 1), (1, 1)))
    look, turned = view(geometry, shape), order == "NDHCW"
    assert (look.order, look.turned(shape[-2])) == ("NDHWC" if turned else order, turned)
    return Case(geometry, shape)


@pytest.mark.parametrize("name", ["select", "gather", "sum", "last"])
@pytest.mark.parametrize("order", only("NDHCW", "DHWCN", among=VIEWS))
def test_overlapping_windows(order, name):
    case = overlapping(order)
    u, y, offsets, _ = drawn(case, np.dtype(jnp.bfloat16), "special", 0)
    if name == "select":
        assert_same("select", case, blocks.GOOD_BYTES, [u])
    elif name == "gather":
        assert_same("gather", case, blocks.GOOD_BYTES, [u, offsets])
    else:
        assert_same("scatter", case, blocks.GOOD_BYTES, [y, offsets], duplicates=name)


@pytest.mark.parametrize("weights", only("mean_inside", "cover", "last", among=WEIGHTS))
@pytest.mark.parametrize("name", ["reduce", "replicate"])
def test_overlapping_weights(name, weights, rng):
    case = overlapping("NDHWC")
    u, y, *_ = drawn(case, np.dtype("float32"), "plain", 0)
    pattern = rng.standard_normal(case.geometry.window_shape).astype(np.float32)
    array = u if name == "reduce" else y
    assert_same(name, case, blocks.GOOD_BYTES, [array, pattern], weights=weights)


@pytest.mark.parametrize(
    ("shape", "window", "options", "dtype", "primitive", "reason"),
    [
        ((8, 32, 32, 128), (2, 2), {}, "float16", "select", "float16 is not among"),
        ((8, 32, 32, 128), (2, 2), {}, "float64", "reduce", "float64 is not among"),
        ((8, 32, 32, 128), (6, 6), {}, "float32", "select", "36 elements"),
        ((8, 32, 32, 128), (2, 2), {"strides": 6}, "float32", "scatter", "strides"),
        ((8, 32, 32, 16), (2, 2), {}, "float32", "gather", "16 channels are too few"),
        ((0, 32, 32, 128), (2, 2), {}, "float32", "select", "empty"),
        ((1, 64, 8192, 128), (3, 3), {}, "float32", "select", "8.0 times its size"),
        ((1, 9, 9, 1024, 128), (3, 3, 3), {"strides": 1}, "float32", "gather", "VMEM"),
    ],
)
def test_says_what_it_does_not_serve(shape, window, options, dtype, primitive, reason):
    geometry = WindowGeometry.for_input(shape, window, **options)
    assert reason in mosaic_tpu.unsupported(primitive, geometry, shape, dtype)


def test_serves_integers_for_sums_only():
    shape = (8, 32, 32, 128)
    geometry = WindowGeometry.for_input(shape, (2, 2))
    assert mosaic_tpu.unsupported("reduce", geometry, shape, "int8", pattern=True) is None
    assert "integers" in mosaic_tpu.unsupported("reduce", geometry, shape, "int8", weights="mean")


# The compiler.


def both(*shape, data_format="channels_last"):
    """The two usual windows over an array."""
    for window, options in ((2, 2), {}), ((3, 3), {"strides": 2, "padding": 1}):
        geometry = WindowGeometry.for_input(shape, window, data_format=data_format, **options)
        yield pytest.param(Case(geometry, shape), id=f"{shape}-{window}")


LARGE = [
    *both(8, 224, 224, 128),
    *both(8, 224, 224, 64),
    *both(8, 128, 112, 112, data_format="channels_first"),
    *both(8, 14, 14, 512),
    *both(256, 56, 56, 64),
]
# XLA lays their pooled arrays out differently, or their rows in the sublanes: it copies them.
COPIED = [
    next(both(8, 56, 56, 256)),
    next(both(8, 64, 56, 56, data_format="channels_first")),
]
PRIMITIVES = ("select", "gather", "scatter", "reduce", "replicate")


@functools.cache
def device(name):
    """A device of a TPU that is not there."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    topology = topologies.get_topology_desc(platform="tpu", topology_name=f"{name}:2x2")
    return jax.sharding.SingleDeviceSharding(topology.devices[0])


def arrays(primitive, case, dtype):
    """Shapes and types of what a primitive reads and writes."""
    pooled = case.geometry.pooled_shape(case.shape)
    u, y = jax.ShapeDtypeStruct(case.shape, dtype), jax.ShapeDtypeStruct(pooled, dtype)
    offsets = jax.ShapeDtypeStruct(pooled, case.geometry.offset_dtype)
    return {
        "select": ([u], [y, offsets]),
        "gather": ([u, offsets], [y]),
        "scatter": ([y, offsets], [u]),
        "reduce": ([u], [y]),
        "replicate": ([y], [u]),
    }[primitive]


def compiled(kernels, primitive, case, dtype, target, **options):
    """A compiled primitive, and the bytes it accesses."""
    operands = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device(target))
        for a in arrays(primitive, case, dtype)[0]
    ]
    if primitive in ("reduce", "replicate"):
        options = {"pattern": None, "weights": "mean", **options}
    call = functools.partial(getattr(kernels, primitive), geometry=case.geometry, **options)
    program = jax.jit(call).lower(*operands).compile()
    return program, program.cost_analysis()["bytes accessed"]


on_both = pytest.mark.parametrize("target", ["v5e", "v6e"])


@on_both
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("primitive", PRIMITIVES)
@pytest.mark.parametrize("case", LARGE)
def test_moves_what_must_be_moved(case, primitive, dtype, target):
    assert mosaic_tpu.unsupported(primitive, *case, dtype) is None
    program, moved = compiled(mosaic_tpu, primitive, case, dtype, target)
    must = sum(a.size * a.dtype.itemsize for group in arrays(primitive, case, dtype) for a in group)
    assert program.memory_analysis().temp_size_in_bytes == 0
    # Rows that windows of two blocks have in common are read twice.
    assert must <= moved <= (1.35 if case.geometry.overlaps else 1.001) * must


@pytest.mark.parametrize("primitive", PRIMITIVES)
@pytest.mark.parametrize("case", COPIED)
def test_copies_cost_less_than_no_kernel(case, primitive):
    assert mosaic_tpu.unsupported(primitive, *case, "float32") is None
    _, moved = compiled(mosaic_tpu, primitive, case, "float32", "v5e")
    _, plain = compiled(xla, primitive, case, "float32", "v5e", borders_apart=False)
    assert moved < plain


@on_both
@pytest.mark.parametrize("primitive", PRIMITIVES)
@hypothesis.settings(max_examples=examples(2, 15))
@hypothesis.given(case=cases(longest=(60, 40, 20)), data=st.data())
def test_compiles_whatever_it_serves(primitive, target, case, data):
    dtype = data.draw(st.sampled_from(FLOATS + INTEGERS))
    is_sum = primitive in ("reduce", "replicate")
    options = {"weights": data.draw(st.sampled_from(WEIGHTS))} if is_sum else {}
    reason = mosaic_tpu.unsupported(primitive, *case, dtype, **options)
    hypothesis.assume(reason is None)
    compiled(mosaic_tpu, primitive, case, dtype, target, **options)
