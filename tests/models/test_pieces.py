"""Prompts and adapters alone on disk: what is saved, that it comes back, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ironclip.errors import WeightsError
from ironclip.methods.base import METHODS
from ironclip.models.pieces import SETTINGS, TENSORS, base_of, save_pieces
from ironclip.models.sources import WEIGHTS, load_model, save_model
from ironclip.models.zero_shot import encode_classes

NAMES = ["dog", "cup"]
TEMPLATES = ["a photo of a {}."]
METHODS_OF_PIECES = {
    "apt": {},
    "fap": {},
    "capt": {},
    "tecoa_vp": {"tokens": 2},
    "r_adapter": {"rank": 4},
    "adv_adapter": {},
}


@pytest.fixture
def run(saved_clip, tmp_path, monkeypatch, tiny_clip):
    """Leave the pieces of a method as a run does: `run(name)` gives the tuned model and the run's folder."""
    tokenizer = tiny_clip().tokenizer
    monkeypatch.setattr("ironclip.models.sources.tokenizer_for", lambda _: tokenizer)

    def make(name, folder="run"):
        model = load_model(f"local-dir:{saved_clip}")
        METHODS.create(name, METHODS_OF_PIECES[name]).attach(model, TEMPLATES, seed=0)
        random = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for part in (model.prompts, model.adapters):
                for parameter in () if part is None else part.parameters():
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
        out = tmp_path / folder
        save_pieces(model, out / "model", base=model.spec)
        (out / "run.json").write_text("{}")
        return model.requires_grad_(False), out

    return make


def logits(model, pixels):
    return model.logit_scale * model.image_features(pixels) @ encode_classes(model, NAMES, TEMPLATES).T


@pytest.mark.parametrize("name", METHODS_OF_PIECES)
def test_a_run_of_pieces_comes_back_with_equal_logits(name, run, pixels, saved_clip):
    model, out = run(name)
    for loaded in (load_model(f"run:{out}"), load_model(str(out))):
        assert torch.equal(logits(loaded.requires_grad_(False), pixels), logits(model, pixels))
        assert loaded.spec.sha256 != model.spec.sha256
    assert base_of(out / "model") == (f"local-dir:{saved_clip}", model.spec.sha256)
    assert sorted(path.name for path in (out / "model").iterdir()) == [SETTINGS, TENSORS]


def test_another_tensor_is_another_model(run):
    _, out = run("apt")
    before = load_model(f"run:{out}").spec.sha256
    tensors = load_file(out / "model" / TENSORS)
    save_file({name: value + 1 for name, value in tensors.items()}, out / "model" / TENSORS)
    assert load_model(f"run:{out}").spec.sha256 != before


def test_coupled_prompts_are_saved_as_the_towers_read_them(run):
    model, out = run("fap")
    assert set(load_file(out / "model" / TENSORS)) == {"prompts.text.0", "prompts.image.0"}
    assert json.loads((out / "model" / SETTINGS).read_text())["words"] == ["of a ", "."]
    assert any("to_image" in name for name, _ in model.prompts.named_parameters())


def test_a_whole_model_keeps_its_pieces_in_files_of_their_own(run, tmp_path, pixels):
    model, _ = run("adv_adapter")
    save_model(model, tmp_path / "whole")
    assert not any(name.startswith("adapters") for name in load_file(tmp_path / "whole" / WEIGHTS))
    loaded = load_model(f"local-dir:{tmp_path / 'whole'}").requires_grad_(False)
    assert torch.equal(logits(loaded, pixels), logits(model, pixels))


def test_a_base_that_has_changed_is_refused(run, saved_clip):
    _, out = run("apt")
    path = out / "model" / SETTINGS
    path.write_text(path.read_text().replace(base_of(out / "model")[1], "0" * 64))
    with pytest.raises(WeightsError, match=r"is no longer the model that .* was tuned on"):
        load_model(f"run:{out}")


def test_pieces_that_name_no_base_are_refused(run):
    _, out = run("apt")
    (out / "model" / SETTINGS).write_text('{"words": null}')
    with pytest.raises(WeightsError, match="names no base model"):
        load_model(f"run:{out}")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "holds no pieces"),
        ({"visual.proj": torch.zeros(2)}, "holds no pieces \\(visual.proj\\)"),
        ({"prompts.text.0": torch.zeros(2, 33)}, "prompts \\(2, 33\\) for a tower of width 32"),
        ({"prompts.image.0": torch.zeros(64)}, "prompts \\(64,\\) for a tower of width 64"),
        ({"adapters.image.mlp.0.outer": torch.zeros(64, 64)}, "1 tensors of adapters, the towers want"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tensors, message, run):
    _, out = run("apt")
    save_file(tensors, out / "model" / TENSORS)
    with pytest.raises(WeightsError, match=message):
        load_model(f"run:{out}")


def test_pieces_on_a_base_that_has_the_same_are_refused(run):
    _, below = run("apt", "below")
    _, out = run("apt")
    path = out / "model" / SETTINGS
    base = {"source": f"run:{below}", "sha256": load_model(f"run:{below}").spec.sha256}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base": base}))
    with pytest.raises(WeightsError, match="has prompts of its own"):
        load_model(f"run:{out}")
