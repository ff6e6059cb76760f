"""An encoder that pools, a decoder that unpools, and the network of both."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from jaxunpool.conv import conv_general_dilated
from jaxunpool.core.backends import Implementation, check_implementation
from jaxunpool.core.geometry import as_array, check_choice
from jaxunpool.models.decoders import (
    DECODERS,
    Decoder,
    DType,
    Unpool,
    check_pack_indices,
    pool,
)

Widths = Sequence[Sequence[int]]
Layer = Callable[[jax.Array], jax.Array]
Order = Literal["norm_relu", "relu_norm"]
ORDERS = get_args(Order)


class ConvBlock(nnx.Module):
    """Convolution, batch normalisation, ReLU.

    Args:
        in_features: channels of the input.
        out_features: channels of the output.
        kernel_size: rows and columns of the kernel.
        relu: whether to rectify.
        norm: whether to normalise.
        order: what comes first after the convolution, if there are both: the normalisation, or
            with `"relu_norm"` the ReLU.
        dtype: type to compute in; None: the type that images and weights are promoted to.
        param_dtype: type of the weights.
        rngs: for the weights.

    Raises:
        ValueError: `order` is none of these.

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
        norm: bool = True,
        order: Order = "norm_relu",
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            in_features,
            out_features,
            (kernel_size, kernel_size),
            kernel_init=nnx.initializers.he_normal(),
            conv_general_dilated=conv_general_dilated,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.norm = _batch_norm(out_features, dtype, param_dtype, rngs) if norm else None
        self.relu = relu
        self.order = check_choice("order", order, ORDERS)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, height, width, in_features]` to the same size with `out_features`."""
        x = as_array("x", x)
        for layer in self.layers():
            x = layer(x)
        return x

    def layers(self) -> list[Layer]:
        """What it consists of, in order."""
        return [self.conv, *_after(self.norm, self.relu, self.order)]


def _after(norm: nnx.BatchNorm | None, relu: bool, order: Order) -> list[Layer]:
    """What follows a convolution."""
    found: list[Layer] = [] if norm is None else [norm]
    found += [jax.nn.relu] if relu else []
    return found if order == "norm_relu" else found[::-1]


def _batch_norm(
    features: int, dtype: DType | None, param_dtype: DType, rngs: nnx.Rngs
) -> nnx.BatchNorm:
    """A normalisation with the momentum and the epsilon of PyTorch."""
    return nnx.BatchNorm(features, momentum=0.9, dtype=dtype, param_dtype=param_dtype, rngs=rngs)


def _stages(in_features: int, widths: Widths, block: Callable[[int, int], ConvBlock]) -> nnx.List:
    """Blocks in a list for each stage, every block with the channels of the one before."""
    stages: nnx.List[nnx.List[ConvBlock]] = nnx.List()
    for stage in widths:
        pairs = itertools.pairwise((in_features, *stage))
        stages.append(nnx.List(block(i, o) for i, o in pairs))
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
        norm: whether convolutions are normalised. (Those of torchvision's `vgg16` are not.)
        order: whether `"norm_relu"` or `"relu_norm"` follows a convolution.
        dtype: type to compute in; None: the type that images and weights are promoted to.
        param_dtype: type of the weights.
        implementation: of pooling and unpooling, as in `max_pool`; `"xla"` for forward mode.
        rngs: for the weights.

    Raises:
        ValueError: `decoder` or `implementation` is none of these, `decoder` has no indices to
            pack, or a stage is missing or empty; or, when called, an image has fewer than
            `2**len(widths)` rows or columns.

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
        norm: bool = True,
        order: Order = "norm_relu",
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        implementation: Implementation = None,
        rngs: nnx.Rngs,
    ):
        if not len(widths) or not all(map(len, widths)):
            raise ValueError(f"widths={widths!r}: expected at least one stage, none of them empty")
        self.in_features = in_features
        self.decoder = check_choice("decoder", decoder, DECODERS)
        self.pack_indices = check_pack_indices(pack_indices, decoder)
        self.implementation = check_implementation(implementation)
        self.order = check_choice("order", order, ORDERS)
        block = functools.partial(
            ConvBlock,
            kernel_size=kernel_size,
            norm=norm,
            order=order,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.stages = _stages(in_features, widths, block)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, list[Any]]:
        """The pooled features, and for each pooling what the decoder needs."""
        x = self.check(x)
        kept = []
        for blocks in self.stages:
            for block in blocks:
                x = block(x)
            x, keep = pool(
                x,
                self.decoder,
                pack_indices=self.pack_indices,
                implementation=self.implementation,
            )
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
        order: whether `"norm_relu"` or `"relu_norm"` follows a convolution.
        encoder_norm: whether the encoder normalises. (That of torchvision's `vgg16` does not.)
        decoder_norm: whether the decoder normalises.
        last_norm: whether the output is normalised.
        last_relu: whether the output is rectified.
        decoder: one of `DECODERS`.
        pack_indices: keep indices, and what the gradient of pooling reads, in 2 bits per window
            instead of a byte; with `"indices"` alone.
        dtype: type to compute in; None: the type that images and weights are promoted to.
        param_dtype: type of the weights.
        implementation: of pooling and unpooling, as in `max_pool`; `"xla"` for forward mode.
        rngs: for the weights.

    Raises:
        ValueError: `decoder` or `implementation` is none of these, `decoder` has no indices to
            pack, or a stage is missing or empty; or, when called, an image has fewer than
            `2**len(widths)` rows or columns.

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
        order: Order = "norm_relu",
        encoder_norm: bool = True,
        decoder_norm: bool = True,
        last_norm: bool = False,
        last_relu: bool = False,
        decoder: Decoder = "indices",
        pack_indices: bool = False,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        implementation: Implementation = None,
        rngs: nnx.Rngs,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.encoder = Encoder(
            in_features,
            widths,
            kernel_size,
            decoder=decoder,
            pack_indices=pack_indices,
            norm=encoder_norm,
            order=order,
            implementation=implementation,
            **types,
        )
        if len(back) != len(widths) or not all(map(len, back)):
            raise ValueError(f"back={back!r}: expected {len(widths)} stages, none of them empty")
        self.unpools = nnx.List(
            Unpool(decoder, stage[-1], implementation=implementation, **types)
            for stage in widths[::-1]
        )
        block = functools.partial(
            ConvBlock, kernel_size=kernel_size, relu=relu, norm=decoder_norm, order=order, **types
        )
        self.stages = _stages(widths[-1][-1], back, block)
        size = (last_kernel_size, last_kernel_size)
        self.last = nnx.Conv(
            back[-1][-1],
            out_features,
            size,
            conv_general_dilated=conv_general_dilated,
            **types,
        )
        self.last_norm = _batch_norm(out_features, dtype, param_dtype, rngs) if last_norm else None
        self.last_relu = last_relu
        self.order = order

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, height, width, in_features]` to the same size with `out_features`."""
        x, kept = self.encoder(x)
        for blocks, unpool, keep in zip(self.stages, self.unpools, reversed(kept)):
            x = unpool(x, keep)
            for block in blocks:
                x = block(x)
        x = self.last(x)
        for layer in _after(self.last_norm, self.last_relu, self.order):
            x = layer(x)
        return x
