"""UCAT's claim as measured: does a model grow unsure as its images grow difficult? And how often it is wrong there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr
from torch import Tensor

from acceptance.claims import SHARED, Bound, Claim, Context, Figure, item
from acceptance.evaluation_convnet import Images, test_images
from acceptance.methods_natural import TINY, tuned, weights_of
from ironclip.attacks.corruption import CORRUPTIONS, Kind, corrupted
from ironclip.attacks.objectives import Misclassify
from ironclip.attacks.pgd import PGD
from ironclip.attacks.threat_model import ThreatModel
from ironclip.attacks.transfer import craft
from ironclip.evaluation.shift import mean_corruption_error
from ironclip.evaluation.uncertainty import AlphaMap, dirichlet_measures, log_concentration, predictive_entropy
from ironclip.models.sources import load_classifier
from ironclip.models.zero_shot import ZeroShotClassifier
from ironclip.randomness import SampleRandom
from ironclip.suites.suite import load_suite

Floats = npt.NDArray[Any]
ALPHA_MAP: AlphaMap = "ucat_train"
RADII = ("0", "1/255", "2/255", "4/255")
SEVERITIES = (0, 1, 2, 3, 4, 5)
METHODS = ("tecoa", "ucat")
MODELS = ("original", *METHODS)
MEASURES = {"entropy": "predictive entropy", "expected": "expected entropy", "information": "mutual information"}
AXES = {"eps": f"PGD-20 at {', '.join(RADII)}", "severity": "15 corruptions at severity 0 to 5"}
ABOUT = f"rank correlation with difficulty (reported; UCAT: rises, +1), Dirichlet by {ALPHA_MAP}"


def claims() -> Iterator[Claim]:
    """Say what is reported: no threshold is set, since the plan asks what the direction is."""
    for model in MODELS:
        for axis, levels in AXES.items():
            for measure, words in MEASURES.items():
                yield Claim(f"{model}_{axis}_{measure}", f"{model}, {levels}: {words}; {ABOUT}", Bound())
    for model in METHODS:
        yield Claim(
            f"{model}_mce", f"{model}: mean corruption error relative to the original's (reported)", Bound(unit="%")
        )


def model_state() -> str:
    """Tell apart what the methods made."""
    return " ".join(map(weights_of, METHODS))


@item(
    "uncertainty",
    claims=list(claims()),
    modules=[
        *(f"ironclip.attacks.{name}" for name in ("corruption", "pgd", "transfer")),
        *("ironclip.evaluation.shift", "ironclip.evaluation.uncertainty", "acceptance.evaluation_convnet"),
    ],
    files=[TINY, "../shared/data/cifar10/test-*.tar.gz", "src/ironclip/suites/natural.yaml"],
    state=model_state,
)
def uncertainty(context: Context) -> Iterator[Figure]:
    """On CIFAR-10. Attacks run to their end: one that stops at its first success leaves a near miss."""
    info = load_suite("natural", str(SHARED / "data")).entry("cifar10").open()
    images = test_images(context.pick(1000, 16))
    kinds: tuple[Kind, ...] = context.pick(CORRUPTIONS, ("brightness", "gaussian_noise"))
    worse = [_corrupted(images, kinds, severity) for severity in SEVERITIES]
    errors = {}
    for name in context.pick(MODELS, MODELS[:1]):
        source = "tiny" if name == MODELS[0] else str(tuned(name, 0))
        classifier = load_classifier(source, info.class_names, info.templates)
        if not isinstance(classifier, ZeroShotClassifier):
            raise TypeError(f"{source} is no CLIP model")
        attacked = [_attacked(classifier, images, eps, steps=context.pick(20, 2)) for eps in RADII]
        for axis, levels, names in (("eps", attacked, RADII), ("severity", worse, SEVERITIES)):
            logits = [_logits(classifier, pixels) for pixels in levels]
            means = [measured(each, logit_scale(classifier)) for each in logits]
            for measure in MEASURES:
                yield _figure(f"{name}_{axis}_{measure}", [mean[measure] for mean in means], [*map(str, names)])
            if axis == "severity":
                errors[name] = corruption_errors(logits[1:], images.labels.numpy(), kinds)
    for name in [name for name in errors if name != MODELS[0]]:
        relative = 100 * mean_corruption_error(errors[name], errors[MODELS[0]])
        mean = {one: 100 * float(np.mean(list(errors[one].values()))) for one in (name, MODELS[0])}
        yield Figure(
            f"{name}_mce", relative, f"{relative:.1f} %; wrong {mean[name]:.1f} %, {MODELS[0]} {mean[MODELS[0]]:.1f} %"
        )


def measured(logits: Floats, scale: float) -> Mapping[str, float]:
    """Return the mean of each measure over logits `[N, C]`, as a share of the largest possible, ln C."""
    found = dirichlet_measures(log_concentration(logits, ALPHA_MAP, logit_scale=scale))
    by_name: dict[str, Floats] = {
        "entropy": predictive_entropy(logits),
        "expected": found.expected,
        "information": found.mutual_information,
    }
    return {name: float(values.mean()) / math.log(logits.shape[1]) for name, values in by_name.items()}


def corruption_errors(logits: Sequence[Floats], labels: Floats, kinds: Sequence[str]) -> dict[str, list[float]]:
    """Return of each corruption the share of wrong answers at each severity, from logits `[kinds x N, C]` of each."""
    wrong = [each.argmax(axis=1).reshape(len(kinds), -1) != labels for each in logits]
    return {kind: [float(flags[place].mean()) for flags in wrong] for place, kind in enumerate(kinds)}


def logit_scale(classifier: ZeroShotClassifier) -> float:
    """Return the factor on cosines."""
    return torch.as_tensor(classifier.logit_scale).item()


def _logits(classifier: ZeroShotClassifier, pixels: Tensor) -> Floats:
    with torch.no_grad():
        return torch.cat([classifier.logits(part) for part in pixels.split(64)]).double().numpy()


def _figure(claim: str, means: list[float], levels: list[str]) -> Figure:
    rank = float(spearmanr(range(len(means)), means).statistic)
    shown = ", ".join(f"{level}: {mean:.3g}" for level, mean in zip(levels, means, strict=True))
    return Figure(claim, rank, f"{rank:+.2f}; share of ln C at {shown}")


def _attacked(classifier: ZeroShotClassifier, images: Images, eps: str, *, steps: int) -> Tensor:
    if eps == "0":
        return images.pixels
    objective = Misclassify(classifier, images.labels)
    return craft(PGD(steps=steps), objective, images.pixels, images.keys, ThreatModel(eps=eps), seed=0)


def _corrupted(images: Images, kinds: tuple[Kind, ...], severity: int) -> Tensor:
    """Corrupt every image by one kind after the other, `[kinds x N, 3, H, W]`; at 0 they stay as they are."""
    if not severity:
        return images.pixels
    streams = SampleRandom(0, images.keys, "uncertainty")
    return torch.stack(
        [
            corrupted(image, kind, severity, streams.generator(row, kind))
            for kind in kinds
            for row, image in enumerate(images.pixels)
        ]
    )
