"""Train a small SegNet to find handwritten digits in photographs.

Killed at any moment and started again, it goes on from its last checkpoint and ends with the same
weights.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from jaxunpool.apps.command import exit_status, read_json, require_extra, write_json
from jaxunpool.training import options

if TYPE_CHECKING:
    import numpy as np

    from jaxunpool.training.loop import Run, Scenes, State
    from jaxunpool.training.session import Trained

DEFAULTS = options.Configuration()
METRICS = "metrics.json"
FIGURES = ("predictions.png", "confusion.png", "gradients.png", "learning_curve.png")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 2 is the exit status of a request that cannot be met."""
    return exit_status(lambda: run(arguments))


def run(arguments: list[str] | None) -> int:
    """Parse and train, once it is known that there is all it takes."""
    asked = parse(arguments)
    require_extra("train", *options.PACKAGES)
    from jaxunpool.training.session import interruptible

    return interruptible(lambda: train(asked))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    from jaxunpool.models import DECODERS

    parser = options.parser("train", __doc__, DEFAULTS)
    parser.add_argument(
        "--decoder",
        choices=DECODERS,
        default=DEFAULTS.decoder,
        help=f"how the decoder unpools (default {DEFAULTS.decoder})",
    )
    return parser.parse_args(arguments)


def train(asked: argparse.Namespace) -> int:
    """Train, or go on, and write down how good it is."""
    from rich.console import Console

    from jaxunpool.training import session

    configuration = options.configuration(asked, asked.decoder)
    console = Console(highlight=False, soft_wrap=True)
    monitor = session.Monitor(console)
    with monitor.shown():
        task = monitor.add(configuration)
        trained = session.train(configuration, asked.output, asked.checkpoint_every, monitor, task)
    path = trained.path
    found = read_json(path / METRICS)
    if not (is_of(found, configuration) and all((path / name).exists() for name in FIGURES)):
        found = evaluate(trained)
        console.print(f"{path}: wrote {', '.join((METRICS, *FIGURES))}")
    else:
        console.print(f"{path}: complete, {configuration.steps} steps")
    print_scores(console, found)
    return 0


def is_of(found: Any, configuration: options.Configuration) -> bool:
    """Whether what a file held are the scores of this configuration."""
    about = dataclasses.asdict(configuration)
    return isinstance(found, dict) and found.get("configuration") == about and "scores" in found


def evaluate(trained: Trained) -> dict[str, Any]:
    """Score a run on its test scenes; write the scores and the figures into its folder."""
    from jaxunpool.training import figures

    run, state, path = trained.run, trained.state, trained.path
    tested, predicted, found = assess(run, state)
    figures.save(figures.predictions(tested, predicted), path / "predictions.png")
    figures.save(figures.confusion(tested.labels, predicted), path / "confusion.png")
    figures.save(figures.gradients(state, run.layers, run.every), path / "gradients.png")
    figures.save(figures.learning_curve(state, run.every), path / "learning_curve.png")
    write_json(path / METRICS, found)
    return found


def assess(run: Run, state: State) -> tuple[Scenes, np.ndarray, dict[str, Any]]:
    """The test scenes, what a run predicts for them, and how good that is."""
    from jaxunpool.training import loop, metrics
    from jaxunpool.training.scenes import CLASSES

    tested = run.test_scenes()
    predicted = run.predict(state, tested.images)
    found = {
        "configuration": dataclasses.asdict(run.configuration),
        "parameters": loop.parameter_count(run.configuration),
        "index_bytes": loop.index_bytes(run.configuration),
        "scenes": len(tested.images),
        "boundary_tolerance_pixels": metrics.TOLERANCE,
        "scores": dataclasses.asdict(metrics.evaluate(tested.labels, predicted, CLASSES)),
    }
    return tested, predicted, found


def print_scores(console: Any, found: dict[str, Any]) -> None:
    """The scores of a run, and of each class."""
    from rich import box
    from rich.table import Table

    from jaxunpool.training.scenes import CLASS_NAMES

    scores = found["scores"]
    table = Table(box=box.SIMPLE, title=f"{found['scenes']} test scenes", title_justify="left")
    names = ("global accuracy", "class accuracy", "mIoU", "boundary F1")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    keys = ("global_accuracy", "class_accuracy", "mean_iou", "boundary_f1")
    table.add_row(*(f"{scores[key]:.3f}" for key in keys))
    console.print(table)
    each = ", ".join(f"{name} {value:.2f}" for name, value in zip(CLASS_NAMES, scores["iou"]))
    console.print(f"IoU of each class: {each}")
