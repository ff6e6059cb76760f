"""Average pooling and its two inverses: the mean over covering windows, and the exact transpose."""

from __future__ import annotations

import functools
from typing import Literal, get_args

import jax

from jaxunpool.core import primitives
from jaxunpool.core.arguments import (
    Sizes,
    as_averaged,
    check_divisor,
    pooling_window,
    unpooling_window,
    whole_plane,
)
from jaxunpool.core.backends import Implementation
from jaxunpool.core.carriers import is_float8
from jaxunpool.core.frozen import jnp
from jaxunpool.core.geometry import DataFormat, Padding, check_choice, check_flag
from jaxunpool.core.messages import public

AvgUnpoolMode = Literal["mean", "adjoint"]


@public
def avg_pool(
    x: jax.typing.ArrayLike,
    window_shape: Sizes,
    strides: Sizes | None = None,
    padding: Padding = "VALID",
    *,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    data_format: DataFormat = "channels_last",
    implementation: Implementation = None,
) -> jax.Array:
    """Mean of each window.

    Equal to `torch.nn.functional.avg_pool1d/2d/3d` and to `flax.linen.avg_pool`, up to the order of
    additions. Here they run in raster order of the window; floats of 8 and 16 bits are added in
    float32 and rounded once. For TensorFlow's `"SAME"` pooling, pass `count_include_pad=False`.

    Args:
        x: numbers or booleans of shape `(*batch, *spatial, channels)`, with 1 to 3 spatial axes and
            any number of batch axes; `(*batch, channels, *spatial)` for `"channels_first"`.
        window_shape, strides, padding, dilation, ceil_mode, data_format, implementation:
            as in `max_pool`.
        count_include_pad: True divides by the number of elements of the window, padding included;
            False by the number of those that are not padding. Elements beyond the padding
            (`ceil_mode`) never count.
        divisor_override: PyTorch's: an int other than 0 that sums are divided by instead. 1 gives
            the sum of each window.

    Returns:
        An array of x's type, one element per window. For integers and booleans, floats, as from
        `jnp.mean`.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it. Raised at trace time.
        NotImplementedError: this implementation has no kernel for the call.

    Example:
        >>> avg_pool(jnp.arange(16.0).reshape(4, 4, 1), (2, 2))[..., 0]
        Array([[ 2.5,  4.5],
               [10.5, 12.5]], dtype=float32)
    """
    x = as_averaged("x", x)
    geometry = pooling_window(
        x, window_shape, strides, padding, dilation, ceil_mode, data_format, implementation
    )
    mean = _mean(count_include_pad)
    if divisor_override is None:
        return primitives.reduce(x, geometry, implementation, mean)
    divisor = check_divisor("divisor_override", divisor_override)
    return primitives.reduce(x, geometry, implementation, divisor=divisor)


@public
def avg_unpool(
    y: jax.typing.ArrayLike,
    window_shape: Sizes,
    strides: Sizes | None = None,
    padding: Padding = "VALID",
    *,
    mode: AvgUnpoolMode = "mean",
    output_shape: Sizes | None = None,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    data_format: DataFormat = "channels_last",
    implementation: Implementation = None,
) -> jax.Array:
    """Undo average pooling.

    With `"mean"`, each element gets the mean of the averages of all windows that cover it, or zero
    if no window covers it. If windows do not overlap, that is a copy: it equals
    `torch.nn.functional.interpolate(y, mode="nearest")` for windows that tile the result, and
    `avg_pool` of the result is `y` again (unless padding counts).
    With `"adjoint"`, it is the exact transpose of `avg_pool`, which is also its gradient.

    Args:
        y: numbers or booleans, the pooled array or one of its shape.
        window_shape, strides, padding, dilation, ceil_mode, count_include_pad, data_format,
            implementation: as in the `avg_pool` to undo. `count_include_pad` matters only for
            `"adjoint"`. (If `avg_pool` counts padding, averages at the edge are smaller; `"mean"`
            copies them unchanged.)
        mode: `"mean"` or `"adjoint"`.
        output_shape: spatial sizes of the array that was pooled, which the result gets: any sizes
            with as many windows. By default the size that the windows cover exactly.

    Returns:
        An array of y's type; floats for integers and booleans.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it. Raised at trace time.
        NotImplementedError: as in `avg_pool`.

    Example:
        >>> x = jnp.arange(10.0).reshape(2, 5, 1)
        >>> y = avg_pool(x, (2, 2))
        >>> avg_unpool(y, (2, 2), output_shape=(2, 5))[..., 0]
        Array([[3., 3., 5., 5., 0.],
               [3., 3., 5., 5., 0.]], dtype=float32)
    """
    y = as_averaged("y", y)
    check_choice("mode", mode, get_args(AvgUnpoolMode))
    geometry = unpooling_window(
        y,
        window_shape,
        strides,
        padding,
        output_shape,
        dilation,
        ceil_mode,
        data_format,
        implementation,
    )
    mean = _mean(count_include_pad)
    return primitives.replicate(y, geometry, implementation, "cover" if mode == "mean" else mean)


@public
def global_avg_pool(
    x: jax.typing.ArrayLike,
    *,
    spatial_ndim: int | None = None,
    data_format: DataFormat = "channels_last",
) -> jax.Array:
    """Mean over all spatial axes.

    This is `jnp.mean`, with its gradient; float8 is added in float32. In exact arithmetic it equals
    `avg_pool` with the whole plane as its window, and `torch.nn.functional.adaptive_avg_pool2d(x,
    1)`. These add one element after the other, so they lose digits on large planes.

    Args:
        x: numbers or booleans, as in `avg_pool`.
        spatial_ndim: number of spatial axes; `x.ndim - 2` by default.
        data_format: `"channels_last"` or `"channels_first"`.

    Returns:
        An array with spatial sizes 1, of the type that `jnp.mean` returns.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it. Raised at trace time.

    Example:
        >>> global_avg_pool(jnp.arange(16.0).reshape(1, 4, 4, 1)).shape
        (1, 1, 1, 1)
    """
    x = as_averaged("x", x)
    plane = whole_plane(x, spatial_ndim, data_format)
    return _mean_over(x, plane.axes)


@functools.partial(jax.jit, static_argnums=1)
def _mean_over(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    if is_float8(x.dtype):  # which `jnp.mean` adds in their own type
        return jnp.mean(x, axes, dtype=jnp.float32, keepdims=True).astype(x.dtype)
    return jnp.mean(x, axes, keepdims=True)


def _mean(count_include_pad: bool) -> str:
    return "mean" if check_flag("count_include_pad", count_include_pad) else "mean_inside"
