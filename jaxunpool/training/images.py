"""Training on a user's own images.

Grain reads and crops batches in threads of its own, ahead of the training. What is in a batch
follows from the seed and the number of its step alone, as do the flips and colours that PIX changes
on the device; so a run that goes on from a checkpoint sees what it would have seen.
"""

from __future__ import annotations

import hashlib
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxunpool import models
from jaxunpool.apps.command import UsageError
from jaxunpool.training import loop
from jaxunpool.training.dataset import Dataset, Pair, fitted, parallel
from jaxunpool.training.options import ImagesConfiguration

AHEAD = grain.ReadOptions(num_threads=4, prefetch_buffer_size=16)

# At most, of each image on its own: brightness as a difference, contrast and saturation as
# factors, hue as a turn of the circle.
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.15, (0.75, 1.33), (0.75, 1.33), 0.03


class ImagesRun(loop.Run):
    """A configuration made ready to train on images.

    Args:
        configuration: what to train.
        devices: over which to shard each batch.
        data: what to train on; without it, there is a network to predict with, and no training.
        weights: PyTorch's, to start from; with `data` alone.
    """

    def __init__(
        self,
        configuration: ImagesConfiguration,
        devices: list[jax.Device] | None = None,
        data: Dataset | None = None,
        weights: dict[str, np.ndarray] | None = None,
    ):
        self.asked, self.data, self.weights = configuration, data, weights
        super().__init__(configuration, devices)
        self.class_names = tuple(configuration.classes)

    def network(self) -> loop.Network:
        """The network before the first step, with the weights that it starts from."""
        count, dtype = len(self.asked.classes), jnp.dtype(self.asked.precision)
        model = nnx.jit(lambda: loop.network(self.asked, count, dtype))()
        if self.weights is not None:
            assert isinstance(model, models.EncoderDecoder)
            load_weights(model, self.weights)
        return model

    def prepare(self) -> jax.Array | None:
        """The weights of the classes."""
        if self.data is None:
            return None
        if self.asked.balance == "median":
            return loop.median_frequency_weights(self.data.counts)
        return jnp.ones(self.data.counts.shape[1])

    def feed(self, step: int) -> Iterator[tuple[jax.Array, ...]]:
        """Batches of crops from this step on, read ahead; images and classes, both uint8."""
        assert self.data is not None
        data, asked = self.data, self.asked

        def read(pair: Pair, rng: Any) -> tuple[np.ndarray, np.ndarray]:
            image, classes = data.load(pair)
            if image.shape[:2] != classes.shape:
                raise UsageError(f"{pair.image}: has changed since training began")
            return fitted(image, classes, asked.size, asked.fit, rng)

        # A batch is cut into a part for each process; this one reads its own parts alone.
        parts, part = jax.process_count(), jax.process_index()
        batches = (
            grain.MapDataset.source(data.training)
            .seed(asked.seed)
            .shuffle()
            .repeat(-(-asked.steps * asked.batch // len(data.training)))
            .random_map(read)
            .batch(asked.batch // parts)
            .slice(slice(step * parts + part, asked.steps * parts, parts))
        )
        for batch in batches.to_iter_dataset(AHEAD):
            yield self.shards.feed(batch)

    def compose(self, key: jax.Array, *fed: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A shard of a batch as floats, flipped and coloured as chance has it."""
        import dm_pix as pix

        images, classes = fed

        def changed(
            key: jax.Array, image: jax.Array, classes: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            keys = jax.random.split(key, 5)
            image = image / jnp.float32(255)
            if "flip" in self.asked.augment:  # one key for both
                image = pix.random_flip_left_right(keys[0], image)
                classes = pix.random_flip_left_right(keys[0], classes[..., None])[..., 0]
            if "colour" in self.asked.augment:
                image = pix.random_hue(keys[1], image, HUE)
                image = pix.random_saturation(keys[2], image, *SATURATION)
                image = pix.random_contrast(keys[3], image, *CONTRAST)
                image = pix.random_brightness(keys[4], image, BRIGHTNESS)
            return jnp.clip(image, 0, 1), classes.astype(jnp.int32)

        keys = self.shards.rows(jax.random.split(key, self.asked.batch))
        return jax.vmap(changed)(keys, images, classes)

    @property
    def trained_on(self) -> str:
        """How many images the training sees, in words."""
        assert self.data is not None
        return _of_images(len(self.data.training), "training", self.asked.fit)

    @property
    def watched_on(self) -> str:
        """How many images the mIoU in the history is of, in words."""
        assert self.data is not None
        count = min(len(self.data.validation), loop.WATCHED)
        return _of_images(count, "validation", self.asked.fit)

    def watched(self) -> loop.Scenes:
        """The middle of each validation image, of the first `WATCHED`; of all, where resized."""
        assert self.data is not None
        data = self.data
        made = parallel(
            lambda pair: fitted(*data.load(pair), self.asked.size, self.asked.fit),
            data.validation[: loop.WATCHED],
        )
        images, classes = map(np.stack, zip(*made))
        return loop.Scenes(images / np.float32(255), classes)


def _of_images(count: int, kind: str, fit: str) -> str:
    """As "crops of 12 training images"."""
    crops = "crops of " if fit == "crop" else ""
    return f"{crops}{count} {kind} image{'s' * (count != 1)}"


def read_weights(path: pathlib.Path) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of a `.npz` or `.safetensors` file by name, and its SHA-256.

    Layers are matched by their order. A `.npz` keeps that of its `state_dict`; safetensors sorts
    names as text, so here they are sorted with their numbers as numbers, which is the order of
    torchvision's VGG16.
    """
    if path.suffix not in (".npz", ".safetensors"):
        raise UsageError(f"argument --weights: expected a .npz or .safetensors file, got {path}")
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if path.suffix == ".npz":
            with np.load(path) as file:
                return {name: file[name] for name in file.files}, digest
        from safetensors.numpy import load_file

        found = load_file(path)
        return {name: found[name] for name in sorted(found, key=_natural)}, digest
    except MemoryError:
        raise
    except Exception as error:  # zip, pickle, JSON: one for every kind of damage
        raise UsageError(f"argument --weights: {path}: cannot be read ({error})") from None


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key to sort names by, with their numbers as numbers."""
    return [(1, int(w), "") if w.isdigit() else (0, 0, w) for w in re.split(r"(\d+)", name)]


def load_weights(model: models.EncoderDecoder, weights: dict[str, np.ndarray]) -> None:
    """Those of a whole network, or of its encoder alone, which may lack normalisations.

    They are taken to be of `Conv2d`, each followed by its normalisation and then a ReLU.

    How torchvision scales images needs no copy here: the normalisation after the first convolution
    takes off any scale and shift of all channels.
    """
    kernels = [name for name, value in weights.items() if np.ndim(value) == 4]
    blocks = [block for stage in model.encoder.stages for block in stage]
    try:
        if len(kernels) > len(blocks):
            models.load_torch(model, weights, order="norm_relu", transposed=False)
            return
        if not any("running_mean" in name for name in weights):
            weights = _with_normalisations(weights)
        models.load_torch(model.encoder, weights, order="norm_relu")
    except ValueError as error:
        raise UsageError(f"argument --weights: {error}") from None


def _with_normalisations(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of plain VGG16, whose convolutions nothing follows: one that changes nothing."""
    found: dict[str, np.ndarray] = {}
    for name, value in weights.items():
        layer, _, entry = name.rpartition(".")
        if entry != "weight" or value.ndim != 4:
            continue
        found[name] = value
        found[f"{layer}.bias"] = weights.get(f"{layer}.bias", np.zeros(len(value)))
        norm = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
        found |= {f"{layer}.norm.{key}": np.full(len(value), n) for key, n in norm.items()}
    return found
