"""Every backend, over primitives, types, layouts and borders: the definition, and the same bits."""

import functools
import itertools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backend_cases import (
    DTYPES,
    PRIMITIVES,
    SUMS,
    TESTED,
    arrays_of,
    calls_of,
    case_of,
    run,
    same_bits,
    skip_if_not_compiled,
)
from hypothesis import strategies as st
from strategies import KINDS, examples, only, values

from benchmarks import check
from jaxunpool.core import backends, irregular
from jaxunpool.core.calls import Call
from jaxunpool.core.geometry import Plane

FORMATS = ["channels_last", "channels_first"]
KERNELS = [name for name in TESTED if name != "xla"]
# Windows at every kind of border; enough elements for kernels that fill lanes or threads.
BORDERS = {
    "tiles": ((8, 6, 6, 64), (2, 2), {}),
    "channels first": ((128, 32, 4, 8), (2, 4), {"data_format": "channels_first"}),
    "overlap": ((8, 7, 9, 64), (3, 3), {"strides": 2, "padding": 1}),
    "dilation": ((8, 16, 128), (2,), {"strides": 1, "dilation": 3, "padding": "SAME"}),
    "gaps and overhang": ((8, 5, 5, 8, 128), (2, 2, 2), {"strides": 3, "ceil_mode": True}),
}
OVERLAPPING = {"window_shape": (3, 3), "strides": 2, "padding": 1}
ZEROS = {"2x2": {"window_shape": (2, 2)}, "3x3": OVERLAPPING}


def test_all_backends_are_tested():
    assert set(TESTED) == {"xla", *backends.NAMES}


def drawn(backend, primitive, data):
    """A call that a backend serves, its arrays, and a context that it runs in."""
    tested = TESTED[backend]
    case, dtype = data.draw(tested.cases), data.draw(st.sampled_from(tested.dtypes))
    call = data.draw(st.sampled_from(calls_of(primitive, case.geometry)))
    is_sum = primitive in SUMS or call.duplicates == "sum"
    kind = data.draw(st.sampled_from(tested.sums if is_sum else KINDS))
    has_pattern = primitive in SUMS and data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    if dtype in DTYPES[4:] and is_sum:
        kind = "ties"  # small enough for sums in float64
        if call.weighting not in (None, "sum"):
            hypothesis.reject()  # integers are not divided
    arrays = arrays_of(call, case.shape, dtype, kind, rng, has_pattern)
    if backend != "xla" and backends.unsupported(call, arrays, backend) is not None:
        hypothesis.reject()
    return call, arrays, data.draw(st.sampled_from(tested.runs))


@pytest.mark.parametrize("primitive", PRIMITIVES)
@pytest.mark.parametrize("backend", KERNELS)
@hypothesis.settings(max_examples=examples(1, 20))
@hypothesis.given(data=st.data())
def test_kernels_have_the_bits_of_xla(backend, primitive, data):
    skip_if_not_compiled(backend)
    if not TESTED[backend].runs:
        pytest.skip("this jax has no interpreter for it")
    call, arrays, context = drawn(backend, primitive, data)
    with context():
        found = run(backend, call, arrays)
    same_bits(call, found, run("xla", call, arrays))


@pytest.mark.parametrize("primitive", PRIMITIVES)
@hypothesis.settings(max_examples=examples(2, 20))
@hypothesis.given(data=st.data())
def test_xla_is_the_definition(primitive, data):
    call, arrays, _ = drawn("xla", primitive, data)
    found = run("xla", call, arrays)
    for result, (wanted, exact) in zip(found, check.definition(call, arrays), strict=True):
        assert check.is_close(result, wanted, exact, call.geometry.volume)


@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_xla_is_the_definition_of_large_windows(primitive, rng):
    """They are not unrolled: axis after axis, by loops, or one element fetched for each."""
    geometry, shape = case_of((2, 13, 9, 2), (10, 5), 2, ((2, 1), (1, 3)))
    calls = calls_of(primitive, geometry)
    call = calls[0 if primitive == "gather" else -1]  # under "last", some are zero in any case
    arrays = arrays_of(call, shape, np.dtype(np.float32), "plain", rng, primitive in SUMS)
    found = run("xla", call, arrays)
    for result, (wanted, exact) in zip(found, check.definition(call, arrays), strict=True):
        assert check.is_close(result, wanted, exact, geometry.volume)


def test_xla_selects_the_first_of_equals_and_no_padding(rng):
    geometry, shape = case_of((2, 7, 9, 3), **OVERLAPPING)
    x = np.concatenate([values(rng, shape, np.dtype(np.float32), kind) for kind in KINDS])
    call = Call("select", geometry)
    for result, (wanted, _) in zip(run("xla", call, [x]), check.definition(call, [x]), strict=True):
        np.testing.assert_array_equal(result, wanted)


@pytest.mark.parametrize("window", only("3x3", among=ZEROS))
@pytest.mark.parametrize("primitive", only("replicate", among=["scatter", *SUMS]))
@pytest.mark.parametrize("backend", only("xla", "native_cpu", among=TESTED))
def test_a_sum_that_is_zero_is_positive(backend, primitive, window):
    """Of one negative zero or several, weighted or not. Moved, they keep their sign."""
    skip_if_not_compiled(backend)
    tested = TESTED[backend]
    if not tested.runs:
        pytest.skip("this jax has no interpreter for it")
    geometry, shape = case_of(tested.shape, **ZEROS[window])
    pooled, dtypes = geometry.pooled_shape(shape), [np.dtype(np.float32)]
    calls = calls_of(primitive, geometry)
    if backend == "xla":
        dtypes = DTYPES[:4]
    elif primitive in SUMS:
        calls = calls[:2]
    for call, dtype in itertools.product(calls, dtypes):
        array = jnp.full(shape if primitive == "reduce" else pooled, -0.0, dtype)
        arrays = [array]
        if primitive == "scatter":
            arrays.append(jnp.zeros(pooled, geometry.offset_dtype))
        with tested.runs[-1]():
            (found,) = run(backend, call, arrays)
        assert (found == 0).all()
        assert np.signbit(found).any() == (call.duplicates == "last")


@pytest.mark.few(2)
@pytest.mark.parametrize("border", only("channels first", among=BORDERS))
@pytest.mark.parametrize("backend", KERNELS)
def test_kernels_can_be_traced_anywhere(backend, border, rng):
    """For what `xla` gives, whether this JAX can run them or not."""
    skip_if_not_compiled(backend)
    shape, window, options = BORDERS[border]
    geometry, _ = case_of(shape, window, **options)
    for primitive in PRIMITIVES:
        for call in calls_of(primitive, geometry):
            for pattern in (False, True)[: 1 + (primitive in SUMS)]:
                arrays = arrays_of(call, shape, np.dtype(np.float32), "plain", rng, pattern)
                assert backends.unsupported(call, arrays, backend) is None
                kernels = (backends.kernel(call, arrays, b) for b in (backend, "xla"))
                found, wanted = (jax.eval_shape(kernel, *arrays) for kernel in kernels)
                assert found == wanted


# What only native_cpu has one kernel for: against the plain formulations, by way of the lowering.


def plane_and_shape(data, longest):
    """Any plane, and the full shape of an array of it."""
    sizes = data.draw(st.lists(st.integers(1, longest), min_size=1, max_size=3))
    plane = Plane(input_shape=tuple(sizes), data_format=data.draw(st.sampled_from(FORMATS)))
    batch, channels = data.draw(st.sampled_from([((2,), 1), ((), 3), ((2, 1), 40)]))
    if plane.data_format == "channels_last":
        return plane, (*batch, *sizes, channels)
    return plane, (*batch, channels, *sizes)


@pytest.mark.few(3)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@hypothesis.settings(max_examples=examples(1, 20))
@hypothesis.given(data=st.data())
def test_flat_indices_have_the_bits_of_xla(dtype, data):
    plane, shape = plane_and_shape(data, 6)
    outputs = data.draw(st.tuples(*[st.integers(1, 6)] * plane.ndim))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    kind = "ties" if dtype in DTYPES[4:] else data.draw(st.sampled_from(KINDS))
    u, y = (values(rng, s, dtype, kind) for s in (shape, plane.with_spatial(shape, outputs)))
    limits = np.iinfo(data.draw(st.sampled_from(["int8", "uint8", "int32", "uint32", "int64"])))
    beyond = min(limits.max, 2 + math.prod(plane.input_shape))
    flat = rng.integers(max(limits.min, -2), beyond, y.shape).astype(limits.dtype)
    flat[rng.random(y.shape) < 0.05] = limits.max
    for primitive, array in (("gather", u), ("scatter", y)):
        for how in ("sum", "last"):
            call, arrays = (
                Call(primitive, plane, duplicates=how),
                list(map(jnp.asarray, (array, flat))),
            )
            same_bits(call, *(run(backend, call, arrays) for backend in ("native_cpu", "xla")))


def test_flat_indices_of_two_axes_have_the_bits_of_xla(rng):
    skip_if_not_compiled("native_cpu")
    plane = Plane(input_shape=(4, 5), data_format="channels_first")
    y = jnp.asarray(rng.integers(1, 9, (2, 1, 3, 3, 4)), jnp.float32)
    flat = jnp.asarray(rng.choice([*range(-2, 22), 2**32 + 1], y.shape))  # 1 in 32 bits
    for how in ("sum", "last"):
        call = Call("scatter", plane, duplicates=how)
        same_bits(call, *(run(backend, call, [y, flat]) for backend in ("native_cpu", "xla")))


@pytest.mark.few(4)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@hypothesis.settings(max_examples=examples(1, 20))
@hypothesis.given(data=st.data())
def test_uneven_windows_have_the_bits_of_plain_jax(dtype, data):
    plane, shape = plane_and_shape(data, 7)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    x = jnp.asarray(values(rng, shape, dtype, data.draw(st.sampled_from(KINDS))))
    starts, stops, widths = [], [], []
    for axis, size in zip(plane.axes, plane.input_shape):
        listed = [1] * len(shape)
        listed[axis] = data.draw(st.integers(1, 5))
        start = rng.integers(0, size, listed).astype(np.int32)
        stop = np.minimum(start + rng.integers(1, size + 1, listed), size).astype(np.int32)
        starts.append(start)
        stops.append(stop)
        widths.append(int((stop - start).max()))
    call, bounds = Call("uneven", plane), (*starts, *stops)
    found, wanted = (
        list(
            map(
                np.asarray,
                jax.jit(functools.partial(find, call=call, widths=tuple(widths)))(x, *bounds),
            )
        )
        for find in (irregular.UNEVEN.bind, irregular.plain)
    )
    same_bits(Call("select", plane), found, wanted)
