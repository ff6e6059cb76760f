"""The pictures of the cookbook: `python docs/cookbook.py` writes docs/images/cookbook/*.png.

It runs the code of the page, on eight devices, and draws what the code has computed.
"""

from __future__ import annotations

import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import matplotlib
import numpy as np

matplotlib.use("agg")
from matplotlib import pyplot as plt

FOLDER = pathlib.Path(__file__).parent
PAGE = FOLDER / "recipes/cookbook.md"
WIDTH, DPI = 8.0, 130  # inches; as wide as a page shows them
BLUE, ORANGE = "#0072B2", "#D55E00"  # Okabe and Ito's

Names = Mapping[str, Any]


def computed() -> dict[str, Any]:
    """What the code of the page leaves behind."""
    names: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        exec(compile(code, PAGE.name, "exec"), names)
    return names


def panels(pictures: Mapping[str, Any], rows: int = 1) -> Sequence[Any]:
    """Images side by side under their names, each scaled to its own range unless in colour."""
    columns = -(-len(pictures) // rows)
    arrays = [np.asarray(picture).squeeze() for picture in pictures.values()]
    height, width = arrays[0].shape[:2]
    tall = rows * (WIDTH / columns * height / width + 0.3)
    figure, axes = plt.subplots(
        rows, columns, figsize=(WIDTH, tall), squeeze=False, layout="constrained"
    )
    for place, name, array in zip(axes.flat, pictures, arrays):
        if array.ndim == 3:
            array = np.clip(array, 0, 1)
        place.imshow(array, cmap="cividis", interpolation="nearest")
        place.set_title(name, fontsize=10)
        place.set(xticks=[], yticks=[])
        place.spines[:].set_visible(False)
    for place in axes.flat[len(arrays) :]:
        place.remove()
    del figure
    return list(axes.flat)


def block(names: Names) -> None:
    """The way of one feature through a SegNet block."""
    photo, model = names["photo"], names["block"]
    features = jax.nn.relu(model.down(photo))
    y, indices = model.paired.pool(features)
    u = model.paired.unpool(y, indices)
    strongest = int(np.argmax(np.asarray(features).std((0, 1, 2))))
    part = np.s_[0, 80:152, 96:192]
    half = np.s_[0, 40:76, 48:96, strongest]
    out = np.asarray(model(photo))[part]
    panels(
        {
            "photograph (part)": photo[part],
            "one feature": features[(*part, strongest)],
            "pooled": y[half],
            "unpooled": u[(*part, strongest)],
            "output, untrained": (out - out.min()) / np.ptp(out),
        }
    )


def inverse(names: Names) -> None:
    """Before and after training."""
    x, reconstruct = names["tile"], names["reconstruct"]
    axes = panels(
        {
            "part of the photograph": x,
            "before training": reconstruct(names["first"], x),
            "after 100 steps": reconstruct(names["kernel"], x),
            "loss": np.zeros(x.shape[1:3]),
        }
    )
    place = axes[-1]
    place.clear()
    place.set_aspect("auto")
    place.plot(names["losses"], color=BLUE)
    place.set_ylim(bottom=0)
    place.set_title("loss", fontsize=10)
    place.set_xlabel("step", fontsize=9)
    place.tick_params(labelsize=8)


def neuron(names: Names) -> None:
    """What four filters see."""
    inside = np.s_[8:-8, 8:-8]  # the border of the image is a strong line
    pictures = {"photograph": np.asarray(names["photo"])[0][inside]}
    for degrees, image in zip((0, 45, 90, 135), names["seen"]):
        image = np.asarray(image)[0].mean(-1)[inside]
        reach = np.quantile(np.abs(image), 0.995)
        image = 0.5 + np.clip(image / (2 * reach), -0.5, 0.5)  # grey is zero
        pictures[f"lines at {degrees}°"] = np.repeat(image[..., None], 3, -1)
    panels(pictures, rows=2)


def slices(names: Names) -> None:
    """Crops, and their unpooled halves swapped."""
    crops = {f"crop {n}": crop for n, crop in enumerate(names["crops"])}
    order = (2, 3, 0, 1)
    unpooled = {f"crop {n}, unpooled": u for n, u in zip(order, names["u"])}
    panels(crops | unpooled, rows=2)


def saving(names: Names) -> None:
    """The bytes of five forms."""
    sizes = {name: size / 1000 for name, size in names["sizes"].items()}
    _, place = plt.subplots(figsize=(WIDTH, 2.2), layout="constrained")
    colours = [ORANGE if "flat" in name else BLUE for name in sizes]
    bars = place.barh(list(sizes), list(sizes.values()), color=colours)
    place.bar_label(bars, fmt="%.0f kB", padding=4, fontsize=10)
    place.tick_params(labelsize=10)
    place.set_xlabel("kilobytes", fontsize=10)
    place.set_xlim(0, 1.15 * max(sizes.values()))
    place.invert_yaxis()
    place.spines[["top", "right"]].set_visible(False)


def mesh(names: Names) -> None:
    """Which device has which rows."""
    many = names["many"]
    (place,) = panels({"unpooled on eight devices, each with its own rows": many})
    height, width = many.shape[1:3]
    for device, part in many.sharding.devices_indices_map(many.shape).items():
        first, last = part[1].start or 0, part[1].stop or height
        place.axhline(first - 0.5, color="white", linewidth=1)
        box = {"facecolor": "white", "linewidth": 0, "boxstyle": "round,pad=0.25"}
        place.text(
            width - 8, (first + last) / 2, f"device {device.id}", ha="right", va="center", bbox=box
        )


PICTURES: Sequence[Callable[[Names], None]] = (block, inverse, neuron, slices, saving, mesh)


def draw(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Write every picture."""
    folder.mkdir(parents=True, exist_ok=True)
    names = computed()
    for picture in PICTURES:
        path = folder / f"{picture.__name__}.png"
        picture(names)
        plt.savefig(path, dpi=DPI, facecolor="white", metadata={"Software": None})
        plt.close()
        yield path


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    for written in draw(
        pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER / "images/cookbook"
    ):
        print(written)
