"""Interpolation to any size: nearest, linear, cubic and area."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal, get_args

import jax
import numpy as np

from jaxunpool.core.arguments import Sizes, as_averaged, as_values, check_scale
from jaxunpool.core.backends import Implementation, check_implementation
from jaxunpool.core.geometry import (
    DATA_FORMATS,
    MAX_INT32,
    DataFormat,
    Plane,
    as_sequence,
    check_choice,
    check_flag,
    check_known,
    per_axis,
    spatial_ndim,
    spatial_sizes,
)
from jaxunpool.core.messages import public, shown
from jaxunpool.core.resample import AxisMap, Kernel, Mean, Nearest, resample

Mode = Literal["nearest", "nearest-exact", "linear", "cubic", "area"]
Coordinates = Literal["half_pixel", "align_corners", "asymmetric"]


@public
def interpolate(
    x: jax.typing.ArrayLike,
    output_shape: Sizes | None = None,
    scale: float | Sequence[float] | None = None,
    mode: Mode = "nearest",
    align_corners: bool = False,
    antialias: bool = False,
    coordinates: Coordinates | None = None,
    *,
    data_format: DataFormat = "channels_last",
    implementation: Implementation = None,
) -> jax.Array:
    """Resize the spatial axes.

    Equal to `torch.nn.functional.interpolate`: `"linear"` is its bilinear and trilinear, `"cubic"`
    its bicubic, in any number of dimensions. `jax.image.resize` gives the same for nearest-exact,
    for linear, and for cubic with antialias, but it spreads NaN and infinities to other elements.
    With `coordinates="asymmetric"`, it also equals the loops known as "fractional max unpooling",
    which are bilinear interpolation at `i / scale`.

    | coordinates | output element `i` lies at input coordinate |
    | --- | --- |
    | `"half_pixel"` | `(i + 0.5) / scale - 0.5`: elements are squares, edges aligned |
    | `"align_corners"` | `i * (size - 1) / (output_size - 1)`: the outermost centres aligned |
    | `"asymmetric"` | `i / scale` |

    A coordinate beyond the edge takes the value of the outermost element. Gradients are exact
    transposes, of any order. They use no scatter.

    The nearest modes choose the same elements as PyTorch, with its rounding (nearest-exact: for
    outputs of up to 2**23 elements). The other modes are closer to the exact result than PyTorch.
    PyTorch computes positions in float32, with errors of up to `size * 2**-22` elements: 0.04
    elements at a size of 160000. Here positions are exact fractions; only weights, products and
    sums are rounded. (A `scale` becomes a fraction of terms below 2**31. If that is not exactly the
    given number, PyTorch is closer for float64.)

    Args:
        x: numbers or booleans of shape `(*batch, *spatial, channels)`, with 1 to 3 spatial axes and
            any number of batch axes; `(*batch, channels, *spatial)` for `"channels_first"`.
        output_shape: spatial sizes of the result. An int is the size along each of `x.ndim - 2`
            spatial axes.
        scale: instead of `output_shape`, PyTorch's `scale_factor`. Sizes are multiplied by it and
            rounded down; coordinates use it, not the ratio of the sizes. (As in PyTorch, they use
            the ratio if rounding leaves a size unchanged, and for 2-D `"nearest"` also if it
            exactly doubles.) One number applies to all `x.ndim - 2` spatial axes.
        mode: `"nearest"` (element `floor(i / scale)`), `"nearest-exact"` (the nearest centre),
            `"linear"`, `"cubic"` (Keys, a = -0.75; with antialias -0.5), or `"area"` (the mean of
            the covered elements: `adaptive_avg_pool`).
        align_corners: True is `coordinates="align_corners"`.
        antialias: for `"linear"` and `"cubic"`: widen the kernel if the result is smaller.
        coordinates: for `"linear"` and `"cubic"`; `"half_pixel"` by default.
        data_format: `"channels_last"` or `"channels_first"`.
        implementation: `"xla"` is plain JAX. None is too, but on CPU it takes a kernel in C++ where
            that is faster. Both have forward mode.

    Returns:
        An array of x's type; but for the nearest modes, floats for integers and booleans.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it. Raised at trace time.

    Example:
        >>> interpolate(jnp.array([[0.0, 4.0]])[..., None], scale=(1, 2), mode="linear")[..., 0]
        Array([[0., 1., 3., 4.]], dtype=float32)
    """
    check_choice("mode", mode, get_args(Mode))
    x = (as_values if mode.startswith("nearest") else as_averaged)("x", x)
    check_choice("data_format", data_format, DATA_FORMATS)
    check_implementation(implementation)
    rule = _check_coordinates(mode, align_corners, antialias, coordinates)
    given = [output_shape is not None, scale is not None]
    if given.count(True) != 1:
        raise ValueError(
            f"output_shape={shown(output_shape)}, scale={shown(scale)}: expected one of them, and"
            " one only"
        )
    name, value = ("scale", scale) if output_shape is None else ("output_shape", output_shape)
    value = as_sequence(value)
    plane, scales = _plane_and_scales(x, name, value, data_format)
    if output_shape is not None:
        outputs = per_axis("output_shape", value, plane.ndim, minimum=1)
        check_known("output_shape", outputs)
    else:
        outputs = tuple(math.floor(n * (s or 1)) for n, s in zip(plane.input_shape, scales))
        if min(outputs) < 1 or max(outputs) > MAX_INT32:
            raise ValueError(f"scale={shown(scale)}: gives no usable spatial sizes, {outputs}")
    if mode == "nearest" and plane.ndim == 2:  # PyTorch goes by the sizes here, if they are simple
        scales = tuple(
            None if output in (size, 2 * size) else factor
            for size, output, factor in zip(plane.input_shape, outputs, scales)
        )
    maps = [
        _map(size, output, factor, mode, antialias, rule, x.dtype in (np.float64, np.complex128))
        for size, output, factor in zip(plane.input_shape, outputs, scales)
    ]
    return resample(x, maps, plane.axes, implementation)


def _check_coordinates(
    mode: Any, align_corners: Any, antialias: Any, coordinates: Any
) -> Coordinates:
    for name, flag in (("align_corners", align_corners), ("antialias", antialias)):
        check_flag(name, flag)
    if mode not in ("linear", "cubic"):
        for name, value in (
            ("align_corners", align_corners),
            ("antialias", antialias),
            ("coordinates", coordinates),
        ):
            if value is not None and value is not False:
                raise ValueError(
                    f"{name}={shown(value)}: for 'linear' and 'cubic' only, mode={mode!r}"
                )
    if coordinates is not None:
        check_choice("coordinates", coordinates, get_args(Coordinates))
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
        factors = check_scale(value)
        like = (1,) * len(factors) if isinstance(value, Sequence) else 1
        n = spatial_ndim("x", x.shape, name, like)
        scales = tuple(map(float, factors if isinstance(value, Sequence) else factors * n))
    sizes = spatial_sizes("x", x.shape, n, data_format)
    check_known("x", sizes)
    return Plane(input_shape=sizes, data_format=data_format), scales


def _map(
    size: int,
    output: int,
    scale: float | None,
    mode: str,
    antialias: bool,
    coordinates: str,
    is_double: bool,
) -> AxisMap:
    """The map along one axis."""
    if mode == "area":
        return Mean(size, output)
    if mode.startswith("nearest"):
        real: Any = np.float64 if is_double else np.float32
        return Nearest(
            size,
            output,
            step=float(real(1 / scale) if scale else real(size) / real(output)),
            shift=0.5 if mode == "nearest-exact" else 0.0,
            double=bool(is_double),
        )
    step = Fraction(size, output) if scale is None else _step(size, output, scale, is_double)
    if output == size and coordinates == "half_pixel" and (antialias or mode == "linear"):
        step = Fraction(1)
    if coordinates == "align_corners":
        step = Fraction(size - 1, output - 1) if output > 1 else Fraction(0)
    a = None if mode == "linear" else -0.5 if antialias else -0.75
    centred = antialias or coordinates == "half_pixel"
    return Kernel.at(size, output, step, centred, a, antialias)


def _step(size: int, output: int, scale: float, is_double: bool) -> Fraction:
    """`1 / scale` as a fraction: exactly what a decimal number of a few digits means.

    Other numbers get the nearest fraction of terms below a limit, which is nearer than a rounding
    to float32 would be. Below 2**25, distances fit the integers of `Kernel`.
    """
    limit = MAX_INT32 if is_double or max(size, output) > 2**25 else 2**25
    exact = Fraction(scale)
    if exact > 1:
        return (1 / exact).limit_denominator(limit)
    return 1 / exact.limit_denominator(limit)
