"""Interpolation to any size: nearest, linear, cubic and area."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxunpool.adaptive import mean_taps
from jaxunpool.arguments import Sizes, as_floats, as_poolable
from jaxunpool.dispatch import Implementation, check_implementation
from jaxunpool.geometry import (
    DATA_FORMATS,
    MAX_INT32,
    DataFormat,
    Plane,
    as_sequence,
    check_choice,
    per_axis,
    spatial_ndim,
    spatial_sizes,
)
from jaxunpool.resample import Taps, resample

MODES = ("nearest", "nearest-exact", "linear", "cubic", "area")
COORDINATES = ("half_pixel", "align_corners", "asymmetric")


def interpolate(
    x: jax.typing.ArrayLike,
    output_shape: Sizes | None = None,
    scale: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool = False,
    antialias: bool = False,
    coordinates: str | None = None,
    *,
    data_format: DataFormat = "channels_last",
    implementation: Implementation = None,
) -> jax.Array:
    """Resize the spatial axes.

    Equal to `torch.nn.functional.interpolate` (`"linear"` is its bilinear and trilinear, `"cubic"`
    its bicubic, in any number of dimensions). `jax.image.resize` agrees for nearest-exact, for
    linear, and for cubic with antialias, except that here a NaN or an infinity stays where it is.
    With `coordinates="asymmetric"` also equal to the loops known as "fractional max unpooling",
    which are bilinear interpolation at `i / scale`.

    | coordinates | output element `i` lies at input coordinate |
    | --- | --- |
    | `"half_pixel"` | `(i + 0.5) / scale - 0.5`: elements are squares, edges aligned |
    | `"align_corners"` | `i * (size - 1) / (output_size - 1)`: the outermost centres aligned |
    | `"asymmetric"` | `i / scale` |

    Coordinates beyond the outermost elements take their values. Gradients are exact transposes that
    only read (no scatter), of any order.

    Args:
        x: floats (for nearest also integers, such as labels) of shape
            `(*batch, *spatial, channels)`, 1 to 3 spatial axes, any number of batch axes;
            `(*batch, channels, *spatial)` under `"channels_first"`.
        output_shape: spatial sizes of the result; an int means the same for all `x.ndim - 2` axes.
        scale: instead of `output_shape`, PyTorch's `scale_factor`: sizes are multiplied by it and
            rounded down, and coordinates use it, not the ratio of the sizes. (As in PyTorch they
            use the ratio where rounding leaves a size as it was, and for 2-D `"nearest"` also where
            it exactly doubles.) A number means the same for all `x.ndim - 2` spatial axes.
        mode: `"nearest"` (element `floor(i / scale)`), `"nearest-exact"` (the nearest centre),
            `"linear"`, `"cubic"` (Keys, a = -0.75; with antialias -0.5), or `"area"` (the mean of
            the covered elements: `adaptive_avg_pool`).
        align_corners: True is `coordinates="align_corners"`.
        antialias: for `"linear"` and `"cubic"`: widen the kernel where the result is smaller.
        coordinates: for `"linear"` and `"cubic"`; `"half_pixel"` by default.
        data_format: `"channels_last"` or `"channels_first"`.
        implementation: None or `"xla"`, plain JAX without custom derivatives (forward mode).

    Returns:
        An array of x's type.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it. At trace time.

    Example:
        >>> interpolate(jnp.array([[0.0, 4.0]])[..., None], scale=(1, 2), mode="linear")[..., 0]
        Array([[0., 1., 3., 4.]], dtype=float32)
    """
    check_choice("mode", mode, MODES)
    x = (as_poolable if mode.startswith("nearest") else as_floats)("x", x)
    check_choice("data_format", data_format, DATA_FORMATS)
    check_implementation(implementation)
    coordinates = _check_coordinates(mode, align_corners, antialias, coordinates)
    given = [output_shape is not None, scale is not None]
    if given.count(True) != 1:
        raise ValueError(
            f"output_shape={output_shape!r}, scale={scale!r}: expected one of them, and one only"
        )
    name, value = ("scale", scale) if output_shape is None else ("output_shape", output_shape)
    value = as_sequence(value)
    plane, scales = _plane_and_scales(x, name, value, data_format)
    if output_shape is not None:
        outputs = per_axis("output_shape", value, plane.ndim, minimum=1)
    else:
        outputs = tuple(math.floor(n * (s or 1)) for n, s in zip(plane.input_shape, scales))
        if min(outputs) < 1 or max(outputs) > MAX_INT32:
            raise ValueError(f"scale={scale!r}: gives no usable spatial sizes, {outputs}")
    if mode == "nearest" and plane.ndim == 2:  # PyTorch goes by the sizes here, if they are simple
        scales = tuple(
            None if output in (size, 2 * size) else factor
            for size, output, factor in zip(plane.input_shape, outputs, scales)
        )
    taps = [
        _taps(size, output, factor, mode, antialias, coordinates, x.dtype == np.float64)
        for size, output, factor in zip(plane.input_shape, outputs, scales)
    ]
    return resample(x, taps, plane.axes, implementation)


def _check_coordinates(mode: Any, align_corners: Any, antialias: Any, coordinates: Any) -> str:
    for name, flag in (("align_corners", align_corners), ("antialias", antialias)):
        if not isinstance(flag, bool | np.bool_):
            raise TypeError(f"{name}: expected a bool, got {flag!r}")
    if mode not in ("linear", "cubic"):
        for name, value in (
            ("align_corners", align_corners),
            ("antialias", antialias),
            ("coordinates", coordinates),
        ):
            if value is not None and value is not False:
                raise ValueError(f"{name}={value!r}: for 'linear' and 'cubic' only, mode={mode!r}")
    if coordinates is not None:
        check_choice("coordinates", coordinates, COORDINATES)
    if align_corners:
        if coordinates not in (None, "align_corners"):
            raise ValueError(f"coordinates={coordinates!r}: contradicts align_corners=True")
        return "align_corners"
    if antialias and coordinates == "asymmetric":
        raise ValueError("antialias=True: not for coordinates='asymmetric'")
    return coordinates or "half_pixel"


def _plane_and_scales(
    x: jax.Array, name: str, value: Any, data_format: DataFormat
) -> tuple[Plane, tuple[float | None, ...]]:
    """The spatial grid that `output_shape` or `scale` asks for, and the scales if given."""
    if name == "output_shape":
        n = spatial_ndim("x", x.shape, name, value)
        scales: tuple[float | None, ...] = (None,) * n
    else:
        factors = tuple(value) if isinstance(value, Sequence) else (value,)
        for factor in factors:
            if isinstance(factor, bool) or not isinstance(factor, int | float | np.number):
                raise TypeError(f"scale: expected a number or one per spatial axis, got {value!r}")
            if not 0 < factor < math.inf:
                raise ValueError(f"scale={value!r}: expected finite numbers above 0")
        like = (1,) * len(factors) if isinstance(value, Sequence) else 1
        n = spatial_ndim("x", x.shape, name, like)
        scales = tuple(map(float, factors if isinstance(value, Sequence) else factors * n))
    sizes = spatial_sizes("x", x.shape, n, data_format)
    return Plane(input_shape=sizes, data_format=data_format), scales


def _taps(
    size: int,
    output: int,
    scale: float | None,
    mode: str,
    antialias: bool,
    coordinates: str,
    is_double: bool,
) -> Taps:
    """Elements and weights along one axis."""
    if mode == "area":
        return mean_taps(size, output)
    # Positions have the precision PyTorch gives them: where two elements are equally near, or a
    # weight is tiny, rounding decides.
    real: Any = np.float64 if is_double else np.float32
    numbers = np.arange(output, dtype=real)
    step = real(1 / scale) if scale else real(size) / real(output)
    if mode.startswith("nearest"):
        shift = real(0.5) if mode == "nearest-exact" else real(0)
        nearest = np.minimum(np.floor((numbers + shift) * step).astype(int), size - 1)
        return Taps.from_lists([{int(element): 1.0} for element in nearest], size)
    if coordinates == "align_corners":
        step = real(size - 1) / real(output - 1) if output > 1 else real(0)
    if output == size and coordinates == "half_pixel" and (antialias or mode == "linear"):
        return Taps.from_lists([{element: 1.0} for element in range(size)], size)
    if antialias:
        return _widened(size, (numbers + real(0.5)) * step, max(float(step), 1.0), mode)
    centres = (
        (numbers + real(0.5)) * step - real(0.5) if coordinates == "half_pixel" else numbers * step
    )
    reach, kernel = (1, _triangle) if mode == "linear" else (2, _cubic(-0.75))
    if mode == "linear":  # between the outermost elements; a cubic goes on to repeat them
        centres = np.clip(centres, 0, size - 1)
    rows = []
    for centre in centres:
        first = math.floor(centre)
        row: dict[int, float] = {}
        for element in range(first - reach + 1, first + reach + 1):
            weight = kernel(float(real(centre) - real(element)))
            inside = min(max(element, 0), size - 1)
            row[inside] = row.get(inside, 0.0) + weight
        rows.append({element: weight for element, weight in row.items() if weight})
    return Taps.from_lists(rows, size)


def _widened(size: int, centres: Any, width: float, mode: str) -> Taps:
    """Taps of a kernel stretched by `width`, whose weights add up to one inside the input."""
    reach, kernel = (1, _triangle) if mode == "linear" else (2, _cubic(-0.5))
    rows = []
    for centre in centres.tolist():
        first = max(int(centre - reach * width + 0.5), 0)
        stop = min(int(centre + reach * width + 0.5), size)
        weights = [kernel((element + 0.5 - centre) / width) for element in range(first, stop)]
        total = sum(weights) or 1.0
        row = {first + t: weight / total for t, weight in enumerate(weights) if weight}
        rows.append(row)
    return Taps.from_lists(rows, size)


def _triangle(distance: float) -> float:
    return max(1 - abs(distance), 0.0)


def _cubic(a: float) -> Callable[[float], float]:
    """Keys' cubic convolution kernel."""

    def kernel(distance: float) -> float:
        d = abs(distance)
        if d < 1:
            return ((a + 2) * d - (a + 3)) * d * d + 1
        return (((d - 5) * d + 8) * d - 4) * a if d < 2 else 0.0

    return kernel
