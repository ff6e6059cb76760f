"""`python -m benchmarks`: time jaxunpool and its peers, print tables, write JSON.

On CPU it measures the grid (`benchmarks.grid`, a part of it without `--full`) and what programs
cost beside their work (`benchmarks.latency`), on GPU and TPU the kernels (`benchmarks.kernels`).
`python -m benchmarks.report` makes the tables of the README and of the documentation.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import importlib.util
import math
import os
import pathlib
import platform
import sys
import time
from typing import Any

SAVE_SECONDS = 30  # from one time to the next that what was measured so far is written
PACKAGES = ("jaxunpool", "jax", "jaxlib", "flax", "numpy", "torch")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--platform", choices=("cpu", "gpu", "tpu"), help="default: what JAX finds")
    parser.add_argument(
        "--json", type=pathlib.Path, help="also write the results to this file, as they come"
    )
    parser.add_argument(
        "--suite", choices=("grid", "kernels"), help="default: grid on CPU, kernels elsewhere"
    )
    parser.add_argument(
        "--check", action="store_true", help="first compare all implementations, on random numbers"
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="the whole grid: every type, layout, shape and operation, in more rounds",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="PART",
        help='only cases with all of these in "operation shape window dtype layout"',
    )
    parser.add_argument(
        "--shapes", nargs="+", help="instead of the suite's, channels last: 4x97x131x24"
    )
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--implementation", help="of ours, in the grid; default: its own choice")
    parser.add_argument(
        "--repeats", type=int, help="timed rounds at most (default 5; 15 with --full and on GPU)"
    )
    return parser.parse_args(arguments)


def main() -> None:
    """Measure and report."""
    options = parse()
    if options.platform:
        os.environ["JAX_PLATFORMS"] = {"gpu": "cuda,cpu"}.get(options.platform, options.platform)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave memory for PyTorch
    # The platform has to be chosen before JAX is imported.
    import jax
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.progress import track

    from benchmarks import grid, kernels, latency, report, timing

    backend = jax.default_backend()
    if options.platform and backend != options.platform:
        sys.exit(f"--platform {options.platform}: JAX finds none here")
    try:
        for shape in options.shapes or ():
            timing.sizes(shape)
    except ValueError as error:
        sys.exit(f"--shapes {error}")
    console = Console(width=None if sys.stdout.isatty() else 160)
    if importlib.util.find_spec("torch") is None:
        console.print("PyTorch is not installed: its columns are left out")
    elif backend == "cpu":
        import torch

        torch.set_num_threads(os.cpu_count() or 1)

    checked = None
    if options.check:
        from benchmarks import check

        with console.status("checking all implementations"):
            try:
                checked = check.run()
            except check.MismatchError as error:
                sys.exit(f"WRONG: {error}")
        console.print("right:", ", ".join(f"{n} calls of {name}" for name, n in checked.items()))

    suite = options.suite or ("grid" if backend == "cpu" else "kernels")
    if suite == "grid":
        cases = [
            *latency.cases(options.implementation),
            *grid.cases(options.shapes, options.dtypes, options.implementation, options.full),
        ]
        # The default ends in five minutes: compiling takes half of them, and each case has this.
        limits: dict[str, Any] = {"seconds": 2 if options.full else 0.2}
    else:
        device = "cuda" if backend == "gpu" else "cpu"
        cases = list(kernels.cases(options.shapes, options.dtypes, device))
        limits = {"warmup": 3}
    limits["repeats"] = options.repeats or (15 if options.full or suite == "kernels" else 5)
    cases = [case for case in cases if all(part in case.name for part in options.only)]
    gc.collect()
    gc.freeze()  # what was imported needs no look at every case
    started = saved = time.perf_counter()
    results: list[dict[str, Any]] = []
    measured = {
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in PACKAGES
            if importlib.util.find_spec(name)
        },
        "suite": suite,
        "implementation": options.implementation,
        "checked": checked,
        "repeats": limits["repeats"],
        "took_seconds": 0,
        "results": results,
    }

    def save() -> None:
        measured["took_seconds"] = round(time.perf_counter() - started)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            partial = options.json.with_suffix(".partial")
            partial.write_text(report.dump(measured))
            partial.replace(options.json)  # never half a file

    for case in track(cases, "measuring", console=console, transient=True):
        contenders = case.make()
        if len(contenders) < 2 or (suite == "grid" and "jaxunpool" not in contenders):
            continue
        rounds = timing.measure(contenders, calls=case.calls, **limits)
        results.append(
            {
                "operation": case.operation,
                "shape": case.shape,
                "window": case.window,
                "dtype": case.dtype,
                "layout": case.layout,
                **({"moved_bytes": case.moved_bytes} if case.moved_bytes else {}),
                "seconds": {
                    name: [_significant(seconds / case.runs) for seconds in times]
                    for name, times in rounds.items()
                },
            }
        )
        if time.perf_counter() - saved > SAVE_SECONDS:
            saved = time.perf_counter()
            save()
    if not results:
        sys.exit("nothing to measure")
    console.print(Markdown(report.overview(measured)))
    save()
    if options.json:
        console.print(f"wrote {options.json} in {measured['took_seconds']} s")


def _significant(seconds: float, digits: int = 4) -> float:
    return round(seconds, digits - 1 - math.floor(math.log10(seconds)))


def _processor() -> str:
    """The model, where the system says it."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
