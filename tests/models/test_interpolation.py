"""Weights between the original and the robust model."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from ironclip.errors import ConfigError, ValueRangeError, WeightsError
from ironclip.models.interpolation import interpolate
from ironclip.models.preprocessing import Preprocessing
from ironclip.models.sources import load_between, load_model, save_model


def opened(model):
    return model.clip, model.spec


def same(one, other):
    """Whether two state dicts are equal, bit for bit: -0 is not 0."""
    return one.keys() == other.keys() and all(
        torch.equal(one[name].view(torch.int32), other[name].view(torch.int32)) for name in one
    )


@pytest.fixture
def pair(tiny_clip):
    """Two models that differ in the image tower alone; some weights of the first are -0."""
    original, robust = tiny_clip(), tiny_clip()
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        original.visual.proj[0] = -0.0
        for parameter in robust.visual.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=random)
    robust.spec = replace(robust.spec, origin="robust", sha256="1" * 64)
    return original, robust


@pytest.fixture
def run(pair, tmp_path):
    """A run folder as training leaves it, with its original beside it."""
    original, robust = pair
    sha256 = save_model(original, tmp_path / "original")
    save_model(robust, tmp_path / "run" / "model")
    record = {"model": {"source": f"local-dir:{tmp_path}/original", "sha256": sha256}, "trains": "vision"}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    return tmp_path / "run"


def test_the_endpoints_are_the_models_bit_for_bit(pair):
    original, robust = pair
    for weight, end in ((0, original), (1, robust), (0.0, original), (1.0, robust)):
        clip, spec = interpolate(opened(original), opened(robust), weight)
        assert same(clip.state_dict(), end.clip.state_dict())
        assert spec == end.spec


@pytest.mark.parametrize("weight", [0.25, 0.5, 0.9])
def test_between_them_is_the_formula_and_the_text_tower_stays(pair, weight):
    original, robust = pair
    before, after = original.clip.state_dict(), robust.clip.state_dict()
    clip, spec = interpolate(opened(original), opened(robust), weight)
    for name, tensor in clip.state_dict().items():
        expected = (1 - weight) * before[name].double() + weight * after[name].double()
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)
        if not name.startswith("visual."):
            assert torch.equal(tensor, before[name])
    assert not torch.equal(clip.state_dict()["visual.proj"], before["visual.proj"])
    assert spec.sha256 not in (original.spec.sha256, robust.spec.sha256)
    assert same(robust.clip.state_dict(), after)


def test_the_weight_stands_before_the_robust_model(pair):
    """Published code has it both ways, which turns a curve around."""
    original, robust = pair
    clip, _ = interpolate(opened(original), opened(robust), 0.9)
    near = (clip.visual.proj - robust.visual.proj).abs().mean()
    assert near < (clip.visual.proj - original.visual.proj).abs().mean() / 5


@pytest.mark.parametrize("weight", [-0.01, 1.01, math.nan])
def test_a_weight_outside_the_two_is_refused(pair, weight):
    with pytest.raises(ValueRangeError, match=r"robust weight .*, expected a number in \[0, 1\]"):
        interpolate(opened(pair[0]), opened(pair[1]), weight)


@pytest.mark.parametrize("weight", [0, 0.5])
def test_two_models_that_are_not_one_before_and_after(pair, tiny_clip, weight):
    original, robust = pair
    for other in (tiny_clip(vision={"layers": 3}), tiny_clip(quick_gelu=True)):
        with pytest.raises(ConfigError, match="tiny_clip and tiny_clip differ in architecture: nothing lies between"):
            interpolate(opened(original), opened(other), weight)
    robust.spec = replace(robust.spec, preprocessing=Preprocessing(32, (0.5, 0.5, 0.5)))
    with pytest.raises(ConfigError, match="tiny_clip and robust differ in preprocessing"):
        interpolate(opened(original), opened(robust), weight)


def test_other_statistics_of_batch_norms_are_refused(tiny_clip):
    small = {"vision": {"layers": [1, 1, 1, 1], "width": 16, "head_width": 16}}
    original, robust = tiny_clip(**small), tiny_clip(**small)
    clip, _ = interpolate(opened(original), opened(robust), 0.5)
    assert torch.equal(clip.visual.bn1.running_var, original.visual.bn1.running_var)
    robust.visual.bn1.running_var += 1
    with pytest.raises(ConfigError, match="differ in statistics of batch norms"):
        interpolate(opened(original), opened(robust), 0.5)


# Sources


def test_a_run_knows_its_original(run, pair):
    original, robust = pair
    for weight, end in (("0", original), ("1", robust)):
        model = load_model(f"run:{run}?robust_weight={weight}")
        assert same(model.clip.state_dict(), end.clip.state_dict())
        assert model.spec.origin == f"run:{run}?robust_weight={weight}"
    half = load_model(f"run:{run}?robust_weight=0.5")
    assert same(load_between(str(run), 0.5).clip.state_dict(), half.clip.state_dict())
    hashes = {load_model(f"run:{run}?robust_weight={weight}").spec.sha256 for weight in (0, 0.5, 0.25, 1)}
    assert len(hashes) == 4  # so that stored results of one are never taken for another's
    assert load_model(f"run:{run}?robust_weight=1").spec.sha256 == load_model(str(run)).spec.sha256


def test_between_an_import_and_its_base(run, pair, tmp_path):
    original, _ = pair
    named = load_between(f"local-dir:{run}/model", 0.5, original=f"local-dir:{tmp_path}/original")
    assert same(named.clip.state_dict(), load_model(f"run:{run}?robust_weight=0.5").clip.state_dict())
    again = load_between(str(run), 0, original=f"local-dir:{tmp_path}/original")
    assert same(again.clip.state_dict(), original.clip.state_dict())


def test_without_an_original_there_is_nothing_to_go_back_to(run):
    with pytest.raises(ConfigError, match=r"does not say which model it was tuned from\.\nName it with --original"):
        load_between(f"local-dir:{run}/model", 0.5)


@pytest.mark.parametrize("tuned", ["prompts", "adapters"])
def test_prompts_and_adapters_are_refused(run, tuned, tmp_path):
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"trains": tuned}))
    message = f"tuned {tuned} beside the weights of its original: there are no weights between"
    with pytest.raises(ConfigError, match=message):
        load_model(f"run:{run}?robust_weight=0.5")
    with pytest.raises(ConfigError, match=message):
        load_between(str(run), 1, original=f"local-dir:{tmp_path}/original")


def test_an_original_that_has_changed_is_refused(run, tiny_clip, tmp_path):
    save_model(tiny_clip(seed=5), tmp_path / "original")
    with pytest.raises(WeightsError, match=r"is no longer what the run .* began with: its weights have another sha256"):
        load_model(f"run:{run}?robust_weight=0.5")


def test_a_run_without_an_original_is_refused(run):
    (run / "run.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"run\.json names no original model"):
        load_model(f"run:{run}?robust_weight=0.5")


@pytest.mark.parametrize("weight", ["half", ""])
def test_a_weight_that_is_no_number(run, weight):
    with pytest.raises(ConfigError, match=f'"{weight}" is no number'):
        load_model(f"run:{run}?robust_weight={weight}")
