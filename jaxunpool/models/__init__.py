"""Encoder-decoder networks with pooling and unpooling, in Flax NNX.

Weights are float32. Types follow Flax's rule: images and weights are promoted to one type. To
compute in bfloat16, cast all state to bfloat16, the statistics included.
"""

from jaxunpool.core.listing import listing
from jaxunpool.models.auto_encoder import AutoEncoder
from jaxunpool.models.blocks import ConvBlock, Encoder, EncoderDecoder
from jaxunpool.models.cedn import CEDN
from jaxunpool.models.decoders import DECODERS, Unpool, pool
from jaxunpool.models.deconvnet import DeconvNet
from jaxunpool.models.segnet import SegNet, SegNetBasic
from jaxunpool.models.weights import load_torch

__all__ = [
    "CEDN",
    "DECODERS",
    "AutoEncoder",
    "ConvBlock",
    "DeconvNet",
    "Encoder",
    "EncoderDecoder",
    "SegNet",
    "SegNetBasic",
    "Unpool",
    "load_torch",
    "pool",
]
__dir__ = listing(globals())
