"""Which axes of an array lie in the sublanes and lanes of the vector registers.

A kernel sees five axes: three outer ones, then the *line* axis (sublanes) and the lanes. Windows
may slide along the first four; the lanes are independent of each other. XLA gives an array the
layout that pads its tiles of 8 x 128 least, and a kernel pins the layout of what it takes: so the
view is the order of axes that pads least, and bringing an array into it moves nothing.

| order   | a line is                         | for instance                        |
| ------- | --------------------------------- | ----------------------------------- |
| `NDHWC` | a row of one image                | 8 x 224 x 224 x 128, either format  |
| `DHWNC` | one position of a batch of images | 8 x 14 x 14 x 512, either format    |
| `DHWCN` | the same, the batch in the lanes  | 256 x 56 x 56 x 64                  |

Where channels are few, XLA keeps rows in the lanes (8 x 224 x 224 x 64). A kernel takes such an
array as it is, line and lanes swapped, and turns each line in VMEM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from jaxunpool.core.geometry import Axis, WindowGeometry

ORDERS = ("NDHWC", "DHWNC", "DHWCN")
SUBLANES, LANES = 8, 128
# A block holds whole lines. Orders whose lines are longer are chosen only if no other order fits.
LONGEST_LINE = 1024


class View(NamedTuple):
    """An order of axes for an array and a geometry.

    Attributes:
        geometry: the windows.
        shape: full shape of the unpooled array.
        order: one of `ORDERS`.
        axes: windows along the outer axes and the line axis; along a batch axis every element is
            a window.
        lanes: size of the last axis.
    """

    geometry: WindowGeometry
    shape: tuple[int, ...]
    order: str
    axes: tuple[Axis, ...]
    lanes: int

    @property
    def padded(self) -> float:
        """Size of the array in tiles, over its size."""
        line = self.axes[-1].size
        tiles = _tiles(self.lanes, line) if self.turned(line) else _tiles(line, self.lanes)
        return tiles / (line * self.lanes)

    def turned(self, line: int) -> bool:
        """Whether XLA keeps lines of this length in the lanes: a kernel transposes each one."""
        if self.order != "NDHWC" or self.lanes > LANES:
            return False
        return _tiles(self.lanes, line) < _tiles(line, self.lanes)

    def swap(self, size: int, line: Any, lanes: Any) -> tuple[Any, Any]:
        """What belongs to line and lanes, as in an array whose lines have a size."""
        return (lanes, line) if self.turned(size) else (line, lanes)

    def spatial(self, values: Sequence[Any]) -> list[Any]:
        """The values for the spatial axes, of one for each of `axes`."""
        found = dict(zip(self.order, values))
        return [found[name] for name in _names(self.geometry)]

    def bring(self, array: jax.Array) -> jax.Array:
        """A pooled or unpooled array in the order of the view."""
        given, sizes = _sizes(array.shape, self.geometry)
        array = array.reshape([sizes[name] for name in given])
        order = self._order(sizes)
        return array.transpose([given.index(name) for name in order])

    def restore(self, array: jax.Array, shape: Sequence[int]) -> jax.Array:
        """The inverse of `bring`, for an array of the given full shape."""
        given, sizes = _sizes(shape, self.geometry)
        order = self._order(sizes)
        return array.transpose([order.index(name) for name in given]).reshape(shape)

    def _order(self, sizes: dict[str, int]) -> str:
        line, lanes = self.order[3], self.order[4]
        return self.order[:3] + "".join(self.swap(sizes[line], line, lanes))


def _tiles(line: int, lanes: int) -> int:
    return round_up(line, SUBLANES) * round_up(lanes, LANES)


def round_up(size: int, unit: int) -> int:
    """The next multiple of a unit."""
    return -(-size // unit) * unit


def view(geometry: WindowGeometry, shape: Sequence[int]) -> View:
    """The view of an unpooled array of the given full shape that pads least."""
    given, sizes = _sizes(shape, geometry)
    axes = {name: Axis(sizes[name], sizes[name]) for name in given}
    axes |= zip(_names(geometry), geometry.in_cells.spatial)
    found = [
        View(geometry, tuple(shape), order, tuple(axes[n] for n in order[:-1]), sizes[order[-1]])
        for order in ORDERS
    ]
    return min(found, key=lambda view: (view.axes[-1].size > LONGEST_LINE, view.padded))


def _names(geometry: WindowGeometry) -> str:
    """Of the spatial axes."""
    return "DHW"[-geometry.ndim :]


def _sizes(shape: Sequence[int], geometry: WindowGeometry) -> tuple[str, dict[str, int]]:
    """Names of an array's axes and their sizes: leading ones are one, spatial ones are three."""
    n, last = geometry.ndim, geometry.data_format == "channels_last"
    spatial = [1] * (3 - n) + [shape[axis] for axis in geometry.axes]
    lead, channels = math.prod(shape[: -n - 1]), shape[-1 if last else -n - 1]
    sizes = dict(zip("NCDHW", [lead, channels, *spatial]))
    return "NDHWC" if last else "NCDHW", sizes
