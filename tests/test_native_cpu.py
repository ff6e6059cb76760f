"""The library for CPU: whatever numbers and offsets it is given, on however many threads.

The tests of hostile calls run here as they are, and in a process of its own with a library that was
compiled with sanitizers.
"""

import functools
import itertools
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backend_cases import SUMS, TESTED, run
from hypothesis import strategies as st
from native_calls import ALONE, WEIGHTINGS, call, define, numbers, pooled, unpooled, volume
from strategies import examples, only

import jaxunpool as jup
from jaxunpool.core.calls import Call
from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels.native_cpu import library

FOLDER = pathlib.Path(library.__file__).parent
TESTS = pathlib.Path(__file__).parent
FLOAT, BYTE, WIDE = (np.dtype(t) for t in ("float32", "uint8", "uint16"))
MOST = 2**31 - 1
FLOATS = ("float32", "float64", "bfloat16", "float16")


@pytest.fixture(autouse=True)
def _library_is_there():
    reason = library.missing()
    if reason is not None:
        pytest.skip(f"no kernels for CPU: {reason}")


# Offsets that name nothing, and windows that hold nothing

few = st.integers(0, 4)
huge = st.sampled_from([5, 1000, MOST])
axes = st.tuples(
    st.integers(0, 6),  # size
    few,  # windows
    st.integers(1, 4),  # window
    st.integers(1, 3) | huge,  # stride
    st.integers(1, 3) | huge,  # dilation
    few | huge,  # low
    few | huge,  # high
)


def check_all(
    sizes: np.ndarray, dtype: np.dtype, rng: np.random.Generator, divided: bool = False
) -> None:
    """Every kernel for some numbers, on offsets of every kind, against the definition.

    Args:
        sizes: the numbers.
        dtype: of the arrays. Sums of 16-bit floats are rounded, to the even one of two.
        rng: of what is in them.
        divided: whether every window holds an element, so that the means of it are defined.
    """
    inside, outside = unpooled(sizes), pooled(sizes)
    is_short = dtype.kind not in "iu" and dtype.itemsize == 2
    most = 1000 if is_short else 4
    x, u, y = (rng.integers(0, most, shape).astype(dtype) for shape in (inside, inside, outside))
    if dtype.kind not in "iu":

        def with_some(array: np.ndarray, some: Sequence[float]) -> np.ndarray:
            others = rng.choice(some, array.shape)
            return np.where(rng.random(array.shape) < 0.3, others, array).astype(dtype)

        zeros = [0.0, -0.0, 65504, 16] if dtype == "float16" else [0.0, -0.0]  # 65520 overflows
        x, u, y = with_some(x, [np.nan, np.inf, -np.inf]), with_some(u, zeros), with_some(y, zeros)
    x, u, y = map(jnp.asarray, (x, u, y))
    narrow = BYTE if volume(sizes) <= 255 else WIDE
    offset_type = rng.choice([narrow, WIDE])
    some = rng.integers(0, np.iinfo(offset_type).max, outside, offset_type, endpoint=True)
    near = rng.integers(0, volume(sizes) + 2, outside).astype(offset_type)
    offsets = jnp.asarray(np.where(rng.random(outside) < 0.5, some, near))
    ones = rng.integers(0, 2, volume(sizes)) if rng.random() < 0.5 else None
    summed = FLOAT if is_short else dtype
    pattern = jnp.asarray([] if ones is None else ones).astype(summed)

    @jax.jit
    def found(x, u, y, offsets, pattern):
        index = functools.partial(call, sizes=sizes)
        results = [index("select", [(outside, dtype), (outside, offset_type)], x)]
        for last in (False, True):
            results.append(index("gather", [(outside, dtype)], u, offsets, winners=last))
            results.append(index("scatter", [(inside, dtype)], y, offsets, last=last))
        for i in map(np.int64, range(len(WEIGHTINGS))):
            results.append(index("reduce", [(outside, dtype)], u, pattern, weighting=i))
            results.append(index("replicate", [(inside, dtype)], y, pattern, weighting=i))
        return results

    wanted: list[Any] = [define("select", sizes, x)]
    for last in (False, True):
        wanted.append(define("gather", sizes, u, offsets, last=last))
        wanted.append(define("scatter", sizes, y, offsets, last=last))
    for how in WEIGHTINGS:
        for name, array in (("reduce", u), ("replicate", y)):
            divides = "" if how in ("sum", "last") else how
            if divides and not (divided and dtype.kind not in "iu"):
                wanted.append(None)
                continue
            options = {"last": how == "last", "pattern": ones, "divides": divides}
            wanted.append(define(name, sizes, array, **options))
    for results, expected in zip(found(x, u, y, offsets, pattern), wanted, strict=True):
        jax.block_until_ready(results)
        if expected is not None:
            for a, b in zip(map(np.asarray, results), expected, strict=True):
                a, b = (c if c.dtype.kind in "iu" else c.astype(np.float64) for c in (a, b))
                np.testing.assert_array_equal(a, b)
                np.testing.assert_array_equal(np.signbit(a), np.signbit(b))


@hypothesis.settings(max_examples=examples(6, 100))
@hypothesis.given(data=st.data())
def test_hostile_numbers_are_harmless(data):
    """Windows wholly outside, no windows, no elements, paddings and steps far beyond the sizes."""
    some = data.draw(st.lists(axes, min_size=1, max_size=3))
    batch = data.draw(st.integers(0, 2) | st.just(140))  # so many planes are turned around
    sizes = numbers(batch, data.draw(st.sampled_from([0, 1, 3, 18])), *some)
    dtype = data.draw(st.sampled_from(TESTED["native_cpu"].dtypes))
    check_all(sizes, dtype, np.random.default_rng(data.draw(st.integers(0, 2**32 - 1))))


@hypothesis.settings(max_examples=examples(8, 200))
@hypothesis.given(data=st.data())
def test_hostile_tables_are_harmless(data):
    """Maps along axes in any order, with taps that are none, of every number of neighbours."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    sizes = data.draw(st.lists(st.sampled_from([1, 2, 3, 9, 40]), min_size=3, max_size=3))
    outputs = data.draw(st.lists(st.sampled_from([0, 1, 2, 5, 17, 70]), min_size=3, max_size=3))
    order = data.draw(st.permutations(range(3)))[: data.draw(st.integers(1, 3))]
    outputs = [outputs[i] if i in order else sizes[i] for i in range(3)]
    batch, channels = data.draw(st.sampled_from([0, 1, 2, 33])), data.draw(st.integers(0, 19))
    dtype = np.dtype(data.draw(st.sampled_from(["float32", "float64", "bfloat16", "float16"])))
    divides_first = data.draw(st.booleans())
    real = "float64" if dtype == "float64" else "float32"
    x = rng.integers(-4, 5, (batch, *sizes, channels)).astype(dtype)
    tables, wanted = [], x.astype("float64")
    for size, count in zip(sizes, outputs):
        shape = (data.draw(st.integers(1, 4)), count)
        near = (np.arange(count) * size // max(count, 1) + rng.integers(0, 2, shape)) % size
        elements = rng.integers(0, size, shape) if rng.random() < 0.3 else near
        weights, divided = rng.integers(0, 3, shape), size if divides_first else count
        divisors = 2.0 ** rng.integers(0, 2, divided if rng.random() < 0.3 else 0)
        tables += [elements.astype("int32"), weights.astype(real), divisors.astype(real)]
    for axis in order:
        elements, weights, divisors = tables[3 * axis : 3 * axis + 3]
        along = [1] * 5
        along[axis + 1] = -1
        if len(divisors) and divides_first:
            wanted = wanted / divisors.reshape(along)
        taps = zip(elements, weights)
        wanted = sum(np.take(wanted, e, axis + 1) * w.reshape(along) for e, w in taps)
        if len(divisors) and not divides_first:
            wanted = wanted / divisors.reshape(along)
    pairs = itertools.chain(*zip(sizes, outputs))
    listed = np.array([batch, channels, *pairs, *order], np.int64)
    (found,) = jax.jit(
        functools.partial(
            call,
            "resample",
            [((batch, *outputs, channels), dtype)],
            sizes=listed,
            moves=False,
            divides_first=divides_first,
        )
    )(x, *tables)
    np.testing.assert_array_equal(np.asarray(found), wanted.astype(dtype))


@hypothesis.settings(max_examples=examples(10, 200))
@hypothesis.given(data=st.data())
def test_hostile_offsets_in_rows_of_few_channels(data):
    """Vectors of a row reach over several windows, and at its ends beyond them."""
    channels, stride = data.draw(st.integers(1, 17)), data.draw(st.integers(1, 6))
    window, outputs = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 12))
    low, dilation = data.draw(st.integers(0, 2 * window)), data.draw(st.sampled_from([1, 1, 1, 2]))
    size = max(1, outputs * stride - low + data.draw(st.integers(-stride, window)))
    above = data.draw(st.sampled_from([ALONE, (3, 2, 2, 2, 1, 1, 0), (4, 4, 3, 1, 1, 1, 1)]))
    row = (size, outputs, window, stride, dilation, low, 0)
    sizes = numbers(data.draw(st.integers(1, 2)), channels, above, row)
    dtype = data.draw(st.sampled_from(TESTED["native_cpu"].dtypes))
    inside, outside = unpooled(sizes), pooled(sizes)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    y = rng.integers(1, 9, outside).astype(dtype)
    near = rng.integers(0, volume(sizes) + 2, outside)
    offsets = np.where(rng.random(outside) < 0.8, near, rng.integers(0, 256, outside)).astype(BYTE)
    for last in (False, True):
        kernel = functools.partial(call, "scatter", [(inside, dtype)], sizes=sizes, last=last)
        (found,) = jax.jit(kernel)(y, offsets)
        (wanted,) = define("scatter", sizes, y, offsets, last=last)
        np.testing.assert_array_equal(np.asarray(found), wanted.astype(found.dtype))


@pytest.mark.parametrize("spatial", only("9x7", among=["9x7", "40", "4x5x6", "3x260"]))
@pytest.mark.parametrize("dtype", only("bfloat16", among=["bfloat16", "float32", "int8"]))
def test_channels_first_is_channels_last(dtype, spatial):
    """Blocks of planes are turned around, the last of them not full; long rows are not."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-9, 9, (2, 75, *map(int, spatial.split("x")))), dtype)

    @functools.partial(jax.jit, static_argnames="data_format")
    def everything(x, data_format):
        window = {"strides": 2, "padding": 1, "data_format": data_format}
        y, indices = jup.max_pool_with_indices(x, 3, **window)
        results = [y, indices.offsets]
        adaptive = jup.adaptive_max_pool_with_indices(x, 2, data_format=data_format)
        results += jax.tree.leaves(adaptive)
        for duplicates in ("last", "sum"):
            unpool = functools.partial(jup.max_unpool, indices=indices, duplicates=duplicates)
            results.append(unpool(y))
            if jnp.issubdtype(dtype, jnp.floating):
                results += jax.vjp(unpool, y)[1](x)
        if jnp.issubdtype(dtype, jnp.floating):
            results += jax.vjp(lambda x: jup.max_pool(x, 3, **window), x)[1](y)
            results += jax.vjp(lambda x: jup.avg_pool(x, 3, **window), x)[1](y)
            results.append(jup.avg_pool(x, 2, data_format=data_format))
        return results

    last = everything(jnp.moveaxis(x, 1, -1), "channels_last")
    for ours, wanted in zip(everything(x, "channels_first"), last, strict=True):
        np.testing.assert_array_equal(ours, jnp.moveaxis(wanted, -1, 1))


PLANES = {  # shape, window, strides, padding
    "small": ((5, 61, 14, 14), 2, 2, 0),
    "small, few windows": ((6, 50, 14, 14), 7, 7, 0),
    "small, gaps": ((4, 75, 3, 7, 9), 2, 3, 1),
    "rows": ((3, 4, 40, 33), 2, 2, 0),
    "rows, gaps": ((3, 4, 35, 64), 3, 5, 0),
    "rows, padded": ((2, 3, 40, 41), 5, 5, 2),
    "rows, of windows of many elements": ((1, 2, 90, 100), 40, 40, 0),
    "rows, layers": ((1, 2, 9, 12, 30), 3, 3, 0),
    "rows, a stride of its own": ((2, 3, 40, 41), 1, 2, 0),
    "long rows": ((2, 3, 3000), 2, 2, 0),
    "too large for caches": ((17, 16, 128, 128), 2, 2, 0),
}


@pytest.mark.parametrize("case", only("small", "rows", "rows, gaps", among=list(PLANES)))
@pytest.mark.parametrize("dtype", only("float32", among=["float32", "bfloat16", "int8", "int32"]))
def test_copies_and_sums_by_planes_have_the_bits_of_xla(dtype, case):
    """Tables, rows of copies and rows of sums, with zeros of both signs."""
    shape, window, strides, padding = PLANES[case]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-3, 4, shape), dtype)
    if jnp.issubdtype(dtype, jnp.floating):
        x = jnp.where(x == 0, -x, x)
        x = jnp.where(x == 3, jnp.asarray(-1.5e-38, dtype), x)  # a part of it is zero

    @functools.partial(jax.jit, static_argnums=1)
    def everything(x, implementation):
        options = {"strides": strides, "padding": padding, "data_format": "channels_first"}
        options |= {"window_shape": window, "implementation": implementation}
        y, size = jup.max_pool(x, **options), shape[2:]
        nearest = lambda y: jup.nearest_unpool(y, output_shape=size, **options)
        results = [y, nearest(y)]
        if jnp.issubdtype(dtype, jnp.floating):
            results += jax.vjp(nearest, y)[1](x)
            means, pull = jax.vjp(lambda x: jup.avg_pool(x, **options), x)
            inside = lambda x: jup.avg_pool(x, count_include_pad=False, **options)
            results += [means, *pull(y), *jax.vjp(inside, x)[1](y)]
        return results

    for ours, wanted in zip(everything(x, "native_cpu"), everything(x, "xla"), strict=True):
        np.testing.assert_array_equal(ours, wanted)
        np.testing.assert_array_equal(jnp.signbit(ours), jnp.signbit(wanted))


@pytest.mark.parametrize("stride", only(2, among=[1, 2]))
@pytest.mark.parametrize("channels", only(3, among=[3, 16, 20, 64]))
@pytest.mark.parametrize("dtype", only("float32", among=["float32", "bfloat16"]))
def test_large_results_have_the_bits_of_xla(dtype, channels, stride):
    """They go past the caches, where a whole vector of them is aligned."""
    rows = (17 << 20) // (jnp.dtype(dtype).itemsize * 301 * channels) + 1
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-9, 9, (1, rows, 301, channels)), dtype)

    @functools.partial(jax.jit, static_argnums=1)
    def everything(x, implementation):
        window = {"strides": stride, "padding": 1, "implementation": implementation}
        y, indices = jup.max_pool_with_indices(x, 3, **window)
        results = [y, indices.offsets]
        for duplicates in ("last", "sum"):
            options = {"duplicates": duplicates, "implementation": implementation}
            results.append(jup.max_unpool(y, indices, **options))
        means, pull = jax.vjp(lambda x: jup.avg_pool(x, 3, **window), x)
        return [*results, means, *pull(y)]

    for ours, wanted in zip(everything(x, "native_cpu"), everything(x, "xla"), strict=True):
        np.testing.assert_array_equal(ours, wanted)


# Small windows, windows that are compared with 32 bits, and those whose offsets have 16.
WINDOWS = {
    "tiles": [(6, 3, 2, 2, 1, 0, 0)] * 2,
    "overlap": [(7, 4, 3, 2, 1, 1, 1)] * 2,
    "dilation": [(9, 5, 3, 2, 2, 2, 2), (8, 8, 3, 1, 3, 3, 3)],
    "volume": [(3, 3, 3, 1, 1, 1, 1), (4, 2, 3, 2, 1, 1, 1), (5, 3, 3, 2, 1, 1, 1)],
    "one dilation": [(7, 4, 3, 2, 1, 1, 1), (9, 4, 3, 2, 2, 1, 1)],
    "phases": [(10, 4, 3, 2, 1, 0, 0)] * 2,
    "beyond": [(2, 2, 1, 1, 1, 0, 0), (10, 4, 7, 2, 1, 2, 1), (9, 4, 6, 2, 1, 2, 1)],
    "few": [(13, 3, 5, 5, 1, 1, 1)] * 2,
    "codes": [
        (12, 6, 7, 1, 1, 0, 0),
        (10, 3, 8, 1, 1, 0, 0),
    ],  # of a byte, but not their differences
    "255": [(20, 3, 15, 2, 1, 1, 0), (20, 2, 17, 3, 1, 0, 0)],
    "272": [(18, 2, 16, 2, 1, 0, 0), (18, 1, 17, 1, 1, 0, 0)],
}


EVERY = [(t, *sizes) for t in [*FLOATS, "int8"] for sizes in [(40, 3), (2, 18)]]
QUICKLY = [("float32", 40, 3), ("float32", 2, 18), ("bfloat16", 40, 3), ("float16", 2, 18)]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("dtype", "batch", "channels"), only(*QUICKLY, among=EVERY))
def test_every_kernel_is_the_definition(dtype, batch, channels, window):
    sizes = numbers(batch, channels, *WINDOWS[window])
    check_all(sizes, np.dtype(dtype), np.random.default_rng(channels), divided=True)


@pytest.mark.parametrize("how", ["gather", "gather last", "scatter", "scatter last"])
@pytest.mark.parametrize("window", only(*list(WINDOWS)[:-1], among=WINDOWS))
def test_hostile_offsets_select_nothing(window, how):
    """Every number that the type of offsets has, in every window; the channels differ by it.

    In some channels more, windows name the same elements.
    """
    name, *last = how.split()
    offset_type = BYTE if np.prod([axis[2] for axis in WINDOWS[window]]) <= 255 else WIDE
    count, more = np.iinfo(offset_type).max + 1, 32
    sizes = numbers(1, count + more, *WINDOWS[window])
    inside, outside = unpooled(sizes), pooled(sizes)
    rng, dtype = np.random.default_rng(0), FLOAT
    first, result = (inside, outside) if name == "gather" else (outside, inside)
    array = rng.integers(1, 100, first).astype(dtype)
    every = np.broadcast_to(np.arange(count), (*outside[:-1], count))
    some = rng.integers(0, volume(sizes) + 1, (*outside[:-1], more))
    offsets = np.concatenate([every, some], -1).astype(offset_type)
    option = {"winners" if name == "gather" else "last": bool(last)}
    kernel = jax.jit(functools.partial(call, name, [(result, dtype)], sizes=sizes, **option))
    (found,) = kernel(array, offsets)
    (wanted,) = define(name, sizes, array, offsets, last=bool(last))
    np.testing.assert_array_equal(found, wanted)


def test_rows_of_every_period():
    """Vectors of a row begin at every place in the elements from one window to the next."""
    cases = list(itertools.product(range(2, 8), range(1, 16), (FLOAT, np.dtype("int8"))))
    rng, calls, arrays, wanted = np.random.default_rng(0), [], [], []
    for stride, channels, dtype in cases:
        row = (70, 70 // stride - 1, stride + 1, stride, 1, 1, 1)
        sizes = numbers(1, channels, row)
        y = rng.integers(1, 9, pooled(sizes)).astype(dtype)
        offsets = rng.integers(0, stride + 2, y.shape).astype(BYTE)
        result = [(unpooled(sizes), dtype)]
        calls.append(functools.partial(call, "scatter", result, sizes=sizes, last=False))
        arrays.append((y, offsets))
        wanted += define("scatter", sizes, y, offsets)
    every = jax.jit(lambda arrays: [kernel(*a)[0] for kernel, a in zip(calls, arrays)])
    for case, found, expected in zip(cases, every(arrays), wanted, strict=True):
        np.testing.assert_array_equal(found, expected, str(case))


def test_windows_of_thousands():
    """Their offsets are followed by one load each, at the borders too."""
    axis = (66, 2, 65, 1, 1, 1, 1)
    sizes, rng = numbers(100, 2, axis, axis), np.random.default_rng(0)
    u = rng.integers(1, 99, unpooled(sizes)).astype(FLOAT)
    offsets = rng.integers(0, volume(sizes) + 2, pooled(sizes)).astype(WIDE)
    offsets[0] = volume(sizes)
    result = [(offsets.shape, FLOAT)]
    gather = functools.partial(call, "gather", result, sizes=sizes, winners=False)
    (found,), (wanted,) = jax.jit(gather)(u, offsets), define("gather", sizes, u, offsets)
    np.testing.assert_array_equal(found, wanted)


def test_long_rows_are_cut_between_windows():
    """One row, for more threads than there are rows."""
    y = jnp.asarray(np.random.default_rng(0).integers(1, 9, (1, 300_001, 1)), "float32")

    @functools.partial(jax.jit, static_argnums=1)
    def unpooled(y, implementation):
        return jup.nearest_unpool(y, (3,), implementation=implementation)

    np.testing.assert_array_equal(unpooled(y, "native_cpu"), unpooled(y, "xla"))


@pytest.mark.parametrize(
    ("channels", "axes"),
    [
        # Rows too long to be kept until the next layer.
        (256, [(3, 2, 2, 1, 1, 0, 0), (66, 64, 3, 1, 1, 0, 0), (34, 32, 3, 1, 1, 0, 0)]),
        # Hundreds of windows that meet each other, in the parts of several threads.
        (24, [(12, 8, 5, 1, 1, 0, 0), (40, 36, 5, 1, 1, 0, 0), (41, 37, 5, 1, 1, 0, 0)]),
        (3, [(1, 1, 1, 1, 1, 0, 0), (330, 319, 12, 1, 1, 0, 0), (370, 359, 12, 1, 1, 0, 0)]),
    ],
    ids=["long rows", "3-D", "2-D"],
)
def test_the_last_of_windows_that_meet(channels, axes):
    sizes = numbers(1, channels, *axes)
    (_, *inside), (_, *outside), rng = unpooled(sizes), pooled(sizes), np.random.default_rng(0)
    u, offsets = rng.random(inside, FLOAT), rng.integers(0, volume(sizes), outside).astype(BYTE)
    *window, channel = np.indices(outside, sparse=True)
    taps = np.unravel_index(offsets, tuple(axis[2] for axis in axes))
    elements = (*(o + tap for o, tap in zip(window, taps)), channel)
    number, owner = np.arange(offsets.size).reshape(outside), np.empty(inside, np.int64)
    owner[elements] = number  # the last of several
    kernel = functools.partial(call, "gather", [((1, *outside), FLOAT)], winners=True, sizes=sizes)
    (found,) = jax.jit(kernel)(u[None], offsets[None])
    np.testing.assert_array_equal(found[0], np.where(owner[elements] == number, u[elements], 0))


def test_hostile_layers_of_padding_that_meet():
    """Windows of several layers that meet in the one layer of elements that there is."""
    x = jnp.asarray(np.random.default_rng(0).integers(-9, 9, (4, 1, 50, 50, 24)), "float32")

    @functools.partial(jax.jit, static_argnums=1)
    def gradient(x, implementation):
        options = {"implementation": implementation}
        y, indices = jup.max_pool_with_indices(x, (3, 5, 5), strides=1, padding=2, **options)
        unpool = lambda y: jup.max_unpool(y, indices, **options)
        return jax.vjp(unpool, y)[1](x)[0]

    np.testing.assert_array_equal(gradient(x, "native_cpu"), gradient(x, "xla"))


def test_hostile_positions_name_nothing():
    """Positions of a whole plane, the next example's among them."""
    inside, outside, rng = (2, 6, 3), (2, 9, 3), np.random.default_rng(0)
    u, y = (rng.integers(1, 99, shape).astype(FLOAT) for shape in (inside, outside))
    positions = rng.choice([*range(6), -1, 6, 7, -(2**31), MOST], outside).astype(np.int32)
    summed, moved, read, owner = np.zeros_like(u), np.zeros_like(u), np.zeros_like(y), {}
    for (batch, number, channel), position in np.ndenumerate(positions):
        if 0 <= position < 6:
            element = batch, position, channel
            read[batch, number, channel] = u[element]
            summed[element] += y[batch, number, channel]
            moved[element], owner[element] = y[batch, number, channel], (batch, number, channel)
    winners = np.zeros_like(y)
    for element, window in owner.items():
        winners[window] = u[element]
    sizes = np.array([2, 6, 9, 3])

    @jax.jit
    def found(u, y, positions):
        gather = functools.partial(call, "gather_flat", [(outside, FLOAT)], u, positions)
        scatter = functools.partial(call, "scatter_flat", [(inside, FLOAT)], y, positions)
        several = [gather(sizes=sizes, winners=last) for last in (False, True)]
        return several + [scatter(sizes=sizes, last=last) for last in (False, True)]

    for (result,), wanted in zip(found(u, y, positions), (read, winners, summed, moved)):
        np.testing.assert_array_equal(result, wanted)


def test_hostile_bounds_are_put_inside():
    """Windows that begin or end outside, or end before they begin: none is empty."""
    starts, stops = np.array([-5, 0, 3, 4, 9, 2]), np.array([-1, 0, 2, 99, 99, 5])
    x = np.random.default_rng(0).integers(1, 9, (2, 1, 5, 4, 3)).astype(FLOAT)
    outside, zero, one = (2, 1, 6, 6, 3), np.zeros(1, np.int32), np.ones(1, np.int32)
    bounds = starts.astype(np.int32), stops.astype(np.int32)
    arrays = (x, zero, bounds[0], bounds[0], one, bounds[1], bounds[1])
    sizes = np.array([2, 3, 1, 5, 4, 1, 6, 6])
    types = [(outside, FLOAT), (outside, np.int32)]
    y, flat = jax.jit(functools.partial(call, "select_uneven", types, sizes=sizes))(*arrays)
    for (n, _, row, column, channel), found in np.ndenumerate(y):
        rows, columns = (
            range(first := min(max(starts[o], 0), size - 1), min(max(stops[o], first + 1), size))
            for o, size in ((row, 5), (column, 4))
        )
        window = x[n, 0, rows.start : rows.stop, columns.start : columns.stop, channel]
        at = np.unravel_index(window.argmax(), window.shape)
        assert found == window.max()
        position = (rows.start + at[0]) * 4 + columns.start + at[1]
        assert flat[n, 0, row, column, channel] == position


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_uneven_windows_of_few_channels(channels):
    """Rows shorter and longer than a vector, of every type: the first of equals, the last NaN."""
    size, rng = (2, 3, 700), np.random.default_rng(channels)
    starts = np.array([0, 3, 10, 25, 40, 69, 100, 390])
    stops = starts + np.array([1, 2, 5, 13, 24, 31, 64, 310])
    bounds = [np.array(b, np.int32) for b in ([0], [0, 1], starts, [2], [1, 3], stops)]
    sizes = np.array([2, channels, *size, 1, 2, len(starts)])
    for dtype in TESTED["native_cpu"].dtypes:
        some = [-np.inf, np.inf, np.nan] if dtype.kind not in "iu" else []
        elements = rng.choice(np.array([0, 1, 5, 9, *some]), (2, *size, channels))
        # Most windows without NaN, whose last one is what counts.
        spared = np.isnan(elements) & (rng.random(elements.shape) < 0.99)
        x = np.where(spared, 7, elements).astype(dtype)
        outside = (2, 1, 2, len(starts), channels)
        types = [(outside, dtype), (outside, np.int32)]
        y, flat = jax.jit(functools.partial(call, "select_uneven", types, sizes=sizes))(x, *bounds)
        for (n, _, row, o, c), found in np.ndenumerate(np.asarray(flat)):
            rows, columns = slice(row, (1, 3)[row]), slice(starts[o], stops[o])
            window = x[n, :, rows, columns, c].astype(np.float64)
            nans = np.flatnonzero(np.isnan(window))
            at = np.unravel_index(nans[-1] if len(nans) else window.argmax(), window.shape)
            plane, line, column = at[0], row + at[1], starts[o] + at[2]
            assert found == (plane * size[1] + line) * size[2] + column, (dtype, o, c)
            value = x[n, plane, line, column, c]
            assert np.asarray(y)[n, 0, row, o, c].tobytes() == value.tobytes()


@pytest.mark.few(1)
@pytest.mark.parametrize("primitive", SUMS)
def test_pattern_of_every_type(primitive, rng):
    geometry = WindowGeometry.for_input((2, 7, 6, 3), (3, 2), 2, 1)
    sizes = numbers(2, 3, (7, 4, 3, 2, 1, 1, 1), (6, 4, 2, 2, 1, 1, 1))
    shape = (2, 7, 6, 3) if primitive == "reduce" else geometry.pooled_shape((2, 7, 6, 3))
    assert (unpooled(sizes), pooled(sizes)) == ((2, 1, 7, 6, 3), (2, 1, 4, 4, 3))
    for dtype in TESTED["native_cpu"].dtypes:
        array, pattern = (jnp.asarray(rng.integers(0, 4, s).astype(dtype)) for s in (shape, (3, 2)))
        (found,) = run("native_cpu", Call(primitive, geometry, weighting="sum"), [array, pattern])
        flat = np.asarray(pattern).ravel()
        (wanted,) = define(primitive, sizes, np.expand_dims(array, 1), pattern=flat)
        np.testing.assert_array_equal(found, wanted[:, 0])


def test_hostile_products_of_nothing_do_not_overflow():
    """No channels, and so many examples that their rows have no number."""
    sizes = numbers(2**62, 0, (4, 4, 1, 1, 1, 0, 0), (4, 4, 1, 1, 1, 0, 0))
    nothing = ((0,), FLOAT)
    kernel_of("select", takes=[nothing], gives=[nothing, ((0,), BYTE)], sizes=sizes)()
    kernel_of("replicate", takes=[nothing, nothing], gives=[nothing], sizes=sizes)()


# Calls that are refused

TILES = numbers(2, 3, (6, 3, 2, 2, 1, 0, 0), (4, 2, 2, 2, 1, 0, 0))
IN, OUT = (2, 6, 4, 3), (2, 3, 2, 3)
# What each takes and gives, where no test says otherwise.
CALLS: dict[str, dict[str, Any]] = {
    "select": {"takes": [(IN, FLOAT)], "gives": [(OUT, FLOAT), (OUT, BYTE)]},
    "gather": {"takes": [(IN, FLOAT), (OUT, BYTE)], "gives": [(OUT, FLOAT)], "winners": False},
    "scatter": {"takes": [(OUT, FLOAT), (OUT, BYTE)], "gives": [(IN, FLOAT)], "last": False},
    "reduce": {
        "takes": [(IN, FLOAT), ((0,), FLOAT)],
        "gives": [(OUT, FLOAT)],
        "weighting": np.int64(0),
    },
    "replicate": {
        "takes": [(OUT, FLOAT), ((0,), FLOAT)],
        "gives": [(IN, FLOAT)],
        "weighting": np.int64(0),
    },
}


def with_number(index: int, value: int) -> np.ndarray:
    """The numbers of a call, one of them replaced."""
    sizes = TILES.copy()
    sizes[index] = value
    return sizes


def kernel_of(name: str, **changes: Any) -> Any:
    """A call of zeros, as it should be but for some changes; None leaves an attribute out."""
    arguments = {"sizes": TILES, **CALLS[name], **changes}
    arrays = [jnp.zeros(*kind) for kind in arguments.pop("takes")]
    gives = arguments.pop("gives")
    given = {key: value for key, value in arguments.items() if value is not None}
    kernel = jax.jit(functools.partial(call, name, gives, **given))
    return lambda: jax.block_until_ready(kernel(*arrays))


@functools.cache
def good(name: str) -> Any:
    return kernel_of(name)


def refused(name: str, message: str, **changes: Any) -> None:
    """A call that was changed gives an error; one that is as it should be goes on working."""
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        kernel_of(name, **changes)()
    good(name)()


def test_numbers_of_windows_are_refused():
    """Each of them, negative or too large, or 0 where that is none."""
    wrong = itertools.cycle([-1, -(2**63), 2**63 - 1, 2**31])
    for index in range(2, 23):
        has_least = (index - 2) % 7 in (2, 3, 4)
        for value in [next(wrong)] + [0] * has_least:
            refused("select", "jaxunpool: sizes of windows", sizes=with_number(index, value))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (np.zeros(0, np.int64), "expected 23 sizes"),
        (TILES[:22], "expected 23 sizes"),
        (np.append(TILES, 1), "expected 23 sizes"),
        (with_number(0, -2), "sizes overflow"),
        (with_number(1, -3), "sizes overflow"),
        (with_number(0, 2**62), "sizes overflow"),
        (with_number(0, 2**63 - 1), "sizes overflow"),
        (numbers(2**32, 2**32, ALONE), "sizes overflow"),
        (numbers(1, 2, *[(MOST, 1, 1, 1, 1, 0, 0)] * 3), "sizes overflow"),
        (numbers(1, 2, *[(1, MOST, 1, 1, 1, 0, 0)] * 3), "different sizes"),
        # A product of 2**64 more than the arrays have.
        (numbers(2**61 + 18, 8, ALONE), "sizes overflow"),
        (with_number(0, 1), "different sizes"),
        (with_number(0, 0), "different sizes"),
        (with_number(1, 4), "different sizes"),
        (with_number(9, 12), "different sizes"),
        (with_number(10, 4), "different sizes"),
        (with_number(11, MOST), "too large"),
        (with_number(11, 128), "too narrow"),  # windows of 128x2
    ],
)
def test_sizes_are_refused(sizes, message):
    refused("select", f"jaxunpool: .*{message}", sizes=sizes)


@pytest.mark.parametrize("name", CALLS)
def test_sizes_that_are_none_are_refused(name):
    """By XLA."""
    for sizes in (None, np.int64(23), TILES.astype(np.int32), TILES.astype(float), "sizes"):
        refused(name, "decode|[Aa]ttribute", sizes=sizes)


@pytest.mark.parametrize(
    ("name", "message", "changes"),
    [
        ("select", "different types", {"gives": [(OUT, np.float16), (OUT, BYTE)]}),
        ("select", "neither uint8, uint16 nor uint32", {"gives": [(OUT, FLOAT), (OUT, np.int8)]}),
        ("select", "neither", {"gives": [(OUT, FLOAT), (OUT, np.uint64)]}),
        ("select", "different sizes", {"gives": [(OUT, FLOAT), ((35,), BYTE)]}),
        ("select", "different sizes", {"gives": [((35,), FLOAT), (OUT, BYTE)]}),
        ("select", "no kernel", {"takes": [(IN, bool)], "gives": [(OUT, bool), (OUT, BYTE)]}),
        ("select", "no kernel", {"takes": [(IN, complex)], "gives": [(OUT, complex), (OUT, BYTE)]}),
        ("gather", "different types", {"gives": [(OUT, np.float16)]}),
        ("gather", "neither", {"takes": [(IN, FLOAT), (OUT, np.int32)]}),
        ("gather", "different sizes", {"takes": [(IN, FLOAT), ((1,), BYTE)]}),
        ("gather", "too narrow", {"sizes": with_number(11, 200), "winners": True}),
        ("scatter", "different types", {"gives": [(IN, np.float16)]}),
        ("scatter", "neither", {"takes": [(OUT, FLOAT), (OUT, np.int16)]}),
        ("scatter", "different sizes", {"takes": [(OUT, FLOAT), ((37,), BYTE)]}),
        ("scatter", "different sizes", {"takes": [((37,), FLOAT), ((37,), BYTE)]}),
        ("scatter", "different sizes", {"gives": [((145,), FLOAT)]}),
        *(
            (name, message, changes)
            for name, takes in (("reduce", IN), ("replicate", OUT))
            for message, changes in (
                ("unknown weighting", {"weighting": np.int64(-1)}),
                ("unknown weighting", {"weighting": np.int64(5)}),
                ("decode", {"weighting": np.int32(0)}),
                ("as large as the window", {"takes": [(takes, FLOAT), ((3,), FLOAT)]}),
                ("as large as the window", {"takes": [(takes, FLOAT), ((5,), FLOAT)]}),
                ("different types", {"takes": [(takes, FLOAT), ((4,), np.int8)]}),
                ("different types", {"takes": [(takes, np.float16), ((4,), np.float16)]}),
                ("different types", {"takes": [(takes, FLOAT), ((0,), np.int32)]}),
            )
        ),
    ],
)
def test_arrays_are_refused(name, message, changes):
    refused(name, message, **changes)


# Sanitizers

# The fast tier takes those that compile quickly.
QUICK = ("-O0", "-fsanitize=address,signed-integer-overflow,shift,bounds")
ALL = ("-O1", "-fsanitize=address,undefined")
FLAGS = ("-std=c++17", "-g1", "-fno-omit-frame-pointer", "-fPIC", "-shared", "-w")
FLAGS += ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
FLAGS += ("-fno-sanitize-recover=undefined",)
TYPES = {"F32": "float32", "BF16": "bfloat16"}  # of a library that compiles quickly


def replaced(text: str, old: str, new: str) -> str:
    """The sources with a part of theirs, which has to be there, in other words."""
    assert old in text
    return text.replace(old, new)


def overrun(text: str) -> str:
    """A write beyond a result, for 77 elements."""
    planted = "if (count(x) == 77) data(y)[y->size_bytes()] = 1;"
    found = re.search(r"Error Select\(.*\n.*\n", text)
    assert found is not None
    return replaced(text, found[0], f"{found[0]}    {planted}\n")


@functools.cache
def sanitizers(*names: str) -> tuple[str, str]:
    """The compiler, and what a process has to load before all else."""
    compiler = shutil.which("g++")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no g++ on Linux, whose sanitizers Python can load")
    asked = ([compiler, f"-print-file-name=lib{name}.so"] for name in names)
    paths = [subprocess.check_output(question, text=True).strip() for question in asked]
    if not all(map(os.path.isabs, paths)):
        pytest.skip("g++ comes without its sanitizers")
    return compiler, ":".join(paths)


def compiled(
    folder: pathlib.Path, flags: Iterable[str], change: Callable[[str], str], everything: bool
) -> pathlib.Path:
    """A library with sanitizers, of the sources as they are but for a change to `handlers.cc`.

    In part, it is for one instruction set and few types.
    """
    sources = folder / "sources"
    shutil.copytree(FOLDER, sources, ignore=lambda _, names: [n for n in names if "_" in n])
    text = change((sources / "handlers.cc").read_text())
    units = sorted(sources.glob("*.cc"))
    if not everything:
        text = replaced(text, "#if defined(__x86_64__)", "#if 0")
        units = [sources / name for name in ("baseline.cc", "handlers.cc")]
        runs = (sources / "runs.inc").read_text()
        others = re.compile(rf".*case ffi::(?!({'|'.join(TYPES)}):).*\n")
        (sources / "runs.inc").write_text(others.sub("", runs))
    (sources / "handlers.cc").write_text(text)
    built = folder / "library.so"
    where = ["-isystem", jax.ffi.include_dir(), *map(str, units), "-o", str(built)]
    compiler = sanitizers()[0]
    subprocess.run([compiler, *FLAGS, *flags, *where], check=True)
    return built


def python(*arguments: Any, timeout: int = 300, **environment: str) -> Any:
    """Another process, which has to end in time."""
    paths = os.pathsep.join(map(str, (TESTS, TESTS.parent)))
    settings = {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | settings,
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
OVERRUN = """
import pathlib, sys, jax.numpy as jnp
from jaxunpool import max_pool
from jaxunpool.kernels.native_cpu import library
library.load(pathlib.Path(sys.argv[1]))
library.missing = lambda: None
for size in (76, 77):
    print(size, max_pool(jnp.ones((size, 1)), (2,)).sum(), flush=True)
"""


@pytest.mark.thorough
@pytest.mark.parametrize("everything", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_no_call_leaves_its_arrays(everything, tmp_path):
    """Under AddressSanitizer and UndefinedBehaviorSanitizer, which do see a write beyond one."""
    loaded = {"LD_PRELOAD": sanitizers("asan", "ubsan")[1], **OPTIONS}
    built = compiled(tmp_path, ALL if everything else QUICK, overrun, everything)
    planted = python("-c", OVERRUN, built, **loaded)
    assert planted.stdout == "76 38.0\n"
    assert "AddressSanitizer: heap-buffer-overflow" in planted.stderr
    types = list(map(str, TESTED["native_cpu"].dtypes)) if everything else TYPES.values()
    chosen = "hostile or (native_cpu and bits_of_xla)"
    if everything:
        chosen += " or refused or pattern or positive"
    names = ("test_native_cpu.py", "test_native_convolve.py", "test_backends.py")
    files = [TESTS / name for name in names]
    arguments = [built, ",".join(types), *files, "-k", chosen, "-q"]
    if everything:
        arguments.append("--thorough")
    suite = python(TESTS / "sanitized.py", *arguments, timeout=3000, **loaded)
    assert suite.returncode == 0, suite.stdout[-3000:] + suite.stderr[-6000:]
    if everything:
        path = f"LIBRARY={built}"
        threads = python(TESTS / "native_threads.py", path, "bits,many", timeout=900, **loaded)
        assert threads.returncode == 0, threads.stderr[-6000:]


# Threads

SHARED = """
#include <deque>
#include <functional>
static std::mutex handing;
static std::deque<std::function<void()>> handed;
"""
HAND_OVER = """{
  std::lock_guard<std::mutex> lock(handing);
  handed.emplace_back([help, worker] { help(worker); });
}
pool.Schedule([] {
  std::function<void()> work;
  {
    std::lock_guard<std::mutex> lock(handing);
    work = std::move(handed.front());
    handed.pop_front();
  }
  work();
});"""


def handed_over(text: str) -> str:
    """Work goes through a queue that ThreadSanitizer sees, which XLA's is not."""
    text = replaced(text, "pool.Schedule([help, worker] { help(worker); });", HAND_OVER)
    return replaced(text, '#include "flat.h"', f'{SHARED}#include "flat.h"')


def racing(text: str) -> str:
    """Threads that count what they do without telling each other."""
    loop = "(i = state->next[part].fetch_add(1)) < count;) {"
    text = replaced(handed_over(text), loop, f"{loop} ++handing_count;")
    return replaced(
        text, "static std::mutex handing;", "static std::mutex handing; static int handing_count;"
    )


@pytest.mark.thorough
def test_threads_do_not_race(tmp_path):
    """Under ThreadSanitizer, which does see a race."""
    options = {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1", "NPROC": "4"}
    loaded = {"LD_PRELOAD": sanitizers("tsan")[1], **options}
    for change, races in ((handed_over, False), (racing, True)):
        folder = tmp_path / change.__name__
        folder.mkdir()
        built = compiled(folder, ("-O1", "-fsanitize=thread"), change, False)
        done = python(TESTS / "native_threads.py", f"LIBRARY={built}", "many", **loaded)
        assert ("ThreadSanitizer: data race" in done.stderr) == races, done.stderr[:6000]
        assert (done.returncode == 0) != races


@functools.cache
def digests(threads: int) -> str:
    """Of results with so many threads; and as many calls at once as there is time for."""
    done = python(TESTS / "native_threads.py", "bits,many", NPROC=str(threads))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.thorough
@pytest.mark.parametrize(
    "threads", [5, *(pytest.param(n, marks=pytest.mark.thorough) for n in (2, 16))]
)
def test_results_do_not_depend_on_threads(threads):
    """Subnormal numbers neither; and 64 calls at once end, in a pool of one thread too."""
    assert digests(threads) == digests(1)


@pytest.mark.thorough
def test_sums_of_subnormal_numbers_are_those_of_xla():
    done = python(TESTS / "native_threads.py", "xla", NPROC="5")
    assert done.returncode == 0, done.stderr[-3000:]
