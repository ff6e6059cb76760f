"""Paddle: random calls of `paddle.nn.functional`, and the examples of its documentation."""

import dataclasses
import functools
import math

import jax
import numpy as np
import oracle
import pytest

paddle = pytest.importorskip("paddle", reason="in the extra 'peers'")

from comparison import FIRST, Answer, Case, check  # noqa: E402
from paddle.nn import functional as F  # noqa: E402
from strategies import values  # noqa: E402

import jaxunpool as jup  # noqa: E402
from jaxunpool import interop  # noqa: E402

PEER = "Paddle"


def run(function):
    """Of Paddle's function: values, indices if there are any, and gradients."""

    def theirs(inputs, cotangent):
        tensors = [paddle.to_tensor(a, stop_gradient=False) for a in inputs]
        result = function(*tensors)
        y, indices = result if isinstance(result, tuple | list) else (result, None)
        dy = cotangent(y.shape)
        gradients = paddle.grad(y, tensors, paddle.to_tensor(dy))
        return Answer(
            y.numpy(),
            None if indices is None else indices.numpy(),
            dy,
            tuple(gradient.numpy() for gradient in gradients),
        )

    return theirs


def of_rank(name, n):
    return getattr(F, name.format(n))


def draw(rng, n, low, high):
    """A number for each axis; fewer of them in more dimensions."""
    return tuple(rng.integers(low, high[n - 1], n, endpoint=True).tolist())


def floats(rng, shape, kind="plain"):
    return values(rng, tuple(shape), np.dtype(("float32", "float64")[rng.integers(2)]), kind)


def random_window(rng, ceil=True):
    """The arguments of a pooling here and there, and the shape of an array to pool.

    Not the windows of nothing but padding that Paddle keeps: those have a row of their own.
    """
    n = int(rng.integers(1, 4))
    window, strides = draw(rng, n, 1, (7, 4, 3)), draw(rng, n, 1, (4, 3, 3))
    padding = tuple(int(rng.integers(0, k // 2 + 1)) for k in window)
    sizes = tuple(
        int(rng.integers(max(1, k - 2 * p), k + (14, 7, 4)[n - 1])) for k, p in zip(window, padding)
    )
    last = [
        math.ceil((size + 2 * p - k) / s) * s
        for size, p, k, s in zip(sizes, padding, window, strides)
    ]
    fits = all(start < size + p for start, size, p in zip(last, sizes, padding))
    ceil_mode = bool(ceil and fits and rng.integers(2))
    ours = {"window_shape": window, "strides": strides, "padding": padding, **FIRST}
    theirs = {"kernel_size": window, "stride": strides, "padding": padding}
    if n == 1:
        theirs = {name: value[0] for name, value in theirs.items()}
    shape = int(rng.integers(1, 3)), int(rng.integers(1, 4)), *sizes
    return ours | {"ceil_mode": ceil_mode}, theirs | {"ceil_mode": ceil_mode}, shape, n


def draw_max_pool(rng):
    ours, theirs, shape, n = random_window(rng)
    x = floats(rng, shape)
    return Case(
        lambda x: jup.max_pool(x, **ours),
        run(lambda x: of_rank("max_pool{}d", n)(x, **theirs)),
        (x,),
        gradient_rounding=4,
    )


def draw_max_pool_with_indices(rng):
    ours, theirs, shape, n = random_window(rng)
    x = floats(rng, shape, ("plain", "ties")[rng.integers(2)])

    def pool(x):
        y, indices = jup.max_pool_with_indices(x, **ours)
        return y, indices.flat

    return Case(
        pool,
        run(lambda x: of_rank("max_pool{}d", n)(x, return_mask=True, **theirs)),
        (x,),
        gradient_rounding=4,
    )


def unpooling(rng, overlaps):
    """At the indices of a pooling, of sizes less than a stride from what windows imply."""
    while True:
        ours, theirs, shape, n = random_window(rng, ceil=False)
        geometry = jup.WindowGeometry.for_input(shape, **ours)
        axes = zip(
            shape[2:], geometry.output_shape, ours["window_shape"], ours["strides"], ours["padding"]
        )
        if geometry.overlaps == overlaps and all(
            abs(size - ((windows - 1) * s + k - 2 * pad)) < s for size, windows, k, s, pad in axes
        ):
            break
    x = floats(rng, shape)
    y, mask = of_rank("max_pool{}d", n)(paddle.to_tensor(x), return_mask=True, **theirs)
    y = values(rng, tuple(y.shape), x.dtype, "plain")
    indices = interop.from_torch(mask.numpy(), geometry)
    del theirs["ceil_mode"]
    unpool = functools.partial(of_rank("max_unpool{}d", n), indices=mask, **theirs)
    sizes = {"output_size": shape if n == 1 else shape[2:]}  # in 1-D, Paddle wants all of them
    case = Case(lambda y: jup.max_unpool(y, indices), run(lambda y: unpool(y, **sizes)), (y,))
    return case, mask.numpy(), shape


def draw_max_unpool(rng):
    return unpooling(rng, overlaps=False)[0]


def draw_avg_pool(rng):
    ours, theirs, shape, n = random_window(rng)
    exclusive = bool(rng.integers(2))
    x = values(rng, shape, np.dtype("float32"), "plain")
    return Case(
        lambda x: jup.avg_pool(x, count_include_pad=not exclusive, **ours),
        run(lambda x: of_rank("avg_pool{}d", n)(x, exclusive=exclusive, **theirs)),
        (x,),
        rounding=4,
        gradient_rounding=8,
    )


def draw_lp_pool(rng):
    n = int(rng.integers(1, 3))
    window, strides = draw(rng, n, 1, (7, 4)), draw(rng, n, 1, (4, 3))
    sizes = tuple(k + int(rng.integers(0, 8)) for k in window)
    p = (1.0, 2.0, 3.0, 2.5, 4.0, math.inf)[rng.integers(6)]
    x = np.abs(values(rng, (2, 2, *sizes), np.dtype("float32"), "plain")) + np.float32(0.1)
    pool = of_rank("lp_pool{}d", n)
    theirs = (window, strides) if n == 2 else (window[0], strides[0])
    return Case(
        lambda x: jup.lp_pool(x, p, window, strides, **FIRST),
        run(lambda x: pool(x, p, *theirs)),
        (x,),
        rounding=8,
        gradient_rounding=16,
    )


def parts(rng):
    n = int(rng.integers(1, 4))
    outputs = draw(rng, n, 1, (9, 6, 4))
    return n, outputs, (2, 2, *draw(rng, n, 1, (20, 10, 6)))


def draw_adaptive_max_pool(rng):
    n, outputs, shape = parts(rng)
    x = floats(rng, shape)

    def pool(x):
        y, indices = jup.adaptive_max_pool_with_indices(x, outputs, **FIRST)
        return y, indices.flat

    theirs = of_rank("adaptive_max_pool{}d", n)
    sizes = outputs if n > 1 else outputs[0]
    return Case(pool, run(lambda x: theirs(x, sizes, return_mask=True)), (x,), gradient_rounding=4)


def draw_adaptive_avg_pool(rng):
    n, outputs, shape = parts(rng)
    theirs = of_rank("adaptive_avg_pool{}d", n)
    sizes = outputs if n > 1 else outputs[0]
    x = values(rng, shape, np.dtype("float32"), "plain")
    return Case(
        lambda x: jup.adaptive_avg_pool(x, outputs, **FIRST),
        run(lambda x: theirs(x, sizes)),
        (x,),
        rounding=4,
        gradient_rounding=8,
    )


def fractional_edges(size, output, u):
    """Paddle's first elements of windows without a size, and the end."""
    real = np.float32
    alpha = real(size) / real(output)
    base = size // output
    limits = real(base + 2) / alpha - 1, real(size + 1 - base) / alpha - real(output - 1)
    u = real(u) * real(min(limits))
    return [int((real(i) + u) * alpha) - int(u * alpha) for i in range(output + 1)]


def draw_fractional_max_pool(rng):
    """With a window and PyTorch's positions, or from one element of a sequence to the next."""
    n = int(rng.integers(2, 4))
    window = draw(rng, n, 1, (3, 3, 2)) if rng.integers(2) else None
    outputs = draw(rng, n, 1 if window is None else 2, (9, 6, 4))
    room = [o + k for o, k in zip(outputs, window or (0,) * n)]
    sizes = tuple(int(rng.integers(r, 2 * r + 2)) for r in room)
    x = values(rng, (2, 2, *sizes), np.dtype("float32"), "plain")
    u = float(np.float32(rng.uniform(0.05, 0.95)))
    if window is None:
        edges = [fractional_edges(size, o, u) for size, o in zip(sizes, outputs)]
        options = {"sequences": edges}
    else:
        samples = np.full((2, 2, n), u, np.float32)
        options = {"output_shape": outputs, "random_samples": samples}

    def pool(x):
        y, indices = jup.fractional_max_pool_with_indices(x, window, **options, **FIRST)
        return y, indices.flat

    theirs = of_rank("fractional_max_pool{}d", n)
    return Case(
        pool,
        run(lambda x: theirs(x, outputs, window, u, return_mask=True)),
        (x,),
        gradient_rounding=4,
    )


POSITIONS = 2 * 20  # in float32, off by eps of the size; times the slope, twice the largest value


def resizing(rng, n, mode, theirs, rounding, least=1, **options):
    x = values(rng, (2, 2, *draw(rng, n, 1, (20, 12, 6))), np.dtype("float32"), "plain")
    sizes = draw(rng, n, least, (20, 12, 6))
    layout = ("NCW", "NCHW", "NCDHW")[n - 1]
    return Case(
        lambda x: jup.interpolate(x, sizes, mode=mode, **options, **FIRST),
        run(lambda x: F.interpolate(x, sizes, data_format=layout, **theirs)),
        (x,),
        rounding,
        gradient_rounding=4 * rounding or 16,  # an element is read by several
    )


def draw_nearest(rng):
    return resizing(rng, int(rng.integers(2, 4)), "nearest", {"mode": "nearest"}, 0)


def draw_linear(rng):
    n = int(rng.integers(1, 4))
    rule = ("half_pixel", "align_corners", "asymmetric")[rng.integers(3)]
    theirs = {
        "mode": ("linear", "bilinear", "trilinear")[n - 1],
        "align_corners": rule == "align_corners",
        "align_mode": int(rule == "asymmetric"),
    }
    # To one element, Paddle's gradient is not that of its own function: see below.
    return resizing(rng, n, "linear", theirs, 8 + POSITIONS, least=1 + (n == 1), coordinates=rule)


def draw_cubic(rng):
    align = bool(rng.integers(2))
    theirs = {"mode": "bicubic", "align_corners": align}
    return resizing(rng, 2, "cubic", theirs, 8 + POSITIONS, least=2, align_corners=align)


def draw_area(rng):
    return resizing(rng, int(rng.integers(1, 4)), "area", {"mode": "area"}, 8)


def draw_conv_transpose(rng):
    n = int(rng.integers(1, 4))
    window, strides = draw(rng, n, 1, (5, 4, 3)), draw(rng, n, 1, (4, 3, 3))
    dilation = draw(rng, n, 1, (3, 2, 2))
    padding = tuple(int(rng.integers(0, d * (k - 1) + 1)) for d, k in zip(dilation, window))
    extra = tuple(int(rng.integers(0, s)) for s in strides)
    least = [
        max(1, (2 * p - d * (k - 1) - e + s - 1) // s + 1)
        for p, d, k, e, s in zip(padding, dilation, window, extra, strides)
    ]
    sizes = tuple(low + int(rng.integers(0, 4)) for low in least)
    groups, inputs, outputs = (int(rng.integers(1, 3)) for _ in range(3))
    arrays = tuple(
        values(rng, shape, np.dtype("float32"), "plain")
        for shape in (
            (2, inputs * groups, *sizes),
            (inputs * groups, outputs, *window),
            (outputs * groups,),
        )
    )
    shared = {"padding": padding, "output_padding": extra, "groups": groups, "dilation": dilation}
    convolve = of_rank("conv{}d_transpose", n)
    return Case(
        functools.partial(jup.conv_transpose, strides=strides, **shared, **FIRST),
        run(functools.partial(convolve, stride=strides, **shared)),
        arrays,
        rounding=8,
        gradient_rounding=80,  # of the kernel: a sum over everything
    )


# Where the two differ.


def draw_repeated_indices(rng):
    """The values are equal. Paddle's gradient goes to overwritten values, too."""
    case, mask, shape = unpooling(rng, overlaps=True)
    flat = mask.reshape(*shape[:2], -1)

    def rule(inputs, cotangent):
        (y,) = inputs
        u = np.zeros((*shape[:2], math.prod(shape[2:])), y.dtype)
        for image, channel, number in np.ndindex(*flat.shape):  # the last one stays
            u[image, channel, flat[image, channel, number]] = y.reshape(flat.shape)[
                image, channel, number
            ]
        gradient = np.take_along_axis(cotangent.reshape(u.shape), flat, 2)
        return Answer(u.reshape(shape), None, cotangent, (gradient.reshape(y.shape),))

    return dataclasses.replace(case, rule=rule)


def draw_double_averages(rng):
    """The values are equal. The gradient of float64 is multiplied by a factor in float32."""
    ours, theirs, shape, n = random_window(rng)
    exclusive = bool(rng.integers(2))
    pads = [(p, p) for p in ours["padding"]]
    _, table, counts = oracle.windows(
        shape[2:], ours["window_shape"], ours["strides"], pads, (1,) * n, ours["ceil_mode"]
    )
    if exclusive:
        counts = list(map(len, table))

    def rule(inputs, cotangent):
        planes = inputs[0].reshape(*shape[:2], -1)
        dy = cotangent.reshape(*shape[:2], -1)
        y, dx = np.zeros_like(dy), np.zeros_like(planes)
        for number, (members, count) in enumerate(zip(table, counts)):
            for place in members:
                y[..., number] += planes[..., place]
                dx[..., place] += dy[..., number] * np.float64(np.float32(1 / count))
            y[..., number] /= count
        return Answer(y.reshape(cotangent.shape), None, cotangent, (dx.reshape(shape),))

    return Case(
        lambda x: jup.avg_pool(x, count_include_pad=not exclusive, **ours),
        run(lambda x: of_rank("avg_pool{}d", n)(x, exclusive=exclusive, **theirs)),
        (values(rng, shape, np.dtype("float64"), "plain"),),
        rule=rule,
    )


ROWS = {
    "max pooling": draw_max_pool,
    "max pooling with indices": draw_max_pool_with_indices,
    "max unpooling": draw_max_unpool,
    "average pooling": draw_avg_pool,
    "p-norm pooling": draw_lp_pool,
    "adaptive max pooling": draw_adaptive_max_pool,
    "adaptive average pooling": draw_adaptive_avg_pool,
    "fractional max pooling": draw_fractional_max_pool,
    "resizing, nearest": draw_nearest,
    "resizing, linear": draw_linear,
    "resizing, cubic": draw_cubic,
    "resizing, area": draw_area,
    "transposed convolution": draw_conv_transpose,
    "max unpooling at repeated indices": draw_repeated_indices,
    "average pooling of float64": draw_double_averages,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("operator", ROWS)
def test_random_configurations(operator, record_property):
    check(PEER, operator, ROWS[operator], record_property)


# Examples of Paddle's documentation, and single differences.


def test_the_example_of_fractional_max_pool():
    """Windows of 1, 2, 1, 2 and 1 elements."""
    x = np.array([2, 4, 3, 1, 5, 2, 3], np.float32).reshape(1, 1, 1, 7)
    expected = F.fractional_max_pool2d(paddle.to_tensor(x), (1, 5), random_u=0.3).numpy()
    assert expected.ravel().tolist() == [2, 4, 1, 5, 3]
    sequences = [[0, 1], fractional_edges(7, 5, 0.3)]
    assert sequences[1] == [0, 1, 3, 4, 6, 7]
    found = jup.fractional_max_pool(x, None, sequences=sequences, **FIRST)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_examples_of_max_unpool(n):
    """A pooling of 2, and its inverse: by the windows alone."""
    x = np.random.default_rng(0).standard_normal((1, 3, *(8,) * n), np.float32)
    y, mask = of_rank("max_pool{}d", n)(paddle.to_tensor(x), 2, 2, 0, return_mask=True)
    expected = of_rank("max_unpool{}d", n)(y, mask, kernel_size=2, padding=0).numpy()
    pooled, indices = jup.max_pool_with_indices(x, (2,) * n, **FIRST)
    np.testing.assert_array_equal(indices.flat, mask.numpy())
    np.testing.assert_array_equal(jup.max_unpool(pooled, indices), expected)


def test_the_loops_of_adaptive_pooling():
    """What the documentation says an adaptive average is, in its own loops."""
    x = np.random.default_rng(0).standard_normal((2, 3, 13, 11))
    expected = np.zeros((2, 3, 3, 4))
    for i, j in np.ndindex(3, 4):
        rows = slice(i * 13 // 3, -(-(i + 1) * 13 // 3))
        columns = slice(j * 11 // 4, -(-(j + 1) * 11 // 4))
        expected[..., i, j] = x[..., rows, columns].mean((2, 3))
    theirs = F.adaptive_avg_pool2d(paddle.to_tensor(x), (3, 4)).numpy()
    np.testing.assert_allclose(theirs, expected, rtol=0, atol=1e-15)
    np.testing.assert_allclose(
        jup.adaptive_avg_pool(x, (3, 4), **FIRST), expected, rtol=0, atol=1e-15
    )


def test_the_gradient_of_a_single_element():
    """In 1-D, linear interpolation to one element reads the middle. Paddle's gradient is at 0."""
    x = paddle.to_tensor(np.arange(6, dtype=np.float32).reshape(1, 1, 6), stop_gradient=False)
    y = F.interpolate(x, [1], mode="linear", data_format="NCW")
    (theirs,) = paddle.grad(y, x)
    assert y.item() == 2.5
    assert theirs.numpy().ravel().tolist() == [1, 0, 0, 0, 0, 0]
    run = lambda x: jup.interpolate(x, (1,), mode="linear", **FIRST).sum()
    value, gradient = jax.value_and_grad(run)(x.numpy())
    assert value == 2.5
    assert gradient.ravel().tolist() == [0, 0, 0.5, 0.5, 0, 0]


def test_cubic_interpolation_to_a_single_element():
    """Paddle reads at -0.5, half an element before the first, and not in the middle."""
    x = np.arange(1, 7, dtype=np.float32).reshape(1, 1, 1, 6)
    theirs = F.interpolate(paddle.to_tensor(x), [2, 1], mode="bicubic").numpy()
    near, far = 19 / 32, -3 / 32  # Keys' cubic at distances of 0.5 and 1.5, a = -0.75
    before = (far + 2 * near) * x[..., 0] + far * x[..., 1]
    middle = far * (x[..., 1] + x[..., 4]) + near * (x[..., 2] + x[..., 3])
    np.testing.assert_array_equal(theirs.ravel(), [before.item()] * 2)
    found = jup.interpolate(x, (2, 1), mode="cubic", **FIRST)
    np.testing.assert_array_equal(found.ravel(), [middle.item()] * 2)


def test_a_single_window_of_fractional_pooling():
    """Of one size, the last window ends with the input: PyTorch's rule. Paddle's begins at 0."""
    x = np.arange(25, dtype=np.float32).reshape(1, 1, 5, 5)
    theirs = F.fractional_max_pool2d(paddle.to_tensor(x), (1, 1), (2, 2), 0.5).numpy()
    samples = np.full((1, 1, 2), 0.5, np.float32)
    ours = jup.fractional_max_pool(x, (2, 2), (1, 1), random_samples=samples, **FIRST)
    assert (theirs.item(), ours.item()) == (6, 24)


def test_the_sizes_of_max_unpool1d():
    """Paddle refuses a size of one entry, which `max_unpool2d` takes for its two axes."""
    y, mask = F.max_pool1d(paddle.ones([1, 1, 5]), 2, return_mask=True)
    with pytest.raises(ValueError, match="invalid output_size"):
        F.max_unpool1d(y, mask, 2, output_size=[5])
    assert F.max_unpool1d(y, mask, 2, output_size=[1, 1, 5]).shape == [1, 1, 5]
