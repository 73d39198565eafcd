"""The contract of a method: what it tunes, which passes it reads, what its adversary maximises, what it minimises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ironclip.attacks.objectives import Misclassify, Objective
from ironclip.attacks.text.objectives import TextObjective
from ironclip.errors import ConfigError, DataError
from ironclip.models.clip import CLIPModel
from ironclip.models.preprocessing import Preprocessing
from ironclip.models.tuning import Tunable
from ironclip.models.zero_shot import FixedClasses
from ironclip.registry import Registry


class Pass(Enum):
    """A forward pass whose result a loss may read, as `views.<model>.<view>`."""

    STUDENT_CLEAN = "student.clean"
    STUDENT_ADV = "student.adv"
    STUDENT_TEXT = "student.text"
    STUDENT_TEXT_ADV = "student.text_adv"
    TEACHER_CLEAN = "teacher.clean"
    TEACHER_ADV = "teacher.adv"
    TEACHER_TEXT = "teacher.text"
    TEACHER_TEXT_ADV = "teacher.text_adv"
    STUDENT_CLEAN_PATCHES = "student.clean_patches"
    STUDENT_ADV_PATCHES = "student.adv_patches"
    TEACHER_CLEAN_PATCHES = "teacher.clean_patches"
    TEACHER_ADV_PATCHES = "teacher.adv_patches"


@dataclass(frozen=True)
class Batch:
    """Samples of one step.

    Attributes:
        keys: One stable key a sample.
        pixels: Float32 `[B, 3, H, W]` in [0, 1].
        labels: `[B]` int64, or None where the data have none.
        captions: One tuple of texts a sample, empty where there are none.
        class_weights: Unit rows `[C, D]` of the class prompts as the student's text tower sees them now, or None.
        extra_class_weights: Likewise, in the templates that the method adds (`Method.extra_templates`), by their names.
        texts: One a sample, its first caption or the first prompt of its class; empty where the method reads none.
        epoch: In which it is seen, which draws hang on.
    """

    keys: Sequence[str]
    pixels: Tensor
    labels: Tensor | None = None
    captions: Sequence[tuple[str, ...]] = ()
    class_weights: Tensor | None = None
    extra_class_weights: Mapping[str, Tensor] = field(default_factory=dict)
    texts: Sequence[str] = ()
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class ImageView:
    """One version of the images, seen by one model.

    Attributes:
        embedding: `[B, D]`, raw, float32.
        class_weights: Unit rows `[C, D]` of the same model's text tower; None where there are no classes.
    """

    embedding: Tensor
    class_weights: Tensor | None

    @cached_property
    def features(self) -> Tensor:
        """Unit rows `[B, D]`."""
        return F.normalize(self.embedding, dim=-1)

    @cached_property
    def similarity(self) -> Tensor:
        """Cosines `[B, C]` in [-1, 1]; multiply by a scale to get logits."""
        if self.class_weights is None:
            raise DataError(
                "the method compares images with classes, but the data have no class names.", "Use labelled data."
            )
        return F.linear(self.features, self.class_weights)


@dataclass(frozen=True)
class TextView:
    """Texts (class prompts or captions), seen by one model: `embedding` `[N, D]`, raw, float32."""

    embedding: Tensor

    @cached_property
    def features(self) -> Tensor:
        """Unit rows `[N, D]`."""
        return F.normalize(self.embedding, dim=-1)


class ModelViews:
    """What one model says of the batch: `.clean`, `.adv` (ImageView), `.text`, `.text_adv` (TextView), `.…_patches`.

    Raises:
        ConfigError: A pass is read that the method's `needs` does not name; says which to add.
    """

    def __init__(self, model: Literal["student", "teacher"], passes: Mapping[Pass, object], method: str) -> None:
        self._model, self._passes, self._method = model, passes, method

    def _read(self, view: str) -> object:
        wanted = Pass(f"{self._model}.{view}")
        if wanted not in self._passes:
            raise ConfigError(
                f'method "{self._method}" reads views.{wanted.value}, which its `needs` does not name.',
                f"Add Pass.{wanted.name} to `needs` of the method.",
            )
        return self._passes[wanted]

    @property
    def clean(self) -> ImageView:
        """The images as they are."""
        return cast(ImageView, self._read("clean"))

    @property
    def adv(self) -> ImageView:
        """The images as the adversary left them."""
        return cast(ImageView, self._read("adv"))

    @property
    def text(self) -> TextView:
        """The batch's texts as they are."""
        return cast(TextView, self._read("text"))

    @property
    def text_adv(self) -> TextView:
        """The batch's texts as the adversary left them."""
        return cast(TextView, self._read("text_adv"))

    @property
    def clean_patches(self) -> Tensor:
        """Projected patch tokens `[B, P, D]` of the images as they are."""
        return cast(Tensor, self._read("clean_patches"))

    @property
    def adv_patches(self) -> Tensor:
        """Projected patch tokens `[B, P, D]` of the images as the adversary left them."""
        return cast(Tensor, self._read("adv_patches"))


class Views:
    """The passes that a method declared, each computed once.

    Attributes:
        student: The model that is tuned; its passes carry gradients.
        teacher: The frozen original; its passes carry none.
        logit_scale: The student's factor on cosines, a float32 scalar.
        input_resolution: Side of the square that the image tower reads, in pixels.
    """

    def __init__(
        self,
        method: str,
        batch: Batch,
        passes: Mapping[Pass, object],
        logit_scale: Tensor,
        input_resolution: int = 224,
    ) -> None:
        self.student = ModelViews("student", passes, method)
        self.teacher = ModelViews("teacher", passes, method)
        self.logit_scale, self.input_resolution = logit_scale, input_resolution
        self._method, self._batch = method, batch

    @property
    def labels(self) -> Tensor:
        """Labels `[B]` int64.

        Raises:
            DataError: The data have none.
        """
        if self._batch.labels is None:
            raise DataError(
                f'method "{self._method}" needs labels, but the data have none.', "Use labelled data, or fare."
            )
        return self._batch.labels

    @property
    def positives(self) -> Tensor:
        """Which images and texts of the batch belong together, bool `[B, B]`: those of a sample, or of a class."""
        if self._batch.labels is None:
            return torch.eye(len(self._batch), dtype=torch.bool, device=self._batch.pixels.device)
        return self._batch.labels[:, None] == self._batch.labels[None, :]

    def class_weights(self, templates: str | None = None) -> Tensor:
        """Return the unit rows `[C, D]` of the class prompts, or of the templates that the method adds by a name.

        Raises:
            DataError: The data have no class names.
        """
        weights = self._batch.class_weights if templates is None else self._batch.extra_class_weights.get(templates)
        if weights is None:
            raise DataError(
                f'method "{self._method}" reads class prompts, but the data have no class names.', "Use labelled data."
            )
        return weights


class Teacher:
    """The frozen original model; what it says of a batch is computed once a batch.

    Attributes:
        known: Gives the embedding of a batch's clean images where it is known already (the teacher cache), else None.
    """

    known: Callable[[Batch], Tensor | None] | None = None

    def __init__(self, model: CLIPModel) -> None:
        self.model = model.eval().requires_grad_(False)
        self._last: tuple[Tensor, Tensor] | None = None
        self._last_texts: tuple[Sequence[str], Tensor] | None = None

    @torch.no_grad()
    def embedding(self, batch: Batch) -> Tensor:
        """Return the raw embedding of the clean images, `[B, D]` without gradient."""
        if self._last is None or self._last[0] is not batch.pixels:
            found = None if self.known is None else self.known(batch)
            self._last = (batch.pixels, self.model.embed_image(batch.pixels) if found is None else found)
        return self._last[1]

    @torch.no_grad()
    def text_embedding(self, batch: Batch) -> Tensor:
        """Return the raw embedding of the batch's texts, `[B, D]` without gradient."""
        if self._last_texts is None or self._last_texts[0] is not batch.texts:
            self._last_texts = (batch.texts, self.model.embed_text(batch.texts))
        return self._last_texts[1]


@dataclass(frozen=True)
class Inner:
    """An inner problem: what the adversary maximises. With which attack, and in which ball, the recipe says."""

    objective: Objective | TextObjective


def misclassify(method: str, batch: Batch, model: CLIPModel, *, logit_scale: float | None = None) -> Inner:
    """Maximise the student's cross-entropy over all class prompts, as TeCoA does and most methods after it.

    Args:
        method: Whose inner problem this is.
        batch: The samples.
        model: The student.
        logit_scale: The factor on cosines where it is not the model's own.

    Raises:
        DataError: The data have no labels or no class names.
    """
    if batch.labels is None or batch.class_weights is None:
        raise DataError(f'method "{method}" needs labels and class names.', "Use labelled data, or the method fare.")
    classifier = FixedClasses(model, batch.class_weights, logit_scale=logit_scale)
    return Inner(Misclassify(classifier, batch.labels, loss="ce"))


class Method(ABC):
    """One way of tuning, a frozen dataclass of its settings; subclasses are files of this folder.

    Attributes:
        name: Name in the registry.
        trains: Which part of the model is tuned.
        reads_classes: It compares images with class prompts, so the data must be labelled.
        text_attack: The text attack, by name with settings, of a recipe that gives none; None where the method attacks
            no texts.
    """

    name: ClassVar[str]
    trains: ClassVar[Tunable] = Tunable.VISION
    reads_classes: ClassVar[bool] = True
    text_attack: ClassVar[Mapping[str, Any] | None] = None

    @property
    def across_batch(self) -> bool:
        """The loss of a sample reads other samples (contrastive terms): the engine then refuses to split the batch."""
        return False

    @property
    def extra_templates(self) -> Mapping[str, Sequence[str]]:
        """Further prompt templates of the classes, encoded like the data's own; `views.class_weights(name)`."""
        return {}

    def attach(self, model: CLIPModel, templates: Sequence[str], seed: int) -> None:
        """Put the prompts or adapters that it tunes into the student; nothing for a method that tunes towers.

        Args:
            model: The student, as it was loaded.
            templates: Of the recipe or of the data; none where there are no classes.
            seed: Of the recipe; what is drawn is a function of it.
        """
        return

    @property
    def average(self) -> float:
        """Share that a running average of the tuned parameters keeps at a step; 0 for a method that keeps none."""
        return 0.0

    def at_test(self, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the tuned parameters (their averages, if any) as they are evaluated and saved; by default as is."""
        return parameters

    @property
    def attack_scope(self) -> Literal["epoch", "run"]:
        """Whether attacks start anew each epoch, or a sample's draws are the same all the run."""
        return "epoch"

    @property
    def draws_templates(self) -> bool:
        """Whether a sample's text is any of its class's prompts, drawn each epoch, instead of the first."""
        return False

    def preprocessing(self, own: Preprocessing) -> Preprocessing:
        """Return what lies between pixels and towers in this run: the model's own, unless published code had others."""
        return own

    @property
    @abstractmethod
    def needs(self) -> frozenset[Pass]:
        """The passes that `loss` reads."""

    @abstractmethod
    def adversaries(self, batch: Batch, model: CLIPModel, teacher: Teacher) -> Mapping[Literal["image", "text"], Inner]:
        """Return the inner problems; none for a method that is not adversarial."""

    @abstractmethod
    def loss(self, views: Views) -> Mapping[str, Tensor]:
        """Return named scalar terms, means over the batch; their sum is minimised."""

    def watch(self, batch: Batch, model: CLIPModel, teacher: Teacher) -> Mapping[str, float]:
        """Return figures to be logged beside the loss, taken before the step and without gradients; none by default.

        Raises:
            RunFailedError: They show that going on is pointless.
        """
        return {}


METHODS: Registry[Method] = Registry("method", "ironclip.methods")
register_method = METHODS.register
