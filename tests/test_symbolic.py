"""Programs for open heights and widths: `jax.export` with symbolic spatial sizes.

What a window rule decides for all sizes is exported once, and gives what a program of each size
gives. What is left open is a ValueError that names the argument.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export
from namespace import TABLE, with_gradient
from strategies import only
from test_settings import VARIANTS

import jaxunpool as jup
import jaxunpool.models

ALL = TABLE | VARIANTS
ANY, EVEN = "b, h, w, 2", "b, 2*h, 2*w, 2"
# What programs are made of the numbers of: widths of windows, positions, strides between planes.
NEED_NUMBERS = {
    name for name in ALL if re.search("^fractional|^global_max|^interpolate|onnx|tensorflow", name)
}
NEED_NUMBERS |= {"adaptive_max_pool, even"}  # which is asked for a symbolic size there


def symbolic(text, *constraints):
    """An argument of symbolic sizes, of at least 4 unless other constraints are given."""
    sizes = export.symbolic_shape(text, constraints=constraints or ["h >= 4", "w >= 4"])
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def of_every_size(run, text, *sizes):
    """Compare the exported program with one that is compiled for each of some sizes."""
    exported = export.export(jax.jit(run))(symbolic(text))
    for number, shape in enumerate(sizes):
        x = jax.random.normal(jax.random.key(number), shape, jnp.float32)
        found, expected = exported.call(x), jax.jit(run)(x)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.few(1)
@pytest.mark.parametrize("text", [ANY, EVEN])
def test_each_function_takes_them_or_says_what_it_needs(text):
    refused = {}
    for name, entry in ALL.items():
        try:
            jax.eval_shape(with_gradient(entry), symbolic(text))
        except (TypeError, ValueError) as error:
            refused[name] = str(error)
    named = r"(x|y|indices|unpool_input|output_shape|padding)\b.*(symbolic|expected|should be)"
    assert all(re.match(named, message) for message in refused.values()), refused
    if text == EVEN:
        assert set(refused) == NEED_NUMBERS
    else:  # a pooled size of all sizes can be written in several ways; padding "SAME" is open
        assert set(refused) > NEED_NUMBERS
        assert {"max_pool", "avg_pool", "lp_pool", "conv_transpose"}.isdisjoint(refused)


@pytest.mark.parametrize("size", only(((9, 6),), among=[((9, 6),), ((12, 11),), ((5, 5),)]))
def test_a_fully_convolutional_network(size):
    """Strides, padding, duplicates, packed indices and upsampling, for odd and even sizes."""
    kernel = jnp.ones((3, 3, 2, 2), jnp.float32) / 9

    def network(x):
        y, indices = jup.max_pool_with_indices(x, (3, 3), 2, 1)
        z, packed = jup.max_pool_with_packed_indices(y, (2, 2))
        u = jup.max_unpool(jup.conv_transpose(z, kernel, padding=1), packed)
        return [jup.max_unpool(u, indices, duplicates="sum"), indices.flat]

    of_every_size(network, ANY, (2, *size, 2))


WITH_GRADIENTS = {"avg_pool", "conv_transpose", "fixed_unpool", "lp_pool", "max_pool", "max_unpool"}


@pytest.mark.thorough
@pytest.mark.parametrize("name", sorted(set(ALL) - NEED_NUMBERS))
def test_values(name):
    run = with_gradient(ALL[name]) if name in WITH_GRADIENTS else ALL[name].run
    run_flat = lambda x: jax.tree.leaves(run(x))
    of_every_size(run_flat, EVEN, (3, 8, 10, 2), (1, 12, 8, 2))


@pytest.mark.thorough
def test_models():
    model = jaxunpool.models.SegNetBasic(3, 2, features=4, stages=2, rngs=nnx.Rngs(0))
    model.eval()
    of_every_size(lambda x: [model(x)], "b, 4*h, 4*w, 3", (2, 16, 20, 3), (1, 24, 16, 3))


OPEN = {
    "x": lambda x: jup.max_pool(x, 8),
    "padding='SAME'": lambda x: jup.max_pool(x, 3, 2, "SAME"),
    "x: shape": lambda x: jup.max_pool(x, 2, 3, ceil_mode=True),
    "strides: expected an int": lambda x: jup.max_pool(x, 2, x.shape[1]),
    "window_shape: expected an int": lambda x: jup.avg_pool(x, x.shape[1:3]),
}


@pytest.mark.parametrize("named", OPEN)
def test_what_is_open_is_named(named):
    with pytest.raises((TypeError, ValueError), match="^" + re.escape(named)):
        jax.eval_shape(OPEN[named], symbolic(ANY))


def test_constraints_decide():
    pool = functools.partial(jup.max_pool, window_shape=8)
    with pytest.raises(ValueError, match=r"constraints such as 'h >= 8'"):
        jax.eval_shape(pool, symbolic(ANY, "h >= 7", "w >= 8"))
    assert len(jax.eval_shape(pool, symbolic(ANY, "h >= 8", "w >= 8")).shape) == 4
