"""The Mosaic GPU kernels: the bits of the plain implementation, and what they compile to."""

import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import mosaic_gpu as plgpu
from strategies import per_axis

from jaxunpool.geometry import WindowGeometry
from jaxunpool.kernels import mosaic_gpu, xla

DTYPES = [np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)]
WEIGHTS = ["sum", "mean", "mean_inside", "cover", "last"]

interpreted = pytest.mark.skipif(
    not hasattr(plgpu, "InterpretGPUParams"), reason="GPU interpret mode comes with jax 0.12"
)


@st.composite
def calls(draw):
    """A geometry the kernels serve, the full shape of its unpooled array, a type and a seed."""
    n = draw(st.integers(1, 3))
    window = draw(per_axis(n, 1, (5, 3, 2)[n - 1]))
    dilation = draw(st.one_of(st.just((1,) * n), per_axis(n, 1, 2)))
    pads = [st.tuples(*[st.integers(0, (k - 1) * d)] * 2) for k, d in zip(window, dilation)]
    padding = draw(st.one_of(st.sampled_from(["VALID", "SAME"]), st.tuples(*pads)))
    strides = draw(st.one_of(st.just(window), per_axis(n, 1, 3)))
    sizes = draw(per_axis(n, 1, (12, 7, 4)[n - 1]))
    channels = draw(st.sampled_from([1, 3, 8, 20, 32, 64, 96, 128]))
    least = 128 // math.gcd(channels, 128)
    batch = draw(st.sampled_from([(least,), (1, least + 1), (2, 2 * least)]))
    data_format = draw(st.sampled_from(["channels_last", "channels_first"]))
    shape = (*sizes, channels) if data_format == "channels_last" else (channels, *sizes)
    try:
        geometry = WindowGeometry.for_input(
            (*batch, *shape),
            window,
            strides,
            padding,
            dilation=dilation,
            ceil_mode=draw(st.booleans()),
            data_format=data_format,
        )
    except ValueError:  # a window larger than the padded input
        assume(False)
    dtype = draw(st.sampled_from(DTYPES))
    for primitive in ("select", "scatter"):
        assume(mosaic_gpu.unsupported(primitive, geometry, (*batch, *shape), dtype) is None)
    return geometry, (*batch, *shape), dtype, np.random.default_rng(draw(st.integers(0, 2**32)))


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
@settings(max_examples=25)
@given(calls())
def test_select_equals_xla(call):
    geometry, shape, dtype, rng = call
    check("select", [special(rng, shape, dtype)], geometry)


@interpreted
@settings(max_examples=25)
@given(calls())
def test_gather_equals_xla(call):
    geometry, shape, dtype, rng = call
    check("gather", [special(rng, shape, dtype), offsets_of(rng, geometry, shape)], geometry)


@interpreted
@settings(max_examples=25)
@given(calls(), st.sampled_from(["sum", "last"]))
def test_scatter_equals_xla(call, duplicates):
    geometry, shape, dtype, rng = call
    offsets = offsets_of(rng, geometry, shape)
    y = values(rng, offsets.shape, dtype)
    check("scatter", [y, offsets], geometry, duplicates, signed_zeros=duplicates == "last")


@interpreted
@settings(max_examples=25)
@given(calls(), st.sampled_from(WEIGHTS), st.booleans())
def test_reduce_equals_xla(call, weights, has_pattern):
    geometry, shape, dtype, rng = call
    u = values(rng, shape, dtype)
    pattern = values(rng, geometry.window_shape, np.float32) if has_pattern else None
    check("reduce", [u, pattern], geometry, weights, signed_zeros=False)


@interpreted
@settings(max_examples=25)
@given(calls(), st.sampled_from(WEIGHTS), st.booleans())
def test_replicate_equals_xla(call, weights, has_pattern):
    geometry, shape, dtype, rng = call
    y = values(rng, geometry.pooled_shape(shape), dtype)
    pattern = values(rng, geometry.window_shape, np.float32) if has_pattern else None
    check("replicate", [y, pattern], geometry, weights, signed_zeros=False)
