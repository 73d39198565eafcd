"""Values of the losses to 20 digits, computed elsewhere with 50: `../shared/vectors/losses.json`."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

FILE = Path(__file__).parents[2] / "shared" / "vectors" / "losses.json"
needs_reference_values = pytest.mark.skipif(not FILE.is_file(), reason="../shared/vectors is not on this machine")
TOLERANCES = [(torch.float64, 1e-9), (torch.float32, 1e-5)]


@functools.cache
def _cases() -> dict[str, dict[str, Any]]:
    return {case["name"]: case for case in json.loads(FILE.read_text())["cases"]}


def reference_inputs(name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Give the inputs of a case as tensors, labels as int64."""
    inputs = _cases()[name]["inputs"]
    return {key: torch.tensor(value, dtype=None if key == "labels" else dtype) for key, value in inputs.items()}


def reference_value(name: str) -> list[float]:
    """Give the value of a case; a list of one where it is a single number."""
    value = _cases()[name]["value"]
    return [float(part) for part in (value if isinstance(value, list) else [value])]
