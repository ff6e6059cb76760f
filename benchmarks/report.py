"""Tables of what was measured: `python -m benchmarks.report` writes them into the pages.

Those of benchmarks/results/*.json go into README.md and docs/speed.md, between markers, and their
plots into docs/images/speed; those of benchmarks/scaling.json go into docs/sharding.md.
`python -m benchmarks.report mine.json` prints the tables of a file.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import re
import statistics
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jaxunpool.core.backends import NAMES

ROOT = pathlib.Path(__file__).parent.parent
RESULTS, IMAGES = ROOT / "benchmarks/results", ROOT / "docs/images/speed"
PAGES = (ROOT / "README.md", ROOT / "docs/speed.md", ROOT / "docs/sharding.md")
MARKED = re.compile(r"(<!-- benchmarks: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
TITLES = {"torch": "PyTorch", "flax": "Flax", "copy": "a copy"}
TIMED = ("torch", "flax")  # whom the README compares with
LATENCY = ("compile", "call")  # how the operations of benchmarks.latency begin
# What a kernel on a GPU is to reach: of the speed of a copy of as many bytes, and of PyTorch's.
OF_A_COPY = 0.85
OF_TORCH = {"select": 1.5, "scatter": 2.0, "scatter last": 2.0}

Measured = dict[str, Any]
Result = dict[str, Any]


def load(path: pathlib.Path) -> Measured:
    """A file of results."""
    return json.loads(path.read_text())


def dump(measured: Measured) -> str:
    """The text of a file of results: a line for each."""
    head = json.dumps({**measured, "results": []}, indent=1).removesuffix("[]\n}")
    lines = ",\n".join(f"  {json.dumps(result)}" for result in measured["results"])
    return f"{head}[\n{lines}\n ]\n}}\n"


def medians(result: Result) -> dict[str, float]:
    """Median seconds of every contender, ours first.

    "torch contiguous_format" and "torch channels_last" are ways to use one peer: the faster counts.
    """
    found: dict[str, float] = {}
    for name, rounds in result["seconds"].items():
        peer, median = name.split()[0], statistics.median(rounds)
        found[peer] = min(median, found.get(peer, median))
    return found


def ratios(result: Result) -> dict[str, float]:
    """How many times as long as we every peer takes."""
    (_, ours), *others = medians(result).items()
    return {peer: seconds / ours for peer, seconds in others}


def title(peer: str) -> str:
    """The name of a peer, for a reader."""
    return TITLES.get(peer, f"`{peer}`")


def grid(measured: Measured) -> list[Result]:
    """The results but for latencies."""
    return [r for r in measured["results"] if r["operation"].split()[0] not in LATENCY]


def distinct(results: Iterable[Result], *names: str) -> list[Any]:
    """The values of a name in the results, or of several together, in their order."""
    values = [tuple(result[name] for name in names) for result in results]
    return list(dict.fromkeys(v if len(names) > 1 else v[0] for v in values))


def peers(results: Iterable[Result]) -> list[str]:
    """All that any result was compared with."""
    return list(dict.fromkeys(peer for result in results for peer in ratios(result)))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Markdown, with so many columns of words before those of numbers."""
    aligned = ["---"] * words + ["---:"] * (len(columns) - words)
    return "".join(f"| {' | '.join(row)} |\n" for row in [columns, aligned, *rows])


def conditions(measured: Measured) -> str:
    """What was measured, where, when and with what."""
    cpu = measured["device"] == "cpu"
    versions, implementation = measured["versions"], measured["implementation"]
    counted = [
        f"{len(found)} {name}{'s' * (len(found) > 1)}"
        for name in ("operation", "shape", "window")
        if (found := distinct(grid(measured), name))
    ]
    kinds = [kind for name in ("dtype", "layout") for kind in distinct(grid(measured), name)]
    what = ", ".join([f"{len(grid(measured))} measurements", *counted, *kinds]).replace("_", " ")
    parts = [
        f"{measured['cores']} cores of {measured['processor']}" if cpu else measured["device"],
        *(
            f"{title(p).strip('`')} {versions[p]}"
            for p in ("jax", "torch", "flax")
            if p in versions
        ),
        *([f'`implementation="{implementation}"`'] if implementation else []),
        f"medians of up to {measured['repeats']} rounds",
        measured["date"],
    ]
    return textwrap.fill(f"{what}; {', '.join(parts)}.", 100) + "\n"


def summary(results: list[Result]) -> str:
    """Per operation and peer: geometric mean, worst, and how many are below 0.9 and 0.8."""
    names = peers(results)
    columns = ["operation"]
    for peer in names:
        columns += [f"{title(peer)}, mean", "worst", "below 0.9", "below 0.8"]
    operations = distinct(results, "operation")
    rows = []
    for operation in [*operations, *(["all"] if len(operations) > 1 else [])]:
        row = [operation]
        for peer in names:
            found = [
                ratio
                for result in results
                if operation in (result["operation"], "all")
                for name, ratio in ratios(result).items()
                if name == peer
            ]
            if not found:
                row += [""] * 4
                continue
            under = [sum(ratio < limit for ratio in found) for limit in (0.9, 0.8)]
            mean = f"{statistics.geometric_mean(found):.2f}"
            row += [mean, f"{min(found):.2f}", f"{under[0]} of {len(found)}", str(under[1])]
        rows.append(row)
    return table(columns, rows)


def headline(measured: Measured) -> str:
    """The line of the README about speed."""
    results, versions = grid(measured), measured["versions"]
    found = {peer: [ratios(r)[peer] for r in results if peer in ratios(r)] for peer in TIMED}
    means = [
        f"{statistics.geometric_mean(found[peer]):.1f} times as fast as {title(peer)}"
        f" {versions[peer].partition('+')[0]}"
        for peer in TIMED
    ]
    slower = [
        f"than {title(peer)} in {sum(ratio < 0.9 for ratio in some)} of {len(some)} measurements"
        for peer, some in found.items()
    ]
    text = (
        f"- **Fast.** On {measured['cores']} cores of {measured['processor']} it is"
        f" {' and '.join(means)} (geometric means). It is more than 10 % slower"
        f" {' and '.join(slower)}; [the slowest are listed](docs/speed.md#on-cpu)."
    )
    return textwrap.fill(text, 100, subsequent_indent="  ", break_on_hyphens=False) + "\n"


def by_kind(results: list[Result], peer: str) -> str:
    """Geometric means per operation, for every type and layout."""
    kinds = distinct(results, "dtype", "layout")
    rows = []
    for operation in distinct(results, "operation"):
        row = [operation]
        for kind in kinds:
            chosen = [r for r in results if (r["dtype"], r["layout"]) == kind]
            chosen = [r for r in chosen if r["operation"] == operation]
            found = [ratios(r)[peer] for r in chosen if peer in ratios(r)]
            row.append(f"{statistics.geometric_mean(found):.2f}" if found else "")
        if any(row[1:]):
            rows.append(row)
    return table(["operation", *map(_kind, kinds)], rows)


def worst(results: list[Result], count: int = 10) -> str:
    """The cells where we are slowest beside a peer."""
    cells = [(ratio, peer, r) for r in results for peer, ratio in ratios(r).items()]
    cells = [cell for cell in cells if cell[1] != "copy"]
    return _cells(sorted(cells, key=lambda cell: cell[0])[:count])


def latency(measured: Measured) -> str:
    """From Python to machine code, and a call on an array of next to nothing."""
    results = [r for r in measured["results"] if r["operation"].split()[0] in LATENCY]
    return _cells([(ratio, peer, r) for r in results for peer, ratio in ratios(r).items()])


def targets(measured: Measured) -> str:
    """Of the primitives: their speed beside a copy's and PyTorch's, and which targets are met."""
    results = [r for r in measured["results"] if "," not in r["operation"] and "copy" in medians(r)]
    names = [n for n in ("xla", *NAMES) if any(n in medians(r) for r in results)]
    columns = ["operation", "shape", "window", "type"]
    columns += [f"`{name}`, % of a copy" for name in names] + ["PyTorch over the best", "targets"]
    rows: list[list[str]] = []
    reached: dict[str, list[bool]] = {"a copy": [], "PyTorch": []}
    for r in results:
        times = medians(r)
        best = min(times[name] for name in names if name in times)
        row = [r["operation"], r["shape"], r["window"], _kind((r["dtype"], r["layout"]))]
        row += [f"{100 * times['copy'] / times[n]:.0f}" if n in times else "-" for n in names]
        row.append(f"{times['torch'] / best:.2f}" if "torch" in times else "-")
        met = {"a copy": times["copy"] / best >= OF_A_COPY}
        if "torch" in times and r["operation"] in OF_TORCH:
            met["PyTorch"] = times["torch"] / best >= OF_TORCH[r["operation"]]
        for what, one in met.items():
            reached[what].append(one)
        missed = [what for what, one in met.items() if not one]
        rows.append([*row, f"missed: {', '.join(missed)}" if missed else "met"])
    speeds = [r["moved_bytes"] / medians(r)["copy"] / 1e12 for r in results]
    counts = [f"{sum(some)} of {len(some)} beside {what}" for what, some in reached.items() if some]
    text = (
        f"Targets met: {', '.join(counts)}. They are {OF_A_COPY:.0%} of a copy's speed, which is"
        f" {statistics.median(speeds):.3g} TB/s here, and beside eager PyTorch"
        f" {', '.join(f'{ratio:g} for {name}' for name, ratio in OF_TORCH.items())}."
    )
    return f"{textwrap.fill(text, 100)}\n\n{table(columns, rows, words=4)}"


def problems(measured: Measured) -> str:
    """What was wrong or failed in a measurement; empty if nothing."""
    checked = measured.get("checked") or {}
    lines = [f"WRONG: {what}" for what in checked.get("wrong", [])]
    lines += [f"FAILED: {what}" for what in measured.get("failed", [])]
    return "\n".join(lines)


def unfinished(measured: Measured) -> str:
    """What there was no time for; empty if all was done."""
    skipped, checked = measured.get("skipped", []), measured.get("checked") or {}
    lines = [f"- {name}\n" for name in skipped]
    if count := checked.get("not_reached"):
        lines.append(f"- {count} calls to be checked\n")
    return "".join(["There was no time for:\n\n", *lines]) if lines else ""


def _cells(cells: Iterable[tuple[float, str, Result]]) -> str:
    columns = ["operation", "shape", "window", "type", "peer", "its time", "ours", "ratio"]
    rows = []
    for ratio, peer, r in cells:
        (_, ours), times = next(iter(medians(r).items())), medians(r)
        kind = _kind((r["dtype"], r["layout"]))
        what = [r["operation"], r["shape"], r["window"], kind, title(peer)]
        rows.append([*what, _time(times[peer]), _time(ours), f"{ratio:.2f}"])
    return table(columns, rows, words=5)


def _kind(kind: tuple[str, str]) -> str:
    dtype, layout = kind
    return dtype if layout == "channels_last" else f"{dtype}, {layout.replace('_', ' ')}"


def _time(seconds: float) -> str:
    unit, scale = ("s", 1) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)
    digits = max(0, 2 - math.floor(math.log10(scale * seconds)))
    return f"{round(scale * seconds, digits):g} {unit}"


def whole(results: list[Result]) -> str:
    """Every cell: our time, and the ratios of the peers. Operations unfold."""
    parts = []
    for operation in distinct(results, "operation"):
        chosen = [r for r in results if r["operation"] == operation]
        kinds, names = distinct(chosen, "dtype", "layout"), peers(chosen)
        found = {(r["shape"], r["window"], r["dtype"], r["layout"]): r for r in chosen}
        rows = [
            [*place, *(_cell(found.get((*place, *kind)), names) for kind in kinds)]
            for place in distinct(chosen, "shape", "window")
        ]
        against = " and ".join(title(peer).replace("`", "") for peer in names)
        parts += [
            f'<details markdown="1">\n<summary>{operation}: our time, then {against}</summary>\n\n',
            table(["shape", "window", *map(_kind, kinds)], rows, words=2),
            "\n</details>\n\n",
        ]
    return "".join(parts)


def _cell(result: Result | None, names: Sequence[str]) -> str:
    if result is None:
        return ""
    (_, ours), found = next(iter(medians(result).items())), ratios(result)
    parts = [f"{found[peer]:.2f}" if peer in found else "-" for peer in names]
    return " · ".join([_time(ours), *parts])


def brief(measured: Measured) -> str:
    """The table of the README."""
    return f"{conditions(measured)}\n{summary(grid(measured))}"


def overview(measured: Measured) -> str:
    """What a reader wants first."""
    results, parts = grid(measured), [conditions(measured)]
    if measured["suite"] == "kernels" and results:
        parts.append(targets(measured))
    if results:
        parts += [summary(results), "The ten slowest beside a peer:\n", worst(results)]
    beside = latency(measured)
    if beside.count("\n") > 2:
        parts += ["Time to compile a program, and time of a call on a small array:\n", beside]
    if rest := unfinished(measured):
        parts.append(rest)
    return "\n".join(parts)


def heading(measured: Measured) -> str:
    """Where it was measured, in words."""
    return "On CPU" if measured["device"] == "cpu" else f"On {measured['device']}"


def details(stem: str, measured: Measured) -> str:
    """All of a file, with its plot."""
    results, where = grid(measured), heading(measured)
    parts = [f"### {where}\n", f"From `benchmarks/results/{stem}.json`.\n", overview(measured)]
    if results:
        parts.append(f"![Times of the peers over ours: {where}](images/speed/{stem}.svg)\n")
        if len(distinct(results, "dtype", "layout")) > 1:
            for peer in peers(results):
                parts += [f"Geometric means against {title(peer)}:\n", by_kind(results, peer)]
        parts += ["Every measurement:\n", whole(results)]
    return "\n".join(parts)


def _documentation() -> str:
    paths = sorted(RESULTS.glob("*.json"))
    return "\n".join(details(path.stem, load(path)) for path in paths)


def text(page: str) -> str:
    """A page with what its markers ask for."""
    from benchmarks import scaling

    made: dict[str, Callable[[], str]] = {
        "headline": lambda: headline(load(RESULTS / "cpu.json")),
        "summary": lambda: brief(load(RESULTS / "cpu.json")),
        "details": _documentation,
        "devices": lambda: scaling.devices_table(scaling.load()["devices"]),
        "pod": lambda: scaling.pod_table(scaling.load()["pod"]),
    }
    return MARKED.sub(lambda m: f"{m[1]}{made[m[2]]()}{m[3]}", page)


def main() -> None:
    """Print the tables of a file, or write the pages and the plots."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("json", nargs="?", type=pathlib.Path, help="only print the tables of this")
    chosen = parser.parse_args().json
    if chosen:
        print(overview(load(chosen)))
        return
    from benchmarks import plot

    for page in PAGES:
        page.write_text(text(page.read_text()))
        print(f"wrote {page.relative_to(ROOT)}")
    for path in sorted(RESULTS.glob("*.json")):
        if grid(load(path)):
            image = IMAGES / f"{path.stem}.svg"
            plot.save(path, image)
            print(f"wrote {image.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
