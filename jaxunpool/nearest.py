"""Nearest-neighbour unpooling: every element of a window gets the window's value."""

from __future__ import annotations

from typing import Literal, get_args

import jax

from jaxunpool.core import primitives
from jaxunpool.core.arguments import Sizes, as_averaged, as_values, unpooling_window
from jaxunpool.core.backends import Implementation
from jaxunpool.core.geometry import DataFormat, Padding, check_choice
from jaxunpool.core.messages import public

NearestDuplicates = Literal["last", "mean"]


@public
def nearest_unpool(
    y: jax.typing.ArrayLike,
    window_shape: Sizes,
    strides: Sizes | None = None,
    padding: Padding = "VALID",
    *,
    output_shape: Sizes | None = None,
    duplicates: NearestDuplicates = "last",
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    data_format: DataFormat = "channels_last",
    implementation: Implementation = None,
) -> jax.Array:
    """A copy of each value in all elements of its window, zeros elsewhere.

    If strides are the window, it equals `jnp.repeat` and
    `torch.nn.functional.interpolate(y, scale_factor=window_shape, mode="nearest")`. Larger strides
    leave gaps of zeros. With smaller strides windows overlap, and `duplicates` decides.

    Args:
        y: numbers or booleans, the pooled array or one of its shape.
        window_shape, strides, padding, dilation, ceil_mode, data_format, implementation: as in
            `max_pool`, for the pooling to undo.
        output_shape: spatial sizes of the result, as in `avg_unpool`.
        duplicates: `"last"` keeps the copy of the last window in raster order, and only that one
            has a gradient. `"mean"` takes the mean of the copies, as `avg_unpool` does.

    Returns:
        An array of y's type; with `"mean"`, floats for integers and booleans.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it. Raised at trace time.
        NotImplementedError: as in `max_pool`.

    Example:
        >>> nearest_unpool(jnp.array([[1, 2], [3, 4]])[..., None], (1, 2), (1, 3))[..., 0]
        Array([[1, 1, 0, 2, 2],
               [3, 3, 0, 4, 4]], dtype=int32)
    """
    check_choice("duplicates", duplicates, get_args(NearestDuplicates))
    y = as_averaged("y", y) if duplicates == "mean" else as_values("y", y)
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
    weighting = "cover" if duplicates == "mean" else "last"
    return primitives.replicate(y, geometry, implementation, weighting)
