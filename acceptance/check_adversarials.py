"""Check saved adversarial images without IronCLIP: this script imports none of it.

It decodes the original images from the shards itself, builds the zero-shot classifier with stock open_clip from the
words beside the shards, and prints one JSON line of counts:

    python acceptance/check_adversarials.py RUN UNIT --shards DIR --split test --model DIR

RUN is a run folder of `ironclip eval --save all`, UNIT one of its units, DIR the folder of the shards, with classes.txt
and templates.json. What has to hold of every saved image: it lies in [0, 1], and within eps (1 + 1e-5) + 1e-7 of the
original in float64. What has to hold of every image that the run calls broken: the original is given its label, and the
adversarial image another. Then each is written as a PNG and read again, which rounds it to 8 bits: how many are given
their label after that, and how many lie farther than eps.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors import safe_open

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
BATCH = 100


def read_shards(folder: Path, split: str) -> dict[str, tuple[np.ndarray, int]]:
    """Decode a split: by key (`cifar10/test/000123`) the 8-bit image `[H, W, 3]` and the label."""
    images: dict[str, np.ndarray] = {}
    labels: dict[str, int] = {}
    for path in sorted(folder.glob(f"{split}-[0-9]*.tar*")):
        with tarfile.open(path) as tar:
            for member in tar:
                stem, _, suffix = member.name.partition(".")
                file = tar.extractfile(member)
                if file is None:
                    continue
                key = f"{folder.resolve().name}/{split}/{stem}"
                if suffix == "cls":
                    labels[key] = int(file.read())
                elif suffix == "webp":
                    images[key] = np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))
    return {key: (image, labels[key]) for key, image in images.items()}


def read_saved(run: Path, unit: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield key and adversarial image `[3, H, W]` of every saved sample."""
    for path in sorted((run / "adversarials" / unit).glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            keys = json.loads(file.metadata()["keys"])
            yield from zip(keys, file.get_tensor("adversarial"), strict=True)


def read_flags(run: Path, unit: str) -> dict[str, dict[str, Any]]:
    """Return label, broken and clean verdict of each row of a unit."""
    rows: dict[str, dict[str, Any]] = {}
    for path in sorted((run / "samples" / unit).glob("*.parquet")):
        for row in pq.read_table(path, columns=["sample_id", "y", "pred_clean", "broken"]).to_pylist():
            rows[row["sample_id"]] = row
    return rows


class Stock:
    """CLIP's zero-shot classifier, by stock open_clip alone."""

    def __init__(self, folder: Path, class_names: list[str], templates: list[str]) -> None:
        self.clip, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}", precision="fp32")
        self.clip.eval()
        tokenizer = open_clip.SimpleTokenizer(context_length=self.clip.context_length)
        weights = []
        with torch.no_grad():
            for name in class_names:
                text = self.clip.encode_text(tokenizer([template.replace("{}", name) for template in templates]))
                mean = (text / text.norm(dim=-1, keepdim=True)).mean(dim=0)
                weights.append(mean / mean.norm())
        self.class_weights = torch.stack(weights)

    @torch.no_grad()
    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """Classify `[N, 3, H, W]` in [0, 1] at the model's own resolution."""
        side = self.clip.visual.image_size
        if pixels.shape[-2:] != tuple(side if isinstance(side, tuple) else (side, side)):
            raise SystemExit(
                f"images of {pixels.shape[-2:]} for a model that reads {side}: this script does not resize"
            )
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        found = []
        for start in range(0, len(pixels), BATCH):
            image = self.clip.encode_image((torch.from_numpy(pixels[start : start + BATCH]) - mean) / std)
            logits = self.clip.logit_scale.exp() * (image / image.norm(dim=-1, keepdim=True)) @ self.class_weights.T
            found.append(logits.argmax(dim=1).numpy())
        return np.concatenate(found)


def through_png(pixels: np.ndarray) -> np.ndarray:
    """Write images `[N, 3, H, W]` as PNG files and read them again, float32 in [0, 1]."""
    found = []
    for image in pixels:
        levels = np.rint(255 * image.astype(np.float64).transpose(1, 2, 0)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(levels).save(file, "PNG")
        found.append(np.asarray(Image.open(io.BytesIO(file.getvalue()))).transpose(2, 0, 1).astype(np.float32) / 255)
    return np.stack(found)


def check(run: Path, unit: str, shards: Path, split: str, model: Path) -> dict[str, Any]:
    """Return what was checked and how often something did not hold."""
    threat = json.loads((run / "run.json").read_text())["units"][unit]["threat"]["record"]
    if threat["norm"] != "linf":
        raise SystemExit(f"this script measures linf, the run's norm is {threat['norm']}")
    limit = float(Fraction(threat["eps"])) * (1 + 1e-5) + 1e-7
    originals, flags = read_shards(shards, split), read_flags(run, unit)
    keys, saved = zip(*sorted(read_saved(run, unit), key=lambda pair: pair[0]), strict=True)
    adversarial = np.stack(saved)
    exact = np.stack([originals[key][0].transpose(2, 0, 1) for key in keys]).astype(np.float64) / 255
    distance = np.abs(adversarial.astype(np.float64) - exact).reshape(len(keys), -1).max(axis=1)
    in_box = ((adversarial >= 0) & (adversarial <= 1)).reshape(len(keys), -1).all(axis=1)
    label = np.array([originals[key][1] for key in keys])
    # Broken by the attack: the original was right, and the run says that the saved image is wrong.
    attacked = np.array([flags[key]["broken"] and flags[key]["pred_clean"] == flags[key]["y"] for key in keys])
    words = (shards / "classes.txt").read_text().split("\n")
    classifier = Stock(model, [word for word in words if word], json.loads((shards / "templates.json").read_text()))
    before, after = classifier.predict(exact.astype(np.float32)), classifier.predict(adversarial)
    reread = through_png(np.nan_to_num(adversarial))
    reread_distance = np.abs(reread.astype(np.float64) - exact).reshape(len(keys), -1).max(axis=1)
    return {
        "eps": threat["eps"],
        "images": len(keys),
        "adversarials": int(attacked.sum()),
        "largest_distance_times_255": float(255 * distance[np.isfinite(distance)].max()),
        "outside_ball": int((~(distance <= limit)).sum()),  # NaN is outside
        "outside_box": int((~in_box).sum()),
        "other_label": int(sum(flags[key]["y"] != originals[key][1] for key in keys)),
        "original_not_right": int((attacked & (before != label)).sum()),
        "not_flipped": int((attacked & (after == label)).sum()),
        "not_flipped_as_png": int((attacked & (classifier.predict(reread) == label)).sum()),
        "outside_ball_as_png": int((attacked & ~(reread_distance <= limit)).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("unit")
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--model", type=Path, required=True)
    options = parser.parse_args()
    print(json.dumps(check(options.run, options.unit, options.shards, options.split, options.model)))


if __name__ == "__main__":
    main()
