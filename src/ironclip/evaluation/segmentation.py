"""Open-vocabulary masks from the patch tokens of a CLIP, their mIoU, and the adversary that spoils them.

Source: Zhou et al., ECCV 2022, arXiv:2112.01071 (MaskCLIP, without key smoothing and prompt denoising): in the last
block each patch keeps its own value instead of attending, so that it speaks of its own place. Logits are brought to the
image's side bilinearly. The attack is gradient ascent on the mean cross-entropy of labelled pixels (Arnab et al., CVPR
2018, arXiv:1711.09856); stronger losses are known, so what it leaves is an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ironclip.attacks.base import Attack
from ironclip.attacks.driver import DriverSettings, exact_float32, run_attack
from ironclip.attacks.objectives import Evaluation, Objective
from ironclip.attacks.threat_model import ThreatModel
from ironclip.data.masks import UNLABELLED, MaskedImage
from ironclip.errors import ConfigError, ShapeError, ValueRangeError
from ironclip.evaluation.iou import Counts, confusion
from ironclip.models.clip import CLIPModel
from ironclip.models.zero_shot import encode_classes


class Segmenter(nn.Module):
    """A CLIP that says of each pixel which class it shows.

    Args:
        model: A vision transformer with two blocks or more, without prompts and adapters.
        class_names: Words for the classes.
        templates: Prompt templates with one `{}` each.

    Raises:
        ConfigError: The tower is none that MaskCLIP's form fits.
    """

    def __init__(self, model: CLIPModel, class_names: Sequence[str], templates: Sequence[str]) -> None:
        super().__init__()
        tuned = model.prompts is not None or model.adapters is not None
        blocks: Any = getattr(getattr(model.visual, "transformer", None), "resblocks", None) or []
        if tuned or len(blocks) < 2 or not isinstance(getattr(blocks[-1], "attn", None), nn.MultiheadAttention):
            what = "carries prompts or adapters" if tuned else "is no vision transformer of two plain blocks or more"
            raise ConfigError(f"{model.spec.origin} {what}.", "Masks are read from plain ViT towers.")
        self.model, self.class_names = model, tuple(class_names)
        with torch.no_grad():
            self.register_buffer("class_weights", encode_classes(model, class_names, templates), persistent=False)
        self.class_weights: Tensor
        self.train(False)

    def features(self, pixels: Tensor) -> Tensor:
        """Return unit features of the patches on their grid, `[B, D, h, w]`, for square images `[B, 3, H, H]`."""
        if pixels.shape[-1] != pixels.shape[-2]:
            height, width = pixels.shape[-2:]
            raise ShapeError(f"images of {width}x{height}.", "Cut images and masks to a square.")
        visual: Any = self.model.visual
        block = visual.transformer.resblocks[-1]
        x = self.model.patch_tokens(pixels, layer=-2, projected=False)
        width = x.shape[-1]
        value = F.linear(block.ln_1(x), block.attn.in_proj_weight[-width:], block.attn.in_proj_bias[-width:])
        x = x + block.attn.out_proj(value)
        x = x + block.mlp(block.ln_2(x))
        rows: Tensor = F.normalize(visual.ln_post(x) @ visual.proj, dim=-1)
        side = math.isqrt(rows.shape[1])
        grid: Tensor = rows.transpose(1, 2).unflatten(2, (side, side))
        return grid

    def logits(self, pixels: Tensor) -> Tensor:
        """Score each pixel: float32 `[B, C, H, W]`, the logit scale included."""
        patches = torch.einsum("bdhw,cd->bchw", self.features(pixels), self.class_weights)
        size = pixels.shape[-2:]
        logits: Tensor = F.interpolate(self.model.logit_scale * patches, size, mode="bilinear", align_corners=False)
        return logits


@dataclass(frozen=True)
class Mislabel(Objective):
    """Make pixels be taken for something else.

    Attributes:
        segmenter: The model.
        masks: `[B, H, W]` int64; what is `UNLABELLED` does not count. A row without a label has the value 0.
    """

    segmenter: Segmenter
    masks: Tensor

    def evaluate(self, pixels: Tensor) -> Evaluation:
        """Return the mean cross-entropy of the labelled pixels; no image is ever broken, only worse."""
        logits = self.segmenter.logits(pixels)
        each = F.cross_entropy(logits, self.masks, ignore_index=UNLABELLED, reduction="none").flatten(1)
        value = each.sum(dim=1) / (self.masks != UNLABELLED).flatten(1).sum(dim=1).clamp(min=1)
        return Evaluation(value, torch.zeros_like(value, dtype=torch.bool))

    def take(self, rows: Tensor) -> Mislabel:
        """Return the objective of the given rows."""
        return replace(self, masks=self.masks[rows])

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The model."""
        return (self.segmenter,)

    @property
    def device(self) -> torch.device:
        """That of the masks."""
        return self.masks.device

    @property
    def precisions(self) -> frozenset[torch.dtype]:
        """The last block and the head are float32; the blocks before it compute in what is asked for."""
        return frozenset({torch.bfloat16, torch.float32})

    def computing(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """Let the model compute in another precision."""
        if dtype not in self.precisions:
            return super().computing(dtype)
        return self.segmenter.model.computing(dtype)


@dataclass(frozen=True)
class SegmentationResult:
    """Confusions `[C, C]` over all images, clean and attacked; `mean_iou` and `class_iou` make numbers of them."""

    clean: Counts
    attacked: Counts


def evaluate_segmentation(
    segmenter: Segmenter,
    images: Sequence[MaskedImage],
    attack: Attack,
    threat: ThreatModel,
    *,
    seed: int = 0,
    driver: DriverSettings | None = None,
) -> SegmentationResult:
    """Segment images of one size, clean and attacked.

    Args:
        segmenter: The model.
        images: With masks of the segmenter's classes.
        attack: Its settings; APGD with random start, say.
        threat: The game.
        seed: Of the attack.
        driver: Tile and precision of the search.

    Raises:
        ShapeError: Images of several sizes.
        ValueRangeError: There are no images.
    """
    if not images:
        raise ValueRangeError("a segmentation of 0 images.", "Give at least one.")
    if len(shapes := {image.pixels.shape for image in images}) > 1:
        raise ShapeError(f"images of {len(shapes)} sizes.", "Bring them to one side.")
    driver = driver or DriverSettings()
    device = segmenter.class_weights.device
    pixels = torch.stack([image.pixels for image in images])
    masks = torch.stack([image.mask for image in images])
    objective = Mislabel(segmenter, masks.to(device))
    keys = [image.key for image in images]
    outcome = run_attack(attack, objective, pixels, keys, threat, seed=seed, settings=driver)
    classes = len(segmenter.class_names)

    def counted(points: Tensor) -> Counts:
        return confusion(masks.numpy(), likeliest(segmenter, points, driver).numpy(), classes)

    return SegmentationResult(counted(pixels), counted(outcome.adversarial))


@torch.no_grad()
def likeliest(segmenter: Segmenter, points: Tensor, driver: DriverSettings) -> Tensor:
    """Return the likeliest class of each pixel, int64 `[N, H, W]`; a tile at a time, padded as the driver's are."""
    found = []
    with exact_float32(segmenter.class_weights.device):
        for own in torch.arange(len(points)).split(driver.tile):
            rows = torch.cat([own, own[:1].repeat(-len(own) % driver.granule)])
            logits = segmenter.logits(points[rows].to(segmenter.class_weights.device))
            found.append(logits.argmax(dim=1)[: len(own)].cpu())
    return torch.cat(found)
