"""`ironclip export` and `ironclip import`, from the words of the user to the folder."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from ironclip.models.sources import load_model, save_model
from made_up_llava import write_llava


@pytest.fixture
def run(ironclip, recipe_file, data_root, tmp_path):
    result = ironclip("train", recipe_file(), "--data-root", data_root, "--out", "run")
    assert result.code == 0, result.err
    return tmp_path / "run"


def weights(folder):
    return load_file(folder / "open_clip_model.safetensors")


def test_a_run_is_exported_and_imported_again(ironclip, run, tmp_path, pixels):
    for layout in ("open_clip", "transformers"):
        result = ironclip("export", "run", f"out/{layout}", "--format", layout)
        assert result.code == 0, result.err
        assert f"Done: out/{layout}. Load it with {layout}." in result.out
        again, model = load_model(f"local-dir:out/{layout}"), load_model("run")
        assert torch.equal(again.embed_image(pixels), model.embed_image(pixels))
    told = json.loads(ironclip("export", "run", "out/json", "--json").out)
    assert told["model"] == "out/json"
    assert told["load"] == 'open_clip.create_model_and_transforms("local-dir:out/json")'


def test_robust_weight_on_the_command_line(ironclip, run, model_folder):
    for weight, end in (("0", model_folder), ("1", run / "model")):
        assert ironclip("export", "run", f"at-{weight}", "--robust-weight", weight).code == 0
        exported, expected = weights(run.parent / f"at-{weight}"), weights(end)
        assert exported.keys() == expected.keys()
        assert all(torch.equal(exported[name], expected[name]) for name in expected)
    words = ("--robust-weight", 0.5, "--original", f"local-dir:{model_folder}")
    assert ironclip("export", f"local-dir:{run}/model", "half", *words).code == 0
    ends = weights(model_folder)["visual.proj"], weights(run / "model")["visual.proj"]
    torch.testing.assert_close(weights(run.parent / "half")["visual.proj"], (ends[0] + ends[1]) / 2)


def test_weights_between_can_be_evaluated(ironclip, run, suite_file, data_root):
    words = ("--data-root", data_root, "--limit", 16, "--attack", "fgsm", "--eps", "2/255", "--json")
    suite = suite_file(["blue", "green", "red"])
    result = ironclip("eval", "run:run?robust_weight=0.5", "--suite", suite, *words)
    assert result.code == 0, result.err
    told = json.loads(result.out)
    record = json.loads((run.parent / told["run"] / "run.json").read_text())
    assert record["model"]["source"] == "run:run?robust_weight=0.5"
    assert record["model"]["sha256"] == load_model("run:run?robust_weight=0.5").spec.sha256


def test_a_published_checkpoint_becomes_a_model(ironclip, tiny_clip, tmp_path, pixels):
    base, robust = tiny_clip(quick_gelu=True), tiny_clip(quick_gelu=True, seed=1)
    save_model(base, tmp_path / "base")
    torch.save(robust.visual.state_dict(), tmp_path / "fare_eps_2.pt")
    words = ("fare_eps_2.pt", "fare", "--format", "robustvlm", "--base", "local-dir:base")
    result = ironclip("import", *words)
    assert result.code == 0, result.err
    assert "read with weights_only=True, which loads tensors and runs no code" in result.err
    assert "Measure it: ironclip eval local-dir:fare" in result.out
    assert torch.equal(load_model("local-dir:fare").embed_image(pixels), robust.embed_image(pixels))
    again = ironclip("import", *words)
    assert again.code == 2
    assert "fare is not empty" in again.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("export", "tiny", "out", "--original", "tiny"), "--original without --robust-weight."),
        (("export", "tiny", "out", "--robust-weight", "0.5"), "tiny does not say which model it was tuned from."),
        (("export", "tiny", "out", "--robust-weight", "2", "--original", "tiny"), "robust weight 2, expected a number"),
        (("export", "tiny", "out", "--format", "onnx"), "'onnx' is not one of 'open_clip', 'transformers'"),
        (("import", "x.pt", "out", "--format", "fare", "--base", "tiny"), "'fare' is not one of 'robustvlm', 'agft'"),
        (("import", "x.pt", "out", "--format", "agft", "--base", "tiny"), "the base tiny has GELU"),
    ],
)
def test_what_is_wrong_is_said(ironclip, words, said):
    result = ironclip(*words)
    assert result.code == 2
    assert said in " ".join(result.err.replace("│", " ").split())


def test_the_formats_are_those_of_the_library(ironclip):
    from ironclip.models.export import LAYOUTS
    from ironclip.models.published import LAYOUTS as PUBLISHED

    for command, layouts in (("export", LAYOUTS), ("import", PUBLISHED)):
        text = " ".join(ironclip(command, "--help").out.split())
        assert f"<{'|'.join(layouts)}>" in text


def test_two_runs_become_one_model(ironclip, model_folder, tmp_path, pixels):
    other = load_model(f"local-dir:{model_folder}")
    with torch.no_grad():
        for parameter in other.clip.parameters():
            parameter.mul_(1.1)
    save_model(other, tmp_path / "other")
    result = ironclip("export", f"local-dir:{model_folder}", "joined", "--text-from", "local-dir:other")
    assert result.code == 0, result.err
    joined, image = load_model("local-dir:joined"), load_model(f"local-dir:{model_folder}")
    assert torch.equal(joined.embed_image(pixels), image.embed_image(pixels))
    assert torch.equal(joined.embed_text(["a dog"]), other.embed_text(["a dog"]))


def test_a_llava_gets_another_tower(ironclip, tiny_clip, tmp_path):
    pytest.importorskip("transformers", reason='transformers is not installed: pip install "ironclip[hf]"')
    write_llava(tmp_path / "llava")
    save_model(tiny_clip(seed=4), tmp_path / "tuned")
    result = ironclip("export", "local-dir:tuned", "out", "--into", "llava")
    assert result.code == 0, result.err
    assert 'Load it with transformers.LlavaForConditionalGeneration.from_pretrained("out")' in result.out
    assert (tmp_path / "out" / "config.json").read_bytes() == (tmp_path / "llava" / "config.json").read_bytes()
    refused = ironclip("export", "local-dir:tuned", "out2", "--into", "llava", "--format", "transformers")
    assert (refused.code, "--into with --format" in refused.err) == (2, True)
