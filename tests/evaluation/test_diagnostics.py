from __future__ import annotations

from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest

from ironclip.errors import DataError, ValueRangeError
from ironclip.evaluation import diagnostics
from ironclip.evaluation.diagnostics import Check, not_run, verdict

EPS = Fraction(4, 255)


def rows(broken: str, *, n: int | None = None, wrong: int = 0, **columns) -> pa.Table:
    """Samples in order, `x` broken and `.` not; of these the first `wrong` were wrong before; ids run backwards."""
    flags = [sign == "x" for sign in broken] + [False] * ((n or 0) - len(broken))
    count = len(flags)
    plain = {
        "sample_id": [f"s{count - index:05d}" for index in range(count)],
        "y": [0] * count,
        "pred_clean": [1] * wrong + [0] * (count - wrong),
        "broken": flags,
        "norm": [float(EPS)] * count,
        "restart": [0] * count,
        "false_claims": [0] * count,
        "invalid": [False] * count,
        "logits_clean": [[3.0, -1.0]] * count,
        "logits_adv": [[2.0, -1.0]] * count,
    }
    return pa.table(plain | columns)


def test_an_honest_result_is_trusted_and_reasons_are_sorted():
    honest = rows("xx..")
    checks = [
        diagnostics.probability_output(honest),
        diagnostics.invalid_outputs(honest),
        diagnostics.attack_did_nothing(honest),
        diagnostics.min_progress(honest, EPS),
        diagnostics.dtype_gap(honest),
        diagnostics.restart_spread(honest, 5),
        diagnostics.ce_margin_gap(honest, honest),
        diagnostics.step_doubling(honest, honest),
        diagnostics.fgsm_beats_pgd(honest, honest),
        diagnostics.noise_beats_attack([honest], honest),
        diagnostics.black_box_stronger([honest], honest),
        diagnostics.transfer_stronger([honest], honest),
        diagnostics.eps_monotone({EPS: honest, 2 * EPS: honest}),
    ]
    assert [check.state for check in checks] == ["passed"] * len(checks)
    assert verdict(checks) == ("trusted",)
    failed = Check(name="zebra", value=1, threshold=0, state="failed")
    info = Check(name="aside", value=1, threshold=0, state="failed", is_info=True)
    assert verdict([failed, info, not_run("randomised"), *checks]) == ("not_run:randomised", "zebra")
    with pytest.raises(ValueRangeError, match="each check once"):
        verdict([failed, failed])
    with pytest.raises(ValueRangeError, match="at least one"):
        verdict([])


def test_probabilities_in_place_of_logits():
    assert diagnostics.probability_output(rows("..", logits_clean=[[0.25, 0.75], [1.0, 0.0]])).state == "failed"
    mixed = diagnostics.probability_output(rows("..", logits_clean=[[0.25, 0.75], [0.3, 0.8]]))
    assert (mixed.state, mixed.value) == ("passed", 0.5)
    assert diagnostics.probability_output(rows("..", logits_clean=[[], []])).state == "not_run"


def test_invalid_outputs_count_claims_and_infinite_logits_once_each():
    found = diagnostics.invalid_outputs(
        rows("...", invalid=[True, False, False], logits_adv=[[np.inf, 0.0], [0.0, np.inf], [0.0, 1.0]])
    )
    assert (found.state, found.value) == ("failed", 2)


def test_an_attack_that_moves_nothing_or_next_to_nothing():
    still = rows("x..", norm=[1.0, 0.0, 0.0])
    assert diagnostics.attack_did_nothing(still).state == "failed"
    assert diagnostics.min_progress(still, EPS).state == "failed"
    barely = rows("x..", norm=[1.0, 0.04 * float(EPS), 0.049 * float(EPS)])
    assert diagnostics.attack_did_nothing(barely).state == "passed"
    found = diagnostics.min_progress(barely, EPS)
    assert (found.state, found.value) == ("failed", pytest.approx(0.0445))
    for check in (diagnostics.attack_did_nothing(rows("xx")), diagnostics.min_progress(rows("xx"), EPS)):
        assert (check.state, check.value) == ("vacuous", None)
    with pytest.raises(ValueRangeError, match="eps is 0"):
        diagnostics.min_progress(still, Fraction(0))


def test_refused_claims_and_late_restarts():
    assert diagnostics.dtype_gap(rows("", n=200, false_claims=[3] + [0] * 199)).state == "passed"  # 0.5 points
    found = diagnostics.dtype_gap(rows("", n=200, false_claims=[1, 1] + [0] * 198))
    assert (found.state, found.value) == ("failed", 0.01)
    late = rows("xxx", n=100, restart=[1, 4, 2] + [3] * 97)
    assert diagnostics.restart_spread(late, 5).value == 0.03
    assert diagnostics.restart_spread(late, 5).state == "failed"
    assert diagnostics.restart_spread(late, 4).state == "not_run"
    few = [
        diagnostics.restart_spread(rows("x" * late, n=32, restart=[1] * late + [0] * (32 - late)), 5) for late in (2, 3)
    ]
    assert [check.state for check in few] == ["passed", "failed"]
    wrong = rows("xxx", n=100, wrong=3, restart=[1, 4, 2] + [3] * 97)
    assert diagnostics.restart_spread(wrong, 5).value == 0  # wrong before: broken by nobody


@pytest.mark.parametrize(
    ("check", "n", "passes", "fails"),
    [
        (diagnostics.fgsm_beats_pgd, 100, 2, 3),
        (diagnostics.fgsm_beats_pgd, 1000, 5, 6),
        (lambda weak, strong: diagnostics.black_box_stronger([strong], weak), 1000, 2, 3),
        (lambda weak, strong: diagnostics.black_box_stronger([strong], weak), 2000, 4, 5),
        (lambda weak, strong: diagnostics.transfer_stronger([strong], weak), 1000, 5, 6),
        (lambda weak, strong: diagnostics.noise_beats_attack([strong], weak), 1000, 0, 1),
    ],
)
def test_a_weaker_attack_that_breaks_more(check, n, passes, fails):
    strong = rows("...", n=n)
    found = check(rows("x" * passes, n=n), strong)
    assert (found.state, found.value) == ("passed", passes)
    found = check(rows("x" * fails, n=n), strong)
    assert (found.state, found.value) == ("failed", fails)
    assert check(rows("", n=5), rows("xxxxx")).state == "vacuous"


def test_only_survivors_of_all_attacks_count():
    first, second, square = rows("xx....", n=20), rows("..xx..", n=20), rows("xxxxxx", n=20)
    assert diagnostics.black_box_stronger([first, second], square).value == 2


def test_differences_of_accuracy():
    strong, weak = rows("x" * 16, n=100), rows("x" * 10, n=100)
    found = diagnostics.ce_margin_gap(weak, strong)
    assert (found.state, found.value, found.is_info) == ("failed", pytest.approx(0.06), False)
    assert diagnostics.ce_margin_gap(weak, strong, margin_was_run_in_full=True).is_info
    assert diagnostics.ce_margin_gap(weak, rows("x" * 15, n=100)).state == "passed"
    assert diagnostics.step_doubling(weak, rows("x" * 12, n=100)).state == "passed"  # 2 of 100
    assert diagnostics.step_doubling(weak, rows("x" * 13, n=100)).state == "failed"
    assert diagnostics.step_doubling(rows("xx"), rows("xx")).state == "vacuous"


def test_larger_budgets_leave_no_more():
    by_eps = {Fraction(1, 255): rows("x" * 10, n=100), Fraction(4, 255): rows("x" * 30, n=100)}
    assert diagnostics.eps_monotone(by_eps).state == "passed"
    by_eps[Fraction(2, 255)] = rows("x" * 31, n=100)
    assert diagnostics.eps_monotone(by_eps).state == "passed"  # 1 point
    by_eps[Fraction(2, 255)] = rows("x" * 33, n=100)
    found = diagnostics.eps_monotone(by_eps)
    assert (found.state, found.value) == ("failed", pytest.approx(0.03))
    assert diagnostics.eps_monotone({Fraction(1, 255): rows("x")}).state == "not_run"
    assert diagnostics.eps_needed_for_zero(by_eps).value is None
    found = diagnostics.eps_needed_for_zero(by_eps | {Fraction(1, 4): rows("x" * 100), Fraction(1, 2): rows("x" * 100)})
    assert (found.value, found.is_info) == (0.25, True)


def test_a_budget_that_leaves_nothing_of_the_image():
    labels = [0] * 40 + [1] * 60

    def at(left: int, eps: Fraction, **options) -> Check:
        return diagnostics.huge_eps_not_zero(
            rows("x" * (100 - left), n=100, y=labels, pred_clean=labels), eps, **options
        )

    assert at(1, Fraction(64, 255)).state == "passed"
    assert at(2, Fraction(64, 255)).state == "failed"
    assert at(2, Fraction(64, 255), is_natural=False).is_info
    assert at(60, Fraction(1, 2)).state == "passed"  # the larger class
    assert at(61, Fraction(1, 2)).state == "failed"
    assert not at(61, Fraction(1, 2), is_natural=False).is_info
    assert at(1, Fraction(1)).state == "failed"
    with pytest.raises(ValueRangeError, match="eps is 4/255, which is not huge"):
        at(0, EPS)


def test_refused_in_words():
    with pytest.raises(DataError, match="no rows to diagnose"):
        diagnostics.dtype_gap(rows(""))
    with pytest.raises(DataError, match="3 and 2 rows that are to be compared are not of the same samples"):
        diagnostics.step_doubling(rows("..."), rows(".."))


def test_comparisons_go_by_sample_not_by_order():
    pgd, fgsm = rows("xxx", n=50), rows("xxx", n=50)
    backwards = fgsm.take(pa.array(range(49, -1, -1)))
    assert diagnostics.fgsm_beats_pgd(backwards, pgd).value == 0
