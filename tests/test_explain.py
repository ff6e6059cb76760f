"""What a program would run, read off its trace."""

import jax
import jax.numpy as jnp
import pytest

import jaxunpool as jup
from jaxunpool import dispatch

X = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)


def names(explanation):
    return [call.primitive for call in explanation.calls]


def test_forward_and_backward():
    def loss(x):
        y, indices = jup.max_pool_with_indices(x, (3, 3), 2, 1)
        return jup.max_unpool(y, indices).sum()

    assert names(jup.explain(loss, X)) == ["select", "scatter"]
    backward = ["scatter", "gather"]  # who won, and its gradient
    found = names(jup.explain(jax.grad(loss), X))
    assert found[:3] == ["select", "scatter", "gather"]
    assert set(found[3:]) == set(backward)


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


@pytest.mark.parametrize("backend", dispatch.KERNELS)
def test_a_kernel_asked_for_by_name(backend):
    x = jax.ShapeDtypeStruct((8, 56, 56, 128), jnp.float32)
    pool = lambda x: jup.max_pool(x, (2, 2), implementation=backend)
    (call,) = jup.explain(pool, x, platform="cpu").calls
    assert call.implementation == backend
    assert call.windows == "2x2 every 2x2, channels_last"


def test_preferences_hold_where_kernels_serve(monkeypatch):
    choice = dispatch.Choice("mosaic_tpu", "measured")
    monkeypatch.setitem(dispatch.PREFERRED, ("mosaic_tpu", "select"), choice)
    wide = jax.ShapeDtypeStruct((8, 56, 56, 128), jnp.float32)
    tall = jax.ShapeDtypeStruct((8, 56, 56, 128), jnp.float64)
    geometry = jup.WindowGeometry.for_input(wide.shape, (2, 2))
    call = dispatch.Call("select", geometry)
    assert dispatch.choose(call, [wide], "tpu") == choice
    assert dispatch.choose(call, [wide], "gpu").implementation == "xla"
    refused = dispatch.choose(call, [tall], "tpu")
    assert refused.implementation == "xla"
    assert "float64" in refused.reason
