"""Model sources: every kind loads to the right numbers, or is refused with what to do."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file

from ironclip.errors import ConfigError, IronClipError, RegistryError, WeightsError
from ironclip.models import _weights, sources
from ironclip.models.preprocessing import Preprocessing
from ironclip.models.sources import CONFIG, WEIGHTS, load_model, save_model
from made_up_images import natural_like, to_pil

SHARED = Path(__file__).parents[3] / "shared" / "models" / "tiny-trial"
TEXTS = ["a photo of a dog.", "a drawing of a cup"]


def stock_logits(place: Path, pixels: torch.Tensor) -> torch.Tensor:
    """Load a folder with open_clip alone and score pixels against `TEXTS`."""
    clip, _, _ = open_clip.create_model_and_transforms(f"local-dir:{place}")
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (clip.visual.image_mean, clip.visual.image_std))
    with torch.no_grad():
        image, text, scale = clip.eval()((pixels - mean) / std, open_clip.tokenize(TEXTS))
    return scale * image @ text.T


def our_logits(model, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.logit_scale * model.image_features(pixels) @ model.text_features(TEXTS).T


# Folders


def test_a_saved_model_comes_back_bit_for_bit(tiny_clip, tmp_path):
    model = tiny_clip(quick_gelu=True)
    sha256 = save_model(model, tmp_path / "a" / "b")
    loaded = load_model(f"local-dir:{tmp_path}/a/b")
    before, after = model.clip.state_dict(), loaded.clip.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert loaded.spec.architecture == model.spec.architecture
    assert loaded.spec.preprocessing == model.spec.preprocessing
    assert loaded.spec.origin == f"local-dir:{tmp_path}/a/b"
    assert loaded.spec.sha256 == sha256 == hashlib.sha256((tmp_path / "a" / "b" / WEIGHTS).read_bytes()).hexdigest()
    assert not loaded.training


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("fast", [True, False])
def test_stock_open_clip_loads_what_we_save_to_the_same_logits(tiny_clip, tmp_path, pixels, quick_gelu, fast):
    save_model(tiny_clip(quick_gelu=quick_gelu), tmp_path)
    model = load_model(f"local-dir:{tmp_path}", fast=fast)
    assert model.fast_path == ("on" if fast else "switched off")
    torch.testing.assert_close(our_logits(model, pixels), stock_logits(tmp_path, pixels), rtol=0, atol=1e-4)


def test_preprocessing_is_saved_with_the_model(tiny_clip, tmp_path):
    model = tiny_clip()
    preprocessing = Preprocessing(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear", "squash")
    model.spec = type(model.spec)("x", model.spec.architecture, "", preprocessing)
    save_model(model, tmp_path)
    assert load_model(f"local-dir:{tmp_path}").spec.preprocessing == preprocessing
    _, stock = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}")
    image = to_pil(natural_like(1, 50, 40)[0])
    ours = preprocessing.normalise(model.spec.preprocessing.from_pil(image))
    torch.testing.assert_close(ours, stock(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_weights_load_into_float32_masters(tiny_clip, tmp_path, pixels, dtype):
    model = tiny_clip()
    save_model(model, tmp_path, dtype=dtype)
    stored = load_file(tmp_path / WEIGHTS)
    assert stored["visual.proj"].dtype == dtype
    assert stored["logit_scale"].dtype == torch.float32  # in float16 it would scale every logit by another factor
    loaded = load_model(f"local-dir:{tmp_path}")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.visual.proj, model.visual.proj.to(dtype).float())
    assert loaded.logit_scale.item() == model.logit_scale.item()


def test_saving_again_replaces_the_model_and_leaves_nothing_else(tiny_clip, tmp_path):
    save_model(tiny_clip(), tmp_path)
    second = tiny_clip(seed=1)
    save_model(second, tmp_path)
    assert torch.equal(load_model(f"local-dir:{tmp_path}").visual.proj, second.visual.proj)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, WEIGHTS]


def test_a_save_that_fails_leaves_the_old_model(tiny_clip, tmp_path, monkeypatch):
    first = tiny_clip()
    save_model(first, tmp_path)

    def disk_full(tensors, path, **_):
        Path(path).write_bytes(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(_weights, "save_file", disk_full)
    with pytest.raises(OSError, match="No space left"):
        save_model(tiny_clip(seed=1), tmp_path)
    assert torch.equal(load_model(f"local-dir:{tmp_path}").visual.proj, first.visual.proj)


@pytest.mark.parametrize("form", ["run:{}", "{}"])
def test_the_folder_of_a_run_loads_its_model(tmp_path, folder, form):
    place = folder("run/model")
    (tmp_path / "run" / "run.json").write_text("{}")
    source = form.format(tmp_path / "run")
    model = load_model(source)
    assert model.spec.origin == source
    assert model.spec.sha256 == load_model(f"local-dir:{place}").spec.sha256


def test_a_models_folder_needs_no_kind(folder):
    place = folder()
    assert load_model(str(place)).spec.sha256 == load_model(f"local-dir:{place}").spec.sha256


def test_an_unfinished_run_says_how_to_finish_it(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"has no model yet.\n.*ironclip train"):
        load_model(f"run:{tmp_path}")


def test_folders_without_a_model_say_what_they_hold(tmp_path, folder):
    with pytest.raises(WeightsError, match=r"neither a run \(run.json\) nor a model"):
        load_model(str(tmp_path))
    with pytest.raises(WeightsError, match=r"has no open_clip_config.json \(it is empty\)"):
        load_model(f"local-dir:{tmp_path}")
    place = folder()
    (place / WEIGHTS).rename(place / "epoch_9.pt")
    with pytest.raises(
        WeightsError, match=r"has no open_clip_model.safetensors or open_clip_pytorch_model.bin \(.*epoch_9.pt"
    ):
        load_model(f"local-dir:{place}")
    with pytest.raises(WeightsError, match=r"folder .*nowhere does not exist"):
        load_model(f"local-dir:{tmp_path}/nowhere")
    with pytest.raises(WeightsError, match=r"is a file"):
        load_model(f"local-dir:{place / CONFIG}")


def test_the_trial_model_loads_as_published(pixels):
    if not SHARED.is_dir():
        pytest.skip("the trial model lies in ../shared of the place of development")
    model = load_model(f"local-dir:{SHARED}")
    assert model.spec.sha256 == "bda6bfa06ee386b07c6f4e823ac26f439918701c5456cdf40d2e39a7753187bf"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.logit_scale.item() == pytest.approx(22.9, abs=0.1)
    assert model.fast_path == "on"
    torch.testing.assert_close(our_logits(model, pixels), stock_logits(SHARED, pixels), rtol=0, atol=1e-4)


# open_clip's own names


@pytest.fixture
def known_to_open_clip(monkeypatch, tiny_clip, saved_clip) -> None:
    """Enter the tiny CLIP into open_clip's tables, with weights on this machine."""
    architecture = tiny_clip().spec.architecture
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Tiny-8", architecture)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Tiny-8-quickgelu", architecture | {"quick_gelu": True})
    weights = {"file": str(saved_clip / WEIGHTS), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    tags = {"laion9": weights, "openai": weights | {"quick_gelu": True}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Tiny-8", tags)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Tiny-8-quickgelu", tags)


@pytest.mark.usefixtures("known_to_open_clip")
def test_a_pretrained_tag_loads_with_its_own_preprocessing(saved_clip):
    model = load_model("open_clip:Tiny-8/laion9")
    assert model.spec.preprocessing == Preprocessing(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    expected = load_file(saved_clip / WEIGHTS)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.clip.state_dict().items())
    assert model.spec.origin == "open_clip:Tiny-8/laion9"


@pytest.mark.usefixtures("known_to_open_clip")
def test_the_other_activation_is_an_error_where_open_clip_only_warns():
    with pytest.raises(
        ConfigError, match=r"with GELU, but the weights openai were trained with QuickGELU.*\n.*Tiny-8-quickgelu/openai"
    ):
        load_model("open_clip:Tiny-8/openai")
    with pytest.raises(
        ConfigError, match=r"with QuickGELU, but the weights laion9 were trained with GELU.*\n.*open_clip:Tiny-8/laion9"
    ):
        load_model("open_clip:Tiny-8-quickgelu/laion9")
    assert load_model("open_clip:Tiny-8-quickgelu/openai").spec.architecture["quick_gelu"] is True


def test_every_pair_of_open_clip_is_either_right_or_refused_before_a_download(monkeypatch):
    class ReachedDownload(Exception):
        pass

    def stop(source, settings):
        raise ReachedDownload

    monkeypatch.setattr(sources, "_download", stop)
    pairs = open_clip.list_pretrained()
    outcomes = dict.fromkeys(pairs, "")
    for name, tag in pairs:
        try:
            load_model(f"open_clip:{name}/{tag}")
        except ReachedDownload:
            outcomes[name, tag] = "loads"
        except ConfigError as error:
            outcomes[name, tag] = error.problem
            if "QuickGELU" in error.problem:
                advised = error.remedy.removeprefix("Write open_clip:").removesuffix(".")
                assert tuple(advised.split("/")) in pairs, advised
    assert outcomes["ViT-B-32", "laion2b_s34b_b79k"] == outcomes["ViT-B-32-quickgelu", "openai"] == "loads"
    assert "QuickGELU" in outcomes["ViT-B-32", "openai"]
    assert "QuickGELU" in outcomes["ViT-H-14-378", "dfn5b"]
    assert "SigLIP" in outcomes["ViT-B-16-SigLIP", "webli"]
    assert "CoCa" in outcomes["coca_ViT-B-32", "laion2b_s13b_b90k"]
    assert "of transformers" in outcomes["xlm-roberta-base-ViT-B-32", "laion5b_s13b_b90k"]
    for (name, tag), outcome in outcomes.items():
        configured = bool(open_clip.get_model_config(name).get("quick_gelu"))
        trained = bool(open_clip.pretrained.get_pretrained_cfg(name, tag).get("quick_gelu"))
        assert not (outcome == "loads" and configured != trained), (name, tag)


@pytest.mark.usefixtures("known_to_open_clip")
@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        (
            "open_clip:Tiny-8",
            ConfigError,
            r"names no weights.\n.*Tiny-8/TAG \(laion9, openai\), or open_clip:Tiny-8/random",
        ),
        (
            "open_clip:Tiny-8/laion8",
            RegistryError,
            r'no weights "laion8" for Tiny-8. Did you mean "laion9".*\n.*laion9, openai',
        ),
        ("open_clip:ViTB32/openai", RegistryError, r'no architecture "ViTB32". Did you mean "ViT-B-32"'),
        ("open_clip:ViT-B32", RegistryError, r'no architecture "ViT-B32". Did you mean "ViT-B-32"'),
        ("open_clip:Tiny-8/random?sede=1", RegistryError, r'no weights "random\?sede=1".*\n.*random\?seed=0'),
        ("ViT-B-32", ConfigError, r"architecture without weights.\n.*open_clip:ViT-B-32/TAG"),
        ("local:x", ConfigError, r'neither a folder nor a source.*Did you mean "local-dir"'),
        ("./nowhere", ConfigError, r"neither a folder nor a source of a kind that is known: .*hf-hub"),
        ("hf-hub:", ConfigError, "ends after its kind"),
        ("python:torch:relu", ConfigError, "is a classifier, not a CLIP model"),
    ],
)
def test_a_source_that_names_no_model_is_refused(source, error, words):
    with pytest.raises(error, match=words) as caught:
        load_model(source)
    assert isinstance(caught.value, IronClipError)
    assert caught.value.remedy


@pytest.mark.usefixtures("known_to_open_clip")
def test_random_weights_are_a_function_of_the_seed_and_say_so(caplog, tiny_clip):
    with caplog.at_level(logging.WARNING):
        model = load_model("open_clip:Tiny-8/random?seed=7")
    assert "has random weights (seed 7)" in caplog.text
    assert model.spec.origin == "open_clip:Tiny-8/random?seed=7"
    again, other = load_model("open_clip:Tiny-8/random?seed=7"), load_model("open_clip:Tiny-8/random")
    assert other.spec.origin == "open_clip:Tiny-8/random?seed=0"
    assert model.spec.sha256 == again.spec.sha256 != other.spec.sha256
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        stock = open_clip.CLIP(**tiny_clip().spec.architecture)
    assert all(torch.equal(tensor, model.clip.state_dict()[name]) for name, tensor in stock.state_dict().items())


@pytest.mark.usefixtures("known_to_open_clip")
def test_loading_touches_no_global_random_state(folder):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    load_model("open_clip:Tiny-8/random?seed=7")
    load_model(f"local-dir:{folder()}")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert random.getstate() == before[2]


# QuickGELU in folders


@pytest.mark.parametrize(
    "hint",
    [
        {"_name_or_path": "ViT-B-32-quickgelu"},
        {"model_name": "timm/vit_base_patch32_clip_224.openai"},
        {"name": "ViT-L-14/metaclip_400m"},
    ],
)
def test_a_configuration_whose_own_name_needs_quickgelu_is_refused(folder, hint):
    with pytest.raises(
        ConfigError, match=r"configured with GELU, but .* trained with QuickGELU.*\n.*\"quick_gelu\": true"
    ):
        load_model(f"local-dir:{folder(top=hint)}")


def test_a_folder_whose_name_needs_quickgelu_is_refused(folder):
    with pytest.raises(ConfigError, match='configured with GELU, but weights called "ViT-B-32-quickgelu"'):
        load_model(f"local-dir:{folder('ViT-B-32-quickgelu')}")


def test_a_configuration_whose_own_name_needs_gelu_is_refused(folder):
    place = folder(model={"quick_gelu": True}, top={"_name_or_path": "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"})
    with pytest.raises(ConfigError, match=r'with QuickGELU, but open_clip\'s .* with GELU.*\n.*"quick_gelu": false'):
        load_model(f"local-dir:{place}")


@pytest.mark.parametrize("name", ["ViT-B-32", "my own clip", "openai"])
def test_names_that_tell_nothing_are_no_hindrance(folder, name):
    for quick_gelu in (True, False):
        place = folder(f"{quick_gelu}/{name}", model={"quick_gelu": quick_gelu}, top={"_name_or_path": name})
        assert load_model(f"local-dir:{place}").spec.architecture["quick_gelu"] is quick_gelu


def test_a_right_hint_is_no_hindrance(folder):
    load_model(f"local-dir:{folder('ViT-B-32-quickgelu', model={'quick_gelu': True})}")


# The hub


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    """Give an empty cache of the hub, and no way to the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def into_cache(cache: Path, repository: str, place: Path) -> Path:
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    shutil.move(place, snapshot)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)
    return snapshot


def pickled(place: Path) -> None:
    """Replace a folder's safetensors by a PyTorch file."""
    torch.save(load_file(place / WEIGHTS), place / "open_clip_pytorch_model.bin")
    (place / WEIGHTS).unlink()


def test_a_hub_repository_loads_from_the_cache(hub_cache, folder, tiny_clip, pixels):
    place = into_cache(hub_cache, "org/robust", folder())
    torch.save({}, place / "open_clip_pytorch_model.bin")  # not even looked at: safetensors come first
    model = load_model("hf-hub:org/robust")
    assert model.spec.origin == "hf-hub:org/robust"
    torch.testing.assert_close(model.embed_image(pixels), tiny_clip().embed_image(pixels), rtol=0, atol=0)


def test_a_hub_repository_with_a_pickle_is_read_without_running_it(hub_cache, folder, tiny_clip, pixels, caplog):
    place = folder()
    pickled(place)
    into_cache(hub_cache, "org/old", place)
    with caplog.at_level(logging.WARNING):
        model = load_model("hf-hub:org/old")
    assert "open_clip_pytorch_model.bin is a pickle: it is read with weights_only=True" in caplog.text
    torch.testing.assert_close(model.embed_image(pixels), tiny_clip().embed_image(pixels), rtol=0, atol=0)


@pytest.mark.usefixtures("hub_cache")
def test_what_the_cache_lacks_is_named_when_the_hub_is_out_of_reach():
    with pytest.raises(
        WeightsError,
        match=r"no open_clip_config.json in the local cache, and the hub gives none: .*offline.*\n.*local-dir:",
    ):
        load_model("hf-hub:org/other")


def test_a_half_downloaded_repository_is_named(hub_cache, folder):
    (into_cache(hub_cache, "org/half", folder()) / WEIGHTS).unlink()
    with pytest.raises(WeightsError, match=r"no open_clip_model.safetensors or .* in the local cache"):
        load_model("hf-hub:org/half")


@pytest.mark.usefixtures("hub_cache")
def test_a_name_that_no_repository_has_is_refused():
    with pytest.raises(ConfigError, match=r"hf-hub:a/b/c: .*\n.*hf-hub:ORG/NAME"):
        load_model("hf-hub:a/b/c")


@pytest.mark.parametrize(("quick_gelu", "fits"), [(True, True), (False, False)])
def test_a_known_repository_needs_the_activation_that_open_clip_knows(hub_cache, folder, quick_gelu, fits):
    into_cache(hub_cache, "timm/vit_base_patch32_clip_224.openai", folder(model={"quick_gelu": quick_gelu}))
    source = "hf-hub:timm/vit_base_patch32_clip_224.openai"
    if fits:
        load_model(source)
    else:
        with pytest.raises(
            ConfigError, match=r"with GELU, but open_clip's ViT-B-32.*/openai were trained with QuickGELU"
        ):
            load_model(source)


# Configurations


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"init_logit_bias": -10}, "is a SigLIP model"),
        ({"multimodal_cfg": {}}, "is a CoCa model"),
        (
            {"text_cfg": {"hf_model_name": "org/bert"}},
            r'needs "org/bert" of transformers.\n.*own text tower and tokenizer',
        ),
        ({"text_cfg": {"hf_tokenizer_name": "org/words"}}, 'needs "org/words" of transformers'),
        ({"quick_gleu": True}, r'unknown key "quick_gleu" in the architecture. Did you mean "quick_gelu"'),
        (
            {"vision_cfg": {"patchsize": 8}},
            r'unknown key "vision_cfg.patchsize".* Did you mean "patch_size".*\n.*open_clip \d',
        ),
        ({"text_cfg": None}, "has no text_cfg"),
        ({"vision_cfg": {"width": 64, "head_width": 20}}, "open_clip cannot build the architecture .* divisible"),
    ],
)
def test_an_architecture_that_is_not_served_is_refused(folder, model, words):
    with pytest.raises(ConfigError, match=words):
        load_model(f"local-dir:{folder(model=model)}")


def test_an_oblong_tower_is_refused(tiny_clip):
    with pytest.raises(ConfigError, match=r"reads \(32, 64\) pixels"):
        tiny_clip(vision={"image_size": [32, 64]})


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        ("<!DOCTYPE html><html>Sign in</html>", WeightsError, "is an HTML page of 35 bytes"),
        ("{'model_cfg': 1}", ConfigError, "is not JSON"),
        ("[1, 2]", ConfigError, "holds a list, expected a JSON object"),
        ("{}", ConfigError, "has no model_cfg"),
        ('{"model_cfg": {}}', ConfigError, "has no vision_cfg, text_cfg"),
        ('{"model_cfg": {"vision_cfg": {}, "text_cfg": {}}}', ConfigError, "has no embed_dim"),
        ("", WeightsError, "is empty"),
    ],
)
def test_a_broken_configuration_is_refused(folder, content, error, words):
    place = folder()
    (place / CONFIG).write_text(content)
    with pytest.raises(error, match=words):
        load_model(f"local-dir:{place}")


def test_an_unknown_kernel_is_refused(folder):
    place = folder(top={"preprocess_cfg": {"interpolation": "random"}})
    with pytest.raises(ConfigError, match="serves bicubic or bilinear"):
        load_model(f"local-dir:{place}")


def test_a_configuration_without_preprocessing_means_clips_own(folder):
    place = folder()
    config = json.loads((place / CONFIG).read_text())
    del config["preprocess_cfg"]
    (place / CONFIG).write_text(json.dumps(config))
    assert load_model(f"local-dir:{place}").spec.preprocessing == Preprocessing(32)


# Devices


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("gpu", r'"gpu" is no device.\n.*"cpu", "cuda"'),
        ("cuda:99", r'device "cuda:99" asked for, this machine has \d+ CUDA'),
    ],
)
def test_a_device_that_is_not_there_is_refused(saved_clip, device, words):
    with pytest.raises(ConfigError, match=words):
        load_model(f"local-dir:{saved_clip}", device=device)


def test_tiny_is_the_bundled_model():
    model = load_model("tiny")
    assert model.spec.origin == "tiny"
    assert model.input_resolution == 32
    with pytest.raises(ConfigError, match="says more than"):
        load_model("tiny:small")
