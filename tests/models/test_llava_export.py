"""A LLaVA on a tuned tower as a folder: nothing but the tower's weights is another."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from ironclip.errors import ConfigError, WeightsError
from ironclip.models.adapters import Adapters
from ironclip.models.llava import load_llava
from ironclip.models.llava_export import export_into_llava
from made_up_llava import TEMPLATE, write_llava

pytest.importorskip("transformers", reason='transformers is not installed: pip install "ironclip[hf]"')


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    return write_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture
def tuned(tiny_clip):
    return tiny_clip(seed=5)


def test_only_the_towers_weights_have_changed(stock, tuned, tmp_path, pixels):
    out = export_into_llava(tuned, stock, tmp_path / "out")
    assert {path.name for path in out.iterdir()} == {path.name for path in stock.iterdir()}
    for path in stock.iterdir():
        if path.suffix != ".safetensors":
            assert (out / path.name).read_bytes() == path.read_bytes()
    before, after = (load_file(folder / "model.safetensors") for folder in (stock, out))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("vision_tower." in name for name in changed)
    assert all(before[name].dtype == after[name].dtype for name in before)
    swapped, written = load_llava(stock, template=TEMPLATE), load_llava(out, template=TEMPLATE)
    swapped.replace_tower(tuned)
    asked = (["what is this ?"] * 4, ["a red dog"] * 4)
    with torch.no_grad():
        torch.testing.assert_close(written.loss(pixels, *asked), swapped.loss(pixels, *asked))


def test_weights_keep_their_own_precision_and_shards(stock, tuned, tmp_path):
    halves = tmp_path / "halves"
    halves.mkdir()
    for path in stock.iterdir():
        if path.suffix != ".safetensors":
            (halves / path.name).write_bytes(path.read_bytes())
    tensors = {name: value.half() for name, value in load_file(stock / "model.safetensors").items()}
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        save_file({name: tensors[name] for name in part}, halves / f"model-{number}-of-2.safetensors")
    out = export_into_llava(tuned, halves, tmp_path / "out")
    found = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        shard = load_file(out / f"model-{number}-of-2.safetensors")
        assert sorted(shard) == part
        found |= shard
    assert {value.dtype for value in found.values()} == {torch.float16}
    (name,) = (name for name in found if name.endswith("patch_embedding.weight"))
    assert torch.equal(found[name], tuned.clip.visual.conv1.weight.half())


def test_adapters_are_merged(stock, tuned, tmp_path, pixels):
    adapters = Adapters.drawn(tuned, 2, 0)
    with torch.no_grad():
        for number, parameter in enumerate(adapters.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    tuned.attach(adapters)
    written = load_llava(export_into_llava(tuned, stock, tmp_path / "out"), template=TEMPLATE)
    assert tuned.adapters is not None
    with torch.no_grad():
        expected = tuned.patch_tokens(pixels, layer=-2, projected=False)
        torch.testing.assert_close(written.visual_tokens(pixels), expected, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_refused_before_anything_is_written(stock, tiny_clip, tmp_path):
    out = tmp_path / "out"
    for vision, words in (
        ({"image_size": 40}, r"reads 40 pixels, the tower of .* 32\.\nTune a tower at 32"),
        ({"width": 128}, "hidden_size 128, not 64"),
    ):
        with pytest.raises(ConfigError, match=words):
            export_into_llava(tiny_clip(vision=vision), stock, out)
    spoilt = tmp_path / "spoilt"
    spoilt.mkdir()
    for path in stock.iterdir():
        (spoilt / path.name).write_bytes(path.read_bytes())
    tensors = load_file(spoilt / "model.safetensors")
    save_file({name: tensors[name] for name in tensors if "class_embedding" not in name}, spoilt / "model.safetensors")
    with pytest.raises(WeightsError, match=r"lacks 1 tensors of its tower \(embeddings.class_embedding\)"):
        export_into_llava(tiny_clip(), spoilt, out)
    (spoilt / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="holds no safetensors"):
        export_into_llava(tiny_clip(), spoilt, out)
    (spoilt / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(ConfigError, match='has model_type "blip"'):
        export_into_llava(tiny_clip(), spoilt, out)
    assert not out.exists()
