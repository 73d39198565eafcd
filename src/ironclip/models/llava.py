"""transformers' LLaVA behind `VisionLanguageModel`, its CLIP tower found, replaced by another, and put back.

Source: Liu et al., CVPR 2024, arXiv:2310.03744 (LLaVA-1.5); the tower reads one square image and hands on the patch
tokens of one layer (the last but one, `vision_feature_layer`). LLaVA-NeXT and others that cut an image into tiles are
refused. The answer that a lesson holds ends with the end-of-text token, as in training.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ironclip.errors import ConfigError, MissingDependencyError, WeightsError
from ironclip.models._files import Folder, first_line, read_json
from ironclip.models._to_transformers import model_config, rename_weights
from ironclip.models._transformers import KERNELS
from ironclip.models.clip import CLIPModel
from ironclip.models.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing, check_pixels
from ironclip.models.sources import check_device
from ironclip.models.vlm import Lesson, VisionLanguageModel, check_texts, write_lesson

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: <image>\n{} ASSISTANT:"
)
"""What LLaVA-1.5 was trained with: one `<image>`, and `{}` for the prompt."""

# A tower is the same to the language model only if it agrees in these.
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size", "hidden_act")


def load_llava(folder: str | Path, *, device: str = "cpu", template: str = VICUNA) -> Llava:
    """Load a LLaVA from a folder in the hub's layout, in eval mode, float32 weights; no code of the folder is run.

    Args:
        folder: Holds config.json, safetensors, a tokenizer and preprocessor_config.json.
        device: "cpu", "cuda", "cuda:1".
        template: Around each prompt: one `<image>` and one `{}`.

    Raises:
        ConfigError: Not a LLaVA over a CLIP tower, or a template or preprocessing that does not fit.
        WeightsError: Files are missing or cannot be read.
        MissingDependencyError: transformers is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise MissingDependencyError("transformers", "hf", purpose="a LLaVA model") from None
    target, files = check_device(device), Folder(Path(folder))
    paths = {name: files.find(name) for name in ("config.json", "preprocessor_config.json")}
    for name, path in paths.items():
        if path is None:
            raise WeightsError(f"{files} has no {name}.", "Give a folder in the layout of llava-hf/llava-1.5-7b-hf.")
    config, processor = (read_json(path) for path in paths.values() if path is not None)
    refuse_other_models(config, files)
    try:
        model: Any = transformers.LlavaForConditionalGeneration.from_pretrained(
            files.path, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(files.path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{files} cannot be loaded: {first_line(error)}.", "Fetch the folder anew.") from None
    side = model.config.vision_config.image_size
    return Llava(model, tokenizer, _preprocessing(processor, side, files), str(files), template=template).to(target)


def refuse_other_models(config: dict[str, Any], where: object) -> None:
    """Refuse what is no LLaVA on a CLIP tower, by its config.json.

    Raises:
        ConfigError: Names what it is.
    """
    tower = (config.get("vision_config") or {}).get("model_type")
    if config.get("model_type") != "llava" or tower != "clip_vision_model":
        raise ConfigError(
            f'{where} has model_type "{config.get("model_type")}" on a "{tower}".',
            "IronCLIP serves transformers' LLaVA (model_type llava) on a CLIP tower (clip_vision_model).",
        )


def check_architecture_of_tower(clip: CLIPModel, vision: Any, where: str) -> None:
    """Make sure that the image tower of a CLIP can take the place of a LLaVA's.

    Args:
        clip: The CLIP.
        vision: transformers' CLIPVisionConfig of the LLaVA's tower.
        where: The LLaVA.

    Raises:
        ConfigError: Another architecture; names what differs.
    """
    theirs = model_config(clip.spec.architecture, clip.input_resolution)["vision_config"]
    unlike = [name for name in _SIZES if theirs[name] != getattr(vision, name)]
    if unlike:
        listed = ", ".join(f"{name} {theirs[name]}, not {getattr(vision, name)}" for name in unlike)
        raise ConfigError(
            f"{clip.spec.origin} does not fit {where}: {listed}.",
            "Tune a CLIP of the architecture that the language model was trained on.",
        )


def tower_weights(clip: CLIPModel) -> dict[str, Tensor]:
    """Return the weights of a CLIP's image tower by transformers' names, `vision_model.` first."""
    renamed = rename_weights(clip.clip.state_dict())
    return {name: value for name, value in renamed.items() if name.startswith("vision_model.")}


def _preprocessing(processor: dict[str, Any], side: int, where: object) -> Preprocessing:
    size, kernel = processor.get("size", side), KERNELS.get(processor.get("resample", 3))
    shortest = size.get("shortest_edge", size.get("height")) if isinstance(size, dict) else size
    if shortest != side or kernel is None:
        raise ConfigError(
            f"{where} prepares images of size {size} (resample {processor.get('resample')}) for a tower of {side}.",
            f"Give preprocessor_config.json the size {side} and resample 2 or 3.",
        )
    mean, std = processor.get("image_mean") or CLIP_MEAN, processor.get("image_std") or CLIP_STD
    return Preprocessing(side, tuple(map(float, mean)), tuple(map(float, std)), kernel)


class Llava(VisionLanguageModel):
    """A LLaVA, standing on its own tower until another takes its place.

    Args:
        model: transformers' LlavaForConditionalGeneration.
        tokenizer: Its tokenizer.
        preprocessing: Between pixels and tower.
        origin: Where it comes from.
        template: Around each prompt: one `<image>` and one `{}`.

    Raises:
        ConfigError: The template lacks one of the two, or the model reads several layers.
    """

    def __init__(
        self, model: Any, tokenizer: Any, preprocessing: Preprocessing, origin: str, *, template: str = VICUNA
    ) -> None:
        super().__init__()
        if template.count("<image>") != 1 or template.count("{}") != 1:
            raise ConfigError(f'the template "{template}" does not hold one <image> and one {{}}.', "Give it both.")
        if not isinstance(model.config.vision_feature_layer, int):
            raise ConfigError(
                f"{origin} reads the layers {model.config.vision_feature_layer}.", "IronCLIP serves models of one."
            )
        self.language: Any = model
        self.tokenizer, self.preprocessing, self.origin, self.template = tokenizer, preprocessing, origin, template
        self._stock: tuple[nn.Module, Preprocessing] | None = None
        self.tower_origin = "its own tower"
        self.train(False)

    # The tower

    @property
    def name(self) -> str:  # type: ignore[override]  # read-only here: it follows from the tower
        """Folder, tower, resolution and layer, as a table has to name them."""
        return f"{self.origin} on {self.tower_origin}, {self.input_resolution} px, layer {self.layer}"

    @property
    def tower(self) -> nn.Module:
        """The tower in use, transformers' CLIPVisionModel."""
        return self.language.model.vision_tower  # type: ignore[no-any-return]  # transformers is untyped

    @property
    def layer(self) -> int:
        """Of which layer the patch tokens are handed on; -2 is the last but one."""
        return self.language.config.vision_feature_layer  # type: ignore[no-any-return]  # see `tower`

    @property
    def input_resolution(self) -> int:
        """Side of the square that the tower reads, in pixels."""
        return self.preprocessing.resolution

    def replace_tower(self, clip: CLIPModel, *, resolution: int | None = None) -> None:
        """Let the language model stand on the image tower of a CLIP; nothing but tower weights changes.

        Args:
            clip: Of the same architecture as the tower. Its weights are copied.
            resolution: What `clip` reads, where that is not what the stock tower reads: a promise that the change of
                resolution is meant.

        Raises:
            ConfigError: Another architecture, prompts or adapters in it, or another resolution that was not promised.
        """
        stock: Any = (self._stock or (self.tower, self.preprocessing))[0]
        side = clip.input_resolution
        if clip.prompts is not None or clip.adapters is not None:
            raise ConfigError(
                f"{clip.spec.origin} carries prompts or adapters, which a LLaVA's tower has no place for.",
                "Merge adapters into the weights first, or tune the tower itself.",
            )
        ours = stock.config
        check_architecture_of_tower(clip, ours, self.origin)
        if side not in (ours.image_size, resolution):
            raise ConfigError(
                f"{clip.spec.origin} reads {side} pixels, the tower of {self.origin} {ours.image_size}.",
                f"Tune a tower at {ours.image_size}, or pass resolution={side}: then every row of a table, the "
                f"undefended one included, has to stand on a tower of {side}.",
            )
        config = copy.deepcopy(stock.config)
        config.image_size = side
        tower = type(stock)(config)
        prefix = "" if "embeddings.class_embedding" in tower.state_dict() else "vision_model."
        weights = {prefix + name.removeprefix("vision_model."): value for name, value in tower_weights(clip).items()}
        missing, unexpected = tower.load_state_dict(weights, strict=False)
        if unexpected or any(not name.endswith("position_ids") for name in missing):
            raise WeightsError(f"{clip.spec.origin} lacks {missing}, has {unexpected}.", "Export it anew.")
        self._stock = self._stock or (self.tower, self.preprocessing)
        self.preprocessing = clip.spec.preprocessing
        self.tower_origin = f"{clip.spec.origin} ({clip.spec.sha256[:8]})"
        self.language.model.vision_tower = tower.to(self.device).train(False)

    def restore_tower(self) -> None:
        """Put the model's own tower back, if another is in its place."""
        if self._stock is not None:
            self.language.model.vision_tower, self.preprocessing = self._stock
            self._stock, self.tower_origin = None, "its own tower"

    # The protocol

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.language.device  # type: ignore[no-any-return]  # see `tower`

    def visual_tokens(self, pixels: Tensor) -> Tensor:
        """Return the tokens of the layer that is handed on, `[B, P, W]`, before the projector."""
        hidden: Tensor = self.tower(self._prepared(pixels), output_hidden_states=True).hidden_states[self.layer]
        return hidden[:, 1:] if self._without_class else hidden

    def write(self, prompts: Sequence[str], targets: Sequence[str]) -> Lesson:
        """Write prompts in the template, and the answers with the end of the text; see the protocol."""
        ends = [self.tokenizer.eos_token_id]
        answers = [ids + ends if (ids := self._ids(f" {text}", special=False)) else [] for text in targets]
        padding = self.tokenizer.pad_token_id
        return write_lesson(
            [self._prompt(prompt) for prompt in prompts],
            answers,
            padding=ends[0] if padding is None else padding,
            device=self.device,
        )

    def predict(self, pixels: Tensor, lesson: Lesson) -> Tensor:
        """Return logits by teacher forcing; see the protocol.

        What follows a row's answer is padding, which no earlier place sees: no mask is needed.
        """
        out = self.language(input_ids=lesson.ids, pixel_values=self._prepared(pixels), use_cache=False)
        logits: Tensor = out.logits.float()
        # A place is predicted by the one before it.
        return torch.cat([torch.zeros_like(logits[:, :1]), logits[:, :-1]], dim=1)

    @torch.no_grad()
    def generate(self, pixels: Tensor, prompts: Sequence[str], *, max_new_tokens: int = 20) -> list[str]:
        """Answer greedily; see the protocol. Rows whose prompts are equally long go together."""
        check_texts(len(pixels), prompts=prompts)
        written = [self._prompt(prompt) for prompt in prompts]
        alike: dict[int, list[int]] = defaultdict(list)
        for row, prompt in enumerate(written):
            alike[len(prompt)].append(row)
        answers = [""] * len(written)
        for length, rows in alike.items():
            ids = torch.tensor([written[row] for row in rows], device=self.device)
            said = self.language.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=self._prepared(pixels[rows]),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=self.tokenizer.eos_token_id,
            )
            texts = self.tokenizer.batch_decode(said[:, length:], skip_special_tokens=True)
            for row, text in zip(rows, texts, strict=True):
                answers[row] = text.strip()
        return answers

    # Inside

    @property
    def _without_class(self) -> bool:
        return bool(self.language.config.vision_feature_select_strategy == "default")

    def _prepared(self, pixels: Tensor) -> Tensor:
        check_pixels(pixels, slack=16 / 255)  # as CLIPModel; decision 005
        return self.preprocessing.normalise(self.preprocessing.resize(pixels))

    def _ids(self, text: str, *, special: bool) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])

    def _prompt(self, prompt: str) -> list[int]:
        """Return the ids of a prompt in its template, the image's place widened to one token a patch."""
        patch: int = self.language.config.vision_config.patch_size
        places = (self.input_resolution // patch) ** 2 + (not self._without_class)
        image = self.language.config.image_token_id
        before, after = self.template.split("<image>")
        # The prompt is words: an "<image>" in it must not become a second image.
        words = after.replace("{}", prompt.replace("<image>", "image"))
        return [*self._ids(before, special=True), *[image] * places, *self._ids(words, special=False)]
