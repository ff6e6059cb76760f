"""An encoder that pools, a decoder that unpools, and the network of both."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from jaxunpool.conv import conv_general_dilated
from jaxunpool.core.geometry import as_array, check_choice
from jaxunpool.models.decoders import DECODERS, Decoder, Unpool, check_pack_indices, pool

Widths = Sequence[Sequence[int]]


class ConvBlock(nnx.Module):
    """Convolution, batch normalisation, ReLU.

    Args:
        in_features: channels of the input.
        out_features: channels of the output.
        kernel_size: rows and columns of the kernel.
        relu: whether to rectify.
        rngs: for the weights.

    Example:
        >>> from flax import nnx
        >>> block = jaxunpool.models.ConvBlock(3, 8, rngs=nnx.Rngs(0))
        >>> block(jnp.zeros((1, 5, 6, 3))).shape
        (1, 5, 6, 8)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int = 3,
        *,
        relu: bool = True,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            in_features,
            out_features,
            (kernel_size, kernel_size),
            kernel_init=nnx.initializers.he_normal(),
            conv_general_dilated=conv_general_dilated,
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(out_features, momentum=0.9, rngs=rngs)  # PyTorch's defaults
        self.relu = relu

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, height, width, in_features]` to the same size with `out_features`."""
        y = self.norm(self.conv(as_array("x", x)))
        return jax.nn.relu(y) if self.relu else y

    def filter(self, x: jax.Array) -> jax.Array:
        """What comes before the ReLU, with the running statistics: affine in `x`."""
        return self.norm(self.conv(x), use_running_average=True)


def _stages(
    in_features: int, widths: Widths, kernel_size: int, relu: bool, rngs: nnx.Rngs
) -> nnx.List:
    """Blocks in a list for each stage, every block with the channels of the one before."""
    stages: nnx.List[nnx.List[ConvBlock]] = nnx.List()
    for stage in widths:
        pairs = itertools.pairwise((in_features, *stage))
        blocks = (ConvBlock(i, o, kernel_size, relu=relu, rngs=rngs) for i, o in pairs)
        stages.append(nnx.List(blocks))
        in_features = stage[-1]
    return stages


class Encoder(nnx.Module):
    """Stages of convolutions, each followed by a 2x2 max pooling.

    Args:
        in_features: channels of the images.
        widths: for each stage the channels of its convolutions.
        kernel_size: of all convolutions.
        decoder: one of `DECODERS`; it determines what to keep.
        pack_indices: keep `PackedIndices`; for `"indices"` only.
        rngs: for the weights.

    Raises:
        ValueError: `decoder` is none of these or has no indices to pack, or a stage is missing or
            empty; or, when called, an image has fewer than `2**len(widths)` rows or columns.

    Example:
        >>> from flax import nnx
        >>> encoder = jaxunpool.models.Encoder(3, [[4, 4], [8]], rngs=nnx.Rngs(0))
        >>> y, indices = encoder(jnp.zeros((1, 13, 14, 3)))
        >>> y.shape, [each.shape for each in indices]
        ((1, 3, 3, 8), [(1, 6, 7, 4), (1, 3, 3, 8)])
    """

    def __init__(
        self,
        in_features: int,
        widths: Widths,
        kernel_size: int = 3,
        *,
        decoder: Decoder = "indices",
        pack_indices: bool = False,
        rngs: nnx.Rngs,
    ):
        if not len(widths) or not all(map(len, widths)):
            raise ValueError(f"widths={widths!r}: expected at least one stage, none of them empty")
        self.in_features = in_features
        self.decoder = check_choice("decoder", decoder, DECODERS)
        self.pack_indices = check_pack_indices(pack_indices, decoder)
        self.stages = _stages(in_features, widths, kernel_size, True, rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, list[Any]]:
        """The pooled features, and for each pooling what the decoder needs."""
        x = self.check(x)
        kept = []
        for blocks in self.stages:
            for block in blocks:
                x = block(x)
            x, keep = pool(x, self.decoder, pack_indices=self.pack_indices)
            kept.append(keep)
        return x, kept

    def check(self, x: jax.typing.ArrayLike) -> jax.Array:
        """`x` as an array; an error unless it holds images that are large enough."""
        x = as_array("x", x)
        smallest = 2 ** len(self.stages)
        is_image = x.ndim == 4 and x.shape[-1] == self.in_features
        if not is_image or any(size < smallest for size in x.shape[1:3]):
            raise ValueError(
                f"x: expected [batch, height, width, {self.in_features}] with at least {smallest}"
                f" rows and columns, got {list(x.shape)}"
            )
        return x


class EncoderDecoder(nnx.Module):
    """An encoder, its mirrored decoder and a last convolution. The output has the images' size.

    Args:
        in_features: channels of the images.
        out_features: channels of the output.
        widths: for each stage of the encoder the channels of its convolutions.
        back: for each stage of the decoder, the deepest first, the channels of its convolutions;
            the last of them are those of the encoder's stage that comes next.
        kernel_size: of all convolutions but the last.
        last_kernel_size: of the last convolution.
        relu: whether the decoder rectifies; the encoder always does.
        decoder: one of `DECODERS`.
        pack_indices: keep indices, and what the gradient of pooling reads, in 2 bits per window
            instead of a byte; with `"indices"` alone.
        rngs: for the weights.

    Raises:
        ValueError: `decoder` is none of these or has no indices to pack, or a stage is missing or
            empty; or, when called, an image has fewer than `2**len(widths)` rows or columns.

    Example:
        >>> from flax import nnx
        >>> widths, back = [[4, 4], [8]], [[8, 4], [4]]
        >>> model = jaxunpool.models.EncoderDecoder(3, 2, widths, back, rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((1, 13, 14, 3))).shape
        (1, 13, 14, 2)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        widths: Widths,
        back: Widths,
        *,
        kernel_size: int = 3,
        last_kernel_size: int = 3,
        relu: bool = True,
        decoder: Decoder = "indices",
        pack_indices: bool = False,
        rngs: nnx.Rngs,
    ):
        self.encoder = Encoder(
            in_features, widths, kernel_size, decoder=decoder, pack_indices=pack_indices, rngs=rngs
        )
        if len(back) != len(widths) or not all(map(len, back)):
            raise ValueError(f"back={back!r}: expected {len(widths)} stages, none of them empty")
        self.unpools = nnx.List(Unpool(decoder, stage[-1], rngs=rngs) for stage in widths[::-1])
        self.stages = _stages(widths[-1][-1], back, kernel_size, relu, rngs)
        size = (last_kernel_size, last_kernel_size)
        self.last = nnx.Conv(
            back[-1][-1],
            out_features,
            size,
            conv_general_dilated=conv_general_dilated,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, height, width, in_features]` to the same size with `out_features`."""
        x, kept = self.encoder(x)
        for blocks, unpool, keep in zip(self.stages, self.unpools, reversed(kept)):
            x = unpool(x, keep)
            for block in blocks:
                x = block(x)
        return self.last(x)
