"""min_pool and min_pool_with_indices against their definition and against PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from strategies import FLOATS, INTEGERS, Pooling, values

import jaxunpool as jup

POOLINGS = {
    "overlapping": Pooling((6, 5), (3, 2), (2, 1), ((1, 1), (0, 1)), (1, 1), True,
                           "channels_last", (2,), 2),
    "channels first": Pooling((4, 4, 3), (2, 2, 2), (1, 2, 1), "SAME", (1, 1, 1), False,
                              "channels_first", (), 2),
    "dilated": Pooling((11,), (3,), (2,), ((1, 2),), (2,), False, "channels_last", (2,), 3),
}  # fmt: skip


def min_pool(x, window, strides, padding, dilation, ceil_mode):
    """From the definition: `oracle.max_pool` with `<`."""
    *sizes, channels = x.shape
    pads, outputs = oracle.pads_and_outputs(sizes, window, strides, padding, dilation, ceil_mode)
    y, flat = np.zeros((*outputs, channels), x.dtype), np.zeros((*outputs, channels), np.int64)
    for o in np.ndindex(*outputs):
        for c in range(channels):
            best = None
            for _, position in oracle.elements(o, sizes, window, strides, pads, dilation):
                value = x[(*position, c)]
                if best is None or value < best or value != value:
                    best = y[(*o, c)] = value
                    flat[(*o, c)] = np.ravel_multi_index(position, sizes)
    return y, flat


def over_layout(pooling, function, *arrays):
    return oracle.over_layout(function, len(pooling.sizes), pooling.data_format, *arrays)


def same_bits(actual, expected):
    """The elements themselves: signs of zeros too, NaN for NaN."""
    actual, bits = np.asarray(actual), f"V{expected.dtype.itemsize}"
    assert actual.dtype == expected.dtype
    actual, expected = (np.where(a != a, np.ones((), a.dtype), a) for a in (actual, expected))
    np.testing.assert_array_equal(actual.view(bits), expected.view(bits), strict=True)


def inputs(rng, pooling, dtype):
    """One array of each kind, with all values of the type, with ties, with what is extreme."""
    for kind in ("plain", "ties", "special", "lowest"):
        x = values(rng, pooling.shape, dtype, kind)
        if kind == "ties" and dtype in FLOATS:
            x = np.where(rng.random(x.shape) < 0.5, x, -x)  # zeros of both signs
        if kind == "lowest":  # the identity of the minimum, which padding must not hide
            x = np.full_like(x, np.inf if dtype in FLOATS else np.iinfo(dtype).max)
        yield x


# Every type, and every pooling, but not every pair of them: each compiles a program.
PAIRS = [("overlapping", dtype) for dtype in FLOATS + INTEGERS]
PAIRS += [(name, np.dtype(t)) for name in ("channels first", "dilated") for t in ("f4", "u1")]


@pytest.mark.few(6)
@pytest.mark.parametrize(("name", "dtype"), PAIRS, ids=str)
def test_min_pool_is_its_definition(rng, name, dtype):
    pooling = POOLINGS[name]
    define = functools.partial(
        min_pool, window=pooling.window, strides=pooling.strides, padding=pooling.padding,
        dilation=pooling.dilation, ceil_mode=pooling.ceil_mode,
    )  # fmt: skip

    @jax.jit
    def run(x, dy):
        y, indices = jup.min_pool_with_indices(x, **pooling.options)
        results = y, indices.flat, jup.min_pool(x, **pooling.options), jup.max_unpool(y, indices)
        if dtype in FLOATS:
            pool = functools.partial(jup.min_pool, **pooling.options)
            results += jax.vjp(pool, x)[1](dy)
        return results

    for x in inputs(rng, pooling, dtype):
        expected, flat = over_layout(pooling, define, x)
        dy = values(rng, expected.shape, dtype, "plain")
        y, places, alone, u, *gradient = run(x, dy)
        same_bits(y, expected)
        same_bits(alone, expected)
        np.testing.assert_array_equal(places, flat)
        unpool = functools.partial(oracle.max_unpool, sizes=pooling.sizes)
        last = functools.partial(unpool, duplicates="last")
        same_bits(u, over_layout(pooling, last, expected, flat))
        for dx in gradient:
            added = functools.partial(unpool, duplicates="sum")
            same_bits(dx, over_layout(pooling, added, dy, flat))


def test_unsigned_integers_are_not_negated():
    x = np.array([0, 200], np.uint8)[:, None]
    y, indices = jup.min_pool_with_indices(x, (2,))
    assert (int(y[0, 0]), int(indices.flat[0, 0])) == (0, 0)
    lowest = np.array([3, -128], np.int8)[:, None]
    assert int(jup.min_pool(lowest, (2,))[0, 0]) == -128


@pytest.mark.thorough
def test_derivatives():
    """Of any order, in forward mode with "xla", with offsets alone kept."""
    x = jnp.array([3.0, 1, 2, 0.5])[:, None]

    def loss(x, implementation=None):
        return (jup.min_pool(x, (2,), implementation=implementation) ** 3).sum()

    np.testing.assert_array_equal(jax.grad(loss)(x)[:, 0], [0, 3, 0, 0.75])
    slope = lambda x: jax.grad(loss)(x).sum()
    np.testing.assert_array_equal(jax.grad(slope)(x)[:, 0], [0, 6, 0, 3])
    np.testing.assert_array_equal(
        jax.grad(lambda x: jax.grad(slope)(x).sum())(x)[:, 0], [0, 6, 0, 6]
    )
    hessian = jax.hessian(functools.partial(loss, implementation="xla"))(x).reshape(4, 4)
    np.testing.assert_array_equal(hessian, np.diag([0.0, 6, 0, 3]))
    (kept,) = jax.tree.leaves(jax.vjp(lambda x: jup.min_pool(x, (2,)), x)[1])
    assert (kept.dtype, kept.shape) == (np.uint8, (2, 1))


def test_implementations_are_handed_on():
    x = np.zeros((1, 4, 4, 1), np.int32)
    for pool in (jup.min_pool, jup.min_pool_with_indices):
        with pytest.raises(NotImplementedError, match="'mosaic_gpu' has no kernel for this select"):
            pool(x, 2, implementation="mosaic_gpu")


def test_min_pool_is_pytorchs_of_negated_numbers(rng):
    torch = pytest.importorskip("torch")
    for kind in ("plain", "ties", "special"):
        x = values(rng, (2, 3, 7, 8), np.dtype(np.float32), kind)
        theirs = torch.from_numpy(x).requires_grad_()
        z, places = torch.nn.functional.max_pool2d(-theirs, 3, 2, 1, return_indices=True)
        pool = functools.partial(
            jup.min_pool_with_indices, window_shape=3, strides=2, padding=1,
            data_format="channels_first",
        )  # fmt: skip
        y, indices = pool(x)
        same_bits(y, (-z).detach().numpy())
        np.testing.assert_array_equal(indices.flat, places)
        dy = rng.integers(-9, 9, y.shape).astype(np.float32)  # their sums are exact
        (-z).backward(torch.from_numpy(dy))
        dx = jax.vjp(lambda x: pool(x)[0], x)[1](dy)[0]
        np.testing.assert_array_equal(dx, theirs.grad)
