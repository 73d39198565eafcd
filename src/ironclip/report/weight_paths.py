"""Which models of a report lie on the way from one original to one robust model."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ironclip.report.results import Model

_BETWEEN = re.compile(r"(.*)\?robust_weight=(\d\S*)")


def weight_paths(models: Sequence[Model]) -> list[list[int]]:
    """Return the indices of models between the same two ends, in order of the robust weight; two or more a path."""
    paths: dict[str, list[tuple[float, int]]] = {}
    for index, model in enumerate(models):
        if between := _BETWEEN.fullmatch(model.source):
            paths.setdefault(between[1], []).append((float(between[2]), index))
    return [[index for _, index in sorted(path)] for path in paths.values() if len(path) > 1]
