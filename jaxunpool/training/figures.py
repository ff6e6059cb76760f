"""Figures of a run, drawn so that they read in grey print and to colour-blind eyes.

Classes carry their number, not only a colour; quantities are in cividis; lines differ in dash and
mark.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunpool.apps.command import UsageError, replacing
from jaxunpool.training import scenes
from jaxunpool.training.loop import LARGEST, SMALLEST, Scenes, State
from jaxunpool.training.metrics import IGNORED

DPI = 150
INK, FAINT, RULE = "#222222", "#6b6b6b", "#b0b0b0"
BLUE, ORANGE, YELLOW = "#0072b2", "#d55e00", "#e69f00"  # Okabe and Ito's
SHOWN = 6  # scenes in the figure of predictions

# Paul Tol's "muted", told apart by colour-blind eyes; the background is near white.
COLOURS = (
    "#332288",
    "#88ccee",
    "#44aa99",
    "#117733",
    "#999933",
    "#ddcc77",
    "#cc6677",
    "#882255",
    "#aa4499",
    "#6f6f6f",
    "#f4f4f4",
)


class Pictures(NamedTuple):
    """Images of any sizes and the classes of their pixels."""

    images: Sequence[np.ndarray]
    labels: Sequence[np.ndarray]


class Legend(NamedTuple):
    """How classes are shown.

    Attributes:
        names: of the classes.
        colours: of the classes.
        marks: written on their regions, one each or an empty text.
        least: pixels of a region that has room for its mark.
        inside: whether marks are where a region is widest, or in the middle of its pixels.
        image: what a row of images is called.
        width: of an image in a figure, in inches.
    """

    names: Sequence[str]
    colours: Sequence[str]
    marks: Sequence[str]
    least: int
    inside: bool
    image: str
    width: float


DIGITS = Legend(scenes.CLASS_NAMES, COLOURS, (*map(str, range(10)), ""), 30, False, "scene", 1.55)
SURFACE = "#ffffff"  # what has no class

# One per decoder: Okabe and Ito's colours, each with a dash and a mark of its own.
LINES: tuple[dict[str, Any], ...] = (
    {"color": "#0072b2", "linestyle": "-", "marker": "o"},
    {"color": "#000000", "linestyle": (0, (1, 1.2)), "marker": "x"},
    {"color": "#d55e00", "linestyle": "--", "marker": "s"},
    {"color": "#009e73", "linestyle": "-.", "marker": "^"},
    {"color": "#cc79a7", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "D"},
    {"color": "#e69f00", "linestyle": (0, (8, 2)), "marker": "v"},
)


def predictions(
    tested: Scenes | Pictures, predicted: Sequence[np.ndarray] | np.ndarray, legend: Legend = DIGITS
) -> Any:
    """Scenes in columns: the image, what it holds, what was predicted, where that is wrong."""
    shown = slice(min(SHOWN, len(predicted)))
    images, truth, predicted = tested.images[shown], tested.labels[shown], predicted[shown]
    rows = (legend.image, "truth", "predicted", "wrong pixels")
    aspect = max(len(each) / len(each[0]) for each in truth)
    figure, grid = _grid(rows, len(images), legend.width, aspect)
    for column in range(len(images)):
        grid[0][column].imshow(images[column])
        show_classes(grid[1][column], truth[column], legend)
        show_classes(grid[2][column], predicted[column], legend)
        known = truth[column] != IGNORED
        wrong = (truth[column] != predicted[column]) & known
        grid[3][column].imshow(wrong, cmap="gray_r", vmin=0, vmax=1)
        share = wrong.sum() / max(known.sum(), 1)
        grid[3][column].set_xlabel(f"{share:.1%}", size=9, color=FAINT)
    _legend_of_classes(figure, legend, any((each == IGNORED).any() for each in truth))
    return figure


def decoders_side_by_side(tested: Scenes, predicted: Mapping[str, np.ndarray]) -> Any:
    """Scenes in columns: the image, what it holds, and what each decoder predicts."""
    columns = min(SHOWN, len(tested.images))
    figure, grid = _grid(("scene", "truth", *predicted), columns)
    for column in range(columns):
        grid[0][column].imshow(tested.images[column])
        show_classes(grid[1][column], tested.labels[column])
        for row, found in zip(grid[2:], predicted.values()):
            show_classes(row[column], found[column])
    _legend_of_classes(figure)
    return figure


def show_classes(axes: Any, labels: np.ndarray, legend: Legend = DIGITS) -> None:
    """A map of classes, its mark written on every region that has room for it."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patheffects import withStroke
    from scipy import ndimage

    colours = [*legend.colours, SURFACE]
    axes.imshow(
        np.minimum(labels, len(legend.colours)),
        cmap=ListedColormap(colours),
        vmin=-0.5,
        vmax=len(colours) - 0.5,
        interpolation="none",
    )
    for number, mark in enumerate(legend.marks):
        if not mark:
            continue
        regions, count = ndimage.label(labels == number, np.ones((3, 3)))
        for region in range(1, count + 1):
            rows, columns = np.nonzero(regions == region)
            if len(rows) >= legend.least:
                row, column = rows.mean(), columns.mean()
                if legend.inside:
                    depth = ndimage.distance_transform_edt(np.pad(regions == region, 1))
                    row, column = np.subtract(np.unravel_index(depth.argmax(), depth.shape), 1)
                axes.text(
                    column,
                    row,
                    mark,
                    size=10,
                    weight="bold",
                    color="white",
                    ha="center",
                    va="center_baseline",
                    path_effects=[withStroke(linewidth=2.2, foreground="black")],
                )


def confusion(counts: np.ndarray, names: Sequence[str] = scenes.CLASS_NAMES) -> Any:
    """Of the pixels of each class, the share that was taken for each other one.

    Args:
        counts: of pixels, `[true class, predicted class]`.
        names: of the classes.
    """
    from matplotlib.figure import Figure

    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(6.4, 0.45 * len(names) + 1.5)
    figure = Figure((side + 1, side), dpi=DPI, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        text = f"{100 * share:.0f}" if share >= 0.005 else "·"
        colour = "black" if share > 0.5 else "white"
        axes.text(column, row, text, ha="center", va="center", size=9, color=colour)
    names = ["back-\nground" if name == "background" else name for name in names]
    long = max(len(name) for name in names) > 6 and names[-1] != "back-\nground"
    axes.set_xticks(range(len(names)), names, rotation=45 if long else 0)
    if long:
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted class", size=11)
    axes.set_ylabel("true class", size=11)
    axes.set_title("per cent of each true class's pixels", size=11, color=INK)
    axes.tick_params(length=0)
    bar = figure.colorbar(shown, ax=axes, shrink=0.85, ticks=[0, 0.5, 1])
    bar.ax.set_yticklabels(["0 %", "50 %", "100 %"])
    return figure


HEALTHY = (
    "Healthy: every layer has a bright band at every step.\n"
    "A band that keeps falling: the gradient vanishes. One that keeps rising: it explodes.\n"
    "An empty panel: no gradient reaches the layer."
)


def gradients(state: State, layers: Sequence[str], every: int) -> Any:
    """For each layer, how large its gradients are, over time; and how to read that."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    counts = np.asarray(state.gradients)
    shares = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    columns = min(4, len(layers))
    rows = -(-len(layers) // columns)
    figure = Figure((2.2 * columns + 1, 2.1 * rows + 1), dpi=DPI, layout="constrained")
    figure.suptitle(HEALTHY, size=10, color=INK)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    extent = (0, len(counts) * every, SMALLEST, LARGEST)
    for index, (axes, name) in enumerate(zip(grid.flat, layers)):
        shown = axes.imshow(
            shares[:, index].T,
            cmap="cividis",
            vmin=0,
            vmax=shares.max(),
            extent=extent,
            origin="lower",
            aspect="auto",
            interpolation="none",
        )
        axes.set_title(name, size=10)
        axes.yaxis.set_major_locator(MultipleLocator(2))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda power, _: f"$10^{{{power:.0f}}}$"))
    lower, upper = _occupied(shares)
    grid[0, 0].set_ylim(lower, upper)
    used, unused = list(grid.flat)[: len(layers)], list(grid.flat)[len(layers) :]
    for axes in unused:
        axes.remove()
    for axes in used[-columns:]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
    figure.supxlabel("step", size=11)
    figure.supylabel("absolute value of the gradient", size=11)
    bar = figure.colorbar(shown, ax=used, shrink=0.8, aspect=30)
    bar.set_label("share of the layer's kernel", size=10)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
    return figure


def learning_curve(state: State, every: int, trained: str, watched: str) -> Any:
    """The loss at every step, and the mIoU over the steps.

    Args:
        state: the end of a run.
        every: steps between two records of the mIoU.
        trained: what the loss is of, as "28,800 scenes".
        watched: what the mIoU is of, as "64 test scenes".
    """
    from matplotlib.figure import Figure

    losses, miou = np.asarray(state.losses), np.asarray(state.miou)
    steps = np.arange(1, len(losses) + 1)
    figure = Figure((9, 3.4), dpi=DPI, facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(steps, losses, color=RULE, linewidth=0.8, label="each step")
    width = max(len(losses) // 40, 1)
    smooth = np.convolve(losses, np.full(width, 1 / width), mode="valid")
    left.plot(steps[width - 1 :], smooth, color=BLUE, linewidth=2, label=f"mean of {width} steps")
    left.set(xlabel="step", ylim=(0, None))
    left.set_title(f"training loss, {trained}", size=11)
    left.legend(frameon=False, fontsize=9)
    right.plot(_record_steps(state, every), miou, color=ORANGE, marker="o", markersize=4)
    right.annotate(
        f"{miou[-1]:.2f}", (len(losses), miou[-1]), (0, 7), textcoords="offset points", ha="center"
    )
    right.set(xlabel="step", ylim=(0, 1))
    right.set_title(f"mIoU on {watched}", size=11)
    for axes in (left, right):
        _plain(axes)
    return figure


def comparison(
    states: Mapping[str, State],
    scores: Mapping[str, Mapping[str, Any]],
    every: int,
    watched: int,
    tested: int,
) -> Any:
    """Left: how the mIoU of each decoder rose. Right: where it and boundary F1 ended.

    Args:
        states: the end of each decoder's run.
        scores: of each decoder, after the last step.
        every: steps between two records of the mIoU.
        watched: scenes that these records are of.
        tested: scenes that the scores are of.
    """
    from matplotlib.figure import Figure

    figure = Figure((10, 4.2), dpi=DPI, facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    for line, (decoder, state) in zip(LINES, states.items()):
        left.plot(
            _record_steps(state, every),
            np.asarray(state.miou),
            label=decoder,
            markersize=4.5,
            linewidth=1.4,
            **line,
        )
    left.set(xlabel="step", ylim=(0, 1))
    left.set_title(f"mIoU on {watched} test scenes", size=11)
    left.legend(frameon=False, fontsize=9, handlelength=4)
    at = np.arange(len(scores))[::-1]
    for offset, colour, hatch, name, key in (
        (0.19, BLUE, "", "mIoU", "mean_iou"),
        (-0.19, YELLOW, "///", "boundary F1", "boundary_f1"),
    ):
        values = [score[key] for score in scores.values()]
        bars = right.barh(
            at + offset, values, 0.36, color=colour, hatch=hatch, edgecolor="white", label=name
        )
        right.bar_label(bars, fmt="%.2f", padding=3, size=9)
    right.set_yticks(at, list(scores))
    right.set(xlim=(0, 1))
    right.set_title(f"after the last step, {tested} test scenes", size=11)
    right.legend(
        frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2
    )
    for axes in (left, right):
        _plain(axes)
    return figure


def examples(made: Scenes) -> Any:
    """Scenes in columns: the image and what it holds."""
    figure, grid = _grid(("scene", "classes"), len(made.images))
    for column in range(len(made.images)):
        grid[0][column].imshow(made.images[column])
        show_classes(grid[1][column], made.labels[column])
    _legend_of_classes(figure)
    return figure


def save(figure: Any, path: pathlib.Path) -> None:
    """Write a figure whole or not at all."""
    try:
        with replacing(path) as unfinished:
            figure.savefig(unfinished, format=path.suffix[1:], dpi=DPI)
    except ValueError as error:
        raise UsageError(f"{path}: cannot be drawn ({error})") from None


def _grid(
    rows: Sequence[str], columns: int, width: float = DIGITS.width, aspect: float = 1
) -> tuple[Any, Any]:
    """A figure of pictures, `aspect` times as high as wide, with a name to the left of each row."""
    from matplotlib.figure import Figure

    figure = Figure(
        (width * columns + 0.5, width * aspect * len(rows) + 0.45),
        dpi=DPI,
        facecolor="white",
        layout="constrained",
    )
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for name, row in zip(rows, grid):
        row[0].set_ylabel(name, size=10.5, weight="bold")
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(linewidth=0.6, color=RULE)
    return figure, grid


def _legend_of_classes(figure: Any, legend: Legend = DIGITS, ignored: bool = False) -> None:
    from matplotlib.patches import Patch

    marked = (
        f"{mark} {name}" if mark and mark != name else name
        for name, mark in zip(legend.names, legend.marks)
    )
    handles = [
        Patch(facecolor=colour, edgecolor=RULE, label=name)
        for colour, name in zip(legend.colours, marked)
    ]
    if ignored:
        handles.append(Patch(facecolor=SURFACE, edgecolor=RULE, label="ignored"))
    letters = sum(len(str(handle.get_label())) + 4 for handle in handles) / len(handles)
    columns = max(int(figure.get_figwidth() * 12 / letters), 1)
    if legend is not DIGITS:  # room for the lines, that the images need not shrink
        lines = -(-len(handles) // columns)
        figure.set_figheight(figure.get_figheight() + 0.35 + 0.22 * lines)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), columns),
        frameon=False,
        fontsize=9,
        handlelength=1,
        handletextpad=0.4,
        columnspacing=1.1,
    )


def _record_steps(state: State, every: int) -> np.ndarray:
    """After which step each mIoU was taken."""
    return np.minimum(np.arange(1, len(state.miou) + 1) * every, len(state.losses))


def _occupied(shares: np.ndarray) -> tuple[float, float]:
    """The powers of ten between which there is anything worth showing."""
    used = np.nonzero(shares.max((0, 1)) > 0.002)[0]
    width = (LARGEST - SMALLEST) / shares.shape[-1]
    if not len(used):
        return SMALLEST, LARGEST
    return SMALLEST + used[0] * width, SMALLEST + (used[-1] + 1) * width


def _plain(axes: Any) -> None:
    """Axes without a box, with a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
