"""The kernel for CPU of convolutions: calls with numbers made by hand, against the definition."""

import functools
import itertools
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st
from native_calls import ALONE, call
from strategies import examples

from jaxunpool.kernels.native_cpu import library

pytestmark = pytest.mark.skipif(library.missing() is not None, reason=str(library.missing()))
RESULTS, INPUT, KERNEL = range(3)
FLOATS = [np.dtype(t) for t in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)]
MOST = 2**31 - 1


def numbers(n: int, groups: int, inputs: int, outputs: int, *axes: Any) -> np.ndarray:
    """The numbers of a call: size, results, window, stride, dilation and two pads of each axis."""
    rows = [ALONE] * (3 - len(axes)) + [tuple(axis) for axis in axes]
    return np.array([n, groups, inputs, outputs, *itertools.chain(*rows)], np.int64)


def shapes(sizes: np.ndarray) -> list[tuple[int, ...]]:
    """Of the results, the input and the kernel."""
    n, groups, inputs, outputs = map(int, sizes[:4])
    size, results, window = (tuple(map(int, sizes[4 + i :: 7])) for i in range(3))
    return [
        (n, *results, groups * outputs),
        (n, *size, groups * inputs),
        (*window, inputs, groups * outputs),
    ]


def define(wanted: int, sizes: np.ndarray, y: Any, u: Any, k: Any) -> np.ndarray:
    """One of the three, tap by tap, in float64; what is wanted is not read."""
    n, groups, _, outputs = map(int, sizes[:4])
    arrays = [np.asarray(array, np.float64) for array in (y, u, k)]
    arrays[wanted] = np.zeros(shapes(sizes)[wanted])
    y, u = (a.reshape(*a.shape[:-1], groups, -1) for a in arrays[:2])
    k = arrays[KERNEL].reshape(*arrays[KERNEL].shape[:-1], groups, outputs)
    for tap in itertools.product(*(range(window) for window in sizes[6::7])):
        seen = []
        for at, (size, results, _, stride, dilation, low, _) in zip(tap, sizes[4:].reshape(3, 7)):
            windows = np.arange(results)
            positions = windows * stride - low + at * dilation
            inside = (positions >= 0) & (positions < size)
            seen.append((windows[inside], positions[inside]))
        of_y, of_u = (np.ix_(range(n), *(pair[i] for pair in seen)) for i in range(2))
        if wanted == RESULTS:
            y[of_y] += np.einsum("...gi,igo->...go", u[of_u], k[tap])
        elif wanted == INPUT:
            u[of_u] += np.einsum("...go,igo->...gi", y[of_y], k[tap])
        else:
            k[tap] += np.einsum("ndhwgi,ndhwgo->igo", u[of_u], y[of_y])
    return arrays[wanted]


def check(sizes: np.ndarray, dtype: np.dtype, rng: np.random.Generator) -> None:
    """All three, of small integers, whose sums are exact and are rounded once."""
    arrays = [rng.integers(-3, 4, shape).astype(dtype) for shape in shapes(sizes)]
    for wanted in (RESULTS, INPUT, KERNEL):
        given = [arrays[RESULTS if wanted == INPUT else INPUT]]
        given.append(arrays[RESULTS if wanted == KERNEL else KERNEL])
        result = [(arrays[wanted].shape, dtype)]
        run = functools.partial(call, "convolve", result, sizes=sizes, wanted=np.int64(wanted))
        (found,) = jax.jit(run)(*map(jnp.asarray, given))
        expected = define(wanted, sizes, *arrays).astype(dtype)
        np.testing.assert_array_equal(np.asarray(found), expected)


def axes(longest: int) -> Any:
    """An axis whose windows may lie anywhere, inside and outside."""
    ranges = (1, longest), (1, longest), (1, 4), (1, 4), (1, 3), (-5, 9), (0, 0)
    return st.tuples(*(st.integers(*each) for each in ranges))


CHANNELS = st.sampled_from([1, 2, 3, 5, 6, 8, 13, 16, 17, 33])
NARROW = st.sampled_from([1, 1, 1, 2, 3, 4, 7])  # of a group, where there are many


@hypothesis.settings(max_examples=examples(12, 300))
@hypothesis.given(data=st.data())
def test_hostile_numbers_are_harmless(data):
    """Windows wholly outside, elements that no window reaches, pads of either sign."""
    some = data.draw(st.lists(axes(6), max_size=2))
    counts = [data.draw(st.integers(1, 2)), data.draw(st.sampled_from([1, 1, 2, 3, 9, 32]))]
    channels = CHANNELS if counts[1] < 4 else NARROW
    counts += [data.draw(channels), data.draw(channels)]
    sizes = numbers(*counts, *some, data.draw(axes(25)))
    dtype = data.draw(st.sampled_from(FLOATS))
    check(sizes, dtype, np.random.default_rng(data.draw(st.integers(0, 2**32 - 1))))


@pytest.mark.few(2)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    "sizes",
    [
        numbers(1, 1, 401, 37, (9, 9, 3, 1, 1, 1, 1), (11, 11, 3, 1, 1, 1, 1)),
        numbers(2, 1, 70, 130, (31, 31, 3, 1, 1, 1, 1), (33, 33, 3, 1, 1, 1, 1)),
        numbers(2, 2, 20, 24, (64, 32, 4, 2, 1, 1, 1), (70, 35, 4, 2, 1, 1, 1)),
        numbers(1, 1, 12, 9, (4000, 1000, 16, 4, 1, 6, 6)),
        numbers(1, 1, 9, 16, *[(17, 9, 3, 2, 1, 1, 1)] * 3),
        numbers(2, 48, 1, 1, (40, 40, 3, 1, 1, 1, 1), (43, 41, 7, 1, 1, 2, 2)),
        numbers(1, 37, 1, 1, (33, 17, 3, 2, 1, 1, 1), (200, 100, 3, 2, 1, 1, 1)),
        numbers(2, 30, 1, 4, (24, 22, 3, 1, 1, 0, 0), (24, 20, 3, 1, 2, 0, 0)),
        numbers(2, 32, 4, 3, (24, 24, 3, 1, 1, 1, 1), (24, 24, 3, 1, 1, 1, 1)),
        numbers(1, 16, 1, 2, (4000, 1000, 17, 4, 1, 6, 6)),
    ],
    ids=[
        *("deep", "wide", "strides and groups", "one row", "3-D"),
        *("depthwise", "no vectors", "multiplier", "narrow groups", "one row, depthwise"),
    ],
)
def test_hostile_sizes_of_several_blocks(sizes, dtype, rng):
    """Products cut along every axis: of depths, panels, strips, rows and parts of a row."""
    check(sizes, dtype, rng)


@pytest.mark.few(1)
@pytest.mark.parametrize("wanted", [RESULTS, INPUT])
def test_results_that_no_cache_holds(wanted, rng):
    """They are written past the caches."""
    sizes = numbers(2, 1, 16, 16, (380, 380, 1, 1, 1, 0, 0), (400, 400, 2, 1, 1, 0, 1))
    arrays = [rng.integers(-3, 4, shape).astype(np.float32) for shape in shapes(sizes)]
    given = [arrays[INPUT if wanted == RESULTS else RESULTS], arrays[KERNEL]]
    result = [(arrays[wanted].shape, np.float32)]
    run = functools.partial(call, "convolve", result, sizes=sizes, wanted=np.int64(wanted))
    (found,) = jax.jit(run)(*map(jnp.asarray, given))
    np.testing.assert_array_equal(found, define(wanted, sizes, *arrays))


def test_infinities_and_nan_stay_where_windows_have_them(rng):
    """Padding beside a row is zeros, as in XLA: times an infinite weight it is NaN."""
    sizes = numbers(1, 1, 2, 3, (5, 5, 3, 1, 1, 1, 1), (7, 7, 3, 1, 1, 1, 1))
    y, u, k = (rng.standard_normal(shape, np.float32) for shape in shapes(sizes))
    u[0, 0, 2, 3, 1] = np.nan
    given = map(jnp.asarray, (u, k))
    (found,) = call(
        "convolve", [(y.shape, np.float32)], *given, sizes=sizes, wanted=np.int64(RESULTS)
    )
    is_nan = np.zeros(y.shape, bool)
    is_nan[0, 0, 1:4, 2:5] = True
    np.testing.assert_array_equal(np.isnan(found), is_nan)


GOOD = numbers(2, 2, 3, 4, (6, 3, 2, 2, 1, 0, 0), (5, 4, 2, 1, 1, 0, 0))


def refused(message: str, sizes: Any = GOOD, wanted: int = RESULTS, **changes: Any) -> None:
    """A call that was changed is an error, and the next one works."""
    y, u, k = shapes(GOOD)
    takes = changes.get("takes", [(u, np.float32), (k, np.float32)])
    gives = changes.get("gives", [(y, np.float32)])
    given = [jnp.zeros(*each) for each in takes]
    run = jax.jit(functools.partial(call, "convolve", gives, sizes=sizes, wanted=np.int64(wanted)))
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(run(*given))
    check(GOOD, FLOATS[0], np.random.default_rng(0))


def test_numbers_are_refused():
    """Each of them, where it is 0, negative or too large."""
    wrong = itertools.cycle([0, -1, -(2**63), 2**63 - 1, 2**31])
    for index in range(25):
        if index >= 4 and (index - 4) % 7 == 6:
            continue  # padding at the high end is not used
        for value in itertools.islice(wrong, 3):
            if index >= 4 and (index - 4) % 7 == 5 and -(2**31) <= value < 2**31:
                continue  # and at the low end may be any
            sizes = GOOD.copy()
            sizes[index] = value
            refused("jaxunpool: .*(out of range|overflow|different sizes)", sizes=sizes)


Y, U, K = shapes(GOOD)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("expected 25 sizes", {"sizes": GOOD[:24]}),
        ("expected 25 sizes", {"sizes": np.zeros(0, np.int64)}),
        ("decode|[Aa]ttribute", {"sizes": GOOD.astype(np.int32)}),
        ("nothing that a convolution gives", {"wanted": 3}),
        ("nothing that a convolution gives", {"wanted": -1}),
        ("different sizes", {"wanted": INPUT}),
        ("different sizes", {"wanted": KERNEL}),
        ("different sizes", {"gives": [((3,), np.float32)]}),
        ("different sizes", {"takes": [((3,), np.float32), (K, np.float32)]}),
        ("different sizes", {"takes": [(U, np.float32), ((3,), np.float32)]}),
        ("different types", {"gives": [(Y, np.float16)]}),
        ("different types", {"takes": [(U, np.float16), (K, np.float32)]}),
        ("different types", {"takes": [(U, np.float32), (K, np.float16)]}),
        (
            "no kernel for this type",
            {"takes": [(U, np.int32), (K, np.int32)], "gives": [(Y, np.int32)]},
        ),
        (
            "overflow|out of range",
            {"sizes": numbers(2**30, 2**30, 2**30, 2**30, (1, 1, 1, 1, 1, 0, 0))},
        ),
        ("overflow", {"sizes": numbers(1, 1, 1, 1, *[(MOST, MOST, MOST, 1, 1, 0, 0)] * 3)}),
    ],
)
def test_arrays_are_refused(message, changes):
    refused(message, **changes)
