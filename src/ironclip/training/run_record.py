"""What a run folder says of itself: run.json, and log.jsonl line by line."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ironclip.files import write_atomically
from ironclip.provenance import source_sha256, versions

if TYPE_CHECKING:
    from ironclip.training.trainer import Trainer


def run_key(trainer: Trainer) -> str:
    """Hash what decides the result: recipe, samples and weights. Not the machine, not the place."""
    parts = [json.dumps(trainer.recipe.resolved(), sort_keys=True), trainer.data.fingerprint, trainer.model.spec.sha256]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def write_record(out: Path, trainer: Trainer, *, command: Sequence[str], device: str) -> None:
    """Write run.json; on a resume it stays as the first sitting wrote it."""
    run_by_name = [trainer.method, trainer.attack, trainer.recipe.build_text_attack()]
    modules = [type(one).__module__ for one in run_by_name if one is not None]
    record: dict[str, Any] = {
        "command": shlex.join(command),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "source_sha256": source_sha256("ironclip.training.engine", *modules),
        "device": device,
        "threat": trainer.recipe.build_threat().record(),
        "threat_caption": trainer.recipe.build_threat().caption(),
        "model": {"source": trainer.model.spec.origin, "sha256": trainer.model.spec.sha256},
        "fast_path": trainer.model.fast_path,
        "text_path": trainer.model.text_path,
        "trains": trainer.method.trains.value,
        "data": {
            "source": trainer.data.source,
            "fingerprint": trainer.data.fingerprint,
            "samples": len(trainer.data),
            "problems": list(trainer.data.problems),
            "held_out": 0 if trainer.held_out is None else len(trainer.held_out.keys),
            "classes": None if trainer.prompts is None else len(trainer.prompts[0]),
        },
        "steps": trainer.steps,
        "recipe": trainer.recipe.model_dump(mode="json"),
        "resolved": trainer.recipe.resolved(),
    }
    write_atomically(out / "run.json", json.dumps(record, indent=1).encode())


class RunLog:
    """Append-only JSON lines; lines after the step that a run resumes from are dropped, since they will come again."""

    def __init__(self, out: Path, step: int) -> None:
        self.path = out / "log.jsonl"
        kept: list[str] = []
        written = self.path.read_text() if self.path.exists() else ""
        if written:
            for line in written.splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
                except json.JSONDecodeError:
                    break  # the line that a kill cut off
        content = "".join(f"{line}\n" for line in kept)
        if content != written or not self.path.exists():
            write_atomically(self.path, content.encode())

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append one line; a figure that is not finite is null, since JSON has no NaN."""
        with self.path.open("a") as file:
            file.write(json.dumps(_plain(entry), allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
