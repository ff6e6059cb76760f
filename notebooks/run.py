"""Execute the notebooks in fresh kernels and compare what they say with what is committed.

python notebooks/run.py              all of them, each within the time limit
python notebooks/run.py 3_modes      one
python notebooks/run.py --write      and keep the new outputs

Everything a notebook prints has to come out again word for word; of a figure, that there is one.
In a cell with the tag `varies` only words count: its numbers are times, or differ with the machine.

Edit notebooks in Jupyter, or as text (`jupytext --to py:percent`, then `jupytext --update --to
ipynb`), and run this with `--write`.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import copy
import functools
import os
import pathlib
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

FOLDER = pathlib.Path(__file__).parent
LIMIT = 90.0
COLOUR = re.compile(r"\x1b\[[\d;]*m")
NUMBER = re.compile(r"[-+\u2212]?\d[\d.,]*(e[-+]?\d+)?")


def main() -> int:
    """The exit status: 0 if every notebook ran in time and said what is committed."""
    arguments = parse()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # where the committed outputs come from
    paths = find(arguments.names)
    run_one = functools.partial(run, limit=arguments.limit, write=arguments.write)
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for path, (seconds, problems) in zip(paths, pool.map(run_one, paths)):
            failed += bool(problems)
            state = "FAILED" if problems else "ok"
            print(f"{path.stem:<40}{seconds:6.1f} s  {state}", flush=True)
            for problem in problems:
                print(f"    {problem}")
    return min(failed, 1)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="which notebooks; all of them by default")
    parser.add_argument("--write", action="store_true", help="keep the new outputs")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds each may take")
    parser.add_argument("--jobs", type=int, default=1, help="how many run at once")
    return parser.parse_args()


def find(names: list[str]) -> list[pathlib.Path]:
    """The files of notebooks, those whose names start with one of the given ones."""
    wanted = tuple(pathlib.PurePath(name).stem for name in names) or ("",)
    found = sorted(path for path in FOLDER.glob("*.ipynb") if path.stem.startswith(wanted))
    if not found:
        sys.exit(f"no notebook is called {', '.join(names)}")
    return found


def run(path: pathlib.Path, limit: float, write: bool) -> tuple[float, list[str]]:
    """Seconds it took, and what is wrong."""
    committed = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    try:
        executed = execute(committed, limit)
    except CellTimeoutError:
        return time.perf_counter() - start, [f"did not finish in {limit:g} seconds"]
    except CellExecutionError as error:
        return time.perf_counter() - start, COLOUR.sub("", str(error)).splitlines()
    seconds = time.perf_counter() - start
    problems = [f"took more than {limit:g} seconds"] if seconds > limit else []
    problems += warnings(executed)
    if write:
        nbformat.validate(executed)
        nbformat.write(executed, path)
        return seconds, problems
    return seconds, [*problems, *differences(committed, executed)]


def execute(notebook: Any, limit: float) -> Any:
    """A copy, executed in a kernel of its own, with nothing in it that changes by itself."""
    notebook = copy.deepcopy(notebook)
    end = time.monotonic() + limit
    NotebookClient(
        notebook,
        kernel_name="python3",
        timeout_func=lambda cell: max(1, int(end - time.monotonic())),
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(FOLDER)}},
    ).execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02}"
        cell.metadata = {key: value for key, value in cell.metadata.items() if key == "tags"}
    return notebook


def warnings(executed: Any) -> Iterator[str]:
    """What cells wrote to the error stream: a reader should not meet it."""
    for number, cell in enumerate(executed.cells):
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr":
                yield f"cell {number} warns: {output.text.strip()}"


def differences(committed: Any, executed: Any) -> Iterator[str]:
    """Cells whose outputs are not the committed ones, in words."""
    for number, (old, new) in enumerate(zip(committed.cells, executed.cells, strict=True)):
        if new.cell_type != "code":
            continue
        if old.execution_count != new.execution_count:
            yield f"cell {number}: its committed outputs are not of a run from top to bottom"
        varies = "varies" in old.metadata.get("tags", ())
        before, after = (said(cell.outputs, varies) for cell in (old, new))
        if before != after:
            yield f"cell {number}: committed is\n{before}\n    and now it says\n{after}"


def said(outputs: Any, varies: bool) -> str:
    """The words of a cell's outputs, and its numbers unless they vary."""
    parts = []
    for output in outputs:
        data = output.get("data", {})
        parts += [output.get("text", ""), data.get("text/plain", ""), *sorted(data)]
    text = "\n".join(part for part in parts if part)
    return " ".join(NUMBER.sub("#", text).split()) if varies else text


if __name__ == "__main__":
    sys.exit(main())
