"""Classifiers: what an evaluation attacks, and the one that CLIP makes of class names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ironclip.data.classes import class_groups, fill_templates
from ironclip.errors import ConfigError, ShapeError, ValueRangeError
from ironclip.models.clip import CLIPModel
from ironclip.models.preprocessing import check_pixels


class Classifier(nn.Module, ABC):
    """Anything from pixels in [0, 1] to logits."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where pixels have to lie."""

    @abstractmethod
    def logits(self, pixels: Tensor) -> Tensor:
        """Score `[B, 3, H, W]` against the classes: float32 `[B, C]`, the scale included."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits: a classifier is also what a factory of `python:` may return."""
        return self.logits(pixels)

    @contextmanager
    def computing(self, dtype: torch.dtype) -> Iterator[None]:
        """Run forwards inside the block in another precision; only float32 unless a subclass can do more.

        Raises:
            ConfigError: A precision that this classifier does not offer.
        """
        if dtype != torch.float32:
            raise ConfigError(f"{type(self).__name__} computes in float32 only, not {dtype}.", "Search in float32.")
        yield

    @property
    def precisions(self) -> frozenset[torch.dtype]:
        """The precisions that `computing` takes."""
        return frozenset({torch.float32})

    @property
    def tie_tolerance(self) -> float:
        """Margins below this are ties as far as float32 can tell (for logits of CLIP's size)."""
        return 1e-4


class PythonClassifier(Classifier):
    """A user's own callable from pixels to logits (`python:package.module:factory`).

    Args:
        call: `[B, 3, H, W]` in [0, 1] to `[B, C]`; an nn.Module is frozen and put into eval mode while attacked.
        device: Where it wants its pixels.
        class_names: Words for the classes, where they are known: so many logits it must return.
    """

    def __init__(
        self,
        call: Callable[[Tensor], Tensor],
        device: torch.device | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.call = call
        self.class_names = None if class_names is None else tuple(class_names)
        parameters = list(call.parameters()) if isinstance(call, nn.Module) else []
        self._device = device or (parameters[0].device if parameters else torch.device("cpu"))
        self.train(False)

    @property
    def device(self) -> torch.device:
        """Where pixels have to lie."""
        return self._device

    def logits(self, pixels: Tensor) -> Tensor:
        """Score pixels.

        Raises:
            ShapeError: The callable did not return `[B, C]`, or C is not the number of class names.
        """
        check_pixels(pixels, slack=16 / 255)  # as CLIPModel; decision 005
        scores = self.call(pixels)
        if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != len(pixels):
            shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ShapeError(f"the model returned {shape} for {len(pixels)} images.", "It must return logits [B, C].")
        if self.class_names is not None and scores.shape[1] != len(self.class_names):
            raise ShapeError(
                f"the model returned {scores.shape[1]} logits an image for {len(self.class_names)} class names.",
                "It must return one logit a class, in the order of the class names.",
            )
        return scores.float()


class FixedClasses(Classifier):
    """CLIP against class weights that are already encoded: the classifier inside training and of `ZeroShotClassifier`.

    Args:
        model: The model.
        class_weights: Unit rows `[C, D]`.
        logit_scale: The factor on cosines where it is not the model's own.

    Raises:
        ValueRangeError: The rows are not of unit length.
    """

    def __init__(self, model: CLIPModel, class_weights: Tensor, *, logit_scale: float | None = None) -> None:
        super().__init__()
        self.model = model
        self._logit_scale = logit_scale
        check_unit_rows(class_weights)
        self.register_buffer("class_weights", class_weights.detach(), persistent=False)
        self.class_weights: Tensor

    @property
    def device(self) -> torch.device:
        """Where pixels have to lie."""
        return self.model.device

    @property
    def precisions(self) -> frozenset[torch.dtype]:
        """The precisions that `computing` takes."""
        return frozenset({torch.bfloat16, torch.float32, torch.float64})

    @property
    def logit_scale(self) -> Tensor | float:
        """The factor on cosines."""
        return self.model.logit_scale if self._logit_scale is None else self._logit_scale

    @property
    def tie_tolerance(self) -> float:
        """1e-4 at a logit scale of 100 (evaluation plan 6.2)."""
        return 1e-6 * torch.as_tensor(self.logit_scale).item()

    @contextmanager
    def computing(self, dtype: torch.dtype) -> Iterator[None]:
        """Run image passes inside the block in another precision; similarities stay float32 (or float64)."""
        with self.model.computing(dtype):
            yield

    def logits(self, pixels: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """Score images against the classes.

        Args:
            pixels: Float `[B, 3, H, W]` in [0, 1].
            class_weights: Other classes than those encoded: unit rows `[C, D]`, or `[B, C, D]` when each image has its
                own (its texts were attacked).

        Returns:
            `[B, C]`, float32 (float64 when computing in it).
        """
        features = self.model.image_features(pixels)
        if class_weights is None:
            return self.logit_scale * F.linear(features, self.class_weights.to(features.dtype))
        return zero_shot_logits(features, class_weights, logit_scale=self.logit_scale)


class ZeroShotClassifier(FixedClasses):
    """CLIP's own way to classify: the cosine to each class's prompts, times the logit scale.

    The class weights are encoded once, each the renormalised mean of the unit text features of its prompts.

    Args:
        model: The model; its text tower is read once.
        class_names: Words for the classes, in label order; never changed.
        templates: Prompt templates with one `{}` each.

    Raises:
        ConfigError: No classes, no templates, or a template without `{}`.

    Source: Radford et al., 2021, arXiv:2103.00020, section 3.1.
    """

    def __init__(self, model: CLIPModel, class_names: Sequence[str], templates: Sequence[str]) -> None:
        with torch.no_grad():
            class_weights = encode_classes(model, class_names, templates)
        super().__init__(model, class_weights)
        self.class_names, self.templates = tuple(class_names), tuple(templates)
        first = class_groups(class_names)
        self.register_buffer("_first_alike", torch.tensor(first, device=model.device), persistent=False)
        self._first_alike: Tensor
        self._all_differ = first == list(range(len(first)))

    def logits(self, pixels: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """Score images against the classes; see `FixedClasses.logits`. Classes of one name tie exactly."""
        scores = super().logits(pixels, class_weights)
        if class_weights is not None or self._all_differ:
            return scores
        # A matrix product may give equal rows scores that differ in the last bit, and the tie rule needs a tie.
        return scores[:, self._first_alike]


def zero_shot_logits(image_features: Tensor, class_weights: Tensor, *, logit_scale: Tensor | float) -> Tensor:
    """Score images against classes as CLIP does.

    Args:
        image_features: `[B, D]`, rows of unit length.
        class_weights: `[C, D]`, or `[B, C, D]`, rows of unit length.
        logit_scale: The factor itself (CLIP: about 100), not its logarithm.

    Returns:
        `[B, C]` in the precision of `image_features`: the factor times the cosine.

    Raises:
        ShapeError: The widths differ, or there is not one class matrix an image.
        ValueRangeError: Class weights are not of unit length (tolerance 1e-3): the mark of a raw embedding.

    Source: Radford et al., 2021, arXiv:2103.00020, figure 3.
    """
    if class_weights.shape[-1] != image_features.shape[-1]:
        raise ShapeError(
            f"class weights of width {class_weights.shape[-1]} for image features of width {image_features.shape[-1]}.",
            "Encode both with the same model.",
        )
    check_unit_rows(class_weights)
    weights = class_weights.to(image_features.dtype)
    if weights.ndim == 3:
        if len(weights) != len(image_features):
            raise ShapeError(
                f"{len(weights)} class matrices for {len(image_features)} images.", "Give one each or one for all."
            )
        similarity = torch.einsum("bd,bcd->bc", image_features, weights)
    else:
        similarity = F.linear(image_features, weights)
    return logit_scale * similarity


def check_unit_rows(class_weights: Tensor) -> None:
    """Refuse class weights `[..., D]` that are not of unit length (tolerance 1e-3).

    Raises:
        ValueRangeError: Names the shortest and longest row.
    """
    lengths = torch.linalg.vector_norm(class_weights.detach(), dim=-1)
    if not torch.allclose(lengths, torch.ones_like(lengths), atol=1e-3):
        raise ValueRangeError(
            f"class weights have lengths from {lengths.min():.4g} to {lengths.max():.4g}, expected 1.",
            "Use text_features, or normalise the rows.",
        )


def encode_classes(model: CLIPModel, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Encode classes as unit rows `[C, D]`: mean over templates of unit text features, renormalised.

    A model whose learned words take the place of a template has one prompt a class, whatever templates are given.
    Differentiable with respect to the text tower and its prompts; in float32 also inside `computing`.

    Raises:
        ConfigError: Nothing to encode, or a template without `{}`.
    """
    if isinstance(class_names, str) or not class_names or isinstance(templates, str) or not templates:
        raise ConfigError(
            f"{len(class_names)} class names and {len(templates)} templates.", "Give a list of at least one of each."
        )
    words = None if model.prompts is None else model.prompts.words
    filled = [
        fill_templates(name, templates) if words is None else [f"{words[0]}{name}{words[1]}"] for name in class_names
    ]
    prompts = [prompt for each in filled for prompt in each]
    with model.computing(torch.float32):
        batches = [model.text_features(prompts[start : start + 256]) for start in range(0, len(prompts), 256)]
    features = torch.cat(batches).view(len(class_names), len(filled[0]), -1)
    return F.normalize(features.mean(dim=1), dim=-1)
