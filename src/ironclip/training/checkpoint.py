"""The resume state of a training run: one safetensors file, replaced atomically."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ironclip.errors import ResumeError
from ironclip.files import write_atomically

FILE = "checkpoint.safetensors"


class Stateful(Protocol):
    """What a checkpoint asks of an optimiser."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state by the number of the parameter, and the groups."""
        ...

    def load_state_dict(self, saved: dict[str, Any], /) -> None:
        """Restore what `state_dict` gave."""
        ...


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: Optimiser steps done; epoch and position in it follow from it.
        skipped: Steps skipped because loss or gradient was not finite.
        skipped_in_a_row: Of these, those just now.
        images: Images seen.
        best_step: Step of the best validation so far (`select: best`), -1 before the first.
        best_value: Its value.
        unreadable: Key and reason of each sample that could not be read.
    """

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    images: int = 0
    best_step: int = -1
    best_value: float = float("-inf")
    unreadable: dict[str, str] = field(default_factory=dict)


def save_checkpoint(
    folder: Path,
    key: str,
    progress: Progress,
    parameters: dict[str, Tensor],
    optimiser: Stateful,
    best: dict[str, Tensor],
) -> Path:
    """Write weights, optimiser, position and best weights so far, all or nothing.

    Args:
        folder: The run folder.
        key: Hash of what the run is (recipe, data, weights); a resume with another is refused.
        progress: Where the run stands.
        parameters: The tuned parameters by name.
        optimiser: Built on these parameters in this order.
        best: The weights of the best validation, empty unless `select: best`.
    """
    tensors = {f"model.{name}": value for name, value in parameters.items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in state.items() if isinstance(value, Tensor)}
    record = {"key": key, "progress": json.dumps(asdict(progress))}
    data = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return write_atomically(folder / FILE, save(data, metadata=record))


def load_checkpoint(
    folder: Path, key: str, parameters: dict[str, Tensor], optimiser: Stateful
) -> tuple[Progress, dict[str, Tensor]] | None:
    """Restore a run in place; None if there is nothing to resume. Removes what a killed process had half written.

    Returns:
        Where the run stands, and the best weights so far.

    Raises:
        ResumeError: The checkpoint is of another run (recipe, data or weights), or damaged.
    """
    path = folder / FILE
    for half in folder.glob(f".{FILE}.*.tmp"):
        half.unlink()
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            record = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except (SafetensorError, OSError) as error:
        raise ResumeError(f"{path} cannot be read: {error}", "Delete the run folder to begin anew.") from None
    if record.get("key") != key:
        raise ResumeError(
            f"{folder} holds a run of another recipe, of other data or of other weights.",
            "Give another --out, or delete the folder to begin anew.",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"model.{name}"])
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimiser":
            index, _, entry = rest.partition(".")
            state.setdefault(int(index), {})[entry] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    best = {name.removeprefix("best."): value for name, value in tensors.items() if name.startswith("best.")}
    return Progress(**json.loads(record["progress"])), best
