"""JAX's settings: promotion, transfer guard, debugging; and programs that do not grow with sizes.

Over the whole public namespace, values and gradients.
"""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from namespace import (
    TABLE,
    WINDOW,
    Entry,
    batch_for,
    corner,
    geometry_of,
    indices_of,
    ones,
    square,
    strict,
    with_gradient,
)
from strategies import only

import jaxunpool as jup
from jaxunpool import interop


def raw(x: jax.Array, duplicates: str) -> jax.Array:
    flat = indices_of(x).flat
    return jup.max_unpool(
        square(corner(x)), flat, output_shape=x.shape[-3:-1], duplicates=duplicates
    )


def dense(x: jax.Array, **how: Any) -> jax.Array:
    """Pooled and unpooled with windows that overlap everywhere."""
    window = {"window_shape": (3, 3), "strides": 1, "padding": 1, **how}
    duplicates = window.pop("duplicates", "last")
    y, indices = jup.max_pool_with_indices(x, **window)
    return jup.max_unpool(square(y), indices, duplicates=duplicates)


def to_and_from_tensorflow(x: jax.Array) -> jax.Array:
    theirs = interop.to_tensorflow(indices_of(x), include_batch_in_index=True)
    return interop.from_tensorflow(theirs, geometry_of(x), include_batch_in_index=True).flat


def to_and_from_onnx(x: jax.Array) -> jax.Array:
    geometry = geometry_of(x, "channels_first")
    theirs = interop.to_onnx(indices_of(x), storage_order=1)
    grown = tuple(size + 2 for size in geometry.input_shape)
    return interop.from_onnx(theirs, geometry, storage_order=1, output_shape=grown).offsets


@jax.jit
def two_numbers(y: jax.Array) -> jax.Array:
    return y.ravel()[:2].reshape(1, 2)


# Ways through a function that its row in the table does not take.
VARIANTS = {
    "avg_pool, inside": Entry(
        lambda x: jup.avg_pool(x, (3, 3), 2, "SAME", count_include_pad=False), integers=False
    ),
    "avg_pool, large": Entry(lambda x: jup.avg_pool(x, (7, 7), 4, 3), integers=False),
    "avg_unpool, adjoint": Entry(
        lambda y: jup.avg_unpool(y, (3, 3), 1, dilation=2, mode="adjoint"), "y", integers=False
    ),
    "adaptive_max_pool, even": Entry(lambda y: jup.adaptive_max_pool(y, y.shape[-2] // 2), "y"),
    "conv_transpose, groups": Entry(
        lambda y: jup.conv_transpose(
            y,
            ones((3, 3, y.shape[-1], 3), y.dtype),
            ones((6,), y.dtype),
            strides=2,
            groups=2,
        ),
        "y",
        integers=False,
    ),
    "fixed_unpool, overlapping": Entry(
        lambda y: jup.fixed_unpool(y, ones((3, 3), y.dtype), 2, 1), "y"
    ),
    "fixed_unpool, learned": Entry(lambda y: jup.fixed_unpool(y, two_numbers(y)), "y"),
    "from_flat": Entry(
        lambda x: jup.PoolIndices.from_flat(indices_of(x).flat, geometry_of(x)).offsets,
        differentiable=False,
    ),
    "from_flat, plane": Entry(
        lambda x: (
            jup.PoolIndices.from_flat(
                indices_of(x).flat, jup.Plane(input_shape=x.shape[-3:-1])
            ).flat
        ),
        differentiable=False,
    ),
    "interop.onnx, columns": Entry(to_and_from_onnx, differentiable=False),
    "interop.tensorflow, batch": Entry(to_and_from_tensorflow, differentiable=False),
    "interpolate, linear": Entry(
        lambda x: jup.interpolate(x, scale=1.5, mode="linear"), integers=False
    ),
    "interpolate, nearest": Entry(lambda x: jup.interpolate(x, scale=2)),
    "lp_pool, infinity": Entry(lambda x: jup.lp_pool(x, np.inf, **WINDOW), integers=False),
    "lp_pool, 4": Entry(lambda x: jup.lp_pool(x, 4, **WINDOW), integers=False),
    "lp_pool, learned": Entry(
        lambda x: jup.lp_pool(x, 2 + ones((), x.dtype), (2, 2)), integers=False
    ),
    "lp_pool, 1.5": Entry(lambda x: jup.lp_pool(x, 1.5, **WINDOW), integers=False),
    "max_unpool, dense": Entry(dense),
    "max_unpool, dense, sum": Entry(lambda x: dense(x, duplicates="sum")),
    "max_unpool, dilated": Entry(lambda x: dense(x, window_shape=(2, 2), strides=2, dilation=2)),
    "max_unpool, large": Entry(lambda x: dense(x, window_shape=(9, 9), strides=4, padding=4)),
    "max_unpool, raw": Entry(lambda x: raw(x, "last")),
    "max_unpool, raw, sum": Entry(lambda x: raw(x, "sum")),
    "max_unpool_like, last": Entry(
        lambda x: jup.max_unpool_like(x, corner(x), **WINDOW, duplicates="last")
    ),
    "nearest_unpool, mean": Entry(
        lambda y: jup.nearest_unpool(y, (3, 3), 2, 1, duplicates="mean"), "y", integers=False
    ),
}
ALL = {**TABLE, **VARIANTS}


@pytest.fixture(params=ALL)
def entry(request) -> Entry:
    return ALL[request.param]


IN_BLOCKS = {
    "conv_general_dilated"
}  # whose programs have a few lines more where blocks are several


def program(entry: Entry, scale: int) -> str:
    """The text of a program for CPU and TPU, with every number in it as 0."""
    x = jax.ShapeDtypeStruct(entry.shape(scale, batch=(scale,)), jnp.float32)
    lowered = jax.jit(with_gradient(entry)).trace(x).lower(lowering_platforms=("cpu", "tpu"))
    return re.sub(r"\d+", "0", lowered.as_text())


@pytest.mark.few(8)
@pytest.mark.parametrize("entry", only(*TABLE, among=ALL), indirect=True)
def test_programs_do_not_grow_with_sizes(entry, request):
    """Of the batch, the plane and the channels all that is in them is the digits."""
    small, large = (program(entry, scale) for scale in (4, 8))
    more = 0.05 * len(small) if request.node.callspec.params["entry"] in IN_BLOCKS else 0
    assert abs(len(large) - len(small)) <= more


FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = tuple(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))


@pytest.mark.few(50)
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("x64", "dtypes"),
    [
        (True, ["bfloat16", "uint8"]),
        (False, ["float16", "int8"]),
        pytest.param(True, [*FLOATS, *INTEGERS], marks=pytest.mark.thorough),
    ],
)
def test_nothing_is_promoted_implicitly(name, x64, dtypes):
    """Of types and ranks, in every step: without jit the kernels are traced here, too."""
    entry = ALL[name]
    run = with_gradient(entry)
    with jax.enable_x64(x64):
        for dtype in dtypes:
            if dtype in FLOATS or entry.integers:
                x = jax.ShapeDtypeStruct(entry.shape(), dtype)
                expected = jax.eval_shape(run, x)
                with strict(), jax.disable_jit():
                    found = jax.eval_shape(run, x)
                assert jax.tree.leaves(found) == jax.tree.leaves(expected)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name in ALL])
@pytest.mark.thorough
def test_strict_settings_change_nothing(name):
    """What test_namespace.py sees in the functions themselves."""
    run, x = with_gradient(ALL[name]), batch_for(ALL[name])[0]
    with strict(transfer_guard="disallow", debug_nans=True, enable_checks=True):
        found = run(x)
    jax.tree.map(np.testing.assert_array_equal, found, run(x))


@pytest.mark.parametrize(
    "name", [n if n == "max_pool" else pytest.param(n, marks=pytest.mark.thorough) for n in TABLE]
)
def test_without_jit(name):
    """The same values; additions may come in another order."""
    run, x = TABLE[name].run, batch_for(TABLE[name])[0]
    expected = run(x)
    with jax.disable_jit():
        found = run(x)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=2e-6)
    jax.tree.map(close, found, expected)
