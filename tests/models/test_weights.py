"""Weights files: what is not weights, what does not fit, and what would run code is refused."""

from __future__ import annotations

import hashlib
import os
import pickle
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from ironclip.errors import ConfigError, WeightsError
from ironclip.models._weights import tensors_sha256
from ironclip.models.sources import WEIGHTS, load_model

PICKLED = "open_clip_pytorch_model.bin"


class RunsCode:
    """A pickle of this would make a folder when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def tensors(saved_clip) -> dict[str, torch.Tensor]:
    return load_file(saved_clip / WEIGHTS)


@pytest.mark.parametrize("filename", [WEIGHTS, PICKLED])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html>\n<html>404</html>", r"is an HTML page of 32 bytes, not the file itself.\n.*went wrong"),
        (b"\xef\xbb\xbf\n  <HTML lang=en>" + 4000 * b"x", r"is an HTML page of 4,020 bytes"),
        (b"version git-lfs/spec/v1\noid sha256:0123\nsize 19735114\n", r"is a git-LFS pointer of .*\n.*git lfs pull"),
        (b"", r"is empty.\n.*cut off"),
        (b'{"error": "Entry not found"}', r"is truncated or no (safetensors|PyTorch) file \(28 bytes"),
    ],
    ids=["html", "html with a byte order mark", "lfs", "empty", "json"],
)
def test_a_download_gone_wrong_is_named(folder, filename, content, words):
    place = folder()
    (place / WEIGHTS).unlink()
    (place / filename).write_bytes(content)
    with pytest.raises(WeightsError, match=words):
        load_model(f"local-dir:{place}")


@pytest.mark.parametrize("keep", [4, 200, 100_000])
@pytest.mark.parametrize("filename", [WEIGHTS, PICKLED])
def test_a_truncated_file_is_named(folder, tensors, filename, keep):
    place = folder()
    if filename == PICKLED:
        torch.save(tensors, place / PICKLED)
        (place / WEIGHTS).unlink()
    content = (place / filename).read_bytes()
    (place / filename).write_bytes(content[:keep])
    with pytest.raises(WeightsError, match=rf"is truncated or no .* file \({keep:,} bytes"):
        load_model(f"local-dir:{place}")


def test_a_pickle_that_would_run_code_is_refused_unrun(folder, tensors, tmp_path):
    place = folder()
    (place / WEIGHTS).unlink()
    torch.save({"state_dict": tensors, "extra": RunsCode(str(tmp_path / "was run"))}, place / PICKLED)
    with pytest.raises(
        WeightsError, match=r"holds Python objects besides tensors, which could run code when loaded.\n.*safetensors"
    ):
        load_model(f"local-dir:{place}")
    (place / PICKLED).write_bytes(pickle.dumps(RunsCode(str(tmp_path / "was run")), protocol=2))
    with pytest.raises(WeightsError, match="no PyTorch file"):
        load_model(f"local-dir:{place}")
    assert not (tmp_path / "was run").exists()


def test_a_torchscript_program_is_refused(folder):
    place = folder()
    (place / WEIGHTS).unlink()
    with warnings.catch_warnings(action="ignore"):  # torch discourages what it has to read
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), place / PICKLED)
    with pytest.raises(WeightsError, match="holds a TorchScript program, which could run code"):
        load_model(f"local-dir:{place}")


@pytest.mark.parametrize("content", [[1, 2], {"weights": "none"}, torch.zeros(3)], ids=["list", "words", "tensor"])
def test_a_file_without_tensors_by_name_is_refused(folder, content):
    place = folder()
    (place / WEIGHTS).unlink()
    torch.save(content, place / PICKLED)
    with pytest.raises(WeightsError, match="holds no tensors by name"):
        load_model(f"local-dir:{place}")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {"epoch": 3, "state_dict": tensors},
        lambda tensors: {"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}},
        lambda tensors: tensors | {"logit_scale": tensors["logit_scale"].reshape(1)},
    ],
    ids=["checkpoint", "data parallel", "scale of one axis"],
)
def test_training_checkpoints_load(folder, tensors, wrap):
    place = folder()
    (place / WEIGHTS).unlink()
    torch.save(wrap(tensors), place / PICKLED)
    loaded = load_model(f"local-dir:{place}").clip.state_dict()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_openais_own_files_need_quickgelu(folder, tensors):
    sizes = {
        "input_resolution": torch.tensor(32),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
    }
    for quick_gelu in (True, False):
        place = folder(str(quick_gelu), model={"quick_gelu": quick_gelu})
        save_file(tensors | sizes, place / WEIGHTS)
        if quick_gelu:
            load_model(f"local-dir:{place}")
        else:
            with pytest.raises(ConfigError, match="with GELU, but OpenAI's weights were trained with QuickGELU"):
                load_model(f"local-dir:{place}")


def test_weights_that_do_not_fit_are_counted_and_named(folder, tensors):
    place, count = folder(), len(tensors)
    for name in ("visual.proj", "ln_final.bias", "visual.ln_pre.weight", "visual.ln_pre.bias"):
        del tensors[name]
    tensors["visual.head.weight"] = torch.zeros(2)
    tensors["text_projection"] = torch.zeros(32, 8)
    save_file(tensors, place / WEIGHTS)
    with pytest.raises(WeightsError) as caught:
        load_model(f"local-dir:{place}")
    problem = caught.value.problem
    assert f"does not fit its architecture of {count} tensors" in problem
    named = problem.partition("4 missing (")[2].partition(")")[0]
    assert named.endswith(", …")
    assert set(named.removesuffix(", …").split(", ")) < {
        "visual.proj",
        "ln_final.bias",
        "visual.ln_pre.weight",
        "visual.ln_pre.bias",
    }
    assert "1 unexpected (visual.head.weight)" in problem
    assert "1 of another shape (text_projection (32, 8), expected (32, 16))" in problem
    assert "configuration belongs to these weights" in caught.value.remedy


def test_siglip_weights_are_refused(folder, tensors):
    place = folder()
    save_file(tensors | {"logit_bias": torch.tensor(-10.0)}, place / WEIGHTS)
    with pytest.raises(WeightsError, match=r"holds a logit bias \(SigLIP\)"):
        load_model(f"local-dir:{place}")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(folder, tensors, value):
    place = folder()
    tensors["visual.proj"][3, 4] = value
    save_file(tensors, place / WEIGHTS)
    with pytest.raises(WeightsError, match=r"NaN or infinite weights: visual.proj"):
        load_model(f"local-dir:{place}")


def test_a_custom_text_tower_takes_weights_of_old_names(folder, tensors, pixels, tiny_clip):
    place = folder(model={"custom_text": True})
    model = load_model(f"local-dir:{place}")
    assert torch.equal(model.clip.text.token_embedding.weight, tensors["token_embedding.weight"])
    tokens = model.tokenize(["a dog"])
    torch.testing.assert_close(model.embed_text(tokens), tiny_clip().embed_text(tokens), rtol=0, atol=1e-5)


def test_the_hash_of_tensors_is_of_names_types_shapes_and_bytes():
    tensors = {"b": torch.arange(4.0).view(2, 2), "a": torch.tensor(1, dtype=torch.int64)}
    by_hand = b"a\ttorch.int64\t()\n" + (1).to_bytes(8, "little")
    by_hand += b"b\ttorch.float32\t(2, 2)\n" + torch.arange(4.0).numpy().tobytes()
    assert tensors_sha256(tensors) == hashlib.sha256(by_hand).hexdigest()
    assert tensors_sha256(dict(reversed(tensors.items()))) == tensors_sha256(tensors)
    changes = [
        {"c": tensors["b"], "a": tensors["a"]},
        tensors | {"b": tensors["b"].half()},
        tensors | {"b": tensors["b"].view(4)},
        tensors | {"b": tensors["b"] + 1e-6},
    ]
    assert len({tensors_sha256(tensors), *map(tensors_sha256, changes)}) == 5
    transposed = torch.arange(6.0).view(2, 3).T
    assert tensors_sha256({"t": transposed}) == tensors_sha256({"t": transposed.contiguous()})
