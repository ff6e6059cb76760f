"""`python -m benchmarks`: time jaxunpool and its peers, print tables, write JSON.

On CPU it measures the grid (`benchmarks.grid`, a part of it without `--full`) and what programs
cost beside their work (`benchmarks.latency`), on GPU and TPU the kernels (`benchmarks.kernels`).
`python -m benchmarks.report` makes the tables of the README and of the documentation.

The file of results is written anew after every case, so that a run which is stopped leaves what it
has measured. `--interpret` is a rehearsal of the run on a GPU:

    python -m benchmarks --interpret --check --shapes 8x8x8x64 --repeats 1 --minutes 2
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import faulthandler
import gc
import importlib
import importlib.metadata
import importlib.util
import math
import os
import pathlib
import platform
import sys
import time
from typing import Any

START = time.perf_counter()
GPU_MINUTES = 7.0  # by default
CHECK_PART = 0.25  # of the time
GRACE_SECONDS = 45  # when a case that hangs has so many more, the process ends
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
    parser.add_argument(
        "--minutes",
        type=float,
        help="what would end later is skipped and named"
        f" (default: {GPU_MINUTES:g} on GPU, else none)",
    )
    parser.add_argument(
        "--interpret",
        action="store_true",
        help="on CPU, run what a GPU would, with its kernels interpreted: small shapes only",
    )
    options = parser.parse_args(arguments)
    if options.interpret:
        if options.platform not in (None, "cpu") or options.suite == "grid":
            parser.error("--interpret: interprets the kernels for GPU on --platform cpu")
        options.platform, options.suite = "cpu", "kernels"
    return options


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

    from benchmarks import kernels, report, timing

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
    minutes = options.minutes or (GPU_MINUTES if backend == "gpu" else math.inf)
    if minutes < math.inf:  # also if a kernel never ends
        faulthandler.dump_traceback_later(60 * minutes + GRACE_SECONDS, exit=True)
    with contextlib.ExitStack() as stack:
        if options.interpret:
            try:
                stack.enter_context(kernels.interpreter())
            except NotImplementedError as error:
                sys.exit(f"--interpret: {error}")
        measured = _measure(options, backend, 60 * minutes, console)
    faulthandler.cancel_dump_traceback_later()
    if not measured["results"]:
        sys.exit("\n".join([*measured["failed"], "nothing to measure"]))
    console.print(Markdown(report.overview(measured)))
    if options.json:
        console.print(f"wrote {options.json} in {measured['took_seconds']} s")
    if problems := report.problems(measured):
        sys.exit(problems)


def _measure(
    options: argparse.Namespace, backend: str, limit: float, console: Any
) -> dict[str, Any]:
    """What a file of results holds; the file is written as it comes."""
    import jax
    from rich.progress import track

    from benchmarks import check, grid, kernels, latency, report, timing

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
        cases = list(kernels.cases(options.shapes, options.dtypes, device, options.interpret))
        limits = {"warmup": 3}
    limits["repeats"] = options.repeats or (15 if options.full or suite == "kernels" else 5)
    cases = [case for case in cases if all(part in case.name for part in options.only)]
    results: list[dict[str, Any]] = []
    failed: list[str] = []
    skipped: list[str] = []
    measured = {
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES if importlib.util.find_spec(name)},
        "suite": suite,
        "interpreted": options.interpret,
        "implementation": options.implementation,
        "checked": None,
        "repeats": limits["repeats"],
        "took_seconds": 0,
        "failed": failed,
        "skipped": skipped,
        "results": results,
    }

    def took() -> float:
        return time.perf_counter() - START

    def save() -> None:
        measured["took_seconds"] = round(took())
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            partial = options.json.with_suffix(".partial")
            partial.write_text(report.dump(measured))
            partial.replace(options.json)  # never half a file

    found = check.Findings()

    def compare(seconds: float, chosen: Any = None) -> None:
        nonlocal found
        with console.status("checking all implementations"):
            found += check.run(chosen=chosen, seconds=seconds, interpret=options.interpret)
        measured["checked"] = found.in_json()
        save()

    if options.check:
        compare(CHECK_PART * limit)
        console.print(str(found))
    gc.collect()
    gc.freeze()  # what was imported needs no look at every case
    longest = 0.0
    for case in track(cases, "measuring", console=console, transient=True):
        before = took()
        if before + longest > limit:
            skipped.append(case.name)
            continue
        try:
            contenders = case.make()
            if suite == "kernels":
                contenders, ours, errors = kernels.running(contenders)
                failed += [f"{case.name}: {name}: {error}" for name, error in errors.items()]
                if options.check:
                    found.wrong += [f"{case.name}: {what}" for what in check.same_bits(ours)]
                    measured["checked"] = found.in_json()
                del ours
            if len(contenders) < 2 or (suite == "grid" and "jaxunpool" not in contenders):
                continue
            rounds = timing.measure(contenders, calls=case.calls, **limits)
        except Exception as error:  # the other cases are worth their time all the same
            failed.append(f"{case.name}: {type(error).__name__}: {error}")
            continue
        finally:
            contenders = {}
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
        longest = max(longest, took() - before)
        save()
    if found.left and took() < limit:
        left, found.left = found.left, []
        compare(limit - took(), left)
    save()
    return measured


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # not installed, but in this folder
        return importlib.import_module(name).__version__


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
