"""Power-average pooling: the p-norm of each window.

A power of a large number overflows. So the elements of a window are divided by its maximum first:
the norm is `m * sum((|x| / m) ** p) ** (1 / p)` for any m, and no derivative depends on m. Up to
p = 3 powers have room for all but extreme numbers, and the sum is one pass over the array.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax

from jaxunpool.core import primitives
from jaxunpool.core.arguments import Sizes, as_floats, check_norm_type, pooling_window
from jaxunpool.core.backends import Implementation
from jaxunpool.core.calls import Call
from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.geometry import DataFormat, Padding, WindowGeometry
from jaxunpool.core.messages import public
from jaxunpool.kernels.common import accumulator

# Up to here powers are added as they are.
DIRECT = 3
# Up to here the elements of windows that overlap are unrolled; beyond, a loop keeps it small.
UNROLLED_VOLUME = 16


@public
def lp_pool(
    x: jax.typing.ArrayLike,
    norm_type: float | jax.Array,
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

    Equal to `torch.nn.functional.lp_pool1d/2d/3d`, with three exceptions. For odd p and negative
    elements, PyTorch adds signed powers, and the root of a negative sum is NaN. For windows that
    extend beyond the end (`ceil_mode`), PyTorch rescales the sum to a whole window. For p above 3
    the sum does not overflow or underflow here: elements are divided by the maximum of their
    window first, which takes more time. (For p = 3 in float32, there is room for 1e-12 to 1e12.)

    A p that is an array has a gradient, so it can be trained. Divided by the number of elements to
    the power `1 / p`, the result is generalized-mean pooling (GeM).

    Derivatives at elements that are exactly zero: those of `|x| ** p` where they are finite (for
    p = 2, the second is 2), and zero where they are not. With an array p, all are zero. The
    gradient of a norm of zero is zero, as in PyTorch.

    Args:
        x: floats, as in `max_pool`.
        norm_type: p, above 0: 1 is the sum of magnitudes, 2 the Euclidean norm, infinity the
            largest magnitude. A number, or a scalar array of floats, which can be traced.
        window_shape, strides, padding, dilation, ceil_mode, data_format, implementation:
            as in `max_pool`.

    Returns:
        An array of x's type, one element per window.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it. Raised at trace time.
        NotImplementedError: as in `max_pool`.

    Example:
        >>> lp_pool(jnp.array([[3.0, -4.0], [0.0, 0.0]])[..., None], 2, (2, 2))[..., 0]
        Array([[5.]], dtype=float32)
        >>> lp_pool(jnp.array([[10.0], [-11.0]]), 50, (2,)).astype(jnp.int32)
        Array([[11]], dtype=int32)
    """
    x = as_floats("x", x)
    check_norm_type(norm_type)
    geometry = pooling_window(
        x, window_shape, strides, padding, dilation, ceil_mode, data_format, implementation
    )
    if isinstance(norm_type, jax.Array):
        return _norm_of_traced(x, norm_type, geometry, implementation)
    p = float(norm_type)
    return _norm_of_static(x, int(p) if p.is_integer() else p, geometry, implementation)


def _norm(
    x: jax.Array, p: Any, geometry: WindowGeometry, implementation: Implementation
) -> jax.Array:
    wide = x.astype(accumulator(x.dtype))  # powers overflow 16 bits
    if isinstance(p, jax.Array):
        p = p.astype(wide.dtype)
    elif p == math.inf:
        return primitives.maximum(_magnitude(x), geometry, implementation)
    elif p <= DIRECT:
        total = primitives.reduce(_powers(wide, p), geometry, implementation)
        return _roots(total, p).astype(x.dtype)
    select = Call("select", geometry, implementation)
    largest, _ = primitives.bind(select, lax.stop_gradient(jnp.abs(x)))
    largest = largest.astype(wide.dtype)
    usable = (largest > 0) & (largest < jnp.inf)  # neither is NaN
    scale = jnp.where(usable, largest, jnp.ones_like(largest))
    add = _add_apart if geometry.overlaps else _add
    total = add(wide, scale, p, geometry, implementation)
    return (scale * _roots(total, p)).astype(x.dtype)


_norm_of_static = jax.jit(_norm, static_argnums=(1, 2, 3))
_norm_of_traced = jax.jit(_norm, static_argnums=(2, 3))


def _add(
    x: jax.Array, scale: jax.Array, p: Any, geometry: WindowGeometry, implementation: Implementation
) -> jax.Array:
    """Sums of powers where an element has one window at most, and so one divisor."""
    factors = primitives.replicate(1 / scale, geometry, implementation)
    return primitives.reduce(_powers(x * factors, p), geometry, implementation)


def _add_apart(
    x: jax.Array, scale: jax.Array, p: Any, geometry: WindowGeometry, implementation: Implementation
) -> jax.Array:
    """Sums of powers where an element has another divisor in each of its windows."""

    def power(number: Any) -> jax.Array:
        offsets = jnp.full(scale.shape, number, geometry.offset_dtype)
        element = primitives.gather(x, offsets, geometry, implementation)
        return _rounded(_powers(element / scale, p))

    if geometry.volume <= UNROLLED_VOLUME:
        return functools.reduce(jnp.add, map(power, range(geometry.volume)))
    power = jax.checkpoint(power)  # or the loop keeps all quotients for the gradient
    return lax.fori_loop(1, geometry.volume, lambda n, total: total + power(n), power(0))


def _rounded(value: jax.Array) -> jax.Array:
    """The same, kept apart from the sum: compilers contract products and sums in some programs."""
    return jnp.where(value != value, lax.stop_gradient(value), value)


def _magnitude(x: jax.Array) -> jax.Array:
    """`|x|`, with derivative 0 at 0."""
    return x * lax.stop_gradient(jnp.sign(x))


def _powers(x: jax.Array, p: Any) -> jax.Array:
    """`|x| ** p`; its derivatives at 0 are 0 where they are not finite."""
    if isinstance(p, int):
        return x**p if p % 2 == 0 else _magnitude(x) ** p
    is_zero = x == 0
    return jnp.where(is_zero, 0, jnp.where(is_zero, 1, _magnitude(x)) ** p)


def _roots(total: jax.Array, p: Any) -> jax.Array:
    """The root of each sum, with derivative 0 at 0."""
    is_zero = total == 0
    return jnp.where(is_zero, 0, jnp.where(is_zero, 1, total) ** (1 / p))
