"""Transposed convolution with PyTorch's shapes."""

from __future__ import annotations

import math

import jax
from jax import lax

from jaxunpool.core.arguments import Sizes, as_floats
from jaxunpool.core.convolution import Convolution, as_precision, on_known_mesh, plain
from jaxunpool.core.geometry import (
    DATA_FORMATS,
    DataFormat,
    as_int,
    as_sequence,
    check_axes,
    check_choice,
    per_axis,
    spatial_sizes,
)


def conv_transpose(
    x: jax.typing.ArrayLike,
    kernel: jax.typing.ArrayLike,
    bias: jax.typing.ArrayLike | None = None,
    strides: Sizes = 1,
    padding: Sizes = 0,
    *,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
    data_format: DataFormat = "channels_last",
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """Transposed convolution: the gradient of a convolution with respect to its input.

    Equal to `torch.nn.functional.conv_transpose1d/2d/3d`. On CPU it is one convolution for all
    phases of the strides, elsewhere one of `x` spread out; derivatives of any order, in both modes.

    Along each spatial axis the result has
    `(size - 1) * strides - 2 * padding + dilation * (k - 1) + output_padding + 1` elements.

    Args:
        x: floats of shape `(*batch, *spatial, in_channels)`, 1 to 3 spatial axes, any number of
            batch axes; `(*batch, in_channels, *spatial)` under `"channels_first"`.
        kernel: `(*window, in_channels, out_channels // groups)`; under `"channels_first"`
            PyTorch's `(in_channels, out_channels // groups, *window)`. Not flipped: element 0 adds
            to the first of the elements a value reaches. Its rank says how many spatial axes
            there are.
        bias: `(out_channels,)`, or None.
        strides, dilation: per spatial axis, or one int for all.
        padding: elements cut off from both ends (PyTorch's `padding`).
        output_padding: elements more at the high end; less than the stride or the dilation.
        groups: into how many groups channels are divided.
        data_format: `"channels_last"` or `"channels_first"`.
        precision: as in `jax.lax.conv_general_dilated`.

    Returns:
        An array of x's type.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it. At trace time.

    Example:
        >>> x, kernel = jnp.ones((1, 2, 2, 1)), jnp.ones((3, 3, 1, 4))
        >>> conv_transpose(x, kernel, strides=2, padding=1, output_padding=1).shape
        (1, 4, 4, 4)
    """
    x, kernel = as_floats("x", x), as_floats("kernel", kernel)
    check_choice("data_format", data_format, DATA_FORMATS)
    n = kernel.ndim - 2
    if not 1 <= n <= 3:
        raise ValueError(
            f"kernel: expected 1 to 3 window axes and 2 of channels, got {kernel.shape}"
        )
    if x.ndim < n + 1:
        raise ValueError(f"x: expected {n} spatial axes and a channel axis, got shape {x.shape}")
    if kernel.dtype != x.dtype:
        raise TypeError(f"kernel: expected {x.dtype} as x, got {kernel.dtype}")
    is_last = data_format == "channels_last"
    sizes = spatial_sizes("x", x.shape, n, data_format)
    window = kernel.shape[:n] if is_last else kernel.shape[2:]
    inputs, outputs = kernel.shape[n:] if is_last else kernel.shape[:2]
    if 0 in kernel.shape:
        raise ValueError(f"kernel: expected sizes of at least 1, got shape {kernel.shape}")
    groups = as_int("groups", groups)
    if groups < 1 or inputs % groups:
        raise ValueError(f"groups={groups}: expected a divisor of the {inputs} input channels")
    channels = x.shape[-1 if is_last else -n - 1]
    if channels != inputs:
        raise ValueError(
            f"kernel: shape {kernel.shape} takes {inputs} input channels, x of shape {x.shape} has"
            f" {channels} ({data_format})"
        )
    strides = per_axis("strides", as_sequence(strides), n, minimum=1)
    pads = per_axis("padding", as_sequence(padding), n, minimum=0)
    extra = per_axis("output_padding", as_sequence(output_padding), n, minimum=0)
    spacing = per_axis("dilation", as_sequence(dilation), n, minimum=1)
    if any(e >= max(s, d) for e, s, d in zip(extra, strides, spacing)):
        raise ValueError(
            f"output_padding={output_padding!r}: expected less than strides={strides} or"
            f" dilation={spacing}"
        )
    full = [d * (k - 1) for d, k in zip(spacing, window)]
    results = [
        (size - 1) * s - 2 * p + f + e + 1
        for size, s, p, f, e in zip(sizes, strides, pads, full, extra)
    ]
    if min(results) < 1:
        raise ValueError(f"padding={padding!r}: leaves nothing, spatial sizes {tuple(results)}")
    check_axes(f"strides={strides}", tuple(results))
    if bias is not None:
        bias = as_floats("bias", bias)
        if bias.shape != (outputs * groups,):
            raise ValueError(f"bias: expected shape {(outputs * groups,)}, got {bias.shape}")
        if bias.dtype != x.dtype:
            raise TypeError(f"bias: expected {x.dtype} as x, got {bias.dtype}")

    # The gradient by its input of a convolution from the result to x.
    batch = x.shape[: x.ndim - n - 1]
    x = x.reshape((math.prod(batch), *x.shape[len(batch) :]))
    spatial = "XYZ"[:n]
    names = (f"N{spatial}C", f"{spatial}OI") if is_last else (f"NC{spatial}", f"OI{spatial}")
    layout = lax.conv_dimension_numbers(x.shape, kernel.shape, (*names, names[0]))
    ends = tuple((p, p - e) for p, e in zip(pads, extra))
    conv = Convolution(
        tuple(results), window, strides, ends, spacing, layout, groups, as_precision(precision)
    )
    known = on_known_mesh(x, kernel)
    y = plain(kernel, x, name="u", conv=conv) if known else conv.bind("u", kernel, x)
    if bias is not None:
        y = y + bias.reshape((1,) * (n + 1) + (-1,) if is_last else (1, -1) + (1,) * n)
    return y.reshape((*batch, *y.shape[1:]))
