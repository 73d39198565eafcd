"""Defects of published training loops (methods plan 6): each check passes ours and fails a planted copy."""

from __future__ import annotations

import copy

import pytest
import torch

from ironclip.methods.base import Teacher
from ironclip.models.sources import load_model
from ironclip.training import engine
from ironclip.training.trainer import Trainer

STEP, VALIDATE, ATTACKED = Trainer.step, Trainer.validate, Trainer._attacked


def loss_is_of_attacked_images(one, monkeypatch):
    """What the student sees last is not what the batch holds."""
    passed, embed = [], type(one.model).embed_image
    epoch, samples = next(one.batches(strict=False))
    clean = one._batch(samples).pixels
    with monkeypatch.context() as patch:
        patch.setattr(type(one.model), "embed_image", lambda self, pixels: passed.append(pixels) or embed(self, pixels))
        one.step(samples, epoch)
    return bool(((passed[-1] - clean).abs().amax(dim=(1, 2, 3)) > 1 / 255).all())


def test_d04_every_precision_trains_on_attacked_images(trainer, monkeypatch):
    def whole():
        precisions = ({"optimisation.precision": name} for name in ("float32", "bf16"))
        return [loss_is_of_attacked_images(trainer(changes), monkeypatch) for changes in precisions]

    assert whole() == [True, True]

    def without_an_attack_in_low_precision(self, batch, inner, scope):
        return batch.pixels if self.precision is torch.bfloat16 else ATTACKED(self, batch, inner, scope)

    monkeypatch.setattr(Trainer, "_attacked", without_an_attack_in_low_precision)
    assert whole() == [True, False]


class StopError(Exception):
    """Ends a run between two steps."""


def teacher_is_the_start_after_a_resume(run, out, monkeypatch, model_folder):
    start = load_model(f"local-dir:{model_folder}").clip.state_dict()
    seen = []

    def look(self, samples, epoch):
        teacher = self.teacher.model.clip.state_dict()
        seen.append(all(torch.equal(teacher[name], start[name]) for name in start))
        return STEP(self, samples, epoch)

    def stop(self, samples, epoch):
        if self.progress.step == 3:
            raise StopError
        return STEP(self, samples, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stop)
        with pytest.raises(StopError):
            run(out=out)
        patch.setattr(Trainer, "step", look)
        run(out=out)
    return bool(seen) and all(seen)


def test_d18_the_teacher_is_no_copy_of_what_a_checkpoint_holds(run, monkeypatch, model_folder):
    assert teacher_is_the_start_after_a_resume(run, "ours", monkeypatch, model_folder)
    prepare, load = engine.prepare, engine.load_checkpoint
    prepared = []

    def loading(*arguments):
        found = load(*arguments)
        prepared[-1].teacher = Teacher(copy.deepcopy(prepared[-1].model))
        return found

    monkeypatch.setattr(engine, "prepare", lambda *a, **k: prepared.append(prepare(*a, **k)) or prepared[-1])
    monkeypatch.setattr(engine, "load_checkpoint", loading)
    assert not teacher_is_the_start_after_a_resume(run, "planted", monkeypatch, model_folder)


def selection_rests_on_the_same_steps_figures(run, trainer, out, log_of, monkeypatch):
    """Validate the weights of each step again, and compare with the figure by which the best step was chosen."""
    changes = {"select": "best", "optimisation.steps": 6, "optimisation.lr": 0.01}
    kept = {}

    def keep(self, samples, epoch):
        logged = STEP(self, samples, epoch)
        kept[self.progress.step] = {name: value.detach().clone() for name, value in self.parameters.items()}
        return logged

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", keep)
        folder = run(changes, out=out)
    one, again = trainer(changes), []
    logged = {entry["step"]: entry["validation"] for entry in log_of(folder) if "validation" in entry}
    for step in logged:
        with torch.no_grad():
            for name, parameter in one.parameters.items():
                parameter.copy_(kept[step][name])
        again.append(VALIDATE(one, None).embedding_cosine)
    found = [figures["embedding_cosine"] for figures in logged.values()]
    assert len(set(again)) == len(again) > 1
    return found == pytest.approx(again, rel=1e-5)


def test_d27_the_best_step_is_chosen_by_its_own_validation(run, trainer, log_of, monkeypatch):
    assert selection_rests_on_the_same_steps_figures(run, trainer, "ours", log_of, monkeypatch)
    stale = []

    def of_an_earlier_step(self, samples=None):
        stale.append(VALIDATE(self, samples))
        return stale[max(0, len(stale) - 2)]

    monkeypatch.setattr(Trainer, "validate", of_an_earlier_step)
    assert not selection_rests_on_the_same_steps_figures(run, trainer, "planted", log_of, monkeypatch)
