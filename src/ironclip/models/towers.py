"""One model of two: the image tower of one run and the text tower of another, both tuned from one original.

So robustness to images (FARE) and to texts (LEAF) stand in one checkpoint. Source: Rocamora et al., NeurIPS 2025,
arXiv:2506.03355 (LEAF), which pairs its text towers with FARE's image towers.
"""

from __future__ import annotations

import copy
from dataclasses import replace

from ironclip.errors import ConfigError
from ironclip.models._weights import tensors_sha256
from ironclip.models.clip import CLIPModel

_SHARED = ("visual.", "logit_scale")
"""What stays that of the image's model; all other weights are the text tower's."""


def join_towers(image: CLIPModel, text: CLIPModel) -> CLIPModel:
    """Return a model with the image tower (and logit scale) of one and the text tower of another, in eval mode.

    Args:
        image: Stays as it is; its weights are copied.
        text: Likewise.

    Raises:
        ConfigError: They are not of one architecture, or one carries prompts or adapters.
    """
    for model in (image, text):
        if model.prompts is not None or model.adapters is not None:
            raise ConfigError(
                f"{model.spec.origin} carries prompts or adapters, which belong to both of its towers.",
                "Export a model with adapters first, which merges them; prompts cannot be joined.",
            )
    unlike = [
        key for key in ("embed_dim", "text_cfg", "quick_gelu")
        if image.spec.architecture.get(key) != text.spec.architecture.get(key)
    ]  # fmt: skip
    if unlike:
        listed = ", ".join(
            f"{key} {image.spec.architecture.get(key)}, not {text.spec.architecture.get(key)}" for key in unlike
        )
        raise ConfigError(
            f"the towers of {image.spec.origin} and {text.spec.origin} do not belong together: {listed}.",
            "Take two models that were tuned from the same original.",
        )
    clip = copy.deepcopy(image.clip)
    other = text.clip.state_dict()
    clip.load_state_dict(
        {name: value if name.startswith(_SHARED) else other[name] for name, value in clip.state_dict().items()}
    )
    origin = f"{image.spec.origin} with the text tower of {text.spec.origin}"
    spec = replace(image.spec, origin=origin, sha256=tensors_sha256(clip.state_dict()))
    return CLIPModel(clip, image.tokenizer, spec).to(image.device)
