"""A convolutional auto-encoder."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx

from jaxunpool.core.backends import Implementation
from jaxunpool.models.blocks import EncoderDecoder
from jaxunpool.models.decoders import Decoder, DType


class AutoEncoder(EncoderDecoder):
    """A convolution and a 2x2 max pooling per stage, and a decoder that mirrors these.

    With `decoder="indices"`, this is the what-where auto-encoder of Zhao et al., 2015: the pooled
    features are the "what", the indices the "where".

    Args:
        in_features: channels of the images and of the result.
        widths: channels of each stage.
        decoder: one of `DECODERS`. All but `"indices"` and `"inverse"` have to restore the image
            from the pooled features alone.
        pack_indices: keep indices in 2 bits each instead of a byte; with `"indices"` alone.
        dtype: type to compute in; None: the type that images and weights are promoted to.
        param_dtype: type of the weights.
        implementation: of pooling and unpooling, as in `max_pool`; `"xla"` for forward mode.
        rngs: for the weights.

    Raises:
        ValueError: `decoder` or `implementation` is none of these, `decoder` has no indices to
            pack, or `widths` is empty; or, when called, an image has fewer than `2**len(widths)`
            rows or columns.

    Example:
        >>> from flax import nnx
        >>> model = jaxunpool.models.AutoEncoder(1, (8, 16), rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 29, 30, 1))).shape
        (2, 29, 30, 1)
        >>> code, indices = model.encoder(jnp.zeros((2, 29, 30, 1)))
        >>> code.shape
        (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        widths: Sequence[int] = (32, 64),
        *,
        decoder: Decoder = "indices",
        pack_indices: bool = False,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        implementation: Implementation = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            in_features,
            in_features,
            [(width,) for width in widths],
            [(width,) for width in (*widths[-2::-1], *widths[:1])],
            decoder=decoder,
            pack_indices=pack_indices,
            dtype=dtype,
            param_dtype=param_dtype,
            implementation=implementation,
            rngs=rngs,
        )
