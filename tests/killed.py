"""A run that is killed again and again: `python killed.py FOLDER KILLS SEED`.

Every life is a fork of a process that has imported all it needs and has used no device yet. It
trains in FOLDER, and is killed after a random time: while it starts, in a step, while it saves, or
while it draws. The last life ends by itself. Prints a line for each life.
"""

import os
import pathlib
import random
import signal
import sys
import time

EXITED = os.WEXITED | os.WNOHANG | os.WNOWAIT
STEPS = 12
COMMAND = f"train --steps {STEPS} --batch 2 --size 24 --features 4 --kernel-size 3 --stages 2"
COMMAND += " --checkpoint-every 1 --output run"


def written() -> set[pathlib.Path]:
    """Checkpoints and figures of the run."""
    run = pathlib.Path("run")
    return {*run.glob("*"), *run.glob("*/*")}


def wait_for_more(child: int) -> None:
    """Until there is another file, or the process has ended."""
    before = written()
    while written() <= before and os.waitid(os.P_PID, child, EXITED) is None:
        time.sleep(0.01)


def main(folder: str, kills: int, seed: int) -> int:
    os.chdir(folder)
    # Imported before the forks; none of them asks for a device.
    from jaxunpool.apps import command
    from jaxunpool.training import checkpoints, figures, session, train  # noqa: F401

    random.seed(seed)
    for life in range(kills + 1):
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            status = command.exit_status(lambda: train.run(COMMAND.split()[1:]))
            sys.stdout.flush()
            os._exit(status)
        if life < kills:
            if life % 2:  # on any machine every other life goes on by a step or a figure
                wait_for_more(child)
            time.sleep(random.uniform(0, 0.5 if life % 2 else 6))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        lasted = time.monotonic() - began
        steps = [int(path.name) for path in written() if path.name.isdigit()]
        print(
            f"life {life}: {lasted:.2f} s, status {status}, step {max(steps, default=0)}",
            flush=True,
        )
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:])))
