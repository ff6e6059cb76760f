"""Images of any size through a trained network, in tiles where they are large.

A tile is cut where poolings are cut in the whole image too, and only that part of its result is
kept that sees nothing of the tile's border. So tiles give what the whole image would give.
"""

from __future__ import annotations

import math

import numpy as np
from flax import nnx

from jaxunpool import models
from jaxunpool.nnx import ConvTranspose
from jaxunpool.training import figures
from jaxunpool.training.dataset import Colour, resized
from jaxunpool.training.loop import Network, Run, State
from jaxunpool.training.options import ImagesConfiguration
from jaxunpool.training.shards import local

TILE = 1024  # rows and columns
# Images are enlarged to a multiple of this, so that a few sizes have few programs to compile.
MULTIPLE = 64


class Segmenter:
    """What a trained network says of an image.

    Args:
        run: of the network.
        state: with its weights.
        tile: rows and columns of the largest image that is taken as a whole.
    """

    def __init__(self, run: Run, state: State, tile: int = TILE):
        model = run.model(state)
        self.run, self.state = run, local(state)
        self.multiple = max(MULTIPLE, 2 ** len(model.encoder.stages))
        self.margin = _up(reach(model), self.multiple)
        self.tile = max(_up(tile, self.multiple), 2 * self.margin + self.multiple)
        asked = run.configuration
        self.fit = asked.fit if isinstance(asked, ImagesConfiguration) else "crop"

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The class of each pixel and how likely the network says it is.

        Args:
            image: `[height, width, 3]`, uint8, of any size.

        Returns:
            Classes, uint8, and probabilities, float32, both `[height, width]`.
        """
        height, width = image.shape[:2]
        if self.fit == "resize":
            size = self.run.configuration.size
            found = self._probabilities(resized(image, size, size, "BILINEAR"))
            return _most_likely(found, height, width)
        ends = [(0, _up(n, self.multiple) - n) for n in (height, width)]
        image = np.pad(image, [*ends, (0, 0)], mode="symmetric")
        classes = np.empty(image.shape[:2], np.uint8)
        confidence = np.empty(image.shape[:2], np.float32)
        for top, rows in self._cuts(image.shape[0]):
            for left, columns in self._cuts(image.shape[1]):
                tile = image[top : top + self.tile, left : left + self.tile]
                found = self._probabilities(tile)
                found = found[_less(rows, top), _less(columns, left)]
                classes[rows, columns] = found.argmax(-1)
                confidence[rows, columns] = found.max(-1)
        return classes[:height, :width], confidence[:height, :width]

    def _probabilities(self, image: np.ndarray) -> np.ndarray:
        return np.asarray(self.run.probabilities(self.state, image))

    def _cuts(self, length: int) -> list[tuple[int, slice]]:
        """Where the tiles along an axis begin, and which part of the image each of them fills."""
        if length <= self.tile:
            return [(0, slice(length))]
        step = self.tile - 2 * self.margin
        starts = [*range(0, length - self.tile, step), length - self.tile]
        ends = [start + self.tile - self.margin for start in starts[:-1]] + [length]
        return [(top, slice(a, b)) for top, a, b in zip(starts, [0, *ends], ends)]


def reach(model: Network) -> int:
    """How many pixels away the network sees, at most."""
    # ENet halves the size before the other convolutions of a stage, and its decoder after them.
    first = int(isinstance(model, models.ENet))
    deepest = len(model.encoder.stages) - 1 + first
    levels = [*enumerate(model.encoder.stages, first), *zip(range(deepest, -1, -1), model.stages)]
    # A window or its way back is two wide; to interpolate is to look one further.
    pixels = sum((_beside(blocks) + 2) * 2**level for level, blocks in levels)
    return pixels + _beside(model.last) * 2**first


def _beside(layers: nnx.Module) -> int:
    """How many elements away a sequence of convolutions sees, along the axis of most."""
    found = np.zeros(2, int)
    for _, layer in nnx.iter_modules(layers):
        if isinstance(layer, nnx.Conv | ConvTranspose):
            found += np.array(layer.kernel_size) // 2 * getattr(layer, "kernel_dilation", 1)
    return int(found.max())


def colours(run: Run) -> tuple[Colour, ...]:
    """Those of a run's classes, red, green and blue."""
    asked = run.configuration
    if isinstance(asked, ImagesConfiguration):
        return tuple((r, g, b) for r, g, b in asked.colours)
    return tuple((int(c[1:3], 16), int(c[3:5], 16), int(c[5:7], 16)) for c in figures.COLOURS)


def legend(run: Run, shape: tuple[int, ...]) -> figures.Legend:
    """How figures show a run's classes on images of such a size, which is `[height, width]`."""
    names = run.class_names
    shown = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in colours(run)]
    least = max(math.prod(shape) // 80, 30)
    marks = [str(number) for number in range(len(names))]
    return figures.Legend(names, shown, marks, least, True, "image", 2.4)


def _most_likely(
    probabilities: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest class in another size, class by class: all of them at once may not fit."""
    classes = np.zeros((height, width), np.uint8)
    confidence = np.full((height, width), -1, np.float32)
    for number in range(probabilities.shape[-1]):
        one = resized(np.ascontiguousarray(probabilities[..., number]), height, width, "BILINEAR")
        higher = one > confidence
        classes[higher], confidence[higher] = number, one[higher]
    return classes, confidence


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _less(part: slice, start: int) -> slice:
    return slice(part.start - start if part.start else 0, part.stop - start)
