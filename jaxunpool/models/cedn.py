"""A convolutional encoder-decoder network in miniature."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxunpool.conv import conv_general_dilated
from jaxunpool.core.backends import Implementation
from jaxunpool.core.geometry import as_array
from jaxunpool.models.decoders import Decoder, DType, Unpool, pool

KERNEL = (3, 3)


class CEDN(nnx.Module):
    """Two poolings, three convolutions down, two transposed ones up, dropout between them.

    The network that introduced `max_pool_with_argmax_and_mask` to TensorFlow's users, made for
    12x20x20x3 images: weights drawn from the standard normal distribution, no normalisation.

    Args:
        in_features: channels of the images.
        out_features: channels of the output, logits for a sigmoid.
        dropout: rate of the dropout after the first transposed convolution, in training mode.
        decoder: one of `DECODERS`.
        dtype: type to compute in; None: the type that images and weights are promoted to.
        param_dtype: type of the weights.
        implementation: of pooling and unpooling, as in `max_pool`; `"xla"` for forward mode.
        rngs: for the weights and, in training mode, the dropout (stream `dropout`).

    Raises:
        ValueError: `decoder` or `implementation` is none of these.

    Example:
        >>> from flax import nnx
        >>> model = jaxunpool.models.CEDN(rngs=nnx.Rngs(0))
        >>> model(jnp.ones((12, 20, 20, 3))).shape
        (12, 20, 20, 1)
    """

    def __init__(
        self,
        in_features: int = 3,
        out_features: int = 1,
        *,
        dropout: float = 0.5,
        decoder: Decoder = "indices",
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        implementation: Implementation = None,
        rngs: nnx.Rngs,
    ):
        normal = nnx.initializers.normal(1.0)
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        options: dict[str, Any] = {"kernel_init": normal, "bias_init": normal, **types}
        conv: Any = functools.partial(
            nnx.Conv, conv_general_dilated=conv_general_dilated, **options
        )
        self.conv1 = conv(in_features, 16, KERNEL)
        self.conv2 = conv(16, 32, KERNEL)
        self.conv3 = conv(32, 32, KERNEL)
        self.unpool2 = Unpool(decoder, 32, implementation=implementation, **types)
        self.deconv2 = nnx.ConvTranspose(32, 16, KERNEL, **options)
        self.unpool1 = Unpool(decoder, 16, implementation=implementation, **types)
        self.deconv1 = nnx.ConvTranspose(16, out_features, KERNEL, **options)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, height, width, in_features]` to the same size with `out_features`."""
        x = as_array("x", x)
        down = functools.partial(
            pool, decoder=self.unpool1.decoder, implementation=self.unpool1.implementation
        )
        x, first = down(jax.nn.relu(self.conv1(x)))
        x, second = down(jax.nn.relu(self.conv2(x)))
        x = self.unpool2(jax.nn.relu(self.conv3(x)), second)
        x = self.unpool1(self.dropout(jax.nn.relu(self.deconv2(x))), first)
        return self.deconv1(x)
