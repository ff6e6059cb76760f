"""Encoder-decoder networks with pooling and unpooling, in Flax NNX.

Types are those of Flax's layers. Weights are of type `param_dtype`, float32 by default. With
`dtype=None`, images and weights are promoted to one type. `dtype=jnp.bfloat16` computes in
bfloat16, and the statistics of the normalisation stay in float32.
"""

from jaxunpool.core.listing import listing
from jaxunpool.models.auto_encoder import AutoEncoder
from jaxunpool.models.blocks import ConvBlock, Encoder, EncoderDecoder
from jaxunpool.models.cedn import CEDN
from jaxunpool.models.decoders import DECODERS, Unpool, pool
from jaxunpool.models.deconvnet import DeconvNet
from jaxunpool.models.enet import ENet
from jaxunpool.models.segnet import SegNet, SegNetBasic
from jaxunpool.models.weights import load_torch

__all__ = [
    "CEDN",
    "DECODERS",
    "AutoEncoder",
    "ConvBlock",
    "DeconvNet",
    "ENet",
    "Encoder",
    "EncoderDecoder",
    "SegNet",
    "SegNetBasic",
    "Unpool",
    "load_torch",
    "pool",
]
__dir__ = listing(globals())
