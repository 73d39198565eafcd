"""The cost on paper: operations against torch's own counter, memory against what autograd keeps, time by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ironclip.errors import ConfigError
from ironclip.training.cost import CostSettings, cost_of
from ironclip.training.cost_models import paper_model, read_architecture
from ironclip.training.cost_rates import StatedRates, share_of_peak
from ironclip.training.cost_towers import Gradients, tower_sizes
from ironclip.training.recipe import Recipe
from ironclip.training.setup import prepare
from ironclip.training.trainer import Trainer

METHODS: dict[str, dict[str, Any]] = {
    "tecoa": {},
    "fare": {},
    "pmg_aft": {},
    "sim_clip": {},
    "tga_zsr": {},
    "clean": {},
    "apt": {"method.length": 4},
    "fap": {},
    "tecoa_vp": {"method.tokens": 5},
    "adv_adapter": {},
    "r_adapter": {},
    "mmcoa": {},
    "leaf": {},
}
NO_SEARCH = {"name": "leaf", "edits": 0}
"""A text attack whose queries hang on no text."""

CLASSES = ["cat", "dog", "bird"]
PAPER = CostSettings(peak=1e12)


@pytest.fixture
def of(recipe) -> Callable[..., Recipe]:
    """Make a recipe of a method, with the classes of the data written out."""

    def make(name: str = "tecoa", changes: dict[str, Any] | None = None) -> Recipe:
        fixed = {"method": {"name": name}, "data.class_names": CLASSES, "data.templates": ["a photo of a {}."]}
        texts = {"text_attack": NO_SEARCH} if name in ("leaf", "mmcoa") else {}
        return recipe(fixed | texts | METHODS[name] | (changes or {}))

    return make


def counted(trainer: Trainer) -> int:
    """Count a step by torch's own counter; the second one, since texts that stay are encoded in the first."""
    batches = trainer.batches(strict=False)
    for _ in range(2):
        epoch, samples = next(batches)
        with FlopCounterMode(display=False) as counter:
            trainer.step(samples, epoch)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", METHODS)
def test_a_step_has_the_operations_that_torch_counts(name, of, data_root):
    one = of(name, {"attack.steps": 2, "optimisation.lr": 1e-9})
    trainer = prepare(one, device="cpu", data_root=str(data_root), strict=False)
    predicted = sum(cost_of(one, PAPER).step_operations.values())
    # Similarities, and the rows that fill up each of two passes over 8 texts, are not counted.
    assert predicted == pytest.approx(counted(trainer), rel=0.015)
    assert predicted <= 1.0001 * counted(trainer)


def test_parts_of_a_batch_and_checkpointed_blocks(of, data_root):
    changes = {"optimisation.accumulate": 2, "optimisation.checkpoint_activations": True, "optimisation.lr": 1e-9}
    one, plain = of("tecoa", changes), cost_of(of("tecoa"), PAPER)
    again = cost_of(one, PAPER)
    assert again.step_operations["attack"] == plain.step_operations["attack"]
    assert again.step_operations["loss"] > 1.2 * plain.step_operations["loss"]
    assert again.memory["activations"] < 0.6 * plain.memory["activations"]


@pytest.mark.parametrize("source", ["open_clip:ViT-B-32/random?seed=0", "open_clip:ViT-L-14-quickgelu/openai", "tiny"])
def test_sizes_are_those_of_open_clips_modules(source):
    model = paper_model(read_architecture(source), source)
    image, text = tower_sizes(model.clip)
    assert image.parameters == sum(parameter.numel() for parameter in model.visual.parameters())
    assert text.parameters == sum(parameter.numel() for parameter in model.text_parameters())


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("gradients", [Gradients.PIXELS, Gradients.WEIGHTS])
def test_activations_are_those_that_autograd_keeps(quick, gradients, tiny_clip, pixels):
    model = tiny_clip(quick_gelu=quick, vision={"layers": 6})
    model.requires_grad_(False)
    model.visual.requires_grad_(gradients is Gradients.WEIGHTS)
    weights = {parameter.data_ptr() for parameter in model.clip.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        embedding = model.embed_image(pixels.requires_grad_(gradients is Gradients.PIXELS))
    image, _ = tower_sizes(model.clip)
    assert embedding.requires_grad
    assert 4 * len(pixels) * image.activations(gradients) == pytest.approx(sum(kept.values()), rel=0.1)


def test_time_by_hand(of):
    one = of("tecoa", {"data.hold_out": 0, "checkpoint.every": 4})
    cost = cost_of(one, PAPER)
    step = sum(cost.step_operations.values()) / (1e12 * share_of_peak(64) * 67 / 989)
    assert cost.step_seconds["attack"] + cost.step_seconds["loss"] == pytest.approx(step)
    image, _ = tower_sizes(paper_model(read_architecture(one.model), "tiny").clip)
    update = 4 * (3 + 4 + 3) * image.parameters * 200 / 1e12
    assert cost.step_seconds["optimiser"] == pytest.approx(update)
    saved = 4 * 3 * image.parameters / 1e9
    # The class prompts, encoded once, are all that is left.
    assert cost.seconds == pytest.approx(4 * (step + update) + saved, rel=0.02)
    assert cost.images_per_second == pytest.approx(8 / (step + update))


def test_a_wide_tower_reaches_more_of_the_peak():
    assert share_of_peak(768) == pytest.approx(0.76)
    assert share_of_peak(192) < 0.65
    assert 0.76 < share_of_peak(1024) < 0.8


def test_devices_share_a_batch(of):
    one, four = (cost_of(of("tecoa"), CostSettings(peak=1e12, gpus=gpus)) for gpus in (1, 4))
    assert four.step_operations == one.step_operations
    assert four.step_seconds["attack"] == pytest.approx(one.step_seconds["attack"] / 4)
    image, _ = tower_sizes(paper_model(read_architecture(of("tecoa").model), "tiny").clip)
    assert four.communicated == pytest.approx(2 * 3 / 4 * 4 * image.parameters)
    assert four.memory["activations"] == pytest.approx(one.memory["activations"] / 4)
    assert four.memory["weights"] == one.memory["weights"]
    assert any("4 devices" in line for line in four.assumed)
    assert "communication" not in one.step_seconds


def test_a_sweep_and_validation_take_time_too(of):
    plain = cost_of(of("tecoa"), PAPER)
    swept = cost_of(of("tecoa", {"sweep": {"lr": [0.1, 0.2, 0.3], "steps": 2}}), PAPER)
    assert swept.steps == plain.steps + 6
    assert swept.images == plain.images + 48
    none = cost_of(of("tecoa", {"data.hold_out": 0}), PAPER)
    assert plain.operations > none.operations
    # 4 + 6 held-out images, two steps of attack in validation, one in training.
    image, _ = tower_sizes(paper_model(read_architecture(of("tecoa").model), "tiny").clip)
    found = plain.operations - none.operations
    least, most = (count * image.operations(Gradients.PIXELS) * 10 for count in (3, 6))
    assert least < found < most


def test_epochs_need_the_size_of_the_data(of, recipe):
    epochs = {"optimisation.steps": None, "optimisation.epochs": 3, "data.hold_out": 0}
    with pytest.raises(ConfigError, match=r"toy.*size is not known\.\nGive --samples N"):
        cost_of(of("tecoa", epochs), PAPER)
    cost = cost_of(of("tecoa", epochs), CostSettings(peak=1e12, samples=21))
    assert (cost.steps, cost.images) == (9, 63)
    known = {"data.train": "torchvision:ImageNet?root={data}&split=train", "data.hold_out": 167}
    assert cost_of(of("tecoa", epochs | known), PAPER).images == 3 * 1_281_000
    shots = {"data.shots": 16}
    assert cost_of(of("tecoa", epochs | shots), PAPER).images == 3 * 16 * 3


def test_classes_are_asked_for_where_they_are_encoded_at_every_step(of):
    unknown = {"data.class_names": None}
    with pytest.raises(ConfigError, match=r"number of classes of .*toy.* not known\.\nGive --classes N"):
        cost_of(of("apt", unknown), PAPER)
    few, many = (cost_of(of("apt", unknown), CostSettings(peak=1e12, classes=count)) for count in (48, 480))
    assert many.step_operations["classes"] == pytest.approx(10 * few.step_operations["classes"])
    assert many.memory["activations"] > few.memory["activations"]


def test_a_model_that_is_not_there_has_to_be_named(of):
    absent = of("tecoa", {"model": "hf-hub:somebody/model"})
    with pytest.raises(ConfigError, match=r"somebody/model.*not known before it is there\.\nName it: --architecture"):
        cost_of(absent, PAPER)
    named = cost_of(absent, CostSettings(peak=1e12, architecture="ViT-B-32"))
    assert named.step_operations == cost_of(of("tecoa", {"model": "open_clip:ViT-B-32/openai"}), PAPER).step_operations
    with pytest.raises(ConfigError, match=r'no architecture "ViT-B-33".*ViT-B-32'):
        cost_of(absent, CostSettings(peak=1e12, architecture="ViT-B-33"))
    with pytest.raises(ConfigError, match="what this image tower computes is not counted"):
        cost_of(absent, CostSettings(peak=1e12, architecture="RN50"))


@pytest.mark.parametrize("given", [{"peak": 0.0}, {"peak": float("nan")}, {"bandwidth": float("inf")}])
def test_rates_are_positive_numbers(given):
    with pytest.raises(ConfigError, match=f"--{next(iter(given))} is .*\nGive a positive number"):
        CostSettings(**given)


def test_no_more_devices_than_samples(of):
    with pytest.raises(ConfigError, match=r"--gpus 9 for parts of 8 samples\.\nGive at most one device a sample"):
        cost_of(of("tecoa"), CostSettings(peak=1e12, gpus=9))


def test_measured_rates_are_operations_over_time(monkeypatch, of):
    ran = []

    def half_a_second(run: Callable[[], object], device: str) -> float:
        ran.append(run())
        return 0.5

    monkeypatch.setattr("ironclip.training.cost_rates._median_seconds", half_a_second)
    monkeypatch.setattr("ironclip.training.cost_rates.matrix_rate", lambda dtype, device: 4e11)
    one = of("tecoa", {"optimisation.batch_size": 8})
    cost = cost_of(one, CostSettings())
    # A batch of 8 was timed as it is: two steps of an attack, one pass of a loss.
    assert cost.step_seconds["attack"] == pytest.approx(0.5 / 2)
    assert cost.step_seconds["loss"] == pytest.approx(0.5)
    assert any("400 GFLOP/s" in line for line in cost.assumed)


def test_stated_rates_know_float32():
    rates = StatedRates(1e12)
    assert "6.8%" in " ".join(rates.assumed())
