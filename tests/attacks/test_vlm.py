"""Attacks on a small decoder over a tiny tower, both with random weights: what is proved is the machinery."""

from __future__ import annotations

import pytest
import torch

from ironclip.attacks.apgd import APGD
from ironclip.attacks.driver import DriverSettings, run_attack
from ironclip.attacks.objectives import Evaluation, Objective
from ironclip.attacks.threat_model import ThreatModel
from ironclip.attacks.vlm.climb import Climb
from ironclip.attacks.vlm.ensemble import ANSWER_STAGES, CAPTION_STAGES, EnsembleSettings, Stage, run_ensemble
from ironclip.attacks.vlm.objectives import LeavePatches, Say, Unsay
from ironclip.attacks.vlm.sentence import run_sentence
from ironclip.attacks.vlm.speech import Match, match, said_of
from ironclip.errors import ConfigError, ShapeError
from ironclip.models.tiny_vlm import DecoderSizes, TinyVLM, Vocabulary
from ironclip.randomness import SampleRandom
from made_up_images import natural_like

WORDS = ["maybe", "word", "dog", "cat", "red", "grass", "what"]
LINF, TARGETED = ThreatModel(eps="8/255"), ThreatModel(eps="16/255", goal="targeted")
COUNT = 6
KEYS = [f"image {row}" for row in range(COUNT)]
PROMPTS = ["what"] * COUNT


@pytest.fixture(scope="module")
def vlm(tiny_clip):
    model = TinyVLM(tiny_clip(), Vocabulary.of(WORDS), DecoderSizes(width=32, layers=2, heads=2, length=24))
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=random))
    return model


@pytest.fixture(scope="module")
def images():
    return natural_like(COUNT, 32, seed=3)


class Linear(Objective):
    """Weights times pixels."""

    def __init__(self, weights):
        self.weights = weights

    def evaluate(self, pixels):
        value = (self.weights * pixels).flatten(1).sum(dim=1)
        return Evaluation(value, torch.zeros_like(value, dtype=torch.bool))

    def take(self, rows):
        return self


# The search


def test_a_climb_examines_the_clean_image_first_and_steps_by_eps():
    weights = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    pixels, attack = torch.full((2, 3, 4, 4), 0.5), Climb(steps=10)
    objective, random = Linear(weights), SampleRandom(0, ["a", "b"])
    state = attack.start(objective, pixels, LINF, random)
    assert torch.equal(state.x, pixels)
    state = attack.step(objective, state)
    torch.testing.assert_close(state.candidate, pixels)
    torch.testing.assert_close(state.x, pixels + 8 / 255 * weights.sign())  # the optimum of a linear objective
    torch.testing.assert_close(
        attack.perturb(objective, pixels, LINF, random), pixels + 8 / 255 * weights.sign().expand(2, -1, -1, -1)
    )


def test_a_climb_goes_on_from_where_it_is_told_within_the_ball():
    pixels = torch.full((2, 3, 4, 4), 0.5)
    attack = Climb(steps=1, begin={"b": pixels[1] + 1})
    state = attack.start(Linear(torch.ones(3, 4, 4)), pixels, LINF, SampleRandom(0, ["a", "b"]))
    assert torch.equal(state.x[0], pixels[0])
    torch.testing.assert_close(state.x[1], pixels[1] + 8 / 255)
    with pytest.raises(ConfigError, match=r"2 restarts of a search that begins at the same point"):
        Climb(restarts=2)


# Objectives


def test_references_become_unlikely(vlm, images):
    lesson = vlm.write(PROMPTS, ["red dog"] * COUNT)
    outcome = run_attack(Climb(steps=10), Unsay(vlm, lesson), images, KEYS, LINF, seed=0)
    with torch.no_grad():
        before = vlm.loss(images, PROMPTS, ["red dog"] * COUNT)
        after = vlm.loss(outcome.adversarial, PROMPTS, ["red dog"] * COUNT)
    assert (after > before + 0.1).all()
    torch.testing.assert_close(outcome.final.value, after, rtol=0, atol=1e-4)
    assert LINF.contains(outcome.adversarial, images).all()
    assert not outcome.broken.any()


def test_patch_tokens_leave_without_a_label(vlm, images):
    for distance in ("l2", "cosine"):
        objective = LeavePatches.of(vlm, images, distance)
        assert objective(images).abs().max() < 1e-4
        outcome = run_attack(APGD(steps=10), objective, images, KEYS, LINF, seed=0)
        tokens, clean = vlm.visual_tokens(outcome.adversarial), vlm.visual_tokens(images)
        if distance == "l2":
            moved = (tokens - clean).square().sum(2).mean(1)
        else:
            moved = 1 - torch.cosine_similarity(tokens, clean, dim=2).mean(1)
        torch.testing.assert_close(outcome.final.value, moved, rtol=1e-3, atol=1e-5)
        noise = objective(LINF.random_start(images, SampleRandom(0, KEYS)))
        assert (outcome.final.value > noise).all()


@pytest.mark.parametrize("tile", [16, 32])
def test_rows_do_not_hang_on_tiles_or_neighbours(vlm, images, tile):
    lesson = vlm.write(PROMPTS, ["red dog", "cat", "grass red cat", "dog", "what", "red"])
    objective, settings = Unsay(vlm, lesson), DriverSettings(tile=tile)
    whole = run_attack(Climb(steps=4), objective, images, KEYS, LINF, seed=0, settings=settings)
    rows = torch.tensor([4, 1])
    some = run_attack(
        Climb(steps=4), objective.take(rows), images[rows], [KEYS[4], KEYS[1]], LINF, seed=0, settings=settings
    )
    torch.testing.assert_close(some.adversarial, whole.adversarial[rows], rtol=0, atol=0)


# The ensemble


def lengths(references):
    """Score a text by how many of its words some reference holds."""

    def score(image, text):
        known = {word for reference in references[image] for word in reference.split()}
        return float(sum(word in known for word in text.split()))

    return score


def test_the_ensemble_keeps_the_worst_and_leaves_early(vlm, images):
    said = said_of(vlm, images, PROMPTS, DriverSettings(), max_new_tokens=4)
    references = [[text or "dog", "red cat"] for text in said]
    asked: list[tuple[str, int]] = []
    settings = EnsembleSettings(stages=ANSWER_STAGES, leave_below=0.5, max_new_tokens=4, steps=6)
    outcome = run_ensemble(
        vlm,
        images,
        KEYS,
        PROMPTS,
        references,
        LINF,
        lengths(references),
        settings=settings,
        progress=lambda name, left: asked.append((name, left)),
    )
    assert outcome.clean_texts == said
    assert outcome.clean_scores == [lengths(references)(image, text) for image, text in enumerate(said)]
    again = said_of(vlm, outcome.adversarial, PROMPTS, DriverSettings(), max_new_tokens=4)
    assert again == outcome.texts
    assert outcome.scores == [lengths(references)(image, text) for image, text in enumerate(again)]
    assert sum(outcome.scores) < sum(outcome.clean_scores)
    assert LINF.contains(outcome.adversarial, images).all()
    means = [mean for _, mean in outcome.waterfall]
    assert means == sorted(means, reverse=True)
    assert [name for name, _ in outcome.waterfall] == ["clean", *(stage.name for stage in ANSWER_STAGES)]
    # Two references each: the stages of the third to the fifth have nobody to attack; who is at 0 has left.
    left = dict(asked)
    assert [left[f"reference {place}"] for place in (2, 3, 4)] == [0, 0, 0]
    assert left["reference 0"] == sum(score >= 0.5 for score in outcome.clean_scores)
    assert left['say "Word"'] <= left["reference 1"] <= left["reference 0"]
    untouched = torch.tensor([stage == -1 for stage in outcome.stage])
    assert torch.equal(outcome.adversarial[untouched], images[untouched])
    never = torch.tensor([score < 0.5 for score in outcome.clean_scores])
    assert (outcome.forwards[never] == 0).all()


def test_the_published_stages():
    assert [stage.name for stage in CAPTION_STAGES] == [
        *(f"reference {place}" for place in range(5)),
        "worst reference, float32",
    ]
    assert [stage.exact for stage in ANSWER_STAGES] == [False] * 5 + [True] * 3
    assert [stage.from_worst for stage in ANSWER_STAGES] == [False] * 5 + [True, False, False]


def test_what_does_not_fit_an_ensemble_is_refused(vlm, images):
    with pytest.raises(ShapeError, match=r"6 images with 6 keys, 1 prompts, 6 lists"):
        run_ensemble(vlm, images, KEYS, ["what"], [["dog"]] * 6, LINF, lambda image, text: 0.0)
    with pytest.raises(ShapeError, match="at least one reference"):
        run_ensemble(vlm, images, KEYS, PROMPTS, [[]] * 6, LINF, lambda image, text: 0.0)
    with pytest.raises(ConfigError, match="first begins at the clean image"):
        EnsembleSettings(stages=(Stage(from_worst=True),))


# A sentence


def test_a_sentence_is_said_where_the_driver_says_so(vlm, images):
    outcome = run_sentence(vlm, images, KEYS, PROMPTS, "cat grass", TARGETED, steps=30, max_new_tokens=6)
    begins = [found.begins for found in outcome.attacked.matches]
    assert any(begins)
    # What teacher forcing calls broken is what greedy decoding says.
    assert begins == outcome.search.broken.tolist()
    assert sum(begins) > sum(found.begins for found in outcome.clean.matches)
    assert (outcome.search.forwards[outcome.search.broken] < 33).any()  # left before the last step
    assert len(outcome.rounded.texts) == COUNT
    assert TARGETED.contains(outcome.search.adversarial, images).all()
    with pytest.raises(ConfigError, match=r'plays no "untargeted" game'):
        run_sentence(vlm, images, KEYS, PROMPTS, "cat", LINF)


def test_a_sentence_said_is_broken_and_one_not_said_is_not(vlm, images):
    said = said_of(vlm, images, PROMPTS, DriverSettings(), max_new_tokens=3)
    spoken = [row for row, text in enumerate(said) if text]
    prompts = [PROMPTS[row] for row in spoken]
    own = Say(vlm, vlm.write(prompts, [said[row] for row in spoken])).evaluate(images[spoken])
    other = Say(vlm, vlm.write(prompts, [f"maybe {said[row]} maybe" for row in spoken])).evaluate(images[spoken])
    assert own.broken.all()
    assert (other.broken == (other.margin > 0)).all()


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("Visit  THE shop now", Match(True, True, False)),
        ("you should visit the shop", Match(True, False, False)),
        ("visit the shop", Match(True, True, True)),
        ("visit a shop", Match(False, False, False)),
    ],
)
def test_matches_ignore_capitals_and_white_space(answer, found):
    assert match(answer, "Visit the shop") == found
