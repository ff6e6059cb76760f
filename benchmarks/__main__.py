"""`python -m benchmarks`: time jaxunpool and its peers, print a table, write JSON."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import itertools
import json
import os
import pathlib
import platform
import sys


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--platform", choices=("cpu", "gpu"), help="default: what JAX finds")
    parser.add_argument("--json", type=pathlib.Path, help="also write the results to this file")
    parser.add_argument("--suite", choices=("max", "modes"), help="default: both")
    parser.add_argument("--only", default="", help="measure only cases whose name contains this")
    parser.add_argument("--shape", default="8,224,224,64", help="batch,height,width,channels")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds (default 15)")
    parser.add_argument("--calls", type=int, help="calls per timing (default: 1 on CPU, 20 on GPU)")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure and report."""
    options = parse()
    if options.platform:
        os.environ["JAX_PLATFORMS"] = "cuda" if options.platform == "gpu" else "cpu"
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave memory for PyTorch
    # The platform has to be chosen before JAX is imported.
    import jax
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from benchmarks import cases, modes, timing

    on_gpu = jax.default_backend() == "gpu"
    shape = tuple(int(size) for size in options.shape.split(","))
    if len(shape) != 4:
        sys.exit(f"--shape {options.shape}: expected batch,height,width,channels")
    console = Console()
    if importlib.util.find_spec("torch") is None:
        console.print("PyTorch is not installed: its columns are left out")
    elif not on_gpu:
        import torch

        torch.set_num_threads(os.cpu_count() or 1)

    table = Table(title=f"{options.dtype} {list(shape)} on {jax.devices()[0].device_kind}")
    for column in ("operation", "window", "layout", "MB", "ms", "GB/s", "copy"):
        table.add_column(column, justify="left" if column in ("operation", "layout") else "right")
    table.add_column("peer's time / ours", justify="left")
    results = []
    wanted = (shape, options.dtype, "cuda" if on_gpu else "cpu", options.only)
    suites = {"max": cases.cases, "modes": modes.cases}
    chosen = [suites[options.suite]] if options.suite else list(suites.values())
    selected = itertools.chain.from_iterable(suite(*wanted) for suite in chosen)
    for case in track(selected, "measuring", console=console, transient=True):
        rounds = list(
            timing.interleaved(
                case.contenders,
                repeats=options.repeats,
                warmup=3,
                calls=options.calls or (20 if on_gpu else 1),
            )
        )
        medians = timing.medians(rounds)
        ours = medians["jaxunpool"]
        ratios = {name: medians[name] / ours for name in case.contenders if name != "jaxunpool"}
        results.append(
            {
                "operation": case.operation,
                "window": case.window,
                "layout": case.layout,
                "moved_bytes": case.moved_bytes,
                "median_seconds": medians,
                "ratio": ratios,
                "rounds": rounds,
            }
        )
        table.add_row(
            case.operation,
            case.window,
            case.layout,
            f"{case.moved_bytes / 1e6:.0f}",
            f"{ours * 1e3:.1f}",
            f"{case.moved_bytes / ours / 1e9:.1f}",
            f"{ratios['copy']:.2f}",
            "  ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items() if name != "copy"),
        )
    console.print(table)
    if options.json:
        report = {
            "date": datetime.date.today().isoformat(),
            "device": jax.devices()[0].device_kind,
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "versions": {
                name: importlib.metadata.version(name)
                for name in ("jaxunpool", "jax", "jaxlib", "flax", "numpy", "torch")
                if importlib.util.find_spec(name)
            },
            "shape": shape,
            "dtype": options.dtype,
            "repeats": options.repeats,
            "results": results,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")
        console.print(f"wrote {options.json}")


if __name__ == "__main__":
    main()
