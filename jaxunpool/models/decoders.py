"""Six kinds of upsampling for a decoder, each for a 2x2 max pooling of the encoder."""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from flax.linen.dtypes import promote_dtype

from jaxunpool.conv_transpose import conv_transpose
from jaxunpool.core.backends import Implementation, check_implementation
from jaxunpool.core.geometry import check_choice
from jaxunpool.fixed import bed_of_nails_unpool
from jaxunpool.indices import PackedIndices, PoolIndices
from jaxunpool.interpolate import interpolate
from jaxunpool.inverse import inverse
from jaxunpool.max import (
    max_pool,
    max_pool_with_indices,
    max_pool_with_packed_indices,
    max_unpool,
)
from jaxunpool.nearest import nearest_unpool

DType = jax.typing.DTypeLike
Decoder = Literal["indices", "inverse", "nearest", "bilinear", "bed_of_nails", "conv_transpose"]
DECODERS = get_args(Decoder)
WINDOW = (2, 2)


def pool(
    x: jax.Array,
    decoder: Decoder,
    *,
    pack_indices: bool = False,
    implementation: Implementation = None,
) -> tuple[jax.Array, Any]:
    """`x` pooled 2x2, and what the decoder needs.

    Args:
        x: `[..., height, width, channels]`.
        decoder: one of `DECODERS`.
        pack_indices: keep `PackedIndices`, for `"indices"` alone.
        implementation: as in `max_pool`.

    Returns:
        The pooled array, and for `"indices"` its `PoolIndices`, otherwise `x`. `"inverse"` reads
        `x`; the other decoders read only its shape.

    Raises:
        ValueError: `pack_indices` with a decoder that has none.

    Example:
        >>> y, indices = pool(jnp.arange(12.0).reshape(1, 3, 4, 1), "indices")
        >>> y[0, ..., 0]
        Array([[5., 7.]], dtype=float32)
    """
    if check_pack_indices(pack_indices, decoder):
        return max_pool_with_packed_indices(x, WINDOW, implementation=implementation)
    if decoder == "indices":
        return max_pool_with_indices(x, WINDOW, implementation=implementation)
    return max_pool(x, WINDOW, implementation=implementation), x


def check_pack_indices(pack_indices: bool, decoder: Decoder) -> bool:
    """A ValueError if there are none to pack."""
    if pack_indices and decoder != "indices":
        raise ValueError(f"pack_indices=True: the decoder {decoder!r} has no indices to pack")
    return pack_indices


def pooled_shape(kept: Any) -> tuple[int, ...]:
    """Rows and columns of what was pooled."""
    is_indices = isinstance(kept, PoolIndices | PackedIndices)
    return kept.geometry.input_shape if is_indices else kept.shape[-3:-1]


class Unpool(nnx.Module):
    """Upsampling to the exact size of the array before `pool`.

    `"indices"` is SegNet's max unpooling. `"inverse"` is Lasagne's `InverseLayer`, which gives the
    same result. `"nearest"` copies, and `"bilinear"` interpolates. `"bed_of_nails"` writes the
    upper left element of each window. `"conv_transpose"` has a trained 2x2 kernel, as in FCN.

    Args:
        decoder: one of `DECODERS`.
        features: channels of the result; for the weights of `"conv_transpose"`.
        dtype: type in which `"conv_transpose"` computes; None: the type that `y` and the weights
            are promoted to. The other decoders keep the type of `y`.
        param_dtype: type of the weights of `"conv_transpose"`.
        implementation: as in `max_unpool`.
        rngs: for the weights of `"conv_transpose"`.

    Raises:
        ValueError: `decoder` or `implementation` is none of these.

    Example:
        >>> from flax import nnx
        >>> y, kept = pool(jnp.arange(12.0).reshape(1, 3, 4, 1), "nearest")
        >>> Unpool("nearest", 1, rngs=nnx.Rngs(0))(y, kept)[0, ..., 0]
        Array([[5., 5., 7., 7.],
               [5., 5., 7., 7.],
               [0., 0., 0., 0.]], dtype=float32)
    """

    def __init__(
        self,
        decoder: Decoder,
        features: int,
        *,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        implementation: Implementation = None,
        rngs: nnx.Rngs,
    ):
        self.decoder = check_choice("decoder", decoder, DECODERS)
        self.dtype = dtype
        self.implementation = check_implementation(implementation)
        if decoder == "conv_transpose":
            shape = (*WINDOW, features, features)
            kernel = nnx.initializers.he_normal()(rngs.params(), shape, param_dtype)
            self.kernel = nnx.Param(kernel)
            self.bias = nnx.Param(jnp.zeros(features, param_dtype))

    def __call__(self, y: jax.Array, kept: Any) -> jax.Array:
        """`y` in the size of what was pooled; `kept` is the second of what `pool` gave.

        Decoders that need no more than the size take what was kept for any other.
        """
        how = self.implementation
        if self.decoder == "indices":
            return max_unpool(y, kept, implementation=how)
        if self.decoder == "inverse":
            return inverse(lambda x: max_pool(x, WINDOW, implementation=how), kept)(y)
        size = pooled_shape(kept)
        if self.decoder == "nearest":
            return nearest_unpool(y, WINDOW, output_shape=size, implementation=how)
        if self.decoder == "bilinear":
            return interpolate(y, size, mode="linear", implementation=how)
        if self.decoder == "bed_of_nails":
            return bed_of_nails_unpool(y, WINDOW, output_shape=size, implementation=how)
        odd = tuple(n % 2 for n in size)  # the last row or column that no window covered
        y, kernel, bias = promote_dtype(y, self.kernel[...], self.bias[...], dtype=self.dtype)
        return conv_transpose(y, kernel, bias, 2, output_padding=odd)
