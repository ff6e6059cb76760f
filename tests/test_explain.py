"""What a program would run, read off its trace."""

import re

import jax
import jax.numpy as jnp
import pytest
from backend_cases import skip_if_not_compiled

import jaxunpool as jup
from jaxunpool.core import backends
from jaxunpool.core.calls import Call
from jaxunpool.kernels import native_cpu
from jaxunpool.kernels.native_cpu import library

X = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)


def names(explanation):
    return [call.primitive for call in explanation.calls]


def test_forward_and_backward():
    def loss(x):
        y, indices = jup.max_pool_with_indices(x, (3, 3), 2, 1)
        return jup.max_unpool(y, indices).sum()

    assert names(jup.explain(loss, X)) == ["select", "scatter"]
    assert names(jup.explain(jax.grad(loss), X)) == ["select", "scatter", "gather", "scatter"]


def test_inside_everything():
    def step(x, _):
        y = jax.lax.cond(x[0, 0, 0] > 0, jax.jit(pool), pool, x)
        return jup.nearest_unpool(y, (2, 2)), None

    def pool(x):
        return jup.avg_pool(x, (2, 2))

    run = jax.checkpoint(lambda x: jax.lax.scan(step, x, length=3)[0])
    found = names(jup.explain(jax.vmap(run), X))
    assert sorted(set(found)) == ["reduce", "replicate"]


def test_says_the_same_after_the_program_has_run():
    pool = jax.jit(lambda x: jup.max_pool(x, (2, 2)))
    before = jup.explain(pool, X)
    pool(jnp.zeros(X.shape))
    assert jup.explain(pool, X) == before
    assert len(before.calls) == 1


def test_arguments_that_are_no_arrays():
    assert names(jup.explain(jup.max_pool, X, (2, 2), padding="SAME", implementation=None)) == [
        "select"
    ]


def test_names_and_reasons():
    def run(x):
        y = jup.max_pool(x, (2, 2), implementation="xla")
        return jup.max_unpool(y, jnp.zeros(y.shape, int), output_shape=(8, 8))

    explained = jup.explain(run, X, platform="gpu")
    assert [call.implementation for call in explained.calls] == ["xla", "xla"]
    assert "asked for by name" in explained.calls[0].reason
    table = str(explained).splitlines()
    assert table[0] == "on gpu:"
    assert len(table) == 4
    assert "float32[2,8,8,4]" in table[2]


def test_a_jaxpr_names_the_windows_and_options():
    def run(x):
        y = jup.avg_pool(x, (2, 2), divisor_override=3, implementation="xla")
        return jup.max_unpool(y, jnp.zeros(y.shape, int), output_shape=(8, 8))

    calls = re.findall(r"call=(.*?)\s+lead=", str(jax.make_jaxpr(run)(X)))
    assert calls == ["2x2 every 2x2, channels_last, xla, sum, divided by 3", "flat, last"]


@pytest.mark.parametrize("backend", backends.NAMES)
def test_a_kernel_asked_for_by_name(backend):
    skip_if_not_compiled(backend)
    x = jax.ShapeDtypeStruct((8, 56, 56, 128), jnp.float32)
    pool = lambda x: jup.max_pool(x, (2, 2), implementation=backend)
    (call,) = jup.explain(pool, x, platform="cpu").calls
    assert call.implementation == backend
    assert call.windows == "2x2 every 2x2, channels_last"


def test_preferences_hold_where_kernels_serve(monkeypatch):
    measured = backends.Backend("mosaic_tpu", "tpu", {"select": "measured"})
    monkeypatch.setattr(backends, "BACKENDS", (measured,))
    wide = jax.ShapeDtypeStruct((8, 56, 56, 128), jnp.float32)
    tall = jax.ShapeDtypeStruct((8, 56, 56, 128), jnp.float64)
    geometry = jup.WindowGeometry.for_input(wide.shape, (2, 2))
    call = Call("select", geometry)
    assert backends.choose(call, [wide], "tpu") == ("mosaic_tpu", "measured")
    assert backends.choose(call, [wide], "gpu").implementation == "xla"
    refused = backends.choose(call, [tall], "tpu")
    assert refused.implementation == "xla"
    assert "float64" in refused.reason


@pytest.mark.parametrize(
    ("shape", "window", "data_format", "chosen"),
    [
        ((2, 3, 28, 28), {"window_shape": (2, 2)}, "channels_first", "xla"),
        ((2, 28, 28, 3), {"window_shape": (2, 2)}, "channels_last", "native_cpu"),
        ((2, 3, 28, 28), {"window_shape": (2, 2), "strides": 1}, "channels_first", "native_cpu"),
        ((2, 3, 28, 28), {"window_shape": (2, 2), "padding": 1}, "channels_first", "native_cpu"),
        ((2, 3, 8, 8), {"window_shape": (2, 2)}, "channels_first", "native_cpu"),
        ((2, 3, 80, 80), {"window_shape": (2, 2)}, "channels_first", "native_cpu"),
        ((2, 64, 256, 256), {"window_shape": (2, 2)}, "channels_first", "native_cpu"),
    ],
)
def test_small_copies_by_planes_are_left_to_xla(shape, window, data_format, chosen):
    skip_if_not_compiled("native_cpu")
    y = jax.ShapeDtypeStruct(shape, jnp.float32)
    geometry = jup.WindowGeometry.for_output(shape, **window, data_format=data_format)
    for weighting in ("sum", "last"):
        call = Call("replicate", geometry, None, weighting=weighting)
        assert backends.choose(call, [y], "cpu").implementation == chosen


def test_patterns():
    unpool = lambda y, p: jup.fixed_unpool(y, p).sum()
    p = jax.ShapeDtypeStruct((2, 2), jnp.float32)
    wide = jax.ShapeDtypeStruct((8, 56, 56, 128), jnp.float32)
    backward = jup.explain(jax.grad(unpool, (0, 1)), wide, p, platform="tpu").calls
    assert [call[:1] + call[3:4] for call in backward] == [
        ("replicate", "mosaic_tpu"),
        ("correlate", "xla"),
        ("reduce", "mosaic_tpu"),
    ]
    assert "a plain reduction" in backward[1].reason
    each = jax.ShapeDtypeStruct((8, 2, 2), jnp.float32)
    (call,) = jup.explain(jax.vmap(unpool), wide, each, platform="tpu").calls
    assert (call.implementation, "for each example" in call.reason) == ("xla", True)


def test_interpolation():
    kernel = "xla" if library.missing() else "native_cpu"
    for data_format, size, chosen in (
        ("channels_first", 16, kernel),
        ("channels_last", 2, kernel),  # smaller
        ("channels_last", 16, "xla"),
        ("channels_last", 2**12, kernel),
    ):
        resized = lambda x, size=size, d=data_format: jup.interpolate(x, size, data_format=d)
        (call,) = jup.explain(resized, X).calls
        assert (call.primitive, call.implementation) == ("resample", chosen)
    resized = lambda x: jup.interpolate(x, 16, implementation="xla")
    (call,) = jup.explain(resized, X).calls
    assert call.implementation == "xla"


def test_backends_that_run_here_and_those_that_do_not(monkeypatch):
    monkeypatch.setattr(library, "missing", lambda: None)
    monkeypatch.setattr(native_cpu, "missing", lambda: None)
    found = {backend.name: backend for backend in jup.backends().found}
    assert list(found) == ["xla", *backends.NAMES]
    assert [backend.runs for backend in found.values()] == [True, True, False, False]
    assert "jax[tpu]" in found["mosaic_tpu"].reason
    assert "jax[cuda13]" in found["mosaic_gpu"].reason

    head, *rows = str(jup.backends()).splitlines()
    assert head.split() == ["backend", "platform", "runs", "here", "because"]
    assert [row.split()[:3] for row in rows[:3]] == [
        ["xla", "every", "yes"],
        ["native_cpu", "cpu", "yes"],
        ["mosaic_tpu", "tpu", "no"],
    ]


def test_without_the_library(monkeypatch):
    """The reason is in every place where one looks for it, and `xla` runs."""
    for module in (library, native_cpu):
        monkeypatch.setattr(module, "missing", lambda: "no compiler; `pip` brings it")
    pool = lambda x: jup.max_pool(x, (2, 2))
    (call,) = jup.explain(pool, X, platform="cpu").calls
    assert call.implementation == "xla"
    assert "no compiler; `pip` brings it" in call.reason
    assert "no         no compiler; `pip` brings it" in str(jup.backends())
    assert jax.jit(pool)(jnp.zeros(X.shape)).shape == (2, 4, 4, 4)
    with pytest.raises(NotImplementedError, match=r"for this select: no compiler.*back to 'xla'"):
        jup.max_pool(jnp.zeros(X.shape), (2, 2), implementation="native_cpu")


def test_uneven_windows():
    """Those of each plane, all of one size, are picked from windows at every element."""
    adaptive = lambda x: jup.adaptive_max_pool(x, (5, 5))
    kernels = [] if library.missing() else [("select", "uneven", "native_cpu")]
    calls = jup.explain(adaptive, X, platform="cpu").calls
    assert [(c.primitive, c.windows, c.implementation) for c in calls] == kernels
    assert names(jup.explain(adaptive, X, platform="tpu")) == []  # plain JAX alone
    key = jax.random.key(0)
    pool = lambda x, named: jup.fractional_max_pool(
        x, (2, 2), (5, 5), key=key, implementation=named
    )
    for platform in ("cpu", "tpu"):
        (call,) = jup.explain(pool, X, None, platform=platform).calls
        assert (call.primitive, call.windows) == ("select", "2x2 every 1x1, channels_last")
        asked = jup.explain(pool, X, "xla", platform=platform)
        assert [call.implementation for call in asked.calls] == ["xla", "xla"]


@pytest.mark.parametrize("pool", [jup.adaptive_max_pool, jup.max_pool])
def test_xla_is_plain_jax(pool):
    program = jax.jit(lambda x: pool(x, (5, 5), implementation="xla")).lower(X).as_text()
    assert "custom_call" not in program
