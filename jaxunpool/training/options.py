"""What a run is asked to be, on the command line and in code."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jaxunpool.apps.command import Parser, UsageError, count, whole

if TYPE_CHECKING:  # importing Flax takes long
    from jaxunpool.models.decoders import Decoder

PACKAGES = ("optax", "orbax.checkpoint", "sklearn", "matplotlib", "rich", "skimage")
FOR_IMAGES = ("grain", "dm_pix", "safetensors", "PIL")

MOST_STEPS = 10**7


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What determines the weights that a run ends with; `network` is one of `NETWORKS`."""

    network: str = "basic"
    decoder: Decoder = "indices"
    steps: int = 900
    batch: int = 16
    seed: int = 0
    size: int = 48
    features: int = 32
    kernel_size: int = 5
    stages: int = 3
    learning_rate: float = 0.01

    def about(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


@dataclasses.dataclass(frozen=True)
class ImagesConfiguration(Configuration):
    """The same for a user's own images.

    Attributes:
        precision: `"float32"`, or `"bfloat16"` for all but weights, statistics and loss.
        fit: how images come to `size`: `"crop"` or `"resize"`.
        augment: some of `AUGMENTATIONS`.
        balance: what weighs classes: `"median"` frequency or `"none"`.
        weights: SHA-256 of the file that training starts from, or None.
        data: SHA-256 of images, masks, their meaning and the split.
        classes: their names.
        colours: of the classes, red, green and blue.
    """

    precision: str = "float32"
    fit: str = "crop"
    augment: Sequence[str] = ("flip", "colour")
    balance: str = "median"
    weights: str | None = None
    data: str = ""
    classes: Sequence[str] = ()
    colours: Sequence[Sequence[int]] = ()


NETWORKS = ("basic", "segnet", "enet")
AUGMENTATIONS = ("flip", "colour")
IMAGES = ImagesConfiguration(steps=1000, batch=8, size=128, stages=4)
# Their papers say how wide, how deep and with what kernels these are: not for options to change.
FIXED: dict[str, dict[str, Any]] = {
    "segnet": {"features": 64, "kernel_size": 3, "stages": 5},
    "enet": {"features": 16, "kernel_size": 3, "stages": 3},
}
RATES = {"segnet": 1e-3, "enet": 5e-3}
LARGEST = 4096  # of a crop


HELP = {
    "steps": "steps of training",
    "batch": "scenes per step, sharded over as many devices as divide it",
    "seed": "seed of the initial weights and of all scenes",
    "size": "height and width of a scene in pixels",
    "features": "channels of each layer",
    "kernel_size": "rows and columns of the convolutions",
    "stages": "how many times to pool",
    "learning_rate": "highest learning rate of Adam",
}
TYPES: dict[str, Callable[[str], Any]] = {"seed": whole, "learning_rate": float}


def parser(
    command: str,
    description: str | None,
    defaults: Configuration,
    for_images: Configuration | None = None,
) -> Parser:
    """A command's options, without those for its decoders."""
    made = Parser(prog=f"python -m jaxunpool {command}", description=description)
    for name, text in HELP.items():
        default = getattr(defaults, name)
        other = getattr(for_images or defaults, name)
        if other != default:
            default = f"{default}; {other} with --images"
        made.add_argument(
            "--" + name.replace("_", "-"),
            type=TYPES.get(name, count),
            help=f"{text} (default {default})",
        )
    folder = pathlib.Path(f"jaxunpool-{command}")
    made.add_argument(
        "--output",
        type=pathlib.Path,
        default=folder,
        help=f"the folder to write to, or that of a run to continue (default {folder})",
    )
    made.add_argument(
        "--checkpoint-every",
        type=count,
        default=50,
        help="steps between checkpoints (default 50)",
    )
    return made


DISTRIBUTED: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "coordinator_address": ("HOST:PORT", str, "where process 0 can be reached, at a free port"),
    "num_processes": ("N", count, "how many processes there are"),
    "process_id": ("I", whole, "which of them this one is, from 0"),
}
INITIALIZATION_TIMEOUT = 300  # seconds, as jax.distributed.initialize has it


def add_distributed(parser: Parser) -> None:
    """The options of a command that can be one of several processes."""
    group = parser.add_argument_group(
        "many hosts", "Slurm, Open MPI, TPU pods and Kubernetes: docs/training.md."
    )
    group.add_argument(
        "--distributed",
        action="store_true",
        help="train in several processes that each run this command (jax.distributed)",
    )
    for name, (metavar, kind, text) in DISTRIBUTED.items():
        group.add_argument("--" + name.replace("_", "-"), type=kind, metavar=metavar, help=text)
    group.add_argument(
        "--initialization-timeout",
        type=count,
        metavar="SECONDS",
        help=f"how long to wait for all processes (default {INITIALIZATION_TIMEOUT})",
    )


def check_distributed(asked: argparse.Namespace) -> None:
    """Raise a UsageError if the options of `add_distributed` do not go together."""
    address, processes, number = (getattr(asked, name) for name in DISTRIBUTED)
    for name in (*DISTRIBUTED, "initialization_timeout"):
        if getattr(asked, name) is not None and not asked.distributed:
            raise UsageError(f"argument --{name.replace('_', '-')}: is for --distributed")
    if address is not None:
        host, _, port = address.rpartition(":")
        named = host and port.isdigit() and 0 < int(port) < 2**16
        _require(named, "coordinator-address", address, "HOST:PORT")
    if number is not None:
        expected = "at least 0" if processes is None else f"0 to {processes - 1}"
        last = math.inf if processes is None else processes - 1
        _require(0 <= number <= last, "process-id", number, expected)


def configuration(
    options: argparse.Namespace, decoder: Decoder, defaults: Configuration, network: str = "basic"
) -> Configuration:
    """The configuration that was asked for, or a UsageError if it cannot be trained."""
    fixed = FIXED.get(network, {})
    rate = RATES.get(network, defaults.learning_rate)
    defaults = dataclasses.replace(defaults, network=network, learning_rate=rate, **fixed)
    from jaxunpool.training import scenes

    given = {name: getattr(options, name) for name in HELP if getattr(options, name) is not None}
    asked = dataclasses.replace(defaults, decoder=decoder, **given)
    smallest, largest = 1, LARGEST
    if not isinstance(asked, ImagesConfiguration):
        smallest, largest = scenes.CELL, scenes.largest()
    for name, value in fixed.items():
        got, expected = getattr(asked, name), f"{value}, which is {network}'s"
        _require(got == value, name.replace("_", "-"), got, expected)
    deepest = int(math.log2(largest))
    _require(asked.stages <= deepest, "stages", asked.stages, f"at most {deepest}")
    _require(asked.steps <= MOST_STEPS, "steps", asked.steps, f"at most {MOST_STEPS}")
    smallest = max(smallest, 2**asked.stages)
    _require(smallest <= asked.size <= largest, "size", asked.size, f"{smallest} to {largest}")
    _require(0 <= asked.seed < 2**32, "seed", asked.seed, "0 to 2**32 - 1")
    rate = asked.learning_rate
    _require(0 < rate < math.inf, "learning-rate", rate, "a positive number")
    return asked


def _require(holds: Any, name: str, got: Any, expected: str) -> None:
    if not holds:
        raise UsageError(f"argument --{name}: expected {expected}, got {got}")
