"""The fast paths of both towers against stock open_clip and stock transformers, at the size of ViT-B/32."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acceptance.claims import CannotRunError, Claim, Context, Figure, at_least, at_most, item
from acceptance.spine_vision import MEAN, NAME, STD, natural_like, worst_share, write_weights
from ironclip.models.clip import CLIPModel
from ironclip.models.sources import load_model

THINGS = ("cat", "dog", "ship", "frog", "horse", "truck", "bird", "deer", "plane", "car")
TEMPLATES = (
    "a photo of a {}.",
    "{}",
    "a blurred photo, taken at night from a train, of something that may well have been a large {} beside a road",
    "a {} " * 30,
)
TEXTS = [template.replace("{}", thing) for template in TEMPLATES for thing in THINGS]
"""From three tokens to more than the context holds."""

BATCH = 16
SMALL = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 2}
"""The towers of transformers in the short form."""


@dataclass(frozen=True)
class Stock:
    """A stock model: its two towers as functions, and the module whose gradients are compared.

    Attributes:
        image: Normalised images `[B, 3, R, R]` to raw embeddings `[B, D]`.
        text: Token ids `[N, L]` to raw embeddings.
        table: The token embeddings of its text tower.
        module: The whole model.
    """

    image: Callable[[Tensor], Tensor]
    text: Callable[[Tensor], Tensor]
    table: nn.Embedding
    module: nn.Module


@dataclass
class Gaps:
    """The worst that was seen, of one stock package and tower.

    Attributes:
        others: Stock's unit rows of the other tower, `[10, D]`, which the logits are against.
    """

    others: Tensor
    logit: float = 0.0
    gradient: float = 0.0
    cosine: float = 1.0

    def add(self, found: Tensor, expected: Tensor, gradients: tuple[Tensor, Tensor], low: Tensor) -> None:
        """Add a batch: embeddings of both, gradients of both, embeddings in bfloat16."""
        ours, theirs = (100 * F.normalize(rows.detach(), dim=-1) @ self.others.T for rows in (found, expected))
        self.logit = max(self.logit, float((ours - theirs).abs().max()))
        self.gradient = max(self.gradient, worst_share(*gradients))
        self.cosine = min(self.cosine, float(F.cosine_similarity(low, expected.detach()).min()))


def _claims(package: str, tower: str, gradient: str) -> list[Claim]:
    name = f"{package}_{tower}"
    return [
        Claim(
            f"{name}_logits",
            f"fast against stock {package}, {tower} tower, random weights: logits in float32 (largest difference)",
            at_most(1e-4),
        ),
        Claim(f"{name}_gradients", f"… {gradient}: ‖difference‖/‖gradient‖ of the worst", at_most(1e-4)),
        Claim(f"{name}_bfloat16", "… bfloat16 embeddings: smallest cosine to stock's in float32", at_least(0.999)),
    ]


@item(
    "fast_equal",
    claims=[
        claim
        for package in ("open_clip", "transformers")
        for tower, gradient in (("vision", "input gradients"), ("text", "gradients of the token embeddings"))
        for claim in _claims(package, tower, gradient)
    ],
    modules=["ironclip.models.sources"],
)
def fast_equal(context: Context) -> Iterator[Figure]:
    count = context.pick(64, 4)
    for package, make in (("open_clip", _open_clip), ("transformers", _transformers)):
        with TemporaryDirectory() as folder:
            stock = make(Path(folder), context.short)
            ours = load_model(f"local-dir:{folder}")
        if (ours.fast_path, ours.text_path) != ("on", "on"):
            raise ArithmeticError(f"fast paths: {ours.fast_path}, {ours.text_path}")
        side = ours.input_resolution
        with torch.no_grad():
            plain = F.normalize(stock.text(ours.tokenize(TEXTS[: len(THINGS)])), dim=-1)
            images = F.normalize(stock.image(_normalised(natural_like(len(THINGS), side, seed=99))), dim=-1)
        vision, text = Gaps(plain), Gaps(images)
        for start in range(0, count, BATCH):
            _compare_images(ours, stock, natural_like(min(BATCH, count), side, seed=start), vision)
        texts = TEXTS[:: context.pick(1, 5)]
        for start in range(0, len(texts), BATCH):
            _compare_texts(ours, stock, ours.tokenize(texts[start : start + BATCH]), text)
        for tower, gaps, about in (("vision", vision, f"{count} images"), ("text", text, f"{len(texts)} texts")):
            name = f"{package}_{tower}"
            yield Figure(f"{name}_logits", gaps.logit, f"{gaps.logit:.1e} ({about}; logit scale 100)")
            yield Figure(f"{name}_gradients", gaps.gradient, f"{gaps.gradient:.1e} ({about})")
            yield Figure(f"{name}_bfloat16", gaps.cosine, f"{gaps.cosine:.6f} ({about})")


def _compare_images(ours: CLIPModel, stock: Stock, pixels: Tensor, gaps: Gaps) -> None:
    ours.requires_grad_(False)
    stock.module.requires_grad_(False)
    found, gradient = _pixel_gradient(ours.embed_image, pixels)
    expected, wanted = _pixel_gradient(lambda x: stock.image(_normalised(x)), pixels)
    with torch.no_grad(), ours.computing(torch.bfloat16):
        gaps.add(found, expected, (gradient, wanted), ours.embed_image(pixels))


def _compare_texts(ours: CLIPModel, stock: Stock, ids: Tensor, gaps: Gaps) -> None:
    table = ours.clip.token_embedding
    found, gradient = _table_gradient(ours.embed_text, ids, table)
    expected, wanted = _table_gradient(stock.text, ids, stock.table)
    with torch.no_grad(), ours.computing(torch.bfloat16):
        gaps.add(found, expected, (gradient, wanted), ours.embed_text(ids))


def _normalised(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std


def _pixel_gradient(embed: Callable[[Tensor], Tensor], pixels: Tensor) -> tuple[Tensor, Tensor]:
    leaf = pixels.clone().requires_grad_(True)
    embedding = embed(leaf)
    (gradient,) = torch.autograd.grad(_projected(embedding), leaf)
    return embedding, gradient


def _table_gradient(embed: Callable[[Tensor], Tensor], ids: Tensor, table: nn.Embedding) -> tuple[Tensor, Tensor]:
    """Differentiate with respect to the token embeddings: one row `[1, vocabulary * W]`, all texts together."""
    table.requires_grad_(True)
    embedding = embed(ids)
    (gradient,) = torch.autograd.grad(_projected(embedding), table.weight)
    table.requires_grad_(False)
    return embedding, gradient[None]


def _projected(embedding: Tensor) -> Tensor:
    """Project unit rows on drawn directions and add up."""
    way = torch.randn(embedding.shape[-1], generator=torch.Generator().manual_seed(5))
    return (F.normalize(embedding, dim=-1) @ way).sum()


def _open_clip(folder: Path, short: bool) -> Stock:
    import open_clip

    write_weights(folder, _small(open_clip.get_model_config(NAME)) if short else None)
    clip: Any = open_clip.create_model_and_transforms(f"local-dir:{folder}", precision="fp32")[0]
    clip.eval()
    return Stock(clip.encode_image, clip.encode_text, clip.token_embedding, clip)


def _small(config: dict[str, Any]) -> dict[str, Any]:
    """Make the towers of a configuration small, for the short form."""
    vision = {"width": 64, "layers": 3, "head_width": 32, "image_size": 64, "patch_size": 16}
    return config | {
        "embed_dim": 32,
        "vision_cfg": config["vision_cfg"] | vision,
        "text_cfg": config["text_cfg"] | {"width": 64, "heads": 2, "layers": 3},
    }


def _transformers(folder: Path, short: bool) -> Stock:
    try:
        import transformers
    except ImportError:
        raise CannotRunError('transformers is not installed: pip install "ironclip[hf]"') from None
    logging.getLogger("transformers").setLevel(logging.ERROR)
    sizes: dict[str, Any] = SMALL if short else {}
    sides = {"image_size": 64, "patch_size": 16} if short else {}
    shared = {"hidden_act": "quick_gelu"} | sizes
    config = transformers.CLIPConfig(
        text_config=shared, vision_config=shared | sides, projection_dim=32 if short else 512
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model: Any = transformers.CLIPModel(config)
        model.eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return Stock(
        lambda normalised: model.visual_projection(model.vision_model(pixel_values=normalised).pooler_output),
        lambda ids: model.text_projection(model.text_model(input_ids=ids).pooler_output),
        model.text_model.embeddings.token_embedding,
        model,
    )
