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

DEFAULT_SUITES = {"cpu": ["max", "modes"], "gpu": ["kernels"], "tpu": ["kernels"]}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--platform", choices=("cpu", "gpu", "tpu"), help="default: what JAX finds")
    parser.add_argument("--json", type=pathlib.Path, help="also write the results to this file")
    parser.add_argument(
        "--suite",
        choices=("max", "modes", "kernels"),
        help="default: kernels on GPU and TPU, both others on CPU",
    )
    parser.add_argument(
        "--check", action="store_true", help="first compare all implementations, on random numbers"
    )
    parser.add_argument("--only", default="", help="measure only cases whose name contains this")
    parser.add_argument(
        "--shape", help="batch,height,width,channels (default: 8,224,224,64, or two)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds (default 15)")
    parser.add_argument("--calls", type=int, help="calls per timing (default: 1 on CPU, 20 on GPU)")
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
    from rich.progress import track
    from rich.table import Table

    from benchmarks import cases, kernels, modes, timing

    backend = jax.default_backend()
    if options.platform and backend != options.platform:
        sys.exit(f"--platform {options.platform}: JAX finds none here")
    on_gpu = backend == "gpu"
    shapes = None
    if options.shape:
        shapes = [tuple(int(size) for size in options.shape.split(","))]
        if len(shapes[0]) != 4:
            sys.exit(f"--shape {options.shape}: expected batch,height,width,channels")
    console = Console(width=None if sys.stdout.isatty() else 180)
    if importlib.util.find_spec("torch") is None:
        console.print("PyTorch is not installed: its columns are left out")
    elif not on_gpu:
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

    table = Table(title=f"{jax.devices()[0].device_kind}")
    for column in ("operation", "window", "layout", "ours", "MB", "ms", "GB/s", "of a copy"):
        words = column in ("operation", "layout", "ours")
        table.add_column(column, justify="left" if words else "right")
    table.add_column("peer's time / ours", justify="left")
    results = []
    shape = shapes[0] if shapes else (8, 224, 224, 64)
    wanted = (shape, options.dtype or "float32", "cuda" if on_gpu else "cpu", options.only)
    dtypes = [options.dtype] if options.dtype else kernels.DTYPES
    suites = {
        "max": cases.cases(*wanted),
        "modes": modes.cases(*wanted),
        "kernels": kernels.cases(shapes or kernels.SHAPES, dtypes, wanted[2], options.only),
    }
    names = [options.suite] if options.suite else DEFAULT_SUITES[backend]
    selected = itertools.chain.from_iterable(suites[name] for name in names)
    for case in track(selected, "measuring", console=console, transient=True):
        rounds = list(
            timing.interleaved(
                case.contenders,
                repeats=options.repeats,
                warmup=3,
                calls=options.calls or (-(-20 // case.runs) if on_gpu else 1),
            )
        )
        whole = timing.medians(rounds)
        medians = {name: whole[name] / case.runs for name in case.contenders}
        first, *peers = medians
        ours = medians[first]
        speeds = {name: case.moved_bytes / t / 1e9 for name, t in medians.items()}
        ratios = {name: medians[name] / ours for name in peers}
        results.append(
            {
                "operation": case.operation,
                "window": case.window,
                "layout": case.layout,
                "moved_bytes": case.moved_bytes,
                "median_seconds": medians,
                "gigabytes_per_second": speeds,
                "share_of_copy": {name: s / speeds["copy"] for name, s in speeds.items()},
                "ratio": ratios,
                "rounds": rounds,
            }
        )
        table.add_row(
            case.operation,
            case.window,
            case.layout,
            first,
            f"{case.moved_bytes / 1e6:.0f}",
            f"{ours * 1e3:.3g}",
            f"{speeds[first]:.4g}",
            f"{speeds[first] / speeds['copy']:.2f}",
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
            "shape": shapes[0] if shapes else None,
            "dtype": options.dtype,
            "checked": checked,
            "repeats": options.repeats,
            "results": results,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")
        console.print(f"wrote {options.json}")


if __name__ == "__main__":
    main()
