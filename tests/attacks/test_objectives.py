from __future__ import annotations

import itertools
import random as python_random

import pytest
import torch
from torch import nn

from ironclip.attacks.objectives import (
    EmbeddingDistance,
    Evaluation,
    LeavePrediction,
    Misclassify,
    Objective,
    frozen,
    input_gradient,
    is_correct,
    loss_used,
    predict,
)
from ironclip.attacks.pgd import PGD
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError, RegistryError, ShapeError
from ironclip.randomness import SampleRandom
from made_up_classifiers import Affine, AffineTask, Free
from made_up_images import natural_like
from oracles import classification as oracle

NAN, INF = float("nan"), float("inf")


# Who is right


def test_right_is_the_label_alone_on_top():
    logits = torch.tensor([[1.0, 3, 2], [3, 1, 3], [3, 3, 1], [0, -1, -2], [-3, -3, -3]])
    assert is_correct(logits, torch.tensor([1, 0, 2, 0, 0])).tolist() == [True, False, False, True, False]


@pytest.mark.parametrize("odd", [NAN, INF, -INF])
def test_logits_that_are_no_numbers_are_never_right(odd):
    logits = torch.tensor([[odd, 1.0, 2.0], [2.0, 1.0, odd], [2.0, 1.0, 0.0]])
    assert is_correct(logits, torch.tensor([0, 0, 0])).tolist() == [False, False, True]


def test_all_small_cases_agree_with_the_oracle():
    """Every logit in {0, 1, 2}, every label, with and without two classes of one name."""
    for names in (["a", "b", "c", "d"], ["a", "b", "a", "d"], ["a", "a", "a", "b"]):
        groups = torch.tensor([names.index(name) for name in names])
        rows = [list(map(float, row)) for row in itertools.product(range(3), repeat=4)]
        # What is one prompt has one logit.
        rows = [row for row in rows if all(row[c] == row[g] for c, g in enumerate(groups.tolist()))]
        for label in range(4):
            expected = [oracle.is_correct(row, label, names) for row in rows]
            assert is_correct(torch.tensor(rows), torch.full((len(rows),), label), groups).tolist() == expected


def test_rounding_does_not_decide_between_classes_of_one_prompt():
    """The same row of class weights gives logits that differ in the last bit by where it stands in the matrix."""
    tiny = 4e-6
    groups = torch.tensor([0, 1, 0])
    logits = torch.tensor([[25.0, 20, 25 + tiny], [25, 20, 25 - tiny], [25 + tiny, 20, 25], [20, 25, 20]])
    assert is_correct(logits, torch.zeros(4, dtype=torch.int64), groups).tolist() == [True, True, True, False]
    # The later class of the prompt is never the answer, however the last bit falls.
    assert not is_correct(logits, torch.full((4,), 2), groups).any()


def test_predict_names_the_label_or_the_best_other():
    logits = torch.tensor([[5.0, 1, 3], [1, 2, 3], [3, 3, 1], [NAN, 1, 2]])
    labels = torch.tensor([0, 0, 0, 0])
    broken = ~is_correct(logits, labels)
    assert predict(logits, labels, broken).tolist() == [0, 2, 1, 2]


# Misclassify


@pytest.mark.parametrize("classes", [2, 3, 4, 10, 1000])
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_value_margin_and_verdict_of_an_untargeted_objective(loss, classes):
    task = AffineTask(classes, seed=1)
    evaluation = Misclassify(task.classifier, task.labels, loss=loss).evaluate(task.pixels)
    logits = (task.pixels.flatten(1).double() @ task.weight.T.double() + task.bias.double()).tolist()
    margins = [oracle.margin(row, label) for row, label in zip(logits, task.labels.tolist(), strict=True)]
    assert evaluation.margin.tolist() == pytest.approx(margins, abs=1e-6)
    assert evaluation.broken.tolist() == [margin >= 0 for margin in margins]
    name = {"ce": "cross_entropy", "margin": "margin", "dlr": "dlr"}[
        loss if loss_used(loss, classes) == loss else "margin"
    ]
    values = [getattr(oracle, name)(row, label) for row, label in zip(logits, task.labels.tolist(), strict=True)]
    assert evaluation.value.tolist() == pytest.approx(values, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
@pytest.mark.parametrize("loss", ["ce_t", "margin_t", "dlr_t"])
def test_a_targeted_objective_is_reached_where_the_target_wins(loss, classes):
    task = AffineTask(classes, seed=1)
    targets = (task.labels + 1) % classes
    evaluation = Misclassify(task.classifier, task.labels, loss=loss, targets=targets).evaluate(task.pixels)
    logits = evaluation.logits
    assert torch.equal(evaluation.broken, is_correct(logits, targets))
    assert torch.equal(evaluation.broken, evaluation.margin > 0)
    beaten = logits.scatter(1, targets[:, None], -torch.inf).amax(1)
    torch.testing.assert_close(evaluation.margin, logits.gather(1, targets[:, None])[:, 0] - beaten)


def test_rows_are_taken_in_order_and_repeatedly():
    task = AffineTask(4, seed=2)
    targets = (task.labels + 1) % 4
    objective = Misclassify(task.classifier, task.labels, loss="margin_t", targets=targets)
    rows = torch.tensor([5, 5, 0, 17])
    taken = objective.take(rows).evaluate(task.pixels[rows])
    assert torch.equal(taken.value, objective.evaluate(task.pixels).value[rows])
    assert torch.equal(objective(task.pixels), objective.evaluate(task.pixels).value)


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_a_twin_of_the_label_hides_no_gradient(loss):
    """With the twin among the rivals the margin is 0 for ever, its gradient too, and nothing would ever break."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 12, generator=random)
    weight[3] = weight[0]
    groups = torch.tensor([0, 1, 2, 0])
    pixels, labels = torch.rand(6, 3, 2, 2, generator=random), torch.zeros(6, dtype=torch.int64)
    with_twin = Misclassify(Affine(weight, torch.zeros(4)), labels, loss=loss, groups=groups)
    without = Misclassify(Affine(weight[:3], torch.zeros(3)), labels, loss=loss)
    for found, expected in zip(input_gradient(with_twin, pixels), input_gradient(without, pixels), strict=True):
        if isinstance(found, Evaluation):
            assert torch.equal(found.broken, expected.broken)
            torch.testing.assert_close(found.margin, expected.margin)
            torch.testing.assert_close(found.value, expected.value)
        else:
            torch.testing.assert_close(found, expected)
            assert (found != 0).any()


def test_a_target_with_a_twin_can_be_reached():
    weight = torch.eye(3, 12)
    weight[2] = weight[1]
    objective = Misclassify(
        Affine(weight, torch.zeros(3)),
        torch.tensor([0]),
        loss="margin_t",
        targets=torch.tensor([1]),
        groups=torch.tensor([0, 1, 1]),
    )
    pixels = torch.zeros(1, 12)
    pixels[0, 1] = 1
    evaluation = objective.evaluate(pixels.view(1, 3, 2, 2))
    assert evaluation.broken.item()
    assert evaluation.margin.item() == 1


def test_logits_that_are_nan_break_and_do_not_spread():
    def call(pixels):
        logits = pixels.flatten(1)[:, :3]
        return torch.where(pixels[:, :1, 0, 0] > 0.9, torch.nan, logits)

    pixels = natural_like(4, 4) * 0.8
    pixels[2] = 1
    gradient, evaluation = input_gradient(Misclassify(Free(call), torch.tensor([0, 1, 2, 0])), pixels)
    assert evaluation.broken[2]
    assert evaluation.value[2].isnan()
    assert gradient.isfinite().all()
    assert (gradient[2] == 0).all()
    others = torch.tensor([0, 1, 3])
    assert evaluation.value[others].isfinite().all()
    assert (gradient[others] != 0).flatten(1).any(dim=1).all()


def test_unknown_loss_names_the_near_one():
    task = AffineTask(3, seed=0)
    with pytest.raises(RegistryError, match=r'unknown attack loss "margn"\. Did you mean "margin"'):
        Misclassify(task.classifier, task.labels, loss="margn")
    with pytest.raises(RegistryError, match=r'unknown attack loss "ce".*\n.*ce_t, margin_t, dlr_t'):
        Misclassify(task.classifier, task.labels, targets=task.labels)


def test_one_class_is_refused():
    objective = Misclassify(Free(lambda pixels: pixels.flatten(1)[:, :1]), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ShapeError, match="1 class to choose from"):
        objective.evaluate(torch.zeros(2, 3, 4, 4))


def test_substitutes_for_few_classes_are_named():
    assert [loss_used("dlr", c) for c in (2, 3, 1000)] == ["margin", "dlr", "dlr"]
    assert [loss_used("dlr_t", c) for c in (2, 3, 4)] == ["margin_t", "margin_t", "dlr_t"]
    assert loss_used("ce", 2) == "ce"


# Embedding


def test_embedding_distance_is_farthest_where_it_says(tiny_clip):
    model = tiny_clip()
    pixels = natural_like(16, 32)
    with torch.no_grad():
        target = model.embed_image(pixels)
    objective = EmbeddingDistance(model, target)
    assert objective(pixels).abs().max() < 1e-8
    other = pixels.flip(0)
    evaluation = objective.evaluate(other)
    torch.testing.assert_close(evaluation.value, (target.flip(0) - target).square().sum(1), rtol=1e-4, atol=1e-6)
    assert not evaluation.broken.any()
    rows = torch.tensor([3, 1])
    torch.testing.assert_close(objective.take(rows)(other[rows]), evaluation.value[rows], rtol=1e-4, atol=1e-6)
    with objective.computing(torch.float64):
        assert model.compute_dtype == torch.float64
    assert model.compute_dtype == torch.float32


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_leaving_a_prediction_is_a_soft_cross_entropy(classes):
    task = AffineTask(classes, seed=3)
    target = torch.rand(task.pixels.shape[0], classes, generator=torch.Generator().manual_seed(0))
    target = target / target.sum(dim=1, keepdim=True)
    objective = LeavePrediction(task.classifier, target)
    evaluation = objective.evaluate(task.pixels)
    rows = zip(evaluation.logits.tolist(), target.tolist(), strict=True)
    assert evaluation.value.tolist() == pytest.approx([oracle.soft_cross_entropy(*pair) for pair in rows], rel=1e-5)
    assert not evaluation.broken.any()
    assert evaluation.margin is None
    rows = torch.tensor([5, 5, 0])
    assert torch.equal(objective.take(rows)(task.pixels[rows]), evaluation.value[rows])
    assert objective.modules == (task.classifier,)
    assert objective.device == task.pixels.device
    assert objective.precisions == task.classifier.precisions


def test_an_attack_that_leaves_a_prediction_raises_its_cross_entropy():
    task = AffineTask(5, seed=3)
    target = torch.softmax(task.classifier.logits(task.pixels).detach(), dim=1)
    objective, threat = LeavePrediction(task.classifier, target), ThreatModel()
    found = PGD(steps=3).perturb(objective, task.pixels, threat, SampleRandom(0, list(range(len(target)))))
    assert threat.contains(found, task.pixels).all()
    assert (objective(found) > objective(task.pixels)).all()


# Gradient


def test_gradient_is_that_of_each_row_alone():
    task = AffineTask(10, seed=0)
    gradient, evaluation = input_gradient(Misclassify(task.classifier, task.labels, loss="margin"), task.pixels)
    logits = evaluation.logits
    rival = logits.scatter(1, task.labels[:, None], -torch.inf).argmax(1)
    torch.testing.assert_close(gradient.flatten(1), task.weight[rival] - task.weight[task.labels])
    assert not evaluation.value.requires_grad
    assert not evaluation.logits.requires_grad


def test_attack_leaves_no_gradient_in_the_parameters(clip_task):
    """D3: a backward pass of the attack adds to what the optimiser sees."""
    task = clip_task(samples=16)
    for parameter in task.classifier.parameters():
        parameter.requires_grad_(True)
    planted = next(task.classifier.parameters())
    planted.grad = torch.full_like(planted, 7.0)
    input_gradient(task.objective(), task.pixels)
    PGD(steps=2).perturb(task.objective(), task.pixels, ThreatModel(), SampleRandom(0, task.keys))
    assert (planted.grad == 7).all()
    assert all(p.grad is None and p.requires_grad for p in task.classifier.parameters() if p is not planted)


def test_gradient_does_not_touch_the_given_pixels():
    task = AffineTask(3, seed=0)
    before = task.pixels.clone()
    with torch.no_grad():
        input_gradient(Misclassify(task.classifier, task.labels), task.pixels)
    assert torch.equal(task.pixels, before)
    assert not task.pixels.requires_grad


@pytest.mark.parametrize(
    "call",
    [
        lambda pixels: pixels.detach().flatten(1)[:, :3],
        lambda pixels: torch.tensor(pixels.detach().numpy()).flatten(1)[:, :3],
        lambda pixels: torch.eye(3, requires_grad=True)[torch.zeros(len(pixels), dtype=torch.int64)],
    ],
    ids=["detached", "numpy", "constant"],
)
def test_a_model_without_gradients_is_refused_and_not_called_robust(call):
    with pytest.raises(ConfigError, match="no gradient with respect to the pixels"):
        input_gradient(Misclassify(Free(call), torch.zeros(2, dtype=torch.int64)), torch.full((2, 3, 2, 2), 0.5))


# Frozen


class Moody(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
        self.body[1].eval()
        self.body[0].bias.requires_grad_(False)


def state_of(module: nn.Module) -> tuple[list[bool], list[bool]]:
    return [m.training for m in module.modules()], [p.requires_grad for p in module.parameters()]


def test_frozen_is_frozen_inside_and_as_found_outside():
    module, other = Moody(), nn.Linear(1, 1)
    before = state_of(module), state_of(other)
    with frozen([module, other]):
        assert not any(flag for flags in (*state_of(module), *state_of(other)) for flag in flags)
    assert (state_of(module), state_of(other)) == before


def test_frozen_leaves_everything_as_found_after_an_exception():
    module = Moody()
    before = state_of(module)
    with pytest.raises(KeyError), frozen([module]):
        raise KeyError
    assert state_of(module) == before


def test_frozen_may_be_nested():
    module = Moody()
    before = state_of(module)
    with frozen([module]):
        with frozen([module]):
            pass
        assert not any(state_of(module)[1])
    assert state_of(module) == before


# A user's own


class Brightness(Objective):
    def evaluate(self, pixels):
        return Evaluation(pixels.mean((1, 2, 3)), torch.zeros(len(pixels), dtype=torch.bool))

    def take(self, rows):
        return self


def test_five_lines_make_an_objective():
    threat = ThreatModel(eps="4/255")
    pixels = natural_like(3, 8)
    state = python_random.getstate()
    found = PGD(steps=8).perturb(Brightness(), pixels, threat, SampleRandom(0, ["a", "b", "c"]))
    assert python_random.getstate() == state
    assert torch.equal(found, threat.project(pixels + 1, pixels))


def test_objectives_compute_in_float32_unless_they_say_otherwise():
    with Brightness().computing(torch.float32):
        pass
    with pytest.raises(ConfigError, match=r"Brightness does not compute in torch\.bfloat16"):
        Brightness().computing(torch.bfloat16)
    assert Brightness().device == torch.device("cpu")
    assert Brightness().tie_tolerance == 0
