"""The independent check finds each kind of violation, and knows nothing of IronCLIP."""

from __future__ import annotations

import ast
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_weights

from acceptance import check_adversarials

NAMES = ["cat", "dog", "ship", "frog"]
TEMPLATES = ["a photo of a {}.", "a {}."]
UNIT = "unit"
ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def pool() -> np.ndarray:
    """Forty images of one colour each and noise, 8-bit `[40, 16, 16, 3]`."""
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (40, 1, 1, 3))
    return np.clip(colours + random.integers(-60, 60, (40, 16, 16, 3)), 0, 255).astype(np.uint8)


def as_pixels(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32) / 255


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = open_clip.CLIP(**ARCHITECTURE)
    # A random tower says nearly the same of all images; without what they share, they differ.
    with torch.no_grad():
        shared = clip.encode_image(torch.from_numpy(as_pixels(pool()))).mean(dim=0)
        clip.visual.ln_post.bias -= shared @ torch.linalg.pinv(clip.visual.proj)
    tensors = {name: tensor.contiguous() for name, tensor in clip.state_dict().items()}
    save_weights(tensors, folder / "open_clip_model.safetensors")
    config = {"model_cfg": ARCHITECTURE, "preprocess_cfg": {"size": 16}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


class Stage:
    """Run folder, shards and model in which all holds; `images` are originals, `attacked` what became of them."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        images, pixels = pool(), as_pixels(pool())
        self.shards = folder / "made-up"
        self.shards.mkdir()
        (self.shards / "classes.txt").write_text("\n".join(NAMES) + "\n")
        (self.shards / "templates.json").write_text(json.dumps(TEMPLATES))
        found = check_adversarials.Stock(model, NAMES, TEMPLATES).predict(pixels)
        # The label is what the model says, and another image, of which it says something else, is the adversarial one.
        pairs = [(i, int(np.flatnonzero(found != found[i])[0])) for i in range(40) if (found != found[i]).any()][:6]
        assert len(pairs) == 6
        self.labels = [int(found[i]) for i, _ in pairs]
        self.images = [images[i] for i, _ in pairs]
        self.attacked = np.stack([pixels[j] for _, j in pairs])
        self.flags = [{"pred_clean": label, "broken": True} for label in self.labels]
        self.eps = "255/255"

    def key(self, number: int) -> str:
        return f"made-up/test/{number:06}"

    def counts(self) -> dict[str, int]:
        """Return what is wrong, by kind."""
        kinds = ("outside_ball", "outside_box", "other_label", "original_not_right", "not_flipped")
        found = self.checked()
        return {kind: found[kind] for kind in kinds if found[kind]}

    def checked(self) -> dict[str, int]:
        """Write it all and return what the script says."""
        run = self.folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        for part in ("adversarials", "samples"):
            (run / part / UNIT).mkdir(parents=True)
        threat = {"record": {"norm": "linf", "eps": self.eps}}
        (run / "run.json").write_text(json.dumps({"units": {UNIT: {"threat": threat}}}))
        keys = [self.key(number) for number in range(len(self.images))]
        tensors = {"adversarial": self.attacked, "clean": self.attacked}
        place = run / "adversarials" / UNIT / "0.safetensors"
        save_file(tensors, place, metadata={"keys": json.dumps(keys)})
        rows = [
            {"sample_id": key, "y": y, **flags} for key, y, flags in zip(keys, self.labels, self.flags, strict=True)
        ]
        pq.write_table(pa.Table.from_pylist(rows), run / "samples" / UNIT / "0.parquet")
        with tarfile.open(self.shards / "test-0000.tar.gz", "w:gz") as tar:
            for number, (image, label) in enumerate(zip(self.images, self.labels, strict=True)):
                encoded = io.BytesIO()
                Image.fromarray(image).save(encoded, "WEBP", lossless=True)
                for suffix, content in (("webp", encoded.getvalue()), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{number:06}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        found = check_adversarials.check(run, UNIT, self.shards, "test", self.model)
        assert found["images"] == 6
        assert found["adversarials"] == sum(flags["broken"] for flags in self.flags)
        return found


@pytest.fixture
def stage(tmp_path: Path, model: Path) -> Stage:
    return Stage(tmp_path, model)


def test_true_adversarials_have_no_violations(stage):
    assert stage.counts() == {}


def test_an_image_farther_than_eps(stage):
    stage.eps = "1/255"
    assert stage.counts() == {"outside_ball": 6}


def test_the_tolerance_is_that_of_the_plan(stage):
    original = stage.images[0].transpose(2, 0, 1).astype(np.float64) / 255
    inside, outside = (2 / 255) * (1 + 5e-6), (2 / 255) * (1 + 1e-4)
    for distance, counted in ((inside, 5), (outside, 6)):
        stage.attacked[0] = original
        place = np.unravel_index(np.argmin(np.abs(original - 0.5)), original.shape)
        stage.attacked[0][place] = original[place] + distance
        stage.eps = "2/255"
        assert stage.counts()["outside_ball"] == counted


def test_an_image_outside_the_box(stage):
    stage.attacked[1, 0, 0, 0] = np.nextafter(np.float32(1), np.float32(2))
    stage.attacked[2, 0, 0, 0] = -1e-6
    assert stage.counts()["outside_box"] == 2


def test_an_image_that_is_nan(stage):
    stage.attacked[1, 0, 0, 0] = np.nan
    counts = stage.counts()
    assert counts["outside_ball"] == counts["outside_box"] == 1


def test_an_adversarial_that_does_not_flip(stage):
    stage.attacked[3] = stage.images[3].transpose(2, 0, 1).astype(np.float32) / 255
    assert stage.counts() == {"not_flipped": 1}


def test_one_that_the_run_does_not_call_broken_need_not_flip(stage):
    stage.attacked[3] = stage.images[3].transpose(2, 0, 1).astype(np.float32) / 255
    stage.flags[3]["broken"] = False
    assert stage.counts() == {}


def test_an_original_that_was_never_right(stage):
    stage.images[4] = (stage.attacked[4] * 255).round().astype(np.uint8).transpose(1, 2, 0)
    assert stage.counts() == {"original_not_right": 1}


def test_a_png_keeps_8_bit_images_and_takes_what_lies_between_levels(stage):
    before = stage.checked()
    assert (before["not_flipped_as_png"], before["outside_ball_as_png"]) == (0, 0)
    pixels = check_adversarials.through_png(stage.attacked)
    np.testing.assert_array_equal(pixels, stage.attacked)
    original = stage.images[3].transpose(2, 0, 1).astype(np.float32) / 255
    stage.attacked[3] = np.clip(original + 0.4 / 255, 0, 1)
    np.testing.assert_array_equal(check_adversarials.through_png(stage.attacked)[3], original)
    assert stage.checked()["not_flipped_as_png"] == 1
    stage.eps = "1/255"
    assert stage.checked()["outside_ball_as_png"] == 5


def test_it_imports_nothing_of_ours():
    tree = ast.parse(Path(check_adversarials.__file__).read_text())
    plain = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    named = {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in plain | named} & {"ironclip", "acceptance", "benchmarks"}
