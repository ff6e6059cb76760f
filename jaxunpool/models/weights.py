"""Weights of PyTorch models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxunpool.models.blocks import ConvBlock, Encoder, EncoderDecoder


def load_torch(model: EncoderDecoder | Encoder, weights: Mapping[str, Any]) -> None:
    """Set the convolutions and normalisations of a model to those of a PyTorch `state_dict`.

    Layers are matched by their order in the `state_dict`, not by their names: every implementation
    of SegNet has its own names. `SegNet` takes a PyTorch SegNet on VGG16 with batch normalisation.
    `SegNet(...).encoder` takes torchvision's `vgg16_bn`, without its classifier. If a layer does
    not fit, nothing is changed.

    A `state_dict` does not say everything: layers have to be `Conv2d` (not `ConvTranspose2d`, whose
    kernels are flipped) and `BatchNorm2d` with its default `eps`, declared in the order in
    which they are applied. The kernels of `decoder="conv_transpose"`, which PyTorch's SegNet does
    not have, stay as they are.

    Args:
        model: a `SegNet` or another network of this package with an encoder and a decoder, or the
            encoder alone; abstract ones, of `nnx.eval_shape`, too.
        weights: NumPy arrays by name, in PyTorch's order and shapes: `{name: tensor.numpy() for
            name, tensor in torch_model.state_dict().items()}`. What a layer was made without, a
            convolution its bias or a normalisation both, is set to zeros and ones.

    Raises:
        TypeError: `model` is something else, or `weights` is no mapping.
        ValueError: there are more or fewer layers than in the model, or one has another shape;
            the message names both.

    Example:
        >>> from flax import nnx
        >>> model = jaxunpool.models.Encoder(1, [[2]], rngs=nnx.Rngs(0))
        >>> norm = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
        >>> weights = {"features.0.weight": np.ones((2, 1, 3, 3)), "features.0.bias": np.ones(2)}
        >>> weights |= {f"features.1.{name}": np.full(2, value) for name, value in norm.items()}
        >>> jaxunpool.models.load_torch(model, weights)
        >>> model.stages[0][0].conv.kernel.shape
        (3, 3, 1, 2)
    """
    if not isinstance(model, EncoderDecoder | Encoder):
        raise TypeError(f"model: expected an EncoderDecoder or Encoder, got {type(model).__name__}")
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights: expected a mapping, got {type(weights).__name__}")
    layers, groups = _layers(model), _groups(weights)
    if len(layers) != len(groups):
        raise ValueError(
            f"weights: expected {len(layers)} convolutions and normalisations, got {len(groups)}:"
            f" {', '.join(groups) or 'none'}"
        )
    found = [_values(layer, *group) for layer, group in zip(layers, groups.items())]
    for variable, value in (pair for pairs in found for pair in pairs):
        variable.set_value(jnp.asarray(value, variable.dtype))


def _layers(model: EncoderDecoder | Encoder) -> list[nnx.Conv | nnx.BatchNorm]:
    """Convolutions and normalisations in the order in which they are applied."""
    if isinstance(model, EncoderDecoder):
        return [*_layers(model.encoder), *_layers_of(model.stages), model.last]
    return _layers_of(model.stages)


def _layers_of(stages: Iterable[Iterable[ConvBlock]]) -> list[nnx.Conv | nnx.BatchNorm]:
    return [layer for stage in stages for block in stage for layer in (block.conv, block.norm)]


def _groups(weights: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """The entries of each layer by their last name; dense layers and lone buffers are left out."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, value in weights.items():
        if isinstance(value, Mapping):
            raise ValueError(f"weights[{name!r}]: expected an array, got a mapping; pass that one?")
        layer, _, entry = str(name).rpartition(".")
        if layer:
            groups.setdefault(layer, {})[entry] = np.asarray(value)
    return {name: group for name, group in groups.items() if np.ndim(group.get("weight", 0)) != 2}


def _values(
    layer: nnx.Conv | nnx.BatchNorm, name: str, group: dict[str, np.ndarray]
) -> list[tuple[nnx.Variable, np.ndarray]]:
    """Each variable of a layer and its new value."""
    variables: dict[str, Any]
    if isinstance(layer, nnx.Conv):
        variables = {"weight": layer.kernel, "bias": layer.bias}
        group = {"bias": np.zeros(layer.out_features), **group}
        if np.ndim(group.get("weight", 0)) == 4:
            group["weight"] = group["weight"].transpose(2, 3, 1, 0)
    else:
        variables = {"weight": layer.scale, "bias": layer.bias}
        variables |= {"running_mean": layer.mean, "running_var": layer.var}
        features = layer.num_features
        group = {"weight": np.ones(features), "bias": np.zeros(features), **group}
    entries = {entry: (v, group.get(entry, np.empty(0))) for entry, v in variables.items()}
    for entry, (variable, value) in entries.items():
        if variable.shape != value.shape:
            raise ValueError(
                f"weights: {name}.{entry} does not fit: the model has {list(variable.shape)}"
                f" there, got {list(value.shape) if value.size else 'nothing'}"
                " (kernels as [height, width, in, out]; layers are matched by their order)"
            )
    return list(entries.values())
