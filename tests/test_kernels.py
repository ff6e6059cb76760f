"""Kernels behind the public functions: gradients of any order, and programs for many devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backend_cases import TESTED, skip_if_not_compiled
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from strategies import only

import jaxunpool as jup
from jaxunpool.core import backends, eager, lowering

pytestmark = pytest.mark.usefixtures("compiled_as_users_do")

COLLECTIVE = re.compile(r" (all-gather|all-reduce|all-to-all|collective-permute)(?:-start)?\(")
WINDOWS = {
    "2x2": {"window_shape": (2, 2)},
    "3x3": {"window_shape": (3, 3), "strides": 2, "padding": 1},
}


@pytest.fixture(autouse=True)
def _as_users_have_it():
    with jax.enable_x64(False):
        yield


@pytest.fixture
def interpreted(backend, monkeypatch):
    """Kernels run on the CPU, one by one and without the lowering rule.

    An interpreter's callbacks cannot be lowered inside it.
    """

    def traced(primitive, call, lead):
        return jax.jit(functools.partial(lowering.on_device, "cpu", call, lead=lead))

    skip_if_not_compiled(backend)
    if not TESTED[backend].runs:
        pytest.skip("this jax has no interpreter for it")
    monkeypatch.setattr(eager, "_compiled", traced)
    with TESTED[backend].runs[-1]():
        yield


@pytest.mark.parametrize("order", only(1, among=(1, 2)))
@pytest.mark.parametrize("window", only("2x2", among=WINDOWS))
@pytest.mark.parametrize("backend", only("native_cpu", "mosaic_gpu", among=backends.NAMES))
def test_gradients_have_the_bits_of_xla(backend, window, order, interpreted, rng):
    options = WINDOWS[window]
    x = jnp.asarray(rng.integers(-4, 5, TESTED[backend].shape), jnp.float32)

    def loss(x, implementation):
        some = options | {"implementation": implementation}
        y, indices = jup.max_pool_with_indices(x, **some)
        u = jup.max_unpool(y**2, indices, implementation=implementation)
        a = jup.avg_pool(u + x, **some)
        n = jup.avg_unpool(a, **some, output_shape=x.shape[1:3])
        return jnp.sum((u + n) ** 2)

    run = functools.partial(_gradient, loss, order)
    with jax.disable_jit():
        kernels = run(x, backend)
    plain = jax.jit(run, static_argnums=1)(x, None)
    assert np.abs(plain).max() > 1
    np.testing.assert_array_equal(kernels, plain)


def _gradient(loss, order, x, implementation):
    if order == 1:
        return jax.grad(loss)(x, implementation)
    inner = lambda x: jnp.sum(jax.grad(loss)(x, implementation) ** 2)
    return jax.grad(inner)(x)


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("spec", "allowed"),
    [
        (P("a"), set()),
        (P(None, None, None, "a"), set()),
        (P(None, "a"), {"collective-permute"}),
    ],
    ids=["batch", "channels", "rows"],
)
@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("backend", backends.NAMES)
def test_sharded_programs_exchange_what_windows_share(backend, mode, spec, allowed):
    skip_if_not_compiled(backend)
    devices = TESTED[backend].devices()[:4]
    if backend == "mosaic_tpu" and mode == AxisType.Auto:
        pytest.skip("without a TPU the compiler cannot ask back how a call is to be split")
    mesh = Mesh(np.array(devices).reshape(4), ("a",), axis_types=(mode,))
    x = jax.ShapeDtypeStruct((8, 32, 32, 512), jnp.float32, sharding=NamedSharding(mesh, spec))

    def round_trip(x, cotangent):
        def run(x):
            y, indices = jup.max_pool_with_indices(x, (3, 3), 2, 1, implementation=backend)
            return jup.max_unpool(y, indices, implementation=backend)

        u, pull = jax.vjp(run, x)
        return u, pull(cotangent)

    program = jax.jit(round_trip).lower(x, x).compile().as_text()
    assert set(COLLECTIVE.findall(program)) == allowed
    assert len(re.findall(r" custom-call\(", program)) >= 4  # the kernels


def test_one_export_for_all_platforms():
    """A program exported here holds the kernel for TPU and plain JAX for the others."""
    x = jax.ShapeDtypeStruct((8, 16, 16, 128), jnp.float32)
    pool = jax.jit(lambda x: jup.max_pool(x, (2, 2)))
    exported = jax.export.export(pool, platforms=["cpu", "tpu"])(x)
    assert "tpu_custom_call" in exported.mlir_module()
    again = jax.export.deserialize(exported.serialize())
    values = jnp.arange(8.0 * 16 * 16 * 128).reshape(x.shape)
    np.testing.assert_array_equal(again.call(values), pool(values))


@pytest.mark.parametrize("backend", backends.NAMES)
def test_vmap_is_one_leading_dimension_more(backend):
    skip_if_not_compiled(backend)
    pool = lambda x: jup.max_pool(x, (2, 2), implementation=backend)
    x = jax.ShapeDtypeStruct((3, 4, 16, 16, 128), jnp.float32)
    program = jax.make_jaxpr(jax.vmap(pool))(x)
    assert program.out_avals[0].shape == (3, 4, 8, 8, 128)
    assert str(program).count("jaxunpool_select[") == 1


@pytest.mark.parametrize("backend", backends.NAMES)
def test_refused_while_tracing(backend):
    """A kernel asked for by name that there is none for."""
    skip_if_not_compiled(backend)
    y = jax.ShapeDtypeStruct((8, 5, 5, 3), jnp.float32)
    u = jax.ShapeDtypeStruct((8, 16, 16, 128), jnp.float32)
    unpool = functools.partial(jup.fixed_unpool, implementation=backend)
    each = jax.ShapeDtypeStruct((8, 2, 2), jnp.float32)
    cases = [(jax.vmap(unpool), (u, each), "a pattern for each example")]
    if backend != "native_cpu":  # which has a kernel for every size
        pool = lambda y: jup.max_pool(y, 5, implementation=backend)
        cases.append((pool, (y,), "no kernel for"))
    for run, arrays, reason in cases:
        with pytest.raises(NotImplementedError, match=f"implementation='{backend}'.*{reason}"):
            jax.eval_shape(run, *arrays)


def test_exported_for_several_devices_is_refused_by_name():
    mesh = Mesh(np.array(jax.devices()[:2]), ("a",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P("a"))
    x = jax.ShapeDtypeStruct((8, 16, 16, 128), jnp.float32, sharding=sharding)
    pool = jax.jit(lambda x: jup.max_pool(x, (2, 2), implementation="mosaic_tpu"))
    with pytest.raises(NotImplementedError, match=r"implementation='mosaic_tpu'.*split by XLA"):
        jax.export.export(pool, platforms=["tpu"])(x)


@pytest.mark.parametrize("name", ["mosaic_gpu", "mosaic_tpu"])
def test_refused_on_another_platform(name):
    x = jnp.zeros((8, 16, 16, 128))
    platform = name.removeprefix("mosaic_")
    with pytest.raises(NotImplementedError, match=f"{name}' runs on {platform}"):
        jup.max_pool(x, (2, 2), implementation=name)


def test_an_exported_program_holds_no_kernel_for_cpu():
    x = jax.ShapeDtypeStruct((8, 16, 16, 64), jnp.float32)
    exported = jax.export.export(jax.jit(lambda x: jup.max_pool(x, (2, 2))))(x)
    assert "custom_call" not in exported.mlir_module()
    named = jax.jit(lambda x: jup.max_pool(x, (2, 2), implementation="native_cpu"))
    with pytest.raises(NotImplementedError, match=r"native_cpu'.*exported"):
        jax.export.export(named)(x)
