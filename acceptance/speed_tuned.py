"""The models that the speed items share: the bundled model tuned in short, by the fast path and by the plain one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from acceptance.claims import ROOT, SHARED, CannotRunError, Claim, Context, Figure, exactly, item
from acceptance.store import key_of, stored_path
from ironclip.attacks.driver import DriverSettings, run_attack
from ironclip.attacks.objectives import Misclassify
from ironclip.attacks.pgd import PGD
from ironclip.attacks.threat_model import ThreatModel
from ironclip.data.fingerprints import file_sha256
from ironclip.data.order import limit
from ironclip.models.sources import load_classifier
from ironclip.models.zero_shot import Classifier
from ironclip.suites.suite import load_suite
from ironclip.training.engine import train
from ironclip.training.recipe import Recipe, load_recipe

DATA = str(SHARED / "data")
CIFAR10 = (
    "../shared/data/cifar10/test-*.tar.gz",
    "src/ironclip/suites/natural.yaml",
    "src/ironclip/suites/classes/cifar10.yaml",
)
TINY = "src/ironclip/models/tiny/*"
RECIPES = ROOT / "recipes" / "natural-methods"
KEPT = ROOT / "runs" / "acceptance" / "speed"
WEIGHTS = Path("model") / "open_clip_model.safetensors"
PATHS = ("fast", "plain")
SEEDS = (0, 1, 2)
STEPS, LR = 60, 1e-4
ATTACK = PGD(steps=20)


def run_name(method: str, path: str, seed: int) -> str:
    """Return what a run is called."""
    return f"{method}-{path}-{seed}"


PAIRED = tuple(run_name("tecoa", path, seed) for seed in SEEDS for path in PATHS)
TECOA, FARE = run_name("tecoa", "fast", 0), run_name("fare", "fast", 0)
RUNS = (*PAIRED, FARE)


def shortened(name: str) -> tuple[Recipe, bool]:
    """Return the recipe of a run, and whether it takes the fast path: the paths differ in that and in the precision."""
    method, path, seed = name.split("-")
    recipe = load_recipe(RECIPES / f"{method}.yaml")
    precision = "bf16" if path == "fast" else "float32"
    changes = {"lr": LR, "steps": STEPS, "precision": precision}
    # Nothing is chosen by a validation here: the rate is given, and the last weights are taken.
    data = recipe.data.model_copy(update={"hold_out": 0})
    optimisation = recipe.optimisation.model_copy(update=changes)
    update = {"data": data, "optimisation": optimisation, "sweep": None, "seed": int(seed)}
    return recipe.model_copy(update=update), path == "fast"


@item(
    "tuned_shortly",
    claims=[
        Claim("runs", f"the bundled model tuned for {STEPS} steps: runs that came to their end", exactly(len(RUNS))),
        Claim("skipped", "… steps skipped for a loss that was not finite", exactly(0)),
    ],
    modules=["ironclip.training.engine", "ironclip.methods.tecoa", "ironclip.methods.fare", "ironclip.attacks.pgd"],
    files=[
        "recipes/natural-methods/tecoa.yaml",
        "recipes/natural-methods/fare.yaml",
        "../shared/data/tiny_imagenet/train-*.tar.gz",
        TINY,
    ],
)
def training(context: Context) -> Iterator[Figure]:
    """Tune; each run goes on where it stopped."""
    if context.short:
        raise CannotRunError("minutes of training a run; the tests train in small")
    results = []
    for name in RUNS:
        recipe, fast = shortened(name)
        out = train(recipe, context.work / name, data_root=DATA, fast=fast, command=("acceptance", name))
        results.append(json.loads((out / "result.json").read_text()))
    different = len({result["weights_sha256"] for result in results})
    yield Figure("runs", different, f"{different} with weights of their own, {results[0]['images']:,} images each")
    yield Figure("skipped", sum(result["skipped_steps"] for result in results))


def tuned(name: str) -> Path:
    """Return the run that the training item left, under the key of now.

    Raises:
        CannotRunError: It is not trained yet.
    """
    run = stored_path(KEPT, training, key_of(training)).with_suffix("") / name
    if not (run / "result.json").is_file():
        raise CannotRunError("no tuned models yet: python -m acceptance.run speed --only tuned_shortly")
    return run


def weights_of(*names: str) -> str:
    """Return the hashes of what the runs came to.

    Raises:
        CannotRunError: One is not trained yet.
    """
    return " ".join(file_sha256(tuned(name) / WEIGHTS) for name in names)


@dataclass(frozen=True)
class Photographs:
    """Images of CIFAR-10's test split, those of `ironclip eval --limit`: `[N, 3, 32, 32]`, labels, keys and words."""

    pixels: Tensor
    labels: Tensor
    keys: tuple[str, ...]
    class_names: tuple[str, ...]
    templates: tuple[str, ...]

    @classmethod
    def open(cls, count: int) -> Photographs:
        """Read so many of them."""
        info = load_suite("natural", DATA).entry("cifar10").open()
        dataset = limit(info.dataset, count)
        samples = [dataset[index] for index in range(len(dataset))]
        return cls(
            pixels=torch.stack([sample.pixels for sample in samples]),
            labels=torch.tensor([sample.label for sample in samples]),
            keys=tuple(sample.key for sample in samples),
            class_names=tuple(info.class_names),
            templates=tuple(info.templates),
        )

    def classifier(self, model: str | Path) -> Classifier:
        """Load a model with these words."""
        return load_classifier(str(model), self.class_names, self.templates)

    def verdicts(self, model: str | Path, threat: ThreatModel, *, search: torch.dtype, kept: Path) -> Tensor:
        """Attack with PGD-20; return right on the clean image and right under attack, `[2, N]` bool.

        Args:
            model: Model source.
            threat: The game.
            search: Precision of the search; verdicts are float32.
            kept: A .npy file that holds the result where this was done before.
        """
        if not kept.is_file():
            objective = Misclassify(self.classifier(model), self.labels, loss=ATTACK.loss)
            settings = DriverSettings(search_dtype=search)
            found = run_attack(ATTACK, objective, self.pixels, self.keys, threat, seed=0, settings=settings)
            kept.parent.mkdir(parents=True, exist_ok=True)
            np.save(kept, torch.stack([~found.clean.broken, ~found.broken]).numpy())
        return torch.from_numpy(np.load(kept))
