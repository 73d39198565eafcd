from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ironclip.attacks.text.objectives import MisclassifyByPrompt, TextDistance
from ironclip.errors import ShapeError
from ironclip.models.zero_shot import zero_shot_logits

TEXTS = ["a cat", "two dogs", "a red bus"]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def softmax(rows):
    exponents = np.exp(rows)
    return exponents / exponents.sum(axis=-1, keepdims=True)


BY_HAND = {
    "squared_l2": lambda e, t: ((e - t) ** 2).sum(axis=-1),
    "unit_squared_l2": lambda e, t: ((unit(e) - unit(t)) ** 2).sum(axis=-1),
    "cosine": lambda e, t: 1 - (unit(e) * unit(t)).sum(axis=-1),
    "kl_softmax": lambda e, t: (softmax(unit(t)) * (np.log(softmax(unit(t))) - np.log(softmax(unit(e))))).sum(axis=-1),
}


@pytest.mark.parametrize("measure", BY_HAND)
def test_distances_by_hand(measure, tiny_clip):
    model = tiny_clip()
    with torch.no_grad():
        embedding, target = model.embed_text(TEXTS), model.embed_text(["one", "two", "three"])
        found = TextDistance(model, target, measure).evaluate(TEXTS)
    expected = BY_HAND[measure](embedding.double().numpy(), target.double().numpy())
    np.testing.assert_allclose(found.value.double().numpy(), expected, rtol=1e-4)
    assert not found.broken.any()


@pytest.mark.parametrize("measure", BY_HAND)
def test_a_text_is_at_distance_zero_from_itself_and_rows_are_its_own(measure, tiny_clip):
    model = tiny_clip()
    target = model.embed_text(TEXTS).detach()
    objective = TextDistance(model, target, measure)
    assert objective.evaluate(TEXTS).value.abs().max() < 1e-6
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(
        objective.take(rows).evaluate(["x", "y"]).value,
        TextDistance(model, target[rows], measure).evaluate(["x", "y"]).value,
    )


def scene(model, seed=0):
    random = torch.Generator().manual_seed(seed)
    features = F.normalize(torch.randn(3, 16, generator=random), dim=-1)
    weights = F.normalize(torch.randn(5, 16, generator=random), dim=-1)
    return features, weights, torch.tensor([4, 0, 2])


@pytest.mark.parametrize("own_matrix", [False, True])
def test_the_text_stands_for_the_labels_class(own_matrix, tiny_clip):
    """The logits are those of class weights [B, C, D] in which the label's row is the text."""
    model = tiny_clip()
    features, weights, labels = scene(model)
    several = weights.expand(3, -1, -1).clone()
    several[torch.arange(3), labels] = model.text_features(TEXTS).detach()
    expected = zero_shot_logits(features, several, logit_scale=50.0)
    given = several.roll(1, dims=1) if own_matrix else weights
    if own_matrix:
        given = several.clone()
        given[torch.arange(3), labels] = 0  # what stands there is not read
    objective = MisclassifyByPrompt(model, features, given, labels, 50.0)
    found = objective.evaluate(TEXTS)
    torch.testing.assert_close(found.logits, expected)
    rivals = expected.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    own = expected.gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(found.value, rivals - own)
    assert found.broken.tolist() == (expected.argmax(dim=1) != labels).tolist()
    rows = torch.tensor([1, 1, 2])
    part = objective.take(rows).evaluate([TEXTS[row] for row in rows])
    torch.testing.assert_close(part.value, found.value[rows])
    assert objective.tie_tolerance == pytest.approx(5e-5)


def test_a_row_for_each_sample(tiny_clip):
    features, weights, labels = scene(tiny_clip())
    with pytest.raises(ShapeError, match="3 features, 2 labels"):
        MisclassifyByPrompt(None, features, weights, labels[:2], 100.0)
    with pytest.raises(ShapeError, match="2 class_weights"):
        MisclassifyByPrompt(None, features, weights.expand(2, -1, -1), labels, 100.0)
