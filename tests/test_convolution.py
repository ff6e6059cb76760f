"""Convolutions as primitives: what runs on CPU, against what JAX derives."""

import functools

import derivatives
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from strategies import examples

import jaxunpool as jup
from jaxunpool.core import convolution, im2col
from jaxunpool.kernels import native_cpu


@st.composite
def convolutions(draw):
    """Any convolution of 1 to 3 axes, and its batch, channels and outputs."""
    n = draw(st.integers(1, 3))
    axes = lambda low, high: draw(st.tuples(*[st.integers(low, high)] * n))
    sizes, window, strides = axes(1, 9 - n), axes(1, 5 - n), axes(1, 3)
    dilation = draw(st.just((1,) * n)) if draw(st.booleans()) else axes(1, 2)
    pads = tuple(zip(axes(-1, 4), axes(-1, 4)))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    spatial = "XYZ"[:n]
    dims = draw(st.permutations(f"N{spatial}C")), draw(st.permutations(f"{spatial}IO"))
    shapes = (1,) * (n + 2)
    layout = lax.conv_dimension_numbers(
        shapes, shapes, ("".join(dims[0]), "".join(dims[1]), f"NC{spatial}")
    )
    conv = convolution.Convolution(sizes, window, strides, pads, dilation, layout, groups)
    hypothesis.assume(min(conv.results) > 0)
    return (
        conv,
        draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 3)),
    )


def derived(conv, name, have):
    """JAX's convolution, or a gradient of it as JAX derives it."""
    run = functools.partial(
        lax.conv_general_dilated,
        window_strides=conv.strides,
        padding=conv.padding,
        rhs_dilation=conv.dilation,
        dimension_numbers=conv.layout,
        feature_group_count=conv.groups,
    )
    if name == "y":
        return run(have["u"], have["k"])
    given = {"u": lambda u: run(u, have["k"]), "k": lambda k: run(have["u"], k)}[name]
    return jax.linear_transpose(given, have[name])(have["y"])[0]


@pytest.mark.thorough
@hypothesis.settings(max_examples=examples(3, 80))
@hypothesis.given(
    convolutions(), st.integers(0, 2**32 - 1), st.sampled_from([1, 60, 400, im2col.ELEMENTS])
)
def test_formulations_for_cpu_are_what_jax_derives(drawn, seed, elements):
    conv, batch, channels, outputs = drawn
    rng = np.random.default_rng(seed)
    whole = {
        "u": (batch, *conv.sizes, channels),
        "k": (*conv.window, channels // conv.groups, outputs),
        "y": (batch, *conv.results, outputs),
    }
    have = {n: conv.back(n, jnp.asarray(rng.standard_normal(s))) for n, s in whole.items()}
    for name in "uky":
        others = [have[other] for other in convolution.ARRAYS[name]]
        wanted = derived(conv, name, have)
        found = [conv.bind(name, *others), convolution.plain(name, conv, *others)]
        if native_cpu.missing() is None:
            found.append(convolution.compiled(name, conv, *others))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(im2col, "ELEMENTS", elements)
            if name == "y":
                found.append(im2col.convolve(conv, *others))
            elif name == "k":
                found.append(im2col.kernel_gradient(conv, *others))
            elif max(conv.dilation) == 1:
                found.append(convolution.by_phases(conv, *others))
                if conv.ndim > 1:
                    found.append(im2col.input_gradient(conv, *others))
        for each in found:
            np.testing.assert_allclose(each, wanted, rtol=1e-10, atol=1e-10)


LAYOUT = lax.conv_dimension_numbers((1,) * 4, (1,) * 4, ("NHWC", "HWIO", "NHWC"))
CONV = convolution.Convolution((7, 8), (3, 2), (2, 2), ((1, 0), (0, 1)), (1, 1), LAYOUT, groups=2)
SHAPES = {"u": (2, 7, 8, 4), "k": (3, 2, 2, 6), "y": (2, 3, 4, 6)}


def operands(rng, name, dtype=np.float64):
    """What one of the three is made of."""
    return [jnp.asarray(rng.standard_normal(SHAPES[n]), dtype) for n in convolution.ARRAYS[name]]


@pytest.mark.few(1)
@pytest.mark.parametrize("name", "uky")
def test_derivatives(rng, name):
    derivatives.check(functools.partial(CONV.bind, name), *operands(rng, name), forward=True)


@pytest.mark.few(3)
@pytest.mark.parametrize("dims", [(0, None), (None, 0), (1, 2)])
@pytest.mark.parametrize("name", "uky")
def test_vmap(rng, name, dims):
    many = [
        a if d is None else jnp.stack([a, 2 * a, a[::-1]], d)
        for a, d in zip(operands(rng, name), dims)
    ]
    run, wanted = (
        jax.vmap(functools.partial(each, name), dims)
        for each in (CONV.bind, lambda name, *a: convolution.plain(name, CONV, *a))
    )
    np.testing.assert_allclose(run(*many), wanted(*many), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [0, 31])
def test_vmap_of_windows_in_the_padding(rng, size):
    """JAX's own gradient by many kernels is wrong here, or ends the process."""
    conv = convolution.Convolution((2, 5), (1, 3), (2, 2), ((1, -1), (3, 1)), (1, 2), LAYOUT)
    shapes = {"u": (1, 2, 5, 1), "k": (1, 3, 1, 2), "y": (1, 1, 3, 2)}
    many = {n: jnp.asarray(rng.standard_normal((*s, size))) for n, s in shapes.items()}
    for name in "uky":
        operands = [many[n] for n in convolution.ARRAYS[name]]
        found = jax.jit(jax.vmap(functools.partial(conv.bind, name), -1))(*operands)
        assert found.shape == (size, *shapes[name])
        for i in range(size):
            wanted = convolution.plain(name, conv, *(each[..., i] for each in operands))
            np.testing.assert_allclose(found[i], wanted, rtol=1e-12, atol=1e-12)


def test_large_windows_and_rows_are_left_to_xla():
    """A program does not grow with the window, and a block is not as large as a plane."""
    conv = lambda sizes, window: convolution.Convolution(
        sizes,
        window,
        (1,) * len(sizes),
        ((0, 0),) * len(sizes),
        (1,) * len(sizes),
        LAYOUT,
    )
    chosen = lambda *a: convolution.formulation("k", conv(*a), 16, 16)
    assert chosen((180, 240), (7, 7)) is im2col.kernel_gradient
    assert chosen((180, 240), (21, 21)) is not im2col.kernel_gradient
    assert chosen((64, 64, 64), (3, 3, 3)) is im2col.kernel_gradient
    assert chosen((64, 512, 512), (3, 3, 3)) is not im2col.kernel_gradient


@pytest.mark.few(1)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_of_halves_are_kept_in_float32(rng, dtype):
    """The gradient by the kernel is rounded once."""
    u, y = operands(rng, "k", dtype)
    found = im2col.kernel_gradient(CONV, u, y)
    exact = convolution.plain("k", CONV, u.astype(jnp.float32), y.astype(jnp.float32))
    assert found.dtype == dtype
    half = float(jnp.finfo(dtype).eps) / 2
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=1.01 * half, atol=1e-5)


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["auto", "explicit", "shard_map"])
def test_transposed_over_devices(rng, kind):
    """A batch over devices. On Explicit and Manual axes it is what JAX derives."""
    x, kernel = jnp.asarray(rng.standard_normal((8, 5, 4, 3))), jnp.ones((3, 3, 3, 2))
    run = functools.partial(jup.conv_transpose, strides=2, padding=1)
    loss = lambda run: lambda x, kernel: (run(x, kernel) ** 2).sum()
    expected = run(x, kernel), *jax.grad(loss(run), (0, 1))(x, kernel)
    axis = getattr(jax.sharding.AxisType, "Explicit" if kind == "explicit" else "Auto")
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(axis,))
    batch = PartitionSpec("batch")
    with jax.set_mesh(mesh):
        x = jax.device_put(x, NamedSharding(mesh, batch))
        if kind == "shard_map":
            run = jax.shard_map(run, in_specs=(batch, PartitionSpec()), out_specs=batch)
        found = [jax.jit(run)(x, kernel)]
        if kind != "explicit":  # JAX asks for the sharding of a gradient by a kernel
            found += jax.jit(jax.grad(loss(run), (0, 1)))(x, kernel)
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=1e-10)
