"""`ironclip export`: write a model for the libraries that people load models with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ironclip.cli.options import Json
from ironclip.cli.output import say, say_json
from ironclip.errors import ConfigError

LOADED_BY = {
    "open_clip": 'open_clip.create_model_and_transforms("local-dir:{}")',
    "transformers": 'transformers.CLIPModel.from_pretrained("{}")',
}


def export_command(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help='A run folder or a model source; see "ironclip list models".')
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the result; new or empty.")],
    layout: Annotated[
        Literal["open_clip", "transformers"] | None,
        typer.Option("--format", help="The library that will load it.  [default: open_clip]", show_default=False),
    ] = None,
    robust_weight: Annotated[
        float | None,
        typer.Option(
            "--robust-weight", metavar="W", help="Weights between the original model (0) and the tuned one (1)."
        ),
    ] = None,
    original: Annotated[
        str | None,
        typer.Option("--original", metavar="SOURCE", help="The model before its tuning; a run knows its own."),
    ] = None,
    text_from: Annotated[
        str | None,
        typer.Option("--text-from", metavar="SOURCE", help="The model whose text tower goes with this image tower."),
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option("--into", metavar="DIR", help="A LLaVA: write a copy of it that stands on this image tower."),
    ] = None,
    json: Json = False,
) -> None:
    """Write a model for stock open_clip or transformers, or a LLaVA that stands on it.

    What they load gives the same logits. Adapters are merged into the weights.
    """
    if original is not None and robust_weight is None:
        raise ConfigError("--original without --robust-weight.", "Give the robust weight, such as --robust-weight 0.5")
    if into is not None and (text_from or layout):
        other = "--format" if layout else "--text-from"
        raise ConfigError(f"--into with {other}.", "A LLaVA keeps its own layout and language model: leave it out.")

    from ironclip.models.export import export_model, refuse_occupied, with_merged_adapters
    from ironclip.models.sources import load_between, load_model

    refuse_occupied(out)  # before the weights are read
    model = load_model(source) if robust_weight is None else load_between(source, robust_weight, original=original)
    if into is not None:
        from ironclip.models.llava_export import export_into_llava

        export_into_llava(model, into, out)
        written, how = "llava", f'transformers.LlavaForConditionalGeneration.from_pretrained("{out}")'
    else:
        written = layout or "open_clip"
        if text_from is not None:
            from ironclip.models.towers import join_towers

            model = join_towers(with_merged_adapters(model), with_merged_adapters(load_model(text_from)))
        export_model(model, out, written)
        how = LOADED_BY[written].format(out)
    if json:
        say_json({"model": str(out), "format": written, "load": how})
        return
    say(f"Done: {out}. Load it with {how}")
