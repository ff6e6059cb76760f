"""How the notebooks draw: pictures side by side, small arrays with their numbers, and colours.

Colours are told apart by colour-blind readers and on a grey printer: cividis for amounts, RdBu for
signs, and the palette of Okabe and Ito for kinds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import Colormap, ListedColormap

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, RED, YELLOW, BLACK = "#56B4E9", "#D55E00", "#F0E442", "#000000"
KINDS = (BLUE, ORANGE, GREEN, PINK, SKY, RED, YELLOW, BLACK)

STYLE: dict[str, Any] = {  # for `plt.rcParams`
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": plt.cycler(color=KINDS),
    "image.cmap": "cividis",
    "image.interpolation": "nearest",
    "legend.frameon": False,
}


def panels(
    pictures: Mapping[str, Any], rows: int = 1, width: float = 9.6, bar: str = "", **options: Any
) -> None:
    """Pictures side by side under their names; `bar` names a colour bar, for all of them."""
    arrays = [np.asarray(picture).squeeze() for picture in pictures.values()]
    columns = -(-len(arrays) // rows)
    height, across = arrays[0].shape[:2]
    tall = rows * (width / columns * height / across + 0.45)
    figure, axes = plt.subplots(rows, columns, figsize=(width, tall), squeeze=False)
    for place, name, array in zip(axes.flat, pictures, arrays):
        shown = place.imshow(array, **options)
        place.set(title=name, xticks=[], yticks=[])
        place.spines[:].set_visible(False)
    for place in axes.flat[len(arrays) :]:
        place.remove()
    if bar:
        figure.colorbar(shown, ax=figure.axes, label=bar, shrink=0.9, pad=0.01)
    plt.show()


def numbers(arrays: Mapping[str, Any], rows: int = 1, cell: float = 0.42, form: str = "g") -> None:
    """Small planes as squares with their numbers in them, zeros pale, one scale for all."""
    planes = [_plane(array) for array in arrays.values()]
    top = max(float(np.nanmax(plane)) for plane in planes) or 1.0
    columns = -(-len(planes) // rows)
    across = [max(plane.shape[1] for plane in planes[i::columns]) for i in range(columns)]
    down = [
        max(plane.shape[0] for plane in planes[i * columns : (i + 1) * columns])
        for i in range(rows)
    ]
    _, axes = plt.subplots(
        rows,
        columns,
        figsize=(cell * (sum(across) + 1.2 * columns), cell * sum(down) + 0.65 * rows),
        width_ratios=across,
        height_ratios=down,
        squeeze=False,
    )
    for place, name, plane in zip(axes.flat, arrays, planes):
        place.imshow(plane, cmap=_pale_zero(), vmin=0, vmax=1.1 * top)
        place.set(title=name, xticks=[], yticks=[], anchor="N")
        place.spines[:].set_visible(False)
        for (i, j), value in np.ndenumerate(plane):
            dark = 0 < value < 0.55 * top
            colour = "white" if dark else "#999999" if value == 0 else "black"
            place.text(j, i, format(value, form), ha="center", va="center", color=colour, size=9)
    for place in axes.flat[len(planes) :]:
        place.remove()
    plt.show()


def _plane(array: Any) -> np.ndarray:
    """The two spatial axes of an array with one channel."""
    array = np.asarray(array)
    return array if array.ndim == 2 else array[..., 0] if array.shape[-1] == 1 else array[0, 0]


def _pale_zero() -> Colormap:
    """Cividis, and nearly white at zero."""
    colours = plt.get_cmap("cividis")(np.linspace(0.15, 1, 256))
    colours[0] = (0.94, 0.94, 0.94, 1)
    return ListedColormap(colours)
