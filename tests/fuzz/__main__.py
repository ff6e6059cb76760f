"""`python -m tests.fuzz`: random calls until the time is up, and a table of what was compared."""

import argparse
import collections
import contextlib
import ctypes
import dataclasses
import gc
import os
import pathlib
import sys
import tempfile
import time
import traceback

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 8)
# Nearly all of the time is LLVM's; `--optimized` compiles as users do.
jax.config.update("jax_disable_most_optimizations", "--optimized" not in sys.argv)

from . import sampling  # noqa: E402
from .calls import Spec  # noqa: E402
from .functions import FUNCTIONS  # noqa: E402
from .programs import INTERPRETED, Mismatch  # noqa: E402
from .programs import names as inputs  # noqa: E402
from .shrinking import Failure, UnservedError, code, failures, smaller  # noqa: E402
from .stored import save  # noqa: E402

SHRUNK = 3  # failures of a function that are made small; the others are counted
PROGRAMS = 60  # that are kept, before all are forgotten
# The call that runs: it stays if that ends the process.
RUNNING = pathlib.Path(tempfile.gettempdir(), f"jaxunpool-fuzz-{os.getpid()}")


@dataclasses.dataclass
class Tally:
    """What was compared.

    A configuration is a function with settings, a shape, a type, a layout, kinds of an input, of a
    cotangent and of a tangent, a transformation and a backend, of which every element of every
    result was compared.
    """

    configurations: int = 0
    programs: int = 0
    failures: int = 0

    def add(self, configurations: int, wrong: int) -> None:
        self.configurations += configurations
        self.programs += 1
        self.failures += wrong


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="NAME", choices=sorted(FUNCTIONS), help="one function")
    parser.add_argument("--backend", choices=INTERPRETED, help="one that is interpreted")
    parser.add_argument("--first", type=int, default=0, help="the number to begin with")
    parser.add_argument("--optimized", action="store_true", help="compile as users do: slower")
    return parser.parse_args()


def main() -> int:
    given = options()
    names = [given.only] if given.only else sorted(FUNCTIONS)
    if given.backend:
        names = [name for name in names if sampling.has_kernels(FUNCTIONS[name])]
    by_function = collections.defaultdict(Tally)
    by_backend = collections.defaultdict(Tally)
    reported = collections.Counter[str]()
    stop, number, done = time.monotonic() + 60 * given.minutes, given.first, 0
    print(f"seed {given.seed}; the call that runs is in {RUNNING}", flush=True)
    while time.monotonic() < stop:
        for name in names:
            if time.monotonic() > stop:
                break
            spec = sampling.draw(name, number, given.seed, given.backend)
            for asked in (spec, *sampling.peers(spec)):
                wrong = answered(asked, number)
                if wrong is None:
                    continue
                for tally in (by_function[name], by_backend[asked.backend or "None"]):
                    tally.add(len(inputs(asked)), len(wrong))
                if wrong and reported[name] < SHRUNK:
                    reported[name] += 1
                    report(wrong, number)
            done += 1
            if done % PROGRAMS == 0:
                forget()
        number += 1
    RUNNING.unlink(missing_ok=True)
    print_table("function", by_function)
    print_table("backend", by_backend)
    print(f"seed {given.seed}, numbers {given.first} to {number}")
    return int(any(tally.failures for tally in by_function.values()))


def answered(spec: Spec, number: int) -> list[Failure] | None:
    """What is wrong with a call; None if its backend has no kernel for it."""
    try:
        RUNNING.write_text(f"number {number}: {spec}")
        return failures(spec)
    except UnservedError:
        return None
    except Exception:
        print(f"ERROR OF THE FUZZER: number {number}: {spec}")
        traceback.print_exc(limit=-4, file=sys.stdout)
        return [Failure(spec, None, Mismatch("an error of the fuzzer", 0, "", ""))]


def report(wrong: list[Failure], number: int) -> None:
    """Print what is wrong, and one of the failures as small as it gets, which is stored."""
    by_what = {one.mismatch.what: one for one in reversed(wrong)}
    for one in by_what.values():
        print(f"FAILED: {one.spec.function}, number {number}: {one.mismatch}\n  {one.spec}")
    if "an error of the fuzzer" in by_what:
        return
    small = smaller(next(iter(by_what.values())))
    print(code(small))
    print(f"stored: {save(small)}", flush=True)


def forget() -> None:
    """Compiled programs, and the memory that they took."""
    jax.clear_caches()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def print_table(what: str, tallies: dict[str, Tally]) -> None:
    print(f"\n{what:34}{'configurations':>15}{'programs':>10}{'failures':>10}")
    total = Tally()
    for name, tally in sorted(tallies.items()):
        print(f"{name:34}{tally.configurations:15,}{tally.programs:10,}{tally.failures:10,}")
        total.configurations += tally.configurations
        total.programs += tally.programs
        total.failures += tally.failures
    print(f"{'in all':34}{total.configurations:15,}{total.programs:10,}{total.failures:10,}")


if __name__ == "__main__":
    sys.exit(main())
