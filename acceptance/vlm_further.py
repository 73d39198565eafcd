"""Retrieval and masks under attack on tuned towers; one checkpoint of two runs under image, text and joint attack."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from acceptance.claims import CannotRunError, Claim, Context, Figure, item
from acceptance.methods_natural import DATA, TINY, tuned, weights_of
from acceptance.vlm_attacks import ORIGINAL, REPORTED, figures_of, state_of
from acceptance.vlm_metrics import FLICKR, FLICKR_FILES
from ironclip.attacks.apgd import APGD
from ironclip.attacks.text.characters import Charmer
from ironclip.attacks.threat_model import ThreatModel
from ironclip.data.order import limit
from ironclip.evaluation.joint_attack import evaluate_joint_attack
from ironclip.evaluation.retrieval_run import RetrievalRequest, evaluate_retrieval
from ironclip.evaluation.segmentation_run import SegmentationRequest, evaluate_masks
from ironclip.models.export import export_model, with_merged_adapters
from ironclip.models.sources import load_model
from ironclip.models.towers import join_towers
from ironclip.suites.suite import load_suite

MODELS = ("fare", "tecoa", "r_adapter")
EPS = ThreatModel(eps="2/255")
ATTACK = APGD(steps=20)
ATTACKED = ("image-query", "gallery-image")
IMAGES = 200


def plain_source(context: Context, name: str) -> str:
    """Return the source of a model without adapters: the original, a run, or its export where it has some.

    Raises:
        CannotRunError: It was not tuned yet.
    """
    if name == ORIGINAL:
        return "tiny"
    weights_of(name)
    model = load_model(str(tuned(name, 0)))
    if model.adapters is None:
        return str(tuned(name, 0))
    folder = context.work / "models" / name
    if not folder.is_dir():
        export_model(model, folder, "open_clip")
    return f"local-dir:{folder}"


def measured_in(context: Context, name: str) -> str:
    """Return a model's name where this form measures it.

    Raises:
        CannotRunError: The short form has the original only.
    """
    if context.short and name != ORIGINAL:
        raise CannotRunError("it needs the tuned models")
    return name


@item(
    "retrieval",
    claims=[
        Claim(f"{name} {attacked}", f"Flickr8k, {attacked} at 2/255, {name}: R@5 clean and attacked", REPORTED)
        for name in (ORIGINAL, *MODELS)
        for attacked in ATTACKED
    ],
    modules=("ironclip.evaluation.retrieval_run", "ironclip.models.export", "ironclip.attacks.apgd"),
    files=(TINY, *FLICKR_FILES),
    state=lambda: state_of(*MODELS),
)
def retrieval(context: Context) -> Iterator[Figure]:
    for name in (ORIGINAL, *MODELS):
        measured_in(context, name)
        for attacked in ATTACKED:
            request = RetrievalRequest(
                model=plain_source(context, name),
                name=name,
                data=FLICKR,
                threat=EPS,
                out=context.work / attacked / name,
                limit=context.pick(1000, 20),
                search_dtype="bfloat16",
                attacked=attacked,  # type: ignore[arg-type]  # a word of four
                attack=ATTACK,
                command=("acceptance", "vlm", "retrieval"),
            )
            figures = {one.name.partition(" R")[2]: one for one in figures_of(evaluate_retrieval(request)).figures}
            shown = ", ".join(
                f"R{k} {100 * one.clean.estimate:.1f} to {100 * one.attacked.estimate:.1f}"
                for k, one in figures.items()
            )
            yield Figure(f"{name} {attacked}", 100 * figures["@5"].attacked.estimate, shown)


@item(
    "masks",
    claims=[Claim(name, f"shapes, 2/255, {name}: mIoU clean and attacked", REPORTED) for name in (ORIGINAL, *MODELS)],
    modules=("ironclip.evaluation.segmentation_run", "ironclip.models.export", "ironclip.attacks.apgd"),
    files=(TINY,),
    state=lambda: state_of(*MODELS),
)
def masks(context: Context) -> Iterator[Figure]:
    for name in (ORIGINAL, *MODELS):
        measured_in(context, name)
        request = SegmentationRequest(
            model=plain_source(context, name),
            name=name,
            data="shapes",
            threat=EPS,
            out=context.work / name,
            limit=context.pick(IMAGES, 8),
            attack=ATTACK,
            command=("acceptance", "vlm", "masks"),
        )
        (figure,) = figures_of(evaluate_masks(request)).figures
        shown = (
            f"{100 * figure.clean.estimate:.1f} to {100 * figure.attacked.estimate:.1f} "
            f"[{100 * figure.attacked.low:.1f}, {100 * figure.attacked.high:.1f}]"
        )
        yield Figure(name, 100 * figure.attacked.estimate, shown)


UNDER = ("clean", "image", "text", "joint")


@item(
    "joint",
    claims=[
        Claim(f"{name} {under}", f"CIFAR-10, {name}, {under}: accuracy", REPORTED)
        for name in (ORIGINAL, "fare + leaf")
        for under in UNDER
    ],
    modules=("ironclip.evaluation.joint_attack", "ironclip.models.towers"),
    files=(TINY, "../shared/data/cifar10/test-*.tar.gz"),
    state=lambda: state_of("fare", "leaf"),
)
def joint(context: Context) -> Iterator[Figure]:
    entry = load_suite("natural", DATA).entry("cifar10").open()
    some = limit(entry.dataset, context.pick(1000, 16))
    samples = [some[position] for position in range(len(some))]
    pixels = torch.stack([sample.pixels for sample in samples])
    labels, keys = torch.tensor([sample.label for sample in samples]), [sample.key for sample in samples]
    for name in (ORIGINAL, "fare + leaf"):
        if measured_in(context, name) == ORIGINAL:
            model = load_model("tiny")
        else:
            towers = [with_merged_adapters(load_model(plain_source(context, one))) for one in name.split(" + ")]
            model = join_towers(*towers)
        found = evaluate_joint_attack(
            model, pixels, labels, keys, entry.class_names, entry.templates[0], ATTACK, Charmer(edits=1), EPS
        )
        for under in UNDER:
            share = found.accuracy(under)
            shown = f"{100 * share.estimate:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]"
            yield Figure(f"{name} {under}", 100 * share.estimate, shown)
