"""Train a small SegNet with each decoder, from the same seed; print a table of their scores.

You can stop it at any time. Start it again with the same options, and it continues from the last
checkpoint of each decoder.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxunpool.apps.command import (
    exit_status,
    read_json,
    require_extra,
    show_table,
    write_json,
)
from jaxunpool.training import options
from jaxunpool.training.train import is_of

if TYPE_CHECKING:
    from jaxunpool.training.session import Trained

DEFAULTS = options.Configuration(steps=400)
TABLE = "comparison.json"
FIGURES = ("comparison.png", "decoders.png")
TIMED_ROUNDS = 9
COLUMNS = {
    "decoder": "{decoder}",
    "para-\nmeters": "{parameters:,}",
    "index\nbytes": "{index_bytes:,}",
    "step\nms": "{step_ms:.0f}",
    "global\nacc.": "{global_accuracy:.3f}",
    "class\nacc.": "{class_accuracy:.3f}",
    "mIoU": "{mean_iou:.3f}",
    "bound.\nF1": "{boundary_f1:.3f}",
}
LEGEND = (
    "\nindex bytes: read from the encoder by the decoder, per scene\n"
    "acc.: accuracy of pixels; bound. F1: score of the outlines"
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 2 is the exit status of a request that cannot be met."""
    return exit_status(lambda: run(arguments))


def run(arguments: list[str] | None) -> int:
    """Parse and compare, once it is known that there is all it takes."""
    asked = parse(arguments)
    require_extra("train", *options.PACKAGES)
    from jaxunpool.training.session import interruptible

    return interruptible(lambda: compare(asked))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    from jaxunpool.models import DECODERS

    parser = options.parser("compare", __doc__, DEFAULTS)
    parser.add_argument(
        "--decoders",
        nargs="+",
        choices=DECODERS,
        default=DECODERS,
        metavar="DECODER",
        help=f"decoders to compare: {', '.join(DECODERS)} (default: all)",
    )
    asked = parser.parse_args(arguments)
    if len(set(asked.decoders)) < len(asked.decoders):
        parser.error(f"argument --decoders: one is named twice in {' '.join(asked.decoders)}")
    return asked


def compare(asked: argparse.Namespace) -> int:
    """Train what is not trained yet, measure, write and print the table."""
    from rich.console import Console

    from jaxunpool.training import checkpoints, session

    configurations = [options.configuration(asked, decoder, DEFAULTS) for decoder in asked.decoders]
    console = Console(highlight=False, soft_wrap=True)
    path: pathlib.Path = asked.output
    about = configurations[0].about() | {"decoder": list(asked.decoders)}
    with checkpoints.claimed(path, about):
        rows = read_json(path / TABLE)
        if are_of(rows, configurations) and all((path / name).exists() for name in FIGURES):
            console.print(f"{path}: complete, {configurations[0].steps} steps of each decoder")
        else:
            monitor = session.Monitor(console)
            with monitor.shown():
                tasks = [monitor.add(configuration) for configuration in configurations]
                trained = [
                    session.train(each, path / each.decoder, asked.checkpoint_every, monitor, task)
                    for each, task in zip(configurations, tasks)
                ]
            rows = measure(trained, path)
            console.print(f"{path}: wrote {', '.join((TABLE, *FIGURES))}")
    print_table(console, rows)
    return 0


def are_of(rows: Any, configurations: Sequence[options.Configuration]) -> bool:
    """Whether what a file held is the table of these configurations."""
    if not isinstance(rows, list) or len(rows) != len(configurations):
        return False
    return all(is_of(row, c) and "step_ms" in row for row, c in zip(rows, configurations))


def measure(trained: Sequence[Trained], path: pathlib.Path) -> list[dict[str, Any]]:
    """Score and time all of them; write the table and the figures into the folder."""
    from jaxunpool.training import figures, loop
    from jaxunpool.training.train import assess

    assessed = [assess(each.run, each.state) for each in trained]
    tested = assessed[0][0]  # the same for all: only the seed determines it
    decoders = [each.run.configuration.decoder for each in trained]
    predicted = dict(zip(decoders, (labels for _, labels, _ in assessed)))
    found = [row for _, _, row in assessed]
    figure = figures.comparison(
        dict(zip(decoders, (each.state for each in trained))),
        dict(zip(decoders, (row["scores"] for row in found))),
        trained[0].run.every,
        watched=loop.WATCHED,
        tested=len(tested.images),
    )
    figures.save(figure, path / "comparison.png")
    figures.save(figures.decoders_side_by_side(tested, predicted), path / "decoders.png")
    times = step_milliseconds(trained)
    rows = [row | {"step_ms": ms} for row, ms in zip(found, times)]
    write_json(path / TABLE, rows)
    return rows


def step_milliseconds(trained: Sequence[Trained]) -> list[float]:
    """The median time of a training step of each, taking turns: what slows one slows all."""
    import jax

    states = [jax.block_until_ready(each.run.step(each.state)) for each in trained]
    times: list[list[float]] = [[] for _ in trained]
    for _ in range(TIMED_ROUNDS):
        for index, each in enumerate(trained):
            start = time.perf_counter()
            states[index] = jax.block_until_ready(each.run.step(states[index]))
            times[index].append(1e3 * (time.perf_counter() - start))
    return [statistics.median(each) for each in times]


def print_table(console: Any, rows: list[dict[str, Any]]) -> None:
    """A row for each decoder."""
    first = rows[0]
    title = f"{first['configuration']['steps']} steps each, {first['scenes']} test scenes"
    cells = [row["configuration"] | row["scores"] | row for row in rows]
    columns = {name: [text.format(**each) for each in cells] for name, text in COLUMNS.items()}
    show_table(console, title, columns, spare=("para-\nmeters", "class\nacc."))
    console.print(LEGEND)
