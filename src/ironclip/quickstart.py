"""The quickstart: a small CLIP is attacked, tuned to stand it, and attacked again, on images that come with IronCLIP.

It calls the ordinary training, evaluation and report and leaves their folders, so each part goes on where it stopped.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from ironclip.attacks.pgd import PGD
from ironclip.attacks.threat_model import ThreatModel
from ironclip.evaluation.evaluate import EvaluationProgress, EvaluationRequest, evaluate_suite
from ironclip.report.page import build_report
from ironclip.report.results import Results
from ironclip.report.tables import load_results
from ironclip.report.wording import listing
from ironclip.suites.suite import load_suite
from ironclip.training.bundled_recipes import recipe_path
from ironclip.training.engine import TrainingProgress, train
from ironclip.training.recipe import Recipe, load_recipe

MODEL = "tiny"
SUITE = "bundled"
ORIGINAL = "original"
_NO_ROOT = "data"  # bundled images lie under none


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the quickstart does.

    Attributes:
        recipes: How the model is tuned, each time from the original: names of bundled recipes, or files.
        datasets: Of the suite `bundled`: what all models are attacked on. No recipe may show an image of them.
        eps: Linf radii, the middle one that of the table.
        steps: Of PGD.
        images: Of each data set, which must hold as many.
    """

    recipes: tuple[str, ...] = ("quickstart/tecoa", "quickstart/fare")
    datasets: tuple[str, ...] = ("digits", "shapes-heldout")
    eps: tuple[str, str, str] = ("1/255", "2/255", "4/255")
    steps: int = 20
    images: int = 300


PLAN = Plan()

# With `PLAN` and the bundled model on two cores.
_ATTACK_SECONDS, _TUNING_SECONDS, _PAGE_SECONDS = 45, 75, 5


@dataclass(frozen=True)
class Part:
    """A part of the work that is about to begin.

    Attributes:
        number: From 1.
        count: Of so many.
        task: What is done, a sentence.
        seconds: How long it takes on two cores, about; None where that is not known.
        seconds_left: The same with all parts that follow.
    """

    number: int
    count: int
    task: str
    seconds: int | None
    seconds_left: int | None


@dataclass(frozen=True)
class QuickstartProgress:
    """How far a part is: `done` of `total` (optimiser steps, or images under all attacks), and what is known so far."""

    task: str
    done: int
    total: int
    status: str


@dataclass(frozen=True)
class QuickstartResult:
    """What the quickstart found.

    Attributes:
        page: The report.
        results: Its figures; the first model is the original.
        tuned: Run folder of each tuned model, by name.
        tuned_on: Data sources of the recipes.
    """

    page: Path
    results: Results
    tuned: dict[str, Path]
    tuned_on: tuple[str, ...]


def quickstart(
    out: Path,
    *,
    model: str = MODEL,
    device: str = "cpu",
    seed: int = 0,
    plan: Plan = PLAN,
    command: Sequence[str] = (),
    begin: Callable[[Part], None] | None = None,
    progress: Callable[[QuickstartProgress], None] | None = None,
) -> QuickstartResult:
    """Attack a model, tune it by each recipe, attack what came of it, and write a page; or go on with that.

    Args:
        out: Folder of `report.html`, `report.md`, `train/RECIPE` and `eval/MODEL`.
        model: Model source.
        device: "cpu", "cuda", "cuda:1".
        seed: Of training and attacks.
        plan: What is done.
        command: What the user typed, for the record.
        begin: Called before each part.
        progress: Called after each step.

    Raises:
        ConfigError, WeightsError: The model cannot be opened.
        ResumeError: `out` holds the work of another model, seed or plan.
        KeyboardInterrupt, SystemExit: After SIGINT or SIGTERM; the next call goes on.
    """
    work = _Work(out, model, device, seed, plan, tuple(command), progress or (lambda _: None))
    jobs = work.jobs()
    known = (model, device, plan) == (MODEL, "cpu", PLAN)
    for number, job in enumerate(jobs):
        if begin:
            left = sum(other.seconds for other in jobs[number:])
            times = (job.seconds, left) if known else (None, None)
            begin(Part(number + 1, len(jobs), job.task, *times))
        job.do()
    sources = dict.fromkeys(recipe.data.train for recipe in work.recipes.values())
    tuned = {name: work.tuned(name) for name in work.recipes}
    return QuickstartResult(out / "report.html", load_results(work.runs()), tuned, tuple(sources))


@dataclass(frozen=True)
class _Job:
    """A part of the work: what is said of it, how long it takes, and how it is done."""

    task: str
    seconds: int
    do: Callable[[], object]


@dataclass(frozen=True)
class _Work:
    """All parts, each of which ends at once where it is done already."""

    out: Path
    model: str
    device: str
    seed: int
    plan: Plan
    command: tuple[str, ...]
    show: Callable[[QuickstartProgress], None]

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        """Return the recipes by name, all for this model and seed."""
        # Quoted, since a change is read as YAML.
        changes = [f"model={json.dumps(self.model)}", f"seed={self.seed}"]
        return {Path(recipe).stem: load_recipe(recipe_path(recipe), changes) for recipe in self.plan.recipes}

    def tuned(self, name: str) -> Path:
        """Return the run folder of a tuned model."""
        return self.out / "train" / name

    def runs(self) -> list[Path]:
        """Return the run folders of the evaluations, the original first."""
        return [self.out / "eval" / name for name in (ORIGINAL, *self.recipes)]

    def jobs(self) -> list[_Job]:
        """Return the parts in their order."""
        titles = {entry.name: entry.spec.title for entry in load_suite(SUITE, _NO_ROOT).entries}
        images = f"{self.plan.images} images each of {listing([titles[name] for name in self.plan.datasets])}"
        first = partial(self.attack, ORIGINAL, self.model)
        jobs = [_Job(f"Attack the model as it is: {images}.", _ATTACK_SECONDS // 2, first)]
        for name, recipe in self.recipes.items():
            jobs.append(_Job(f"Tune it by {name}: {recipe.title}.", _TUNING_SECONDS, partial(self.tune, name)))
        for name in self.recipes:
            again = partial(self.attack, name, f"run:{self.tuned(name)}")
            jobs.append(_Job(f"Attack what {name} made of it, on the same images.", _ATTACK_SECONDS, again))
        return [*jobs, _Job("Write the page.", _PAGE_SECONDS, self.write_page)]

    def attack(self, name: str, source: str) -> None:
        """Evaluate a model on every data set at every radius."""
        units, done = len(self.plan.datasets) * len(self.plan.eps), Counter[str]()

        def tell(state: EvaluationProgress) -> None:
            done[state.unit] = state.done
            task = f"attacking {name}"
            self.show(QuickstartProgress(task, done.total(), units * self.plan.images, _attack_status(state)))

        evaluate_suite(
            EvaluationRequest(
                model=source,
                name=name,
                suite=SUITE,
                data_root=_NO_ROOT,
                datasets=self.plan.datasets,
                attacks=(PGD(steps=self.plan.steps),),
                threats=tuple(ThreatModel(norm="linf", eps=radius) for radius in self.plan.eps),
                out=self.out / "eval" / name,
                seed=self.seed,
                limit=self.plan.images,
                device=self.device,
                search_dtype="bfloat16",
                verdicts=False,  # a quarter of the time, and the page of a first look does not show them
                command=self.command,
            ),
            progress=tell,
        )

    def tune(self, name: str) -> None:
        """Run a recipe."""

        def tell(state: TrainingProgress) -> None:
            self.show(QuickstartProgress(f"tuning by {name}", state.step, state.steps, _training_status(state)))

        train(self.recipes[name], self.tuned(name), device=self.device, command=self.command, progress=tell)

    def write_page(self) -> None:
        """Write report.html and report.md."""
        build_report(self.runs(), self.out, title=f"{self.model}, before and after {listing(list(self.recipes))}")


def _attack_status(state: EvaluationProgress) -> str:
    dataset = state.unit.partition("--")[0]
    if state.robust_accuracy is None:
        return dataset
    return f"{dataset}: {100 * state.robust_accuracy:.0f} % withstood the attack so far"


def _training_status(state: TrainingProgress) -> str:
    if state.attack_accuracy is None:
        return f"loss {state.loss:.3f}"
    return f"loss {state.loss:.3f}, {100 * state.attack_accuracy:.0f} % of the last images right under attack"
