"""One step of the loop taken apart: attack, passes, gradients, precision; and the contract with methods."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ironclip.errors import ConfigError, DataError
from ironclip.methods.base import METHODS, Inner, Pass, Views
from ironclip.models.sources import load_model
from ironclip.models.tuning import Tunable
from ironclip.training.engine import Trainer
from made_up_shards import labelled, write_shard

CLEAN, TECOA, FARE = (METHODS.get(name) for name in ("clean", "tecoa", "fare"))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_attack_runs_once_a_step_in_every_precision(precision, trainer, monkeypatch):
    """D4: no precision trains on clean images."""
    one = trainer({"optimisation.precision": precision})
    perturb, seen, passed = type(one.attack).perturb, [], []

    def spied(self, objective, pixels, threat, random):
        found = perturb(self, objective, pixels, threat, random)
        seen.append((one.model.compute_dtype, list(random.keys), found))
        assert (found - pixels).abs().amax(dim=(1, 2, 3)).min() > 1 / 255
        return found

    embed = type(one.model).embed_image
    monkeypatch.setattr(type(one.attack), "perturb", spied)
    monkeypatch.setattr(
        type(one.model), "embed_image", lambda self, pixels: passed.append(pixels) or embed(self, pixels)
    )
    epoch, samples = next(one.batches(strict=False))
    one.step(samples, epoch)
    ((dtype, keys, found),) = seen
    assert dtype == one.precision == {"float32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert keys == [sample.key for sample in samples]
    assert torch.equal(passed[-1], found)  # what the loss is computed on


@pytest.mark.parametrize("method", ["tecoa", "fare"])
def test_accumulation_gives_the_same_gradients(method, trainer, gradients_of):
    whole = gradients_of(trainer({"method": {"name": method}}))
    parts = gradients_of(trainer({"method": {"name": method}, "optimisation.accumulate": 4}))
    for name, gradient in whole.items():
        assert torch.linalg.vector_norm(parts[name] - gradient) <= 1e-4 * torch.linalg.vector_norm(gradient), name


def test_parts_of_unequal_size_weigh_by_their_samples(trainer, gradients_of):
    changes = {"method": {"name": "clean"}}
    one = trainer(changes)
    samples = next(one.batches(strict=False))[1][:7]
    whole = gradients_of(one, samples)
    parts = gradients_of(trainer(changes | {"optimisation.accumulate": 4}), samples)  # 2 + 2 + 2 + 1
    for name, gradient in whole.items():
        assert torch.linalg.vector_norm(parts[name] - gradient) <= 1e-4 * torch.linalg.vector_norm(gradient), name


def test_accumulation_logs_the_means_of_the_whole_batch(trainer):
    logs = []
    for parts in (1, 4):
        one = trainer({"optimisation.accumulate": parts})
        epoch, samples = next(one.batches(strict=False))
        logs.append(one.step(samples, epoch))
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)


def test_clip_norm_shortens_the_gradient_and_keeps_its_direction(trainer, gradients_of):
    free = gradients_of(trainer())
    length = math.sqrt(sum(float(g.square().sum()) for g in free.values()))
    clipped = gradients_of(trainer({"optimisation.clip_norm": length / 3}))
    for name, gradient in free.items():
        torch.testing.assert_close(clipped[name], gradient / 3, rtol=1e-4, atol=1e-7)
    longer = gradients_of(trainer({"optimisation.clip_norm": 3 * length}))
    for name, gradient in free.items():
        assert torch.equal(longer[name], gradient)


def test_the_log_shows_the_norm_before_clipping(trainer):
    norms = []
    for clip in (None, 1e-3):
        one = trainer({"optimisation.clip_norm": clip})
        epoch, samples = next(one.batches(strict=False))
        norms.append(one.step(samples, epoch)["gradient_norm"])
    assert norms[0] == norms[1] > 1e-2


def test_masters_stay_float32_and_passes_run_in_bfloat16(trainer, monkeypatch):
    one = trainer({"optimisation.precision": "bf16"})
    dtypes, embed = set(), type(one.model._fast).embed

    def spied(self, normalised, dtype):
        dtypes.add(dtype)
        return embed(self, normalised, dtype)

    monkeypatch.setattr(type(one.model._fast), "embed", spied)
    epoch, samples = next(one.batches(strict=False))
    one.step(samples, epoch)
    assert dtypes == {torch.bfloat16}
    assert {parameter.dtype for parameter in one.model.parameters()} == {torch.float32}
    state = one.optimiser.state_dict()["state"]
    assert {value.dtype for entry in state.values() for value in entry.values()} == {torch.float32}


def test_bf16_masters_move_by_less_than_bfloat16_can_say(trainer):
    """A step of 1e-6 of a weight is far below bfloat16's 2^-9; it must not be lost."""
    one = trainer({"optimisation.precision": "bf16", "optimisation.lr": 1e-7, "method": {"name": "clean"}})
    before = one.model.visual.proj.detach().clone()
    epoch, samples = next(one.batches(strict=False))
    one.step(samples, epoch)
    moved = (one.model.visual.proj.detach() - before).abs()
    assert (moved > 0).float().mean() > 0.9
    assert moved.max() < 1e-6


@pytest.mark.parametrize("method", ["tecoa", "fare"])
def test_bf16_follows_float32(method, trainer):
    logs = []
    for precision in ("float32", "bf16"):
        one = trainer({"optimisation.precision": precision, "method": {"name": method}, "threat.eps": "16/255"})
        epoch, samples = next(one.batches(strict=False))
        logs.append(one.step(samples, epoch)["loss"])
    assert logs[1] == pytest.approx(logs[0], rel=0.1)
    assert logs[1] != logs[0]


def test_model_is_left_in_eval_mode_also_after_a_failure(trainer, monkeypatch):
    one = trainer()
    modes = []

    def fail(self, views):
        modes.append(one.model.training)
        raise RuntimeError("no")

    passes = Trainer._passes
    monkeypatch.setattr(Trainer, "_passes", lambda self, *a: modes.append(self.model.training) or passes(self, *a))
    monkeypatch.setattr(TECOA, "loss", fail)
    epoch, samples = next(one.batches(strict=False))
    with pytest.raises(RuntimeError, match="no"):
        one.step(samples, epoch)
    assert modes[0] is True  # the loss pass runs in train mode, as published
    assert not any(module.training for module in one.model.modules())
    assert one.model.compute_dtype == torch.float32


def test_global_random_state_is_neither_read_nor_written(trainer):
    losses = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            state = torch.get_rng_state()
            one = trainer()
            epoch, samples = next(one.batches(strict=False))
            losses.append(one.step(samples, epoch)["loss"])
            assert torch.equal(torch.get_rng_state(), state)
    assert losses[0] == losses[1]


def test_attack_starts_are_others_in_another_epoch(trainer, monkeypatch):
    one = trainer({"optimisation.lr": 1e-12})
    found, perturb = [], type(one.attack).perturb
    monkeypatch.setattr(type(one.attack), "perturb", lambda *a: found.append(perturb(*a)) or found[-1])
    _, samples = next(one.batches(strict=False))
    for epoch in (0, 1, 0):
        one.step(samples, epoch)
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


# The contract with methods


def test_a_method_that_reads_other_samples_is_not_split(trainer, monkeypatch):
    monkeypatch.setattr(CLEAN, "across_batch", True)
    changes = {"method": {"name": "clean"}}
    trainer(changes)
    with pytest.raises(ConfigError, match='method "clean" compares the samples of a batch') as caught:
        trainer(changes | {"optimisation.accumulate": 2})
    assert "accumulate to 1" in caught.value.remedy


def test_a_text_adversary_is_refused(trainer, monkeypatch):
    one = trainer()
    adversaries = TECOA.adversaries
    monkeypatch.setattr(TECOA, "adversaries", lambda self, *a: {"text": adversaries(self, *a)["image"]})
    epoch, samples = next(one.batches(strict=False))
    with pytest.raises(ConfigError, match='method "tecoa" attacks texts, and no text attack is registered'):
        one.step(samples, epoch)


def test_a_pass_without_its_adversary_is_refused(trainer, monkeypatch):
    one = trainer()
    monkeypatch.setattr(TECOA, "adversaries", lambda *_: {})
    epoch, samples = next(one.batches(strict=False))
    with pytest.raises(ConfigError, match=r"needs Pass\.STUDENT_ADV, but declares no image adversary"):
        one.step(samples, epoch)


@pytest.mark.parametrize("model", ["student", "teacher"])
def test_declared_passes_are_those_of_the_right_model_and_images(model, trainer, monkeypatch):
    """Every pass that the engine offers, asked for at once, against a pass of its own."""
    needs = frozenset(
        {p for p in Pass if p.name.startswith(model.upper()) and "TEXT_ADV" not in p.name}
        | {Pass.STUDENT_ADV, Pass.TEACHER_ADV}
    )
    one = trainer({"method": {"name": "fare"}})
    with torch.no_grad():
        for parameter in one.parameters.values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    attacked, perturb = [], type(one.attack).perturb
    monkeypatch.setattr(type(one.attack), "perturb", lambda *a: attacked.append(perturb(*a)) or attacked[-1])
    monkeypatch.setattr(FARE, "needs", property(lambda self: needs))
    epoch, samples = next(one.batches(strict=False))
    batch = one._batch(samples)
    network = one.model if model == "student" else one.teacher.model
    found = {}

    def loss(self, views):
        seen = getattr(views, model)
        found["clean"], found["adv"] = seen.clean.embedding, seen.adv.embedding
        found["text"], found["features"] = seen.text.embedding, seen.text.features
        found["clean_patches"] = seen.clean_patches
        if model == "student":
            found["adv_patches"] = seen.adv_patches
        return {"embedding": views.student.adv.embedding.square().sum()}

    monkeypatch.setattr(FARE, "loss", loss)
    with torch.no_grad():
        expected = {"clean": network.embed_image(batch.pixels), "clean_patches": network.patch_tokens(batch.pixels)}
        names = ("cat", "dog", "bird")
        expected["text"] = network.embed_text([f"a photo of a {names[s.label]}." for s in samples])
        expected["features"] = F.normalize(expected["text"], dim=-1)
        weights = {name: parameter.clone() for name, parameter in one.parameters.items()}
    one.step(samples, epoch)
    with torch.no_grad():
        for name, parameter in one.parameters.items():
            parameter.copy_(weights[name])
        expected["adv"] = network.embed_image(attacked[0])
        if model == "student":
            expected["adv_patches"] = network.patch_tokens(attacked[0])
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].detach(), value, rtol=1e-4, atol=1e-4)
        assert found[name].requires_grad == (model == "student" and name not in ("text", "features")), name


def test_a_tuned_text_tower_gets_its_gradient_through_the_class_prompts(trainer, gradients_of, monkeypatch):
    monkeypatch.setattr(CLEAN, "trains", Tunable.BOTH)
    one = trainer({"method": {"name": "clean"}})
    assert set(gradients_of(one)) == set(one.parameters)


def test_every_pass_of_a_view_can_be_asked_for(trainer):
    views = Views("fare", trainer()._batch(next(trainer().batches(strict=False))[1]), {}, torch.tensor(100.0))
    for model in (views.student, views.teacher):
        for name in ("clean", "adv", "text", "text_adv", "clean_patches", "adv_patches"):
            with pytest.raises(ConfigError, match="Add Pass"):
                getattr(model, name)


def test_an_adversary_acts_where_the_threat_model_says(trainer, monkeypatch):
    one = trainer({"threat.acting": "model_input"})
    sizes, perturb = [], type(one.attack).perturb

    def spied(self, objective, pixels, *arguments):
        sizes.append(tuple(pixels.shape[2:]))
        return perturb(self, objective, pixels, *arguments)

    monkeypatch.setattr(type(one.attack), "perturb", spied)
    epoch, samples = next(one.batches(strict=False))
    one.step(samples, epoch)
    assert sizes == [(32, 32)]


def test_captions_come_before_class_prompts(trainer, tmp_path, monkeypatch):
    members = labelled(0, 12, 2, 16)
    members |= {f"{number:06}.txt": f"picture {number}\nanother".encode() for number in range(12)}
    write_shard(tmp_path / "toy" / "train-0000.tar", members)
    changes = {"data.train": f"wds:{tmp_path}/toy", "data.class_names": ["a", "b"], "data.templates": ["a {}"]}
    one = trainer(changes | {"method": {"name": "clean"}, "data.hold_out": 2})
    texts, embed_text = [], type(one.model).embed_text
    epoch, samples = next(one.batches(strict=False))
    one.step(samples, epoch)
    monkeypatch.setattr(type(one.model), "embed_text", lambda self, t: texts.append(list(t)) or embed_text(self, t))
    monkeypatch.setattr(CLEAN, "needs", property(lambda self: frozenset({Pass.STUDENT_CLEAN, Pass.STUDENT_TEXT})))
    one.step(samples, epoch)
    assert texts == [[f"picture {int(sample.key[-6:])}" for sample in samples]]


def test_texts_that_are_not_there(trainer, monkeypatch):
    monkeypatch.setattr(FARE, "needs", property(lambda self: frozenset({Pass.STUDENT_ADV, Pass.STUDENT_TEXT})))
    one = trainer({"data.train": "wds:{data}/plain?split=train", "method": {"name": "fare"}})
    epoch, samples = next(one.batches(strict=False))
    with pytest.raises(DataError, match='method "fare" reads texts, but the data have none'):
        one.step(samples, epoch)


def test_an_inner_problem_is_solved_in_the_ball_of_the_recipe(trainer, monkeypatch):
    one = trainer({"threat": {"norm": "l2", "eps": 0.5}, "attack": {"name": "pgd", "steps": 2}})
    seen, perturb = [], type(one.attack).perturb

    def spied(self, objective, pixels, threat, random):
        found = perturb(self, objective, pixels, threat, random)
        seen.append(torch.linalg.vector_norm((found - pixels).flatten(1).double(), dim=1))
        return found

    monkeypatch.setattr(type(one.attack), "perturb", spied)
    epoch, samples = next(one.batches(strict=False))
    one.step(samples, epoch)
    assert (seen[0] <= 0.5 * (1 + 1e-5)).all()
    assert (seen[0] > 0.1).all()


def test_inner_is_an_objective(trainer):
    one = trainer()
    _, samples = next(one.batches(strict=False))
    inner = one.method.adversaries(one._batch(samples), one.model, one.teacher)["image"]
    assert isinstance(inner, Inner)
    assert inner.objective(one._batch(samples).pixels).shape == (8,)


def test_a_method_may_bring_its_own_preprocessing(trainer, run, monkeypatch):
    """For both models and for what is saved; the adversary, which acts before it, is not touched."""

    def darker(self, own):
        return replace(own, mean=(0.1, 0.2, 0.3))

    before = trainer()
    monkeypatch.setattr(TECOA, "preprocessing", darker)
    one = trainer()
    assert before.model.spec.preprocessing.mean != (0.1, 0.2, 0.3)
    for model in (one.model, one.teacher.model, load_model(f"run:{run()}")):
        assert model.spec.preprocessing == replace(before.model.spec.preprocessing, mean=(0.1, 0.2, 0.3))
    assert one.model.spec.sha256 == before.model.spec.sha256
    _, samples = next(one.batches(strict=False))
    pixels = one._batch(samples).pixels
    assert not torch.allclose(one.model.embed_image(pixels), before.model.embed_image(pixels))
    assert torch.equal(one.model.embed_image(pixels), one.teacher.model.embed_image(pixels))
