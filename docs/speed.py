"""Tables and plots of benchmarks/results/*.json: `python docs/speed.py` writes them.

The plots go to docs/images/speed, the tables into docs/speed.md, between its two markers.
"""

from __future__ import annotations

import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("svg")
from matplotlib import pyplot as plt

DOCS = pathlib.Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks/results"
PAGE, IMAGES = DOCS / "speed.md", DOCS / "images/speed"
BEGIN, END = "<!-- made by docs/speed.py -->\n", "<!-- end -->\n"
LAYOUTS = {"channels_last": "channels last", "channels_first": "channels first"}
# Okabe and Ito's colours, and a shape for each.
STYLES = {
    "copy": ("x", "#555555"),
    "torch nhwc": ("o", "#0072B2"),
    "torch nchw": ("s", "#D55E00"),
    "torch": ("s", "#D55E00"),
    "torch.compile": ("P", "#0072B2"),
    "flax": ("^", "#009E73"),
    "jax.image": ("D", "#CC79A7"),
    "jax.lax": ("v", "#E69F00"),
}
OTHERS = itertools.cycle([("<", "#56B4E9"), (">", "#000000"), ("h", "#F0E442")])
TITLES = {"torch nhwc": "PyTorch NHWC", "torch nchw": "PyTorch NCHW", "torch": "PyTorch"}
TITLES |= {"flax": "Flax", "torch.compile": "torch.compile"}


def sections() -> Iterator[tuple[str, str, dict[str, Any], list[dict[str, Any]]]]:
    """(file, layout, report, its results in this layout) of all measurements."""
    for path in sorted(RESULTS.glob("*.json")):
        report = json.loads(path.read_text())
        for layout in LAYOUTS:
            results = [result for result in report["results"] if result["layout"] == layout]
            if results:
                yield path.stem, layout, report, results


def peers(results: list[dict[str, Any]]) -> list[str]:
    """Those that any result was compared with, the copy first."""
    found = dict.fromkeys(peer for result in results for peer in result["ratio"])
    order = list(STYLES)
    return sorted(found, key=lambda peer: order.index(peer) if peer in order else len(order))


def ours(result: dict[str, Any]) -> str:
    """What the ratios are to."""
    return next(name for name in result["median_seconds"] if name not in result["ratio"])


def table(results: list[dict[str, Any]]) -> str:
    """Milliseconds, and how many times as long each peer takes."""
    columns = peers(results)
    titles = [TITLES.get(peer, peer) for peer in columns]
    lines = [
        f"| operation | window | ms | {' | '.join(titles)} |",
        f"| --- | --- | ---: |{' ---: |' * len(columns)}",
    ]
    for result in results:
        ratios = [result["ratio"].get(peer) for peer in columns]
        cells = ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        milliseconds = f"{1e3 * result['median_seconds'][ours(result)]:.3g}"
        row = [result["operation"], result["window"], milliseconds, *cells]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def text() -> str:
    """What stands between the markers of the page."""
    parts = [BEGIN]
    for name, layout, report, results in sections():
        where = report["device"] if report["device"] != "cpu" else f"CPU, {report['cores']} cores"
        versions = report["versions"]
        conditions = [where, *(f"{p} {versions[p]}" for p in ("jax", "torch") if p in versions)]
        if report["dtype"] and report["shape"]:
            conditions += [report["dtype"], "x".join(map(str, report["shape"]))]
        conditions += [f"median of {report['repeats']} rounds", report["date"]]
        parts += [
            f"### {name}.json, {LAYOUTS[layout]}\n\n",
            f"{', '.join(conditions)}.\n\n",
            picture(name, layout) if is_plotted(results) else "",
            table(results),
            "\n",
        ]
    return "".join([*parts, END])


def is_plotted(results: list[dict[str, Any]]) -> bool:
    """Whether there is enough to look at."""
    return len(results) > 2


def picture(name: str, layout: str) -> str:
    """The plot, in Markdown."""
    words = f"Times of the peers over ours: {name}, {LAYOUTS[layout]}"
    return f"![{words}](images/speed/{name}_{layout}.svg)\n\n"


def plot(results: list[dict[str, Any]]) -> Any:
    """A row for each operation, a mark for each peer, a line for its middle half of rounds."""
    height = 0.95 + 0.31 * len(results)
    figure, axes = plt.subplots(figsize=(7.2, height), layout="constrained", facecolor="white")
    axes.axvline(1, color="black", lw=1.2)
    styles = {peer: STYLES.get(peer) or next(OTHERS) for peer in peers(results)}
    for peer, (marker, color) in styles.items():
        rows = [i for i, result in enumerate(results) if peer in result["ratio"]]
        for row in rows:
            rounds = [r[peer] / r[ours(results[row])] for r in results[row]["rounds"]]
            axes.plot(np.percentile(rounds, [25, 75]), [row, row], color=color, lw=1.5, alpha=0.6)
        ratios = [results[row]["ratio"][peer] for row in rows]
        label = TITLES.get(peer, peer)
        axes.plot(ratios, rows, marker, color=color, ms=6.5, mew=1.5, label=label, mec="white")
        if marker == "x":
            axes.lines[-1].set_markeredgecolor(color)
    names = [f"{result['operation']}  {result['window']}" for result in results]
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if low <= t <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=9)
    axes.minorticks_off()
    axes.grid(axis="both", color="#dddddd", lw=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel("peer's time over ours (right of 1: we are faster)", fontsize=9.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    figure.legend(
        loc="outside upper center",
        ncols=6,
        fontsize=9,
        frameon=False,
        columnspacing=1.2,
        handletextpad=0.2,
    )
    return figure


def main(images: pathlib.Path = IMAGES) -> None:
    """Write all plots, and the tables into the page."""
    images.mkdir(parents=True, exist_ok=True)
    for name, layout, _, results in sections():
        if not is_plotted(results):
            continue
        with matplotlib.rc_context({"svg.hashsalt": "jaxunpool"}):
            figure = plot(results)
            figure.savefig(images / f"{name}_{layout}.svg", metadata={"Date": None})
            plt.close(figure)
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(before + text() + after)


if __name__ == "__main__":
    main()
