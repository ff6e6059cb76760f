"""What a feature of an encoder sees, projected back to the image."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from jaxunpool.core.geometry import as_int
from jaxunpool.inverse import inverse
from jaxunpool.max import max_pool_with_indices, max_unpool
from jaxunpool.models.blocks import ConvBlock, Encoder
from jaxunpool.models.decoders import WINDOW


class DeconvNet(nnx.Module):
    """Projects one feature of an encoder back to the image: unpool, rectify, transposed filter.

    Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", 2014. Unlike a
    gradient, the projected signal is rectified by its own sign, not by the sign of the activation.
    A filter is a convolution and its normalisation with the running statistics; `jaxunpool.inverse`
    transposes it.

    Args:
        encoder: an `Encoder`, such as the `encoder` of a SegNet.

    Raises:
        TypeError: `encoder` is something else.

    Example:
        >>> from flax import nnx
        >>> encoder = jaxunpool.models.Encoder(3, ((4,), (8,)), rngs=nnx.Rngs(0))
        >>> image = jax.random.normal(jax.random.key(0), (1, 12, 14, 3))
        >>> jaxunpool.models.DeconvNet(encoder).project(image, stage=1, feature=5).shape
        (1, 12, 14, 3)
    """

    def __init__(self, encoder: Encoder):
        if not isinstance(encoder, Encoder):
            raise TypeError(f"encoder: expected an Encoder, got {type(encoder).__name__}")
        self.encoder = encoder

    def project(
        self, x: jax.Array, stage: int, feature: int, *, strongest: bool = True
    ) -> jax.Array:
        """The part of each image that one feature of one stage responds to.

        Args:
            x: images `[batch, height, width, channels]`.
            stage: which stage's pooled features, from 0.
            feature: which of its channels, from 0.
            strongest: keep only the strongest activation of each image, the first of equal ones;
                else all of them.

        Returns:
            An array like `x`, signed; zero in images where the feature is not active.

        Raises:
            TypeError: `stage` or `feature` is no int.
            ValueError: the encoder has no such stage, the stage no such feature, or the images do
                not fit the encoder.
        """
        x = self.encoder.check(x)
        stages = self.encoder.stages
        stage = _check_index("stage", stage, len(stages))
        x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)
        back: list[Callable[[jax.Array], jax.Array]] = []
        for blocks in stages[: stage + 1]:
            for block in blocks:
                back.append(functools.partial(_transposed, block, x))
                x = jax.nn.relu(block.filter(x))
            x, indices = max_pool_with_indices(x, WINDOW)
            back.append(functools.partial(max_unpool, indices=indices))
        feature = _check_index("feature", feature, x.shape[-1])
        y = jnp.where(jnp.arange(x.shape[-1]) == feature, x, 0)
        if strongest:
            first = jnp.argmax(y.reshape(len(y), -1), axis=1)
            y = jnp.where(_positions(y.shape[1:]) == first[:, None, None, None], y, 0)
        for step in reversed(back):
            y = step(y)
        return y


def _transposed(block: ConvBlock, x: jax.Array, y: jax.Array) -> jax.Array:
    """Rectify, then the transposed filter."""
    return inverse(block.filter, x)(jax.nn.relu(y))


def _positions(shape: tuple[int, ...]) -> jax.Array:
    return jnp.arange(math.prod(shape)).reshape(shape)


def _check_index(name: str, value: int, size: int) -> int:
    if not 0 <= (index := as_int(name, value)) < size:
        raise ValueError(f"{name}={value}: expected 0 to {size - 1}")
    return index
