"""The published steps compute what ours do, and are charged for what the code that they stand for does."""

from __future__ import annotations

import pytest
import torch
from benchmarks.equality import Pair, pair
from benchmarks.published import STEPS
from torch.nn.attention import SDPBackend, sdpa_kernel

from ironclip.benchmarking.measuring import counted

CLASSES, BATCH = 5, 4


@pytest.fixture
def both(tiny_clip):
    """Make both steps of a method, ours and the published one."""

    def make(method: str, *, tuned: bool = False, classes: int = CLASSES) -> Pair:
        return pair(method, tiny_clip(), batch=BATCH, classes=classes, tuned=tuned)

    return make


@pytest.mark.parametrize("method", STEPS)
def test_a_published_step_moves_the_weights_as_ours_does(both, method):
    pair = both(method)
    clip = pair.theirs.clip
    before = {name: value.clone() for name, value in clip.named_parameters()}
    loss, gradients = pair.gaps()
    assert loss <= 1e-5
    assert gradients <= 1e-5  # where a pixel's gradient is 0 up to rounding its sign may differ
    moved = {name.partition(".")[0] for name, value in clip.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"visual"}


def test_another_loss_would_be_noticed(both, monkeypatch):
    monkeypatch.setattr(STEPS["agft"], "calibration", 1.0)
    assert max(both("agft").gaps()) > 0.01


def test_another_start_would_be_noticed(both):
    pair = both("fare")
    start = pair.start()
    object.__setattr__(pair, "start", lambda: -start)
    assert pair.gaps()[1] > 1e-3


@pytest.mark.parametrize("method", STEPS)
def test_without_numbers_the_same_operations_are_counted(both, method):
    theirs = both(method).theirs
    theirs.differentiate()  # AGFT's encodes its text here
    # Kernels of the processor's own hide products from the counter, or compute them once more on the way back.
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            assert counted(theirs.on_meta().differentiate) == counted(theirs.differentiate)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_text_is_encoded_at_every_pass_unless_tuned(both):
    def operations(classes: int, *, tuned: bool) -> int:
        theirs = both("tecoa", classes=classes, tuned=tuned).theirs
        theirs.differentiate()  # the tuned one encodes its text here
        return counted(theirs.on_meta().differentiate)

    model = both("tecoa").theirs.clip
    ids = torch.zeros(10, 77, dtype=torch.long, device="meta")
    text = model.to("meta")

    def forward_and_weights() -> None:
        text.encode_text(ids).sum().backward()

    # Two attack steps and the loss, each through the text tower forward and backward; images times texts beside it.
    whole = operations(20, tuned=False) - operations(10, tuned=False)
    logits = 3 * 3 * 2 * BATCH * 10 * 16
    assert whole == 3 * counted(forward_and_weights) + logits
    assert operations(20, tuned=True) - operations(10, tuned=True) == 3 * 2 * 2 * BATCH * 10 * 16


def test_the_attacks_of_tecoa_and_pmg_aft_pay_for_weight_gradients_those_of_fare_and_agft_do_not(both):
    def gradients_inside(method: str) -> bool:
        theirs = both(method).theirs
        theirs.loss(torch.zeros_like(theirs.pixels))  # clears what the attack left before it passes for the loss
        cleared = []
        zero_grad = theirs.clip.zero_grad
        theirs.clip.zero_grad = lambda: (
            cleared.append(theirs.clip.visual.conv1.weight.grad is not None),
            zero_grad(),
        )
        theirs.differentiate()
        return any(cleared)

    assert gradients_inside("tecoa")
    assert gradients_inside("pmg_aft")
    assert not gradients_inside("fare")
    assert not gradients_inside("agft")


@pytest.mark.parametrize("method", ["tecoa", "fare"])
def test_tuned_is_the_same_in_bfloat16(both, method):
    plain, tuned = both(method), both(method, tuned=True)
    start = plain.start()
    exact, rounded = float(plain.theirs.differentiate(start)), float(tuned.theirs.differentiate(start))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.15)
