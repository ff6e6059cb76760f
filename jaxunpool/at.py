"""Reading an array at indices: the transpose of max unpooling."""

from __future__ import annotations

import jax

from jaxunpool.core import primitives
from jaxunpool.core.arguments import as_values, whole_plane
from jaxunpool.core.backends import Implementation, check_implementation
from jaxunpool.core.geometry import DATA_FORMATS, DataFormat, as_int, check_choice
from jaxunpool.core.messages import public
from jaxunpool.indices import PackedIndices, PoolIndices, as_indices, check_owner, leaf_of


@public
def pool_at(
    x: jax.typing.ArrayLike,
    indices: PoolIndices | PackedIndices | jax.typing.ArrayLike,
    *,
    spatial_ndim: int | None = None,
    data_format: DataFormat | None = None,
    implementation: Implementation = None,
) -> jax.Array:
    """The element of `x` that each index names.

    It pools one array at the maxima of another: complex numbers at their largest magnitude,
    coordinates with the features that they belong to. With the indices of `x` itself, it returns
    the pooled `x`. An index that names no element reads zero.

    This is the transpose of `max_unpool(..., duplicates="sum")`. It equals PyTorch's
    `x.flatten(2).gather(2, flat.flatten(2))`, which raises an error where an index is out of range.

    Args:
        x: numbers or booleans of the shape of the array that was pooled.
        indices: `PoolIndices`, packed or not, or integers. Integers are flat positions in the plane
            of `x`, as in PyTorch. Their shape is that of `x`, with any spatial sizes. Those outside
            the plane read zero (see `validate_indices`). The gradient keeps packed indices packed.
        spatial_ndim: for raw integers, the number of spatial axes; `x.ndim - 2` by default.
        data_format: for raw integers; `"channels_last"` by default. `PoolIndices` know theirs.
        implementation: as in `max_pool`.

    Returns:
        An array of the shape of `indices` and of x's type.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it. Raised at trace time.
        NotImplementedError: as in `max_pool`.

    Example:
        >>> z = jnp.array([[1 + 1j, -3], [2j, 1]])[..., None]
        >>> _, indices = jaxunpool.max_pool_with_indices(jnp.abs(z), (2, 2))
        >>> pool_at(z, indices)[..., 0]
        Array([[-3.+0.j]], dtype=complex64)
    """
    x = as_values("x", x)
    check_implementation(implementation)
    if data_format is not None:
        check_choice("data_format", data_format, DATA_FORMATS)
    if isinstance(indices, PoolIndices | PackedIndices):
        check_owner(indices, data_format=data_format)
        plane, values, packing = indices.geometry, *leaf_of(indices)
        if spatial_ndim is not None and as_int("spatial_ndim", spatial_ndim) != plane.ndim:
            raise ValueError(
                f"spatial_ndim={spatial_ndim}: the PoolIndices were made for {plane.ndim}"
            )
        expected = plane.unpooled_shape(indices.shape)
        if x.shape != expected:
            raise ValueError(
                f"x: expected the shape {expected} that the indices are for, got {x.shape}:"
                f" {indices!r}"
            )
    else:
        plane = whole_plane(x, spatial_ndim, data_format or "channels_last")
        values, packing = as_indices("indices", indices), None
        sizes = plane.input_shape
        if values.ndim != x.ndim or plane.with_spatial(values.shape, sizes) != x.shape:
            raise ValueError(
                f"indices: expected the shape of x, {x.shape}, but for the {plane.ndim} spatial"
                f" sizes ({plane.data_format}), got {values.shape}"
            )
    return primitives.gather(x, values, plane, implementation, packing)
