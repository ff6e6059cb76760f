"""The drawings of the documentation: `python docs/drawings.py` writes docs/images/drawings/*.svg.

Every number in them is computed by the library. Windows have letters and line styles besides their
colours (Okabe and Ito's), so that the drawings can be read in grey.
"""

from __future__ import annotations

import functools
import itertools
import pathlib
import string
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import jaxunpool as jup
from jaxunpool.core import primitives

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.patches import Circle, Rectangle

FOLDER = pathlib.Path(__file__).parent / "images/drawings"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
LINES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
GREY = "#9a9a9a"
WIDTH = 7.2  # inches, a page's column

# One plane, pooled by 2x2 windows: one of them has a tie.
X = jnp.array([[3, 1, 0, 2], [4, 8, 5, 2], [7, 7, 1, 0], [2, 6, 3, 9]], jnp.float32)
U = jnp.array([[5, 2, 1, 6], [0, 3, 4, 1], [2, 1, 7, 3], [6, 0, 2, 5]], jnp.float32)
Y = jnp.array([[1, 2], [3, 4]], jnp.float32)
TILES = jup.WindowGeometry.for_input((4, 4, 1), (2, 2))


def plane(array: jax.Array) -> np.ndarray:
    """The only channel of an array, as numbers to write down."""
    return np.asarray(array)[..., 0]


class Sheet:
    """A drawing in units of one cell, y pointing down."""

    def __init__(self, width: float, height: float) -> None:
        scale = WIDTH / width
        self.figure = plt.figure(figsize=(WIDTH, height * scale), facecolor="white")
        self.axes = self.figure.add_axes((0, 0, 1, 1), frameon=False)
        self.axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
        self.point = 72 * scale  # points in a cell

    def text(self, x: float, y: float, words: str, size: float = 0.36, **options: Any) -> None:
        """Words, as tall as a share of a cell."""
        options = {"ha": "center", "va": "center"} | options
        self.axes.text(x, y, words, fontsize=size * self.point, **options)

    def arrow(self, start: float, stop: float, y: float, words: str = "", below: str = "") -> None:
        """An arrow from left to right or back, with words over and under it."""
        style = {"arrowstyle": "-|>", "lw": 1.4, "color": "black", "shrinkA": 0, "shrinkB": 0}
        self.axes.annotate("", (stop, y), (start, y), arrowprops=style)
        self.text((start + stop) / 2, y - 0.36, words, 0.34, family="monospace")
        self.text((start + stop) / 2, y + 0.36, below, 0.3, color="#444444")

    def grid(
        self,
        left: float,
        top: float,
        values: Any,
        title: str = "",
        *,
        geometry: jup.WindowGeometry | None = None,
        letters: bool = False,
        circled: Any = None,
        numbered: bool = False,
        unpooled: bool = False,
    ) -> None:
        """A plane of numbers.

        `geometry` outlines its windows, `letters` names the elements as windows are named,
        `circled` elements were selected, `numbered` ones show their flat position, and zeros are
        grey where a plane is `unpooled`.
        """
        values = np.asarray(values)
        rows, columns = values.shape
        self.text(left + columns / 2, top - 0.42, title, 0.36)
        for row, column in itertools.product(range(rows), range(columns)):
            x, y, value = left + column, top + row, values[row, column]
            written_zero = value == 0 and unpooled
            self.axes.add_patch(Rectangle((x, y), 1, 1, fc="white", ec="#c4c4c4", lw=0.8))
            number = f"{value:g}"
            size = 0.42 if len(number) < 4 else 0.33
            self.text(x + 0.5, y + 0.53, number, size, color=GREY if written_zero else "black")
            if letters:
                name(self, x, y, row * columns + column)
            if numbered:
                flat = f"{row * columns + column}"
                self.text(x + 0.92, y + 0.84, flat, 0.22, color="#555555", ha="right")
            if circled is not None and circled[row, column]:
                ring = Circle((x + 0.5, y + 0.53), 0.33, fc="none", ec="black", lw=1.3)
                self.axes.add_patch(ring)
        self.axes.add_patch(Rectangle((left, top), columns, rows, fc="none", ec="black", lw=1))
        if geometry is not None:
            self.windows(left, top, geometry)

    def windows(self, left: float, top: float, geometry: jup.WindowGeometry) -> None:
        """The outlines of windows, each a little further inside where they overlap."""
        shape = geometry.output_shape
        for number, index in enumerate(itertools.product(*map(range, shape))):
            inset = 0.05 + (0.05 * number if geometry.overlaps else 0)
            row, column = (
                i * stride - low
                for i, stride, (low, _) in zip(index, geometry.strides, geometry.padding)
            )
            height, width = geometry.window_shape
            box = Rectangle(
                (left + column + inset, top + row + inset),
                width - 2 * inset,
                height - 2 * inset,
                fc=(*matplotlib.colors.to_rgb(COLORS[number]), 0.1),
                ec=COLORS[number],
                lw=2,
                ls=LINES[number],
            )
            self.axes.add_patch(box)
            x, y = left + column + inset, top + row + inset
            if geometry.overlaps:  # into the corner that no other window has
                x += (index[1] > 0) * (width - 2 * inset - 0.27)
                y += (index[0] > 0) * (height - 2 * inset - 0.33)
            name(self, x, y, number)

    def padding(self, left: float, top: float, geometry: jup.WindowGeometry) -> None:
        """Hatched cells around a plane."""
        (above, below), (before, after) = geometry.padding
        rows, columns = geometry.input_shape
        for row, column in itertools.product(
            range(-above, rows + below), range(-before, columns + after)
        ):
            if not (0 <= row < rows and 0 <= column < columns):
                at = (left + column, top + row)
                style: Any = {"fc": "#f2f2f2", "ec": "#bdbdbd", "hatch": "////", "lw": 0.6}
                self.axes.add_patch(Rectangle(at, 1, 1, **style))


def name(sheet: Sheet, left: float, top: float, number: int) -> None:
    """The letter of a window, in a corner of a cell."""
    letter, color = string.ascii_uppercase[number], COLORS[number]
    sheet.text(left + 0.17, top + 0.19, letter, 0.24, color=color, weight="bold")


def select() -> Sheet:
    """Maximum and offset of every window."""
    y, offsets = primitives.select(X[..., None], TILES, None)
    selected = jup.max_unpool(jnp.ones_like(y), jup.PoolIndices(offsets, TILES))
    sheet = Sheet(16, 5)
    sheet.grid(0.2, 0.8, X, "x", geometry=TILES, circled=plane(selected))
    sheet.arrow(4.6, 6.6, 2.8, "select")
    sheet.grid(7, 1.8, plane(y), "y", letters=True)
    sheet.grid(9.7, 1.8, plane(offsets), "offsets", letters=True)
    sheet.grid(13.2, 1.8, np.arange(4).reshape(2, 2), "offsets in a window")
    return sheet


def gather() -> Sheet:
    """One element of every window."""
    _, offsets = primitives.select(X[..., None], TILES, None)
    y = primitives.gather(U[..., None], offsets, TILES, None)
    read = jup.max_unpool(jnp.ones_like(y), jup.PoolIndices(offsets, TILES))
    sheet = Sheet(16, 5)
    sheet.grid(0.2, 0.8, U, "u", geometry=TILES, circled=plane(read))
    sheet.text(4.85, 2.8, "+", 0.5)
    sheet.grid(5.5, 1.8, plane(offsets), "offsets", letters=True)
    sheet.arrow(8.3, 10.3, 2.8, "gather")
    sheet.grid(11, 1.8, plane(y), "y", letters=True)
    return sheet


def scatter() -> Sheet:
    """One element of every window written, zeros elsewhere."""
    _, offsets = primitives.select(X[..., None], TILES, None)
    u = primitives.scatter(Y[..., None], offsets, TILES, "sum", None)
    sheet = Sheet(16, 5)
    sheet.grid(1, 1.8, Y, "y", letters=True)
    sheet.text(3.5, 2.8, "+", 0.5)
    sheet.grid(4, 1.8, plane(offsets), "offsets", letters=True)
    sheet.arrow(6.8, 8.8, 2.8, "scatter")
    sheet.grid(9.6, 0.8, plane(u), "u", geometry=TILES, unpooled=True)
    return sheet


def reduce() -> Sheet:
    """The sum over every window."""
    sheet = Sheet(16, 5)
    sheet.grid(2.2, 0.8, U, "u", geometry=TILES)
    sheet.arrow(6.9, 9.2, 2.8, "reduce", "sum")
    sheet.grid(10, 1.8, plane(primitives.reduce(U[..., None], TILES, None)), "y", letters=True)
    return sheet


def replicate() -> Sheet:
    """A copy in every element of a window."""
    u = primitives.replicate(Y[..., None], TILES, None)
    sheet = Sheet(16, 5)
    sheet.grid(2.2, 1.8, Y, "y", letters=True)
    sheet.arrow(5, 7.6, 2.8, "replicate", "copy")
    sheet.grid(8.4, 0.8, plane(u), "u", geometry=TILES)
    return sheet


def transposes() -> Sheet:
    """Two pairs of primitives, and the number that says they are transposes."""
    y, u = Y[..., None], U[..., None]
    _, offsets = primitives.select(X[..., None], TILES, None)
    pairs: dict[tuple[str, str], tuple[Callable[..., Any], Callable[..., Any]]] = {
        ("scatter", "gather"): (
            lambda y: primitives.scatter(y, offsets, TILES, "sum", None),
            lambda u: primitives.gather(u, offsets, TILES, None),
        ),
        ("replicate", "reduce"): (
            lambda y: primitives.replicate(y, TILES, None),
            lambda u: primitives.reduce(u, TILES, None),
        ),
    }
    sheet = Sheet(18, 12.1)
    for top, ((up, down), (write, read)) in zip((0.8, 6.9), pairs.items()):
        products = [float(jnp.vdot(write(y), u)), float(jnp.vdot(y, read(u)))]
        assert products[0] == products[1]
        sheet.grid(0.3, top + 1, Y, "y", letters=True)
        sheet.arrow(2.7, 4.9, top + 2, up)
        sheet.grid(5.2, top, plane(write(y)), f"{up}(y)", geometry=TILES, unpooled=True)
        sheet.grid(9.9, top, U, "u", geometry=TILES)
        sheet.arrow(14.2, 15.5, top + 2)
        sheet.text(14.85, top + 1.62, down, 0.34, family="monospace")
        sheet.grid(15.8, top + 1, plane(read(u)), f"{down}(u)", letters=True)
        left, right = f"⟨{up}(y), u⟩ = {products[0]:g}", f"⟨y, {down}(u)⟩ = {products[1]:g}"
        sheet.text(9, top + 4.65, f"{left}   =   {right}", 0.38)
    return sheet


def flat_and_offsets() -> Sheet:
    """Flat positions of one plane, read in a wider one; and offsets."""
    x = jnp.arange(16, dtype=jnp.float32).reshape(4, 4, 1)
    _, indices = jup.max_pool_with_indices(x, (2, 2))
    wider = jup.WindowGeometry.for_output((2, 2, 1), (2, 2), output_shape=(5, 5))
    y, here = Y[..., None], jup.PoolIndices(indices.offsets, wider)
    sheet = Sheet(16.4, 6.6)
    for left, values, title, geometry in (
        (0.2, jup.max_unpool(y, indices), "pooled here: 4 x 4", TILES),
        (5.2, jup.max_unpool(y, indices.flat, output_shape=(5, 5)), "flat, read in 5 x 5", None),
        (11.2, jup.max_unpool(y, here), "offsets, read in 5 x 5", wider),
    ):
        u = plane(values)
        sheet.grid(left, 0.8, u, title, numbered=True, unpooled=True)
        if geometry is not None:
            sheet.windows(left, 0.8, geometry)
    flat = ", ".join(map(str, np.ravel(indices.flat).tolist()))
    offsets = ", ".join(map(str, np.ravel(indices.offsets).tolist()))
    sheet.text(2.2, 5.4, f"flat {flat}", 0.32)
    sheet.text(2.2, 5.95, f"offsets {offsets}", 0.32)
    sheet.text(7.7, 6.2, "elsewhere", 0.32)
    sheet.text(13.7, 6.2, "in their windows", 0.32)
    return sheet


def duplicates() -> Sheet:
    """Two windows that select the same element, and what unpooling makes of it."""
    x = jnp.array([[1, 0, 2, 3, 1], [2, 4, 9, 0, 2], [0, 3, 1, 5, 4]], jnp.float32)
    y, indices = jup.max_pool_with_indices(x[..., None], (3, 3), 2)
    selected = jup.max_unpool(jnp.ones_like(y), indices)
    written = jnp.array([[[2.0], [5.0]]])

    def unpool(rule: str, y: jax.Array) -> jax.Array:
        return jup.max_unpool(y, indices, duplicates=rule)

    sheet = Sheet(18, 8.9)
    geometry = jup.WindowGeometry.for_input((3, 5, 1), (3, 3), 2)
    sheet.grid(1.2, 0.9, x, "x", geometry=geometry, circled=plane(selected))
    sheet.arrow(6.7, 9.5, 2.4, "max_pool", "3x3 every 2")
    sheet.grid(10, 1.9, plane(y), "y", letters=True)
    sheet.grid(14, 1.9, plane(written), "written in its place", letters=True)
    for left, rule in ((0.3, "last"), (9.5, "sum")):
        u, pullback = jax.vjp(functools.partial(unpool, rule), written)
        (gradient,) = pullback(jnp.ones_like(u))
        sheet.grid(left, 5.5, plane(u), f'duplicates="{rule}"', unpooled=True)
        sheet.text(left + 7, 5.75, "gradient of", 0.32)
        sheet.text(left + 7, 6.15, "the sum", 0.32)
        sheet.grid(left + 6, 6.5, plane(gradient), letters=True)
    return sheet


def padding() -> Sheet:
    """One size, one window, two rules of padding: different windows."""
    sheet = Sheet(19.4, 7.2)
    for left, rule, title in ((0.2, "SAME", 'padding="SAME"'), (9.3, 1, "padding=1")):
        y, indices = jup.max_pool_with_indices(X[..., None], (3, 3), 2, rule)
        geometry = jup.WindowGeometry.for_input((4, 4, 1), (3, 3), 2, rule)
        low = geometry.padding[0][0]
        selected = jup.max_unpool(jnp.ones_like(y), indices)
        sheet.text(left + low + 2, 0.5, title, 0.38, family="monospace")
        sheet.padding(left + low, 1.9, geometry)
        sheet.grid(left + low, 1.9, X, circled=plane(selected), geometry=geometry)
        sheet.arrow(left + low + 5.2, left + low + 6.1, 3.9)
        sheet.grid(left + low + 6.3, 2.9, plane(y), "y", letters=True)
    return sheet


def unpoolings() -> Sheet:
    """What the unpoolings make of the same four numbers."""
    y = Y[..., None]
    _, indices = jup.max_pool_with_indices(X[..., None], (2, 2))
    pattern = jnp.array([[1.0, 0.5], [0.5, 0.25]])
    panels = {
        "max_unpool": jup.max_unpool(y, indices),
        "bed_of_nails_unpool": jup.bed_of_nails_unpool(y, (2, 2)),
        "nearest_unpool": jup.nearest_unpool(y, (2, 2)),
        "fixed_unpool": jup.fixed_unpool(y, pattern),
        'avg_unpool, "adjoint"': jup.avg_unpool(y, (2, 2), mode="adjoint", output_shape=(4, 4)),
        'interpolate, "linear"': jup.interpolate(y, (4, 4), mode="linear"),
    }
    sheet = Sheet(18, 11.2)
    for number, (title, u) in enumerate(panels.items()):
        row, column = divmod(number, 3)
        left, top = 0.9 + 6.1 * column, 0.9 + 5.4 * row
        geometry = None if "interpolate" in title else TILES
        sheet.grid(left, top, plane(u), title, geometry=geometry, unpooled=True)
    return sheet


DRAWINGS: Sequence[Callable[[], Sheet]] = (
    select,
    gather,
    scatter,
    reduce,
    replicate,
    transposes,
    flat_and_offsets,
    duplicates,
    padding,
    unpoolings,
)


def draw(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Write every drawing, the same bytes from the same numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    style: Any = {"svg.hashsalt": "jaxunpool", "hatch.linewidth": 0.5, "hatch.color": "#bdbdbd"}
    for drawing in DRAWINGS:
        path = folder / f"{drawing.__name__}.svg"
        with matplotlib.rc_context(style):
            sheet = drawing()
            plt.savefig(path, metadata={"Date": None})
            plt.close(sheet.figure)
        yield path


if __name__ == "__main__":
    for written in draw(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER):
        print(written)
