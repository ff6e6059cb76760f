"""Checks every operator makes of its arguments before any arithmetic."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import jax
import numpy as np

from jaxunpool.core.backends import Implementation, check_implementation
from jaxunpool.core.frozen import jnp
from jaxunpool.core.geometry import (
    DATA_FORMATS,
    MAX_INT32,
    DataFormat,
    Plane,
    WindowGeometry,
    as_array,
    as_int,
    check_choice,
    check_flag,
    padding_rule,
    spatial_sizes,
)
from jaxunpool.core.messages import shown

Sizes = int | Sequence[int]


def as_values(name: str, x: Any) -> jax.Array:
    """`x` as an array of numbers or booleans, or a TypeError."""
    x = as_array(name, x)
    if x.dtype == jnp.float8_e8m0fnu:
        raise TypeError(f"{name}: expected a type that has a zero, got {x.dtype}")
    if not (x.dtype == jnp.bool_ or jnp.issubdtype(x.dtype, jnp.number)) or _is_tiny_float(x):
        raise TypeError(f"{name}: expected numbers or booleans, got {x.dtype}")
    return x


def as_ordered(name: str, x: Any) -> jax.Array:
    """`x` as an array of booleans, integers or floats, or a TypeError."""
    x = as_values(name, x)
    if jnp.iscomplexobj(x):
        raise TypeError(
            f"{name}: expected booleans, integers or floats, got {x.dtype}, which has no order;"
            " pool_at reads the elements at the maxima of another array, such as the magnitudes"
        )
    return x


def as_averaged(name: str, x: Any) -> jax.Array:
    """`x` as an array of floats or complex numbers: the rest in the type of its `jnp.mean`."""
    x = as_values(name, x)
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return x
    return x.astype(jnp.float64 if x.dtype.itemsize == 8 else jnp.float32)


def as_floats(name: str, x: Any) -> jax.Array:
    """`x` as an array of floats, or a TypeError."""
    x = as_values(name, x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name}: expected floats, got {x.dtype}")
    return x


def as_factors(name: str, x: Any) -> jax.Array:
    """`x` as an array of floats of 16 bits or more or complex numbers, or a TypeError."""
    x = as_array(name, x)
    if not (is_float(x) or jnp.iscomplexobj(x)):
        raise TypeError(
            f"{name}: expected floats of 16 bits or more, or complex numbers, got {x.dtype}"
        )
    return x


def is_float(x: jax.Array) -> bool:
    """Whether these are floats of 16 bits or more."""
    return jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize > 1


def _is_tiny_float(x: jax.Array) -> bool:
    """Whether these are floats of less than 8 bits."""
    return jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < 8


def check_norm_type(value: Any) -> None:
    """A TypeError or ValueError unless it is a number above 0, or a scalar array of numbers."""
    unwrap = getattr(value, "__jax_array__", None)  # of a parameter
    array = unwrap() if callable(unwrap) else value
    is_array = isinstance(array, jax.Array | np.ndarray)
    if is_array and array.shape == () and jnp.issubdtype(array.dtype, jnp.floating):
        if not isinstance(array, jax.core.Tracer) and not np.asarray(array) > 0:
            raise ValueError(f"norm_type={np.asarray(array)}: expected more than 0")
        return
    if is_array or isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"norm_type: expected a number or a scalar array, got {shown(value)}")
    if not value > 0:
        raise ValueError(f"norm_type={value!r}: expected more than 0")


def check_divisor(name: str, value: Any) -> int:
    """An int other than 0, or a TypeError or ValueError."""
    if not 0 < abs(as_int(name, value)) <= MAX_INT32:
        raise ValueError(
            f"{name}={shown(value)}: expected an int other than 0, of magnitude up to {MAX_INT32}"
        )
    return int(value)


def check_scale(value: Any) -> tuple[Any, ...]:
    """The numbers in a scale, or a TypeError or ValueError."""
    factors = _numbers("scale", value)
    if not all(0 < factor < math.inf for factor in factors):
        raise ValueError(f"scale={value!r}: expected finite numbers above 0")
    return factors


def check_ratio(value: Any) -> tuple[Any, ...]:
    """The numbers in an output ratio, or a TypeError or ValueError."""
    factors = _numbers("output_ratio", value)
    if not all(0 < factor <= 1 for factor in factors):
        raise ValueError(
            f"output_ratio={shown(value)}: expected numbers above 0 and up to 1 (TensorFlow's"
            " pooling_ratio is the reciprocal)"
        )
    return factors


def _numbers(name: str, value: Any) -> tuple[Any, ...]:
    """One number or several, or a TypeError."""
    numbers = tuple(value) if isinstance(value, Sequence) else (value,)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float | np.number):
            raise TypeError(
                f"{name}: expected a number or one per spatial axis, got {shown(value)}"
            )
    return numbers


def setting_check(name: str, hint: Any) -> Callable[[Any], Any] | None:
    """What checks a setting before there is an array; None where nothing can be said of it.

    Args:
        name: of the argument.
        hint: its type in the function's signature.
    """
    kinds = get_args(hint)
    literals = [kind for kind in (hint, *kinds) if get_origin(kind) is Literal]
    choices = [choice for literal in literals for choice in get_args(literal)]
    check: Callable[[Any], Any]
    if name == "padding":
        check = _check_padding
    elif choices:
        choices = [None, *choices] if NoneType in kinds else choices
        check = functools.partial(check_choice, name, choices=choices)
    elif hint is bool:
        check = functools.partial(check_flag, name)
    elif name in _NUMBERS:
        check = _NUMBERS[name]
    elif name in _LEAST:
        keeps = any(NoneType in get_args(entry) for kind in kinds for entry in get_args(kind))
        check = functools.partial(_check_sizes, name, minimum=_LEAST[name], keeps=keeps)
    else:
        return None
    return (lambda value: None if value is None else check(value)) if NoneType in kinds else check


# Sizes and distances, and the least that they can be.
_LEAST = {"window_shape": 1, "strides": 1, "dilation": 1, "output_shape": 1, "groups": 1}
_LEAST |= {"position": 0, "output_padding": 0, "spatial_ndim": 1}
_NUMBERS: dict[str, Callable[[Any], Any]] = {
    "divisor_override": functools.partial(check_divisor, "divisor_override"),
    "norm_type": check_norm_type,
    "output_ratio": check_ratio,
    "scale": check_scale,
}


def _check_sizes(name: str, value: Any, minimum: int, keeps: bool) -> None:
    """An int, or one for each of 1 to 3 axes; with `keeps` None keeps an axis."""
    is_sequence = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    sizes = list(value) if is_sequence else [value]
    if not 1 <= len(sizes) <= 3:
        raise ValueError(
            f"{name}={shown(value)}: expected an int, or a tuple of 1 to 3, one per spatial axis"
        )
    for size in sizes:
        if keeps and is_sequence and size is None:
            continue
        if as_int(name, size) < minimum:
            raise ValueError(f"{name}={shown(value)}: expected at least {minimum} along every axis")


def _check_padding(value: Any) -> None:
    """What `WindowGeometry` says of padding, as far as it depends on no window."""
    expected = "expected 'VALID', 'SAME', 'SAME_LOWER', an int, or a pair per spatial axis"
    if isinstance(value, str):
        padding_rule(value, expected)
        return
    pads = value if isinstance(value, Sequence) else [value]
    pairs = [tuple(pad) if isinstance(pad, Sequence) else (pad, pad) for pad in pads]
    if not 1 <= len(pairs) <= 3 or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"padding={shown(value)}: {expected}")
    if min(as_int("padding", end) for pair in pairs for end in pair) < 0:
        raise ValueError(f"padding={shown(value)}: expected at least 0 at every end")


def pooling_window(
    x: jax.Array,
    window_shape: Any,
    strides: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: Any,
    data_format: Any,
    implementation: Implementation,
    name: str = "x",
) -> WindowGeometry:
    """The arguments that all poolings share, checked and resolved."""
    check_implementation(implementation)
    return WindowGeometry.for_input(
        x.shape,
        window_shape,
        strides,
        padding,
        dilation=dilation,
        ceil_mode=ceil_mode,
        data_format=data_format,
        name=name,
    )


def unpooling_window(
    y: jax.Array,
    window_shape: Any,
    strides: Any,
    padding: Any,
    output_shape: Any,
    dilation: Any,
    ceil_mode: Any,
    data_format: Any,
    implementation: Implementation,
) -> WindowGeometry:
    """The arguments that all unpoolings without indices share, checked and resolved."""
    check_implementation(implementation)
    return WindowGeometry.for_output(
        y.shape,
        window_shape,
        strides,
        padding,
        output_shape=output_shape,
        dilation=dilation,
        ceil_mode=ceil_mode,
        data_format=data_format,
    )


def whole_plane(x: jax.Array, spatial_ndim: Any, data_format: DataFormat) -> Plane:
    """The spatial grid of `x`, of `spatial_ndim` axes (None: `x.ndim - 2`)."""
    check_choice("data_format", data_format, DATA_FORMATS)
    n = x.ndim - 2 if spatial_ndim is None else as_int("spatial_ndim", spatial_ndim)
    if not 1 <= n <= 3 or x.ndim < n + 1:
        raise ValueError(
            f"spatial_ndim={spatial_ndim!r} does not fit x of shape {x.shape}: expected 1 to 3"
            " spatial axes and a channel axis (None means x.ndim - 2 spatial axes)"
        )
    sizes = spatial_sizes("x", x.shape, n, data_format)
    return Plane(input_shape=sizes, data_format=data_format)
