"""Min pooling: max pooling of the reversed order."""

from __future__ import annotations

from typing import Any

import jax

from jaxunpool.core.arguments import Sizes, as_ordered
from jaxunpool.core.backends import Implementation
from jaxunpool.core.frozen import jnp
from jaxunpool.core.geometry import DataFormat, Padding
from jaxunpool.core.messages import public
from jaxunpool.indices import PoolIndices
from jaxunpool.max import max_pool, max_pool_with_indices


@public
def min_pool(
    x: jax.typing.ArrayLike,
    window_shape: Sizes,
    strides: Sizes | None = None,
    padding: Padding = "VALID",
    *,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    data_format: DataFormat = "channels_last",
    implementation: Implementation = None,
) -> jax.Array:
    """Minimum of each window.

    Equal to `flax.linen.pooling.min_pool`, without dilation, and for floats to `-max_pool(-x)`. For
    unsigned integers, and for the lowest signed one, `-x` wraps around; `min_pool` returns the true
    minimum. The rest is as in `max_pool`: the first of equal elements is selected (-0.0 equals
    0.0), the result is NaN if a window contains NaN, and padding is never selected.

    Args:
        x, window_shape, strides, padding, dilation, ceil_mode, data_format, implementation:
            as in `max_pool`.

    Returns:
        An array of x's type, one element per window.

    Raises:
        ValueError, TypeError, NotImplementedError: as in `max_pool`.

    Example:
        >>> min_pool(jnp.array([[0, 200], [7, 9]], jnp.uint8)[..., None], (1, 2))[..., 0]
        Array([[0],
               [7]], dtype=uint8)
    """
    y = max_pool(
        _reversed(as_ordered("x", x)),
        window_shape,
        strides,
        padding,
        dilation=dilation,
        ceil_mode=ceil_mode,
        data_format=data_format,
        implementation=implementation,
    )
    return _reversed(y)


@public
def min_pool_with_indices(
    x: jax.typing.ArrayLike,
    window_shape: Sizes,
    strides: Sizes | None = None,
    padding: Padding = "VALID",
    *,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    data_format: DataFormat = "channels_last",
    implementation: Implementation = None,
) -> tuple[jax.Array, PoolIndices]:
    """Minimum of each window and its position.

    The indices are like those of `max_pool_with_indices`: pass them to `max_unpool`. Ties, NaN and
    padding are treated as in `min_pool`. If a window contains several NaN, the last is selected.

    Args:
        x, window_shape, strides, padding, dilation, ceil_mode, data_format, implementation:
            as in `max_pool`.

    Returns:
        The pooled array, and `PoolIndices` of the same shape: one byte per window.

    Raises:
        ValueError, TypeError, NotImplementedError: as in `max_pool`.

    Example:
        >>> x = jnp.array([[5, 2], [3, 4]])[..., None]
        >>> jaxunpool.max_unpool(*min_pool_with_indices(x, (2, 2)))[..., 0]
        Array([[0, 2],
               [0, 0]], dtype=int32)
    """
    y, indices = max_pool_with_indices(
        _reversed(as_ordered("x", x)),
        window_shape,
        strides,
        padding,
        dilation=dilation,
        ceil_mode=ceil_mode,
        data_format=data_format,
        implementation=implementation,
    )
    return _reversed(y), indices


@jax.custom_jvp
def _reversed(x: jax.Array) -> jax.Array:
    """The same elements in the opposite order, exactly: `-x` of floats, `~x` of integers."""
    return -x if jnp.issubdtype(x.dtype, jnp.floating) else ~x


@_reversed.defjvp
def _reversed_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    # It is applied twice, before and after pooling, so the two signs of the derivative cancel.
    # Leaving both out keeps the zeros of a gradient positive, and costs no pass over it.
    return _reversed(*primals), tangents[0]
