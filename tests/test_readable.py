"""Programs that other tools can read: what their converters do not know is not in plain JAX.

`jax2onnx` knows no branch by platform, no interior padding and no positional axis of `jnp.take`;
TensorFlow Lite has no select of unsigned integers of 8 or 16 bits.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backend_cases import PRIMITIVES, SUMS, arrays_of, calls_of, case_of
from jax.extend.core import Primitive
from jax.interpreters import ad, batching
from namespace import TABLE, batch_for, with_gradient
from strategies import only

from jaxunpool.core import frozen, primitives
from jaxunpool.core.calls import Call
from jaxunpool.core.geometry import Plane

# A platform that no backend is for.
OTHER = ("rocm",)
SELECT_OF_SMALL = re.compile(r"stablehlo\.select .*tensor<(?:\d+x)*ui(?:8|16)>$", re.MULTILINE)
INTERIOR = re.compile(r"stablehlo\.pad .*interior = \[(?!0(?:, 0)*\])")
# Unrolled and in loops; offsets of 8 and of 16 bits.
WINDOWS = {
    "3x3": ((1, 7, 8, 2), (3, 3), {"strides": 2, "padding": 1}),
    "dilated": ((2, 9, 9), (3,), {"strides": 2, "dilation": 2, "data_format": "channels_first"}),
    "17x17": ((20, 20, 1), (17, 17), {"strides": 1, "padding": 4}),
}


@pytest.fixture(autouse=True)
def _as_users_have_it():
    with jax.enable_x64(False):
        yield


def readable(run, *arrays):
    program = jax.jit(run).trace(*arrays).lower(lowering_platforms=OTHER).as_text()
    assert "stablehlo.case" not in program
    assert not SELECT_OF_SMALL.search(program)
    return not INTERIOR.search(program)


@pytest.mark.few(18)
@pytest.mark.parametrize("dtype", only("bfloat16", among=["float32", "bfloat16", "uint8"]))
@pytest.mark.parametrize("name", TABLE)
def test_every_function_and_its_gradient(name, dtype, monkeypatch):
    entry, take = TABLE[name], frozen.jnp.take
    if dtype == "uint8" and not entry.integers:
        pytest.skip("of floats alone")
    with_keywords = lambda a, indices, *, axis=None, mode=None: take(a, indices, axis, mode=mode)
    monkeypatch.setattr(frozen.jnp, "take", with_keywords)
    x = jax.ShapeDtypeStruct(entry.shape(batch=(1, 2)), jnp.dtype(dtype))
    # The one function that is interior padding alone.
    assert readable(with_gradient(entry), x) or name == "bed_of_nails_unpool"


@pytest.mark.few(10)
@pytest.mark.parametrize("dtype", only("float16", "uint8", among=["float16", "uint8", "uint16"]))
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_every_use_of_a_primitive(primitive, window, dtype, rng):
    shape, sizes, options = WINDOWS[window]
    geometry, _ = case_of(shape, sizes, **options)
    calls = calls_of(primitive, geometry)
    if (primitive, dtype) == ("gather", "float16"):  # a derivative, so of floats
        calls.append(Call("gather", geometry, duplicates="last"))
    for call in calls:
        if dtype != "float16" and call.weighting not in (None, "sum", "last"):
            continue
        for pattern in (False, True)[: 1 + (primitive in SUMS)]:
            arrays = arrays_of(call, shape, np.dtype(dtype), "ties", rng, pattern)
            assert readable(lambda *arrays, call=call: primitives.bind(call, *arrays), *arrays)


@pytest.mark.few(1)
@pytest.mark.parametrize("dtype", ["float16", "uint8", "uint16"])
def test_indices_without_a_window(dtype):
    plane = Plane(input_shape=(4, 5))
    u, y, flat = (jnp.ones((2, *sizes, 3), dtype) for sizes in ((4, 5), (2, 2), (2, 2)))
    for call, array in (
        (Call("gather", plane, duplicates="sum"), u),
        (Call("scatter", plane, duplicates="sum"), y),
        (Call("scatter", plane, duplicates="last"), y),
    ):
        for kind in ("uint8", "int32"):
            run = lambda *arrays, call=call: primitives.bind(call, *arrays)
            assert readable(run, array, flat.astype(kind))


REPLACED = Primitive("replaced")
REPLACED.def_abstract_eval(lambda aval: aval)
ad.deflinear2(REPLACED, lambda ct, _: [REPLACED.bind(ct)])
batching.defvectorized(REPLACED)


@pytest.mark.thorough
def test_programs_that_stay_hold_nothing_of_a_converter(monkeypatch):
    """Converters replace functions of JAX while they trace; what a `jit` keeps has none of them."""

    def replaced(fn):
        mark = lambda leaf: REPLACED.bind(leaf) if isinstance(leaf, jax.core.Tracer) else leaf
        return lambda *args, **options: jax.tree.map(mark, fn(*args, **options))

    def jaxprs():
        return [
            str(jax.make_jaxpr(with_gradient(entry))(batch_for(entry)[:1]))
            for entry in TABLE.values()
        ]

    jax.clear_caches()
    with monkeypatch.context() as patch:
        for module in (jnp, jax.lax):
            for name, fn in vars(module).items():
                if type(fn) in (type(replaced), type(jnp.where), type(jnp.add)):
                    patch.setattr(module, name, replaced(fn))
        assert any("replaced" in jaxpr for jaxpr in jaxprs())  # the tests' own functions
    assert not any("replaced" in jaxpr for jaxpr in jaxprs())
