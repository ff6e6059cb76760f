"""The command line: a photograph pooled and unpooled, `train`, `compare` and `predict`."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "train": "jaxunpool.training.train",
    "compare": "jaxunpool.training.compare",
    "predict": "jaxunpool.training.predict",
}


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand, or without one the photograph; each imports no more than it needs."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command, *others = arguments or [""]
    if command in COMMANDS:
        return importlib.import_module(COMMANDS[command]).main(others)
    return importlib.import_module("jaxunpool.apps.photograph").main(arguments)


if __name__ == "__main__":
    sys.exit(main())
