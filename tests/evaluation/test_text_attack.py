"""Text attacks in an evaluation: verdicts recomputed from the strings, against prompts made up to be broken or not."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from ironclip.attacks.text.base import TextAttack
from ironclip.attacks.text.budget import Budget
from ironclip.attacks.text.characters import LeafSearch, SingleEdit
from ironclip.attacks.text.words import Synonyms
from ironclip.data.contract import Sample
from ironclip.errors import ConfigError, DataError, RunFailedError, ShapeError
from ironclip.evaluation.intervals import wilson
from ironclip.evaluation.text_attack import (
    EncodedImages,
    against_class_counts,
    attack_prompts,
    encode_images,
    evaluate_text_attack,
    nested_classes,
)
from ironclip.models.zero_shot import ZeroShotClassifier
from made_up_images import natural_like
from oracles.texts import levenshtein

NAMES = ["cat", "dog", "red bus", "frog", "house"]
TEMPLATE = "a photo of a {}."


class Swap(TextAttack):
    """Returns given strings for given strings, whatever the objective says."""

    name = "swap"
    budget = Budget()

    def __init__(self, table):
        self.table = table

    def search(self, objective, texts, random):
        return [self.table.get(text, text) for text in texts]


def prompt(name):
    return TEMPLATE.format(name)


def scene(model, count=20):
    """Give images as the model sees them, most of them labelled as it reads them."""
    images = natural_like(count, 32)
    features = model.image_features(images).detach()
    weights = model.text_features([prompt(name) for name in NAMES]).detach()
    labels = (features @ weights.T).argmax(dim=1)
    labels[::4] = (labels[::4] + 1) % len(NAMES)
    return EncodedImages([f"image {row}" for row in range(count)], features, labels)


@pytest.mark.parametrize("aim", ["embedding", "label"])
def test_an_attack_that_does_nothing_changes_nothing(aim, tiny_clip):
    model = tiny_clip()
    images = scene(model)
    result = evaluate_text_attack(model, images, NAMES, TEMPLATE, Swap({}), aim=aim)
    expected = ZeroShotClassifier(model, NAMES, [TEMPLATE])
    predicted = (expected.logit_scale * images.features @ expected.class_weights.T).argmax(dim=1).tolist()
    assert [one.pred_clean for one in result.verdicts] == predicted
    assert [one.pred_attacked for one in result.verdicts] == predicted
    assert result.clean_accuracy == result.robust_accuracy == wilson(15, 20)
    assert {(one.characters, one.words) for one in result.verdicts} == {(0, 0)}
    assert [one.key for one in result.verdicts] == list(images.keys)
    assert result.classes == 5


def test_prompts_that_change_places_break_every_right_answer(tiny_clip):
    """Each prompt is given another class's words: what was right is wrong, whatever the attack claims."""
    model = tiny_clip()
    images = scene(model)
    around = {prompt(name): prompt(NAMES[(index + 1) % 5]) for index, name in enumerate(NAMES)}
    result = evaluate_text_attack(model, images, NAMES, TEMPLATE, Swap(around))
    assert result.clean_accuracy.estimate == 0.75
    assert result.robust_accuracy == wilson(0, 20)
    for one in result.verdicts:
        assert one.pred_attacked == (one.pred_clean - 1) % 5 or one.pred_clean != one.label
        assert one.attacked_prompt == around[one.prompt]
        assert one.characters == levenshtein(one.prompt, one.attacked_prompt) > 0
        assert one.words >= 1


def test_an_attack_at_the_label_changes_its_prompt_alone(tiny_clip):
    model, names = tiny_clip(), ["ox", "cat", "a"]
    features = model.image_features(natural_like(6, 32)).detach()
    labels = (features @ model.text_features(names).T).argmax(dim=1)
    images = EncodedImages([f"image {row}" for row in range(6)], features, labels)
    attack = SingleEdit(constraint="none")
    result = evaluate_text_attack(model, images, names, "{}", attack, aim="label")
    for row, one in enumerate(result.verdicts):
        weights = list(names)
        weights[one.label] = one.attacked_prompt
        logits = images.features[row] @ model.text_features(weights).T
        assert one.pred_attacked == logits.argmax().item()
        assert one.prompt == names[one.label]
        assert one.characters <= 1
    assert result.robust_accuracy.estimate < result.clean_accuracy.estimate == 1
    weaker = evaluate_text_attack(model, images, names, "{}", LeafSearch(candidates=5), aim="label")
    assert result.robust_accuracy.estimate <= weaker.robust_accuracy.estimate


def test_an_image_that_was_wrong_is_never_robust(tiny_clip):
    """A prompt that rights a wrong answer does not count."""
    model = tiny_clip()
    images = scene(model)
    wrong = EncodedImages(images.keys[:1], images.features[:1], images.labels[:1])
    read = (images.features[0] @ model.text_features([prompt(name) for name in NAMES]).T).argmax().item()
    around = {
        prompt(NAMES[read]): prompt(NAMES[int(wrong.labels)]),
        prompt(NAMES[int(wrong.labels)]): prompt(NAMES[read]),
    }
    (verdict,) = evaluate_text_attack(model, wrong, NAMES, TEMPLATE, Swap(around)).verdicts
    assert verdict.pred_attacked == verdict.label != verdict.pred_clean
    assert not verdict.robust


def test_prompts_that_become_equal_are_a_tie_of_equal_classes(tiny_clip):
    """Of equal prompts the first class has it, as for classes of one name."""
    model = tiny_clip()
    images = scene(model)
    same = {prompt(name): "zorg" for name in NAMES}
    result = evaluate_text_attack(model, images, NAMES, TEMPLATE, Swap(same))
    assert {one.pred_attacked == 0 for one in result.verdicts if one.label == 0} <= {True}
    assert all(one.pred_attacked != one.label for one in result.verdicts if one.label != 0)


@pytest.mark.parametrize("aim", ["embedding", "label"])
def test_order_and_neighbours_do_not_matter(aim, tiny_clip):
    model = tiny_clip()
    images = scene(model, 6)
    attack = LeafSearch(candidates=6, constraint="none")

    def verdicts(rows):
        part = EncodedImages([images.keys[row] for row in rows], images.features[rows], images.labels[rows])
        return {one.key: one for one in evaluate_text_attack(model, part, NAMES, TEMPLATE, attack, aim=aim).verdicts}

    whole = verdicts(list(range(6)))
    assert verdicts([5, 2, 0]) == {key: whole[key] for key in ("image 5", "image 2", "image 0")}
    assert verdicts([3]) == {"image 3": whole["image 3"]}


def test_draws_of_a_prompt_belong_to_its_words(tiny_clip):
    model, attack = tiny_clip(), LeafSearch(candidates=4, constraint="none")
    prompts = [prompt(name) for name in NAMES]
    whole = attack_prompts(model, prompts, attack, seed=1)
    assert attack_prompts(model, prompts[::-1], attack, seed=1)[::-1] == whole
    assert attack_prompts(model, prompts, attack, seed=2) != whole


def test_words_can_be_attacked_too(tiny_clip):
    model = tiny_clip()
    result = evaluate_text_attack(model, scene(model), NAMES, TEMPLATE, Synonyms(), measure="kl_softmax")
    assert {one.words for one in result.verdicts} == {1}


def test_an_attack_beyond_its_budget_is_an_error(tiny_clip):
    model, attack = tiny_clip(), Swap({prompt("cat"): "zorg"})
    attack.budget = Budget(characters=1)
    with pytest.raises(RunFailedError, match='"swap" left its budget'):
        evaluate_text_attack(model, scene(model), NAMES, TEMPLATE, attack)


# More and more classes


def test_a_smaller_choice_of_classes_lies_in_every_larger_one():
    names = [f"class {index}" for index in range(50)]
    choices = [nested_classes(names, count) for count in (1, 7, 20, 50)]
    for small, large in itertools.pairwise(choices):
        assert set(small) < set(large)
    assert choices[-1] == list(range(50))
    back = nested_classes(names[::-1], 7)
    assert {names[::-1][label] for label in back} == {names[label] for label in choices[1]}


@pytest.mark.parametrize("count", [0, 6])
def test_more_classes_than_there_are_is_refused(count):
    with pytest.raises(ConfigError, match=f"{count} of 5 classes"):
        nested_classes(NAMES, count)


def test_against_more_classes_the_images_are_the_same(tiny_clip):
    """The features decide nothing here but the number of rivals: accuracy can only fall as they grow."""
    model = tiny_clip()
    images = scene(model, 40)
    found = against_class_counts(model, images, NAMES, TEMPLATE, Swap({}), counts=(2, 3, 5))
    assert [found[count].classes for count in (2, 3, 5)] == [2, 3, 5]
    keys = [[one.key for one in found[count].verdicts] for count in (2, 3, 5)]
    assert keys[0] == keys[1] == keys[2]
    smallest = {prompt(NAMES[label]) for label in nested_classes(NAMES, 2)}
    assert {one.prompt for count in found for one in found[count].verdicts} <= smallest
    shares = [found[count].clean_accuracy.estimate for count in (2, 3, 5)]
    assert shares == sorted(shares, reverse=True)


def test_classes_without_an_image_are_an_error(tiny_clip):
    images = EncodedImages(["0"], torch.eye(16)[:1], torch.tensor([3]))
    with pytest.raises(DataError, match="none of 1 images"):
        images.of_classes([1, 2], among=[1, 2])


# What is given


class Five:
    """Five labelled images in memory."""

    source, fingerprint, problems, templates, class_names = "in memory", "none", (), None, NAMES
    keys, labels = tuple(f"key {row}" for row in range(5)), (4, 3, 2, 1, 0)

    def __len__(self):
        return 5

    def __getitem__(self, position):
        return Sample(self.keys[position], natural_like(5, 32)[position], self.labels[position])


def test_images_are_encoded_as_the_model_sees_them(tiny_clip):
    model = tiny_clip()
    found = encode_images(model, Five(), [3, 0])
    torch.testing.assert_close(found.features, F.normalize(model.embed_image(natural_like(5, 32)[[3, 0]]), dim=-1))
    assert found.labels.tolist() == [1, 4]
    assert found.keys == ["key 3", "key 0"]


def test_labels_are_needed(tiny_clip, monkeypatch):
    monkeypatch.setattr(Five, "labels", None)
    with pytest.raises(DataError, match="in memory has no labels"):
        encode_images(tiny_clip(), Five(), [0])


def test_every_label_needs_a_name(tiny_clip):
    model = tiny_clip()
    images = EncodedImages(["0"], torch.eye(16)[:1], torch.tensor([9]))
    with pytest.raises(DataError, match="5 class names for label 9"):
        evaluate_text_attack(model, images, NAMES, TEMPLATE, Swap({}))
    with pytest.raises(ShapeError, match="2 keys, 1 features, 1 labels"):
        EncodedImages(["0", "1"], torch.eye(16)[:1], torch.tensor([0]))
