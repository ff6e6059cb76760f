"""Power-average pooling: the p-norm of each window."""

from __future__ import annotations

import functools
import math

import jax

from jaxunpool.core import primitives
from jaxunpool.core.arguments import Sizes, as_floats, check_norm_type, pooling_window
from jaxunpool.core.backends import Implementation
from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.geometry import DataFormat, Padding
from jaxunpool.core.messages import public
from jaxunpool.kernels.common import accumulator


@public
def lp_pool(
    x: jax.typing.ArrayLike,
    norm_type: float,
    window_shape: Sizes,
    strides: Sizes | None = None,
    padding: Padding = "VALID",
    *,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    data_format: DataFormat = "channels_last",
    implementation: Implementation = None,
) -> jax.Array:
    """The p-norm of each window, `sum(|x| ** p) ** (1 / p)`.

    Equal to `torch.nn.functional.lp_pool1d/2d/3d`, with two exceptions. For odd p and negative
    elements, PyTorch adds signed powers, and the root of a negative sum is NaN. For windows that
    extend beyond the end (`ceil_mode`), PyTorch rescales the sum to a whole window. The gradient of
    a norm of zero is zero, as in PyTorch.

    Args:
        x: floats, as in `avg_pool`.
        norm_type: p, at least 1: 1 is the sum of magnitudes, 2 the Euclidean norm, infinity the
            largest magnitude.
        window_shape, strides, padding, dilation, ceil_mode, data_format, implementation:
            as in `avg_pool`.

    Returns:
        An array of x's type, one element per window.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it. Raised at trace time.
        NotImplementedError: as in `avg_pool`.

    Example:
        >>> lp_pool(jnp.array([[3.0, -4.0], [0.0, 0.0]])[..., None], 2, (2, 2))[..., 0]
        Array([[5.]], dtype=float32)
    """
    x = as_floats("x", x)
    check_norm_type(norm_type)
    geometry = pooling_window(
        x, window_shape, strides, padding, dilation, ceil_mode, data_format, implementation
    )
    if norm_type == math.inf:
        return primitives.maximum(_powers(x, 1), geometry, implementation).astype(x.dtype)
    exponent = int(norm_type) if norm_type == int(norm_type) else float(norm_type)
    total = primitives.reduce(_powers(x, exponent), geometry, implementation)
    return _roots(total, exponent).astype(x.dtype)


@functools.partial(jax.jit, static_argnums=1)
def _powers(x: jax.Array, exponent: float) -> jax.Array:
    """`|x| ** exponent` in the type sums run in: powers overflow 16 bits."""
    wide = x.astype(accumulator(x.dtype))
    magnitude = wide * lax.stop_gradient(jnp.sign(wide))  # |x|, with derivative 0 at 0
    return magnitude**exponent


@functools.partial(jax.jit, static_argnums=1)
def _roots(total: jax.Array, exponent: float) -> jax.Array:
    """The root of each sum, with derivative 0 at 0."""
    is_zero = total == 0
    return jnp.where(is_zero, 0, jnp.where(is_zero, 1, total) ** (1 / exponent))
