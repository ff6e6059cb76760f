"""What a run is asked to be, on the command line and in code."""

from __future__ import annotations

import argparse
import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jaxunpool.apps.command import Parser, UsageError, count, whole

if TYPE_CHECKING:  # importing Flax takes long
    from jaxunpool.models.decoders import Decoder

PACKAGES = ("optax", "orbax.checkpoint", "sklearn", "matplotlib", "rich", "skimage")

MOST_STEPS = 10**7


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What determines the weights that a run ends with."""

    decoder: Decoder = "indices"
    steps: int = 900
    batch: int = 16
    seed: int = 0
    size: int = 48
    features: int = 32
    kernel_size: int = 5
    stages: int = 3
    learning_rate: float = 0.01


HELP = {
    "steps": "steps of training",
    "batch": "scenes per step, sharded over as many devices as divide it",
    "seed": "of the first weights and of all scenes",
    "size": "height and width of a scene in pixels",
    "features": "channels of every layer",
    "kernel_size": "rows and columns of the convolutions",
    "stages": "how many times to pool",
    "learning_rate": "of Adam, at its highest",
}
TYPES: dict[str, Callable[[str], Any]] = {"seed": whole, "learning_rate": float}


def parser(command: str, description: str | None, defaults: Configuration) -> Parser:
    """A command's options, without those for its decoders."""
    made = Parser(prog=f"python -m jaxunpool {command}", description=description)
    for name, text in HELP.items():
        default = getattr(defaults, name)
        made.add_argument(
            "--" + name.replace("_", "-"),
            type=TYPES.get(name, count),
            default=default,
            help=f"{text} (default {default})",
        )
    folder = pathlib.Path(f"jaxunpool-{command}")
    made.add_argument(
        "--output",
        type=pathlib.Path,
        default=folder,
        help=f"the folder to write to, or to go on in (default {folder})",
    )
    made.add_argument(
        "--checkpoint-every",
        type=count,
        default=50,
        help="steps between checkpoints (default 50)",
    )
    return made


def configuration(options: argparse.Namespace, decoder: Decoder) -> Configuration:
    """The configuration that was asked for, or a UsageError if it cannot be trained."""
    from jaxunpool.training import scenes

    asked = Configuration(decoder, **{name: getattr(options, name) for name in HELP})
    largest = scenes.largest()
    deepest = int(math.log2(largest))
    _require(asked.stages <= deepest, "stages", asked.stages, f"at most {deepest}")
    _require(asked.steps <= MOST_STEPS, "steps", asked.steps, f"at most {MOST_STEPS}")
    smallest = max(scenes.CELL, 2**asked.stages)
    _require(smallest <= asked.size <= largest, "size", asked.size, f"{smallest} to {largest}")
    _require(0 <= asked.seed < 2**32, "seed", asked.seed, "0 to 2**32 - 1")
    rate = asked.learning_rate
    _require(0 < rate < math.inf, "learning-rate", rate, "a positive number")
    return asked


def _require(holds: bool, name: str, got: Any, expected: str) -> None:
    if not holds:
        raise UsageError(f"argument --{name}: expected {expected}, got {got}")
