"""pool_at against NumPy, max_unpool, and max pooling."""

import functools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from derivatives import check
from hypothesis import strategies as st
from strategies import FLOATS, INTEGERS, examples, poolings, values
from test_max import assert_same

import jaxunpool as jup

WINDOW = {"window_shape": (3, 3), "strides": 2, "padding": 1}
IMPLEMENTATIONS = [None, "xla"]


def read(x, flat):
    """Of one channels-last image: the element at each position, zero outside of the plane."""
    lines = x.reshape(-1, x.shape[-1])
    inside = (flat >= 0) & (flat < len(lines))
    found = np.take_along_axis(lines, np.where(inside, flat, 0).reshape(-1, x.shape[-1]), 0)
    return np.where(inside, found.reshape(flat.shape), np.zeros((), x.dtype))


@hypothesis.settings(max_examples=examples(4, 60))
@hypothesis.given(
    pooling=poolings(),
    dtype=st.sampled_from(FLOATS + INTEGERS),
    seed=st.integers(0, 2**32 - 1),
    implementation=st.sampled_from(IMPLEMENTATIONS),
)
def test_reads_what_the_indices_name(pooling, dtype, seed, implementation):
    rng = np.random.default_rng(seed)
    x, other = (values(rng, pooling.shape, dtype, kind) for kind in ("special", "plain"))
    try:
        y, indices = jup.max_pool_with_indices(x, **pooling.options)
    except ValueError:
        hypothesis.reject()
    at = functools.partial(jup.pool_at, implementation=implementation)
    assert_same(at(x, indices), np.asarray(y))
    n, layout = len(pooling.sizes), pooling.data_format
    raw = functools.partial(at, spatial_ndim=n, data_format=layout)
    expected = oracle.over_layout(read, n, layout, other, np.asarray(indices.flat))
    assert_same(at(other, indices), expected)
    assert_same(raw(other, indices.flat), expected)
    flat = rng.integers(-2, math.prod(pooling.sizes) + 2, indices.shape)
    anywhere = oracle.over_layout(read, n, layout, other, flat)
    assert_same(raw(other, flat), anywhere)


@pytest.mark.few(2)
@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "native_cpu"])
def test_is_the_transpose_of_max_unpool(rng, implementation):
    """With windows that overlap, packed or not, raw or not, and derivatives of any order."""
    x, other = rng.standard_normal((2, 2, 7, 8, 3))
    if implementation == "native_cpu":
        pytest.importorskip("jaxunpool.kernels.native_cpu").missing() and pytest.skip("not built")
    indices = jup.max_pool_with_indices(x, **WINDOW)[1]
    y = rng.standard_normal(indices.shape)
    options = {"implementation": implementation}
    for some, size in (
        (indices, {}),
        (indices.pack(), {}),
        (indices.flat, {"output_shape": (7, 8)}),
    ):
        at = functools.partial(jup.pool_at, indices=some, **options)
        unpooled = jup.max_unpool(y, some, duplicates="sum", **size, **options)
        pulled, transposed = jax.jit(
            lambda y, at=at: (jax.vjp(at, other)[1](y)[0], jax.linear_transpose(at, other)(y)[0])
        )(y)
        np.testing.assert_array_equal(pulled, unpooled)
        np.testing.assert_array_equal(transposed, unpooled)
        back = jax.vjp(lambda y, s=some, z=size: jup.max_unpool(y, s, duplicates="sum", **z), y)[1]
        np.testing.assert_array_equal(back(other)[0], at(other))
    check(lambda x: jup.pool_at(x, indices, **options), other, forward=True)


def test_the_gradient_of_packed_indices_keeps_them_packed(rng):
    x = rng.standard_normal((2, 6, 8, 4)).astype(np.float32)
    indices = jup.max_pool_with_packed_indices(x, (2, 2))[1]
    kept = jax.tree.leaves(jax.vjp(lambda x: jup.pool_at(x, indices), x)[1])
    assert sum(leaf.nbytes for leaf in kept) == indices.nbytes


def test_an_offset_that_names_nothing_reads_zero():
    x = jnp.full((4, 4, 2), jnp.nan)
    _, indices = jup.max_pool_with_indices(x, (2, 2))
    nothing = jup.PoolIndices(jnp.full_like(indices.offsets, 4), indices.geometry)
    for implementation in IMPLEMENTATIONS:
        y = jup.pool_at(x, nothing, implementation=implementation)
        np.testing.assert_array_equal(y, np.zeros((2, 2, 2)))


def test_indices_of_uneven_windows(rng):
    x, other = rng.standard_normal((2, 2, 7, 8, 3))
    for pool in (
        lambda x: jup.adaptive_max_pool_with_indices(x, (3, 5)),
        lambda x: jup.fractional_max_pool_with_indices(x, (2, 2), (4, 5), key=jax.random.key(0)),
        jup.global_max_pool_with_indices,
    ):
        y, indices = pool(x)
        np.testing.assert_array_equal(jup.pool_at(x, indices), y)
        expected = oracle.over_layout(read, 2, "channels_last", other, np.asarray(indices.flat))
        np.testing.assert_array_equal(jup.pool_at(other, indices), expected)
