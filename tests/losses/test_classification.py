from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ironclip.losses import classification as losses
from oracles import classification as oracle

VECTORS = Path(__file__).parents[1] / "vectors" / "spine_losses.json"
SHARED = Path(__file__).parents[3] / "shared" / "vectors" / "losses.json"
CASES = {case["name"]: case for case in json.loads(VECTORS.read_text())["cases"]}
COUNTS = (2, 3, 4, 10, 1000)


def draw(rows: int, classes: int, *, scale: float = 5.0, shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits float64 `[rows, classes]` and labels that meet first, middle and last class."""
    generator = torch.Generator().manual_seed(1000 * classes + rows)
    logits = scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64) + shift
    return logits, torch.linspace(0, classes - 1, rows).long()


def gradient(loss, logits: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
    leaf = logits.clone().requires_grad_(True)
    return torch.autograd.grad(loss(leaf, *rest).sum(), leaf)[0]


# Reference values


def tecoa_logits(inputs: dict, dtype: torch.dtype) -> torch.Tensor:
    image = F.normalize(torch.tensor(inputs["adv"], dtype=dtype), dim=-1)
    text = F.normalize(torch.tensor(inputs["text"], dtype=dtype), dim=-1)
    return inputs["logit_scale"] * image @ text.T


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("tecoa")])
def test_cross_entropy_loss_is_tecoa_of_the_reference(name, dtype, tolerance):
    inputs = CASES[name]["inputs"]
    loss = losses.cross_entropy_loss(tecoa_logits(inputs, dtype), torch.tensor(inputs["labels"]))
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(float(CASES[name]["value"]), rel=tolerance)


@pytest.mark.skipif(not SHARED.is_file(), reason="../shared/vectors is not on this machine; the copy was tested")
def test_copied_reference_values_are_the_shared_ones():
    shared = {case["name"]: case for case in json.loads(SHARED.read_text())["cases"]}
    assert {name for name in shared if name.startswith(("tecoa", "fare"))} == set(CASES)
    for name, case in CASES.items():
        assert shared[name] == case


# Against the oracle


@pytest.mark.parametrize("classes", COUNTS)
def test_cross_entropy_loss_takes_hard_and_soft_labels(classes):
    logits, labels = draw(5, classes)
    soft = torch.softmax(draw(5, classes, scale=1.0)[0].flip(0), dim=1)
    hard = [oracle.cross_entropy(row, label) for row, label in zip(logits.tolist(), labels.tolist(), strict=True)]
    mixed = [oracle.soft_cross_entropy(row, share) for row, share in zip(logits.tolist(), soft.tolist(), strict=True)]
    assert losses.cross_entropy_loss(logits, labels).item() == pytest.approx(np.mean(hard), rel=1e-12)
    assert losses.cross_entropy_loss(logits, soft).item() == pytest.approx(np.mean(mixed), rel=1e-12)


@pytest.mark.parametrize("classes", COUNTS)
def test_soft_cross_entropy_equals_the_oracle_and_its_gradient_is_the_difference_of_shares(classes):
    logits, _ = draw(5, classes)
    soft = torch.softmax(draw(5, classes, scale=2.0)[0].flip(0), dim=1)
    expected = [
        oracle.soft_cross_entropy(row, share) for row, share in zip(logits.tolist(), soft.tolist(), strict=True)
    ]
    assert losses.soft_cross_entropy(logits, soft).tolist() == pytest.approx(expected, rel=1e-11)
    slopes = gradient(losses.soft_cross_entropy, logits, soft)
    torch.testing.assert_close(slopes, torch.softmax(logits, dim=1) - soft, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_soft_cross_entropy_of_a_sure_target_is_the_hard_one_with_all_of_its_gradient(classes):
    logits = torch.zeros(2, classes)
    logits[0, 0] = logits[1, 1] = 40
    labels = torch.tensor([0, 1])
    hard = F.one_hot(labels, classes).float()
    assert torch.equal(losses.soft_cross_entropy(logits, hard), losses.cross_entropy(logits, labels))
    slopes = gradient(losses.soft_cross_entropy, logits, hard)
    assert torch.equal(slopes, gradient(losses.cross_entropy, logits, labels))
    assert (slopes[labels == 0, 0] < 0).all()
    planted = gradient(lambda z, p: -(p * F.log_softmax(z, dim=1)).sum(dim=1), logits, hard)
    assert planted[0, 0] == 0


def rows_of(name: str, logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
    function = getattr(oracle, name)
    return [function(row, label) for row, label in zip(logits.tolist(), labels.tolist(), strict=True)]


@pytest.mark.parametrize("classes", COUNTS)
@pytest.mark.parametrize("name", ["cross_entropy", "margin", "dlr"])
def test_untargeted_losses_equal_the_oracle(name, classes):
    logits, labels = draw(7, classes)
    # With two classes there is no third logit: the margin stands in.
    expected = rows_of("margin" if name == "dlr" and classes == 2 else name, logits, labels)
    torch.testing.assert_close(
        getattr(losses, name)(logits, labels), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("classes", COUNTS)
def test_targeted_losses_equal_the_oracle(classes):
    logits, labels = draw(7, classes)
    targets = (labels + 1) % classes
    triples = list(zip(logits.tolist(), targets.tolist(), labels.tolist(), strict=True))
    margins = torch.tensor([oracle.targeted_margin(*triple) for triple in triples], dtype=torch.float64)
    torch.testing.assert_close(losses.targeted_margin(logits, targets, labels), margins)
    expected = -torch.tensor(rows_of("cross_entropy", logits, targets), dtype=torch.float64)
    torch.testing.assert_close(losses.targeted_cross_entropy(logits, targets), expected, rtol=1e-9, atol=1e-12)
    ratios = [oracle.targeted_dlr(*t) if classes >= 4 else oracle.targeted_margin(*t) for t in triples]
    torch.testing.assert_close(
        losses.targeted_dlr(logits, targets, labels), torch.tensor(ratios, dtype=torch.float64), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
@pytest.mark.parametrize("name", ["cross_entropy", "margin", "dlr"])
def test_untargeted_gradients_equal_central_differences(name, classes):
    logits, labels = draw(6, classes)
    found = gradient(getattr(losses, name), logits, labels)
    function = getattr(oracle, "margin" if name == "dlr" and classes == 2 else name)
    for row, label, slopes in zip(logits.tolist(), labels.tolist(), found.numpy(), strict=True):
        np.testing.assert_allclose(
            slopes, oracle.central_difference(lambda z, y=label: function(z, y), row), rtol=1e-6, atol=1e-8
        )


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
@pytest.mark.parametrize("name", ["targeted_margin", "targeted_dlr", "targeted_cross_entropy"])
def test_targeted_gradients_equal_central_differences(name, classes):
    logits, labels = draw(6, classes)
    targets = (labels + 1) % classes
    if name == "targeted_cross_entropy":
        found = gradient(losses.targeted_cross_entropy, logits, targets)
    else:
        found = gradient(getattr(losses, name), logits, targets, labels)

    def value(row, target, label):
        if name == "targeted_cross_entropy":
            return -oracle.cross_entropy(row, target)
        use = oracle.targeted_dlr if name == "targeted_dlr" and classes >= 4 else oracle.targeted_margin
        return use(row, target, label)

    for row, target, label, slopes in zip(
        logits.tolist(), targets.tolist(), labels.tolist(), found.numpy(), strict=True
    ):
        expected = oracle.central_difference(lambda z, t=target, y=label: value(z, t, y), row)
        np.testing.assert_allclose(slopes, expected, rtol=1e-6, atol=1e-8)


# Where published code goes wrong


@pytest.mark.parametrize("classes", COUNTS)
def test_margin_where_all_logits_are_negative(classes):
    """D11: masking the true class with 0 makes 0 the runner-up."""
    logits, labels = draw(9, classes, shift=-60.0)
    assert (logits < 0).all()
    expected = torch.tensor(rows_of("margin", logits, labels), dtype=torch.float64)
    torch.testing.assert_close(losses.margin(logits, labels), expected)
    planted = (logits * (1 - F.one_hot(labels, classes))).amax(1) - logits.gather(1, labels[:, None])[:, 0]
    assert (planted - expected).abs().min() > 1


@pytest.mark.parametrize("gap", [17, 25, 40, 60, 80])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_cross_entropy_keeps_the_gradient_towards_the_true_logit(classes, gap):
    """Without it the direction is `w_other`, not `w_other - w_true`, and no check for zero gradients sees that."""
    logits = torch.zeros(1, classes)
    logits[0, 0] = gap
    logits[0, 2:] = -30.0  # rivals that do not matter
    label = torch.tensor([0])
    slopes = gradient(losses.cross_entropy, logits, label)[0]
    assert slopes[0] == pytest.approx(-np.exp(-gap), rel=1e-4)
    assert (slopes[1] / -slopes[0]).item() == pytest.approx(1, rel=1e-5)
    planted = gradient(lambda z, y: F.cross_entropy(z, y, reduction="sum"), logits, label)[0]
    assert planted[0] == 0
    assert planted[1] > 0


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_cross_entropy_is_finite_with_a_finite_gradient_at_extreme_logits(classes):
    logits = torch.full((4, classes), -50.0)
    logits[0, 0], logits[1, 1], logits[2], logits[3, 0] = 500, 500, 0, 88
    labels = torch.zeros(4, dtype=torch.int64)
    value, slopes = losses.cross_entropy(logits, labels), gradient(losses.cross_entropy, logits, labels)
    assert value.isfinite().all()
    assert slopes.isfinite().all()
    assert value[1] == 550
    assert value[2].item() == pytest.approx(np.log(classes), rel=1e-6)


@pytest.mark.parametrize("classes", [3, 4, 1000])
def test_dlr_of_equal_logits_is_the_margin_with_a_usable_gradient(classes):
    logits = torch.full((2, classes), 20.0)
    logits[1, 0] += 4e-6  # one unit in the last place, below the guard
    labels = torch.zeros(2, dtype=torch.int64)
    torch.testing.assert_close(losses.dlr(logits, labels), losses.margin(logits, labels))
    slopes = gradient(losses.dlr, logits, labels)
    assert slopes.isfinite().all()
    assert (slopes[:, 0] == -1).all()
    targets = torch.ones(2, dtype=torch.int64)
    slopes = gradient(losses.targeted_dlr, logits, targets, labels)
    assert (slopes[:, 0] == -1).all()
    assert (slopes[:, 1] == 1).all()


def test_dlr_of_three_classes_of_which_one_is_masked_is_the_margin():
    logits = torch.tensor([[1.0, 0.5, -torch.inf]])
    labels = torch.tensor([0])
    assert losses.dlr(logits, labels).item() == -0.5
    assert gradient(losses.dlr, logits, labels).tolist() == [[-1.0, 1.0, 0.0]]


def test_targeted_dlr_of_three_classes_is_not_constant():
    """With a shorter denominator, true class first and target third give -1 whatever the logits are."""
    logits, labels, targets = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([0]), torch.tensor([2])
    assert gradient(losses.targeted_dlr, logits, targets, labels).tolist() == [[-1.0, 0.0, 1.0]]


@pytest.mark.parametrize("name", ["cross_entropy", "margin", "dlr"])
def test_signs_agree_on_who_is_wrong(name):
    logits, labels = draw(200, 10)
    wrong = torch.tensor([margin > 0 for margin in rows_of("margin", logits, labels)])
    assert 0 < wrong.sum() < 200
    value = getattr(losses, name)(logits, labels)
    # A wrong answer has less than half of the probability; so may a right one.
    threshold = 0.0 if name != "cross_entropy" else np.log(2)
    assert (value[wrong] > threshold).all()
    if name != "cross_entropy":
        assert (value[~wrong] < 0).all()


@pytest.mark.parametrize("name", ["cross_entropy", "margin", "dlr"])
def test_rows_do_not_know_of_each_other(name):
    logits, labels = draw(6, 10)
    function = getattr(losses, name)
    spoiled = logits.clone()
    spoiled[3] = torch.nan
    keep = torch.tensor([0, 1, 2, 4, 5])
    assert torch.equal(function(spoiled, labels)[keep], function(logits, labels)[keep])
    assert torch.equal(gradient(function, spoiled, labels)[keep], gradient(function, logits, labels)[keep])
