"""The line through weights between an original and a robust model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ironclip.report.figures import trade_off
from ironclip.report.results import Cell
from ironclip.report.weight_paths import weight_paths


def models(*sources):
    return [SimpleNamespace(source=source) for source in sources]


@pytest.mark.parametrize(
    ("sources", "paths"),
    [
        (["tiny", "run:a"], []),
        (["run:a?robust_weight=0.5"], []),  # one point is no line
        (["run:a?robust_weight=1.0", "tiny", "run:a?robust_weight=0.0", "run:a?robust_weight=0.25"], [[2, 3, 0]]),
        (["run:a?robust_weight=0", "run:b?robust_weight=0", "run:b?robust_weight=1e-1"], [[1, 2]]),
        (["run:a?robust_weight=0", "run:b?robust_weight=1"], []),
    ],
)
def test_paths(sources, paths):
    assert weight_paths(models(*sources)) == paths


def cell(share):
    return Cell(share=SimpleNamespace(estimate=share, low=share, high=share), per_class=None, n=10, missing=0)


def drawn(paths, second=True):
    robust = (cell(0.1), cell(0.3) if second else None, cell(0.5))
    budget = SimpleNamespace(eps="2/255")
    table = SimpleNamespace(clean=(cell(0.9), cell(0.8), cell(0.6)), robust=(robust,), budgets=(budget,), chance=0.1)
    return trade_off(table, 0, prefix="x", paths=paths)


def test_a_line_is_drawn_for_a_path_and_goes_around_what_was_not_run():
    assert drawn([[0, 1, 2]]) != drawn([]) != drawn([[0, 1]])
    assert drawn([[0, 1, 2]], second=False) == drawn([[0, 2]], second=False)
    assert drawn([[1]], second=False) == drawn([], second=False)
