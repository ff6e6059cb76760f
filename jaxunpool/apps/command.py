"""What the command lines share: one line for every mistake, files written whole or not at all."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn


class UsageError(Exception):
    """What was asked for cannot be done; the message is one line for the user."""


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, where argparse would print the usage too."""

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        raise UsageError(message)


def count(text: str) -> int:
    """An int of at least 1, for argparse."""
    value = whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def whole(text: str) -> int:
    """Any int, for argparse."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an int, got {text!r}") from None


def require_extra(extra: str, *packages: str) -> None:
    """Fail before any work if a package of an extra is missing."""
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError:
            raise UsageError(f"{name} is missing: pip install 'jaxunpool[{extra}]'") from None


def report(message: object) -> None:
    """One line on stderr."""
    print("jaxunpool:", " ".join(str(message).split()), file=sys.stderr, flush=True)


def exit_status(run: Callable[[], int]) -> int:
    """What `run` returns, or 2 and a line for a request that cannot be met."""
    try:
        return run()
    except (UsageError, OSError) as error:
        report(error)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        report("there is not enough memory for what was asked")
        return 2
    except KeyboardInterrupt:
        report("interrupted")
        return 128 + signal.SIGINT


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file of the same folder that takes the place of `path` once it is complete."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield unfinished
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write the file whole or not at all."""
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: pathlib.Path) -> Any:
    """What the file holds, or None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def show_table(
    console: Any,
    title: str,
    columns: Mapping[str, Sequence[str]],
    *,
    spare: Sequence[str] = (),
    footers: Mapping[str, str] | None = None,
) -> None:
    """Print a table that fits the console.

    Where the console is too narrow, the columns with the headers in `spare` are left out, the first
    one first, and a line says so. Cells are never cut.

    Args:
        console: rich's.
        title: printed above the table.
        columns: headers, each with the cells below it.
        spare: headers of columns that can be left out.
        footers: headers, each with a cell below a line.
    """
    columns, omitted = dict(columns), []
    table, width = _table(console, title, columns, footers or {})
    for header in spare:
        if width > console.width:
            del columns[header]
            omitted.append(header.replace("-\n", "").replace("\n", " "))
            table, width = _table(console, title, columns, footers or {})
    available = console.width
    console.width = max(available, width)
    console.print(table)
    console.width = available
    if omitted:
        console.print(f"not shown in {available} columns: {', '.join(omitted)}")


def _table(
    console: Any, title: str, columns: Mapping[str, Sequence[str]], footers: Mapping[str, str]
) -> tuple[Any, int]:
    """A table of rich, and its width."""
    from rich import box
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
        show_footer=bool(footers),
    )
    for header, cells in columns.items():
        number = any(cell[:1].isdigit() for cell in cells)
        table.add_column(
            header,
            footers.get(header, ""),
            justify="right" if number else "left",
            no_wrap=True,
        )
    for row in zip(*columns.values()):
        table.add_row(*row)
    return table, Measurement.get(console, console.options.update(width=1000), table).maximum
