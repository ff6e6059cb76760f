"""The folder of a run: saving, resuming, and refusing what is not its own.

Orbax makes each checkpoint appear whole or not at all. On top of that every one carries a digest,
so that one damaged later is noticed and set aside, and the configuration, so that one of another
run is not taken for this run's.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxunpool.apps.command import UsageError, read_json, report, write_json
from jaxunpool.training.loop import State
from jaxunpool.training.options import Configuration
from jaxunpool.training.shards import placed

KEPT = 3
# A checkpoint that cannot be read now may be whole: it is not set aside.
UNREADABLE = {os.strerror(n) for n in (errno.EACCES, errno.EIO, errno.EMFILE, errno.ENFILE)}
CONFIGURATION, CHECKPOINTS, DAMAGED = "configuration.json", "checkpoints", "damaged"


class Folder:
    """A folder that belongs to one run.

    Args:
        path: where it is, or is to be made.
        configuration: of the run.

    Raises:
        UsageError: it holds another run or something else, cannot be written, or another process
            is training in it. Nothing in it was touched.
    """

    def __init__(self, path: pathlib.Path, configuration: Configuration):
        self.path = path
        self.about = configuration.about()
        with contextlib.ExitStack() as held:
            held.enter_context(claimed(path, self.about))
            self._manager = self._opened()
            self._held = held.pop_all()

    def _opened(self) -> ocp.CheckpointManager:
        alone = jax.process_index()  # of several processes, one saves what all of them have
        options = ocp.CheckpointManagerOptions(
            create=False,  # Orbax leaves it to us when not all processes take part
            max_to_keep=KEPT,
            cleanup_tmp_directories=True,  # of a process that was killed
            enable_async_checkpointing=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=alone, active_processes={alone}, barrier_sync_key_prefix=str(alone)
            ),
        )
        with self._explained("checkpoints cannot be opened"):
            folder = self.path / CHECKPOINTS
            folder.mkdir(exist_ok=True)
            return ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, state: State) -> None:
        """Write a checkpoint of this state, and drop the oldest of more than `KEPT`."""
        packed, about = pack(state), {"configuration": self.about, "layout": layout(state)}
        about["sha256"] = digest(packed, about)
        step = int(state.step)
        with self._explained(f"step {step} cannot be saved", self._safe()):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave({"packed": packed}), about=ocp.args.JsonSave(about)
                ),
                force=True,
            )

    def resume(self, start: State) -> State | None:
        """The last state that was saved whole, or None if none was saved yet.

        Damaged checkpoints after it are set aside, each with a line on stderr.

        Args:
            start: a state of the same run: its shapes, dtypes and shardings.

        Raises:
            UsageError: there are checkpoints but all are damaged, or one is of another run.
        """
        damaged: list[int] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            state = self._read(step, start)
            if state is not None:
                self._set_aside(damaged, step)
                return state
            damaged.append(step)
        if damaged:
            raise UsageError(
                f"{self.path}: {_steps(damaged)} damaged and no other is there: move the folder"
                " away, or choose another --output"
            )
        return None

    def close(self) -> None:
        """Wait for what Orbax does behind the scenes, and leave the folder to others."""
        self._manager.close()
        self._held.close()

    def _read(self, step: int, start: State) -> State | None:
        """A checkpoint, or None if it is damaged."""
        try:
            found = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore({"packed": _abstract(start)}),
                    about=ocp.args.JsonRestore(),
                ),
            )
            packed, about = np.asarray(found["state"]["packed"]), found["about"]
            if about.pop("sha256") != digest(packed, about):
                return None
        except Exception as error:  # TensorStore, zarr, JSON: one for every kind of damage
            if isinstance(error, MemoryError) or _reason(error) in UNREADABLE:
                message = f"the checkpoint of step {step} cannot be read ({_reason(error)})"
                raise UsageError(f"{self.path}: {message}") from None
            return None
        check(self.path, about["configuration"], self.about)
        if about["layout"] != layout(start):
            raise UsageError(f"{self.path}: step {step} was saved by another version of its layers")
        return unpack(packed, start)

    def _set_aside(self, damaged: list[int], good: int) -> None:
        """Out of the way of the checkpoints to come, but not deleted."""
        if not damaged:
            return
        report(
            f"{self.path}: {_steps(damaged)} damaged (now in {DAMAGED}/), going on from step {good}"
        )
        with self._explained("damaged checkpoints cannot be moved"):
            for step in damaged:
                kept = self.path / DAMAGED
                kept.mkdir(exist_ok=True)
                number = len(list(kept.iterdir()))
                os.rename(self.path / CHECKPOINTS / str(step), kept / f"{step}.{number}")
            self._manager.reload()

    def _safe(self) -> str:
        steps = self._manager.all_steps()
        return f"; step {max(steps)} is safe" if steps else ""

    @contextlib.contextmanager
    def _explained(self, what: str, consequence: str = "") -> Iterator[None]:
        """One line for whatever Orbax and TensorStore raise when a disk does not do its part."""
        try:
            with _quiet():
                yield
        except Exception as error:
            raise UsageError(f"{self.path}: {what} ({_reason(error)}){consequence}") from None


@contextlib.contextmanager
def claimed(path: pathlib.Path, about: dict[str, Any]) -> Iterator[None]:
    """The folder, made or found to be for this, is this process's until it lets go or ends.

    Args:
        path: the folder.
        about: what it is for, as JSON has it; written into a new one.

    Raises:
        UsageError: it is for something else, another process has it, or it cannot be written.
            Nothing in it was touched.
    """
    with contextlib.ExitStack() as held:
        try:
            if path.exists() and not path.is_dir():
                raise UsageError(f"--output {path}: is not a folder")
            path.mkdir(parents=True, exist_ok=True)
            if not os.access(path, os.W_OK | os.X_OK):
                raise UsageError(f"--output {path}: the folder is not writable")
            held.enter_context(locked(path))
            if (path / CONFIGURATION).exists():
                check(path, read_json(path / CONFIGURATION), about)
            elif any(not entry.name.endswith(".part") for entry in path.iterdir()):
                raise UsageError(f"--output {path}: holds something other than a run")
            else:
                write_json(path / CONFIGURATION, about)
            for unfinished in path.glob(".*.part"):  # of a process that was killed
                unfinished.unlink()
        except OSError as error:
            raise UsageError(f"--output {path}: {error.strerror or error}") from None
        yield


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """No other process has the folder; where a system has no locks for folders, as it is."""
    with contextlib.ExitStack() as held:
        try:
            import fcntl

            folder = os.open(path, os.O_RDONLY)
            held.callback(os.close, folder)
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"--output {path}: another process is training in it") from None
        except (ImportError, OSError):
            pass
        yield


def check(path: pathlib.Path, found: Any, about: dict[str, Any]) -> None:
    """Raise a UsageError that says in what the two differ, if they do."""
    if not isinstance(found, dict):
        raise UsageError(f"--output {path}: its {CONFIGURATION} is damaged")
    other = sorted(n for n in {*found, *about} if found.get(n) != about.get(n))
    if other:
        theirs = ", ".join(f"{name}={found.get(name)}" for name in other)
        ours = ", ".join(f"{name}={about.get(name)}" for name in other)
        raise UsageError(
            f"--output {path}: holds a run with {theirs}, but you asked for {ours}: choose another"
            " folder"
        )


def pack(state: State) -> np.ndarray:
    """All of a state as one array of bytes.

    Written as one array it is saved several times faster than as fifty small ones, and a full disk
    is one error, not a traceback from each of TensorStore's threads.
    """
    leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(state)]
    return np.concatenate([leaf.reshape(-1).view(np.uint8) for leaf in leaves])


def unpack(packed: np.ndarray, like: State) -> State:
    """The state that was packed, on the devices of `like`."""
    leaves, treedef = jax.tree.flatten(like)
    ends = np.cumsum([leaf.nbytes for leaf in leaves])[:-1]
    parts = [
        part.view(leaf.dtype).reshape(leaf.shape)
        for part, leaf in zip(np.split(packed, ends), leaves)
    ]
    return jax.tree.unflatten(treedef, map(placed, parts, [leaf.sharding for leaf in leaves]))


def layout(state: State) -> list[str]:
    """The name, dtype and shape of every array, in the order in which they are packed."""
    leaves = jax.tree.leaves_with_path(state)
    return [f"{jax.tree_util.keystr(path)} {leaf.dtype}{leaf.shape}" for path, leaf in leaves]


def digest(packed: np.ndarray, about: dict[str, Any]) -> str:
    """SHA-256 of a checkpoint and of what is said about it, in hexadecimal."""
    return hashlib.sha256(packed.tobytes() + json.dumps(about, sort_keys=True).encode()).hexdigest()


def _abstract(state: State) -> np.ndarray:
    return np.empty(sum(leaf.nbytes for leaf in jax.tree.leaves(state)), np.uint8)


def _steps(damaged: list[int]) -> str:
    if len(damaged) == 1:
        return f"the checkpoint of step {damaged[0]} is"
    return f"the checkpoints of steps {', '.join(map(str, sorted(damaged)))} are"


def _reason(error: Exception) -> str:
    """What the operating system said, out of what was built around it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error)
    for name in ("ENOSPC", "EFBIG", "EDQUOT", "EACCES", "EROFS", "EIO", "EMFILE", "ENFILE"):
        if os.strerror(getattr(errno, name)) in text:
            return os.strerror(getattr(errno, name))
    return " ".join(text.split())[:200]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Orbax's own account of it in the terminal."""
    loggers = [logging.getLogger("absl"), logging.getLogger()]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before):
            logger.setLevel(level)
