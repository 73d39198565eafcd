"""`ironclip eval-task`: measure captions, answers, put-in sentences, retrieval and masks under attack."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ironclip.cli.options import DataRoot, Device, Json, Limit, Out, as_file_name, read_attack, read_text_attack
from ironclip.cli.output import Display, say, say_json, say_table, tell
from ironclip.errors import ConfigError

if TYPE_CHECKING:
    from ironclip.attacks.base import Attack
    from ironclip.evaluation.task_run import TaskProgress
    from ironclip.evaluation.task_store import TaskStore

LANGUAGE = ("caption", "answer", "targeted")
DATA = {
    "caption": "bundled:shapes?split=scenes_test",
    "answer": "bundled:shapes?split=scenes_test",
    "targeted": "bundled:shapes?split=scenes_test",
    "retrieval": "bundled:shapes?split=scenes_test",
    "segmentation": "shapes",
}
STEPS = "apgd:steps=20"


def eval_task_command(
    task: Annotated[
        Literal["caption", "answer", "targeted", "retrieval", "segmentation"],
        typer.Argument(metavar="TASK", help="caption, answer, targeted, retrieval or segmentation."),
    ],
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A vision-language model (tiny-vlm or a folder); for the last two a CLIP."
        ),
    ],
    tower: Annotated[
        str | None, typer.Option("--tower", metavar="SOURCE", help="A CLIP whose image tower replaces the model's own.")
    ] = None,
    resolution: Annotated[
        int | None,
        typer.Option(
            "--resolution",
            min=1,
            metavar="N",
            help="What that tower reads, where a LLaVA's own reads another size: say that you mean it.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Captioned images, questions:FILE.jsonl, or masks (shapes, voc:DIR, ade20k:DIR).  [default: shapes]",
            show_default=False,
            metavar="SOURCE",
        ),
    ] = None,
    target: Annotated[
        str, typer.Option("--target", metavar="TEXT", help="What a targeted attack wants to be said.")
    ] = "",
    attacked: Annotated[
        Literal["image-query", "text-query", "gallery-image", "both"],
        typer.Option("--attacked", help="In retrieval: what the adversary changes."),
    ] = "image-query",
    attack: Annotated[
        str | None,
        typer.Option(
            "--attack",
            help="ensemble or patches for language, else as in eval.  [default: ensemble; apgd:steps=20]",
            show_default=False,
            metavar="ATTACK",
        ),
    ] = None,
    text_attack: Annotated[
        str, typer.Option("--text-attack", metavar="ATTACK", help="On captions that are searched by.")
    ] = "charmer",
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, metavar="N", help="Of a search in language; as published if absent.")
    ] = None,
    norm: Annotated[Literal["linf", "l2"], typer.Option("--norm", help="Norm of the ball.")] = "linf",
    eps: Annotated[str, typer.Option("--eps", help="Radius for pixels in [0, 1].", metavar="RADIUS")] = "2/255",
    out: Out = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="What reports call the model.")] = None,
    data_root: DataRoot = "data",
    limit: Limit = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of every draw.")] = 0,
    device: Device = "cpu",
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, metavar="N", help="Rounded up to a multiple of 16.")
    ] = 64,
    save: Annotated[
        Literal["gallery", "all", "none"], typer.Option("--save", help="Which attacked images to keep.")
    ] = "gallery",
    json: Json = False,
) -> None:
    """Measure what stands on a tower, clean and under attack.

    Goes on with the run that --out holds, by default runs/eval-task/TASK/MODEL-RADIUS.
    """
    if target and task != "targeted":
        raise ConfigError(f'--target with the task "{task}".', "Ask for the task targeted, or leave --target out.")
    if tower is not None and task not in LANGUAGE:
        raise ConfigError(f'--tower with the task "{task}".', "Give the CLIP itself as MODEL.")

    from ironclip.attacks.threat_model import ThreatModel
    from ironclip.evaluation.language_run import LanguageRequest, evaluate_language
    from ironclip.evaluation.retrieval_run import RetrievalRequest, evaluate_retrieval
    from ironclip.evaluation.segmentation_run import SegmentationRequest, evaluate_masks
    from ironclip.files import hold_folder

    goal: Literal["untargeted", "targeted"] = "targeted" if task == "targeted" else "untargeted"
    threat = ThreatModel(norm=norm, eps=eps, goal=goal)
    shared: dict[str, Any] = {
        "model": model,
        "name": name,
        "data": data or DATA[task],
        "data_root": data_root,
        "threat": threat,
        "out": out
        or _default_out(task, name or tower or model, eps, target or (attacked if task == "retrieval" else "")),
        "limit": limit,
        "seed": seed,
        "device": device,
        "tile": batch_size,
        "save": save,
        "command": tuple(sys.argv),
    }
    run: Callable[[Callable[[TaskProgress], None]], TaskStore]
    if task == "segmentation":
        masked = SegmentationRequest(**shared, attack=_on_images(attack))
        run = lambda show: evaluate_masks(masked, progress=show)  # noqa: E731  # three of a kind
    elif task == "retrieval":
        on_images = None if attacked == "text-query" else _on_images(attack)
        on_texts = read_text_attack(text_attack) if attacked in ("text-query", "both") else None
        sought = RetrievalRequest(**shared, attacked=attacked, attack=on_images, text_attack=on_texts)
        run = lambda show: evaluate_retrieval(sought, progress=show)  # noqa: E731
    else:
        how = "sentence" if task == "targeted" and attack is None else _on_language(attack)
        spoken = LanguageRequest(
            **shared, task=task, tower=tower, resolution=resolution, attack=how, target=target, steps=steps
        )
        run = lambda show: evaluate_language(spoken, progress=show)  # noqa: E731
    tell(f"Adversary: {threat.caption()}")
    with Display() as display, hold_folder(shared["out"]):
        store = run(lambda state: display.update(task, state.done, state.total, state.stage))
    if json:
        say_json({"run": str(store.path), "figures": _figures(store)})
        return
    _say_results(store)
    say(f"\nStored in {store.path}. A page of it: ironclip report {store.path}")


def _on_images(text: str | None) -> Attack:
    """Build one attack on images."""
    from ironclip.attacks.autoattack import AttackList

    found = read_attack(text or STEPS)
    if isinstance(found, AttackList):
        raise ConfigError(f"--attack {text}: a list of attacks on classes, which this task has none of.", "Give apgd.")
    return found


def _on_language(text: str | None) -> Literal["ensemble", "patches"]:
    """Read which attack on language is meant."""
    if text in (None, "ensemble"):
        return "ensemble"
    if text != "patches":
        raise ConfigError(f'--attack "{text}" on language.', "Give ensemble or patches.")
    return "patches"


def _default_out(task: str, model: str, eps: str, more: str) -> Path:
    return Path("runs", "eval-task", task, "-".join(as_file_name(part) for part in (model, eps, more) if part))


def _figures(store: TaskStore) -> Any:
    return json.loads((store.path / "figures.json").read_text(encoding="utf-8"))


def _say_results(store: TaskStore) -> None:
    from ironclip.report.task_tables import task_lines

    head, lines = task_lines(store)
    say_table(head, lines)
