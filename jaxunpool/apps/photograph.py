"""Max-pool a photograph level by level, and unpool every level. Prints a table, draws a figure."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import pathlib
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunpool.apps.command import (
    Parser,
    UsageError,
    count,
    exit_status,
    replacing,
    require_extra,
    show_table,
)
from jaxunpool.indices import PoolIndices
from jaxunpool.max import max_pool_with_indices, max_unpool

DEFAULT_LEVELS = 3
MOST_LEVELS = 8
FORMATS = ("png", "jpg", "jpeg", "webp", "tif", "tiff", "pdf", "svg")
TIMED_RUNS = 9

# Layout of the figure in pixels. A pixel of a close-up is ZOOM pixels wide, so that all are equal.
DPI = 150
PANEL = 400
ZOOM = 5
GAP = 14
LEFT, RIGHT, TOP, BOTTOM = 84, 104, 78, 14
TIMES, MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"
FAINT, ACCENT = "#6b6b6b", "#ffb000"

# One step is compiled at a time: a compiled chain would compile all its steps anew for each level.
unpool_once = jax.jit(max_unpool)


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A picture of shape (height, width, channels), float32 between 0 and 1."""

    pixels: np.ndarray
    name: str
    focus: tuple[int, int] | None = None  # upper left corner of what is worth a close-up


@dataclasses.dataclass(frozen=True)
class Level:
    """What one level of the chain gave; level 0 is the photograph itself."""

    pooled: jax.Array
    unpooled: jax.Array
    gradient: jax.Array
    indices: PoolIndices | None = None
    pool_ms: float = 0.0
    unpool_ms: float = 0.0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 2 is the exit status of a request that cannot be met."""
    return exit_status(lambda: show_photograph(parse(arguments)))


def show_photograph(options: argparse.Namespace) -> int:
    """The table and the figure."""
    require_extra("demo", "matplotlib", "rich", "skimage")
    output = check_output(options.output, options.image)
    photograph = load(options.image)
    levels = run(photograph, options.window, options.strides, options.levels)
    print_table(
        f"{photograph.name}: window {options.window}, strides {options.strides}, float32 on"
        f" {jax.default_backend()}",
        levels,
    )
    figure = draw(photograph, levels)
    verb = "replaced" if output.exists() else "wrote"
    save(figure, output)
    print(verb, options.output)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="python -m jaxunpool",
        description=__doc__,
        epilog="Subcommands, each with its own --help: train (a small SegNet, or one on your own"
        " images), predict (segments images), compare (all decoders).",
    )
    parser.add_argument("--image", type=pathlib.Path, help="a picture file (default: a cat)")
    parser.add_argument("--window", type=count, default=2, help="size of the window (default 2)")
    parser.add_argument(
        "--strides", type=count, help="distance between windows (default: the window)"
    )
    parser.add_argument(
        "--levels",
        type=count,
        help=f"times to pool, up to {MOST_LEVELS} (default: {DEFAULT_LEVELS} or as many as fit)",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("jaxunpool.png"),
        help="where to write the figure (default: jaxunpool.png, overwritten if it exists)",
    )
    options = parser.parse_args(arguments)
    if options.levels is not None and options.levels > MOST_LEVELS:
        parser.error(f"argument --levels: expected at most {MOST_LEVELS}, got {options.levels}")
    options.strides = options.strides or options.window
    return options


def check_output(output: pathlib.Path, image: pathlib.Path | None) -> pathlib.Path:
    """The file to write, symbolic links resolved, or a UsageError if it cannot be written."""
    if output.suffix[1:].lower() not in FORMATS:
        raise UsageError(f"--output {output}: expected a file name ending in {', '.join(FORMATS)}")
    folder = output.parent
    if not folder.is_dir():
        raise UsageError(f"--output {output}: {folder} is not a folder")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--output {output}: the folder {folder} is not writable")
    if output.exists() and not output.is_file():
        raise UsageError(f"--output {output}: is not a file")
    if image is not None and image.exists() and output.exists() and output.samefile(image):
        raise UsageError(f"--output {output}: would overwrite the photograph")
    return output.resolve()


def load(image: pathlib.Path | None) -> Photograph:
    """The given photograph, or the cat that scikit-image ships."""
    if image is None:
        import skimage.data

        return Photograph(_unit(skimage.data.chelsea(), 255), "chelsea", focus=(90, 126))
    if not image.is_file():
        raise UsageError(
            f"--image {image}: " + ("not a file" if image.exists() else "no such file")
        )
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(image) as picture:
            return Photograph(_pixels(picture), image.name)
    except Image.UnidentifiedImageError:
        raise UsageError(f"--image {image}: not a picture in a known format") from None
    except Exception as error:  # decoders raise all kinds of them for a broken file
        raise UsageError(f"--image {image}: cannot be read ({error})") from None


def _pixels(picture: Any) -> np.ndarray:
    """One channel for grey pictures, three for all others; what is transparent becomes white."""
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits
        return _unit(np.asarray(picture)[..., None], 65535)
    if picture.mode == "F":
        values = np.nan_to_num(np.asarray(picture)[..., None])
        return _unit(values, max(float(values.max()), 1.0))
    grey = picture.mode in ("1", "L", "LA", "La")
    opaque = Image.new("RGBA", picture.size, "white")
    opaque.alpha_composite(picture.convert("RGBA"))
    return _unit(np.asarray(opaque)[..., : 1 if grey else 3], 255)


def _unit(values: np.ndarray, white: float) -> np.ndarray:
    """Float32 between 0 and 1."""
    return np.clip(values.astype(np.float32) / np.float32(white), 0, 1)


def run(photograph: Photograph, window: int, strides: int, levels: int | None) -> list[Level]:
    """The photograph as level 0, then every level: pooled, unpooled to full size, gradient."""
    x = jnp.asarray(photograph.pixels)
    count = count_levels(photograph, window, strides, levels)
    # Pairs, since an int would mean a single spatial axis for an image without a batch axis.
    pool = jax.jit(lambda x: max_pool_with_indices(x, (window, window), (strides, strides)))
    found = [Level(x, x, jax.grad(loss)(x, pool, 0))]
    chain: tuple[PoolIndices, ...] = ()
    for depth in range(1, count + 1):
        previous = found[-1].pooled
        y, indices = pool(previous)
        chain = (*chain, indices)
        found.append(
            Level(
                pooled=y,
                unpooled=unpool(y, chain),
                gradient=jax.grad(loss)(x, pool, depth),
                indices=indices,
                pool_ms=milliseconds(pool, previous),
                unpool_ms=milliseconds(unpool, y, chain),
            )
        )
    return found


def count_levels(photograph: Photograph, window: int, strides: int, wanted: int | None) -> int:
    """As many levels as wanted; by default fewer where the pooled image gets too small."""
    height, width = photograph.pixels.shape[:2]
    for name, value in (("window", window), ("strides", strides)):
        if value > min(height, width):
            raise UsageError(
                f"--{name} {value}: larger than {photograph.name}, which has {height} x {width}"
                " pixels"
            )
    side, fitting = min(height, width), 0
    while side >= window and fitting < (wanted or DEFAULT_LEVELS):
        side, fitting = (side - window) // strides + 1, fitting + 1
    if wanted is not None and fitting < wanted:
        raise UsageError(
            f"--levels {wanted}: {photograph.name} of {height} x {width} pixels is smaller than"
            f" the window after {fitting} (--window {window})"
        )
    return fitting


def unpool(y: jax.Array, chain: Sequence[PoolIndices]) -> jax.Array:
    """Back through all the indices, the deepest level first."""
    for indices in reversed(chain):
        y = unpool_once(y, indices)
    return y


def loss(x: jax.Array, pool: Callable[..., Any], depth: int) -> jax.Array:
    """Squared distance of the unpooled image from mid-grey.

    Its gradient is `2 * x - 1` where `x` was selected at every level and 0 elsewhere: bright and
    dark pixels differ in sign.
    """
    y, chain = x, []
    for _ in range(depth):
        y, indices = pool(y)
        chain.append(indices)
    return jnp.sum((unpool(y, chain) - 0.5) ** 2)


def milliseconds(function: Callable[..., Any], *arguments: Any) -> float:
    """Median time of a call, compiled before."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(TIMED_RUNS):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def print_table(title: str, levels: list[Level]) -> None:
    """One row per level, the bytes of all levels below."""
    from rich.console import Console

    indices = [level.indices for level in levels if level.indices is not None]
    columns = {
        "level": [str(depth) for depth in range(1, len(levels))],
        "input": [_shape(level.pooled) for level in levels[:-1]],
        "pooled": [_shape(level.pooled) for level in levels[1:]],
        "index\nbytes": [f"{i.nbytes:,}" for i in indices],
        "int64\nbytes": [f"{_bytes_of_int64(i):,}" for i in indices],
        "energy\nkept": [_energy_kept(level, levels[0]) for level in levels[1:]],
        "pool\nms": [f"{level.pool_ms:.2f}" for level in levels[1:]],
        "unpool\nms": [f"{level.unpool_ms:.2f}" for level in levels[1:]],
    }
    totals = {
        "level": "all",
        "index\nbytes": f"{sum(i.nbytes for i in indices):,}",
        "int64\nbytes": f"{sum(map(_bytes_of_int64, indices)):,}",
    }
    console = Console(highlight=False)
    show_table(console, title, columns, spare=("input", "int64\nbytes"), footers=totals)
    print("\nint64 bytes: the same indices in PyTorch")
    print("energy: sum of squares of the unpooled image, relative to\n        the photograph")
    print("unpool: from this level to the size of the photograph")


def _bytes_of_int64(indices: PoolIndices) -> int:
    return 8 * math.prod(indices.shape)


def _energy_kept(level: Level, photograph: Level) -> str:
    return f"{_energy(level.unpooled) / (_energy(photograph.pooled) or 1.0):.1%}"


def _energy(image: jax.Array) -> float:
    return float(np.square(np.asarray(image), dtype=np.float64).sum())


def _shape(image: jax.Array) -> str:
    return "x".join(map(str, image.shape))


@dataclasses.dataclass(frozen=True)
class Grid:
    """Where the panels are: three rows, a column per level, the colour bar to the right."""

    columns: int
    panel_height: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the figure in pixels."""
        width = LEFT + self.columns * (PANEL + GAP) - GAP + RIGHT
        return width, TOP + 3 * (self.panel_height + GAP) - GAP + BOTTOM

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Upper left corner of a panel, in pixels from the upper left corner of the figure."""
        return LEFT + column * (PANEL + GAP), TOP + row * (self.panel_height + GAP)

    def relative(self, x: float, y: float) -> tuple[float, float]:
        """Matplotlib's coordinates of a pixel: from the lower left corner, between 0 and 1."""
        return x / self.size[0], 1 - y / self.size[1]

    def axes(self, figure: Any, row: int, column: int, width: int = PANEL) -> Any:
        """New axes that fill a panel."""
        left, top = self.corner(row, column)
        x, y = self.relative(left, top + self.panel_height)
        return figure.add_axes((x, y, width / self.size[0], self.panel_height / self.size[1]))


def draw(photograph: Photograph, levels: list[Level]) -> Any:
    """A column per level; a row each for the pooled image, the unpooled one and the gradient."""
    from matplotlib.figure import Figure

    height, width = photograph.pixels.shape[:2]
    # Pictures that are much longer than wide, or the reverse, leave part of their panel empty.
    grid = Grid(len(levels), ZOOM * round(PANEL * min(max(height / width, 0.6), 1.5) / ZOOM))
    figure = Figure((grid.size[0] / DPI, grid.size[1] / DPI), dpi=DPI, facecolor="white")
    region = close_up(photograph, PANEL // ZOOM, grid.panel_height // ZOOM)
    for column, level in enumerate(levels):
        write_title(figure, grid, column, level.pooled)
        whole = grid.axes(figure, 0, column)
        show(whole, level.pooled, extent=(0, width, height, 0))
        if column == 0:
            mark(whole, region)
        show(grid.axes(figure, 1, column), level.unpooled[region])
        gradient = strongest(level.gradient[region])
        shown = show(grid.axes(figure, 2, column), gradient, cmap="RdBu_r", vmin=-1, vmax=1)
    bar = figure.colorbar(shown, cax=grid.axes(figure, 2, len(levels), width=18))
    bar.set_ticks([-1, 0, 1])
    bar.ax.tick_params(labelsize=10, width=0.6, length=3)
    bar.outline.set_linewidth(0.6)
    write_row_names(figure, grid)
    return figure


def write_title(figure: Any, grid: Grid, column: int, pooled: jax.Array) -> None:
    """Above a column: its name and the size of the pooled image."""
    x = grid.corner(0, column)[0] + PANEL / 2
    name = f"level {column}" if column else "photograph"
    figure.text(*grid.relative(x, 30), name, ha="center", size=12, weight="bold")
    size = f"{pooled.shape[0]} {TIMES} {pooled.shape[1]}"
    figure.text(*grid.relative(x, 64), size, ha="center", size=11, color=FAINT)


def write_row_names(figure: Any, grid: Grid) -> None:
    """Along the left side of the rows: what they show."""
    names = {
        "pooled": "whole image",
        "unpooled": "close-up",
        "gradient": f"of Σ (unpooled {MINUS} ½)²",
    }
    for row, (name, detail) in enumerate(names.items()):
        y = grid.corner(row, 0)[1] + grid.panel_height / 2
        upright: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "center"}
        figure.text(*grid.relative(26, y), name, size=12, weight="bold", **upright)
        figure.text(*grid.relative(60, y), detail, size=10.5, color=FAINT, **upright)


def show(axes: Any, image: Any, **options: Any) -> Any:
    """An image pixel by pixel in a thin frame."""
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image.repeat(3, axis=-1)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(linewidth=0.6, color="#b0b0b0")
    return axes.imshow(image, interpolation="nearest", **options)


def strongest(gradient: jax.Array) -> np.ndarray:
    """Of the channels of each pixel, the gradient farthest from zero."""
    values = np.asarray(gradient)
    return np.take_along_axis(values, np.abs(values).argmax(-1)[..., None], -1)[..., 0]


def close_up(photograph: Photograph, width: int, height: int) -> tuple[slice, slice]:
    """The region to enlarge: at the focus, or else the tile that varies most."""
    rows, columns = photograph.pixels.shape[:2]
    height, width = min(height, rows), min(width, columns)
    if photograph.focus is not None:
        top, left = photograph.focus
        top, left = min(top, rows - height), min(left, columns - width)
    else:
        down, across = rows // height, columns // width
        covered = photograph.pixels[: down * height, : across * width].mean(-1)
        variance = covered.reshape(down, height, across, width).var(axis=(1, 3))
        top, left = divmod(int(variance.argmax()), across)
        top, left = top * height, left * width
    return slice(top, top + height), slice(left, left + width)


def mark(axes: Any, region: tuple[slice, slice]) -> None:
    """A frame around the region that the other rows enlarge."""
    from matplotlib.patches import Rectangle

    rows, columns = region
    for colour, line in (("black", 3.2), (ACCENT, 1.6)):
        axes.add_patch(
            Rectangle(
                (columns.start, rows.start),
                columns.stop - columns.start,
                rows.stop - rows.start,
                fill=False,
                color=colour,
                linewidth=line,
            )
        )


def save(figure: Any, output: pathlib.Path) -> None:
    """Write the figure whole or not at all."""
    try:
        with replacing(output) as unfinished:
            figure.savefig(unfinished, format=output.suffix[1:].lower(), dpi=DPI)
    except UsageError as error:
        raise UsageError(f"--output {error}") from None
