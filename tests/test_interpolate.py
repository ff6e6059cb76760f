"""interpolate against np.interp, jax.image, loops over its definition, and its own transpose."""

import functools
import itertools

import derivatives
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import jaxunpool as jup

SIZES = [
    (1, 1),
    (1, 6),
    (6, 1),
    (2, 3),
    (5, 5),
    (7, 4),
    (7, 15),
    (13, 6),
    (4, 16),
    (9, 10),
    (20, 3),
]
MODES = ("nearest", "nearest-exact", "linear", "cubic", "area")


def coordinates_of(size, output, coordinates):
    numbers = np.arange(output)
    if coordinates == "align_corners":
        return numbers * ((size - 1) / max(output - 1, 1))
    if coordinates == "asymmetric":
        return numbers * size / output
    return (numbers + 0.5) * size / output - 0.5


def along_one_axis(line, output, mode, coordinates):
    """A vector resized by the definition, in float64."""
    size = len(line)
    if mode == "area":
        return np.array([line[a:b].mean() for a, b in oracle.adaptive_bounds(size, output)])
    if mode.startswith("nearest"):
        shift = 0.5 if mode == "nearest-exact" else 0.0
        return line[np.minimum((np.arange(output) + shift) * size // output, size - 1).astype(int)]
    where = coordinates_of(size, output, coordinates)
    if mode == "linear":
        return np.interp(where, np.arange(size), line)
    result = []
    for c in where:  # the cubic through values and slopes, a = -0.75, repeating the outermost
        first = int(np.floor(c))
        p = [line[min(max(first + k, 0), size - 1)] for k in (-1, 0, 1, 2)]
        t, a = c - first, -0.75
        left, right = -a * (p[2] - p[0]), -a * (p[3] - p[1])
        result.append(
            (2 * t**3 - 3 * t**2 + 1) * p[1]
            + (t**3 - 2 * t**2 + t) * left
            + (3 * t**2 - 2 * t**3) * p[2]
            + (t**3 - t**2) * right
        )
    return np.array(result)


@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners", "asymmetric"])
@pytest.mark.parametrize("mode", MODES)
def test_one_axis(rng, mode, coordinates):
    options = {"coordinates": coordinates} if mode in ("linear", "cubic") else {}
    for size, output in SIZES:
        x = rng.standard_normal((2, size, 3))
        expected = np.apply_along_axis(along_one_axis, 1, x, output, mode, coordinates)
        y = jup.interpolate(x, (output,), mode=mode, **options)
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-13 * size)
        # In float32 coordinates are rounded, as PyTorch's.
        narrow = jup.interpolate(x.astype(np.float32), (output,), mode=mode, **options)
        np.testing.assert_allclose(narrow, expected, rtol=0, atol=2e-6 * size)


def test_scales_that_rounding_decides():
    """69 / 4.6 is 15.000000000000002; in float32 it is below 15."""
    x = np.arange(34.0)[:, None]
    assert jup.interpolate(x, scale=(4.6,))[69, 0] == 15
    assert jup.interpolate(x.astype(np.float32), scale=(4.6,))[69, 0] == 14


@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize("mode", MODES)
def test_axes_are_independent(rng, mode, layout):
    x = rng.standard_normal((2, 5, 4, 6, 3))
    expected = x
    for axis, output in ((1, 7), (2, 2), (3, 9)):
        expected = np.apply_along_axis(along_one_axis, axis, expected, output, mode, "half_pixel")
    options = {"mode": mode, "data_format": layout}
    move = lambda a: np.moveaxis(a, -1, 1) if layout == "channels_first" else a
    y = jup.interpolate(move(x), (7, 2, 9), **options)
    np.testing.assert_allclose(y, move(expected), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(jup.interpolate(move(x)[0], (7, 2, 9), **options), y[0])


@pytest.mark.parametrize(
    ("mode", "antialias"),
    [("nearest-exact", False), ("linear", False), ("linear", True), ("cubic", True)],
)
def test_agrees_with_jax_image(rng, mode, antialias):
    """Where they mean the same: its cubic is Keys' with a = -0.5, which is ours with antialias."""
    method = {"nearest-exact": "nearest"}.get(mode, mode)
    for size, output in SIZES:
        x = rng.standard_normal((2, size, size, 3))
        expected = jax.image.resize(x, (2, output, output, 3), method, antialias=antialias)
        y = jup.interpolate(x, (output, output), mode=mode, antialias=antialias)
        np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6 * size)  # float32 positions


def test_fractional_max_unpooling_of_the_tutorial(rng):
    """Its loop: bilinear at i / scale, the far edge clamped."""
    pool = rng.standard_normal((2, 3, 4, 5))
    scale = 3
    h, w = pool.shape[2:]
    expected = np.zeros((2, 3, h * scale, w * scale))
    for i, j in itertools.product(range(h * scale), range(w * scale)):
        y, x = i / scale, j / scale
        a, b = int(y), int(x)
        c, d = min(a + 1, h - 1), min(b + 1, w - 1)
        s, t = y - a, x - b
        top = (1 - t) * pool[:, :, a, b] + t * pool[:, :, a, d]
        bottom = (1 - t) * pool[:, :, c, b] + t * pool[:, :, c, d]
        expected[:, :, i, j] = (1 - s) * top + s * bottom
    y = jup.interpolate(
        pool, scale=scale, mode="linear", coordinates="asymmetric", data_format="channels_first"
    )
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("mode", MODES)
def test_nan_and_infinity_stay_where_they_are(mode):
    x = np.ones((9, 9, 1), np.float32)
    x[4, 4], x[0, 8] = np.nan, np.inf
    y = np.asarray(jup.interpolate(x, (18, 18), mode=mode))
    reach = {"cubic": 4, "linear": 2}.get(mode, 0)
    far = np.ones((18, 18), bool)
    far[8 - reach : 10 + reach, 8 - reach : 10 + reach] = False
    far[: 2 + reach, 16 - reach :] = False
    np.testing.assert_allclose(y[..., 0][far], 1, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_types(dtype):
    x = jnp.linspace(0, 1, 30, dtype=dtype).reshape(5, 6, 1)
    for mode in MODES:
        y = jup.interpolate(x, (8, 4), mode=mode)
        assert y.dtype == dtype
        expected = jup.interpolate(x.astype("float64"), (8, 4), mode=mode)
        np.testing.assert_allclose(
            y.astype("float64"), expected, rtol=float(jnp.finfo(dtype).eps), atol=3e-7
        )


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_labels_stay_integers(mode, dtype):
    x = jnp.arange(200, 220, dtype=dtype).reshape(4, 5, 1)
    y = jup.interpolate(x, (7, 3), mode=mode)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, jup.interpolate(x.astype("float32"), (7, 3), mode=mode))


def test_integer_factors_of_nearest_and_area_agree(rng):
    x = rng.standard_normal((4, 3, 2))
    for mode in ("nearest", "nearest-exact", "area"):
        np.testing.assert_array_equal(
            jup.interpolate(x, scale=(2, 3), mode=mode), jup.nearest_unpool(x, (2, 3))
        )


@pytest.mark.parametrize("mode", MODES)
def test_derivatives(rng, mode):
    x = jnp.asarray(rng.standard_normal((5, 6, 2)))
    for outputs in ((9, 4), (2, 40)):
        run = functools.partial(jup.interpolate, output_shape=outputs, mode=mode)
        (gradient,) = derivatives.check(run, x)
        plain = functools.partial(run, implementation="xla")
        (expected,) = derivatives.check(plain, x, forward=True)
        np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-12)
        # The gradient is the exact transpose.
        dy = rng.standard_normal((*outputs, 2))
        left = np.vdot(run(x), dy)
        np.testing.assert_allclose(np.vdot(x, jax.vjp(run, x)[1](dy)[0]), left, rtol=1e-12)


def test_gradients_scatter_nothing():
    x = jnp.zeros((5, 6, 2))
    for mode in MODES:
        loss = lambda x, mode=mode: jup.interpolate(x, (9, 4), mode=mode).sum()
        assert "scatter" not in jax.jit(jax.grad(loss)).lower(x).as_text()
