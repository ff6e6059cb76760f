"""Training in several processes, on one host or many: how they start, agree and end together.

All processes run the same program. Process 0 alone writes files and prints. An error that one
process finds is raised in all of them, so that none waits for another that has ended.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxunpool.apps.command import UsageError, exit_status, report
from jaxunpool.training import options

Item = TypeVar("Item")
Result = TypeVar("Result")

GRACE = 60  # seconds that JAX waits longer than this command, since it would abort
# In what JAX raises when a collective has lost its peer: a RuntimeError or a ValueError.
NETWORK = ("Gloo", "NCCL", "UNAVAILABLE", "Connection ")


class SharedError(UsageError):
    """An error that all processes raise; they end in order."""


class StoppedError(Exception):
    """A signal asked to stop, and everything is saved; the message is one line for the user."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.status = 128 + number  # what shells report of a program that the signal ended


def is_first() -> bool:
    """Whether this is process 0, which writes and prints."""
    return jax.process_index() == 0


def count() -> int:
    """How many processes there are."""
    return jax.process_count()


# Starting and ending


@contextlib.contextmanager
def joined(asked: argparse.Namespace) -> Iterator[None]:
    """While this process is one of several, if the command line says so.

    Args:
        asked: what `options.add_distributed` adds to a command line.

    Raises:
        SharedError: the processes cannot work together.
    """
    if not asked.distributed:
        yield
        return
    _join(asked)
    try:
        _check_devices()
        yield
    except BaseException as error:
        if not isinstance(error, (SharedError, StoppedError)):
            _leave_at_once(error)
        jax.distributed.shutdown()
        raise
    jax.distributed.shutdown()


def _join(asked: argparse.Namespace) -> None:
    where = (asked.coordinator_address, asked.num_processes, asked.process_id)
    # A signal is for `session.Signals`; JAX would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    if jax.config.values["jax_cpu_collectives_implementation"] is None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    with _deadline(asked):
        try:
            jax.distributed.initialize(
                *where,
                # Nothing is left to detect; Kubernetes' detection would warn of missing packages.
                cluster_detection_method=None if None in where else "deactivate",
                initialization_timeout=_timeout(asked) + GRACE,
            )
        except Exception as error:  # of every kind of cluster
            raise UsageError(_explained(error, where)) from None


def _timeout(asked: argparse.Namespace) -> int:
    return asked.initialization_timeout or options.INITIALIZATION_TIMEOUT


def _explained(error: Exception, where: Sequence[Any]) -> str:
    if None in where and isinstance(error, ValueError):
        return (
            "argument --distributed: found no cluster: give --coordinator-address,"
            " --num-processes and --process-id"
        )
    return f"argument --distributed: {error}"


@contextlib.contextmanager
def _deadline(asked: argparse.Namespace) -> Iterator[None]:
    """Ends this process if not all are there in time. JAX would abort it, with a stack trace."""

    def end() -> None:
        address = asked.coordinator_address
        report(
            f"argument --distributed: not all processes met within {_timeout(asked)} seconds"
            + (f" at {address}" if address else "")
        )
        _exit(2)

    timer = threading.Timer(_timeout(asked), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _check_devices() -> None:
    counts = [0] * jax.process_count()
    for device in jax.devices():
        counts[device.process_index] += 1
    if len(set(counts)) > 1:
        found = ", ".join(map(str, counts))
        raise SharedError(
            f"argument --distributed: expected as many devices on every process, got {found}"
        )


def _leave_at_once(error: BaseException) -> None:
    """End without a word to the others: they may wait for this process, and notice its end."""

    def raised() -> int:
        if jax.process_count() > 1 and any(word in str(error) for word in NETWORK):
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"lost another process ({reason}): start all of them again")
        raise error

    try:
        _exit(exit_status(raised))
    except BaseException:
        traceback.print_exc()
        _exit(1)


def _exit(status: int) -> None:
    """Without JAX's farewell to processes that may be gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


# Agreeing


def together(function: Callable[[], Result]) -> Result:
    """What `function` returns in this process, once it has succeeded in all.

    Raises:
        SharedError: in every process, if `function` raises a UsageError or an OSError in any.
    """
    return noted(function, 0)[0]


def noted(function: Callable[[], Result], note: int) -> tuple[Result, int]:
    """As `together`, and the largest note that any process has."""
    if jax.process_count() == 1:
        return function(), note
    result: Any = None
    message = ""
    try:
        result = function()
    except (UsageError, OSError) as error:
        message = str(error)
    flags = multihost_utils.process_allgather(np.array([note, bool(message)], np.int32))
    if flags[:, 1].any():
        raise SharedError(_combined(gathered(message)))
    return result, int(flags[:, 0].max())


def _combined(messages: Sequence[str]) -> str:
    """The message that all have, or that of process 0, or the first and whose it is."""
    first = next(at for at, text in enumerate(messages) if text)
    return messages[0] if first == 0 else f"process {first}: {messages[first]}"


def from_first(function: Callable[[], np.ndarray]) -> np.ndarray:
    """The bytes that `function` returns in process 0, the only one that runs it."""
    if jax.process_count() == 1:
        return function()
    mine = together(lambda: function() if is_first() else np.empty(0, np.uint8))
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(mine), np.int32)))
    sent = mine if is_first() else np.empty(size, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(sent))


def by_first(function: Callable[[], Result]) -> Result:
    """What `function` returns in process 0, the only one that runs it."""
    if jax.process_count() == 1:
        return function()
    return unpacked(from_first(lambda: packed(function())))


def gathered(value: Result) -> list[Result]:
    """The value that each process has, in the order of processes."""
    if jax.process_count() == 1:
        return [value]
    sent = packed(value)
    sizes = multihost_utils.process_allgather(np.int32(len(sent)))
    padded = np.pad(sent, (0, int(sizes.max()) - len(sent)))
    parts = multihost_utils.process_allgather(padded)
    return [unpacked(part[:size]) for part, size in zip(parts, sizes)]


def packed(value: Any) -> np.ndarray:
    """The bytes of a value: numbers, texts and arrays, in lists, tuples and dicts.

    Not a pickle, which can run code where it is read.
    """
    arrays: list[np.ndarray] = []

    def described(one: Any) -> Any:
        if isinstance(one, np.ndarray):
            if one.dtype.kind in "OV":
                raise TypeError(f"arrays of {one.dtype} are not sent")
            arrays.append(one)
            return {"array": len(arrays) - 1}
        if isinstance(one, dict):
            if not all(isinstance(name, str) for name in one):
                raise TypeError(f"names that are no texts are not sent: {list(one)}")
            return {"dict": {name: described(each) for name, each in one.items()}}
        if isinstance(one, tuple):
            return {"tuple": [described(each) for each in one]}
        if isinstance(one, list):
            return [described(each) for each in one]
        return one.item() if isinstance(one, np.generic) else one

    file = io.BytesIO()
    text = json.dumps(described(value)).encode()
    np.savez(file, np.frombuffer(text, np.uint8), *arrays)
    return np.frombuffer(file.getvalue(), np.uint8)


def unpacked(sent: np.ndarray) -> Any:
    """The value that was packed."""
    with np.load(io.BytesIO(sent.tobytes()), allow_pickle=False) as file:
        text, *arrays = (file[f"arr_{i}"] for i in range(len(file.files)))

    def meant(one: Any) -> Any:
        if isinstance(one, list):
            return [meant(each) for each in one]
        if not isinstance(one, dict):
            return one
        ((kind, content),) = one.items()
        if kind == "array":
            return arrays[content]
        if kind == "tuple":
            return tuple(meant(each) for each in content)
        return {name: meant(each) for name, each in content.items()}

    return meant(json.loads(text.tobytes()))


def shared_map(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Each item's result, in order; every process computes its share of them."""
    count = jax.process_count()
    share = items[jax.process_index() :: count]
    parts = gathered(together(lambda: [function(item) for item in share]))
    return [parts[at % count][at // count] for at in range(len(items))]


def check_same(about: dict[str, Any]) -> None:
    """Raise a SharedError unless all processes were asked for the same."""
    others = gathered(about)
    for at, other in enumerate(others):
        for name, expected in others[0].items():
            if other.get(name) != expected:
                raise SharedError(
                    f"all processes need the same arguments and files: {name} is"
                    f" {other.get(name)} in process {at}, {expected} in process 0"
                )
