"""SegNet and SegNet-Basic."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from jaxunpool.core.backends import Implementation
from jaxunpool.models.blocks import EncoderDecoder, Order, Widths
from jaxunpool.models.decoders import Decoder, DType

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
VGG16_BACK = ((512, 512, 512), (512, 512, 256), (256, 256, 128), (128, 64), (64,))


class SegNet(EncoderDecoder):
    """SegNet: the 13 convolutions of VGG16, each with batch normalisation, and their mirror image.

    Badrinarayanan, Kendall and Cipolla, "SegNet: A Deep Convolutional Encoder-Decoder Architecture
    for Image Segmentation", 2017. The last of the 13 convolutions of the decoder is the classifier.
    `load_torch` reads the weights of a PyTorch SegNet, and into `model.encoder` those of
    torchvision's `vgg16_bn`. PyTorch's SegNets differ: the arguments from `back` to `last_relu` are
    for those that are not as in the paper.

    Args:
        in_features: channels of the images.
        classes: channels of the output, one logit per class.
        back: for each stage of the decoder the channels of its convolutions. With `(64, 64)` as the
            last stage, the classifier is one convolution more.
        order: whether `"norm_relu"` or `"relu_norm"` follows a convolution.
        encoder_norm: whether the encoder normalises. (That of torchvision's `vgg16` does not.)
        decoder_norm: whether the decoder normalises.
        last_norm: whether the logits are normalised.
        last_relu: whether the logits are rectified.
        decoder: one of `DECODERS`; `"indices"` is SegNet's own.
        pack_indices: keep indices in 2 bits each, as the paper counts them, instead of a byte; with
            `"indices"` alone. The results are the same.
        dtype: type to compute in; None: the type that images and weights are promoted to.
        param_dtype: type of the weights.
        implementation: of pooling and unpooling, as in `max_pool`; `"xla"` for forward mode.
        rngs: for the weights.

    Raises:
        ValueError: `order`, `decoder` or `implementation` is none of these, `decoder` has no
            indices to pack, or `back` has not five stages; or, when called, an image has fewer than
            32 rows or columns. Sizes need not be multiples of 32.

    Example:
        >>> from flax import nnx
        >>> segnet = nnx.eval_shape(lambda: jaxunpool.models.SegNet(3, 11, rngs=nnx.Rngs(0)))
        >>> x = jax.ShapeDtypeStruct((1, 45, 60, 3), jnp.float32)
        >>> nnx.eval_shape(lambda model, x: model(x), segnet, x).shape
        (1, 45, 60, 11)
    """

    def __init__(
        self,
        in_features: int,
        classes: int,
        *,
        back: Widths = VGG16_BACK,
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
        super().__init__(
            in_features,
            classes,
            VGG16,
            back,
            order=order,
            encoder_norm=encoder_norm,
            decoder_norm=decoder_norm,
            last_norm=last_norm,
            last_relu=last_relu,
            decoder=decoder,
            pack_indices=pack_indices,
            dtype=dtype,
            param_dtype=param_dtype,
            implementation=implementation,
            rngs=rngs,
        )


class SegNetBasic(EncoderDecoder):
    """SegNet-Basic: one convolution per stage, no ReLU in the decoder, a 1x1 classifier.

    The smaller network of the same paper, with its four stages of 64 features and kernels of 7x7
    by default. (The paper also normalises the local contrast of the images. Do that before, if you
    need it.)

    Args:
        in_features: channels of the images.
        classes: channels of the output, one logit per class.
        features: channels of all convolutions but the last.
        kernel_size: rows and columns of their kernels.
        stages: how many times to pool.
        decoder: one of `DECODERS`; `"indices"` is SegNet's own.
        pack_indices: keep indices in 2 bits each, as the paper counts them, instead of a byte; with
            `"indices"` alone. The results are the same.
        dtype: type to compute in; None: the type that images and weights are promoted to.
        param_dtype: type of the weights.
        implementation: of pooling and unpooling, as in `max_pool`; `"xla"` for forward mode.
        rngs: for the weights.

    Raises:
        ValueError: `decoder` or `implementation` is none of these, or `decoder` has no indices to
            pack; or, when called, an image has fewer than `2**stages` rows or columns.

    Example:
        >>> from flax import nnx
        >>> model = jaxunpool.models.SegNetBasic(3, 11, features=8, stages=2, rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((1, 21, 30, 3))).shape
        (1, 21, 30, 11)
    """

    def __init__(
        self,
        in_features: int,
        classes: int,
        *,
        features: int = 64,
        kernel_size: int = 7,
        stages: int = 4,
        decoder: Decoder = "indices",
        pack_indices: bool = False,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        implementation: Implementation = None,
        rngs: nnx.Rngs,
    ):
        widths = ((features,),) * stages
        super().__init__(
            in_features,
            classes,
            widths,
            widths,
            kernel_size=kernel_size,
            last_kernel_size=1,
            relu=False,
            decoder=decoder,
            pack_indices=pack_indices,
            dtype=dtype,
            param_dtype=param_dtype,
            implementation=implementation,
            rngs=rngs,
        )
