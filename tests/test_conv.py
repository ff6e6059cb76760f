"""conv_general_dilated against JAX's own."""

import functools

import derivatives
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from strategies import only

import jaxunpool as jup

LAYOUTS = [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("HWNC", "IHOW", "NHWC"), None]
CASES = {
    "stride 1": ((1, 1), "SAME", {}),
    "strides": ((2, 3), ((1, 0), (2, 1)), {}),
    "dilation": ((1, 2), ((2, 2), (0, 3)), {"rhs_dilation": (2, 3)}),
    "cropped": ((2, 1), ((-1, 2), (0, -2)), {}),
    "groups": ((2, 2), "VALID", {"feature_group_count": 2}),
    "spread": ((1, 1), ((1, 0), (0, 2)), {"lhs_dilation": (2, 1)}),
    "batch groups": ((1, 1), "SAME", {"batch_group_count": 2}),
}


def placed(array, layout, letters):
    """An array whose axes are in an order, in another."""
    return jnp.asarray(np.transpose(array, [letters.index(letter) for letter in layout]))


def arrays(rng, case, layout, dtype=np.float64):
    """An input and a kernel."""
    groups = CASES[case][2].get("feature_group_count", 1)
    u, k = rng.standard_normal((2, 9, 8, 4)), rng.standard_normal((3, 2, 4 // groups, 6))
    first, second, _ = layout or ("NCHW", "OIHW", None)
    return placed(u, first, "NHWC").astype(dtype), placed(k, second, "HWIO").astype(dtype)


def functions(case, layout):
    """Ours, and JAX's."""
    strides, padding, options = CASES[case]
    given = {"window_strides": strides, "padding": padding, "dimension_numbers": layout, **options}
    return [
        functools.partial(run, **given)
        for run in (jup.conv_general_dilated, lax.conv_general_dilated)
    ]


@pytest.mark.few(5)
@pytest.mark.parametrize(
    "layout", only((LAYOUTS[0],), (LAYOUTS[2],), among=[(each,) for each in LAYOUTS])
)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_jax(rng, case, layout):
    u, k = arrays(rng, case, layout)
    results = []
    for run in functions(case, layout):
        y, pullback = jax.vjp(jax.jit(run), u, k)
        results.append((y, *pullback(jnp.sin(y))))
    for ours, wanted in zip(*results, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", only("strides", among=CASES))
def test_derivatives(rng, case):
    ours, _ = functions(case, LAYOUTS[0])
    derivatives.check(ours, *arrays(rng, case, LAYOUTS[0]), forward=True)


@pytest.mark.few(1)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_of_halves_are_kept_in_float32(rng, dtype):
    """The gradient by the kernel is rounded once."""
    u, k = arrays(rng, "strides", LAYOUTS[0], dtype)
    ours, wanted = functions("strides", LAYOUTS[0])
    y = wanted(u, k)
    found = jax.vjp(ours, u, k)[1](y)[1]
    wide = [array.astype(jnp.float32) for array in (u, k, y)]
    exact = jax.vjp(wanted, *wide[:2])[1](wide[2])[1]
    assert found.dtype == dtype
    half = jnp.finfo(dtype).eps / 2
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=1.01 * half, atol=1e-4)


@pytest.mark.few(1)
@pytest.mark.parametrize("dims", [(0, None), (None, 0), (1, 2)])
def test_vmap(rng, dims):
    ours, wanted = functions("strides", LAYOUTS[0])
    u, k = arrays(rng, "strides", LAYOUTS[0])
    many = [a if d is None else jnp.stack([a, 2 * a, a[::-1]], d) for a, d in zip((u, k), dims)]

    def everything(run, u, k):
        y, pullback = jax.vjp(run, u, k)
        return (y, *pullback(y))

    found, expected = (
        jax.vmap(functools.partial(everything, run), dims)(*many) for run in (ours, wanted)
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["auto", "explicit", "shard_map"])
def test_sharded(rng, kind):
    """A batch over devices: on Explicit and Manual axes it is JAX's own."""
    u, k = arrays(rng, "stride 1", LAYOUTS[0])
    u = jnp.concatenate([u, u])
    of = jax.sharding.AxisType
    mesh = jax.make_mesh(
        (4,), ("batch",), axis_types=(of.Explicit if kind == "explicit" else of.Auto,)
    )
    ours, wanted = functions("stride 1", LAYOUTS[0])
    loss = lambda run: lambda u, k: (run(u, k) ** 2).sum()
    expected = wanted(u, k), *jax.grad(loss(wanted), (0, 1))(u, k)
    with jax.set_mesh(mesh):
        u = jax.device_put(u, NamedSharding(mesh, PartitionSpec("batch")))
        run = ours
        if kind == "shard_map":
            batch = PartitionSpec("batch")
            run = jax.shard_map(ours, in_specs=(batch, PartitionSpec()), out_specs=batch)
        found = [jax.jit(run)(u, k)]
        if kind != "explicit":  # JAX asks for the sharding of a gradient by a kernel
            found += jax.jit(jax.grad(loss(run), (0, 1)))(u, k)
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=1e-10)


def test_errors_are_those_of_jax(rng):
    u, k = arrays(rng, "stride 1", LAYOUTS[0])
    for bad in (k[:, :, :3], k[0], k.astype(np.float32)):
        for run in functions("stride 1", LAYOUTS[0]):
            with pytest.raises((TypeError, ValueError)):
                run(u, bad)


def test_errors_are_those_of_jax_through_flax():
    """Flax passes more keywords than `lax` names in its signature."""
    layer = nnx.Conv(3, 4, (3, 3), conv_general_dilated=jup.conv_general_dilated, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="feature dimension"):
        layer(jnp.ones((2, 6, 6, 4)))


@pytest.mark.parametrize("far", [10**8, 2**31 - 1])
def test_steps_far_beyond_the_array(rng, far):
    u, k = arrays(rng, "stride 1", LAYOUTS[0], np.float32)
    for strides, padding, dilation in (
        ((far, 1), "VALID", (1, 1)),
        ((1, 2), ((0, 0), (0, 0)), (1, 7)),
        ((1, 1), ((far, far), (0, 0)), (far, 1)),
    ):
        run = lambda of, strides=strides, padding=padding, dilation=dilation: of(
            u, k, strides, padding, rhs_dilation=dilation, dimension_numbers=LAYOUTS[0]
        )
        try:
            wanted = run(lax.conv_general_dilated)
        except Exception as error:  # what XLA says of numbers that it cannot hold
            with pytest.raises(type(error)):
                run(jup.conv_general_dilated)
        else:
            found = run(jup.conv_general_dilated)
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_settings_may_be_arrays(rng):
    u, k = arrays(rng, "dilation", LAYOUTS[0])
    strides, padding, options = CASES["dilation"]
    given = {key: np.array(value) for key, value in options.items()}
    ours, wanted = (
        run(u, k, np.array(strides), padding, dimension_numbers=LAYOUTS[0], **options)
        for run, options in (
            (jup.conv_general_dilated, given),
            (lax.conv_general_dilated, options),
        )
    )
    np.testing.assert_allclose(ours, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", ["strides", "groups", "cropped"])
def test_exported_programs_have_convolutions(rng, case):
    """Other tools have fast ones, and some end the process at loops."""
    u, k = arrays(rng, case, LAYOUTS[0], np.float32)
    program = jax.export.export(jax.jit(functions(case, LAYOUTS[0])[0]))(u, k).mlir_module()
    assert "stablehlo.convolution" in program
    assert "while" not in program


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_symbolic_sizes(rng, padding):
    u, k = arrays(rng, "strides", LAYOUTS[0], np.float32)
    run = functools.partial(
        jup.conv_general_dilated,
        rhs=k,
        window_strides=(2, 1),
        padding=padding,
        dimension_numbers=LAYOUTS[0],
    )
    for shape in ("b, h, w, 4", f"b, {u.shape[1]}, {u.shape[2]}, 4"):
        symbolic = jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape), jnp.float32)
        exported = jax.export.export(jax.jit(run))(symbolic)
        np.testing.assert_allclose(exported.call(u), run(u), rtol=1e-5, atol=1e-5)


def test_gradient_of_no_results():
    run = lambda u: jup.conv_general_dilated(
        u, jnp.ones((9, 3, 4, 3)), (2, 2), ((0, 0), (1, 1)), dimension_numbers=LAYOUTS[0]
    )
    u = jnp.ones((2, 5, 6, 4))
    assert run(u).size == 0
    np.testing.assert_array_equal(jax.grad(lambda u: run(u).sum())(u), jnp.zeros_like(u))


@pytest.mark.parametrize("framework", ["nnx", "linen"])
def test_layers_of_flax_take_it(rng, framework):
    x = jnp.asarray(rng.standard_normal((2, 6, 7, 3)), jnp.float32)
    run = jup.conv_general_dilated
    gradients = []
    for convolve in (run, lax.conv_general_dilated):
        if framework == "nnx":
            layer = nnx.Conv(3, 4, (3, 3), conv_general_dilated=convolve, rngs=nnx.Rngs(0))
            state = nnx.grad(lambda layer: (layer(x) ** 2).sum())(layer)
            gradients.append(nnx.to_pure_dict(state))
        else:
            layer = linen.Conv(4, (3, 3), conv_general_dilated=convolve)
            params = layer.init(jax.random.key(0), x)
            gradients.append(jax.grad(lambda p: (layer.apply(p, x) ** 2).sum())(params))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), *gradients)
