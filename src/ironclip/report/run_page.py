"""The page of a training run, while it trains and afterwards: one file, no script, nothing loaded from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from ironclip.report.figures import swatch, training_curve
from ironclip.report.training_log import Points, TrainingLog, read_training_log
from ironclip.report.wording import duration, percent, points

ALARM = 0.3
"""Overfitting gap from which the page warns; our choice, from no publication."""


@dataclass(frozen=True)
class Panel:
    """A drawing with the names of its lines.

    Attributes:
        title: Heading.
        note: What the lines are, a sentence.
        several: Whether it can have several lines, so that even one has to be named.
        lines: Name and swatch of each.
        svg: The drawing.
    """

    title: str
    note: str
    several: bool
    lines: list[tuple[str, Markup]]
    svg: Markup


def render_run_page(run: Path, *, now: float, refresh: int | None = None) -> str:
    """Return the page of a run as it stands.

    Args:
        run: The run's folder.
        now: The time, seconds since 1970.
        refresh: Seconds after which a browser asks again while the run is not complete; None: never.

    Raises:
        DataError: The folder is no training run.
    """
    log = read_training_log(run)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ironclip.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    gap = log.validations[-1].get("overfitting_gap") if log.validations else None
    return environment.get_template("run.html.j2").render(
        name=run.resolve().name,
        log=log,
        title=log.record["recipe"].get("title") or run.resolve().name,
        refresh=None if log.complete else refresh,
        share=percent(log.step / log.total) if log.total else "0.0",
        silence=duration(max(0.0, now - log.written)),
        left=None if log.seconds_left is None else duration(log.seconds_left),
        last=log.validations[-1] if log.validations else None,
        percent=percent,
        gap=None if gap is None else points(gap),
        alarm=gap is not None and gap >= ALARM,
        panels=_panels(log),
    )


def _panels(log: TrainingLog) -> list[Panel]:
    loss = {"loss": log.curve("loss")} | {term: log.curve(term) for term in log.terms}
    batch = {
        "clean": log.curve("clean_accuracy"),
        "under the training attack": log.curve("attack_accuracy"),
    }
    held_out = {
        "clean": log.held_out("clean_accuracy"),
        "robust (validation attack)": log.held_out("robust_accuracy"),
        "under the training attack": log.held_out("train_attack_accuracy"),
    }
    asked: tuple[tuple[str, str, dict[str, Points], str, bool], ...] = (
        ("Loss", "What is minimised, and its terms where there are several.", loss, "loss", False),
        ("Training batches", "Share of the batch that is answered right.", batch, "images right, %", True),
        ("Held-out images", "Images that are never trained on.", held_out, "images right, %", True),
        (
            "Overfitting gap",
            "How much better the model stands its own training attack than the validation attack. Near 100 points it "
            "resists that one attack only: catastrophic overfitting.",
            {"gap": log.held_out("overfitting_gap")},
            "points",
            True,
        ),
        (
            "Embeddings under attack",
            "Cosine of attacked held-out embeddings with the original model's clean ones.",
            {"cosine": log.held_out("embedding_cosine")},
            "cosine",
            False,
        ),
        ("Gradient norm", "Before clipping.", {"norm": log.curve("gradient_norm")}, "norm", False),
        ("Learning rate", "", {"rate": log.curve("lr")}, "rate", False),
    )
    panels = []
    for index, (title, note, lines, label, is_share) in enumerate(asked):
        known = {name: line for name, line in lines.items() if line}
        if known:
            prefix = f"panel-{index}"
            names = [(name, swatch(place, prefix=f"{prefix}-{place}")) for place, name in enumerate(known)]
            svg = training_curve(list(known.values()), prefix=prefix, label=label, in_percent=is_share)
            panels.append(Panel(title, note, len(lines) > 1, names, svg))
    return panels
