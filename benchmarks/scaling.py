"""How cost grows: `python -m benchmarks.scaling` measures, compiles and computes it.

- *elements*, *windows*: seconds of the public functions against the number of elements and against
  the elements of a window, with slopes in logarithms (1: twice as much takes twice as long).
- *devices*: what XLA compiles for 1, 2, 4 and 8 host devices, and for a pod of 1,000: operations,
  bytes and collectives of one device. Nothing runs, so any number of devices is there.
- *pod*: the same from the geometry alone, and how long it would take.

After `--json benchmarks/scaling.json`, `python -m benchmarks.report` makes the tables of the page
about sharding anew. Parts that `--only` leaves out stay in the file as they are.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import itertools
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks import grid, report, timing
from jaxunpool.core import primitives
from jaxunpool.core.calls import GIVES, TAKES, Call
from jaxunpool.core.geometry import WindowGeometry

PARTS = ("elements", "windows", "devices", "pod")
FILE = pathlib.Path(__file__).parent / "scaling.json"
Row = dict[str, Any]

# Time.

# An operator of the grid, and what of it is timed.
TIMED = (
    ("max pool", ""),
    ("max pool with indices", ""),
    ("max pool", "and gradient"),
    ("max unpool", ""),
    ("max unpool", "gradient"),
    ("avg pool", ""),
)
CHANNELS = 64
ELEMENTS = tuple(10 ** (e / 2) for e in range(6, 15))  # 1e3 to 1e7
ELEMENT_WINDOWS = {"2/2": (2, 2, 0), "3/2 pad 1": (3, 2, 1)}
LARGE = 1e5  # from so many elements on, a call is more than its overhead
# Of about a million elements each, and their windows.
WINDOW_SHAPES = {
    "1x16384x64": (4, 8, 16, 32, 64),
    "1x128x128x64": (2, 3, 4, 5, 7, 9, 13, 18),
    "1x32x32x32x32": (2, 3, 4, 5, 6, 7),
}
LIMITS: dict[str, Any] = {"repeats": 15, "seconds": 0.05}


def plane_of(elements: float) -> str:
    """A square image of about so many elements, which windows 2x2 tile."""
    side = 2 * max(1, round(math.sqrt(elements / CHANNELS) / 2))
    return f"1x{side}x{side}x{CHANNELS}"


def times(what: tuple[str, str], shape: str, window: tuple[int, int, int]) -> list[float]:
    """Seconds per call of a public function, a number per round."""
    (name, timed), cell = (
        what,
        grid.Cell(timing.sizes(shape), window, "float32", grid.LAYOUTS[0], None),
    )
    run = grid.ours(grid.OPERATORS[name], cell, timed)
    return timing.measure({name: run}, **LIMITS)[name]


def against_elements(sizes: Sequence[float] = ELEMENTS) -> Iterator[Row]:
    """A row for every function, window and size."""
    for (name, window), what, size in itertools.product(ELEMENT_WINDOWS.items(), TIMED, sizes):
        shape = plane_of(size)
        yield {
            "operation": " ".join(what).strip(),
            "window": name,
            "shape": shape,
            "elements": math.prod(timing.sizes(shape)),
            "seconds": times(what, shape, window),
        }


def against_windows(shapes: dict[str, tuple[int, ...]] | None = None) -> Iterator[Row]:
    """A row for every function and window, which moves by its own size or by 2."""
    for shape, windows in (shapes or WINDOW_SHAPES).items():
        n = shape.count("x") - 1
        for stride, what, k in itertools.product(("the window", "2"), TIMED, windows):
            yield {
                "operation": " ".join(what).strip(),
                "stride": stride,
                "shape": shape,
                "elements": math.prod(timing.sizes(shape)),
                "window": "x".join([str(k)] * n),
                "volume": k**n,
                "seconds": times(what, shape, (k, 2 if stride == "2" else k, 0)),
            }


def slope(xs: Sequence[float], seconds: Sequence[float]) -> float:
    """The power of x that times grow with: least squares in logarithms."""
    return float(np.polyfit(np.log(xs), np.log(seconds), 1)[0])


def _median(row: Row) -> float:
    return float(np.median(row["seconds"]))


def elements_table(rows: list[Row]) -> str:
    """Nanoseconds per element, and slopes over all sizes and over the large ones."""
    sizes = report.distinct(rows, "elements")
    lines = []
    for operation, window in report.distinct(rows, "operation", "window"):
        some = [r for r in rows if (r["operation"], r["window"]) == (operation, window)]
        large = [r for r in some if r["elements"] > LARGE / 2]
        lines.append(
            [operation, window, *(f"{1e9 * _median(r) / r['elements']:.3g}" for r in some)]
            + [
                f"{slope([r['elements'] for r in part], list(map(_median, part))):.2f}"
                if len(part) > 1
                else ""
                for part in (some, large)
            ]
        )
    names = [f"{size:,}" for size in sizes]
    columns = ["operation", "window", *names, "slope", f"from {LARGE:,.0f} on"]
    return report.table(columns, lines, words=2)


def windows_table(rows: list[Row]) -> str:
    """Nanoseconds per element of the image, and the slope in the elements of a window."""
    parts = []
    for shape in report.distinct(rows, "shape"):
        some = [r for r in rows if r["shape"] == shape]
        lines = []
        for operation, stride in report.distinct(some, "operation", "stride"):
            chosen = [r for r in some if (r["operation"], r["stride"]) == (operation, stride)]
            volumes, seconds = [r["volume"] for r in chosen], list(map(_median, chosen))
            lines.append(
                [operation, stride]
                + [f"{1e9 * _median(r) / r['elements']:.3g}" for r in chosen]
                + [f"{slope(volumes, seconds):.2f}" if len(chosen) > 1 else ""]
            )
        columns = ["operation", "every", *report.distinct(some, "window"), "slope"]
        parts.append(f"{shape}:\n\n{report.table(columns, lines, words=2)}")
    return "\n".join(parts)


# Devices.

NAMES = ("batch", "rows", "columns", "channels")  # dimensions of an array, axes of the mesh
# As users know them, and the primitive that each is.
OPERATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "max pool with indices": ("select", {}),
    "its gradient": ("scatter", {"duplicates": "sum"}),
    "max unpool": ("scatter", {"duplicates": "last"}),
    "gradient of max unpool": ("gather", {"duplicates": "last"}),
    "avg pool": ("reduce", {"weighting": "mean"}),
    "gradient of avg pool": ("replicate", {"weighting": "mean"}),
}
WINDOWS = {"2x2/2": ((2, 2), 2, 0), "3x3/2 pad 1": ((3, 3), 2, 1)}
COUNTS = (1, 2, 4, 8)
SHAPE = (32, 224, 224, 64)
DTYPE = np.dtype(np.float32)


class Layout(NamedTuple):
    """An array, channels last, and in how many parts each of its dimensions is split."""

    shape: tuple[int, ...]
    parts: tuple[int, ...]

    @property
    def name(self) -> str:
        """The dimensions that are split, and in how many parts."""
        split = [f"{name} {n}" for name, n in zip(NAMES, self.parts) if n > 1]
        return ", ".join(split) or "one device"

    @property
    def devices(self) -> int:
        """How many there are."""
        return math.prod(self.parts)


POD = (
    Layout((32_000, 224, 224, 64), (1000, 1, 1, 1)),
    Layout((32_000, 224, 224, 64), (125, 1, 1, 8)),
    Layout((32_000, 224, 224, 64), (125, 8, 1, 1)),
    Layout((1, 8000, 8000, 64), (1, 40, 25, 1)),
)
# Assumptions: bytes per second of a device's memory, and of a link to one neighbour in one
# direction; seconds until a message arrives.
MEMORY, LINK, LATENCY = 8e11, 4.5e10, 1e-6


def layouts(counts: Sequence[int] = COUNTS, shape: tuple[int, ...] = SHAPE) -> list[Layout]:
    """One array over so many devices, split along its batch, its rows or its channels."""
    split = [
        tuple(n if i == d else 1 for i in range(len(NAMES)))
        for d in (0, 1, 3)
        for n in counts
        if n > 1
    ]
    return [Layout(shape, parts) for parts in [(1,) * len(NAMES), *split]]


def geometry_of(window: str, layout: Layout) -> WindowGeometry:
    """The windows over the whole array."""
    return WindowGeometry.for_input(layout.shape, *WINDOWS[window])


class Operand(NamedTuple):
    """An array of an operation: its whole shape, its type, and elements per window of an axis."""

    shape: tuple[int, ...]
    dtype: np.dtype
    steps: tuple[int, ...]


def operands(operation: str, g: WindowGeometry, layout: Layout) -> list[list[Operand]]:
    """What an operation takes, and what it gives."""
    primitive, _ = OPERATIONS[operation]
    kinds = {"u": Operand(layout.shape, DTYPE, g.strides)}
    kinds["p"] = Operand(g.pooled_shape(layout.shape), DTYPE, (1,) * g.ndim)
    offsets = kinds["p"]._replace(dtype=np.dtype(g.offset_dtype))
    found = []
    for names in (TAKES[primitive].replace("w", ""), GIVES[primitive]):
        some = [kinds[name] for name in names]
        found.append([*some[:-1], offsets] if len(some) > 1 else some)
    return found


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one device, one with neighbours on all sides, pays for an operation. In bytes:

    Attributes:
        arguments, results: its shards.
        collectives: how many messages it sends.
        exchanged: all of them.
        extended: its shards with what the neighbours sent, where they send anything.
        messages: how long each is; one for both directions, which are different links.
    """

    arguments: int
    results: int
    collectives: int
    exchanged: int
    extended: int
    messages: tuple[int, ...]

    @property
    def memory(self) -> int:
        """What is there at once, without temporaries of the kernel."""
        return self.arguments + self.results + self.extended

    @property
    def moved(self) -> int:
        """To and from the memory: shards once; extended ones are written and read as well."""
        return self.arguments + self.results + 2 * self.extended

    @property
    def seconds(self) -> tuple[float, float]:
        """For the memory, and for the exchange before it."""
        exchange = sum(LATENCY + size / LINK for size in self.messages)
        return self.moved / MEMORY, exchange


def on_paper(operation: str, window: str, layout: Layout) -> Cost:
    """The cost of an operation from its geometry.

    Raises:
        ValueError: a split that the windows do not divide: that axis would be gathered.
    """
    g = geometry_of(window, layout)
    for axis, n in zip(g.spatial, layout.parts[1:-1]):
        if n > 1 and not (axis.divides(n) and axis.halo <= axis.outputs // n):
            raise ValueError(f"{layout.name}: expected parts that the windows divide")
    takes, gives = operands(operation, g, layout)

    def shard(operand: Operand) -> list[int]:
        return [size // n for size, n in zip(operand.shape, layout.parts)]

    def size(shape: Sequence[int], operand: Operand) -> int:
        return math.prod(shape) * operand.dtype.itemsize

    messages, extended = [], 0
    for operand in takes:
        extent, alone = shard(operand), True
        for i, axis in enumerate(g.spatial):
            if layout.parts[1 + i] > 1 and axis.halo:
                border = axis.halo * operand.steps[i]
                messages.append(size([*extent[: 1 + i], border, *extent[2 + i :]], operand))
                extent[1 + i] += 2 * border
                alone = False
        extended += 0 if alone else size(extent, operand)
    arguments, results = (sum(size(shard(o), o) for o in some) for some in (takes, gives))
    return Cost(arguments, results, 2 * len(messages), 2 * sum(messages), extended, tuple(messages))


COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\("
)
ARRAY = re.compile(r"\b([a-z]+)(\d*)\[([\d,]*)\]")


def collectives(program: str) -> tuple[int, int]:
    """How many an optimized program for CPUs has, and their bytes on a device."""
    count = total = 0
    for results, _ in COLLECTIVE.findall(program):
        for _, bits, sizes in ARRAY.findall(results):
            count += 1
            total += math.prod(map(int, filter(None, sizes.split(",")))) * (int(bits or 8) // 8)
    return count, total


def compiled(operation: str, window: str, layout: Layout) -> Row:
    """What XLA compiles for the first devices that there are, of one of them."""
    g = geometry_of(window, layout)
    mesh = jax.make_mesh(
        layout.parts,
        NAMES,
        axis_types=(AxisType.Auto,) * len(NAMES),
        devices=jax.devices()[: layout.devices],
    )
    sharding = NamedSharding(mesh, PartitionSpec(*NAMES))
    takes, gives = operands(operation, g, layout)
    arrays = [jax.ShapeDtypeStruct(o.shape, o.dtype, sharding=sharding) for o in takes]
    primitive, options = OPERATIONS[operation]
    call = Call(primitive, g, "xla", **options)
    run = jax.jit(
        functools.partial(primitives.bind, call),
        out_shardings=sharding,
        compiler_options={"xla_backend_optimization_level": 0},
    )
    program = run.lower(*arrays).compile()
    cost, memory, text = program.cost_analysis(), program.memory_analysis(), program.as_text()
    assert cost is not None and memory is not None and text is not None  # noqa: PT018
    count, exchanged = collectives(text)
    pointers = 8 * len(gives) if len(gives) > 1 else 0
    return {
        "operation": operation,
        "window": window,
        "shape": list(layout.shape),
        "parts": list(layout.parts),
        "flops": int(cost["flops"]),
        "bytes_accessed": int(cost["bytes accessed"]),
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes - pointers,
        "temporaries": memory.temp_size_in_bytes,
        "collectives": count,
        "exchanged": exchanged,
    }


def layout_of(row: Row) -> Layout:
    """The layout of a row."""
    return Layout(tuple(row["shape"]), tuple(row["parts"]))


def is_as_on_paper(row: Row) -> bool:
    """Whether a compiled program has the arrays and the exchange that the geometry says."""
    paper = on_paper(row["operation"], row["window"], layout_of(row))
    names = ("arguments", "results", "collectives", "exchanged")
    return all(row[name] == getattr(paper, name) for name in names)


def every_program(some: Sequence[Layout]) -> Iterator[tuple[str, str, Layout]]:
    """Each operation and window on each of the layouts."""
    return itertools.product(OPERATIONS, WINDOWS, some)


def on_host_devices(which: str) -> list[Row]:
    """`compiled` in a process of its own, which has as many devices as are asked for."""
    count = max(layout.devices for layout in _layouts(which))
    command = [sys.executable, "-m", "benchmarks.scaling", "--compile", which]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def _layouts(which: str) -> Sequence[Layout]:
    return layouts() if which == "devices" else POD


def devices_table(rows: list[Row]) -> str:
    """Operations, bytes and exchange of one device, over the number of devices."""
    window = list(WINDOWS)[-1]
    some = [r for r in rows if r["window"] == window]
    one = {r["operation"]: r for r in some if layout_of(r).devices == 1}
    counts = sorted({layout_of(r).devices for r in some})
    lines = []
    for operation, name in itertools.product(OPERATIONS, ("batch", "rows", "channels")):
        d = NAMES.index(name)
        split = {r["parts"][d]: r for r in some if r["operation"] == operation}
        split = {n: r for n, r in split.items() if layout_of(r).devices == n} | {1: one[operation]}
        last = split[counts[-1]]
        lines.append(
            [operation, name]
            + [f"{split[n]['flops'] / 1e6:,.1f}" for n in counts]
            + [f"{split[n]['bytes_accessed'] / 1e6:,.0f}" for n in counts]
            + [f"{counts[-1] * last['bytes_accessed'] / one[operation]['bytes_accessed']:.2f}"]
            + [
                f"{last['collectives']}, {_bytes(last['exchanged'])}"
                if last["collectives"]
                else "none"
            ]
        )
    columns = ["operation", "split", *(f"Mflop, {n}" for n in counts)]
    columns += [f"MB, {n}" for n in counts] + [f"{counts[-1]} over 1", f"sent, {counts[-1]}"]
    tiles = [r for r in rows if r["window"] != window]
    text = (
        f"`float32{list(SHAPE)}`, window {window}, one device, as XLA compiles it for so many host"
        " devices: operations in millions, bytes accessed in MB, how many times as many bytes"
        f" {counts[-1]} devices access together as one, and the messages that a device sends."
        f" With {tiles[0]['window']} the {len(tiles)} programs have"
        f" {sum(r['collectives'] for r in tiles) or 'no'} collectives."
    )
    return f"{textwrap.fill(text, 100)}\n\n{report.table(columns, lines, words=2)}"


def pod_table(rows: list[Row] | None = None) -> str:
    """What a pod pays on paper; and for how many of the rows XLA compiled the same."""
    tiling, window = WINDOWS
    merged: dict[tuple[Any, ...], list[str]] = {}  # splits that cost the same
    for layout, operation in itertools.product(POD, OPERATIONS):
        cost = on_paper(operation, window, layout)
        merged.setdefault((layout.shape, operation, cost), []).append(layout.name)
    lines = []
    for (shape, operation, cost), splits in merged.items():
        memory, exchange = cost.seconds
        lines.append(
            [
                "x".join(map(str, shape)),
                " or ".join(splits),
                operation,
                _bytes(cost.arguments),
                _bytes(cost.results),
                _bytes(cost.memory),
                str(cost.collectives),
                _bytes(cost.exchanged),
                f"{1e6 * memory:,.0f} µs",
                f"{1e6 * exchange:,.0f} µs",
            ]
        )
    columns = ["array", "split", "operation", "takes", "gives", "memory", "messages"]
    columns += ["sent", "time of memory", "of exchange"]
    tiled = [on_paper(operation, tiling, at) for at in POD for operation in OPERATIONS]
    text = (
        f"One device of {POD[0].devices:,}, window {window}, float32. Assumed are {MEMORY / 1e9:g}"
        f" GB/s of memory, {LINK / 1e9:g} GB/s to each neighbour in each direction and"
        f" {LATENCY * 1e6:g} µs for a message. With {tiling}, {sum(c.exchanged > 0 for c in tiled)}"
        f" of {len(tiled)} programs send anything."
    )
    if rows:
        same = sum(map(is_as_on_paper, rows))
        text += (
            f" Compiled for {POD[0].devices:,} host devices, {same} of {len(rows)} programs (both"
            " windows) have exactly these arguments, results, messages and bytes."
        )
    return f"{textwrap.fill(text, 100)}\n\n{report.table(columns, lines, words=3)}"


def _bytes(count: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f}"


def load(path: pathlib.Path = FILE) -> dict[str, Any]:
    """A file of results; empty where there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def dump(found: dict[str, Any]) -> str:
    """The text of a file of results: a line for each row."""
    parts = []
    for name, value in found.items():
        rows = ",\n".join(f"  {json.dumps(row)}" for row in value) if name in PARTS else ""
        parts.append(f" {json.dumps(name)}: " + (f"[\n{rows}\n ]" if rows else json.dumps(value)))
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    """Measure, compile, compute and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--json", type=pathlib.Path, help="also write the results to this file")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--compile", choices=("devices", "pod"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compile:
        some = every_program(_layouts(options.compile))
        print(json.dumps([compiled(*one) for one in some]))
        return
    found = load(options.json) if options.json else {}
    parts: dict[str, tuple[Callable[[], list[Row]], Callable[[list[Row]], str]]] = {
        "elements": (lambda: list(against_elements()), elements_table),
        "windows": (lambda: list(against_windows()), windows_table),
        "devices": (lambda: on_host_devices("devices"), devices_table),
        "pod": (lambda: on_host_devices("pod"), pod_table),
    }
    for name, (rows, table) in parts.items():
        if name not in options.only:
            continue
        found |= {"date": datetime.date.today().isoformat(), "jax": jax.__version__}
        found[name] = rows()
        print(f"\n{table(found[name])}", flush=True)
        if options.json:
            options.json.write_text(dump(found))


if __name__ == "__main__":
    main()
