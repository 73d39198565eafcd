"""The shipped folder in other people's code: the same logits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from acceptance.claims import CannotRunError, Claim, Context, Figure, at_most, item
from acceptance.tiny_model import FOLDER, MODEL, SHIPPED
from ironclip.data.bundled import digits
from ironclip.data.order import limit
from ironclip.data.sources import open_dataset
from ironclip.models.export import export_model
from ironclip.models.sources import load_model
from ironclip.models.zero_shot import ZeroShotClassifier

TEMPLATE = digits.TEMPLATES[0]


@item(
    "stock",
    claims=[
        Claim(
            "open_clip",
            'open_clip.create_model_and_transforms("local-dir:…"): largest difference of logits, float32',
            at_most(1e-4),
        ),
        Claim("transformers", "… transformers too, from the export", at_most(1e-4)),
    ],
    modules=["ironclip.models.sources", "ironclip.models.zero_shot", "ironclip.data.sources", "ironclip.models.export"],
    files=SHIPPED,
)
def stock(context: Context) -> Iterator[Figure]:
    data = open_dataset("bundled:digits?split=test")
    samples = [limit(data, context.pick(256, 32))[position] for position in range(context.pick(256, 32))]
    pixels = torch.stack([sample.pixels for sample in samples])
    clip, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{FOLDER}", precision="fp32")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{FOLDER}")
    prompts = [TEMPLATE.format(name) for name in digits.CLASS_NAMES]
    clip.eval()
    with torch.no_grad():
        theirs = torch.stack([preprocess(to_pil_image(image)) for image in pixels])
        images, texts = clip.encode_image(theirs), clip.encode_text(tokenizer(prompts))
        expected = clip.logit_scale.exp() * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
        gaps = {}
        for fast in (True, False):
            classifier = ZeroShotClassifier(load_model(MODEL, fast=fast), digits.CLASS_NAMES, [TEMPLATE])
            gaps[fast] = float((classifier.logits(pixels) - expected).abs().max())
    spread, factor = float(expected.std(dim=1).max()), float(clip.logit_scale.detach().exp())
    scale = f"logit scale {factor:.1f}, deviation of an image's logits up to {spread:.2g}"
    shown = (
        f"{max(gaps.values()):.1e} ({len(pixels)} digits; fast path {gaps[True]:.1e}, off {gaps[False]:.1e}; {scale})"
    )
    yield Figure("open_clip", max(gaps.values()), shown)
    expected = _of_transformers([to_pil_image(image) for image in pixels], prompts)
    with torch.no_grad():
        gap = float((classifier.logits(pixels) - expected).abs().max())
    yield Figure("transformers", gap, f"{gap:.1e} ({len(pixels)} digits)")


def _of_transformers(images: list[Image.Image], prompts: list[str]) -> torch.Tensor:
    """Return the logits `[B, C]` that stock transformers gives, preprocessing and tokenizer included."""
    try:
        import transformers
    except ImportError:
        raise CannotRunError("transformers is not installed: pip install -e '.[hf]'") from None
    with TemporaryDirectory() as folder:
        place = export_model(load_model(MODEL), Path(folder) / "exported", "transformers")
        clip = transformers.CLIPModel.from_pretrained(place).eval()
        processor = transformers.CLIPProcessor.from_pretrained(place)
    inputs = processor(text=prompts, images=images, return_tensors="pt", padding="max_length")
    with torch.no_grad():
        logits: torch.Tensor = clip(**inputs).logits_per_image
    return logits
