"""Training to the end, showing how far it is, saving on the way and when interrupted."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from jaxunpool import models
from jaxunpool.apps.command import UsageError, read_json, report, require_extra
from jaxunpool.training import processes
from jaxunpool.training.checkpoints import CONFIGURATION, Folder, pack, unpack
from jaxunpool.training.loop import Network, Run, State
from jaxunpool.training.options import FOR_IMAGES, NETWORKS, Configuration, ImagesConfiguration
from jaxunpool.training.processes import StoppedError
from jaxunpool.training.shards import local


class Signals:
    """Notes that SIGINT or SIGTERM came. The second one does what it does without this."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _note(self, number: int, frame: object) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


def interruptible(run: Callable[[], int]) -> int:
    """What `run` returns, or the exit status of one that a signal ended, and a line."""
    try:
        return run()
    except StoppedError as interruption:
        if processes.is_first():
            report(interruption)
        return interruption.status
    except KeyboardInterrupt:
        report("stopped at once; what was saved is safe")
        return 128 + signal.SIGINT


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run, the state it ended in, and where it is saved."""

    run: Run
    state: State
    path: pathlib.Path


class Monitor:
    """Bars in a terminal; elsewhere a line for every record of a run's history."""

    def __init__(self, console: Console):
        self.console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[scores]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal,
            expand=True,
        )

    @contextlib.contextmanager
    def shown(self) -> Iterator[Monitor]:
        """While bars are on the screen."""
        with self._bars:
            yield self

    def add(self, configuration: Configuration) -> TaskID:
        """A bar for a run that has not begun."""
        name = configuration.decoder
        return self._bars.add_task(name, total=configuration.steps, scores="", start=False)

    def begin(self, task: TaskID, step: int) -> None:
        """Start its clock at this step."""
        self._bars.start_task(task)
        scores = "compiling" if step < (self._bars.tasks[task].total or 0) else ""
        self._bars.update(task, completed=step, scores=scores)

    def update(self, task: TaskID, run: Run, state: State) -> None:
        """Show where a run is."""
        step = int(state.step)
        loss = float(local(state.losses)[step - 1])
        miou = np.asarray(state.miou)
        known = miou[~np.isnan(miou)]
        scores = f"loss {loss:.3f}  mIoU " + (f"{known[-1]:.3f}" if len(known) else " ... ")
        self._bars.update(task, completed=step, scores=scores)
        if run.is_recorded(step) and not self.console.is_terminal:
            configuration = run.configuration
            self.console.print(f"{configuration.decoder}: {step}/{configuration.steps}  {scores}")


def load(path: str | os.PathLike[str]) -> Network:
    """The network of a run's last checkpoint, ready to predict.

    Args:
        path: the run's folder.

    Returns:
        The network, which takes images between -0.5 and 0.5 and gives logits.

    Raises:
        UsageError: it holds no run, or none of its checkpoints is whole; or a process is training
            in it.
    """
    trained = restore(pathlib.Path(path))
    return trained.run.model(trained.state)


def restore(path: pathlib.Path) -> Trained:
    """A run's last checkpoint, to predict with; raises as `load` does."""
    found = read_json(path / CONFIGURATION)
    kinds: list[type[Configuration]] = [Configuration, ImagesConfiguration]
    names = [{field.name for field in dataclasses.fields(kind)} for kind in kinds]
    if not isinstance(found, dict) or {*found} not in names:
        raise UsageError(f"{path}: holds no run")
    if found["decoder"] not in models.DECODERS or found["network"] not in NETWORKS:
        raise UsageError(f"{path}: holds no run")
    configuration = kinds[names.index({*found})](**found)
    run: Run
    if isinstance(configuration, ImagesConfiguration):
        require_extra("train", *FOR_IMAGES)
        from jaxunpool.training.images import ImagesRun

        run = ImagesRun(configuration)
    else:
        run = Run(configuration)
    with contextlib.closing(Folder(path, run.configuration)) as folder:
        state = folder.resume(run.start())
    if state is None:
        raise UsageError(f"{path}: holds no checkpoint yet")
    return Trained(run, state, path)


def train(
    configuration: Configuration,
    path: pathlib.Path,
    checkpoint_every: int,
    monitor: Monitor,
    task: TaskID,
    make: Callable[[], Run] | None = None,
) -> Trained:
    """Train to the end, from wherever the run in this folder is.

    Args:
        configuration: what to train.
        path: the run's folder, made if it is not there.
        checkpoint_every: steps between checkpoints.
        monitor: shows how far it is, in the bar `task`.
        task: from `monitor.add`.
        make: the run; without it, one of scenes.

    Raises:
        UsageError: the folder holds something else, or cannot be written.
        StoppedError: a signal came; the state was saved before.
    """
    with Signals() as signals, contextlib.ExitStack() as held:
        folder = processes.together(lambda: opened(path, configuration, held))
        run = processes.together(make or (lambda: Run(configuration)))
        state = resumed(folder, run)
        step = int(state.step)
        announce(monitor.console, path, run, step)
        monitor.begin(task, step)
        feed = run.feed(step)
        if step < configuration.steps:
            watched, fed = processes.together(lambda: (run.watched(), next(feed)))
        while step < configuration.steps:
            state, step = run.step(state, *fed), step + 1
            if run.is_recorded(step):
                state = run.record(state, watched)
            monitor.update(task, run, state)
            fed, received = processes.noted(lambda: next(feed, ()), signals.received or 0)
            if step == configuration.steps or received or step % checkpoint_every == 0:
                save(folder, state)
            if received:
                break
        _, received = processes.noted(lambda: None, signals.received or 0)
    if received:
        raise StoppedError(
            received, f"stopped after step {step}, saved in {path}; the same command continues"
        )
    return Trained(run, state, path)


def opened(
    path: pathlib.Path, configuration: Configuration, held: contextlib.ExitStack
) -> Folder | None:
    """The run's folder, until `held` is closed; process 0 alone has it."""
    if not processes.is_first():
        return None
    return held.enter_context(contextlib.closing(Folder(path, configuration)))


def resumed(folder: Folder | None, run: Run) -> State:
    """The state that the run goes on from: process 0 has read it, or made the first one."""
    start = run.start()

    def read() -> np.ndarray:
        assert folder is not None
        state = folder.resume(start)
        return pack(start if state is None else state)

    return unpack(processes.from_first(read), start)


def save(folder: Folder | None, state: State) -> None:
    """Save in process 0; no process goes on before it is done."""
    processes.together(lambda: None if folder is None else folder.save(state))


def announce(console: Console, path: pathlib.Path, run: Run, step: int) -> None:
    """Say where a run goes on and what it is sharded over."""
    asked, shards, count = run.configuration, run.shards, jax.process_count()
    if 0 < step < asked.steps:
        console.print(f"{path}: going on from step {step}")
    if shards.count > 1:
        over = f"{shards.count} {jax.default_backend()} devices"
        where = f" of {count} processes" if count > 1 else ""
        console.print(f"{path}: batches of {asked.batch} over {over}{where}")
