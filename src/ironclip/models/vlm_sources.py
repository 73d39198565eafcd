"""Sources of vision-language models: a folder, recognised by what lies in it, on its own tower or on another.

tiny-vlm          the small answerer that comes with IronCLIP, once it is trained
FOLDER            a run of `ironclip pretrain`, the decoder that it left, or a LLaVA in the hub's layout
"""

from __future__ import annotations

from pathlib import Path

from ironclip.errors import ConfigError, WeightsError
from ironclip.models import llava, tiny_vlm
from ironclip.models._files import read_json
from ironclip.models._weights import tensors_sha256
from ironclip.models.sources import BUNDLED, load_model
from ironclip.models.vlm import VisionLanguageModel

BUNDLED_NAME = "tiny-vlm"


def load_vlm(
    source: str, *, tower: str | None = None, resolution: int | None = None, device: str = "cpu"
) -> VisionLanguageModel:
    """Load a vision-language model, and put it on another tower where one is named; nothing is retrained.

    Args:
        source: See above.
        tower: Source of the CLIP whose image tower takes the place of the model's own.
        resolution: What that tower reads, where it is not what a LLaVA's own reads; see `Llava.replace_tower`.
        device: "cpu", "cuda", "cuda:1".

    Raises:
        ConfigError: The folder holds neither, or the tower does not fit.
        WeightsError: Files are missing or do not fit.
    """
    folder = BUNDLED / BUNDLED_NAME if source == BUNDLED_NAME else Path(source)
    model: llava.Llava | tiny_vlm.TinyVLM
    if resolution is not None and tower is None:
        raise ConfigError(f"a resolution of {resolution} without another tower.", "Name the tower, or leave it out.")
    if decoder := _decoder(folder):
        if resolution is not None:
            raise ConfigError(
                f"tiny-vlm at a resolution of {resolution}.", "Its decoder knows its own only: leave it out."
            )
        model = tiny_vlm.load_tiny_vlm(decoder, load_model(_own_tower(decoder), device=device))
        if tower is not None:
            model.replace_tower(load_model(tower, device=device))
        return model
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f'"{source}" is no vision-language model: it holds neither {tiny_vlm.CONFIG} nor config.json.',
            "Give a run of ironclip pretrain recipes/vlm/tiny-vlm.yaml, or a LLaVA in the hub's layout.",
        )
    model = llava.load_llava(folder, device=device)
    if tower is not None:
        model.replace_tower(load_model(tower, device=device), resolution=resolution)
    return model


def vlm_identity(model: VisionLanguageModel) -> str:
    """Return the sha256 hex of all weights in use, the tower's in place among them."""
    state = model.state_dict()
    return tensors_sha256({name: state[name] for name in state if not name.startswith("_stock.")})


def _decoder(folder: Path) -> Path | None:
    """Return where tiny-vlm's decoder lies: the folder, or what a run left in it."""
    return next((place for place in (folder, folder / "model") if (place / tiny_vlm.CONFIG).is_file()), None)


def _own_tower(decoder: Path) -> str:
    """Return the source of the tower that a decoder was trained on."""
    tower = read_json(decoder / tiny_vlm.CONFIG).get("tower")
    if not isinstance(tower, str):
        raise WeightsError(f"{decoder / tiny_vlm.CONFIG} does not name its tower.", "Train it with this version.")
    return tower
