"""One training step as published code does it, on stock open_clip: what ours is compared with.

Written afresh from what the code does, not from its text; each subclass says what that is. Pixels are float32 in
[0, 1], attacked there, normalised before the tower. Two things differ from the published code, neither in what is
multiplied: gradients that the attack leaves in the parameters are cleared before the loss (the code adds them to its
gradients), and losses are those of our methods (logit scale 100 and means over the batch where PMG-AFT's code has
neither). So a step here and a step of ours move the weights alike, which a test shows.

`tuned=True` is the same with its two cheapest repairs: class embeddings encoded once, and bfloat16 autocast.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ironclip.models.preprocessing import Preprocessing


class PublishedStep(ABC):
    """A step on one batch.

    Args:
        clip: A stock open_clip model in float32, the student; where there is a teacher it begins as a copy.
        ids: Tokens of the class prompts, `[C, L]`.
        preprocessing: Its mean and deviation.
        pixels: `[B, 3, R, R]` in [0, 1], at the model's resolution.
        labels: `[B]`.
        tuned: Encode the class prompts once, and run passes under bfloat16 autocast.
    """

    eps: ClassVar[float] = 1 / 255
    step_size: ClassVar[float] = 1 / 255
    attack_steps: ClassVar[int] = 2
    has_teacher: ClassVar[bool] = False

    def __init__(
        self,
        clip: Any,
        ids: Tensor,
        preprocessing: Preprocessing,
        pixels: Tensor,
        labels: Tensor,
        *,
        tuned: bool = False,
    ) -> None:
        self.clip, self.ids, self.pixels, self.labels, self.tuned = clip, ids, pixels, labels, tuned
        self.original = copy.deepcopy(clip) if self.has_teacher else None
        self.mean, self.std = (
            torch.tensor(values, device=pixels.device).view(1, 3, 1, 1)
            for values in (preprocessing.mean, preprocessing.std)
        )
        self.random = torch.Generator().manual_seed(0)
        self.text: Tensor | None = None
        self.optimiser = self.build_optimiser()

    def build_optimiser(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.clip.visual.parameters(), lr=1e-5, momentum=0.9)

    def __call__(self, start: Tensor | None = None) -> Tensor:
        """Do one optimiser step, from the attack's start `[B, 3, R, R]` or one that is drawn; return the loss."""
        loss = self.differentiate(start)
        self.optimiser.step()
        return loss

    def differentiate(self, start: Tensor | None = None) -> Tensor:
        """Attack the batch and leave the gradients of the loss in the parameters; return the loss."""
        if start is None:
            noise = torch.rand(self.pixels.shape, generator=self.random).to(self.pixels.device)
            start = self.first_delta((2 * noise - 1) * self.eps)
        self.clip.zero_grad()
        with self.precision():
            loss = self.loss(start)
        loss.backward()
        return loss.detach()

    def precision(self) -> AbstractContextManager[object]:
        device = self.pixels.device.type
        # Without numbers there is no precision either: the operations are the same ones.
        return torch.autocast(device, torch.bfloat16) if self.tuned and device != "meta" else nullcontext()

    def first_delta(self, noise: Tensor) -> Tensor:
        """Keep the start inside the image range."""
        return self.clipped(noise)

    def clipped(self, delta: Tensor) -> Tensor:
        """Project a perturbation into ball and box."""
        return torch.max(torch.min(delta.clamp(-self.eps, self.eps), 1 - self.pixels), -self.pixels)

    def embed(self, model: Any, pixels: Tensor) -> Tensor:
        embedding: Tensor = model.encode_image((pixels - self.mean) / self.std)
        return embedding.float()

    def cached_text(self) -> Tensor:
        """Return unit rows of the class prompts, encoded once without gradients."""
        if self.text is None:
            with torch.no_grad():
                self.text = self.clip.encode_text(self.ids, normalize=True).float()
        return self.text

    def logits(self, model: Any, pixels: Tensor) -> Tensor:
        """Score images against all class prompts, `[B, C]`; images and prompts pass through the model together."""
        if self.tuned:
            return model.logit_scale.exp() * F.linear(
                F.normalize(self.embed(model, pixels), dim=-1), self.cached_text()
            )
        image, text, scale = model((pixels - self.mean) / self.std, self.ids)
        return scale * image @ text.T

    @abstractmethod
    def loss(self, start: Tensor) -> Tensor:
        """Attack, and return what is minimised."""

    def on_meta(self) -> PublishedStep:
        """Return the same step without numbers, whose operations can be counted in no time."""
        other = copy.copy(self)
        other.clip = copy.deepcopy(self.clip).to("meta")
        other.original = None if self.original is None else copy.deepcopy(self.original).to("meta")
        for name in ("ids", "pixels", "labels", "mean", "std"):
            setattr(other, name, getattr(self, name).to("meta"))
        other.text = None if self.text is None else self.text.to("meta")
        return other


class TeCoA(PublishedStep):
    """Images and all class prompts pass through the model together, each time.

    The text tower is not in the optimiser, but nothing freezes it, so every backward pass goes through it too; the
    attack calls `backward`, so each of its steps computes the gradients of all weights of both towers.
    """

    def loss(self, start: Tensor) -> Tensor:
        delta = self.attacked(start)
        self.clip.zero_grad()
        return F.cross_entropy(self.logits(self.clip, self.pixels + delta), self.labels)

    def attacked(self, start: Tensor) -> Tensor:
        delta = start.clone().requires_grad_(True)
        for _ in range(self.attack_steps):
            F.cross_entropy(self.logits(self.clip, self.pixels + delta), self.labels).backward()
            if delta.grad is None:
                raise RuntimeError("the loss does not depend on the perturbation")
            with torch.no_grad():
                delta.copy_(self.clipped(delta + self.step_size * delta.grad.sign()))
                delta.grad.zero_()
        return delta.detach()


class PMGAFT(TeCoA):
    """TeCoA's attack; then three passes of images and prompts: attacked, the original's of these, and clean.

    The original's pass is not under `no_grad` and its weights are not frozen, so its graph is kept; the clean
    prediction is not detached, so the loss is differentiated through it.
    """

    has_teacher = True

    def loss(self, start: Tensor) -> Tensor:
        adversarial = self.pixels + self.attacked(start)
        self.clip.zero_grad()
        student = self.logits(self.clip, adversarial)
        teacher = self.logits(self.original, adversarial)
        clean = self.logits(self.clip, self.pixels)
        rows = F.log_softmax(student, dim=1)
        general = F.kl_div(rows, F.softmax(teacher, dim=1), reduction="batchmean")
        kept = F.kl_div(rows, F.softmax(clean, dim=1), reduction="batchmean")
        total: Tensor = F.cross_entropy(student, self.labels) + general + kept
        return total


class Fare(PublishedStep):
    """No text. The attack differentiates by the perturbation alone; every weight keeps its graph.

    The original's clean embedding is computed at each step, and the student's clean embedding too, with its graph,
    though its weight in the loss is 0. The start may leave [0, 1].
    """

    eps: ClassVar[float] = 2 / 255
    attack_steps: ClassVar[int] = 10
    has_teacher = True

    def build_optimiser(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.clip.visual.parameters(), lr=1e-5, weight_decay=1e-4)

    def first_delta(self, noise: Tensor) -> Tensor:
        return noise

    def loss(self, start: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.embed(self.original, self.pixels)
        delta, velocity = start.clone(), torch.zeros_like(start)
        for _ in range(self.attack_steps):
            delta.requires_grad_(True)
            distance = (self.embed(self.clip, self.pixels + delta) - target).square().sum(dim=1).mean()
            (gradient,) = torch.autograd.grad(distance, delta)
            velocity = (0.9 * velocity + gradient.sign()).sign()
            delta = delta.detach() + self.step_size * velocity
            delta = (self.pixels + delta.clamp(-self.eps, self.eps)).clamp(0, 1) - self.pixels
        self.embed(self.clip, self.pixels)
        return (self.embed(self.clip, self.pixels + delta) - target).square().sum(dim=1).mean()


class AGFT(PublishedStep):
    """The text is encoded once; the attack differentiates by the images alone; the original sees the clean images."""

    has_teacher = True
    relative_scale: ClassVar[float] = 1.8
    calibration: ClassVar[float] = 0.4

    def loss(self, start: Tensor) -> Tensor:
        scale = self.relative_scale * self.clip.logit_scale.detach().exp()
        with torch.no_grad():
            target = F.softmax(self.calibration * scale * self.similarity(self.original, self.pixels), dim=1)
        delta = start
        for _ in range(self.attack_steps):
            delta = delta.detach().requires_grad_(True)
            cost = F.cross_entropy(scale * self.similarity(self.clip, self.pixels + delta), target)
            (gradient,) = torch.autograd.grad(cost, delta)
            delta = self.clipped(delta.detach() + self.step_size * gradient.sign())
        return F.cross_entropy(scale * self.similarity(self.clip, self.pixels + delta), target)

    def similarity(self, model: Any, pixels: Tensor) -> Tensor:
        return F.linear(F.normalize(self.embed(model, pixels), dim=-1), self.cached_text())


STEPS: dict[str, type[PublishedStep]] = {"tecoa": TeCoA, "pmg_aft": PMGAFT, "fare": Fare, "agft": AGFT}
OPTIONS: dict[str, dict[str, Any]] = {"pmg_aft": {"detach_clean": False}}
"""Settings of our methods under which they minimise what the published step does."""
