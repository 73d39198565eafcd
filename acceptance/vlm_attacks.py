"""tiny-vlm under attack: on its own tower, and on towers that were tuned on natural images, with nothing retrained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from acceptance.claims import Bound, CannotRunError, Claim, Context, Figure, at_least, below, exactly, item
from acceptance.methods_natural import tuned, weights_of
from acceptance.vlm_metrics import FLICKR, FLICKR_FILES
from acceptance.vlm_model import SCENES, TINY_VLM
from ironclip.attacks.threat_model import ThreatModel
from ironclip.evaluation.language_run import LanguageRequest, evaluate_language
from ironclip.evaluation.task_contrast import contrasts
from ironclip.evaluation.task_figures import TaskFigures, task_figures
from ironclip.evaluation.task_store import TaskStore
from ironclip.models.vlm_sources import BUNDLED_NAME

ORIGINAL = "original"
TOWERS = ("fare", "sim_clip", "tecoa")
IMAGES = 200
STEALTH_IMAGES = 25
SENTENCES = ("a dog runs through the water", "two men play soccer on a field", "there are 3 yellow hearts")
RADII = ("2/255", "4/255", "8/255")
TASKS = {"answer": SCENES, "caption": FLICKR}
REPORTED = Bound()
"""No threshold: the plan asks for the figure as measured."""
MODULES = (
    "ironclip.evaluation.language_run",
    "ironclip.evaluation.task_contrast",
    "ironclip.models.tiny_vlm",
    "ironclip.models.vlm_sources",
)


def tower_of(name: str) -> str | None:
    """Return the source of a tower; None for the model's own.

    Raises:
        CannotRunError: It was not tuned yet.
    """
    if name == ORIGINAL:
        return None
    weights_of(name)
    return str(tuned(name, 0))


def state_of(*names: str) -> str:
    """Return the weights of tuned towers, those that are there."""
    found = []
    for name in names:
        try:
            found.append(weights_of(name))
        except CannotRunError as reason:
            found.append(str(reason))
    return " ".join(found)


def run(context: Context, folder: str, task: str, tower: str, count: int, eps: str, **more: Any) -> TaskStore:
    """Evaluate tiny-vlm on a tower, or go on with that."""
    steps = {"steps": 4} if context.short else {}
    request = LanguageRequest(
        model=BUNDLED_NAME,
        name=tower,
        tower=tower_of(tower),
        task=task,  # type: ignore[arg-type]  # a word of three
        data=TASKS.get(task, SCENES),
        threat=ThreatModel(eps=eps, goal="targeted" if task == "targeted" else "untargeted"),
        out=context.work / folder,
        limit=count,
        search_dtype="bfloat16",
        command=("acceptance", "vlm", folder),
        **steps,
        **more,
    )
    return evaluate_language(request)


def figures_of(store: TaskStore) -> TaskFigures:
    """Compute the figures of a run."""
    return task_figures(store.record, store.rows())


def one_line(store: TaskStore) -> str:
    """Say what a run came to."""
    (figure,) = figures_of(store).figures
    scale = 100 if figure.percent else 1
    clean, attacked = (scale * one.estimate for one in (figure.clean, figure.attacked))
    low, high = (scale * end for end in (figure.attacked.low, figure.attacked.high))
    return f"{store.record.model.name}: {clean:.1f}, attacked {attacked:.1f} [{low:.1f}, {high:.1f}]"


@item(
    "ensemble",
    claims=(
        Claim("fall", "own tower, 2/255: attacked answers over clean ones", below(1 / 3)),
        Claim("outside", "adversarial images outside the ball", exactly(0)),
    ),
    modules=MODULES,
    files=TINY_VLM,
)
def ensemble(context: Context) -> Iterator[Figure]:
    store = run(context, "answer-original", "answer", ORIGINAL, context.pick(IMAGES, 16), "2/255")
    (figure,) = figures_of(store).figures
    clean, attacked = figure.clean.estimate, figure.attacked.estimate
    yield Figure("fall", attacked / clean if clean else float("nan"), one_line(store))
    radius = ThreatModel(eps="2/255").radius
    yield Figure("outside", sum(row["norm"] > radius * (1 + 1e-5) + 1e-7 for row in store.rows()))


@item(
    "drop_in",
    claims=(
        *(
            Claim(
                f"fare {task}",
                f"{task}, 2/255: fare above the original tower, lower end of the interval",
                at_least(1e-9),
            )
            for task in TASKS
        ),
        *(
            Claim(f"{name} {task}", f"{task}: {name} against the original, as measured", REPORTED)
            for task in TASKS
            for name in TOWERS[1:]
        ),
        *(Claim(f"clean {task}", f"{task}, clean: fare above tecoa (published: above)", REPORTED) for task in TASKS),
    ),
    modules=MODULES,
    files=(*TINY_VLM, *FLICKR_FILES),
    state=lambda: state_of(*TOWERS),
)
def drop_in(context: Context) -> Iterator[Figure]:
    if context.short:
        raise CannotRunError("it needs the tuned towers")
    for task in TASKS:
        stores = {name: run(context, f"{task}-{name}", task, name, IMAGES, "2/255") for name in (ORIGINAL, *TOWERS)}
        for name in TOWERS:
            (found,) = _compared(stores[ORIGINAL], stores[name])
            scale = 100 if found.percent else 1
            low, high = scale * found.attacked.low, scale * found.attacked.high
            shown = f"{one_line(stores[name])}; {one_line(stores[ORIGINAL])}; difference [{low:.1f}, {high:.1f}]"
            yield Figure(f"{name} {task}", low, shown)
        (found,) = _compared(stores["tecoa"], stores["fare"])
        scale = 100 if found.percent else 1
        ends = f"[{scale * found.clean.low:.1f}, {scale * found.clean.high:.1f}]"
        yield Figure(f"clean {task}", scale * found.clean.estimate, f"{scale * found.clean.estimate:+.1f} {ends}")


def _compared(first: TaskStore, second: TaskStore) -> Any:
    return contrasts(first.record, first.rows(), second.record, second.rows())


@item(
    "stealth",
    claims=[
        Claim(f"{tower} {eps}", f"{len(SENTENCES)} sentences put into {tower}'s mouth at {eps}: success rate", REPORTED)
        for tower in (ORIGINAL, "fare")
        for eps in RADII
    ],
    modules=MODULES,
    files=TINY_VLM,
    state=lambda: state_of("fare"),
)
def stealth(context: Context) -> Iterator[Figure]:
    for tower in (ORIGINAL, "fare"):
        for eps in RADII:
            if context.short and (tower, eps) != (ORIGINAL, RADII[0]):
                raise CannotRunError("the short form has one radius on the model's own tower")
            reached, left, rounded = 0, 0, 0
            for number, sentence in enumerate(SENTENCES[: context.pick(len(SENTENCES), 1)]):
                folder = str(Path(tower, f"{eps.replace('/', '-')}-{number}"))
                count = context.pick(STEALTH_IMAGES, 4)
                store = run(context, folder, "targeted", tower, count, eps, attack="sentence", target=sentence)
                rates = figures_of(store).success or {}
                rate = rates["the sentence stands in the answer"]
                reached, left = reached + rate.successes, left + rate.denominator
                rounded += rates["the sentence stands in the answer, in 8 bits"].successes
            share = 100 * reached / left if left else float("nan")
            yield Figure(f"{tower} {eps}", share, f"{share:.1f} %: {reached} of {left}; {rounded} in 8 bits")
