"""Transposed convolution by the rules of PyTorch, and of TensorFlow."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax

from jaxunpool.core import lowering
from jaxunpool.core.arguments import Sizes, as_factors
from jaxunpool.core.carriers import in_parts
from jaxunpool.core.convolution import Convolution, Ints, Pairs, as_precision, on_known_mesh, plain
from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.geometry import (
    DATA_FORMATS,
    DataFormat,
    Padding,
    as_int,
    as_sequence,
    check_axes,
    check_choice,
    padding_pairs,
    padding_rule,
    per_axis,
    spatial_sizes,
)
from jaxunpool.core.messages import public


@public
def conv_transpose(
    x: jax.typing.ArrayLike,
    kernel: jax.typing.ArrayLike,
    bias: jax.typing.ArrayLike | None = None,
    strides: Sizes = 1,
    padding: Padding = 0,
    *,
    output_padding: Sizes = 0,
    output_shape: Sizes | None = None,
    groups: int = 1,
    dilation: Sizes = 1,
    data_format: DataFormat = "channels_last",
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """Transposed convolution: the gradient of a convolution with respect to its input.

    Equal to `torch.nn.functional.conv_transpose1d/2d/3d`, and with `"SAME"` or `"VALID"` to
    `tf.nn.conv2d_transpose` and Keras. It has derivatives of any order, in both modes. On CPU,
    kernels in C++ make it and its derivatives.

    Along each spatial axis the result has
    `(size - 1) * strides - low - high + dilation * (k - 1) + output_padding + 1` elements.

    Args:
        x: floats or complex numbers of shape `(*batch, *spatial, in_channels)`, with 1 to 3 spatial
            axes and any number of batch axes; for `"channels_first"` of shape
            `(*batch, in_channels, *spatial)`.
        kernel: `(*window, in_channels, out_channels // groups)`; for `"channels_first"` PyTorch's
            `(in_channels, out_channels // groups, *window)`. It is not flipped: its element 0 adds
            to the first element that a value reaches. Its rank gives the number of spatial axes.
        bias: `(out_channels,)`, or None.
        strides, dilation: per spatial axis, or one int for all.
        padding: number of elements to cut off at both ends (PyTorch's `padding`): an int, or per
            axis an int or a `(low, high)` pair. `"SAME"`, or `"SAME_LOWER"` with an odd element at
            the low end: the padding of the convolution that maps the result to `x`; the result has
            `size * strides` elements unless `output_shape` is given. `"VALID"`: none; it has
            `size * strides + max(dilation * (k - 1) + 1 - strides, 0)` elements.
        output_padding: number of extra elements at the high end; less than the stride or the
            dilation. Not for padding by name.
        output_shape: spatial sizes of the result (PyTorch's `output_size`). The convolution must
            map these sizes to those of `x`. `output_padding` then has no effect.
        groups: the number of groups that the channels are divided into.
        data_format: `"channels_last"` or `"channels_first"`.
        precision: as in `jax.lax.conv_general_dilated`.

    Returns:
        An array of x's type.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it. Raised at trace time.

    Example:
        >>> x, kernel = jnp.ones((1, 2, 2, 1)), jnp.ones((3, 3, 1, 4))
        >>> conv_transpose(x, kernel, strides=2, padding=1, output_padding=1).shape
        (1, 4, 4, 4)
    """
    x, kernel = as_factors("x", x), as_factors("kernel", kernel)
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
    spacing = per_axis("dilation", as_sequence(dilation), n, minimum=1)
    spans = tuple(d * (k - 1) + 1 for d, k in zip(spacing, window))
    extra = per_axis("output_padding", as_sequence(output_padding), n, minimum=0)
    if any(e >= max(s, d) for e, s, d in zip(extra, strides, spacing)):
        raise ValueError(
            f"output_padding={output_padding!r}: expected less than strides={strides} or"
            f" dilation={spacing}"
        )
    if any(extra) and output_shape is None and isinstance(padding, str):
        raise ValueError(f"output_padding={output_padding!r}: not together with {padding=}")
    results, ends = _results(sizes, spans, strides, padding, extra, output_shape)
    check_axes(f"strides={strides}", results)
    if bias is not None:
        bias = as_factors("bias", bias)
        if bias.shape != (outputs * groups,):
            raise ValueError(f"bias: expected shape {(outputs * groups,)}, got {bias.shape}")
        if bias.dtype != x.dtype:
            raise TypeError(f"bias: expected {x.dtype} as x, got {bias.dtype}")

    # The gradient by its input of a convolution from the result to x.
    batch = x.shape[: x.ndim - n - 1]
    x = lowering.gathered(x, range(1, len(batch)))
    x = x.reshape((math.prod(batch), *x.shape[len(batch) :]))
    spatial = "XYZ"[:n]
    names = (f"N{spatial}C", f"{spatial}OI") if is_last else (f"NC{spatial}", f"OI{spatial}")
    layout = lax.conv_dimension_numbers(x.shape, kernel.shape, (*names, names[0]))
    conv = Convolution(
        results, window, strides, ends, spacing, layout, groups, as_precision(precision)
    )
    # Explicit shards that JAX's convolution does not take, nor what crops its result.
    kept = [1 if crop else size for size, crop in zip(results, conv.unreached)]
    x = lowering.gathered(x, conv.axes("y")[1:], kept)
    kernel = lowering.gathered(kernel, range(kernel.ndim))
    as_jax_does = on_known_mesh(x, kernel) or not all(isinstance(size, int) for size in results)
    run = functools.partial(plain, "u", conv) if as_jax_does else functools.partial(conv.bind, "u")
    y = (in_parts(run) if jnp.iscomplexobj(x) else run)(kernel, x)
    if bias is not None:
        y = y + bias.reshape((1,) * (n + 1) + (-1,) if is_last else (1, -1) + (1,) * n)
    return y.reshape((*batch, *y.shape[1:]))


def _results(
    sizes: Ints, spans: Ints, strides: Ints, padding: Any, extra: Ints, output_shape: Any
) -> tuple[Ints, Pairs]:
    """The spatial sizes of the result, and what the convolution from it to `x` pads."""
    n = len(sizes)
    expected = f"expected 'VALID', 'SAME', 'SAME_LOWER', an int, {n} ints or {n} pairs"
    wanted = as_sequence(output_shape)
    if wanted is not None:
        wanted = per_axis("output_shape", wanted, n, minimum=1)
    if isinstance(padding, str):
        rule = padding_rule(padding, expected)
        if wanted is None:
            beyond = [max(k - s, 0) if rule == "VALID" else 0 for k, s in zip(spans, strides)]
            wanted = tuple(m * s + more for m, s, more in zip(sizes, strides, beyond))
        pads = tuple(lax.padtype_to_pads(wanted, spans, strides, rule))
    else:
        pads = padding_pairs(as_sequence(padding), n, expected)
        if min(map(min, pads)) < 0:
            raise ValueError(f"padding={padding!r}: expected at least 0 at every end")
    least = [
        (size - 1) * s + k - low - high
        for size, s, k, (low, high) in zip(sizes, strides, spans, pads)
    ]
    results = wanted or tuple(size + e for size, e in zip(least, extra))
    if any(size < 1 for size in results):
        raise ValueError(f"padding={padding!r}: leaves nothing, spatial sizes {results}")
    ends = tuple(
        (low, high - (size - smallest)) for (low, high), size, smallest in zip(pads, results, least)
    )
    found = [
        (size + low + high - k) // s + 1
        for size, (low, high), k, s in zip(results, pads, spans, strides)
    ]
    if output_shape is not None and found != list(sizes):
        raise ValueError(
            f"output_shape={output_shape!r}: a convolution with padding={padding!r} maps it to"
            f" spatial sizes {tuple(found)}, but x has {tuple(sizes)}"
        )
    return results, ends
