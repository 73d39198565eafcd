"""What a recipe costs, on paper: hours and memory from counted operations, without data and without weights.

Passes come from a rehearsal (`cost_passes`), their operations from the towers' sizes (`cost_towers`), and time from a
stated or a measured rate (`cost_rates`). What is assumed is part of the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, inf

from ironclip.errors import ConfigError
from ironclip.models.clip import CLIPModel
from ironclip.models.fast_text import ROWS
from ironclip.models.tuning import Tunable, tuned_parameters
from ironclip.training.cost_models import paper_model, read_architecture
from ironclip.training.cost_passes import Pass, Passes, rehearse
from ironclip.training.cost_rates import MeasuredRates, Rates, StatedRates
from ironclip.training.cost_towers import Gradients, Tower, tower_sizes
from ironclip.training.recipe import Recipe

TRAINING_SETS = {
    "imagenet": (1_281_167, 1000),
    "tinyimagenet": (100_000, 200),
    "cifar100": (50_000, 100),
    "cifar10": (50_000, 10),
    "caltech101": (4_128, 100),
    "coco": (118_287, 0),
}
"""Images and classes (0: captions) of published training splits, by their names without case and underscores:
Caltech-101 as CoOp splits it (arXiv:2109.01134), COCO of 2017."""

BANDWIDTH = 450e9
"""Bytes a second from one accelerator to the next: NVLink of the H200, one direction."""

DISK = 1e9
"""Bytes a second of checkpoints."""

STATES = {"sgd": 1, "adam": 2, "adamw": 2}
"""Numbers that an optimiser keeps of each parameter."""

PIXEL_COPIES = 8
"""Tensors of the batch's images in float32 at one time: clean, attacked, start, gradient and what PGD makes of them."""

PROCESS = 0.8e9
"""Bytes of Python, torch and their libraries; on an accelerator of its context."""


@dataclass(frozen=True, kw_only=True)
class CostSettings:
    """Where a recipe is to run.

    Attributes:
        peak: Operations a second of one device's bfloat16 products; None to measure this machine.
        gpus: Devices that share a batch, each with the whole model.
        samples: Of the training data, where the recipe counts epochs of a source of unknown size.
        classes: Of the training data, likewise, where texts are encoded at every step.
        architecture: Of the model, where its source does not tell.
        bandwidth: Between devices, bytes a second.
        device: That is measured without a peak.
    """

    peak: float | None = None
    gpus: int = 1
    samples: int | None = None
    classes: int | None = None
    architecture: str | None = None
    bandwidth: float = BANDWIDTH
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("peak", "bandwidth"):
            value = getattr(self, name)
            if value is not None and not 0 < value < inf:
                raise ConfigError(f"--{name} is {value}.", "Give a positive number a second, such as 400e12.")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run costs.

    Attributes:
        steps: Optimiser steps, those of a sweep among them.
        images: Samples seen in all.
        step_operations: Of one optimiser step, by its parts.
        operations: Of the whole run.
        step_seconds: Of one optimiser step, by its parts.
        seconds: Of the whole run, the clock's.
        images_per_second: While training.
        memory: Bytes a device, by what they hold.
        communicated: Bytes that each device sends a step.
        assumed: What all this rests on, a line each.
    """

    steps: int
    images: int
    step_operations: Mapping[str, float]
    operations: float
    step_seconds: Mapping[str, float]
    seconds: float
    images_per_second: float
    memory: Mapping[str, float]
    communicated: float
    assumed: tuple[str, ...]

    @property
    def peak_memory(self) -> float:
        """Bytes a device, in all."""
        return sum(self.memory.values())


@dataclass
class _Run:
    """A recipe at its real sizes."""

    recipe: Recipe
    settings: CostSettings
    image: Tower
    text: Tower
    tuned: int
    classes: int

    @property
    def part(self) -> float:
        """Samples of a device that pass through the model together."""
        optimisation = self.recipe.optimisation
        return optimisation.batch_size / optimisation.accumulate / self.settings.gpus

    def tower(self, seen: Pass) -> Tower:
        return self.image if seen.tower == "image" else self.text

    def tokens(self, seen: Pass) -> int:
        return self.image.tokens + seen.tokens if seen.tower == "image" else seen.tokens

    def rows(self, seen: Pass, rows: float) -> float:
        """Return the rows of a device in one part of a batch; the fast path fills texts up to a multiple of 16."""
        count = rows * (self.classes if seen.part == "classes" else self.part)
        return count if seen.tower == "image" else ceil(count / ROWS) * ROWS

    def operations(self, seen: Pass) -> float:
        """Count one row's."""
        recomputed = seen.part in ("loss", "classes") and self.recipe.optimisation.checkpoint_activations
        return self.tower(seen).operations(
            seen.gradients,
            tokens=self.tokens(seen),
            patches=seen.patches,
            beside=seen.beside,
            recomputed=recomputed and seen.gradients is not Gradients.PIXELS,
        )

    def count(self, passes: Passes) -> dict[str, float]:
        """Count the operations of all devices a step, by part."""
        found: dict[str, float] = {}
        for seen, rows in passes.items():
            all_rows = self.rows(seen, rows) * self.recipe.optimisation.accumulate * self.settings.gpus
            found[seen.part] = found.get(seen.part, 0.0) + all_rows * self.operations(seen)
        if self.recipe.build_method().trains is Tunable.ADAPTERS:
            merged = self.merging(passes) * self.recipe.optimisation.accumulate * self.settings.gpus
            return {"adapters": merged} | found if merged else found
        return found

    def merging(self, passes: Passes) -> float:
        """Count what it takes to let weights swallow adapters: once for the kept copy, twice where it is tuned."""
        students = {(seen.part, seen.tower, seen.gradients.adapters) for seen in passes if not seen.beside}
        students = {one for one in students if one[0] != "teacher"}
        kept = {tower for _, tower, tuned in students if not tuned}
        copies = [*kept, *(tower for _, tower, tuned in students if tuned for _ in range(2))]
        return sum((self.image if tower == "image" else self.text).merging() for tower in copies)

    def time(self, passes: Passes, rates: Rates) -> dict[str, float]:
        """Return a device's seconds a step, by part."""
        found: dict[str, float] = {}
        for seen, rows in passes.items():
            own = self.rows(seen, rows) * self.recipe.optimisation.accumulate
            seconds = rates.seconds(seen, self.tower(seen), own * self.operations(seen), self.rows(seen, 1))
            found[seen.part] = found.get(seen.part, 0.0) + seconds
        return found

    def alone(self, passes: Passes, rates: Rates, times: float) -> tuple[float, float]:
        """Return operations and seconds of passes that one device does so many times, of a whole batch each."""
        operations, seconds = (sum(found.values()) * times for found in (self.count(passes), self.time(passes, rates)))
        # Class prompts are encoded by each device for itself, images by one for all.
        shared = 1 if all(seen.part == "classes" for seen in passes) else self.settings.gpus
        return operations, seconds * shared

    def memory(self, passes: Passes) -> dict[str, float]:
        """Return bytes a device, by what they hold."""
        optimisation = self.recipe.optimisation
        whole = 4.0 * (self.image.parameters + self.text.parameters)
        copies = 0.0
        for tower, name in ((self.image, "image"), (self.text, "text")):
            low = [seen for seen in passes if seen.tower == name and seen.bits == 16]
            kept = {seen.part == "teacher" for seen in low if seen.gradients is not Gradients.WEIGHTS}
            # A differentiable copy and its gradients beside the kept one.
            fresh = 2 * any(seen.gradients in (Gradients.WEIGHTS, Gradients.ADAPTERS) for seen in low)
            copies += 2.0 * tower.parameters * (len(kept) + fresh)
        states = STATES[optimisation.optimiser] * (optimisation.optimiser != "sgd" or optimisation.momentum > 0)
        kept_by_choice = int(self.recipe.select == "best") + int(self.recipe.build_method().average > 0)
        side = round((self.image.tokens - 1) ** 0.5) * (self.image.patch / 3) ** 0.5
        return {
            "weights": whole,
            "teacher": whole,
            "gradients": 4.0 * self.tuned,
            "optimiser": 4.0 * self.tuned * (states + kept_by_choice),
            "working copies": copies,
            "activations": self.activations(passes),
            "images": 4.0 * PIXEL_COPIES * self.part * 3 * side**2,
            "process": PROCESS,
        }

    def activations(self, passes: Passes) -> float:
        """Return the bytes that the greater of attack and loss keeps, beside class texts that are differentiated."""
        by_part: dict[str, float] = {}
        for seen, rows in passes.items():
            # An attack's steps follow each other, a loss reads all of its passes at once.
            at_once = self.part if seen.part == "attack" else self.rows(seen, rows)
            if not seen.gradients.inside:
                at_once = min(at_once, self.part)
            checkpointed = self.recipe.optimisation.checkpoint_activations and seen.part in ("loss", "classes")
            numbers = self.tower(seen).activations(seen.gradients, tokens=self.tokens(seen), checkpointed=checkpointed)
            size = at_once * numbers * seen.bits / 8
            together = seen.gradients.inside and seen.part in ("loss", "classes")
            before = by_part.get(seen.part, 0.0)
            by_part[seen.part] = before + size if together else max(before, size)
        classes = by_part.pop("classes", 0.0)
        return classes + max(by_part.values(), default=0.0)


def cost_of(recipe: Recipe, settings: CostSettings | None = None) -> Cost:
    """Say what a recipe costs.

    Args:
        recipe: The recipe.
        settings: Where it is to run.

    Raises:
        ConfigError: The architecture, the number of samples or of classes is not known; says what to give. Or the
            towers are of a kind that is not counted, or there are more devices than samples in a part of a batch.
    """
    settings = settings or CostSettings()
    architecture = read_architecture(recipe.model, settings.architecture)
    model = paper_model(architecture, recipe.model)
    image, text = tower_sizes(model.clip)
    rehearsal = rehearse(recipe, architecture)
    every_step = any(seen.part == "classes" for seen in rehearsal.step)
    classes = _classes(recipe, settings, wanted=every_step)
    run = _Run(recipe, settings, image, text, _tuned(recipe, model), classes)
    if run.part < 1:
        raise ConfigError(
            f"--gpus {settings.gpus} for parts of {recipe.optimisation.batch_size // recipe.optimisation.accumulate} "
            "samples.",
            "Give at most one device a sample.",
        )
    rates: Rates = MeasuredRates(architecture, settings.device) if settings.peak is None else StatedRates(settings.peak)
    steps, images = _length(recipe, settings)
    tried = 0 if recipe.sweep is None else len(recipe.sweep.lr) * recipe.sweep.steps
    step_operations = run.count(rehearsal.step)
    step_seconds = run.time(rehearsal.step, rates)
    step_seconds["optimiser"] = rates.updating(run.tuned, _bytes_of_update(recipe), recipe.optimisation)
    communicated = 8.0 * run.tuned * (settings.gpus - 1) / settings.gpus
    if communicated:
        step_seconds["communication"] = communicated / settings.bandwidth
    once, encoding = run.alone(rehearsal.once, rates, 1 / recipe.optimisation.accumulate)
    batches = _validated(recipe, steps) / recipe.optimisation.batch_size
    validated, validation = run.alone(rehearsal.validation, rates, batches)
    saved = 4.0 * run.tuned * (1 + STATES[recipe.optimisation.optimiser]) * -(-steps // recipe.checkpoint.every)
    seconds = (steps + tried) * sum(step_seconds.values()) + encoding + validation + saved / DISK
    return Cost(
        steps=steps + tried,
        images=images + tried * recipe.optimisation.batch_size,
        step_operations=step_operations,
        operations=(steps + tried) * sum(step_operations.values()) + once + validated,
        step_seconds=step_seconds,
        seconds=seconds,
        images_per_second=recipe.optimisation.batch_size / sum(step_seconds.values()),
        memory=run.memory(rehearsal.step),
        communicated=communicated,
        assumed=tuple(_assumed(recipe, settings, rates, validation / seconds, step_seconds)),
    )


def _assumed(
    recipe: Recipe, settings: CostSettings, rates: Rates, validated: float, seconds: Mapping[str, float]
) -> list[str]:
    lines = rates.assumed()
    lines.append("data are read beside the computation, and never waited for")
    if validated >= 0.005:
        lines.append(f"validation is {validated:.0%} of the time, as if no image broke before the last step: at most")
    if seconds.get("teacher", 0.0):
        share = seconds["teacher"] / sum(seconds.values())
        lines.append(f"the teacher sees every image anew, {share:.0%} of a step; a teacher cache saves clean images")
    if recipe.text_attack is not None and "language_model" in recipe.text_attack:
        lines.append("the language model of the text attack is not counted")
    if settings.gpus > 1:
        lines.append(
            f"{settings.gpus} devices share each batch and send gradients at {settings.bandwidth / 1e9:.0f} GB/s; they "
            "never wait for each other"
        )
    return lines


def _length(recipe: Recipe, settings: CostSettings) -> tuple[int, int]:
    """Return steps and samples of the run, without its sweep."""
    optimisation = recipe.optimisation
    if optimisation.steps is not None:
        return optimisation.steps, optimisation.steps * optimisation.batch_size
    known = TRAINING_SETS.get(_name(recipe))
    if recipe.data.shots is not None:
        samples = recipe.data.shots * _classes(recipe, settings, wanted=True)
    elif settings.samples is not None:
        samples = settings.samples
    elif recipe.data.limit is not None and known is None:
        samples = recipe.data.limit - recipe.data.hold_out
    elif known is not None:
        samples = min(known[0], recipe.data.limit or known[0]) - recipe.data.hold_out
    else:
        raise ConfigError(
            f"the recipe counts epochs of {recipe.data.train}, whose size is not known.", "Give --samples N."
        )
    epochs = optimisation.epochs or 1
    return epochs * -(-samples // optimisation.batch_size), epochs * samples


def _classes(recipe: Recipe, settings: CostSettings, *, wanted: bool) -> int:
    """Return the number of classes; 0 where it is not known and not wanted."""
    if settings.classes is not None:
        return settings.classes
    if recipe.data.class_names is not None:
        return len(recipe.data.class_names)
    known = TRAINING_SETS.get(_name(recipe))
    if known is None and wanted:
        raise ConfigError(f"the number of classes of {recipe.data.train} is not known.", "Give --classes N.")
    return 0 if known is None else known[1]


def _name(recipe: Recipe) -> str:
    """Return the name of the data source, without kind, folder, options, case and underscores."""
    return recipe.data.train.partition("?")[0].rpartition(":")[2].rpartition("/")[2].lower().replace("_", "")


def _validated(recipe: Recipe, steps: int) -> int:
    """Return how many held-out images all validations see, those of a sweep's trials among them."""
    every, held_out = recipe.validation.every, recipe.data.hold_out
    between = held_out if recipe.select == "best" else min(recipe.validation.samples, held_out)
    found = between * ((steps - 1) // every) + held_out
    if recipe.sweep is not None:
        found += len(recipe.sweep.lr) * (between * ((recipe.sweep.steps - 1) // every) + held_out)
    return found


def _tuned(recipe: Recipe, model: CLIPModel) -> int:
    """Count the tuned parameters; prompts, some thousands, count as none."""
    method = recipe.build_method()
    if method.trains is Tunable.PROMPTS:
        return 0
    if method.trains is Tunable.ADAPTERS:
        method.attach(model, (), recipe.seed)
    return sum(parameter.numel() for parameter in tuned_parameters(model, method.trains).values())


def _bytes_of_update(recipe: Recipe) -> int:
    """Return the bytes read and written a tuned parameter: optimiser, norm of gradients, working copies."""
    numbers = 3 + 2 * STATES[recipe.optimisation.optimiser] + 3
    copies = 3 * (4 + 2) if recipe.optimisation.precision == "bf16" else 0
    return 4 * numbers + copies
