"""Train a SegNet or ENet to find handwritten digits in photographs, or on your own images.

You can stop it at any time. Start it again with the same options, and it continues from its last
checkpoint and ends with the same weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jaxunpool.apps.command import (
    UsageError,
    exit_status,
    read_json,
    require_extra,
    show_table,
    write_json,
)
from jaxunpool.training import options

if TYPE_CHECKING:
    import numpy as np

    from jaxunpool.training.figures import Pictures
    from jaxunpool.training.loop import Run, Scenes, State
    from jaxunpool.training.session import Trained

DEFAULTS = options.Configuration()
METRICS = "metrics.json"
CHOICES = {
    "precision": (("float32", "bfloat16"), "type of the network's computations"),
    "fit": (("crop", "resize"), "how to bring images to --size: random crops, or resized images"),
    "balance": (("median", "none"), "weights of the classes: by median frequency, or equal"),
}
FOLDERS = {
    "images": "a folder of PNG, JPEG or TIFF files",
    "masks": "a folder with a mask of each image, of the same name",
    "palette": "a text file: red, green, blue and a name for each colour in masks",
    "weights": "PyTorch weights of VGG16 or of a SegNet: a .npz or .safetensors file",
}
OF_DIAGONAL = 0.0075  # what SegNet's boundary F1 forgives
FIGURES = ("predictions.png", "confusion.png", "gradients.png", "learning_curve.png")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 2 is the exit status of a request that cannot be met."""
    return exit_status(lambda: run(arguments))


def run(arguments: list[str] | None) -> int:
    """Parse and train, once it is known that there is all it takes."""
    asked = parse(arguments)
    require_extra("train", *options.PACKAGES, *(options.FOR_IMAGES if asked.images else ()))
    from jaxunpool.training import processes, session

    def joined() -> int:
        with processes.joined(asked):
            return train(asked)

    return session.interruptible(joined)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    from jaxunpool.models import DECODERS

    parser = options.parser("train", __doc__, DEFAULTS, options.IMAGES)
    parser.add_argument(
        "--decoder",
        choices=DECODERS,
        default=DEFAULTS.decoder,
        metavar="DECODER",
        help=f"how the decoder unpools: {', '.join(DECODERS)} (default {DEFAULTS.decoder})",
    )
    parser.add_argument(
        "--network",
        "--model",
        choices=options.NETWORKS,
        default=DEFAULTS.network,
        help="a small SegNet-Basic, SegNet with VGG16's encoder, or ENet"
        f" (default {DEFAULTS.network}); the last two have features, kernels and stages of their"
        " own",
    )
    images = parser.add_argument_group("your own images", "Sizes and meanings: docs/training.md.")
    defaults = options.IMAGES
    for name, text in FOLDERS.items():
        images.add_argument(f"--{name}", type=pathlib.Path, help=text)
    images.add_argument(
        "--classes",
        nargs="+",
        metavar="N | NAME",
        help="how many classes, or their names (default: those of the palette, or of the masks)",
    )
    images.add_argument(
        "--ignore",
        help="a value in masks, or a name in the palette, to ignore (default 255 or Void)",
    )
    images.add_argument(
        "--validation",
        metavar="SHARE | FILE",
        help="images to validate on: a share of them, or a file with their names (default 0.2)",
    )
    for name, (choices, text) in CHOICES.items():
        default = getattr(defaults, name)
        images.add_argument(f"--{name}", choices=choices, help=f"{text} (default {default})")
    images.add_argument(
        "--augment",
        nargs="+",
        choices=(*options.AUGMENTATIONS, "none"),
        metavar="CHANGE",
        help="random changes of the training images: flip, colour, or none (default: flip colour)",
    )
    options.add_distributed(parser)
    asked = parser.parse_args(arguments)
    options.check_distributed(asked)
    own = [action.dest for action in images._group_actions if action.dest != "images"]
    alone = [name for name in own if getattr(asked, name) is not None]
    if asked.images is None and alone:
        parser.error(f"argument --{alone[0]}: is for your own images: name them with --images")
    if asked.images is not None and asked.masks is None:
        parser.error("argument --images: name the folder of their masks too, with --masks")
    return asked


def train(asked: argparse.Namespace) -> int:
    """Train, or go on, and write down how good it is."""
    from rich.console import Console

    from jaxunpool.training import processes

    console = Console(highlight=False, soft_wrap=True, quiet=not processes.is_first())
    trained = fit(asked, console)
    path, configuration = trained.path, trained.run.configuration
    found = processes.by_first(lambda: complete(path, configuration))
    if found is None:
        found = evaluate(trained)
        console.print(f"{path}: wrote {', '.join((METRICS, *FIGURES))}")
    else:
        console.print(f"{path}: complete, {configuration.steps} steps")
    print_scores(console, found)
    return 0


def fit(asked: argparse.Namespace, console: Any) -> Trained:
    """Train, or go on; all processes do it together."""
    from jaxunpool.training import processes, session

    configuration, make = processes.together(lambda: prepare(asked, console))
    processes.check_same(configuration.about())
    count = processes.count()
    if configuration.batch % count:
        expected = f"a multiple of {count}, the number of processes"
        raise processes.SharedError(
            f"argument --batch: expected {expected}, got {configuration.batch}"
        )
    monitor = session.Monitor(console)
    with monitor.shown():
        task = monitor.add(configuration)
        return session.train(
            configuration, asked.output, asked.checkpoint_every, monitor, task, make
        )


def prepare(
    asked: argparse.Namespace, console: Any
) -> tuple[options.Configuration, Callable[[], Run] | None]:
    """The configuration that was asked for, and what makes its run if that is one on images."""
    make: Callable[[], Run] | None = None
    if asked.images is None:
        configuration = options.configuration(asked, asked.decoder, DEFAULTS, asked.network)
    else:
        configuration, make = of_images(asked, console)
    return configuration, make


def complete(path: pathlib.Path, configuration: options.Configuration) -> Any:
    """What the file of scores holds, if it is of this configuration and all figures are there."""
    found = read_json(path / METRICS)
    whole = is_of(found, configuration) and all((path / name).exists() for name in FIGURES)
    return found if whole else None


def of_images(
    asked: argparse.Namespace, console: Any
) -> tuple[options.Configuration, Callable[[], Run]]:
    """The configuration of a run on a user's images, and what makes it; all files were read."""
    from jaxunpool.training import dataset
    from jaxunpool.training.images import ImagesRun, read_weights

    chosen: dict[str, Any] = {name: getattr(asked, name) for name in CHOICES}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if asked.augment is not None:
        if "none" in asked.augment and len(asked.augment) > 1:
            raise UsageError(f"argument --augment: expected none alone, got {asked.augment}")
        chosen["augment"] = [name for name in options.AUGMENTATIONS if name in asked.augment]
    if asked.weights and asked.network == "enet":
        raise UsageError("argument --weights: is for basic and segnet, not for enet")
    configuration = options.configuration(
        asked, asked.decoder, dataclasses.replace(options.IMAGES, **chosen), asked.network
    )
    assert isinstance(configuration, options.ImagesConfiguration)
    weights, of_weights = read_weights(asked.weights) if asked.weights else (None, None)
    data = dataset.prepare(asked, configuration.seed)
    how = {"crop": "crops of", "resize": "each image resized to"}[configuration.fit]
    for line in (*data.notes, f"{how} {configuration.size} x {configuration.size} pixels"):
        console.print(f"{asked.images}: {line}")
    configuration = dataclasses.replace(
        configuration,
        weights=of_weights,
        data=data.digest,
        classes=data.classes.names,
        colours=data.classes.colours,
    )
    return configuration, functools.partial(ImagesRun, configuration, data=data, weights=weights)


def is_of(found: Any, configuration: options.Configuration) -> bool:
    """Whether what a file held are the scores of this configuration."""
    about = configuration.about()
    return isinstance(found, dict) and found.get("configuration") == about and "scores" in found


def evaluate(trained: Trained) -> dict[str, Any]:
    """Score a run on its test scenes; write the scores and the figures into its folder.

    All processes predict, process 0 writes.
    """
    from jaxunpool.training import figures, metrics, processes, segment

    run, state, path = trained.run, trained.state, trained.path
    legend = figures.DIGITS
    pictures: Pictures | Scenes
    drawn: Sequence[np.ndarray] | np.ndarray
    if isinstance(run.configuration, options.ImagesConfiguration):
        pictures, drawn, confusion, found = assess_images(run, state)
        legend = segment.legend(run, pictures.labels[0].shape)
    else:
        pictures, drawn, found = tested, predicted, _ = assess(run, state)
        confusion = metrics.confusion_matrix(tested.labels, predicted, len(legend.names))

    def write() -> None:
        figures.save(figures.predictions(pictures, drawn, legend), path / "predictions.png")
        figures.save(figures.confusion(confusion, legend.names), path / "confusion.png")
        figures.save(figures.gradients(state, run.layers, run.every), path / "gradients.png")
        curve = figures.learning_curve(state, run.every, run.trained_on, run.watched_on)
        figures.save(curve, path / "learning_curve.png")
        write_json(path / METRICS, found)

    processes.by_first(write)
    return found


def assess(run: Run, state: State) -> tuple[Scenes, np.ndarray, dict[str, Any]]:
    """The test scenes, what a run predicts for them, and how good that is."""
    from jaxunpool.training import loop, metrics
    from jaxunpool.training.scenes import CLASSES

    tested = run.test_scenes()
    predicted = run.predict(state, tested.images)
    found = {
        "configuration": run.configuration.about(),
        "parameters": loop.parameter_count(run.configuration),
        "index_bytes": loop.index_bytes(run.configuration),
        "scenes": len(tested.images),
        "boundary_tolerance_pixels": metrics.TOLERANCE,
        "scores": dataclasses.asdict(metrics.evaluate(tested.labels, predicted, CLASSES)),
    }
    return tested, predicted, found


def assess_images(
    run: Any, state: State
) -> tuple[Pictures, list[np.ndarray], np.ndarray, dict[str, Any]]:
    """The validation images to be drawn, what a run predicts for them, and how good it is on all.

    Whole images, one at a time: all of them at once may not fit. Every process has a share of them.
    """
    import numpy as np

    from jaxunpool.training import figures, metrics, processes, segment

    segmenter = segment.Segmenter(run, state)
    pairs, count = run.data.validation, len(run.class_names)

    def assessed(at: int) -> tuple[np.ndarray, float, tuple[np.ndarray, ...] | None]:
        image, truth = run.data.load(pairs[at])
        predicted, _ = segmenter(image)
        tolerance = max(metrics.TOLERANCE, OF_DIAGONAL * float(np.hypot(*truth.shape)))
        return (
            metrics.confusion_matrix(truth, predicted, count),
            metrics.boundary_f1([truth], [predicted], tolerance),
            (image, truth, predicted) if at < figures.SHOWN else None,
        )

    matrices, outlines, kept = zip(*processes.shared_map(assessed, range(len(pairs))))
    confusion = np.sum(matrices, 0)
    images, truths, drawn = zip(*kept[: figures.SHOWN])
    found = {
        "configuration": run.configuration.about(),
        "parameters": run.parameter_count,
        "images": len(outlines),
        "boundary_tolerance_of_diagonal": OF_DIAGONAL,
        "scores": dataclasses.asdict(metrics.scores(confusion, float(np.nanmean(outlines)))),
    }
    return figures.Pictures(images, truths), list(drawn), confusion, found


def print_scores(console: Any, found: dict[str, Any]) -> None:
    """The scores of a run, and of each class."""
    from jaxunpool.training.scenes import CLASS_NAMES

    scores = found["scores"]
    names_of_classes = found["configuration"].get("classes", CLASS_NAMES)
    of = (
        f"{found['images']} validation image{'s' * (found['images'] > 1)}"
        if "images" in found
        else f"{found['scenes']} test scenes"
    )
    columns = {
        "global accuracy": scores["global_accuracy"],
        "class accuracy": scores["class_accuracy"],
        "mIoU": scores["mean_iou"],
        "boundary F1": scores["boundary_f1"],
    }
    show_table(console, of, {name: [f"{score:.3f}"] for name, score in columns.items()})
    each = ", ".join(f"{name} {value:.2f}" for name, value in zip(names_of_classes, scores["iou"]))
    console.print(f"\nIoU of each class: {each}", soft_wrap=False)
