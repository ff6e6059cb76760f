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
from collections.abc import Callable, Iterator
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


def show_whole(console: Any, table: Any) -> None:
    """Print a table at its own width: numbers that wrap are worse than long lines."""
    from rich.measure import Measurement

    widest = Measurement.get(console, console.options.update(width=1000), table).maximum
    console.width = max(console.width, widest)
    console.print(table)
