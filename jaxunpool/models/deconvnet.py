"""What a feature of a network sees, projected back to the image."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxunpool.core.geometry import as_array, as_int
from jaxunpool.max import max_pool
from jaxunpool.models.blocks import ConvBlock, Encoder
from jaxunpool.models.decoders import WINDOW

Layer = Callable[[jax.Array], Any]


class DeconvNet(nnx.Module):
    """Projects one feature of one layer back to the image: unpool, rectify, transposed filter.

    Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", 2014. Unlike a
    gradient, the projected signal is rectified by its own sign, not by the sign of the activation.
    Every other layer is transposed: `jaxunpool.inverse` of a convolution is a transposed
    convolution, of a max pooling its unpooling with the positions of the maxima. Normalisations use
    their running statistics, and dropout is off.

    Args:
        layers: an `Encoder`, such as the `encoder` of a SegNet, whose stages are counted; or a list
            of layers. A layer is a module or function of one array: convolutions, poolings, dense
            layers, normalisations, a `ConvBlock`, `jax.nn.relu`. Of a result with indices, the
            first part is used. A list or an `nnx.Sequential` in the list counts as one layer. A
            ReLU inside of another function cannot be seen, and is transposed like any function.

    Raises:
        TypeError: `layers` is something else, or contains something that cannot be called.

    Example:
        >>> from flax import nnx
        >>> conv = nnx.Conv(3, 8, (5, 5), strides=2, rngs=nnx.Rngs(0))
        >>> pool = jaxunpool.nnx.MaxPool((3, 3), (2, 2))
        >>> image = jax.random.normal(jax.random.key(0), (1, 12, 14, 3))
        >>> deconvnet = jaxunpool.models.DeconvNet([conv, jax.nn.relu, pool])
        >>> deconvnet.project(image, 2, feature=5).shape
        (1, 12, 14, 3)
        >>> deconvnet.project(image, 0, feature=5, position=(2, 3)).shape
        (1, 12, 14, 3)
    """

    def __init__(self, layers: Encoder | Sequence[Any]):
        is_list = isinstance(layers, Sequence | nnx.List) and not isinstance(layers, str)
        if not is_list and not isinstance(layers, Encoder | nnx.Sequential):
            raise TypeError(
                f"layers: expected an Encoder or a list of layers, got {type(layers).__name__}"
            )
        self.layers = layers if isinstance(layers, Encoder) else _kept(_elements(layers))

    def project(
        self,
        x: Any,
        stage: int,
        feature: int,
        *,
        strongest: bool = True,
        position: Sequence[int] | None = None,
    ) -> jax.Array:
        """The part of each image that one feature of one layer responds to.

        Args:
            x: images `[batch, height, width, channels]`, or whatever the first layer takes.
            stage: which layer of the list, from 0; of an `Encoder`, which stage's pooled features.
            feature: which of its channels, from 0.
            strongest: keep only the largest value of each image, the first of equal ones; else all
                of them.
            position: keep the value at this row and column instead.

        Returns:
            An array like `x`, signed; zero in images where a rectified feature is not active.

        Raises:
            TypeError: `stage`, `feature` or an element of `position` is no int.
            ValueError: there is no such layer, feature or position, or the images do not fit the
                encoder.
        """
        layers: Any = self.layers
        is_encoder = isinstance(layers, Encoder)
        x = layers.check(x) if is_encoder else as_array("x", x)
        x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)
        stages = _stages(layers) if is_encoder else layers
        stage = _check_index("stage", stage, len(stages))
        back: list[Callable[[Any], Any]] = []
        for layer in itertools.chain.from_iterable(map(_simple, stages[: stage + 1])):
            if layer is jax.nn.relu:
                x = jax.nn.relu(x)
                back.append(lambda y: (jax.nn.relu(y),))
            else:
                x, transposed = jax.vjp(functools.partial(_array_of, layer), x)
                back.append(transposed)
        feature = _check_index("feature", feature, x.shape[-1])
        y = jnp.where(_chosen(x[..., feature], strongest, position)[..., None], x, 0)
        y = jnp.where(jnp.arange(x.shape[-1]) == feature, y, 0)
        for step in reversed(back):
            (y,) = step(y)
        return y


def _elements(layers: Any) -> list[Any]:
    return list(layers.layers if isinstance(layers, nnx.Sequential) else layers)


def _kept(layers: Any, name: str = "layers") -> nnx.List:
    """The same as a list that modules can hold; its lists too."""
    found: nnx.List[Any] = nnx.List()
    for i, layer in enumerate(layers):
        if isinstance(layer, list | tuple | nnx.List):
            found.append(_kept(layer, f"{name}[{i}]"))
        elif callable(layer):
            found.append(layer)
        else:
            raise TypeError(f"{name}[{i}]: expected a layer, got {type(layer).__name__}")
    return found


def _stages(encoder: Encoder) -> list[list[Layer]]:
    """The layers of each stage, the last of them its pooling."""
    pooling = functools.partial(
        max_pool, window_shape=WINDOW, implementation=encoder.implementation
    )
    return [[*blocks, pooling] for blocks in encoder.stages]


def _simple(layer: Any) -> Iterator[Layer]:
    """A layer as those that it consists of, in their evaluation mode."""
    if isinstance(layer, list | nnx.List | nnx.Sequential):
        yield from itertools.chain.from_iterable(map(_simple, _elements(layer)))
    elif isinstance(layer, ConvBlock):
        yield from itertools.chain.from_iterable(map(_simple, layer.layers()))
    elif isinstance(layer, nnx.Module):
        copy = nnx.clone(layer)
        copy.eval()
        yield copy
    else:
        yield layer


def _array_of(layer: Layer, x: jax.Array) -> jax.Array:
    """The result of a layer without the indices that may come with it."""
    y = layer(x)
    return y[0] if isinstance(y, tuple) else y


def _chosen(x: jax.Array, strongest: bool, position: Sequence[int] | None) -> jax.Array:
    """Which elements of one feature to project, `[batch, *spatial]`."""
    shape = x.shape[1:]
    if position is not None:
        if len(position) != len(shape):
            raise ValueError(f"position={position!r}: expected {len(shape)} ints")
        at = [_check_index(f"position[{i}]", p, n) for i, (p, n) in enumerate(zip(position, shape))]
        return jnp.zeros(shape, bool).at[*at].set(True)[None]
    if not strongest:
        return jnp.ones((1,) * x.ndim, bool)
    flat = x.reshape(len(x), -1)
    first = jnp.argmax(flat, axis=1, keepdims=True)
    return (jnp.arange(flat.shape[1]) == first).reshape(x.shape)


def _check_index(name: str, value: int, size: int) -> int:
    if not 0 <= (index := as_int(name, value)) < size:
        raise ValueError(f"{name}={value}: expected 0 to {size - 1}")
    return index
