"""What an adversary maximises, and when it has won."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ironclip.errors import ConfigError, RegistryError, ShapeError, did_you_mean
from ironclip.losses import classification as losses
from ironclip.losses.embedding import squared_distance


@dataclass(frozen=True)
class Evaluation:
    """What an objective says of a batch of points.

    Attributes:
        value: `[B]`, what the adversary maximises; float32, with graph where gradients are on.
        broken: `[B]` bool, where the adversary has reached its goal; all False where there is no such thing.
        margin: `[B]`, how far beyond its goal the adversary is (true logit against the best other, or the target
            against the best other); positive where broken, 0 on a tie. None where there is no such thing.
        logits: `[B, C]` float32, or None.
    """

    value: Tensor
    broken: Tensor
    margin: Tensor | None = None
    logits: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Evaluation:
        """Return the evaluation with every part that there is changed."""
        margin = None if self.margin is None else change(self.margin)
        logits = None if self.logits is None else change(self.logits)
        return Evaluation(change(self.value), change(self.broken), margin, logits)


class Objective(ABC):
    """A value a row to be maximised over pixels; rows do not know of each other.

    A user's own is five lines: subclass, hold what it needs, define `evaluate` and `take`; docs/attacks.md shows one.
    """

    @abstractmethod
    def evaluate(self, pixels: Tensor) -> Evaluation:
        """Return value, success and logits at `[B, 3, H, W]`."""

    @abstractmethod
    def take(self, rows: Tensor) -> Objective:
        """Return the objective of the given rows, in that order (repeats allowed)."""

    def rivals(self, evaluation: Evaluation, count: int) -> Tensor:
        """Return the classes at which an attack may aim, nearest first, `[B, K]` int64 with K at most `count`.

        Raises:
            ConfigError: There are no classes to aim at.
        """
        raise ConfigError(f"{type(self).__name__} has no classes to aim at.", "Use an attack without targets: apgd.")

    def aim(self, evaluation: Evaluation, targets: Tensor, loss: str) -> Tensor:
        """Return a value `[B]`, with the evaluation's graph, that leads to the classes `targets` `[B]`.

        Raises:
            ConfigError: There are no classes to aim at.
        """
        raise ConfigError(f"{type(self).__name__} has no classes to aim at.", "Use an attack without targets: apgd.")

    def embed(self, pixels: Tensor) -> Tensor:
        """Return what the model makes of images before any class is named, `[B, D]`, with graph.

        Raises:
            ConfigError: The objective knows no such thing.
        """
        raise ConfigError(f"{type(self).__name__} embeds no images.", "Use an attack on its value: apgd.")

    @property
    def class_names(self) -> Sequence[str]:
        """Words for the classes; empty where they are not known."""
        return ()

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the value `[B]`."""
        return self.evaluate(pixels).value

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The modules that it runs, which an attack freezes and leaves as found."""
        return ()

    @property
    def device(self) -> torch.device:
        """Where pixels have to lie: with the modules, and on the CPU where there are none."""
        for module in self.modules:
            for tensor in itertools.chain(module.parameters(), module.buffers()):
                return tensor.device
        return torch.device("cpu")

    def computing(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """Run the model in another precision inside the block; float32 only unless the objective says otherwise."""
        if dtype not in self.precisions:
            raise ConfigError(f"{type(self).__name__} does not compute in {dtype}.", "Search in float32.")
        return nullcontext()

    @property
    def precisions(self) -> frozenset[torch.dtype]:
        """The precisions that `computing` takes."""
        return frozenset({torch.float32})

    @property
    def tie_tolerance(self) -> float:
        """Margins below this are ties as far as float32 can tell; the driver settles them in float64."""
        return 0.0


CLASSIFICATION_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": losses.cross_entropy,
    "margin": losses.margin,
    "dlr": losses.dlr,
}
TARGETED_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "ce_t": lambda logits, targets, labels: losses.targeted_cross_entropy(logits, targets),
    "margin_t": losses.targeted_margin,
    "dlr_t": losses.targeted_dlr,
}


def loss_used(loss: str, classes: int) -> str:
    """Name the loss that stands in for `loss` with so few classes (evaluation plan 2.1)."""
    if loss == "dlr" and classes < 3:
        return "margin"
    if loss == "dlr_t" and classes < 4:
        return "margin_t"
    return loss


@dataclass(frozen=True)
class _OfLogits(Objective):
    """What all objectives over a classifier share.

    Attributes:
        classifier: Has `logits(pixels) -> [B, C]`, `computing(dtype)`, `precisions`, `tie_tolerance`
            (models.zero_shot.Classifier); frozen while attacked where it is an nn.Module.
    """

    classifier: Any

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The classifier."""
        return (self.classifier,) if isinstance(self.classifier, nn.Module) else ()

    @property
    def precisions(self) -> frozenset[torch.dtype]:
        """Those of the classifier."""
        return frozenset(self.classifier.precisions)

    @property
    def tie_tolerance(self) -> float:
        """That of the classifier, in units of its logits."""
        return float(self.classifier.tie_tolerance)

    def computing(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """Let the classifier compute in another precision."""
        context: AbstractContextManager[None] = self.classifier.computing(dtype)
        return context

    def embed(self, pixels: Tensor) -> Tensor:
        """Return the raw embedding of a CLIP, and the logits of a classifier that is none."""
        model = getattr(self.classifier, "model", None)
        embedding: Tensor = self.classifier.logits(pixels) if model is None else model.embed_image(pixels)
        return embedding

    @property
    def class_names(self) -> Sequence[str]:
        """Those of the classifier, where it has words."""
        return getattr(self.classifier, "class_names", None) or ()


@dataclass(frozen=True)
class Misclassify(_OfLogits):
    """Make a classifier err: untargeted, or towards `targets` with a targeted loss.

    Attributes:
        classifier: As above.
        labels: `[B]` int64.
        loss: "ce", "margin", "dlr"; with targets "ce_t", "margin_t", "dlr_t".
        targets: `[B]` int64, or None.
        groups: `[C]` int64, for each class the lowest index with the same prompt; None where all differ. Two classes
            of one prompt tie for ever; the lower index wins, and the adversary leaves the other one alone.
    """

    labels: Tensor
    loss: str = "ce"
    targets: Tensor | None = None
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        known = TARGETED_LOSSES if self.targets is not None else CLASSIFICATION_LOSSES
        if self.loss not in known:
            raise RegistryError(
                f'unknown attack loss "{self.loss}".{did_you_mean(self.loss, known)}',
                f"Known here: {', '.join(known)}.",
            )

    def evaluate(self, pixels: Tensor) -> Evaluation:
        """Return loss, success and logits.

        Raises:
            ShapeError: Fewer than two classes.
        """
        logits = self.classifier.logits(pixels)
        if logits.shape[1] < 2:
            raise ShapeError(f"{logits.shape[1]} class to choose from.", "An attack needs at least two classes.")
        wanted = self.labels if self.targets is None else self.targets
        # With a twin among the rivals the margin is 0 whatever the pixels are, and so is its gradient.
        rivals = logits if self.groups is None else logits.masked_fill(_twins(wanted, self.groups) > 0, -torch.inf)
        if self.targets is None:
            value = CLASSIFICATION_LOSSES[self.loss](rivals, self.labels)
            broken = ~is_correct(logits.detach(), self.labels, self.groups)
        else:
            value = TARGETED_LOSSES[self.loss](logits, self.targets, self.labels)
            broken = is_correct(logits.detach(), self.targets, self.groups)
        with torch.no_grad():
            margin = losses.margin(rivals, wanted)
        return Evaluation(value, broken, margin if self.targets is None else -margin, logits)

    def rivals(self, evaluation: Evaluation, count: int) -> Tensor:
        """Return the classes other than the label, largest logit first; those of the label's prompt come last."""
        logits = _logits_of(evaluation)
        if self.groups is not None:
            logits = logits.masked_fill(_twins(self.labels, self.groups) != 0, -torch.inf)
        # Stable, so that the order of ties does not hang on the machine.
        ranked = logits.argsort(dim=1, descending=True, stable=True)
        others = ranked[ranked != self.labels[:, None]].view(len(logits), logits.shape[1] - 1)
        return others[:, :count]

    def aim(self, evaluation: Evaluation, targets: Tensor, loss: str) -> Tensor:
        """Return a targeted loss of the evaluation's logits."""
        return TARGETED_LOSSES[loss](_logits_of(evaluation), targets, self.labels)

    def take(self, rows: Tensor) -> Misclassify:
        """Return the objective of the given rows."""
        return replace(self, labels=self.labels[rows], targets=None if self.targets is None else self.targets[rows])

    @property
    def device(self) -> torch.device:
        """That of the labels, which lie where the logits do."""
        return self.labels.device


@dataclass(frozen=True)
class LeavePrediction(_OfLogits):
    """Push the prediction away from given probabilities: cross-entropy against soft labels. Needs no labels.

    It is KL(target || prediction) up to the target's entropy, a constant: the gradients are the same.

    Attributes:
        classifier: As above.
        target: `[B, C]`, rows sum to 1, no gradient.
    """

    target: Tensor

    def evaluate(self, pixels: Tensor) -> Evaluation:
        """Return the cross-entropy and the logits; nothing is ever broken."""
        logits = self.classifier.logits(pixels)
        value = losses.soft_cross_entropy(logits, self.target)
        return Evaluation(value, torch.zeros_like(value, dtype=torch.bool), logits=logits)

    def take(self, rows: Tensor) -> LeavePrediction:
        """Return the objective of the given rows."""
        return replace(self, target=self.target[rows])

    @property
    def device(self) -> torch.device:
        """That of the target, which lies where the logits do."""
        return self.target.device


def _logits_of(evaluation: Evaluation) -> Tensor:
    if evaluation.logits is None:
        raise TypeError("an evaluation of a classifier gives logits")
    return evaluation.logits


def is_correct(logits: Tensor, labels: Tensor, groups: Tensor | None = None) -> Tensor:
    """Say where the label's class alone holds the largest logit, `[B]` bool; non-finite logits are never correct.

    A tie with a class of another prompt is wrong. Classes of one prompt tie by definition, and the lowest index has it
    (evaluation plan 1.4): their logits are not compared, since in floating point they differ by where they stand.
    """
    rivals = logits >= logits.gather(1, labels[:, None])
    rivals.scatter_(1, labels[:, None], False)
    if groups is not None:
        twins = _twins(labels, groups)
        rivals = torch.where(twins == 0, rivals, twins < 0)
    return ~rivals.any(dim=1) & torch.isfinite(logits).all(dim=1)


def _twins(labels: Tensor, groups: Tensor) -> Tensor:
    """Mark the other classes of each label's prompt, `[B, C]`: -1 before the label, 1 after it, 0 elsewhere."""
    index = torch.arange(len(groups), device=groups.device)
    return (index[None, :] - labels[:, None]).sign() * (groups[None, :] == groups[labels][:, None])


def predict(logits: Tensor, labels: Tensor, broken: Tensor) -> Tensor:
    """Return the predicted class `[B]`: the label where the verdict is right, else the best class other than it."""
    wrong = logits.scatter(1, labels[:, None], -torch.inf).argmax(dim=1)
    return torch.where(broken, wrong, labels)


@dataclass(frozen=True)
class EmbeddingDistance(Objective):
    """Push the embedding away from where it belongs: squared L2 distance to a fixed target. Needs no labels.

    Attributes:
        model: Has `embed_image(pixels) -> [B, D]` and `computing(dtype)`.
        target: `[B, D]`, raw, no gradient.

    Source: the inner problem of FARE, Schlarmann et al., ICML 2024, arXiv:2402.12336. At a target that the model
    itself produces the gradient is zero: start at random.
    """

    model: Any
    target: Tensor

    def evaluate(self, pixels: Tensor) -> Evaluation:
        """Return the distance; nothing is ever broken."""
        value = squared_distance(self.model.embed_image(pixels), self.target)
        return Evaluation(value, torch.zeros_like(value, dtype=torch.bool))

    def take(self, rows: Tensor) -> EmbeddingDistance:
        """Return the objective of the given rows."""
        return replace(self, target=self.target[rows])

    @property
    def device(self) -> torch.device:
        """That of the target."""
        return self.target.device

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The model."""
        return (self.model,) if isinstance(self.model, nn.Module) else ()

    @property
    def precisions(self) -> frozenset[torch.dtype]:
        """Those of CLIPModel."""
        return frozenset({torch.bfloat16, torch.float32, torch.float64})

    def computing(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """Let the model compute in another precision."""
        context: AbstractContextManager[None] = self.model.computing(dtype)
        return context


def input_gradient(
    objective: Objective, pixels: Tensor, value_of: Callable[[Evaluation], Tensor] = lambda evaluation: evaluation.value
) -> tuple[Tensor, Evaluation]:
    """Differentiate the summed value by the pixels, and only by them.

    Summed, never averaged: a mean would make gradients depend on the batch and underflow. A NaN entry becomes 0, so
    that one bad row does not stop the others.

    Args:
        objective: What is evaluated.
        pixels: `[B, 3, H, W]`.
        value_of: The value `[B]` to differentiate, where it is not the objective's own.

    Returns:
        Gradient `[B, 3, H, W]` and the (detached) evaluation at the same points.

    Raises:
        ConfigError: The value does not hang on the pixels by differentiable operations. Going on with a gradient of
            zero would call such a model robust.
    """
    with torch.enable_grad():
        leaf = pixels.detach().requires_grad_(True)
        evaluation = objective.evaluate(leaf)
        gradient = gradient_of(value_of(evaluation), leaf)
    return gradient, evaluation.each(Tensor.detach)


def gradient_of(value: Tensor, leaf: Tensor, *, keep_graph: bool = False) -> Tensor:
    """Differentiate values `[B]`, summed, by the pixels that they were computed from; a NaN entry becomes 0.

    Args:
        value: With its graph.
        leaf: `[B, 3, H, W]`.
        keep_graph: Other values of the same graph are to be differentiated, too.

    Raises:
        ConfigError: The value does not hang on the pixels by differentiable operations.
    """
    gradient = None
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True, retain_graph=keep_graph or None)
    if gradient is None:
        raise ConfigError(
            "the model gives no gradient with respect to the pixels, which this attack needs.",
            "Keep detach(), no_grad() and numpy out of its forward, or use an attack without gradients.",
        )
    return torch.nan_to_num(gradient, nan=0.0)


@contextmanager
def frozen(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put modules into eval mode with frozen parameters, and leave everything as found, also after an exception.

    `.grad` is not touched by `input_gradient`, hence needs no care here.
    """
    modes = [(module, module.training) for root in modules for module in root.modules()]
    wants = [(parameter, parameter.requires_grad) for root in modules for parameter in root.parameters()]
    try:
        for root in modules:
            root.eval()
        for parameter, _ in wants:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, want in wants:
            parameter.requires_grad_(want)
