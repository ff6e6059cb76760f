"""One of several processes: each command line in turn, as `train` does it but for the scores.

python one_of_many.py JSON; the first command line says how the processes meet.
"""

import json
import sys

from rich.console import Console

from jaxunpool.apps.command import exit_status
from jaxunpool.training import processes, session, train


def attempt(line: list[str]) -> int:
    """The exit status of one of them."""

    def fit() -> int:
        train.fit(train.parse(line), Console(quiet=not processes.is_first()))
        return 0

    return exit_status(lambda: session.interruptible(fit))


lines = json.loads(sys.argv[1])
with processes.joined(train.parse(lines[0])):
    print(json.dumps([attempt(line) for line in lines]))
