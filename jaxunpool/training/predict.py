"""Segment images with a network that `train` has trained.

It writes three PNG files for each image, of the image's size. NAME_mask.png holds the number of
each pixel's class and shows it in the colour of the class. NAME_overlay.png shows the image under
these colours. NAME_confidence.png holds the probability of each pixel's class: black is 0, white 1.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

from jaxunpool.apps.command import Parser, UsageError, count, exit_status, replacing, require_extra
from jaxunpool.training import options

OPACITY = 0.5  # of the colours over an image


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 2 is the exit status of a request that cannot be met."""
    return exit_status(lambda: run(arguments))


def run(arguments: list[str] | None) -> int:
    """Parse and predict, once it is known that there is all it takes."""
    asked = parse(arguments)
    require_extra("train", *options.PACKAGES, *options.FOR_IMAGES)
    return predict(asked)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="python -m jaxunpool predict", description=__doc__)
    parser.add_argument("run", type=pathlib.Path, metavar="RUN", help="the folder of the training")
    parser.add_argument(
        "images", type=pathlib.Path, nargs="+", metavar="IMAGE", help="a PNG, JPEG or TIFF file"
    )
    parser.add_argument(
        "--output", type=pathlib.Path, help="the folder to write to (default RUN/predictions)"
    )
    parser.add_argument(
        "--tile",
        type=count,
        default=1024,
        help="rows and columns of the largest part that is computed at once (default 1024)",
    )
    return parser.parse_args(arguments)


def predict(asked: argparse.Namespace) -> int:
    """Read all images, so that a broken one is found first; then write what is said of each."""
    from rich.console import Console

    from jaxunpool.training import segment, session
    from jaxunpool.training.dataset import parallel, read_image

    names: dict[str, pathlib.Path] = {}
    for path in asked.images:
        if names.setdefault(path.stem, path) != path:
            raise UsageError(f"{path}: {names[path.stem]} would have the same files")
    parallel(lambda path: read_image(path).shape, names.values())
    trained = session.restore(asked.run)
    console = Console(highlight=False, soft_wrap=True)
    output = asked.output or asked.run / "predictions"
    output.mkdir(parents=True, exist_ok=True)
    segmenter = segment.Segmenter(trained.run, trained.state, asked.tile)
    colours = segment.colours(trained.run)
    for name, path in names.items():
        image = read_image(path)
        classes, confidence = segmenter(image)
        for kind, picture in pictures(image, classes, confidence, colours).items():
            with replacing(output / f"{name}_{kind}.png") as unfinished:
                picture.save(unfinished, format="PNG")
        shares = class_shares(classes, trained.run.class_names)
        console.print(f"{output}/{name}_*.png: {shares}; mean confidence {confidence.mean():.2f}")
    return 0


def pictures(image: Any, classes: Any, confidence: Any, colours: Any) -> dict[str, Any]:
    """The files of an image by their kind."""
    import numpy as np
    from PIL import Image

    table = np.array(colours, np.uint8)
    mask = Image.fromarray(classes)
    mask.putpalette(table.ravel().tolist())
    overlay = (1 - OPACITY) * image + OPACITY * table[classes]
    return {
        "mask": mask,
        "overlay": Image.fromarray(overlay.round().astype(np.uint8)),
        "confidence": Image.fromarray((255 * confidence).round().astype(np.uint8)),
    }


def class_shares(classes: Any, names: Any) -> str:
    """The largest classes of an image and their shares of its pixels."""
    import numpy as np

    shares = np.bincount(classes.ravel(), minlength=len(names)) / classes.size
    largest = [at for at in np.argsort(-shares, kind="stable")[:4] if shares[at] > 0]
    return ", ".join(f"{names[at]} {shares[at]:.0%}" for at in largest)
