"""Functions that select: maxima and minima over windows of every kind, and their indices."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import oracle

import jaxunpool as jup

from .calls import Call, Name, Spec, implementation, keywords, text
from .draws import WINDOW, Settings
from .operators import Moves
from .windows import InvalidCallError, Table, boxes, windows, winners


def _pooling(spec: Spec, table: Table, given: Settings, samples: np.ndarray | None = None) -> Call:
    """A function that selects, and returns indices where its name says so."""
    function, has_indices = getattr(jup, spec.function), "_with_" in spec.function
    others = {} if samples is None else {"random_samples": samples}

    def run(backend: Any) -> Callable[..., Any]:
        options = {**given, **implementation(backend)}

        def pool(x: Any, *arrays: Any) -> Any:
            found = function(x, **options, **dict(zip(others, arrays)))
            if not has_indices:
                return found, []
            y, indices, *rest = found
            indices = indices.unpack() if isinstance(indices, jup.PackedIndices) else indices
            return y, [indices.flat, *rest]

        return pool

    def define(x: np.ndarray) -> Any:
        at = winners(x, table, lowest=spec.function.startswith("min"))
        integers = [at] if has_indices else []
        if spec.function.endswith("mask"):
            marked = np.zeros(x.shape, bool)
            np.put_along_axis(marked, at, True, 2)
            integers.append(marked)
        return Moves(at, x.shape[-1]), None, integers

    shapes = (spec.shape(spec.sizes), spec.shape(table.outputs))
    code = text(spec.function, "x", {**given, **{name: Name(name) for name in others}})
    return Call(run, define, shapes, code, others)


def window_pooling(spec: Spec) -> Call:
    table = windows(spec.sizes, spec.settings)
    if spec.function == "max_pool_with_packed_indices" and table.volume > 16:
        raise InvalidCallError
    return _pooling(spec, table, keywords(spec))


def global_pooling(spec: Spec) -> Call:
    table = windows(spec.sizes, {"window_shape": spec.sizes})
    return _pooling(spec, table, {**keywords(spec), "spatial_ndim": spec.ndim})


def adaptive(spec: Spec) -> Table:
    """Windows that divide the input; None keeps an axis."""
    outputs = [n if m is None else m for m, n in zip(spec.settings["output_shape"], spec.sizes)]
    return boxes(spec.sizes, [oracle.adaptive_bounds(n, m) for n, m in zip(spec.sizes, outputs)])


def adaptive_pooling(spec: Spec) -> Call:
    return _pooling(spec, adaptive(spec), keywords(spec))


def sequences(spec: Spec) -> Table:
    """Windows from one number of a sequence to the next."""
    overlapping = spec.settings.get("overlapping", False)
    bounds = [
        [(a, min(b + overlapping, size)) for a, b in itertools.pairwise(sequence)]
        for sequence, size in zip(spec.settings["sequences"], spec.sizes)
    ]
    return boxes(spec.sizes, bounds)


def _starts(size: int, k: int, output: int, sample: Any) -> list[int]:
    """PyTorch's intervals, in the sample's own precision."""
    if output == 1:
        return [size - k]
    alpha = type(sample)(size - k) / type(sample)(output - 1)
    first = int(sample * alpha)
    steps = [int((type(sample)(i) + sample) * alpha) - first for i in range(output - 1)]
    return [*steps, size - k]


def fractional_pooling(spec: Spec) -> Call:
    if "sequences" in spec.settings:
        return _pooling(spec, sequences(spec), {"window_shape": None, **keywords(spec)})
    window, outputs = spec.settings["window_shape"], spec.settings["output_shape"]
    if any(o + k - 1 > size for o, k, size in zip(outputs, window, spec.sizes)):
        raise InvalidCallError
    samples = spec.rng(1).random((*spec.batch, spec.channels, spec.ndim))
    samples = samples.astype(np.float64 if spec.dtype == "float64" else np.float32)
    planes = [np.zeros((0, math.prod(outputs), math.prod(window)), int)]
    for sample in samples.reshape(-1, spec.ndim):
        order = sample[::-1] if spec.ndim == 2 else sample
        starts = map(_starts, spec.sizes, window, outputs, order)
        bounds = [[(s, s + k) for s in some] for some, k in zip(starts, window)]
        planes.append(boxes(spec.sizes, bounds).positions)
    table = Table(tuple(outputs), np.concatenate(planes), np.zeros(0))
    return _pooling(spec, table, keywords(spec), samples)


# Numbers of other frameworks


def _numbers(spec: Spec, at: np.ndarray, name: str, option: Any) -> np.ndarray:
    """What another framework calls positions of `(inputs, planes, windows)`."""
    inputs, channel = np.arange(len(at))[:, None, None], np.arange(at.shape[1])[None, :, None]
    if spec.how.startswith(("vmap", "map")):  # each input is an array of its own
        inputs = 0 * inputs
    plane = inputs * at.shape[1] + channel
    size = math.prod(spec.sizes)
    if name.endswith("onnx"):
        if option:
            at = np.ravel_multi_index(np.unravel_index(at, spec.sizes), spec.sizes, order="F")
        return at + plane * size
    if name.endswith("tensorflow"):
        image, channel = plane // spec.channels, plane % spec.channels
        return (at + image * size * bool(option)) * spec.channels + channel
    return at


def conversion(spec: Spec) -> Call:
    """Indices to another framework's numbers, and back."""
    table, name = windows(spec.sizes, spec.settings), spec.function.partition(".")[2]
    layout = "channels_last" if name.endswith("tensorflow") else "channels_first"
    pooling = {k: v for k, v in keywords(spec).items() if k in (*WINDOW, "data_format")}
    options = {k: v for k, v in spec.keywords.items() if k not in WINDOW}
    geometry = jup.WindowGeometry.for_input(spec.shape(spec.sizes), **pooling)

    def moved(array: Any, there: str, here: str) -> Any:
        ends = {"channels_last": -1, "channels_first": -spec.ndim - 1}
        return jnp.moveaxis(array, ends[there], ends[here])

    def run(backend: Any) -> Callable[..., Any]:
        def convert(x: Any) -> Any:
            y, indices = jup.max_pool_with_indices(x, **pooling, **implementation(backend))
            if name == "from_torch":
                theirs = moved(indices.flat, spec.data_format, layout)
            else:
                into = getattr(jup.interop, name.replace("from", "to"))
                theirs = into(indices, **options)
            out_of = getattr(jup.interop, name.replace("to_", "from_"))
            again = out_of(theirs, geometry, **options)
            return y, [moved(theirs, layout, spec.data_format), again.flat]

        return convert

    def define(x: np.ndarray) -> Any:
        at = winners(x, table)
        numbers = _numbers(spec, at, name, next(iter(options.values()), None))
        return Moves(at, x.shape[-1]), None, [numbers, at]

    shapes = (spec.shape(spec.sizes), spec.shape(table.outputs))
    inner = text("max_pool_with_indices", "x", pooling)
    return Call(run, define, shapes, text(spec.function, f"{inner}[1]", options, has_backend=False))


def validation(spec: Spec) -> Call:
    """Whether indices are refused; the result is the indices."""
    options = {"output_shape": spec.settings["output_shape"]}
    size = math.prod(options["output_shape"])

    def refuses(indices: Any) -> bool:
        try:
            jup.validate_indices(indices, **options)
        except ValueError as error:
            if "expected a flat position in" not in str(error):
                raise
            return True
        return False

    def run(backend: Any) -> Callable[..., Any]:
        return lambda x: (x, [jnp.stack([jnp.full(i.shape, refuses(i)) for i in x])])

    def define(x: np.ndarray) -> Any:
        wrong = np.array([any(not 0 <= int(i) < size for i in plane.flat) for plane in x])
        everywhere = np.arange(x.shape[-1])[None, None]
        return (
            Moves(everywhere, x.shape[-1]),
            None,
            [np.broadcast_to(wrong[:, None, None], x.shape)],
        )

    shape = spec.shape(spec.sizes)
    return Call(run, define, (shape, shape), text("validate_indices", "x", options))
