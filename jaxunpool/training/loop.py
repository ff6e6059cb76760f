"""A run: its configuration, its state, and the compiled step from one state to the next.

The state holds all that a run is: weights, statistics, optimizer, and the history that figures are
drawn from. A step is a function of it alone, so a run that goes on from a saved state is the run
that was never stopped, bit for bit.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxunpool import models
from jaxunpool.models.decoders import DType
from jaxunpool.training import processes, scenes
from jaxunpool.training.metrics import IGNORED, confusion_matrix, mean_iou
from jaxunpool.training.options import Configuration
from jaxunpool.training.shards import Shards, local

RECORDS = 20  # points in the history of gradients and of mIoU
WATCHED = 64  # test scenes that the mIoU in this history is of
TESTED = 256  # test scenes that the final scores are of
COUNTED = 512  # training scenes that the frequencies of classes are counted in
AT_ONCE = 64  # scenes that are composed together for evaluation
PREDICTED_AT_ONCE = 16  # scenes in one call of the network; one process has them

Network = models.EncoderDecoder | models.ENet

# Gradients are counted by their power of ten, in fifths.
SMALLEST, LARGEST, BINS = -9.0, 1.0, 50

# Keys of `jax.random`, folded into the seed of a run.
COUNTING, TRAINING, TESTING = range(3)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "parameters", "statistics", "optimizer", "losses", "gradients", "miou"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class State:
    """A run after `step` steps.

    Attributes:
        step: how many were made.
        parameters: of the network.
        statistics: of its batch normalisation, and how often each dropout drew.
        optimizer: Adam's moments and count.
        losses: `[steps]`, of every step made; NaN for those to come.
        gradients: `[records, layers, bins]`, int32: how many gradients of a layer's kernel
            had which power of ten, at the first step of each record.
        miou: `[records]`, on test scenes after the last step of each record; NaN for those to
            come.
    """

    step: jax.Array
    parameters: Any
    statistics: Any
    optimizer: Any
    losses: jax.Array
    gradients: jax.Array
    miou: jax.Array


class Scenes(NamedTuple):
    """Images between 0 and 1, `[n, height, width, 3]`, and the classes of their pixels."""

    images: np.ndarray
    labels: np.ndarray


class Run:
    """A configuration made ready to train: data, network and compiled functions.

    `prepare`, `feed`, `compose` and `watched` are what is of scenes; for other data a subclass has
    others.

    Args:
        configuration: what to train.
        devices: over which to shard each batch; as many of them are used as divide it.
    """

    def __init__(self, configuration: Configuration, devices: list[jax.Device] | None = None):
        self.configuration = configuration
        self.class_names: tuple[str, ...] = scenes.CLASS_NAMES
        self.shards = Shards(configuration.batch, jax.devices() if devices is None else devices)
        model = self.network()
        parts: Any = nnx.split(model, nnx.Param, nnx.RngKey, ...)
        self.graph, self._parameters, self._keys, self._statistics = parts
        self.layers = tuple(kernels(self._parameters))
        self.parameter_count = sum(leaf.size for leaf in jax.tree.leaves(self._parameters))
        schedule = one_cycle(configuration.steps, configuration.learning_rate)
        self._adam = optax.adam(schedule)
        self.key = jax.random.key(configuration.seed)
        self.every = math.ceil(configuration.steps / RECORDS)
        self.records = math.ceil(configuration.steps / self.every)
        self.class_weights = self.prepare()
        self.step = jax.jit(self._step, out_shardings=self.shards.replicated)
        self._predict = jax.jit(self._predict_classes)
        self.probabilities = jax.jit(self._probabilities)

    def network(self) -> Network:
        """The network before the first step; all of it is compiled at once."""
        return nnx.jit(lambda: network(self.configuration))()

    def prepare(self) -> jax.Array | None:
        """Load the data; the weights of its classes in the loss."""
        self.source = scenes.load("train")
        counted = self._scenes(COUNTING, self.source, COUNTED).labels
        return median_frequency_weights(pixel_counts(counted, scenes.CLASSES))

    def feed(self, step: int) -> Iterator[tuple[jax.Array, ...]]:
        """What the steps from this one on take besides the state: nothing."""
        return itertools.repeat(())

    def compose(self, key: jax.Array, *fed: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A shard of a step's batch, in its program: images between 0 and 1, classes of pixels.

        Args:
            key: of this step.
            fed: the shard of what `feed` gave for it.
        """
        batch, size = self.configuration.batch, self.configuration.size
        chances = self.shards.rows(scenes.chances(key, batch, size))
        return scenes.drawn(chances, self.source, size)

    def watched(self) -> Scenes:
        """Scenes that the mIoU in a run's history is of."""
        return self.test_scenes(WATCHED)

    def start(self) -> State:
        """The state before the first step."""
        steps = self.configuration.steps
        state = State(
            step=jnp.zeros((), jnp.int32),
            parameters=self._parameters,
            statistics=self._statistics,
            optimizer=self._adam.init(self._parameters),
            losses=jnp.full(steps, jnp.nan, jnp.float32),
            gradients=jnp.zeros((self.records, len(self.layers), BINS), jnp.int32),
            miou=jnp.full(self.records, jnp.nan, jnp.float32),
        )
        return self.shards.replicate(state)

    def model(self, state: State) -> Network:
        """The network with this state's weights and statistics, to be evaluated."""
        model = nnx.merge(self.graph, state.parameters, self._keys, state.statistics, copy=True)
        model.eval()
        return model

    def predict(self, state: State, images: np.ndarray) -> np.ndarray:
        """The class of each pixel, `[n, height, width]`, int32.

        Every process predicts a share, on one device: so the result depends on the weights alone.
        """
        here = local(state)
        size = PREDICTED_AT_ONCE
        parts = [images[at : at + size] for at in range(0, len(images), size)]

        def predict(part: np.ndarray) -> np.ndarray:
            return np.asarray(self._predict(here, part))

        return np.concatenate(processes.shared_map(predict, parts))

    def record(self, state: State, watched: Scenes) -> State:
        """The state with the mIoU that it has on the watched scenes."""
        predicted = self.predict(state, watched.images)
        confusion = confusion_matrix(watched.labels, predicted, len(self.class_names))
        miou = mean_iou(confusion)
        at = (int(state.step) - 1) // self.every
        history = np.array(state.miou)
        history[at] = miou
        return dataclasses.replace(state, miou=self.shards.replicate(history))

    @property
    def trained_on(self) -> str:
        """How many images the training sees, in words; every batch has new scenes."""
        return f"{self.configuration.steps * self.configuration.batch:,} scenes"

    @property
    def watched_on(self) -> str:
        """How many images the mIoU in the history is of, in words."""
        return f"{WATCHED} test scenes"

    def is_recorded(self, step: int) -> bool:
        """Whether the mIoU after this step belongs to the history."""
        return step % self.every == 0 or step == self.configuration.steps

    def test_scenes(self, count: int = TESTED) -> Scenes:
        """Scenes of digits and of parts of photographs that training never sees."""
        return self._scenes(TESTING, scenes.load("test"), count)

    def logits(self, model: Network, images: jax.Array) -> jax.Array:
        """What the network makes of images between 0 and 1, in float32."""
        return model(images - 0.5).astype(jnp.float32)

    def _step(self, state: State, *fed: jax.Array) -> State:
        value, statistics, gradient = self.shards.run(self._differentiate)(state, *fed)
        updates, optimizer = self._adam.update(gradient, state.optimizer, state.parameters)
        at = state.step // self.every
        counts = jnp.stack([histogram(kernel) for kernel in kernels(gradient).values()])
        counts = jnp.where(state.step % self.every == 0, counts, state.gradients[at])
        return State(
            step=state.step + 1,
            parameters=optax.apply_updates(state.parameters, updates),
            statistics=statistics,
            optimizer=optimizer,
            losses=state.losses.at[state.step].set(value),
            gradients=state.gradients.at[at].set(counts),
            miou=state.miou,
        )

    def _differentiate(self, state: State, *fed: jax.Array) -> tuple[jax.Array, Any, Any]:
        """On a shard: the loss of the batch, its gradient, and the new statistics."""
        key = jax.random.fold_in(jax.random.fold_in(self.key, TRAINING), state.step)
        images, labels = self.compose(key, *fed)
        assert self.class_weights is not None
        weights = pixel_weights(labels, self.class_weights)
        weight = self.shards.total(jnp.sum(weights))

        def loss(parameters: Any) -> tuple[jax.Array, Any]:
            keys = self.shards.apart(self._keys)
            model = nnx.merge(self.graph, parameters, keys, state.statistics, copy=True)
            model.train()
            logits = self.logits(self.shards.synchronise(model), images)
            *_, statistics = cast(Any, nnx.split(model, nnx.Param, nnx.RngKey, ...))
            return weighted_cross_entropy(logits, labels, weights, weight), statistics

        (value, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(state.parameters)
        value, gradient = self.shards.total((value, gradient))
        return value, statistics, gradient

    def _predict_classes(self, state: State, images: jax.Array) -> jax.Array:
        return jnp.argmax(self.logits(self.model(state), images), -1).astype(jnp.int32)

    def _probabilities(self, state: State, image: jax.Array) -> jax.Array:
        """Of each class for each pixel, `[height, width, classes]`; the image is uint8."""
        batch = image[None] / jnp.float32(255)
        return jax.nn.softmax(self.logits(self.model(state), batch))[0]

    def _scenes(self, purpose: int, source: scenes.Source, count: int) -> Scenes:
        """The first scenes of a sequence that only the seed determines."""
        key = jax.random.fold_in(self.key, purpose)
        batches = [
            scenes.compose(
                jax.random.fold_in(key, batch), source, count=AT_ONCE, size=self.configuration.size
            )
            for batch in range(-(-count // AT_ONCE))
        ]
        return Scenes(*(np.concatenate(parts)[:count] for parts in zip(*batches)))


def network(
    asked: Configuration, classes: int = scenes.CLASSES, dtype: DType | None = None
) -> Network:
    """The network, its weights drawn from the seed."""
    options: dict[str, Any] = {"decoder": asked.decoder, "dtype": dtype}
    options["rngs"] = nnx.Rngs(asked.seed)
    if asked.network == "segnet":
        return models.SegNet(3, classes, **options)
    if asked.network == "enet":
        return models.ENet(3, classes, **options)
    options |= {name: getattr(asked, name) for name in ("features", "kernel_size", "stages")}
    return models.SegNetBasic(3, classes, **options)


def parameter_count(configuration: Configuration) -> int:
    """How many weights are learned."""
    model = nnx.eval_shape(lambda: network(configuration))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def index_bytes(configuration: Configuration) -> int:
    """The bytes per scene that the way back reads of the way down.

    Indices are one byte per pooled value; `"inverse"` reads all that was pooled, in float32; the
    others read no more than its shape.
    """
    if configuration.decoder not in ("indices", "inverse"):
        return 0
    model = nnx.eval_shape(lambda: network(configuration))
    image = jax.ShapeDtypeStruct((1, configuration.size, configuration.size, 3), jnp.float32)
    _, kept = nnx.eval_shape(lambda model, image: model.encoder(image), model, image)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def one_cycle(steps: int, highest: float) -> optax.Schedule:
    """Learning rates that rise from a tenth for the first sixth, then fall along a cosine."""
    rise = max(steps // 6, 1)
    return optax.warmup_cosine_decay_schedule(highest / 10, highest, rise, max(steps, rise + 1))


def cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """Pixelwise softmax cross-entropy, the mean weighted by the class of each pixel.

    Pixels that are `IGNORED` have weight 0; where all have, the loss is 0.
    """
    each = pixel_weights(labels, weights)
    return weighted_cross_entropy(logits, labels, each, jnp.sum(each))


def pixel_weights(labels: jax.Array, weights: jax.Array) -> jax.Array:
    """The weight of each pixel, that of its class; 0 of those that are `IGNORED`."""
    known = labels != IGNORED
    return jnp.where(known, weights[jnp.where(known, labels, 0)], 0)


def weighted_cross_entropy(
    logits: jax.Array, labels: jax.Array, weights: jax.Array, total: jax.Array
) -> jax.Array:
    """What these pixels add to a loss whose pixels weigh `total`, in all shards."""
    classes = jnp.where(labels != IGNORED, labels, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
    return jnp.sum(losses * weights) / jnp.where(total > 0, total, 1)


def pixel_counts(labels: np.ndarray, classes: int) -> np.ndarray:
    """How many pixels of each image, `[n, height, width]`, have each class: `[n, classes]`."""
    return np.stack([np.bincount(image.ravel(), minlength=classes) for image in labels])


def median_frequency_weights(counts: np.ndarray) -> jax.Array:
    """Median-frequency balancing: of each class, the median frequency over its own.

    Eigen and Fergus, "Predicting Depth, Surface Normals and Semantic Labels with a Common
    Multi-Scale Convolutional Architecture", 2015: the frequency of a class is the share of its
    pixels in the images that have any. A class that no image has gets weight 0, and pixels without
    a class are none.

    Args:
        counts: `[n, classes]`, pixels of each class in each image.

    Returns:
        `[classes]`, float32.
    """
    of_images = ((counts > 0) * counts.sum(1, keepdims=True)).sum(0)
    frequency = counts.sum(0) / np.maximum(of_images, 1)
    occurs = frequency > 0
    weights = np.divide(
        np.median(frequency[occurs]), frequency, out=np.zeros(len(occurs)), where=occurs
    )
    return jnp.asarray(weights, jnp.float32)


def kernels(parameters: Any) -> dict[str, jax.Array]:
    """The kernels among the parameters by the name of their layer, in the order they are used."""
    found = {path: value[...] for path, value in nnx.to_flat_state(parameters)}
    return {
        _layer_name(path): found[path] for path in sorted(found, key=_depth) if path[-1] == "kernel"
    }


def _depth(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """Where in the network a parameter is: encoder, then unpooling and decoder, then the last."""
    part = path[0]
    return part != "encoder", part == "last", _stage(path), part != "unpools"


def _stage(path: tuple[Any, ...]) -> int:
    return next((step for step in path if isinstance(step, int)), 0)


def _layer_name(path: tuple[Any, ...]) -> str:
    names = {"stages": "decoder", "unpools": "unpooling", "last": "classifier"}
    name = names.get(path[0], path[0])
    return name if path[0] == "last" else f"{name} {_stage(path) + 1}"


def histogram(values: jax.Array) -> jax.Array:
    """How many of the values have which power of ten, `[BINS]`, int32; what is beyond goes last."""
    at = (jnp.log10(jnp.abs(values.ravel())) - SMALLEST) * (BINS / (LARGEST - SMALLEST))
    return jnp.bincount(jnp.clip(at, 0, BINS - 1).astype(jnp.int32), length=BINS)
