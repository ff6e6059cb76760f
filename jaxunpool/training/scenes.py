"""Scenes to segment: real handwritten digits over crops of real photographs, both scikit-learn's.

Scenes are made on the device, inside the training step, from a key alone: the same key makes the
same batch on any number of devices, so a run that is resumed sees what it would have seen.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BACKGROUND = 10  # classes 0 to 9 are the digits
CLASSES = 11
CLASS_NAMES = (*map(str, range(10)), "background")

CELL = 24  # a scene has one place for a digit in every 24 x 24 pixels
OCCUPIED = 0.8  # how likely a place is to hold one
DIGIT_SIZE = (20.0, 28.0)  # height and width in pixels of the 8 x 8 digits, each on its own
WANDER = 3.0  # how far a digit is from the middle of its place, in pixels
PALEST, DARKEST = 0.25, 0.55  # ink of the enlarged digits that is clear, and that is opaque
INK = 0.5  # opacity from which a pixel belongs to the digit

Part = Literal["train", "test"]


class Source(NamedTuple):
    """What scenes are composed from.

    Attributes:
        digits: `[n, 10, 10]`, float32, ink between 0 and 1: 8 x 8 and a clear margin.
        labels: `[n]`, int32, which digit it is.
        photographs: `[m, height, width, 3]`, float32 between 0 and 1.
    """

    digits: jax.Array
    labels: jax.Array
    photographs: jax.Array


@functools.cache
def load(part: Part) -> Source:
    """scikit-learn's digits and photographs; the two parts share no digit and no pixel.

    Every fifth of the 1797 digits and the right quarter of both photographs are for testing.
    """
    from sklearn import datasets

    digits = datasets.load_digits()
    photographs = np.stack(datasets.load_sample_images().images)
    test = np.arange(len(digits.images)) % 5 == 4
    border = photographs.shape[2] * 3 // 4
    chosen = test if part == "test" else ~test
    columns = slice(border, None) if part == "test" else slice(border)
    ink = np.pad(digits.images[chosen] / 16, ((0, 0), (1, 1), (1, 1)))
    return Source(
        jnp.asarray(ink, jnp.float32),
        jnp.asarray(digits.target[chosen], jnp.int32),
        jnp.asarray(photographs[:, :, columns] / 255, jnp.float32),
    )


def largest() -> int:
    """The largest size of a scene: crops have to fit into what is for testing."""
    return min(load("test").photographs.shape[1:3])


@functools.partial(jax.jit, static_argnames=("count", "size"))
def compose(
    key: jax.Array, source: Source, *, count: int, size: int
) -> tuple[jax.Array, jax.Array]:
    """A batch of scenes.

    Args:
        key: of `jax.random`; scenes are a function of it.
        source: what to compose them from.
        count: number of scenes.
        size: their height and width in pixels, at least `CELL`.

    Returns:
        Images `[count, size, size, 3]`, float32 between 0 and 1, and the class of each pixel
        `[count, size, size]`, int32.
    """
    return jax.vmap(lambda key: _scene(key, source, size))(jax.random.split(key, count))


def _scene(key: jax.Array, source: Source, size: int) -> tuple[jax.Array, jax.Array]:
    crop_key, digits_key = jax.random.split(key)
    places = (size // CELL) ** 2
    image = _crop(crop_key, source.photographs, size)
    labels = jnp.full((size, size), BACKGROUND, jnp.int32)
    for place, key in enumerate(jax.random.split(digits_key, places)):
        image, labels = _add_digit(key, source, image, labels, place)
    return image, labels


def _crop(key: jax.Array, photographs: jax.Array, size: int) -> jax.Array:
    """A square of one photograph, mirrored or not."""
    which, top, left, mirror = jax.random.split(key, 4)
    count, height, width, channels = photographs.shape
    corner = (
        jax.random.randint(which, (), 0, count),
        jax.random.randint(top, (), 0, height - size + 1),
        jax.random.randint(left, (), 0, width - size + 1),
        0,
    )
    crop = jax.lax.dynamic_slice(photographs, corner, (1, size, size, channels))[0]
    return jnp.where(jax.random.bernoulli(mirror), crop, crop[:, ::-1])


def _add_digit(
    key: jax.Array, source: Source, image: jax.Array, labels: jax.Array, place: int
) -> tuple[jax.Array, jax.Array]:
    """Draw a digit into the given cell of the grid, or leave it empty."""
    which, occupied, extent, wander, colour = jax.random.split(key, 5)
    size = image.shape[0]
    chosen = jax.random.randint(which, (), 0, len(source.labels))
    across = size // CELL
    middle = (jnp.array(divmod(place, across)) + 0.5) * (size / across)
    middle += jax.random.uniform(wander, (2,), minval=-WANDER, maxval=WANDER)
    scale = jax.random.uniform(extent, (2,), minval=DIGIT_SIZE[0] / 8, maxval=DIGIT_SIZE[1] / 8)
    ink = jax.image.scale_and_translate(
        source.digits[chosen],
        (size, size),
        (0, 1),
        scale,
        middle - scale * (source.digits.shape[-1] / 2),
        "cubic",
        antialias=False,
    )
    ink = jnp.clip((ink - PALEST) / (DARKEST - PALEST), 0, 1)
    ink *= jax.random.bernoulli(occupied, OCCUPIED)
    opacity = ink[..., None]
    colour = _contrasting(colour, jnp.sum(image * opacity) / (3 * jnp.sum(opacity) + 1e-6))
    label = source.labels[chosen]
    return image + opacity * (colour - image), jnp.where(ink >= INK, label, labels)


def _contrasting(key: jax.Array, background: jax.Array) -> jax.Array:
    """A bright colour over what is dark, a dark one over what is bright."""
    shade = jax.random.uniform(key, (3,), maxval=0.4)
    return jnp.where(background > 0.5, shade, 1 - shade)
