"""Training steps of whole networks: `python -m benchmarks.steps`.

SegNet and SegNetBasic on two images of 180x240, and the network and batch of `python -m jaxunpool
train`: one step of SGD with each of several decoders, with Flax's own convolutions, and in PyTorch
in both of its layouts, interleaved in one process. `--profile` says how a step's time is divided
among kinds of operations. Both want an idle machine.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import statistics
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import lax

from benchmarks import memory, timing
from jaxunpool import models
from jaxunpool.models.segnet import VGG16, VGG16_BACK
from jaxunpool.training import options, scenes

IMAGES = (2, 180, 240)
DECODERS = ("indices", "nearest", "conv_transpose")
TRAIN = options.Configuration()
BASIC = ((64,),) * 4
SMALL = ((TRAIN.features,),) * TRAIN.stages
# Name -> images, the network with a decoder, and the same in PyTorch.
NETWORKS: dict[str, tuple[tuple[int, ...], Callable[..., Any], Callable[[], Any]]] = {
    "SegNet": (
        IMAGES,
        functools.partial(models.SegNet, 3, memory.CLASSES),
        functools.partial(memory.torch_segnet, VGG16, VGG16_BACK),
    ),
    "SegNetBasic": (
        IMAGES,
        functools.partial(models.SegNetBasic, 3, memory.CLASSES),
        functools.partial(memory.torch_segnet, BASIC, BASIC, kernel=7, last=1, relu=False),
    ),
    "train": (
        (TRAIN.batch, TRAIN.size, TRAIN.size),
        functools.partial(
            models.SegNetBasic,
            3,
            scenes.CLASSES,
            features=TRAIN.features,
            kernel_size=TRAIN.kernel_size,
            stages=TRAIN.stages,
        ),
        functools.partial(
            memory.torch_segnet,
            SMALL,
            SMALL,
            scenes.CLASSES,
            kernel=TRAIN.kernel_size,
            last=1,
            relu=False,
        ),
    ),
}


def with_flax(model: nnx.Module) -> nnx.Module:
    """The network with Flax's own convolutions."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.Conv):
            module.conv_general_dilated = lax.conv_general_dilated
    return model


class Step:
    """A call takes one step of a network, from where the last came to.

    Attributes:
        program: the compiled step.
    """

    def __init__(self, model: nnx.Module, images: np.ndarray, labels: np.ndarray) -> None:
        _, step, *self._state = memory.training(model)
        self._batch = jax.numpy.asarray(images), jax.numpy.asarray(labels)
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(*self._state, *self._batch)
        self.program = lowered.compile()

    def __call__(self) -> Any:
        """The loss."""
        *self._state, loss = self.program(*self._state, *self._batch)
        return loss


def torch_run(
    make: Callable[[], Any], images: np.ndarray, labels: np.ndarray, channels_last: bool
) -> Callable[[], Any]:
    """The same in PyTorch."""
    import torch

    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = make().to(memory_format=layout).train()
    x = torch.tensor(np.moveaxis(images, -1, 1).copy()).contiguous(memory_format=layout)
    wanted = torch.tensor(labels, dtype=torch.int64)
    optimizer = torch.optim.SGD(model.parameters(), lr=memory.RATE)

    def take() -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(model(x), wanted)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return take


def contenders(name: str) -> dict[str, Any]:
    """Every way to take a step of a network."""
    sizes, make, make_torch = NETWORKS[name]
    rng = np.random.default_rng(0)
    images = rng.standard_normal((*sizes, 3), np.float32)
    labels = rng.integers(0, scenes.CLASSES, sizes).astype(np.int32)
    runs: dict[str, Any] = {
        decoder: Step(make(decoder=decoder, rngs=nnx.Rngs(0)), images, labels)
        for decoder in DECODERS
    }
    model = with_flax(make(decoder="indices", rngs=nnx.Rngs(0)))
    runs["Flax's convolutions"] = Step(model, images, labels)
    if importlib.util.find_spec("torch"):
        for layout in ("channels_last", "channels_first"):
            is_last = layout == "channels_last"
            runs[f"PyTorch {layout}"] = torch_run(make_torch, images, labels, is_last)
    return runs


def table(times: dict[str, dict[str, list[float]]]) -> str:
    """Medians in milliseconds, and ours over PyTorch's better layout, in Markdown."""
    names = list(next(iter(times.values())))
    lines = [["ms", *names, "indices / PyTorch"], ["---", *["---:"] * (len(names) + 1)]]
    for network, row in times.items():
        medians = {name: statistics.median(row[name]) for name in names}
        peers = [seconds for name, seconds in medians.items() if name.startswith("PyTorch")]
        ratio = f"{medians['indices'] / min(peers):.2f}" if peers else ""
        lines.append([network, *(f"{s * 1e3:.0f}" for s in medians.values()), ratio])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# Kinds of operations, by what JAX names the instructions of a compiled program. The first fits.
KINDS = (
    ("convolutions", r"convolution|conv_general_dilated"),
    ("pooling and unpooling", r"ffi_call|max_pool|max_unpool"),
    ("normalisation, ReLU, loss, update", r""),
)


def kind(operation: str) -> str:
    """The kind of an operation, from its path in the program."""
    return next(name for name, pattern in KINDS if re.search(pattern, operation))


def profile(step: Step) -> dict[str, float]:
    """Seconds of all cores per kind of operation, in one step that is warm."""
    paths, calls = {}, set()
    for name, opcode, rest in re.findall(
        r"%([\w.-]+) = [^=]*? ([\w-]+)\((.*)", step.program.as_text() or ""
    ):
        path = re.search(r'op_name="([^"]*)"', rest)
        paths[name] = path.group(1) if path else ""
        if opcode in ("while", "call", "conditional"):
            calls.add(name)
    seconds: dict[str, float] = dict.fromkeys((name for name, _ in KINDS), 0.0)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(step())
        (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
        found = jax.profiler.ProfileData.from_file(str(file))
        for plane in found.planes:
            for line in plane.lines:
                for event in line.events:
                    if event.name in paths and event.name not in calls:
                        seconds[kind(paths[event.name])] += event.duration_ns * 1e-9
    return seconds


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds (default 5)")
    parser.add_argument("--profile", action="store_true", help="divide the time of ours by kinds")
    parser.add_argument("--json", type=pathlib.Path, help="also write what was found to this file")
    parsed = parser.parse_args(arguments)
    if wrong := {*parsed.networks} - {*NETWORKS}:
        parser.error(f"{min(wrong)}: expected one of {', '.join(NETWORKS)}")
    return parsed


def main(arguments: list[str] | None = None) -> None:
    """Measure and report."""
    from rich.console import Console
    from rich.markdown import Markdown

    asked = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    found: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in memory.PACKAGES
            if importlib.util.find_spec(name)
        },
        "seconds": {},
        "profile": {},
    }
    for name in asked.networks or NETWORKS:
        runs = contenders(name)
        times = timing.measure(runs, asked.repeats, warmup=1, calls=1)
        found["seconds"][name] = times
        console.print(Markdown(table({name: times})))
        if asked.profile:
            seconds = profile(runs["indices"])
            found["profile"][name] = seconds
            whole = sum(seconds.values())
            for what, part in seconds.items():
                console.print(f"{what}: {part / whole:.1%}")
        if asked.json:
            asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
