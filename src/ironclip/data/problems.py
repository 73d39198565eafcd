"""What is lost while a data set is opened: collected, then said in one line a kind, named and counted."""

from __future__ import annotations

from pathlib import Path

from ironclip.errors import DataError, did_you_mean

_NAMED = 5


class Problems:
    """A record of losses."""

    def __init__(self) -> None:
        self._samples: dict[str, list[str]] = {}
        self._lines: list[str] = []

    def add(self, kind: str, key: str) -> None:
        """Count one sample under a kind of loss ("no image; left out")."""
        self._samples.setdefault(kind, []).append(key)

    def say(self, line: str) -> None:
        """Record a loss that is no single sample's."""
        self._lines.append(line)

    def lines(self) -> tuple[str, ...]:
        """Return the record, such as `2 samples: no label; left out (pets/test/03, pets/test/07).`."""
        counted = []
        for kind, keys in self._samples.items():
            named = ", ".join(keys[:_NAMED]) + (", …" if len(keys) > _NAMED else "")
            counted.append(f"{len(keys)} sample{'s' if len(keys) > 1 else ''}: {kind} ({named}).")
        return (*self._lines, *counted)


def missing_folder(folder: Path, *, expected: str) -> DataError:
    """Return the error for a folder that is not there, its nearest sibling named."""
    siblings = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
    what = "is not a folder" if folder.exists() else "does not exist"
    return DataError(
        f"the folder {folder} {what}.{did_you_mean(folder.name, siblings)}",
        f"Give the path of a folder that holds {expected}; a relative path starts at {Path.cwd()}.",
    )
