"""The page in gradio: what is asked and shown, and where; all that it says comes from `side_by_side`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ironclip.demo.pictures import Specimen
from ironclip.demo.side_by_side import CHOICES, RADII, Outcome, SideBySide
from ironclip.errors import IronClipError, MissingDependencyError

TITLE = "IronCLIP: one image, two models, one attack"
_NOTE = (
    "The attack looks, for each model on its own, for a change of every colour value by at most ε after which the "
    "model no longer gives its own first answer. One image says little of a model: `ironclip eval` measures many."
)


def build_page(models: SideBySide, specimens: Sequence[Specimen], folder: Path) -> Any:
    """Return the page, to be launched by `launch`.

    Args:
        models: What is attacked.
        specimens: Pictures to pick from.
        folder: Where these are written.

    Raises:
        MissingDependencyError: gradio is not installed.
    """
    gradio = _gradio()

    # gradio's own statistics would leave this machine.
    with gradio.Blocks(title=TITLE, analytics_enabled=False) as page:
        gradio.Markdown(f"# {TITLE}\n\n{_NOTE}")
        with gradio.Row():
            image = gradio.Image(
                type="filepath", sources=["upload"], label="Image", height=256, image_mode=None, elem_id="image"
            )
            with gradio.Column():
                classes = gradio.Textbox(label="Class names, with commas between", lines=3, elem_id="classes")
                choice = gradio.Dropdown(list(CHOICES), value=list(CHOICES)[1], label="Attack", elem_id="attack")
                eps = gradio.Radio(list(RADII), value="4/255", label="ε", elem_id="eps")
                button = gradio.Button("Attack", variant="primary", elem_id="go")
                message = gradio.Markdown(elem_id="message")
        shown: list[Any] = []
        with gradio.Row():
            for index, name in enumerate(models.models):
                with gradio.Column():
                    gradio.Markdown(f"## {_plain(name)}")
                    shown += _places(gradio, f"model-{index}")
        gradio.Examples(
            [[str(one.save(folder)), ", ".join(one.classes)] for one in specimens],
            inputs=[image, classes],
            label="Pictures that come with IronCLIP",
            cache_examples=False,
            elem_id="specimens",
        )
        places = [message, *shown]
        button.click(partial(answer, models), [image, classes, choice, eps], places, api_name="attack")
    return page


def answer(models: SideBySide, path: str | None, classes: str, choice: str, eps: str) -> list[Any]:
    """Return what a click shows: a message, then for each model its words, three pictures and twice its odds.

    What is wrong with the request is the message, and then nothing else is shown: figures of an earlier request would
    be read as its answer.
    """
    nothing = [None] * (_PARTS * len(models.models))
    if not path:
        return ["**There is no image yet.** Upload one, or pick one below.", *nothing]
    try:
        found = models.attack(Path(path).read_bytes(), classes, choice, eps)
    except IronClipError as error:
        return [f"**{_plain(error.problem)}** {_plain(error.remedy)}", *nothing]
    return ["", *(part for outcome in found for part in _shown(outcome))]


def launch(page: Any, *, port: int | None, block: bool = True) -> str:
    """Serve the page to this machine and return its address; by default only once it was stopped.

    Args:
        page: Of `build_page`.
        port: None takes a free one.
        block: Wait until the process is interrupted.
    """
    gradio = _gradio()
    fonts = ["system-ui", "sans-serif"]  # the theme's own would be fetched from elsewhere
    theme = gradio.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"])
    _, address, _ = page.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        prevent_thread_lock=not block,
        quiet=not block,
        theme=theme,
        ssr_mode=False,
        max_file_size="20mb",
        footer_links=[],
    )
    return str(address)


_PARTS = 6


def _places(gradio: Any, prefix: str) -> list[Any]:
    """Return the places of one model's outcome, in the order of `_shown`."""
    words = gradio.Markdown(elem_id=f"{prefix}-words")
    with gradio.Row():
        pictures = [
            gradio.Image(
                label=label,
                interactive=False,
                height=200,
                elem_id=f"{prefix}-{part}",
                format="png",
                buttons=["download"],
            )
            for part, label in (("before", "clean"), ("change", "change"), ("after", "attacked"))
        ]
    with gradio.Row():
        odds = [
            gradio.Label(label=label, num_top_classes=5, elem_id=f"{prefix}-odds-{part}")
            for part, label in (("before", "clean"), ("after", "attacked"))
        ]
    return [words, *pictures, *odds]


def _shown(outcome: Outcome) -> list[Any]:
    """Return what goes into `_places`."""
    words = f"{_plain(outcome.sentence)} The change is shown magnified {outcome.magnified}."
    return [words, outcome.before, outcome.change, outcome.after, outcome.clean, outcome.attacked]


def _plain(words: str) -> str:
    """Keep class names from being read as markup."""
    for sign in "\\`*_[]<>#!|$":
        words = words.replace(sign, f"\\{sign}")
    return words


def _gradio() -> Any:
    try:
        return importlib.import_module("gradio")
    except ImportError:
        raise MissingDependencyError("gradio", "demo", purpose="ironclip demo") from None
