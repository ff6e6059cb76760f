"""Functions that are linear, with weights that do not depend on the array."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import oracle

import jaxunpool as jup

from .calls import Call, Spec, implementation, keywords, text
from .draws import Settings
from .operators import Expected, Matrix, Moves, Operator, rounded
from .selecting import adaptive, sequences
from .windows import InvalidCallError, Table, dense, resolved, windows


def _linear(
    spec: Spec,
    operator: Operator,
    sizes: tuple[Sequence[int], Sequence[int]],
    given: Settings,
    averaged: bool = True,
) -> Call:
    """A call of an operator, from some sizes to others. `averaged`: of integers, floats."""
    function, dtype, result = getattr(jup, spec.function), np.dtype(spec.dtype), None
    if averaged and not jnp.issubdtype(dtype, jnp.inexact):
        result = "float64" if dtype.itemsize == 8 else "float32"

    def run(backend: Any) -> Callable[..., Any]:
        return lambda x: (function(x, **given, **implementation(backend)), [])

    def define(x: np.ndarray) -> Any:
        return operator, None if result is None else operator.apply(x.astype(result)), []

    shapes = (spec.shape(sizes[0]), spec.shape(sizes[1]))
    return Call(run, define, shapes, text(spec.function, "x", given), result_dtype=result)


# Averages


def means(table: Table, size: int, settings: Settings) -> np.ndarray:
    """The matrix of averages."""
    if "divisor_override" in settings:
        return dense(table, size, 1 / settings["divisor_override"])
    with_padding = settings.get("count_include_pad", True)
    counts = table.counts if with_padding else (table.positions[0] >= 0).sum(-1)
    return dense(table, size, 1 / counts[:, None])


def avg_pool(spec: Spec) -> Call:
    table = windows(spec.sizes, spec.settings)
    matrix = Matrix(means(table, math.prod(spec.sizes), spec.settings))
    return _linear(spec, matrix, (spec.sizes, table.outputs), keywords(spec))


def global_avg_pool(spec: Spec) -> Call:
    size = math.prod(spec.sizes)
    matrix, given = np.full((1, size), 1 / size), {**keywords(spec), "spatial_ndim": spec.ndim}
    return _linear(spec, Matrix(matrix), (spec.sizes, (1,) * spec.ndim), given)


def uneven_averages(spec: Spec) -> Call:
    """Of windows that divide the input, or go from one number of a sequence to the next."""
    table = (sequences if "sequences" in spec.settings else adaptive)(spec)
    matrix = means(table, math.prod(spec.sizes), {"count_include_pad": False})
    operator = Matrix(matrix, roundings=4 + 4 * spec.ndim)  # one axis after the other
    return _linear(spec, operator, (spec.sizes, table.outputs), keywords(spec))


# Unpooling


def unpooled(spec: Spec) -> tuple[Table, tuple[int, ...], Settings]:
    """Windows over what is unpooled, its sizes, and what the function is given.

    With `_exact` there is no `output_shape`: the windows cover the result exactly.
    """
    sizes, given = spec.sizes, keywords(spec)
    table = windows(sizes, spec.settings)
    if not spec.settings.get("_exact"):
        return table, sizes, {**given, "output_shape": sizes}
    outputs = table.outputs
    window, strides, padding, dilation, _ = resolved(sizes, spec.settings)
    if padding in ("SAME", "SAME_LOWER"):
        sizes = tuple(o * s for o, s in zip(outputs, strides))
    else:
        pads = [(0, 0)] * spec.ndim if padding == "VALID" else padding
        parts = zip(outputs, strides, window, dilation, pads)
        sizes = tuple((o - 1) * s + (k - 1) * d + 1 - sum(pad) for o, s, k, d, pad in parts)
    if min(sizes) < 1 or windows(sizes, spec.settings).outputs != outputs:
        raise InvalidCallError
    return windows(sizes, spec.settings), sizes, given


def cover_means(table: Table, size: int) -> np.ndarray:
    """Each element is the mean of the windows that cover it."""
    covers = dense(table, size).T
    return covers / np.maximum(covers.sum(1, keepdims=True), 1)


def avg_unpool(spec: Spec) -> Call:
    table, sizes, given = unpooled(spec)
    is_adjoint = spec.settings.get("mode") == "adjoint"
    averages = means(table, math.prod(sizes), spec.settings).T
    matrix = averages if is_adjoint else cover_means(table, math.prod(sizes))
    return _linear(spec, Matrix(matrix), (table.outputs, sizes), given)


def nearest_unpool(spec: Spec) -> Call:
    table, sizes, given = unpooled(spec)
    size = math.prod(sizes)
    if spec.settings.get("duplicates") == "mean":
        return _linear(spec, Matrix(cover_means(table, size)), (table.outputs, sizes), given)
    last = np.full(size + 1, -1)
    for window, positions in enumerate(table.positions[0]):
        last[positions] = window  # padding is the element after the end
    moves = Moves(last[None, None, :-1], math.prod(table.outputs), signed=False)
    return _linear(spec, moves, (table.outputs, sizes), given, averaged=False)


def bed_of_nails_unpool(spec: Spec) -> Call:
    table, sizes, given = unpooled(spec)
    window, position = resolved(sizes, spec.settings)[0], spec.settings.get("position", 0)
    position = (position,) * spec.ndim if isinstance(position, int) else position
    if any(p >= k for p, k in zip(position, window)):
        raise InvalidCallError
    at = np.full(math.prod(sizes) + 1, -1)
    at[table.positions[0][:, np.ravel_multi_index(position, window)]] = np.arange(table.count)
    moves = Moves(at[None, None, :-1], table.count)
    return _linear(spec, moves, (table.outputs, sizes), given, averaged=False)


def _gradient_by_weights(
    terms: np.ndarray, x: np.ndarray, dy: np.ndarray, dtype: np.dtype
) -> Expected:
    """Sums over everything, for each input: of `terms`, `(weights, results, elements)`.

    A sum that NaN or an infinity is in is not compared.
    """
    with np.errstate(all="ignore"):
        wide = [a.astype(np.float64) for a in (x, dy)]
        pairs = [np.where(np.isfinite(a), a, 0) for a in wide]
        product = lambda t, x, dy: np.einsum("npo,koe,npe->nk", dy, t, x, optimize=True)
        value, magnitude = product(terms, *pairs), product(terms, *map(abs, pairs))
        # Subnormal numbers may be zero, times numbers that are large.
        least = float(jnp.finfo(dtype).smallest_normal)
        flushed = product(terms, *(abs(a) + least for a in pairs))
    # Padding cuts off more terms of some weights than of others.
    count = np.broadcast_to(terms.sum((1, 2)) * x.shape[1] + 4, value.shape)
    found = rounded(value, count, magnitude, dtype, np.zeros(value.shape, bool))
    with np.errstate(invalid="ignore"):
        slack = np.nan_to_num(found.slack + flushed - magnitude, nan=np.inf, posinf=np.inf)
    finite = np.isfinite(wide[0]).all((1, 2)) & np.isfinite(wide[1]).all((1, 2))
    return Expected(value, np.where(finite[:, None], slack, np.inf))


def fixed_unpool(spec: Spec) -> Call:
    """The pattern has few bits, and zeros among its elements."""
    table, sizes, given = unpooled(spec)
    window, dtype, size = resolved(sizes, spec.settings)[0], np.dtype(spec.dtype), math.prod(sizes)
    has_sign = dtype.kind != "b" and not jnp.issubdtype(dtype, jnp.unsignedinteger)
    pattern = spec.rng(2).integers(-2 if has_sign else 0, 3, window).astype(dtype)
    weights = dense(table, size, pattern.real.astype(float).ravel()).T
    operator = Matrix(weights, reads=dense(table, size).T > 0)
    given = {name: value for name, value in given.items() if name != "window_shape"}

    def run(backend: Any) -> Callable[..., Any]:
        options = {**given, **implementation(backend)}
        return lambda y, pattern: (jup.fixed_unpool(y, pattern, **options), [])

    def gradient(y: np.ndarray, du: np.ndarray) -> Expected:
        taps = np.eye(table.volume)[:, None]
        terms = np.stack([dense(table, size, tap).T for tap in taps])
        return _gradient_by_weights(terms, y, du, dtype)

    shapes = (spec.shape(table.outputs), spec.shape(sizes))
    code = text("fixed_unpool", "x, pattern", given)
    define = lambda x: (operator, None, [])
    is_real = jnp.issubdtype(dtype, jnp.floating)
    return Call(
        run, define, shapes, code, {"pattern": pattern}, weights=gradient if is_real else None
    )


# Interpolation


def _nearest(size: int, output: int, scale: float | None, mode: str, dtype: str) -> np.ndarray:
    """PyTorch's formula, in float32, or in float64 of that."""
    real: Any = np.float64 if dtype in ("float64", "complex128") else np.float32
    step = real(1 / scale) if scale else real(size) / real(output)
    shift = real(0.5 if mode == "nearest-exact" else 0)
    return np.eye(size)[[min(int((real(i) + shift) * step), size - 1) for i in range(output)]]


def _along_axis(size: int, output: int, scale: float | None, settings: Settings) -> np.ndarray:
    """The matrix of an axis, for modes that are not nearest."""
    mode = settings["mode"]
    options = {k: settings[k] for k in ("coordinates", "antialias") if k in settings}
    if settings.get("align_corners"):
        options["coordinates"] = "align_corners"
    # As in PyTorch, a size that stays as it is counts, not the scale.
    is_kept = output == size and options.get("coordinates", "half_pixel") == "half_pixel"
    is_kept &= mode == "linear" or settings.get("antialias", False)
    if scale and mode != "area" and not is_kept:
        options["step"] = 1 / oracle.Fraction(scale)
    return oracle.interpolation(size, output, mode, **options)


def interpolate(spec: Spec) -> Call:
    settings, sizes, mode = spec.settings, spec.sizes, spec.settings["mode"]
    scales = settings.get("scale", (None,) * spec.ndim)
    outputs = settings.get("output_shape") or tuple(int(n * s) for n, s in zip(sizes, scales))
    if min(outputs) < 1:
        raise InvalidCallError
    if not mode.startswith("nearest"):
        parts = zip(sizes, outputs, scales)
        matrix = functools.reduce(np.kron, [_along_axis(*part, settings) for part in parts])
        operator = Matrix(matrix, roundings=16 * spec.ndim)
        return _linear(spec, operator, (sizes, outputs), keywords(spec))
    if mode == "nearest" and spec.ndim == 2:  # so does PyTorch
        simple = [o in (n, 2 * n) for n, o in zip(sizes, outputs)]
        scales = tuple(None if is_simple else s for is_simple, s in zip(simple, scales))
    parts = zip(sizes, outputs, scales)
    matrix = functools.reduce(np.kron, [_nearest(*part, mode, spec.dtype) for part in parts])
    moves = Moves(matrix.argmax(1)[None, None], math.prod(sizes))
    return _linear(spec, moves, (sizes, outputs), keywords(spec), averaged=False)


# Convolutions


class Mixed:
    """An operator on all channels of an image together."""

    def __init__(self, matrix: np.ndarray, channels: tuple[int, int]) -> None:
        self.operator, self.channels = Matrix(matrix), channels

    def apply(self, x: np.ndarray) -> Expected:
        return self._through(self.operator.apply, x, *self.channels)

    def transpose(self, y: np.ndarray) -> Expected:
        return self._through(self.operator.transpose, y, *self.channels[::-1])

    def _through(self, run: Any, x: np.ndarray, before: int, after: int) -> Expected:
        images = x.shape[1] // before
        found = run(x.reshape(len(x), images, before * x.shape[2]))
        planes = (len(x), images * after, found.value.shape[2] // after)
        return Expected(found.value.reshape(planes), found.slack.reshape(planes))


def _taps(
    sizes: Sequence[int], outputs: Sequence[int], window: Sequence[int], position: Callable
) -> np.ndarray:
    """`(taps, outputs, sizes)`: 1 where `position(axis, output, tap)` is the element."""
    axes = []
    for axis, (size, output, k) in enumerate(zip(sizes, outputs, window)):
        taps = np.zeros((k, output, size))
        for tap, o in itertools.product(range(k), range(output)):
            if 0 <= (element := position(axis, o, tap)) < size:
                taps[tap, o, element] = 1
        axes.append(taps)
    return functools.reduce(np.kron, axes)


def _convolution(
    spec: Spec, kernel: np.ndarray, blocks: np.ndarray, taps: np.ndarray, shapes: Any, run: Any
) -> Call:
    """A convolution of any kind.

    Args:
        spec: the call.
        kernel: as the function takes it, in the layout of the call.
        blocks: `(outputs, inputs, taps)`: 1 + the number of an element of the kernel, or 0.
        taps: as `_taps` gives them.
        shapes: of the argument and of the result.
        run: `(x, kernel) -> y`.
    """
    dtype = np.dtype(spec.dtype)
    weights = np.concatenate([[0], kernel.astype(np.float64).ravel()])[blocks]
    outputs, inputs, _ = blocks.shape
    matrix = np.einsum("oit,tab->oaib", weights, taps, optimize=True)
    matrix = matrix.reshape(outputs * taps.shape[1], inputs * taps.shape[2])
    define = lambda x: (Mixed(matrix, (inputs, outputs)), None, [])

    def gradient(x: np.ndarray, dy: np.ndarray) -> Expected:
        images = x.shape[1] // inputs
        x, dy = (
            a.reshape(len(a), images, channels * a.shape[2])
            for a, channels in ((x, inputs), (dy, outputs))
        )
        ones = (blocks[None] == 1 + np.arange(kernel.size)[:, None, None, None]) * 1.0
        terms = np.einsum("koit,tab->koaib", ones, taps, optimize=True)
        return _gradient_by_weights(terms.reshape(kernel.size, *matrix.shape), x, dy, dtype)

    code = text(spec.function, "x, kernel", keywords(spec))
    return Call(
        lambda backend: lambda x, kernel: (run(x, kernel), []),
        define, shapes, code, {"kernel": kernel}, weights=gradient,
    )  # fmt: skip


def _kernel(spec: Spec, window: Sequence[int], channels: tuple[int, int]) -> Any:
    """A kernel, and the numbers of its elements as `(*channels, taps)`."""
    shape = (*window, *channels) if spec.data_format == "channels_last" else (*channels, *window)
    kernel = spec.rng(3).standard_normal(shape).astype(spec.dtype)
    numbers = 1 + np.arange(kernel.size).reshape(shape)
    if spec.data_format == "channels_last":
        numbers = np.moveaxis(numbers, (-2, -1), (0, 1))
    return kernel, numbers.reshape(*channels, -1)


def _grouped(numbers: np.ndarray, groups: int) -> np.ndarray:
    """`(own, other, taps)` with the own channels in groups, as blocks of `(own, all others)`."""
    own, other, taps = numbers.shape
    blocks = np.zeros((own, groups * other, taps), int)
    for channel in range(own):
        group = channel // (own // groups)
        blocks[channel, group * other : (group + 1) * other] = numbers[channel]
    return blocks


def conv_transpose(spec: Spec) -> Call:
    settings = spec.settings
    window, strides, dilation = (settings[k] for k in ("_window", "strides", "dilation"))
    extra, groups = settings["output_padding"], settings["groups"]
    pads = settings["padding"]
    outputs = tuple(
        (n - 1) * s - sum(pad) + d * (k - 1) + e + 1
        for n, s, pad, d, k, e in zip(spec.sizes, strides, pads, dilation, window, extra)
    )
    if min(outputs) < 1 or any(e >= max(s, d) for e, s, d in zip(extra, strides, dilation)):
        raise InvalidCallError
    if spec.channels % groups:
        raise InvalidCallError
    kernel, numbers = _kernel(spec, window, (spec.channels, settings["_outputs"]))
    # The result's element p * s + t * d - low reads element p.
    place = lambda axis, p, t: p * strides[axis] + t * dilation[axis] - pads[axis][0]
    taps = np.swapaxes(_taps(outputs, spec.sizes, window, place), 1, 2)
    blocks = np.swapaxes(_grouped(numbers, groups), 0, 1)
    shapes = (spec.shape(spec.sizes), spec.shape(outputs, len(blocks)))
    run = lambda x, kernel: jup.conv_transpose(x, kernel, **keywords(spec))
    return _convolution(spec, kernel, blocks, taps, shapes, run)


def conv_general_dilated(spec: Spec) -> Call:
    settings = spec.settings
    window, strides, dilation = (settings[k] for k in ("_window", "window_strides", "rhs_dilation"))
    groups, pads = settings["feature_group_count"], settings["padding"]
    outputs = tuple(
        (n + sum(pad) - d * (k - 1) - 1) // s + 1
        for n, pad, d, k, s in zip(spec.sizes, pads, dilation, window, strides)
    )
    if min(outputs) < 1 or spec.channels % groups or spec.data_format != "channels_last":
        raise InvalidCallError
    kernel, numbers = _kernel(
        spec, window, (spec.channels // groups, groups * settings["_outputs"])
    )
    place = lambda axis, o, t: o * strides[axis] + t * dilation[axis] - pads[axis][0]
    taps = _taps(spec.sizes, outputs, window, place)
    blocks = _grouped(np.swapaxes(numbers, 0, 1), groups)
    shapes = (spec.shape(spec.sizes), spec.shape(outputs, len(blocks)))
    spatial = "XYZ"[: spec.ndim]
    layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")

    def run(x: Any, kernel: Any) -> Any:
        batch = x.shape[: -spec.ndim - 1]
        images = x.reshape(math.prod(batch), *x.shape[len(batch) :])
        y = jup.conv_general_dilated(images, kernel, dimension_numbers=layout, **spec.keywords)
        return y.reshape(*batch, *y.shape[1:])

    return _convolution(spec, kernel, blocks, taps, shapes, run)
