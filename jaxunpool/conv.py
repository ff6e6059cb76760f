"""Convolution that is fast on CPU too, with its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from jaxunpool.core.arguments import is_float
from jaxunpool.core.convolution import Convolution, as_precision, on_known_mesh
from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.messages import public


@public
def conv_general_dilated(
    lhs: jax.typing.ArrayLike,
    rhs: jax.typing.ArrayLike,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: jax.typing.DTypeLike | None = None,
    **options: Any,
) -> jax.Array:
    """Convolution: `jax.lax.conv_general_dilated`, fast on CPU too, and above all its gradients.

    On CPU, kernels in C++ take floats of 16, 32 and 64 bits. XLA makes the gradient with respect to
    the kernel a convolution whose window is as large as the image. Results and gradients are equal
    to JAX's up to rounding. Other platforms run JAX's own. Derivatives of any order work, in both
    modes. Policies of `jax.checkpoint` that save products by name do not know this function.

    Pass it to Flax's layers as their argument `conv_general_dilated`.

    Args:
        lhs: the input, by default `(batch, channels, *spatial)`.
        rhs: the kernel, by default `(outputs, channels // groups, *window)`.
        window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
            feature_group_count, batch_group_count, precision, preferred_element_type, options: as
            in `jax.lax.conv_general_dilated`. It runs that function itself for `lhs_dilation`,
            `batch_group_count`, another `preferred_element_type`, other options, more than 3
            spatial axes, arrays that are not floats of one type or whose spatial sizes are
            symbolic, and on meshes with Explicit or Manual axes.

    Returns:
        An array of `lhs`'s type, or of `preferred_element_type`.

    Raises:
        ValueError, TypeError: those of `jax.lax.conv_general_dilated`.

    Example:
        >>> from flax import nnx
        >>> layer = nnx.Conv(3, 8, (3, 3), conv_general_dilated=conv_general_dilated,
        ...                  rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((2, 6, 6, 3))).shape
        (2, 6, 6, 8)
    """
    given: dict[str, Any] = {
        "lhs_dilation": lhs_dilation,
        "rhs_dilation": rhs_dilation,
        "dimension_numbers": dimension_numbers,
        "feature_group_count": feature_group_count,
        "batch_group_count": batch_group_count,
        "precision": precision,
        "preferred_element_type": preferred_element_type,
        **options,
    }
    u, k = jnp.asarray(lhs), jnp.asarray(rhs)
    if (
        (lhs_dilation is not None and any(d != 1 for d in lhs_dilation))
        or batch_group_count != 1
        or preferred_element_type not in (None, u.dtype)
        or any(option is not None for option in options.values())
        or not 3 <= u.ndim <= 5
        or k.ndim != u.ndim
        or k.dtype != u.dtype
        or not is_float(u)
        or on_known_mesh(u, k)
    ):
        return lax.conv_general_dilated(u, k, window_strides, padding, **given)
    jax.eval_shape(  # raises what `lax` does
        lambda u, k: lax.conv_general_dilated(u, k, window_strides, padding, **given), u, k
    )
    n = u.ndim - 2
    layout = lax.conv_dimension_numbers(u.shape, k.shape, dimension_numbers)
    sizes, window = (
        tuple(array.shape[axis] for axis in spec[2:])
        for array, spec in ((u, layout.lhs_spec), (k, layout.rhs_spec))
    )
    if not all(isinstance(size, int) for size in (*sizes, *window)):  # symbolic
        return lax.conv_general_dilated(u, k, window_strides, padding, **given)
    strides = tuple(map(int, window_strides))
    dilation = (1,) * n if rhs_dilation is None else tuple(map(int, rhs_dilation))
    if isinstance(padding, str):
        spans = [(w - 1) * d + 1 for w, d in zip(window, dilation)]
        padding = lax.padtype_to_pads(sizes, spans, strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    conv = Convolution(
        sizes,
        window,
        strides,
        pads,
        dilation,
        layout,
        feature_group_count,
        as_precision(precision),
    )
    return conv.bind("y", u, k)
