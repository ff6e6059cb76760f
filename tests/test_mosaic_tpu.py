"""The Pallas kernels for TPU: how they see arrays, what they refuse, and what they compile to.

No TPU is needed: libtpu compiles for one that is not there.
"""

import functools
import importlib.util
import os

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backend_cases import (
    PRIMITIVES,
    SUMS,
    TESTED,
    WEIGHTINGS,
    Case,
    arrays_of,
    calls_of,
    for_lanes,
    interpreted_tpu,
    run,
    same_bits,
)
from hypothesis import strategies as st
from jax.experimental import topologies
from strategies import examples, only

from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels import mosaic_tpu, xla
from jaxunpool.kernels.mosaic_tpu.views import view

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


@pytest.mark.thorough
@pytest.mark.parametrize("primitive", only("select", "scatter", among=PRIMITIVES))
@pytest.mark.parametrize("order", only("NDHCW", among=VIEWS))
def test_overlapping_windows(order, primitive, rng):
    case = overlapping(order)
    for call in calls_of(primitive, case.geometry)[-2:]:  # of weightings, those with masks
        kind = "plain" if primitive in SUMS else "special"
        pattern = primitive in SUMS
        arrays = arrays_of(call, case.shape, np.dtype(jnp.bfloat16), kind, rng, pattern)
        with interpreted_tpu():
            found = run("mosaic_tpu", call, arrays)
        same_bits(call, found, run("xla", call, arrays))


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
    assert "integers" in mosaic_tpu.unsupported("reduce", geometry, shape, "int8", weighting="mean")


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
        options = {"pattern": None, "weighting": "mean", **options}
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
    _, plain = compiled(xla, primitive, case, "float32", "v5e")
    assert moved < plain


@on_both
@pytest.mark.parametrize("primitive", PRIMITIVES)
@hypothesis.settings(max_examples=examples(2, 15))
@hypothesis.given(case=for_lanes(longest=(60, 40, 20)), data=st.data())
def test_compiles_whatever_it_serves(primitive, target, case, data):
    dtype = data.draw(st.sampled_from(TESTED["mosaic_tpu"].dtypes))
    is_sum = primitive in ("reduce", "replicate")
    options = {"weighting": data.draw(st.sampled_from(WEIGHTINGS))} if is_sum else {}
    reason = mosaic_tpu.unsupported(primitive, *case, dtype, **options)
    hypothesis.assume(reason is None)
    compiled(mosaic_tpu, primitive, case, dtype, target, **options)
