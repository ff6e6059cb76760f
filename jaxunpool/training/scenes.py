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

FOR_CROP, FOR_DIGIT = 4, 9  # random numbers that a crop takes, and each digit

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
    return drawn(chances(key, count, size), source, size)


def chances(key: jax.Array, count: int, size: int) -> jax.Array:
    """The random numbers that a batch takes, a row for each scene, all drawn at once."""
    return jax.random.uniform(key, (count, FOR_CROP + (size // CELL) ** 2 * FOR_DIGIT))


def drawn(chances: jax.Array, source: Source, size: int) -> tuple[jax.Array, jax.Array]:
    """The scenes that rows of `chances` decide on, as `compose` returns them."""
    return jax.vmap(lambda chance: _scene(chance, source, size))(chances)


def _scene(chance: jax.Array, source: Source, size: int) -> tuple[jax.Array, jax.Array]:
    """A scene that numbers between 0 and 1 decide on."""
    across = size // CELL
    for_crop, for_digits = jnp.split(chance, [FOR_CROP])
    places = jnp.stack(jnp.divmod(jnp.arange(across**2), across), -1)
    middles = (places + 0.5) * (size / across)

    def add(
        scene: tuple[jax.Array, jax.Array], digit: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        return _add_digit(source, *scene, *digit), None

    labels = jnp.full((size, size), BACKGROUND, jnp.int32)
    empty = _crop(for_crop, source.photographs, size), labels
    scene, _ = jax.lax.scan(add, empty, (for_digits.reshape(across**2, FOR_DIGIT), middles))
    return scene


def _crop(chance: jax.Array, photographs: jax.Array, size: int) -> jax.Array:
    """A square of one photograph, mirrored or not."""
    count, height, width, channels = photographs.shape
    choices = jnp.array([count, height - size + 1, width - size + 1])
    which, top, left = jnp.floor(chance[:3] * choices).astype(jnp.int32)
    crop = jax.lax.dynamic_slice(photographs, (which, top, left, 0), (1, size, size, channels))[0]
    return jnp.where(chance[3] < 0.5, crop, crop[:, ::-1])


def _add_digit(
    source: Source, image: jax.Array, labels: jax.Array, chance: jax.Array, middle: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Draw a digit near the given place, or none."""
    which, occupied, extent, wander, shade = jnp.split(chance, [1, 2, 4, 6])
    chosen = jnp.floor(which[0] * len(source.labels)).astype(jnp.int32)
    smallest, highest = DIGIT_SIZE
    scale = (smallest + (highest - smallest) * extent) / 8
    middle = middle + WANDER * (2 * wander - 1)
    ink = jax.image.scale_and_translate(
        source.digits[chosen],
        image.shape[:2],
        (0, 1),
        scale,
        middle - scale * (source.digits.shape[-1] / 2),
        "cubic",
        antialias=False,
    )
    ink = jnp.clip((ink - PALEST) / (DARKEST - PALEST), 0, 1) * (occupied < OCCUPIED)
    opacity = ink[..., None]
    beneath = jnp.sum(image * opacity) / (3 * jnp.sum(opacity) + 1e-6)
    colour = jnp.where(
        beneath > 0.5, 0.4 * shade, 1 - 0.4 * shade
    )  # stands out from the photograph
    image = image + opacity * (colour - image)
    return image, jnp.where(ink >= INK, source.labels[chosen], labels)
