"""Weights of PyTorch models."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from flax import nnx

from jaxunpool.core import state_dicts
from jaxunpool.core.geometry import check_choice
from jaxunpool.core.state_dicts import Layers
from jaxunpool.core.weights import (
    Entry,
    Layer,
    by_order,
    check_example,
    kernel_entry,
    layers_of,
    write,
)
from jaxunpool.models.blocks import ORDERS, ConvBlock, Encoder, EncoderDecoder, Order


def load_torch(
    model: EncoderDecoder | Encoder,
    weights: Mapping[str, Any] | str | os.PathLike[str],
    *,
    order: Order | None = None,
    transposed: bool | None = None,
    skip: str | Collection[str] = (),
    example: tuple[Any, Any] | None = None,
    tolerance: float = 1e-4,
) -> None:
    """Set the convolutions and normalisations of a model to those of a PyTorch `state_dict`.

    Layers are paired by their order, in which PyTorch lists them, and not by their names, which
    every implementation of SegNet chooses for itself. Make the model as that network is:
    `EncoderDecoder` and `SegNet` have `order`, `encoder_norm`, `decoder_norm`, `last_norm`,
    `last_relu` and `back` for the known kinds. Into `SegNet(...).encoder` goes torchvision's
    `vgg16_bn`, and with `encoder_norm=False` its `vgg16`.

    A `state_dict` does not say everything. Where it leaves open whether ReLU or the normalisation
    comes first, or whether a decoder has `Conv2d` or `ConvTranspose2d`, the call must say it, or
    check it by an `example`. (The numbers in an `nn.Sequential` tell where a ReLU is, and kernels
    that are not square in their channels tell what they belong to.) What else it does not say is
    taken to be as in the model: whether the decoder rectifies, the padding, `eps`. Only an
    `example` checks that.

    The kernels of `decoder="conv_transpose"`, which PyTorch's SegNet does not have, stay as they
    are. To load any other module, use `jaxunpool.interop.load_torch`.

    Args:
        model: a `SegNet` or another network of this package with an encoder and a decoder, or the
            encoder alone; abstract ones, of `nnx.eval_shape`, too.
        weights: arrays or tensors by name, in PyTorch's order and shapes, or the path of a `.npz`
            or `.safetensors` file. What a layer was made without, a convolution its bias or a
            normalisation both, is set to zeros and ones. Dense layers are left out for an encoder.
        order: what PyTorch's network does after a convolution: `"norm_relu"` or `"relu_norm"`. The
            model must have the same. None: take it from the names, or check an example.
        transposed: whether square kernels of the decoder are those of `ConvTranspose2d` (with
            stride 1), which are then swapped and flipped. None: as those that are not square.
        skip: what to leave out: names of layers, or their beginnings up to a dot.
        example: `(x, y)`: images, and what PyTorch makes of them in eval mode, channels last. For
            an encoder, `y` is the pooled features. The model must return `y` for `x`.
        tolerance: the largest difference from `y`, as a part of the largest magnitude in `y`.

    Raises:
        TypeError: `model` is something else, or `weights` is no mapping.
        ValueError: a layer does not fit; the message names the first, on both sides, and what it
            looks like. Or the weights leave something open, or the example differs. Then nothing is
            changed.

    Example:
        >>> from flax import nnx
        >>> model = jaxunpool.models.Encoder(1, [[2]], rngs=nnx.Rngs(0))
        >>> norm = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
        >>> weights = {"features.0.weight": np.ones((2, 1, 3, 3)), "features.0.bias": np.ones(2)}
        >>> weights |= {f"features.1.{name}": np.full(2, value) for name, value in norm.items()}
        >>> jaxunpool.models.load_torch(model, weights, order="norm_relu")
        >>> model.stages[0][0].conv.kernel.shape
        (3, 3, 1, 2)
    """
    if not isinstance(model, EncoderDecoder | Encoder):
        raise TypeError(f"model: expected an EncoderDecoder or Encoder, got {type(model).__name__}")
    if order is not None:
        check_choice("order", order, ORDERS)
    theirs = state_dicts.layers(state_dicts.read(weights, "weights"), skip, "weights")
    if isinstance(model, Encoder):
        if transposed:
            raise ValueError("transposed=True: expected a model with a decoder, got an Encoder")
        transposed = False
        theirs = {name: group for name, group in theirs.items() if not _is_dense(group)}
    theirs = state_dicts.in_order(theirs, "weights")
    layers = _layers(model)
    # Those that fit one way only, so that an error names the first that fits neither.
    by_order(_read(layers, theirs, transposed, False), theirs, "weights")

    squares = transposed if transposed is not None else _are_transposed(layers, theirs)
    found = order or _told_order(layers, theirs)
    if example is None:
        _check_told(model, found, squares)
    if _has_order(model) and found is not None and found != _encoder(model).order:
        raise ValueError(
            f"order: PyTorch's network has {found!r}, the model was made with"
            f" order={_encoder(model).order!r}"
        )
    values = by_order(_read(layers, theirs, transposed, bool(squares)), theirs, "weights")
    if example is not None:
        open_ = [f"order={_encoder(model).order!r}"] * (found is None)
        open_ += ["Conv2d in the decoder"] * (squares is None)
        hint = f"; assumed, as weights do not tell: {', '.join(open_)}" if open_ else ""
        check_example(model, values, example, tolerance, _result, hint)
    write(values)


def _encoder(model: EncoderDecoder | Encoder) -> Encoder:
    return model.encoder if isinstance(model, EncoderDecoder) else model


def _result(model: EncoderDecoder | Encoder, x: Any) -> Any:
    return model(x) if isinstance(model, EncoderDecoder) else model(x)[0]


def _is_dense(group: state_dicts.Arrays) -> bool:
    return "weight" in group and group["weight"].ndim == 2


# Attributes in the order in which they are applied.
_APPLIED = ("encoder", "stages", "conv", "norm", "last", "last_norm")


def _layers(model: EncoderDecoder | Encoder) -> list[Layer]:
    """Convolutions and normalisations in the order in which they are applied."""

    def place(layer: Layer) -> list[int]:
        return [int(part) if part.isdigit() else _APPLIED.index(part) for part in layer.path]

    return sorted((each for each in layers_of(model) if each.path[0] != "unpools"), key=place)


# What a state dict tells of the network that it comes from.


def _has_order(model: EncoderDecoder | Encoder) -> bool:
    """Whether any block rectifies and normalises."""
    blocks = (node for _, node in nnx.iter_modules(model) if isinstance(node, ConvBlock))
    return any(block.relu and block.norm is not None for block in blocks)


def _check_told(
    model: EncoderDecoder | Encoder, order: Order | None, transposed: bool | None
) -> None:
    """An error that names everything that the weights leave open."""
    open_ = []
    if order is None and _has_order(model):
        open_.append(
            "whether ReLU or the normalisation comes first (order='norm_relu' or 'relu_norm')"
        )
    if transposed is None:
        open_.append("whether the decoder has Conv2d or ConvTranspose2d (transposed=False or True)")
    if open_:
        raise ValueError(
            f"weights: they do not tell {', nor '.join(open_)}; pass that, or example=(x, y)"
        )


def _told_order(layers: Sequence[Layer], theirs: Layers) -> Order | None:
    """Whether a ReLU is behind the normalisation or before it, by numbers in an `nn.Sequential`.

    Of a convolution, its normalisation and the next convolution of the stage: 0, 1, 3 or 0, 2, 3.
    """
    found = set()
    named = list(zip(layers, theirs))
    for (conv, one), (norm, two), (following, three) in zip(named, named[1:], named[2:]):
        kinds = [each.path[-1] for each in (conv, norm, following)]
        if kinds != ["conv", "norm", "conv"] or conv.path[:-2] != following.path[:-2]:
            continue
        parts = [name.rpartition(".") for name in (one, two, three)]
        if len({parent for parent, _, _ in parts}) > 1 or not all(p[2].isdigit() for p in parts):
            return None
        found.add(tuple(int(b[2]) - int(a[2]) for a, b in itertools.pairwise(parts)))
    if found and all(first == 1 and second > 1 for first, second in found):
        return "norm_relu"
    return "relu_norm" if found == {(2, 1)} else None


def _kernels(layers: Sequence[Layer], theirs: Layers) -> Iterator[tuple[Layer, bool, bool]]:
    """Each convolution of a decoder, and whether its kernel fits a Conv2d and a ConvTranspose2d."""
    for layer, group in zip(layers, theirs.values()):
        if layer.path[0] in ("stages", "last") and isinstance(layer.module, nnx.Conv):
            shape = group["weight"].shape if "weight" in group else ()
            fits = layer.entries["weight"].shape, _as_transposed(layer).shape
            yield layer, shape == fits[0], shape == fits[1]


def _as_transposed(layer: Layer) -> Entry:
    """The kernel of a convolution from that of a ConvTranspose2d."""
    return kernel_entry(layer.entries["weight"].variable, swapped=False, turned=True)


def _are_transposed(layers: Sequence[Layer], theirs: Layers) -> bool | None:
    """Whether the decoder's square kernels are of ConvTranspose2d, as its others are."""
    kernels = list(_kernels(layers, theirs))
    if not any(one and other for _, one, other in kernels):
        return False
    others = {is_t for layer, is_c, is_t in kernels if is_c != is_t and layer.path[0] == "stages"}
    return others.pop() if len(others) == 1 else None


def _read(
    layers: Sequence[Layer], theirs: Layers, transposed: bool | None, squares: bool
) -> list[Layer]:
    """The layers, with kernels of ConvTranspose2d where these are what fits.

    Args:
        layers, theirs: in the same order.
        transposed: as the user has it; False allows none.
        squares: how to read kernels that fit both ways.
    """
    turned = {
        layer.path
        for layer, is_conv, is_transposed in _kernels(layers, theirs)
        if is_transposed and transposed is not False and (squares or not is_conv)
    }
    return [
        dataclasses.replace(layer, entries=layer.entries | {"weight": _as_transposed(layer)})
        if layer.path in turned
        else layer
        for layer in layers
    ]
