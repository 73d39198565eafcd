"""IronCLIP makes CLIP-like models robust against adversarial images, and measures how robust they are.

The public names are those of `__all__`. Each is imported when it is first used, so `import ironclip` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ironclip.attacks.base import ATTACKS, Attack
    from ironclip.attacks.threat_model import ThreatModel
    from ironclip.data.contract import Dataset, Sample
    from ironclip.data.sources import open_dataset
    from ironclip.errors import IronClipError
    from ironclip.evaluation.evaluate import EvaluationRequest, evaluate_suite
    from ironclip.evaluation.merging import merge
    from ironclip.evaluation.store import RunStore
    from ironclip.methods.base import METHODS, Method
    from ironclip.models.clip import CLIPModel
    from ironclip.models.sources import load_classifier, load_model, save_model
    from ironclip.models.zero_shot import Classifier, ZeroShotClassifier
    from ironclip.randomness import SampleRandom
    from ironclip.report.page import build_report
    from ironclip.suites.suite import load_suite, suite_names
    from ironclip.training.engine import train
    from ironclip.training.recipe import Recipe, load_recipe

__version__ = "0.1.0"

_HOMES = {
    "attacks.base": ("ATTACKS", "Attack"),
    "attacks.threat_model": ("ThreatModel",),
    "data.contract": ("Dataset", "Sample"),
    "data.sources": ("open_dataset",),
    "errors": ("IronClipError",),
    "evaluation.evaluate": ("EvaluationRequest", "evaluate_suite"),
    "evaluation.merging": ("merge",),
    "evaluation.store": ("RunStore",),
    "methods.base": ("METHODS", "Method"),
    "models.clip": ("CLIPModel",),
    "models.sources": ("load_classifier", "load_model", "save_model"),
    "models.zero_shot": ("Classifier", "ZeroShotClassifier"),
    "randomness": ("SampleRandom",),
    "report.page": ("build_report",),
    "suites.suite": ("load_suite", "suite_names"),
    "training.engine": ("train",),
    "training.recipe": ("Recipe", "load_recipe"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ATTACKS",
    "METHODS",
    "Attack",
    "CLIPModel",
    "Classifier",
    "Dataset",
    "EvaluationRequest",
    "IronClipError",
    "Method",
    "Recipe",
    "RunStore",
    "Sample",
    "SampleRandom",
    "ThreatModel",
    "ZeroShotClassifier",
    "__version__",
    "build_report",
    "evaluate_suite",
    "load_classifier",
    "load_model",
    "load_recipe",
    "load_suite",
    "merge",
    "open_dataset",
    "save_model",
    "suite_names",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
