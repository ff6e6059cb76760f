"""A picture of the grid: a panel for each operation and peer, a mark for each cell."""

from __future__ import annotations

import hashlib
import math
import pathlib
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D

from benchmarks import report

# Okabe and Ito's colours for windows, a shape for each type, hollow for channels first.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#999999")
MARKERS = {"float32": "o", "bfloat16": "s", "float16": "^"}
TICKS = [t * 10**e for e in range(-3, 4) for t in (1, 2, 5)]


def digest(path: pathlib.Path) -> str:
    """What a picture says of the file that it was made from."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save(source: pathlib.Path, image: pathlib.Path) -> None:
    """Draw the grid of a file."""
    image.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "jaxunpool", "font.size": 9}):
        figure = draw(report.grid(report.load(source)))
        figure.savefig(image, metadata={"Date": None, "Source": digest(source)})
        plt.close(figure)


def draw(results: list[report.Result]) -> Any:
    """Panels in three columns; their rows are shapes, and the windows in each of them."""
    panels = [
        (operation, peer)
        for operation in report.distinct(results, "operation")
        for peer in report.peers(r for r in results if r["operation"] == operation)
    ]
    shapes = report.distinct(results, "shape")
    colors = dict(zip(windows := report.distinct(results, "window"), COLORS * len(windows)))
    values = [ratio for result in results for ratio in report.ratios(result).values()]
    low, high = min(0.7, *values) / 1.15, max(1.5, *values) * 1.15
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(1.6 + 2.9 * columns, 0.9 + rows * (0.55 + 0.33 * len(shapes))),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
        facecolor="white",
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (operation, peer) in zip(grid.flat, panels):
        axes.axvspan(low, 1, color="#f6e9e4", lw=0)
        axes.axvline(1, color="black", lw=1)
        axes.set_title(f"{operation}: {report.title(peer).strip('`')}", fontsize=9, loc="left")
        chosen = [r for r in results if r["operation"] == operation and peer in report.ratios(r)]
        lines = report.distinct(chosen, "window")
        for result in chosen:
            line = (lines.index(result["window"]) + 0.5) / len(lines) - 0.5
            color = colors[result["window"]]
            axes.plot(
                report.ratios(result)[peer],
                shapes.index(result["shape"]) + 0.8 * line,
                MARKERS[result["dtype"]],
                mec=color,
                mfc=color if result["layout"] == "channels_last" else "none",
                ms=3.6,
                mew=0.9,
                alpha=0.9,
            )
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.set_ylim(len(shapes) - 0.5, -0.5)
        axes.set_yticks(range(len(shapes)), shapes)
        for edge in range(1, len(shapes)):
            axes.axhline(edge - 0.5, color="#dddddd", lw=0.7)
        fitting = [tick for tick in TICKS if low <= tick <= high]
        if len(fitting) > 7:
            fitting = [tick for tick in fitting if math.log10(tick).is_integer()]
        axes.set_xticks(fitting, [f"{tick:g}" for tick in fitting])
        axes.minorticks_off()
        axes.grid(axis="x", color="#dddddd", lw=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0, labelbottom=True)
    figure.supxlabel("peer's time over ours (right of 1: we are faster)", fontsize=9.5)
    _legend(figure, colors, results)
    return figure


def _legend(figure: Any, colors: dict[str, str], results: list[report.Result]) -> None:
    def mark(label: str, marker: str, color: str, face: str | None = None) -> Line2D:
        return Line2D([], [], marker=marker, ls="", mec=color, mfc=face or color, ms=5, label=label)

    marks = [mark(window, "D", color) for window, color in colors.items()]
    marks += [mark(t, MARKERS[t], "#555555") for t in report.distinct(results, "dtype")]
    if len(report.distinct(results, "layout")) > 1:
        marks.append(mark("channels first", "o", "#555555", "none"))
    figure.legend(
        handles=marks,
        loc="outside upper center",
        ncols=math.ceil(len(marks) / math.ceil(len(marks) / 9)),
        frameon=False,
        columnspacing=1.2,
        handletextpad=0.1,
    )
