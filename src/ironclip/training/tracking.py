"""A run's figures to where people watch them: tensorboard, trackio, wandb, all behind one protocol.

`log.jsonl` is written always and is what counts. A tracker is told what was written there, line by line, so it knows
nothing of training and cannot change it.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ironclip.errors import ConfigError, MissingDependencyError, did_you_mean

PROJECT = "ironclip"
"""What the trackers of many projects file our runs under."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run before its figures.

    Attributes:
        name: Of the run's folder.
        folder: The run's folder.
        settings: Everything that decides the result, as run.json has it.
        first_step: The first of which figures will come; above 1 where a run goes on.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    first_step: int


class Tracker(Protocol):
    """Shows figures to people."""

    def start(self, run: TrackedRun) -> None:
        """Begin, or go on with, a run."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take figures of a step, all finite; the same step may come twice, training first, then its validation."""

    def finish(self) -> None:
        """Write what is not written yet."""


class TensorBoard:
    """Event files in RUN/tensorboard.

    Raises:
        MissingDependencyError: tensorboard is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingDependencyError("tensorboard", "watch", purpose="--track tensorboard") from None
        self._open: Callable[..., Any] = SummaryWriter
        self._writer: Any = None

    def start(self, run: TrackedRun) -> None:
        """Open a file; what an earlier sitting wrote of later steps is dropped, since it will come again."""
        purge = run.first_step if run.first_step > 1 else None
        self._writer = self._open(log_dir=str(run.folder / "tensorboard"), purge_step=purge)
        self._writer.add_text("recipe", f"```json\n{json.dumps(run.settings, indent=1)}\n```")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take figures of a step."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, global_step=step)

    def finish(self) -> None:
        """Close the file."""
        self._writer.close()


class Hosted:
    """trackio or wandb, whose calls are the same.

    Args:
        package: Which of them.

    Raises:
        MissingDependencyError: It is not installed.
    """

    def __init__(self, package: str) -> None:
        try:
            self._client: Any = importlib.import_module(package)
        except ImportError:
            raise MissingDependencyError(package, package, purpose=f"--track {package}") from None

    def start(self, run: TrackedRun) -> None:
        """Begin a run; one that goes on is a second run of the same name there."""
        self._client.init(project=PROJECT, name=run.name, config=dict(run.settings))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take figures of a step."""
        self._client.log(dict(figures), step=step)

    def finish(self) -> None:
        """Send what is not sent yet."""
        self._client.finish()


TRACKERS: dict[str, Callable[[], Tracker]] = {
    "tensorboard": TensorBoard,
    "trackio": lambda: Hosted("trackio"),
    "wandb": lambda: Hosted("wandb"),
}
"""Trackers by the name that users give."""


def open_tracker(name: str) -> Tracker:
    """Return a tracker by its name.

    Raises:
        ConfigError: There is none of this name.
        MissingDependencyError: Its package is not installed.
    """
    if name not in TRACKERS:
        raise ConfigError(
            f'unknown tracker "{name}".{did_you_mean(name, TRACKERS)}', f"Known trackers: {', '.join(TRACKERS)}."
        )
    return TRACKERS[name]()


class LogFollower:
    """Tells trackers what has been written into a run's log since it was last asked.

    Lines that were there at the beginning were told by an earlier sitting. A run that goes on may take some of them
    back and write them again, with the same figures: they are passed over too. Trackers are started with the first
    news, so that a request that is refused leaves nothing behind.

    Args:
        folder: The run's folder; it need not be there yet.
        settings: See `TrackedRun`.
        trackers: Who is told.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], trackers: Sequence[Tracker]) -> None:
        self.log, self.trackers = folder / "log.jsonl", trackers
        self._file, self._offset = 0, 0
        self._told = max(map(_place, self._new_entries()), default=(0, False))
        self._run = TrackedRun(folder.resolve().name, folder, settings, self._told[0] + 1)
        self._started = False

    def poll(self) -> None:
        """Tell what is new."""
        for entry in self._new_entries() if self.trackers else ():
            if _place(entry) > self._told:
                self._told = _place(entry)
                self._tell(entry["step"], figures_of(entry))

    def finish(self) -> None:
        """Tell the rest, and let the trackers write what they have not written yet."""
        self.poll()
        for tracker in self.trackers if self._started else ():
            tracker.finish()

    def _tell(self, step: int, figures: Mapping[str, float]) -> None:
        for tracker in self.trackers:
            if not self._started:
                tracker.start(self._run)
            tracker.log(step, figures)
        self._started = True

    def _new_entries(self) -> Iterator[dict[str, Any]]:
        """Yield the lines since the last time; all of them where the file is another one than it was."""
        if not self.log.exists():
            return
        with self.log.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._file or status.st_size < self._offset:
                self._file, self._offset = status.st_ino, 0
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # cut off by a kill; the run that goes on writes it again
                self._offset += len(line)
                yield json.loads(line)


@contextmanager
def tracked(names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> Iterator[LogFollower]:
    """Open trackers for a run; on leaving, however that is, they are told the rest and finished.

    Args:
        names: Of trackers; none gives a follower that tells nobody.
        folder: The run's folder.
        settings: See `TrackedRun`.

    Raises:
        ConfigError, MissingDependencyError: See `open_tracker`.
    """
    follower = LogFollower(folder, settings, [open_tracker(name) for name in dict.fromkeys(names)])
    try:
        yield follower
    finally:
        follower.finish()


def figures_of(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a log's line as `train/NAME` or `held_out/NAME`; what was not finite is left out."""
    part, values = ("held_out", entry["validation"]) if "validation" in entry else ("train", entry)
    return {
        f"{part}/{name}": float(value)
        for name, value in values.items()
        if name != "step" and isinstance(value, int | float)
    }


def _place(entry: Mapping[str, Any]) -> tuple[int, bool]:
    """Return where a line stands in the log: a step's validation follows the step."""
    return int(entry["step"]), "validation" in entry
