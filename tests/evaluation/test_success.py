from __future__ import annotations

import pytest

from ironclip.errors import ShapeError, ValueRangeError
from ironclip.evaluation.intervals import wilson
from ironclip.evaluation.success import SuccessRate, success_rate


def test_what_was_there_before_is_no_success():
    rate = success_rate([True, True, False, False, False], [True, False, True, False, True])
    assert rate == SuccessRate(successes=2, denominator=3, excluded=2)
    assert rate.share == wilson(2, 3)


def test_what_is_undefined_is_said():
    with pytest.raises(ValueRangeError, match=r"all 2 samples were at the goal before.*\n.*Choose a goal"):
        _ = success_rate([True, True], [True, True]).share
    with pytest.raises(ValueRangeError, match="0 samples"):
        success_rate([], [])
    with pytest.raises(ShapeError, match="1 clean and 2 attacked"):
        success_rate([True], [True, False])
