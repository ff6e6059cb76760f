"""Max pooling, with and without indices, packed or not, and max unpooling."""

from __future__ import annotations

from typing import Literal, get_args

import jax

from jaxunpool.core import primitives
from jaxunpool.core.arguments import Sizes, as_ordered, as_values, pooling_window, whole_plane
from jaxunpool.core.backends import Implementation, check_implementation
from jaxunpool.core.frozen import lax
from jaxunpool.core.geometry import (
    DATA_FORMATS,
    DataFormat,
    Padding,
    Plane,
    check_choice,
    check_known,
)
from jaxunpool.core.messages import public
from jaxunpool.indices import (
    PackedIndices,
    PoolIndices,
    as_indices,
    check_owner,
    leaf_of,
    plane_sizes,
)

Duplicates = Literal["last", "sum"]
DUPLICATES = get_args(Duplicates)


@public
def max_pool(
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
    """Maximum of each window.

    Equal to `torch.nn.functional.max_pool1d/2d/3d` and, without dilation, to `flax.linen.max_pool`,
    with a gradient that keeps one byte per window instead of `x`. The first of equal elements is
    selected. If a window contains NaN, the result is NaN. Padding is never selected. On CPU, XLA
    treats subnormal numbers as zero (except in float16), and so does this function.

    Args:
        x: floats, integers or booleans of shape `(*batch, *spatial, channels)`, with 1 to 3 spatial
            axes and any number of batch axes; for `"channels_first"` of shape
            `(*batch, channels, *spatial)`.
        window_shape: sizes of the window, one per spatial axis. An int is the size along each of
            `x.ndim - 2` spatial axes: pass a tuple if `x` has no batch axis.
        strides: distance between windows; the window by default.
        padding: `"VALID"`, `"SAME"` (TensorFlow's rule), `"SAME_LOWER"` (the same, with an odd
            element at the low end: ONNX's rule), an int, or per axis an int or a `(low, high)`
            pair.
        dilation: distance between neighbouring elements of a window.
        ceil_mode: the last window may extend beyond the end, as in PyTorch.
        data_format: `"channels_last"` or `"channels_first"`.
        implementation: None chooses. `"xla"` is plain JAX without the custom gradient, so forward
            mode works.

    Returns:
        An array of x's type, one element per window.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it. Raised at trace time.
        NotImplementedError: this implementation has no kernel for the call.

    Example:
        >>> max_pool(jnp.arange(16.0).reshape(4, 4, 1), (2, 2))[..., 0]
        Array([[ 5.,  7.],
               [13., 15.]], dtype=float32)
    """
    x = as_ordered("x", x)
    geometry = pooling_window(
        x, window_shape, strides, padding, dilation, ceil_mode, data_format, implementation
    )
    return primitives.maximum(x, geometry, implementation)


@public
def max_pool_with_indices(
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
    """Maximum of each window and its position.

    Equal to `torch.nn.functional.max_pool2d(..., return_indices=True)` (and 1d, 3d); `indices.flat`
    is PyTorch's index. Ties, NaN, padding and subnormal numbers are treated as in `max_pool`. If a
    window contains several NaN, the last is selected. (TensorFlow and ONNX Runtime skip NaN, or
    keep one that comes first.)

    Args:
        x, window_shape, strides, padding, dilation, ceil_mode, data_format, implementation:
            as in `max_pool`.

    Returns:
        The pooled array, and `PoolIndices` of the same shape: one byte per window.

    Raises:
        ValueError, TypeError, NotImplementedError: as in `max_pool`.

    Example:
        >>> y, indices = max_pool_with_indices(jnp.arange(16.0).reshape(4, 4, 1), (2, 2))
        >>> indices.offsets[..., 0]
        Array([[3, 3],
               [3, 3]], dtype=uint8)
    """
    x = as_ordered("x", x)
    geometry = pooling_window(
        x, window_shape, strides, padding, dilation, ceil_mode, data_format, implementation
    )
    y, offsets = primitives.select(x, geometry, implementation)
    return y, PoolIndices(offsets, geometry)


@public
def max_pool_with_packed_indices(
    x: jax.typing.ArrayLike,
    window_shape: Sizes,
    strides: Sizes | None = None,
    padding: Padding = "VALID",
    *,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    data_format: DataFormat = "channels_last",
    implementation: Implementation = None,
) -> tuple[jax.Array, PackedIndices]:
    """Maximum of each window and its position, in 2 or 4 bits.

    Equal to `max_pool_with_indices` followed by `PoolIndices.pack()`. But its gradient keeps only
    the packed bytes; the gradient of `max_pool_with_indices` keeps one byte per window. The
    gradient of `max_unpool` keeps packed indices packed too. Packing and unpacking take time.
    Forward mode works with every implementation.

    Args:
        x, window_shape, strides, padding, dilation, ceil_mode, data_format, implementation:
            as in `max_pool`; the window has at most 16 elements.

    Returns:
        The pooled array and its `PackedIndices`: 2 bits for a window of up to 4 elements, 4 bits
        for a larger one.

    Raises:
        ValueError: the window has more than 16 elements; or as in `max_pool`.
        TypeError, NotImplementedError: as in `max_pool`.

    Example:
        >>> y, indices = max_pool_with_packed_indices(jnp.ones((4, 4, 8)), (2, 2))
        >>> indices.nbytes, max_unpool(y, indices).shape
        (8, (4, 4, 8))
    """
    x = as_ordered("x", x)
    geometry = pooling_window(
        x, window_shape, strides, padding, dilation, ceil_mode, data_format, implementation
    )
    y, data, packing = primitives.select_packed(x, geometry, implementation)
    return y, PackedIndices(data, geometry, packing)


@public
def max_unpool(
    y: jax.typing.ArrayLike,
    indices: PoolIndices | PackedIndices | jax.typing.ArrayLike,
    *,
    output_shape: Sizes | None = None,
    duplicates: Duplicates = "last",
    data_format: DataFormat | None = None,
    implementation: Implementation = None,
) -> jax.Array:
    """Each element of `y` at the position that its index names, zeros elsewhere.

    With `PoolIndices`, the result has exactly the size of the array that was pooled. With raw
    integers, it equals `torch.nn.functional.max_unpool2d(..., output_size=output_shape)` (and 1d,
    3d). Only the gradient differs if indices repeat: PyTorch's also goes to overwritten elements.

    Args:
        y: numbers or booleans, the pooled array or one of its shape.
        indices: `PoolIndices`, packed or not, or integers of y's shape. Integers are flat positions
            in the output plane, as in PyTorch; those outside the plane are dropped (see
            `validate_indices`). The gradient keeps packed indices packed.
        output_shape: spatial sizes of the result, for raw integers. An int is the size along each
            of `y.ndim - 2` spatial axes.
        duplicates: what happens if indices repeat. `"last"`: the last value in raster order is
            kept, and only that one has a gradient. `"sum"`: all values are added (booleans by
            a logical or). This is the transpose of `pool_at`, and TensorFlow's `scatter_nd`. For
            raw indices XLA chooses the order of the additions, which can differ from run to run on
            GPU.
        data_format: for raw integers; `"channels_last"` by default. `PoolIndices` know theirs.
        implementation: as in `max_pool`.

    Returns:
        An array of y's type.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it. Raised at trace time.
        NotImplementedError: as in `max_pool`.

    Example:
        >>> y, indices = max_pool_with_indices(jnp.array([[1, 2], [3, 4]])[..., None], (2, 2))
        >>> max_unpool(y, indices)[..., 0]
        Array([[0, 0],
               [0, 4]], dtype=int32)
    """
    y = as_values("y", y)
    check_choice("duplicates", duplicates, DUPLICATES)
    check_implementation(implementation)
    if data_format is not None:
        check_choice("data_format", data_format, DATA_FORMATS)
    made_by = ""
    if isinstance(indices, PoolIndices | PackedIndices):
        check_owner(indices, output_shape, data_format)
        plane, shape, made_by = indices.geometry, indices.shape, f", made by {indices!r}"
        values, packing = leaf_of(indices)
    else:
        values, packing = as_indices("indices", indices), None
        sizes = plane_sizes("y", y.shape, output_shape)
        plane = Plane(input_shape=sizes, data_format=data_format or "channels_last")
        shape = values.shape
    if shape != y.shape:
        raise ValueError(f"indices: expected the shape of y, {y.shape}, got {shape}{made_by}")
    return primitives.scatter(y, values, plane, duplicates, implementation, packing)


@public
def max_unpool_like(
    pool_input: jax.typing.ArrayLike,
    unpool_input: jax.typing.ArrayLike,
    window_shape: Sizes,
    strides: Sizes | None = None,
    padding: Padding = "VALID",
    *,
    duplicates: Duplicates = "sum",
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    data_format: DataFormat = "channels_last",
    implementation: Implementation = None,
) -> jax.Array:
    """Unpool without saved indices: each value goes where `pool_input` has its window's maximum.

    Equal to a TensorFlow recipe that calls the gradient of max pooling on another array,
    `gen_nn_ops.max_pool_grad(pool_input, pool_output, unpool_input, ...)`, and registers a gradient
    by hand. Here the gradient goes to `unpool_input`; `pool_input` only gives the positions. There
    are two differences: if a window contains NaN, TensorFlow selects another element; and its
    `max_pool3d_grad` gives the value to all equal elements, not only to the first.

    Args:
        pool_input: the array that was pooled: floats, integers or booleans.
        unpool_input: what to unpool: numbers or booleans of the pooled array's shape.
        window_shape, strides, padding, dilation, ceil_mode, data_format, implementation:
            as in `max_pool`.
        duplicates: `"sum"`, as in the TensorFlow recipe, or `"last"`; see `max_unpool`.

    Returns:
        An array of pool_input's shape and unpool_input's type.

    Raises:
        ValueError, TypeError, NotImplementedError: as in `max_pool` and `max_unpool`.

    Example:
        >>> photo = jnp.array([[1, 2, 8, 3], [4, 3, 1, 2]])[..., None]
        >>> max_unpool_like(photo, jnp.array([[50, 60]])[..., None], (2, 2))[..., 0]
        Array([[ 0,  0, 60,  0],
               [50,  0,  0,  0]], dtype=int32)
    """
    pool_input = as_ordered("pool_input", pool_input)
    unpool_input = as_values("unpool_input", unpool_input)
    check_choice("duplicates", duplicates, DUPLICATES)
    geometry = pooling_window(
        pool_input,
        window_shape,
        strides,
        padding,
        dilation,
        ceil_mode,
        data_format,
        implementation,
        name="pool_input",
    )
    expected = geometry.pooled_shape(pool_input.shape)
    if unpool_input.shape != expected:
        raise ValueError(
            f"unpool_input: expected the shape {expected} of the pooled pool_input, got"
            f" {unpool_input.shape}"
        )
    _, offsets = primitives.select(lax.stop_gradient(pool_input), geometry, implementation)
    return primitives.scatter(unpool_input, offsets, geometry, duplicates, implementation)


@public
def max_pool_with_argmax_and_mask(
    x: jax.typing.ArrayLike,
    window_shape: Sizes,
    strides: Sizes | None = None,
    padding: Padding = "VALID",
    *,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    data_format: DataFormat = "channels_last",
    implementation: Implementation = None,
) -> tuple[jax.Array, PoolIndices, jax.Array]:
    """Maximum of each window, its position, and a mask of all selected elements.

    TensorFlow code for convolutional encoder-decoder networks, such as CEDN, uses this function.

    Args:
        x, window_shape, strides, padding, dilation, ceil_mode, data_format, implementation:
            as in `max_pool`.

    Returns:
        The pooled array, its `PoolIndices`, and a boolean array of x's shape: True for each element
        that at least one window selects.

    Raises:
        ValueError, TypeError, NotImplementedError: as in `max_pool`.

    Example:
        >>> x = jnp.array([[1, 2, 8, 3], [4, 3, 1, 2]])[..., None]
        >>> y, indices, mask = max_pool_with_argmax_and_mask(x, (2, 2))
        >>> mask[..., 0]
        Array([[False, False,  True, False],
               [ True, False, False, False]], dtype=bool)
    """
    x = as_ordered("x", x)
    geometry = pooling_window(
        x, window_shape, strides, padding, dilation, ceil_mode, data_format, implementation
    )
    y, offsets = primitives.select(x, geometry, implementation)
    mask = primitives.mark(offsets, geometry, implementation)
    return y, PoolIndices(offsets, geometry), mask


@public
def global_max_pool(
    x: jax.typing.ArrayLike,
    *,
    spatial_ndim: int | None = None,
    data_format: DataFormat = "channels_last",
    implementation: Implementation = None,
) -> jax.Array:
    """Maximum over all spatial axes: `max_pool` with the whole plane as its window.

    Args:
        x: floats, integers or booleans, as in `max_pool`.
        spatial_ndim: number of spatial axes; `x.ndim - 2` by default.
        data_format, implementation: as in `max_pool`.

    Returns:
        An array of x's type with spatial sizes 1.

    Raises:
        ValueError, TypeError, NotImplementedError: as in `max_pool`.

    Example:
        >>> global_max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))
        Array([[[[15.]]]], dtype=float32)
    """
    x = as_ordered("x", x)
    window = whole_plane(x, spatial_ndim, data_format).input_shape
    check_known("x", window)
    return max_pool(x, window, data_format=data_format, implementation=implementation)


@public
def global_max_pool_with_indices(
    x: jax.typing.ArrayLike,
    *,
    spatial_ndim: int | None = None,
    data_format: DataFormat = "channels_last",
    implementation: Implementation = None,
) -> tuple[jax.Array, PoolIndices]:
    """Maximum over all spatial axes and its position.

    Equal to `max_pool_with_indices` with the whole plane as its window.

    Args:
        x, spatial_ndim, data_format, implementation: as in `global_max_pool`.

    Returns:
        The pooled array and `PoolIndices`, both with spatial sizes 1.

    Raises:
        ValueError, TypeError, NotImplementedError: as in `max_pool`.

    Example:
        >>> global_max_pool_with_indices(jnp.arange(16.0).reshape(1, 4, 4, 1))[1].flat
        Array([[[[15]]]], dtype=int32)
    """
    x = as_ordered("x", x)
    window = whole_plane(x, spatial_ndim, data_format).input_shape
    check_known("x", window)
    return max_pool_with_indices(x, window, data_format=data_format, implementation=implementation)
