"""TensorFlow: random calls of `tf.nn` and `tf.image`, and the examples of their documentation."""

import importlib.util

import numpy as np
import oracle
import pytest

if importlib.util.find_spec("paddle"):
    pytest.importorskip("paddle")  # after TensorFlow, importing it ends the process
tf = pytest.importorskip("tensorflow", reason="in the extra 'peers'")

from comparison import Answer, Case, check  # noqa: E402
from strategies import values  # noqa: E402
from tensorflow.python.ops import gen_nn_ops  # noqa: E402

import jaxunpool as jup  # noqa: E402
from jaxunpool import interop  # noqa: E402

PEER = "TensorFlow"
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)


def run(function):
    """Of TensorFlow's function: values, indices if there are any, and gradients."""

    def theirs(inputs, cotangent):
        tensors = [tf.constant(a) for a in inputs]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            result = function(*tensors)
            y, indices = result if isinstance(result, tuple) else (result, None)
        dy = cotangent(y.shape).astype(y.dtype.as_numpy_dtype)
        gradients = tape.gradient(y, tensors, tf.constant(dy))
        return Answer(
            y.numpy(),
            None if indices is None else indices.numpy(),
            dy,
            tuple(gradient.numpy() for gradient in gradients),
        )

    return theirs


def draw(rng, n, low, high):
    """A number for each axis; fewer of them in more dimensions."""
    return tuple(rng.integers(low, high[n - 1], n, endpoint=True).tolist())


def floats(rng, shape, kind="plain"):
    """TensorFlow has no pooling of float64 in 3-D on CPU."""
    dtype = ("float32", "float64")[rng.integers(2)] if len(shape) < 5 else "float32"
    return values(rng, tuple(shape), np.dtype(dtype), kind)


def random_window(rng, n=None, gaps=False):
    """The arguments of a pooling, the same here and there, and the shape of an array to pool.

    `gaps`: whether SAME leaves out elements at both ends in 3-D, where TensorFlow counts otherwise.
    """
    while True:
        m = n or int(rng.integers(1, 4))
        window, strides = draw(rng, m, 1, (7, 4, 3)), draw(rng, m, 1, (4, 3, 3 + gaps))
        padding = "SAME" if gaps else ("SAME", "VALID")[rng.integers(2)]
        sizes = tuple(
            int(rng.integers(k if padding == "VALID" else 1, k + (14, 7, 4)[m - 1])) for k in window
        )
        has_gaps = m == 3 and padding == "SAME" and min(totals(sizes, window, strides)) < -1
        if has_gaps == gaps:
            shape = int(rng.integers(1, 3)), *sizes, int(rng.integers(1, 4))
            return (window, strides, padding), shape, m


def totals(sizes, window, strides):
    """How many elements SAME adds; less than 0 for those between and beyond the windows."""
    return [(-(-size // s) - 1) * s + k - size for size, k, s in zip(sizes, window, strides)]


def draw_max_pool(rng):
    """Without equal elements in 3-D, where TensorFlow gives a gradient to each of them."""
    (window, strides, padding), shape, n = random_window(rng)
    x = floats(rng, shape, "plain" if n == 3 else "ties")
    theirs = padding
    if n == 2 and rng.integers(2):
        padding = tuple((int(rng.integers(k)), int(rng.integers(k))) for k in window)
        theirs = [[0, 0], *map(list, padding), [0, 0]]
        x = floats(rng, (shape[0], *(s + 3 for s in shape[1:-1]), shape[-1]), "ties")
    pool = {1: tf.nn.max_pool1d, 2: tf.nn.max_pool2d, 3: tf.nn.max_pool3d}[n]
    return Case(
        lambda x: jup.max_pool(x, window, strides, padding),
        run(lambda x: pool(x, window, strides, theirs)),
        (x,),
        gradient_rounding=4,
    )


def draw_dilated(rng):
    """`tf.nn.pool`, maxima and means. It has no SAME for dilated windows."""
    n = int(rng.integers(1, 4))
    window, dilation = draw(rng, n, 1, (5, 3, 2)), draw(rng, n, 1, (4, 3, 2))
    sizes = tuple((k - 1) * d + int(rng.integers(1, 6)) for k, d in zip(window, dilation))
    x = floats(rng, (2, *sizes, 2))
    is_max = bool(rng.integers(2))
    pool, kind = (jup.max_pool, "MAX") if is_max else (jup.avg_pool, "AVG")
    return Case(
        lambda x: pool(x, window, 1, dilation=dilation),
        run(lambda x: tf.nn.pool(x, window, kind, (1,) * n, "VALID", dilations=dilation)),
        (x,),
        rounding=0 if is_max else 4,
        gradient_rounding=8,
    )


def draw_max_pool_with_argmax(rng):
    arguments, shape, _ = random_window(rng, 2)
    x = floats(rng, shape, ("plain", "ties")[rng.integers(2)])
    batch = {"include_batch_in_index": bool(rng.integers(2))}

    def ours(x):
        y, indices = jup.max_pool_with_indices(x, *arguments)
        return y, interop.to_tensorflow(indices, **batch)

    pool = lambda x: tuple(tf.nn.max_pool_with_argmax(x, *arguments, **batch))
    return Case(ours, run(pool), (x,), gradient_rounding=4)


def draw_avg_pool(rng):
    (window, strides, padding), shape, n = random_window(rng)
    x = floats(rng, shape)
    pool = {1: tf.nn.avg_pool1d, 2: tf.nn.avg_pool2d, 3: tf.nn.avg_pool3d}[n]
    return Case(
        lambda x: jup.avg_pool(x, window, strides, padding, count_include_pad=False),
        run(lambda x: pool(x, window, strides, padding)),
        (x,),
        rounding=4,
        gradient_rounding=8,
    )


def scatter(argmax, shape):
    """The recipe: add the values of each image into a flat array of zeros."""
    size = int(np.prod(shape[1:]))
    numbers = argmax + tf.range(shape[0], dtype=tf.int64)[:, None, None, None] * size
    return lambda y: tf.reshape(
        tf.scatter_nd(
            tf.reshape(numbers, [-1, 1]),
            tf.reshape(y, [-1]),
            tf.constant([shape[0] * size], tf.int64),
        ),
        shape,
    )


def draw_unpool(rng):
    """The `scatter_nd` recipe, at TensorFlow's own indices."""
    arguments, shape, _ = random_window(rng, 2)
    x = floats(rng, shape)
    y, argmax = tf.nn.max_pool_with_argmax(x, *arguments)
    y = values(rng, tuple(y.shape), x.dtype, "plain")
    geometry = jup.WindowGeometry.for_input(shape, *arguments)
    indices = interop.from_tensorflow(argmax, geometry)
    return Case(
        lambda y: jup.max_unpool(y, indices, duplicates="sum"),
        run(scatter(argmax, shape)),
        (y,),
        rounding=4,  # the order of additions
    )


def draw_unpool_like(rng):
    """The recipe that takes the gradient of a pooling for its inverse."""
    (window, strides, padding), shape, _ = random_window(rng, 2)
    x = values(rng, shape, np.dtype("float32"), "ties")
    y = tf.nn.max_pool2d(x, window, strides, padding)
    u = values(rng, tuple(y.shape), x.dtype, "plain")
    full = lambda sizes: [1, *sizes, 1]
    return Case(
        lambda u: jup.max_unpool_like(x, u, window, strides, padding),
        run(lambda u: gen_nn_ops.max_pool_grad(x, y, u, full(window), full(strides), padding)),
        (u,),
        rounding=4,
    )


def fractional(rng, theirs, ours, rounding):
    sizes = rng.integers(2, 14, 2).tolist()
    x = floats(rng, (int(rng.integers(1, 3)), *sizes, int(rng.integers(1, 4))))
    ratios = [1.0, *(float(rng.uniform(1, min(size, 3))) for size in sizes), 1.0]
    options = {"pseudo_random": bool(rng.integers(2)), "seed": int(rng.integers(1, 1000))}
    overlapping = bool(rng.integers(2))
    _, rows, columns = theirs(x, ratios, overlapping=overlapping, **options)
    again = lambda x: theirs(x, ratios, overlapping=overlapping, **options)[0]
    sequences = [rows.numpy(), columns.numpy()]
    return Case(
        lambda x: ours(x, sequences=sequences, overlapping=overlapping),
        run(again),
        (x,),
        rounding,
        gradient_rounding=8,
    )


def draw_fractional_max_pool(rng):
    ours = lambda x, **options: jup.fractional_max_pool(x, None, **options)
    return fractional(rng, tf.nn.fractional_max_pool, ours, 0)


def draw_fractional_avg_pool(rng):
    return fractional(rng, tf.nn.fractional_avg_pool, jup.fractional_avg_pool, 4)


POSITIONS = 2 * 20  # in float32, off by eps of the size; times the slope, twice the largest value


def resizing(rng, theirs, rounding, **options):
    """`theirs(x, sizes)`, of two spatial axes."""
    x = values(rng, (2, *draw(rng, 2, 1, (20, 12)), 2), np.dtype("float32"), "plain")
    sizes = draw(rng, 2, 1, (20, 12))
    return Case(
        lambda x: jup.interpolate(x, sizes, **options),
        run(lambda x: theirs(x, sizes)),
        (x,),
        rounding,
        gradient_rounding=4 * rounding or 16,  # an element is read by several
    )


def draw_linear(rng):
    rule = ("half_pixel", "align_corners", "asymmetric")[rng.integers(3)]
    theirs = lambda x, sizes: tf.compat.v1.image.resize_bilinear(
        x,
        sizes,
        align_corners=rule == "align_corners",
        half_pixel_centers=rule == "half_pixel",
    )
    return resizing(rng, theirs, 8 + POSITIONS, mode="linear", coordinates=rule)


def draw_nearest(rng):
    if rng.integers(2):
        theirs = lambda x, sizes: tf.image.resize(x, sizes, "nearest")
        return resizing(rng, theirs, 0, mode="nearest-exact")
    theirs = lambda x, sizes: tf.compat.v1.image.resize_nearest_neighbor(x, sizes)
    return resizing(rng, theirs, 0, mode="nearest")


def draw_antialias(rng):
    mode = ("linear", "cubic")[rng.integers(2)]
    theirs = lambda x, sizes: tf.image.resize(x, sizes, f"bi{mode}", antialias=True)
    return resizing(rng, theirs, 8 + POSITIONS, mode=mode, antialias=True)


def draw_conv_transpose(rng):
    n = int(rng.integers(1, 4))
    window, strides = draw(rng, n, 1, (5, 4, 3)), draw(rng, n, 1, (4, 3, 3))
    padding = ("SAME", "VALID")[rng.integers(2)]
    inputs, outputs = (int(rng.integers(1, 4)) for _ in range(2))
    x = values(rng, (2, *draw(rng, n, 1, (9, 5, 3)), inputs), np.dtype("float32"), "plain")
    kernel = values(rng, (*window, outputs, inputs), x.dtype, "plain")
    # Any of the sizes that a convolution maps to those of x.
    least = [
        (size - 1) * s + (k if padding == "VALID" else 1)
        for size, s, k in zip(x.shape[1:], strides, window)
    ]
    sizes = tuple(int(rng.integers(low, low + s)) for low, s in zip(least, strides))
    convolve = {1: tf.nn.conv1d_transpose, 2: tf.nn.conv2d_transpose, 3: tf.nn.conv3d_transpose}[n]
    return Case(
        lambda x, kernel: jup.conv_transpose(
            x, kernel.swapaxes(-1, -2), None, strides, padding, output_shape=sizes
        ),
        run(lambda x, k: convolve(x, k, (2, *sizes, outputs), strides, padding)),
        (x, kernel),
        rounding=8,
        gradient_rounding=80,  # of the kernel: a sum over everything
    )


# Where the two differ.


def members(geometry, shape):
    """Every window of every channel: where its result goes, and its elements in raster order."""
    for at in np.ndindex(shape[0], *geometry.output_shape, shape[-1]):
        found = oracle.elements(
            at[1:-1],
            geometry.input_shape,
            geometry.window_shape,
            geometry.strides,
            geometry.padding,
            geometry.dilation,
        )
        yield at, [(at[0], *position, at[-1]) for _, position in found]


def draw_equal_elements_3d(rng):
    """The gradient of `max_pool3d` goes to all elements that equal the maximum."""
    arguments, shape, _ = random_window(rng, 3)
    geometry = jup.WindowGeometry.for_input(shape, *arguments)

    def rule(inputs, cotangent):
        (x,) = inputs
        y, dx = np.zeros_like(cotangent), np.zeros_like(x)
        for at, places in members(geometry, shape):
            y[at] = max(x[place] for place in places)
            for place in places:
                if x[place] == y[at]:
                    dx[place] += cotangent[at]
        return Answer(y, None, cotangent, (dx,))

    return Case(
        lambda x: jup.max_pool(x, *arguments),
        run(lambda x: tf.nn.max_pool3d(x, *arguments)),
        (values(rng, shape, np.dtype("float32"), "ties"),),
        rule=rule,
    )


def draw_gaps_3d(rng):
    """SAME with windows smaller than the strides: in 3-D, TensorFlow puts them in the middle."""
    (window, strides, padding), shape, n = random_window(rng, 3, gaps=True)
    half = [int(total / 2) for total in totals(shape[1:-1], window, strides)]
    is_max = bool(rng.integers(2))

    def rule(inputs, _):
        (x,) = inputs
        y = np.zeros((shape[0], *(-(-n // s) for n, s in zip(shape[1:], strides)), shape[-1]))
        pads = [(low, low) for low in half]
        for at in np.ndindex(*y.shape):
            found = oracle.elements(at[1:-1], shape[1:-1], window, strides, pads, (1,) * n)
            elements = [x[(at[0], *position, at[-1])] for _, position in found]
            y[at] = max(elements) if is_max else sum(elements) / len(elements)
        return Answer(y.astype(x.dtype))

    ours, theirs = (jup.max_pool, tf.nn.max_pool3d) if is_max else (jup.avg_pool, tf.nn.avg_pool3d)
    counts = {} if is_max else {"count_include_pad": False}
    return Case(
        lambda x: ours(x, window, strides, padding, **counts),
        lambda inputs, _: Answer(theirs(*inputs, window, strides, padding).numpy()),
        (values(rng, shape, np.dtype("float32"), "plain"),),
        rounding=0 if is_max else 4,
        rule=rule,
    )


def draw_nan(rng):
    """`max_pool2d` skips NaN, and gives the least finite number for a window of nothing larger."""
    arguments, shape, _ = random_window(rng, 2)
    geometry = jup.WindowGeometry.for_input(shape, *arguments)

    def rule(inputs, _):
        (x,) = inputs
        y = np.full(geometry.pooled_shape(shape), np.finfo(x.dtype).min, x.dtype)
        for at, places in members(geometry, shape):
            for place in places:
                y[at] = np.fmax(y[at], x[place])
        return Answer(y)

    return Case(
        lambda x: jup.max_pool(x, *arguments),
        lambda inputs, _: Answer(tf.nn.max_pool2d(*inputs, *arguments).numpy()),
        (values(rng, shape, np.dtype("float32"), "special"),),
        rule=rule,
    )


def draw_nan_with_argmax(rng):
    """`max_pool_with_argmax` begins with the first element, and takes what is larger."""
    arguments, shape, _ = random_window(rng, 2)
    geometry = jup.WindowGeometry.for_input(shape, *arguments)

    def rule(inputs, _):
        (x,) = inputs
        y = np.zeros(geometry.pooled_shape(shape), x.dtype)
        argmax = np.zeros(y.shape, np.int64)
        for at, places in members(geometry, shape):
            best = places[0]
            for place in places:
                if x[place] > x[best]:
                    best = place
            y[at], argmax[at] = x[best], np.ravel_multi_index(best[1:], shape[1:])
        return Answer(y, argmax)

    def ours(x):
        y, indices = jup.max_pool_with_indices(x, *arguments)
        return y, interop.to_tensorflow(indices)

    pool = lambda x: tf.nn.max_pool_with_argmax(x, *arguments)
    return Case(
        ours,
        lambda inputs, _: Answer(*(result.numpy() for result in pool(*inputs))),
        (values(rng, shape, np.dtype("float32"), "special"),),
        rule=rule,
    )


def by_weights(rng, mode, weights):
    """A resizing of two axes, each by a matrix of weights."""
    x = values(rng, (2, *draw(rng, 2, 1, (20, 12)), 2), np.dtype("float32"), "plain")
    sizes = draw(rng, 2, 1, (20, 12))

    def rule(inputs, _):
        rows, columns = map(weights, x.shape[1:3], sizes)
        return Answer(np.einsum("ai,bj,nijc->nabc", rows, columns, inputs[0]).astype(x.dtype))

    ours = {"bicubic": "cubic", "area": "area"}[mode]
    return Case(
        lambda x: jup.interpolate(x, sizes, mode=ours),
        lambda inputs, _: Answer(tf.image.resize(*inputs, sizes, mode).numpy()),
        (x,),
        rounding=8 + POSITIONS,
        rule=rule,
    )


def draw_area(rng):
    """Each element weighs as much as is covered of it. Here it counts whole, as in PyTorch."""

    def weights(size, output):
        edges = np.arange(output + 1) * size / output
        cells = np.arange(size)
        covered = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
        return np.maximum(covered, 0) * output / size

    return by_weights(rng, "area", weights)


def draw_bicubic(rng):
    """The cubic of a = -0.5, from a table of 1024 steps, and beyond the edges without weight."""

    def weights(size, output):
        found = np.zeros((output, size))
        for i in range(output):
            position = (i + 0.5) * size / output - 0.5
            first = int(np.floor(position))
            part = np.rint((position - first) * 1024) / 1024
            for tap in range(-1, 3):
                if 0 <= first + tap < size:
                    found[i, first + tap] = keys(abs(part - tap))
        return found / found.sum(1, keepdims=True)

    return by_weights(rng, "bicubic", weights)


def keys(distance, a=-0.5):
    """Keys' cubic convolution kernel."""
    if distance <= 1:
        return ((a + 2) * distance - (a + 3)) * distance**2 + 1
    return ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a


ROWS = {
    "max pooling": draw_max_pool,
    "max pooling with indices": draw_max_pool_with_argmax,
    "max unpooling by `scatter_nd`": draw_unpool,
    "max unpooling by the gradient of pooling": draw_unpool_like,
    "average pooling": draw_avg_pool,
    "dilated pooling": draw_dilated,
    "fractional max pooling": draw_fractional_max_pool,
    "fractional average pooling": draw_fractional_avg_pool,
    "resizing, nearest": draw_nearest,
    "resizing, linear": draw_linear,
    "resizing, antialiased": draw_antialias,
    "transposed convolution": draw_conv_transpose,
    "max pooling in 3-D, equal elements": draw_equal_elements_3d,
    "pooling in 3-D, SAME with gaps": draw_gaps_3d,
    "resizing, cubic": draw_bicubic,
    "resizing, area": draw_area,
    "max pooling, NaN and infinities": draw_nan,
    "max pooling with indices, NaN and infinities": draw_nan_with_argmax,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("operator", ROWS)
def test_random_configurations(operator, record_property):
    check(PEER, operator, ROWS[operator], record_property)


# Examples of TensorFlow's documentation.


def test_the_example_of_max_pool():
    x = np.array([[0, 0, 1, 7], [0, 2, 0, 0], [5, 2, 0, 0], [0, 0, 9, 8]], np.float32)
    x = x.reshape(1, 4, 4, 1)
    expected = tf.nn.max_pool2d(x, 2, 2, "SAME").numpy()
    assert expected.ravel().tolist() == [2, 7, 5, 9]
    np.testing.assert_array_equal(jup.max_pool(x, 2, 2, "SAME"), expected)


def test_the_indices_of_max_pool_with_argmax():
    """The formula of the documentation, of images of two channels."""
    x = np.random.default_rng(0).standard_normal((2, 5, 4, 2), np.float32)
    _, argmax = tf.nn.max_pool_with_argmax(x, 2, 2, "SAME", include_batch_in_index=True)
    y, indices = jup.max_pool_with_indices(x, 2, 2, "SAME")
    for b, i, j, c in np.ndindex(*y.shape):
        where = np.argwhere(x[b, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c] == y[b, i, j, c])[0]
        row, column = 2 * i + where[0], 2 * j + where[1]
        assert argmax[b, i, j, c] == ((b * 5 + row) * 4 + column) * 2 + c
    numbers = interop.to_tensorflow(indices, include_batch_in_index=True)
    np.testing.assert_array_equal(numbers, argmax)


def test_the_sequences_of_fractional_pooling():
    """The documentation's: of 7 rows, windows begin at 0, 2, 3, 5, 7 for a ratio of 1.4."""
    x = np.random.default_rng(0).standard_normal((1, 7, 7, 1), np.float32)
    ratio = (1, 1.4, 1.4, 1)
    for overlapping in (False, True):
        y, rows, columns = tf.nn.fractional_max_pool(x, ratio, True, overlapping, seed=1)
        assert (rows[0], rows[-1]) == (0, 7)
        assert set(np.diff(rows)) <= {1, 2}
        sequences = [rows.numpy(), columns.numpy()]
        found = jup.fractional_max_pool(x, None, sequences=sequences, overlapping=overlapping)
        np.testing.assert_array_equal(found, y)


def test_the_example_of_overlapping_fractional_pooling():
    """Of `20, 5, 16, 3, 7`, cut at 0, 2 and 4: 20 and 16."""
    x = np.array([20, 5, 16, 3, 7], np.float32).reshape(1, 1, 5, 1)
    found = jup.fractional_max_pool(x, None, sequences=[[0, 1], [0, 2, 4]], overlapping=True)
    assert found.ravel().tolist() == [20, 16]
    mean = jup.fractional_avg_pool(x, sequences=[[0, 1], [0, 2, 4]], overlapping=True)
    np.testing.assert_allclose(mean.ravel(), [41 / 3, 26 / 3], rtol=1e-6)


def test_the_sizes_of_conv2d_transpose():
    """SAME and VALID, of the sizes that the documentation gives."""
    x = np.ones((1, 3, 3, 1), np.float32)
    kernel = np.arange(9, dtype=np.float32).reshape(3, 3, 1, 1)
    for padding, size in (("SAME", 6), ("VALID", 7)):
        expected = tf.nn.conv2d_transpose(x, kernel, (1, size, size, 1), 2, padding)
        found = jup.conv_transpose(x, kernel, None, 2, padding)
        np.testing.assert_array_equal(found, expected)
