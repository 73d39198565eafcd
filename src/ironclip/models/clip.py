"""CLIPModel: the one model type. Pixels in [0, 1] and texts in, embeddings out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ironclip.errors import ConfigError, ShapeError
from ironclip.models.adapters import Adapters
from ironclip.models.fast import FastVision, compiled_embed, embed, why_not
from ironclip.models.fast_text import FastText, why_not_text
from ironclip.models.preprocessing import Preprocessing, check_pixels
from ironclip.models.prompts import Prompts
from ironclip.randomness import SampleRandom

T = TypeVar("T")
Tokenizer = Callable[[Sequence[str]], Tensor]
Kernels = Literal["products", "fused", "compiled", "stock"]

_PATHS: dict[Kernels, str] = {
    "products": "on",
    "fused": "on, fused attention",
    "compiled": "on, compiled",
    "stock": "open_clip's own pass was measured faster",
}


@dataclass(frozen=True)
class ModelSpec:
    """Where a model comes from; stored with every result.

    Attributes:
        origin: The source string that it was loaded from.
        architecture: open_clip's configuration of the towers (embed_dim, vision_cfg, text_cfg).
        sha256: Hash of the weights file, hex; of the tensors themselves where there is no file.
        preprocessing: What happens between pixels and tower.
    """

    origin: str
    architecture: dict[str, Any] = field(repr=False)
    sha256: str
    preprocessing: Preprocessing


class CLIPModel(nn.Module):
    """A CLIP whose preprocessing lies inside, so that nobody can forget it and an adversary acts before it.

    Pixels are float `[B, 3, H, W]` in [0, 1] at any resolution. `embed_*` gives raw embeddings (what FARE and LEAF
    compare), `*_features` unit rows in float32. Passes of both towers run in `compute_dtype` (see `computing`); norms,
    similarities and logits are float32, and class weights too: `encode_classes` computes in float32 wherever it stands.

    Args:
        clip: An open_clip model with two towers and a logit scale.
        tokenizer: Texts to token ids `[N, L]`.
        spec: Origin, hash, preprocessing.
        fast: Use the fast paths where they serve the towers.

    Attributes:
        fast_path: "on" where the fast path serves the image tower, perhaps with what was chosen by measuring
            (`use_kernels`); else why not.
        text_path: Likewise, of the text tower.

    Raises:
        ConfigError: SigLIP's logit bias, which cosine logits cannot express; or prompts or adapters in `clip`, and
            towers that cannot read them.
    """

    def __init__(self, clip: nn.Module, tokenizer: Tokenizer, spec: ModelSpec, *, fast: bool = True) -> None:
        super().__init__()
        if getattr(clip, "logit_bias", None) is not None:
            raise ConfigError(
                f"{spec.origin} has a logit bias (SigLIP), so its scores are not scaled cosines.",
                "IronCLIP serves CLIP models with a softmax over logits; load one of those.",
            )
        self.clip: Any = clip
        self.tokenizer = tokenizer
        self.spec = spec
        self.compute_dtype = torch.float32
        self.fast_path = "switched off" if not fast else why_not(self.visual) or "on"
        self.text_path = "switched off" if not fast else why_not_text(self.clip) or "on"
        self._fast_vision = FastVision(self.visual) if self.fast_path == "on" else None
        self._fast = self._fast_vision  # what is in use: `use_kernels`
        self._fast_text = FastText(self.clip) if self.text_path == "on" else None
        self._checkpointing = False
        if self.prompts is not None or self.adapters is not None:
            self._read_pieces()
        self.train(False)

    # Sizes and scales

    @property
    def visual(self) -> nn.Module:
        """The image tower."""
        return self.clip.visual  # type: ignore[no-any-return]  # open_clip's towers are untyped

    @property
    def log_logit_scale(self) -> nn.Parameter:
        """Logarithm of the factor on cosines, the parameter that CLIP learns."""
        return self.clip.logit_scale  # type: ignore[no-any-return]  # see `visual`

    @property
    def logit_scale(self) -> Tensor:
        """The factor itself (CLIP: about 100), float32 scalar."""
        return self.log_logit_scale.float().exp()

    @property
    def input_resolution(self) -> int:
        """Side of the square that the image tower reads, in pixels."""
        return self.spec.preprocessing.resolution

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.log_logit_scale.device

    def text_parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the parameters of the text tower."""
        others = [part for part in (self.visual, self.prompts, self.adapters) if part is not None]
        elsewhere = {id(parameter) for part in others for parameter in part.parameters()}
        for parameter in self.clip.parameters():
            if id(parameter) not in elsewhere and parameter is not self.log_logit_scale:
                yield parameter

    # Tunable parts

    @property
    def prompts(self) -> Prompts | None:
        """The prompts that its towers read, if any; `attach` puts them there."""
        return getattr(self.clip, "prompts", None)

    @property
    def adapters(self) -> Adapters | None:
        """The adapters of its towers, if any."""
        return getattr(self.clip, "adapters", None)

    def attach(self, piece: Prompts | Adapters) -> None:
        """Put prompts or adapters into the model, where its passes read them and `tuned_parameters` finds them.

        Raises:
            ConfigError: There are some already, or the towers cannot read them; says why.
        """
        name = "prompts" if isinstance(piece, Prompts) else "adapters"
        if hasattr(self.clip, name):
            raise ConfigError(f"{self.spec.origin} has {name} already.", "Begin with a model that has none.")
        self._check_pieces()
        self.clip.add_module(name, piece.to(self.device))
        self._read_pieces()

    def detach(self, name: Literal["prompts", "adapters"]) -> None:
        """Take prompts or adapters out of the model again."""
        delattr(self.clip, name)
        self._read_pieces()

    @contextmanager
    def dropping(self, random: SampleRandom) -> Iterator[None]:
        """Drop adapters in passes of one row a key of `random`, as their training does; without any, do nothing."""
        with nullcontext() if self.adapters is None else self.adapters.dropping(random):
            yield

    def _check_pieces(self) -> None:
        if self._fast_vision is None or self._fast_text is None:
            reason = self.fast_path if self._fast_vision is None else self.text_path
            raise ConfigError(
                f"{self.spec.origin} cannot read prompts and adapters: its fast path is off: {reason}.",
                "Use a vision transformer of open_clip with CLIP's own text tower, with the fast path.",
            )

    def _read_pieces(self) -> None:
        self._check_pieces()
        for fast, name in ((self._fast_vision, "image"), (self._fast_text, "text")):
            if fast is not None:
                fast.prompts, fast.adapters = self.prompts, getattr(self.adapters, name, None)
        if self._fast is None:  # what was measured faster reads no pieces
            self.use_kernels("products")

    # Precision

    @contextmanager
    def computing(self, dtype: torch.dtype) -> Iterator[None]:
        """Run both towers inside the block in another precision (bfloat16 to search, float64 to settle ties)."""
        before, self.compute_dtype = self.compute_dtype, dtype
        try:
            yield
        finally:
            self.compute_dtype = before

    # Speed and memory

    @property
    def kernels_offered(self) -> tuple[Kernels, ...]:
        """What `use_kernels` takes; nothing where no fast path serves the image tower."""
        if self._fast_vision is None:
            return ()
        fast: tuple[Kernels, ...] = ("products", "fused", "compiled")
        return fast if self.prompts is not None or self.adapters is not None else (*fast, "stock")

    def use_kernels(self, name: Kernels) -> None:
        """Run the image tower, and the attention of both, on other kernels; `fast_path` tells which from then on.

        Args:
            name: "products": attention as batched products, what a model begins with; "fused": as torch's
                scaled_dot_product_attention; "compiled": "products" by torch.compile; "stock": open_clip's own pass.

        Raises:
            ConfigError: Not offered to this model.
        """
        offered = self.kernels_offered
        if name not in offered:
            raise ConfigError(
                f'kernels "{name}" for {self.spec.origin}, whose fast path is: {self.fast_path}.',
                f"Give one of {', '.join(offered)}." if offered else "Leave the kernels as they are.",
            )
        self.fast_path = _PATHS[name]
        self._fast = None if name == "stock" else self._fast_vision
        if self._fast is not None:
            self._fast.run = compiled_embed() if name == "compiled" else embed
        for fast in (self._fast_vision, self._fast_text):
            if fast is not None:
                fast.fused = name == "fused"

    @property
    def checkpointing(self) -> bool:
        """Whether tuning keeps the inputs of transformer blocks only, and runs each again in the backward pass.

        Gradients stay the same bit for bit; a step costs a third more and keeps a small part of the activations. On the
        fast path attacks, which tune nothing, do not pay for it. ResNets keep everything.
        """
        return self._checkpointing

    @checkpointing.setter
    def checkpointing(self, wanted: bool) -> None:
        try:
            self.clip.set_grad_checkpointing(wanted)
        except RuntimeError as error:
            raise ConfigError(
                f"{type(self.visual).__name__} of {self.spec.origin} cannot recompute its activations: {error}.",
                "Leave activation checkpointing off.",
            ) from error
        self._checkpointing = wanted
        for fast in (self._fast_vision, self._fast_text):
            if fast is not None:
                fast.checkpointing = wanted

    # Images

    def preprocess(self, image: Image.Image) -> Tensor:
        """Turn a PIL image into float32 pixels `[3, R, R]` in [0, 1], R the input resolution."""
        return self.spec.preprocessing.from_pil(image)

    def embed_image(self, pixels: Tensor) -> Tensor:
        """Embed images, raw.

        Args:
            pixels: Float `[B, 3, H, W]` in [0, 1]; resized inside, differentiably, where H, W are not the model's.

        Returns:
            `[B, D]`, float32 (float64 when computing in it).

        Raises:
            ShapeError, ValueRangeError: Not images in [0, 1]; the message says what was seen.
        """
        normalised = self._normalised(pixels)
        if self._fast is not None:
            embedding = self._fast.embed(normalised, self.compute_dtype)
        else:
            embedding = self._stock(self.visual, lambda tower, x: tower(x), normalised)
        return embedding if self.compute_dtype == torch.float64 else embedding.float()

    def image_features(self, pixels: Tensor) -> Tensor:
        """Embed images as unit rows `[B, D]`; see `embed_image`."""
        return F.normalize(self.embed_image(pixels), dim=-1)

    def embed_with_patches(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Embed images and their patches in one pass, as `embed_image` and `patch_tokens` would in two.

        Returns:
            Raw embeddings `[B, D]`, and the projected patch tokens of the last block `[B, P, D]`.

        Raises:
            ConfigError: The tower has no patch tokens that IronCLIP can read.
        """
        normalised = self._normalised(pixels)
        count = self._blocks()
        if self._fast is not None:
            embedding, patches = self._fast.embed_with_patches(normalised, self.compute_dtype)
        else:

            def read(tower: Any, x: Tensor) -> tuple[Tensor, Tensor]:
                kept = tower.forward_intermediates(x, indices=[count - 1], output_fmt="NLC")
                return kept["image_features"], tower.ln_post(kept["image_intermediates"][0]) @ tower.proj

            embedding, patches = self._stock(self.visual, read, normalised)
        exact = self.compute_dtype == torch.float64
        return (embedding, patches) if exact else (embedding.float(), patches.float())

    def patch_tokens(self, pixels: Tensor, layer: int = -1, projected: bool = True) -> Tensor:
        """Return what the tower says of each patch.

        Args:
            pixels: Float `[B, 3, H, W]` in [0, 1].
            layer: After which block; -1 the last, 0 the first.
            projected: After the last norm and the projection into the shared space, else as the block leaves them.

        Returns:
            Float32 `[B, P, D]` projected, else `[B, P, W]`; patches in reading order.

        Raises:
            ShapeError: No such layer.
            ConfigError: The tower has no patch tokens that IronCLIP can read.
        """
        normalised = self._normalised(pixels)
        count = self._blocks()
        if not -count <= layer < count:
            raise ShapeError(
                f"layer {layer} of a tower with {count} blocks.", f"Give one from {-count} to {count - 1}."
            )
        layers = layer % count + 1
        if self._fast is not None:
            patches = self._fast.patch_tokens(normalised, self.compute_dtype, layers=layers, projected=projected)
        else:

            def read(tower: Any, x: Tensor) -> Tensor:
                kept = tower.forward_intermediates(x, indices=[layers - 1], intermediates_only=True, output_fmt="NLC")
                last: Tensor = kept["image_intermediates"][0]
                return tower.ln_post(last) @ tower.proj if projected else last

            patches = self._stock(self.visual, read, normalised)
        return patches if self.compute_dtype == torch.float64 else patches.float()

    # Texts

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Turn texts into token ids `[N, L]` on the model's device."""
        return self.tokenizer(list(texts)).to(self.device)

    def embed_text(self, texts: Tensor | Sequence[str]) -> Tensor:
        """Embed texts or their token ids `[N, L]`, raw; behind the learned words, if any.

        Returns:
            `[N, D]`, float32 (float64 when computing in it), of a pass in `compute_dtype`.
        """
        ids = texts if isinstance(texts, Tensor) else self.tokenize(texts)
        if self._fast_text is not None:
            embedding = self._fast_text.embed(ids, self.compute_dtype)
        else:
            embedding = self._stock(self.clip, lambda clip, x: clip.encode_text(x), ids)
        return embedding if self.compute_dtype == torch.float64 else embedding.float()

    def text_features(self, texts: Tensor | Sequence[str]) -> Tensor:
        """Embed texts or their token ids as unit rows `[N, D]`."""
        return F.normalize(self.embed_text(texts), dim=-1)

    # Inside

    def train(self, mode: bool = True) -> CLIPModel:
        """Set the mode; batch norms (RN50) stay in eval mode, since tuning must not move their statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(False)
        return self

    def _blocks(self) -> int:
        """Count the blocks of the image tower; only vision transformers have patch tokens."""
        if not hasattr(self.visual, "transformer"):
            raise ConfigError(f"{type(self.visual).__name__} has no patch tokens.", "Use a vision transformer.")
        return len(self.visual.transformer.resblocks)  # type: ignore[union-attr,arg-type]  # open_clip's tower, untyped

    def _normalised(self, pixels: Tensor) -> Tensor:
        # Published training attacks (pgd_v) begin outside [0, 1] by up to eps; evaluation is strict at its entry.
        check_pixels(pixels, slack=16 / 255)
        wide = pixels.to(torch.promote_types(torch.promote_types(pixels.dtype, self.compute_dtype), torch.float32))
        preprocessing = self.spec.preprocessing
        normalised = preprocessing.normalise(preprocessing.resize(wide))
        frame = None if self.prompts is None else self.prompts.frame
        return normalised if frame is None else frame(normalised)

    def _stock(self, module: nn.Module, read: Callable[[Any, Tensor], T], given: Tensor) -> T:
        """Run a tower of open_clip's own on normalised pixels or token ids, in the compute dtype."""
        if self.compute_dtype == torch.float64:
            # A copy, for the rare ties that float32 cannot settle; never kept, never trained.
            return read(copy.deepcopy(module).double(), given.double() if given.is_floating_point() else given)
        with torch.autocast(given.device.type, self.compute_dtype, enabled=self.compute_dtype != torch.float32):
            return read(module, given)


def tokenizer_for(architecture: dict[str, Any]) -> Tokenizer:
    """Return CLIP's tokenizer with the context length of a configuration.

    Raises:
        ConfigError: The configuration asks for a Hugging Face tokenizer, which needs files of its own.
    """
    text = architecture.get("text_cfg", {})
    if text.get("hf_tokenizer_name"):
        raise ConfigError(
            f'the model wants the tokenizer "{text["hf_tokenizer_name"]}" of a hub.',
            "IronCLIP serves CLIP's own tokenizer; load a model that uses it.",
        )
    tokenizer: Tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=text.get("context_length", 77))
    return tokenizer
