"""ENet."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxunpool.conv import conv_general_dilated
from jaxunpool.core.backends import Implementation, check_implementation
from jaxunpool.core.geometry import as_array, check_choice
from jaxunpool.max import max_pool
from jaxunpool.models.decoders import (
    DECODERS,
    Decoder,
    DType,
    Unpool,
    check_pack_indices,
    pool,
    pooled_shape,
)
from jaxunpool.nnx import ConvTranspose

FEATURES = (16, 64, 128)  # at a half, a fourth and an eighth of the image's size
REGULAR: dict[str, Any] = {}
ASYMMETRIC: dict[str, Any] = {"kernel_size": 5, "asymmetric": True}
FIRST = 4 * (REGULAR,)  # bottlenecks at a fourth of the size
SECTION = (  # and at an eighth, where this comes twice
    *(REGULAR, {"dilation": 2}, ASYMMETRIC, {"dilation": 4}),
    *(REGULAR, {"dilation": 8}, ASYMMETRIC, {"dilation": 16}),
)
INTERNAL = 4  # a bottleneck computes in this fraction of its channels
SMALLEST = 7  # rows or columns, of which one is left at an eighth of the size

Window = tuple[int, int]
Activation = Callable[[jax.Array], jax.Array]


class Layers:
    """Makes layers that have their types, random numbers and activation in common.

    Args:
        relu: whether the activation is ReLU; else it is PReLU, with one slope for all channels.
        dropout: rate of the dropout of whole channels.
        dtype, param_dtype, rngs: of all layers.
    """

    def __init__(
        self, relu: bool, dropout: float, dtype: DType | None, param_dtype: DType, rngs: nnx.Rngs
    ):
        self.relu, self.rate = relu, dropout
        self.types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.rngs = rngs

    def activation(self) -> Activation:
        """ReLU, or a PReLU of its own with PyTorch's slope."""
        return jax.nn.relu if self.relu else nnx.PReLU(0.25, **self.types)

    def dropout(self) -> nnx.Dropout:
        """Drops whole channels of an image."""
        return nnx.Dropout(self.rate, broadcast_dims=(1, 2), rngs=self.rngs)

    def norm(self, features: int) -> nnx.BatchNorm:
        """Batch normalisation with PyTorch's momentum."""
        return nnx.BatchNorm(features, momentum=0.9, rngs=self.rngs, **self.types)

    def conv(self, i: int, o: int, window: Window, **options: Any) -> nnx.Conv:
        """A convolution without bias."""
        return nnx.Conv(
            i,
            o,
            window,
            use_bias=False,
            kernel_init=nnx.initializers.he_normal(),
            conv_general_dilated=conv_general_dilated,
            rngs=self.rngs,
            **self.types,
            **options,
        )

    def conv_transpose(self, i: int, o: int, window: Window, **options: Any) -> ConvTranspose:
        """A transposed convolution without bias, which doubles the size."""
        return ConvTranspose(
            i,
            o,
            window,
            strides=2,
            use_bias=False,
            kernel_init=nnx.initializers.he_normal(),
            rngs=self.rngs,
            **self.types,
            **options,
        )

    def block(self, conv: Any, *, activation: bool = True) -> Normalised:
        """A convolution and its normalisation, with an activation unless it is told not to."""
        act = self.activation() if activation else None
        return Normalised(conv, self.norm(conv.out_features), act)


class Normalised(nnx.Module):
    """A convolution, its normalisation, and an activation unless it is None."""

    def __init__(self, conv: Any, norm: nnx.BatchNorm, activation: Activation | None):
        self.conv = conv
        self.norm = norm
        self.activation = activation

    def __call__(self, x: jax.Array, **options: Any) -> jax.Array:
        """Run them; `options` are the convolution's."""
        y = self.norm(self.conv(x, **options))
        return y if self.activation is None else self.activation(y)


class Initial(nnx.Module):
    """A convolution and a max pooling side by side, both of stride 2: their channels together."""

    def __init__(
        self, in_features: int, features: int, implementation: Implementation, layers: Layers
    ):
        filters = features - in_features
        self.conv = layers.conv(in_features, filters, (3, 3), strides=2, padding=1)
        self.norm = layers.norm(features)
        self.activation = layers.activation()
        self.implementation = implementation

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, height, width, in_features]` to half the size, rounded up."""
        y = self.conv(x)
        window: Any = ((3, 3), (2, 2), ((1, 1), (1, 1)))
        pooled = max_pool(x.astype(y.dtype), *window, implementation=self.implementation)
        return self.activation(self.norm(jnp.concatenate([y, pooled], -1)))


class Bottleneck(nnx.Module):
    """1x1 to fewer channels, a larger convolution, 1x1 back; added to the input.

    The larger convolution may be dilated, or asymmetric: a column of elements, then a row.
    """

    def __init__(
        self,
        features: int,
        layers: Layers,
        *,
        kernel_size: int = 3,
        dilation: int = 1,
        asymmetric: bool = False,
    ):
        inner, k = features // INTERNAL, kernel_size
        windows = [(k, 1), (1, k)] if asymmetric else [(k, k)]
        self.reduce = layers.block(layers.conv(features, inner, (1, 1)))
        self.convs = nnx.List(
            layers.block(layers.conv(inner, inner, window, kernel_dilation=dilation))
            for window in windows
        )
        self.expand = layers.block(layers.conv(inner, features, (1, 1)))
        self.dropout = layers.dropout()
        self.activation = layers.activation()

    def __call__(self, x: jax.Array) -> jax.Array:
        """Shape and channels stay."""
        y = self.reduce(x)
        for conv in self.convs:
            y = conv(y)
        return self.activation(x + self.dropout(self.expand(y)))


class Downsampling(nnx.Module):
    """A bottleneck to half the size: its input is pooled, and filled up with channels of zeros."""

    def __init__(
        self,
        in_features: int,
        features: int,
        pooling: Callable[[jax.Array], tuple[jax.Array, Any]],
        layers: Layers,
    ):
        inner = in_features // INTERNAL
        self.pooling = pooling
        self.more = features - in_features
        conv = layers.conv(in_features, inner, (2, 2), strides=2, padding="VALID")
        self.reduce = layers.block(conv)
        self.conv = layers.block(layers.conv(inner, inner, (3, 3)))
        self.expand = layers.block(layers.conv(inner, features, (1, 1)))
        self.dropout = layers.dropout()
        self.activation = layers.activation()

    def __call__(self, x: jax.Array) -> tuple[jax.Array, Any]:
        """The result, and what the way back needs."""
        pooled, kept = self.pooling(x)
        y = self.dropout(self.expand(self.conv(self.reduce(x))))
        pooled = jnp.pad(pooled, [(0, 0)] * 3 + [(0, self.more)])
        return self.activation(pooled + y), kept


class Upsampling(nnx.Module):
    """A bottleneck to twice the size: its input is unpooled, after a convolution to fewer channels.

    `inner` channels are those of the input over `INTERNAL`.
    """

    def __init__(self, in_features: int, features: int, unpool: Unpool, layers: Layers):
        inner = in_features // INTERNAL
        self.main = layers.block(layers.conv(in_features, features, (1, 1)), activation=False)
        self.unpool = unpool
        self.reduce = layers.block(layers.conv(in_features, inner, (1, 1)))
        self.conv = layers.block(layers.conv_transpose(inner, inner, (2, 2)))
        self.expand = layers.block(layers.conv(inner, features, (1, 1)), activation=False)
        self.dropout = layers.dropout()
        self.activation = layers.activation()

    def __call__(self, x: jax.Array, kept: Any) -> jax.Array:
        """To the exact size of what was pooled."""
        u = self.unpool(self.main(x), kept)
        y = self.conv(self.reduce(x), output_shape=pooled_shape(kept))
        return self.activation(u + self.dropout(self.expand(y)))


class ENetEncoder(nnx.Module):
    """The encoder of `ENet`: three stages, each of which halves the size."""

    def __init__(
        self,
        in_features: int,
        layers: Sequence[Layers],
        *,
        decoder: Decoder,
        pack_indices: bool,
        implementation: Implementation,
    ):
        self.in_features = in_features
        pooling = functools.partial(
            pool, decoder=decoder, pack_indices=pack_indices, implementation=implementation
        )
        half, fourth, eighth = FEATURES
        first, rest = layers
        stages: list[list[Any]] = [
            [Initial(in_features, half, implementation, first)],
            [
                Downsampling(half, fourth, pooling, first),
                *(Bottleneck(fourth, first, **settings) for settings in FIRST),
            ],
            [
                Downsampling(fourth, eighth, pooling, rest),
                *(Bottleneck(eighth, rest, **settings) for settings in 2 * SECTION),
            ],
        ]
        self.stages = nnx.List(map(nnx.List, stages))

    def __call__(self, x: jax.Array) -> tuple[jax.Array, list[Any]]:
        """The features, and for each pooling with a way back what the decoder needs."""
        x = self.check(x)
        kept = []
        for first, *blocks in self.stages:
            x = first(x)
            if isinstance(first, Downsampling):
                x, keep = x
                kept.append(keep)
            for block in blocks:
                x = block(x)
        return x, kept

    def check(self, x: jax.typing.ArrayLike) -> jax.Array:
        """`x` as an array; an error unless it holds images that are large enough."""
        x = as_array("x", x)
        if x.ndim != 4 or x.shape[-1] != self.in_features or min(x.shape[1:3]) < SMALLEST:
            raise ValueError(
                f"x: expected [batch, height, width, {self.in_features}] with at least {SMALLEST}"
                f" rows and columns, got {list(x.shape)}"
            )
        return x


class ENet(nnx.Module):
    """ENet: a small and fast network, which unpools with indices.

    Paszke, Chaurasia, Kim and Culurciello, "ENet: A Deep Neural Network Architecture for Real-Time
    Semantic Segmentation", 2016, with the choices that its public PyTorch implementations share:
    the first pooling is 3x3, convolutions have no bias, the encoder has PReLU with a slope for each
    layer, the decoder ReLU. With three colours it has 348,924 parameters and 144 for each class.

    Args:
        in_features: channels of the images, less than 16.
        classes: channels of the output, one logit per class.
        dropout: rates of the dropout of whole channels, in the first five bottlenecks and in the
            others. It draws from the stream `dropout`, in training mode.
        encoder_relu: ReLU in place of PReLU in the encoder.
        decoder_relu: likewise in the decoder.
        decoder: one of `DECODERS`; `"indices"` is ENet's own.
        pack_indices: keep indices in 2 bits each instead of a byte; with `"indices"` alone. The
            results are the same.
        dtype: type to compute in; None: the type that images and weights are promoted to.
        param_dtype: type of the weights.
        implementation: of pooling and unpooling, as in `max_pool`; `"xla"` for forward mode.
        rngs: for the weights and the dropout.

    Raises:
        ValueError: `in_features` is not 1 to 15, `decoder` or `implementation` is none of these, or
            `decoder` has no indices to pack; or, when called, an image has fewer than 7 rows or
            columns. Sizes need not be multiples of 8.

    Example:
        >>> from flax import nnx
        >>> run = lambda x: jaxunpool.models.ENet(3, 12, rngs=nnx.Rngs(0))(x)
        >>> jax.eval_shape(run, jax.ShapeDtypeStruct((1, 45, 60, 3), jnp.float32)).shape
        (1, 45, 60, 12)
    """

    def __init__(
        self,
        in_features: int,
        classes: int,
        *,
        dropout: tuple[float, float] = (0.01, 0.1),
        encoder_relu: bool = False,
        decoder_relu: bool = True,
        decoder: Decoder = "indices",
        pack_indices: bool = False,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        implementation: Implementation = None,
        rngs: nnx.Rngs,
    ):
        half, fourth, eighth = FEATURES
        if not 0 < in_features < half:
            raise ValueError(f"in_features={in_features}: expected 1 to {half - 1}")
        check_choice("decoder", decoder, DECODERS)
        check_implementation(implementation)
        low, high = dropout
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.encoder = ENetEncoder(
            in_features,
            [Layers(encoder_relu, rate, **types) for rate in (low, high)],
            decoder=decoder,
            pack_indices=check_pack_indices(pack_indices, decoder),
            implementation=implementation,
        )
        layers = Layers(decoder_relu, high, **types)

        def stage(i: int, o: int, count: int) -> nnx.List:
            unpool = Unpool(decoder, o, implementation=implementation, **types)
            bottlenecks = (Bottleneck(o, layers) for _ in range(count))
            return nnx.List([Upsampling(i, o, unpool, layers), *bottlenecks])

        self.stages = nnx.List([stage(eighth, fourth, 2), stage(fourth, half, 1)])
        self.last = layers.conv_transpose(half, classes, (3, 3), padding=1)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, height, width, in_features]` to the same size with `classes`."""
        size = jnp.shape(x)[1:3]
        x, kept = self.encoder(x)
        for (first, *blocks), keep in zip(self.stages, reversed(kept)):
            x = first(x, keep)
            for block in blocks:
                x = block(x)
        return self.last(x, output_shape=size)
