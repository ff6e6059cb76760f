"""tinygrad: random calls, by its interpreter in Python, and the examples of its documentation."""

import os

import numpy as np
import oracle
import pytest

os.environ.setdefault("DEV", "PYTHON")  # which needs no compiler
tinygrad = pytest.importorskip("tinygrad", reason="in the extra 'peers'")

from comparison import FIRST, Answer, Case, check  # noqa: E402
from strategies import examples, values  # noqa: E402
from tinygrad import Tensor, TinyJit  # noqa: E402

import jaxunpool as jup  # noqa: E402

PEER = "tinygrad"
CALLS = examples(8, 100)  # it compiles for seconds


def run(function):
    """Of tinygrad's function: values, indices if there are any, and gradients."""

    @TinyJit
    def step(dy, *tensors):
        result = function(*tensors)
        y, *indices = result if isinstance(result, tuple) else (result,)
        gradients = y.gradient(*tensors, gradient=dy)
        Tensor.realize(y, *indices, *gradients)
        return y, indices, gradients

    def theirs(inputs, cotangent):
        tensors = [Tensor(a).realize() for a in inputs]
        result = function(*tensors)
        dy = cotangent((result[0] if isinstance(result, tuple) else result).shape)
        y, indices, gradients = step(Tensor(dy).realize(), *tensors)
        as_array = lambda tensor: tensor.numpy().copy()  # the next call writes there again
        return Answer(
            as_array(y),
            as_array(indices[0]) if indices else None,
            dy,
            tuple(map(as_array, gradients)),
        )

    return theirs


def draw(rng, n, low, high):
    """A number for each axis; fewer of them in more dimensions."""
    return tuple(rng.integers(low, high[n - 1], n, endpoint=True).tolist())


def floats(rng, shape):
    return values(rng, tuple(shape), np.dtype("float32"), "plain")


def flattened(padding):
    """tinygrad lists the pairs from the last axis to the first."""
    return tuple(pad for pair in reversed(padding) for pad in pair)


def random_window(rng, dilated=True):
    n = int(rng.integers(1, 4))
    window, strides = draw(rng, n, 1, (4, 3, 2)), draw(rng, n, 1, (3, 2, 2))
    dilation = draw(rng, n, 1, (3, 2, 2)) if dilated and rng.random() < 0.3 else (1,) * n
    spans = [(k - 1) * d + 1 for k, d in zip(window, dilation)]
    padding = tuple((int(rng.integers(0, k)), int(rng.integers(0, k))) for k in window)
    sizes = tuple(
        int(rng.integers(max(1, span - sum(pads)), span + (6, 3, 2)[n - 1]))
        for span, pads in zip(spans, padding)
    )
    ceil_mode = bool(rng.integers(2))
    ours = {"window_shape": window, "strides": strides, "padding": padding}
    theirs = {"kernel_size": window, "stride": strides, "padding": flattened(padding)}
    shared = {"dilation": dilation, "ceil_mode": ceil_mode}
    shape = (1, int(rng.integers(1, 3)), *sizes)
    return ours | shared | FIRST, theirs | shared, shape


def draw_max_pool(rng):
    ours, theirs, shape = random_window(rng)
    x = floats(rng, shape)
    return Case(
        lambda x: jup.max_pool(x, **ours),
        run(lambda x: x.max_pool2d(**theirs)),
        (x,),
        gradient_rounding=4,
    )


def draw_max_pool_with_indices(rng):
    ours, theirs, shape = random_window(rng)
    x = floats(rng, shape)

    def pool(x):
        y, indices = jup.max_pool_with_indices(x, **ours)
        return y, indices.flat

    return Case(
        pool,
        run(lambda x: x.max_pool2d(return_indices=True, **theirs)),
        (x,),
        gradient_rounding=4,
    )


def draw_max_unpool(rng):
    """It adds where indices repeat."""
    ours, theirs, shape = random_window(rng)
    x = floats(rng, shape)
    y, indices = jup.max_pool_with_indices(x, **ours)
    y = floats(rng, y.shape)
    theirs = Tensor(np.array(indices.flat))
    return Case(
        lambda y: jup.max_unpool(y, indices, duplicates="sum"),
        run(lambda y: y.max_unpool2d(theirs, output_size=shape)),
        (y,),
        rounding=4,  # the order of additions
    )


def draw_avg_pool(rng):
    ours, theirs, shape = random_window(rng, dilated=False)
    counts = {"count_include_pad": bool(rng.integers(2))}
    x = floats(rng, shape)
    return Case(
        lambda x: jup.avg_pool(x, **ours, **counts),
        run(lambda x: x.avg_pool2d(**theirs, **counts)),
        (x,),
        rounding=4,
        gradient_rounding=8,
    )


def resizing(rng, mode, rounding, least=1, keeps=True, **options):
    """`keeps`: whether an axis may keep its size."""
    n = int(rng.integers(1, 4))
    x = floats(rng, (1, 1, *draw(rng, n, 1, (10, 6, 4))))
    sizes = draw(rng, n, least, (10, 6, 4))
    while not keeps and any(a == b for a, b in zip(sizes, x.shape[2:])):
        sizes = draw(rng, n, 1, (10, 6, 4))
    return Case(
        lambda x: jup.interpolate(x, sizes, mode=mode, **options, **FIRST),
        run(lambda x: x.interpolate(sizes, mode, **options)),
        (x,),
        rounding,
        gradient_rounding=16,
    )


def draw_nearest(rng):
    return resizing(rng, ("nearest", "nearest-exact")[rng.integers(2)], 0, keeps=False)


def draw_linear(rng):
    align = bool(rng.integers(2))  # to one element, tinygrad gives NaN then
    return resizing(rng, "linear", 8, least=1 + align, align_corners=align)


def draw_conv_transpose(rng):
    n = int(rng.integers(1, 4))
    window, strides = draw(rng, n, 1, (3, 3, 2)), draw(rng, n, 1, (3, 2, 2))
    dilation = draw(rng, n, 1, (2, 2, 1))
    padding = tuple(
        (int(rng.integers(0, d * (k - 1) + 1)), int(rng.integers(0, d * (k - 1) + 1)))
        for d, k in zip(dilation, window)
    )
    extra = tuple(int(rng.integers(0, max(s, d))) for s, d in zip(strides, dilation))
    least = [
        max(1, (sum(p) - d * (k - 1) + s - 1) // s + 1)
        for p, d, k, s in zip(padding, dilation, window, strides)
    ]
    sizes = tuple(low + int(rng.integers(0, 3)) for low in least)
    groups, inputs, outputs = (int(rng.integers(1, 3)) for _ in range(3))
    arrays = tuple(
        floats(rng, shape)
        for shape in (
            (1, inputs * groups, *sizes),
            (inputs * groups, outputs, *window),
            (outputs * groups,),
        )
    )
    shared = {"output_padding": extra, "groups": groups, "dilation": dilation}
    return Case(
        lambda *arrays: jup.conv_transpose(*arrays, strides, padding, **shared, **FIRST),
        run(
            lambda x, w, b: x.conv_transpose2d(
                w, b, stride=strides, padding=flattened(padding), **shared
            )
        ),
        arrays,
        rounding=8,
        gradient_rounding=80,  # of the kernel: a sum over everything
    )


def draw_equal_elements(rng):
    """The gradient of a maximum is divided among the elements that equal it."""
    ours, theirs, shape = random_window(rng)
    geometry = jup.WindowGeometry.for_input(shape, **ours)
    x = values(rng, shape, np.dtype("float32"), "ties")

    def rule(inputs, cotangent):
        (x,) = inputs
        y, dx = np.zeros_like(cotangent), np.zeros(x.shape)
        for at in np.ndindex(*y.shape):
            found = oracle.elements(
                at[2:],
                geometry.input_shape,
                geometry.window_shape,
                geometry.strides,
                geometry.padding,
                geometry.dilation,
            )
            places = [(*at[:2], *position) for _, position in found]
            y[at] = max(x[place] for place in places)
            equal = [place for place in places if x[place] == y[at]]
            for place in equal:
                dx[place] += cotangent[at] / len(equal)
        return Answer(y, None, cotangent, (dx.astype(np.float32),))

    return Case(
        lambda x: jup.max_pool(x, **ours),
        run(lambda x: x.max_pool2d(**theirs)),
        (x,),
        gradient_rounding=4,
        rule=rule,
    )


ROWS = {
    "max pooling": draw_max_pool,
    "max pooling with indices": draw_max_pool_with_indices,
    "max unpooling": draw_max_unpool,
    "average pooling": draw_avg_pool,
    "resizing, nearest": draw_nearest,
    "resizing, linear": draw_linear,
    "transposed convolution": draw_conv_transpose,
    "max pooling, equal elements": draw_equal_elements,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("operator", ROWS)
def test_random_configurations(operator, record_property):
    check(PEER, operator, ROWS[operator], record_property, CALLS)


# Examples of tinygrad's documentation.


def test_the_examples_of_pooling():
    """5x5 numbers in order: as they are, with `ceil_mode`, and with padding."""
    x = np.arange(25, dtype=np.float32).reshape(1, 1, 5, 5)
    for theirs, ours in (({}, {}), ({"ceil_mode": True},) * 2, ({"padding": 1},) * 2):
        y = Tensor(x).max_pool2d(**theirs).numpy()
        np.testing.assert_array_equal(jup.max_pool(x, 2, **ours, **FIRST), y)
        y = Tensor(x).avg_pool2d(**theirs).numpy()
        np.testing.assert_allclose(jup.avg_pool(x, 2, **ours, **FIRST), y, rtol=1e-6)


def test_the_example_of_max_unpool():
    x = np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)
    y, indices = Tensor(x).max_pool2d(return_indices=True)
    assert indices.numpy().ravel().tolist() == [5, 7, 13, 15]
    u = Tensor.max_unpool2d(y, indices).numpy()
    pooled, places = jup.max_pool_with_indices(x, 2, **FIRST)
    np.testing.assert_array_equal(places.flat, indices.numpy())
    np.testing.assert_array_equal(jup.max_unpool(pooled, places), u)


def test_the_example_of_interpolate():
    x = np.array([[1, 2, 3, 4], [21, 22, 23, 24], [41, 42, 43, 44]], np.float32)
    y = Tensor(x).interpolate((2, 3), "linear").numpy()
    found = jup.interpolate(x[None], (2, 3), mode="linear", **FIRST)[0]
    np.testing.assert_allclose(found, y, rtol=1e-6)


def test_the_example_of_conv_transpose():
    x, kernel = (
        np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3),
        np.ones((1, 1, 2, 2), np.float32),
    )
    y = Tensor(x).conv_transpose2d(Tensor(kernel)).numpy()
    np.testing.assert_array_equal(jup.conv_transpose(x, kernel, **FIRST), y)


def test_nearest_interpolation_that_keeps_an_axis():
    """tinygrad 0.14 does not compile its gradient: the index remains a float."""
    x = np.arange(6, dtype=np.float32).reshape(1, 1, 3, 2)
    tensor = Tensor(x)
    y = tensor.interpolate((3, 4), "nearest")
    (gradient,) = y.gradient(tensor, gradient=Tensor(np.ones(y.shape, np.float32)))
    np.testing.assert_array_equal(jup.interpolate(x, (3, 4), **FIRST), y.numpy())
    with pytest.raises(RuntimeError, match="UOp verification failed"):
        gradient.numpy()


def test_aligned_corners_of_one_element():
    """The first element, as in PyTorch. tinygrad divides by zero."""
    x = np.arange(3, dtype=np.float32).reshape(1, 1, 3)
    assert np.isnan(Tensor(x).interpolate((1,), "linear", align_corners=True).numpy()).all()
    assert jup.interpolate(x, (1,), mode="linear", align_corners=True, **FIRST).tolist() == [[[0]]]
