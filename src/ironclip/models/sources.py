"""Model sources: one string says which model, and it is loaded safely or refused in words.

    tiny                                    the small CLIP that comes with IronCLIP, for 32 x 32 pixels
    open_clip:ViT-B-32/laion2b_s34b_b79k    weights that open_clip knows; downloaded once
    open_clip:ViT-B-32/random?seed=0        random weights, for benchmarks and tests
    hf-hub:ORG/NAME                         a repository in open_clip's layout, or transformers' CLIP
    local-dir:PATH                          the same in a folder
    run:PATH, or PATH alone                 what a training run left there
    run:PATH?robust_weight=W                weights between the run's original (0) and its result (1)
    python:package.module:factory           any callable from pixels to logits; for classifiers only

No code is ever loaded with weights: safetensors, or PyTorch files with `weights_only=True`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import open_clip
import torch
from open_clip.pretrained import download_pretrained, get_pretrained_cfg
from torch import Tensor, nn

from ironclip.data.fingerprints import file_sha256
from ironclip.errors import ConfigError, RegistryError, WeightsError, did_you_mean
from ironclip.files import write_atomically
from ironclip.models._architecture import (
    Blueprint,
    activation_mismatch,
    build_clip,
    check_activation,
    check_architecture,
    preprocessing_of,
    read_open_clip,
)
from ironclip.models._files import Files, Folder, HubRepository, first_line, read_json
from ironclip.models._python import call_factory, source_file
from ironclip.models._transformers import read_transformers, translate_weights
from ironclip.models._weights import (
    OPENAI_SIZES,
    fit,
    read_weights,
    tensors_sha256,
    write_weights,
)
from ironclip.models.clip import CLIPModel, ModelSpec, tokenizer_for
from ironclip.models.interpolation import check_robust_weight, interpolate
from ironclip.models.pieces import PREFIXES, add_saved_pieces, base_of, has_pieces, save_pieces
from ironclip.models.zero_shot import Classifier, FixedClasses, PythonClassifier, ZeroShotClassifier

logger = logging.getLogger(__name__)

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
BUNDLED = Path(__file__).parent
"""Models that come with IronCLIP, a folder each."""

_RANDOM = re.compile(r"random(?:\?seed=(\d+))?")
_BETWEEN = re.compile(r"(.*)\?robust_weight=(.*)", re.DOTALL)


def load_model(source: str, *, device: str = "cpu", fast: bool = True) -> CLIPModel:
    """Load a CLIP model in eval mode, with float32 weights.

    Args:
        source: One of the forms above, but `python:`.
        device: "cpu", "cuda", "cuda:1", ...
        fast: Use the fast path where it serves the tower.

    Returns:
        The model; `spec.origin` is the source, `spec.sha256` the hash of its weights file.

    Raises:
        ConfigError: The source is not understood, or names a model that IronCLIP does not serve, or a configuration
            whose activation is not that of the weights.
        RegistryError: open_clip has no such architecture or no such weights; near names are shown.
        WeightsError: Files are missing, are not weights, or do not fit.
    """
    target = check_device(device)
    kind, where = _split(source)
    if kind == "python":
        raise ConfigError(
            f'"{source}" is a classifier, not a CLIP model.',
            "Load it with load_classifier, or evaluate it with ironclip eval.",
        )
    clip, spec = _OPENERS[kind](source, where)
    return CLIPModel(clip, tokenizer_for(spec.architecture), spec, fast=fast).to(target)


def load_between(robust: str, robust_weight: float, *, original: str | None = None, device: str = "cpu") -> CLIPModel:
    """Load weights between a model and what tuning made of it.

    Args:
        robust: Source of the model after its tuning.
        robust_weight: 0 gives the original, 1 the robust model, bit for bit.
        original: Source of the model before it; a run of IronCLIP knows its own.
        device: As in `load_model`.

    Raises:
        ConfigError, RegistryError, WeightsError, ValueRangeError: See `load_model` and `interpolate`; or the run tuned
            prompts or adapters, or the original is not known, or no longer what the run began with.
    """
    target = check_device(device)
    check_robust_weight(robust_weight)
    kind, where = _split(robust)
    if kind == "run" and original is None:
        return load_model(f"run:{where}?robust_weight={robust_weight}", device=device)
    if original is None or kind == "python":
        raise ConfigError(
            f"{robust} does not say which model it was tuned from.",
            "Name it with --original SOURCE, or give the folder of a run.",
        )
    if kind == "run":
        _refuse_untuned_towers(Path(where))
    before = load_model(original)
    clip, spec = interpolate((before.clip, before.spec), _OPENERS[kind](robust, where), robust_weight)
    return CLIPModel(clip, before.tokenizer, spec).to(target)


def load_classifier(
    source: str, class_names: Sequence[str], templates: Sequence[str], *, device: str = "cpu", fast: bool = True
) -> Classifier:
    """Load a classifier over the given classes.

    Args:
        source: A CLIP model, see `load_model`; or `python:package.module:factory`, whose factory takes nothing and
            returns a callable from pixels `[B, 3, H, W]` in [0, 1] to logits `[B, C]` in the order of the class names.
        class_names: Words for the classes, in label order.
        templates: Prompt templates with one `{}` each; read by CLIP models only.
        device: As in `load_model`.
        fast: As in `load_model`.

    Raises:
        ConfigError, RegistryError, WeightsError: See `load_model`; or there is no such module or factory, or nothing
            callable comes out of it.
    """
    kind, where = _split(source)
    if kind != "python":
        return ZeroShotClassifier(load_model(source, device=device, fast=fast), class_names, templates)
    target = check_device(device)
    call = call_factory(where)
    return PythonClassifier(call.to(target) if isinstance(call, nn.Module) else call, target, class_names)


def model_identity(model: CLIPModel | Classifier) -> str:
    """Return the sha256 hex that stands for a model in stored results.

    For CLIP models it is the hash of the weights file. For others it is that of the state dict; of a function, or a
    module that has none, that of its source file, which does not change when files that the code reads do.

    Raises:
        ConfigError: A function without a source file.
    """
    if isinstance(model, FixedClasses):
        model = model.model
    if isinstance(model, CLIPModel):
        return model.spec.sha256
    call = model.call if isinstance(model, PythonClassifier) else model
    tensors = call.state_dict() if isinstance(call, nn.Module) else {}
    if tensors:
        return tensors_sha256({name: tensor for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)})
    path = source_file(call)
    if path is None:
        raise ConfigError(f"{call!r:.60} has no source file that could identify it.", "Define it in a file.")
    return file_sha256(path)


def save_model(model: CLIPModel, folder: Path, *, dtype: torch.dtype = torch.float32) -> str:
    """Save a model in open_clip's folder layout; each file is there whole or not at all.

    Stock open_clip loads the folder as `local-dir:FOLDER` to the same logits; in float32 every weight comes back bit
    for bit. Prompts and adapters lie beside it in files of their own, which stock open_clip does not read.

    Args:
        model: The model.
        folder: Where to; made if it is not there, overwritten if it is.
        dtype: Precision of the weights in the file; scalars stay float32.

    Returns:
        The sha256 hex of the weights file.
    """
    preprocessing = model.spec.preprocessing
    config = {
        "model_cfg": model.spec.architecture,
        "preprocess_cfg": {
            "size": preprocessing.resolution,
            "mode": "RGB",
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "interpolation": preprocessing.kernel,
            "resize_mode": preprocessing.resize_mode,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(model.clip, folder / WEIGHTS, dtype, without=PREFIXES)
    if model.prompts is not None or model.adapters is not None:
        save_pieces(model, folder)
    # Last: what reads a folder in the making finds no configuration, and says so.
    write_atomically(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    return file_sha256(folder / WEIGHTS)


# One function a kind of source


def _open_built_in(source: str, where: str) -> tuple[nn.Module, ModelSpec]:
    name, _, tag = where.rpartition("/")
    name = name.replace("/", "-")  # "ViT-B/32", as OpenAI writes it
    known = open_clip.list_models()
    if not name and where in known:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(where)[:6])
        raise ConfigError(
            f'"{source}" names no weights.',
            f"Write open_clip:{where}/TAG ({tags or 'open_clip has none for it'}), or open_clip:{where}/random.",
        )
    if name not in known:
        raise RegistryError(
            f'open_clip has no architecture "{name or where}".{did_you_mean(name or where, known)}',
            "Write open_clip:NAME/TAG, such as open_clip:ViT-B-32/laion2b_s34b_b79k.",
        )
    architecture = open_clip.get_model_config(name)
    check_architecture(architecture, source)
    if random := _RANDOM.fullmatch(tag):
        seed = int(random[1] or 0)
        logger.warning("%s has random weights (seed %d): good for benchmarks and tests only.", source, seed)
        clip = build_clip(architecture, source, seed=seed)
        origin = f"open_clip:{name}/random?seed={seed}"
        return clip, ModelSpec(
            origin, architecture, tensors_sha256(clip.state_dict()), preprocessing_of(clip, {}, source)
        )
    settings = get_pretrained_cfg(name, tag)
    if not settings:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise RegistryError(
            f'open_clip has no weights "{tag}" for {name}.{did_you_mean(tag, [*tags, "random"])}',
            f"Its tags: {', '.join(tags) or 'none'}; or random?seed=0 for random weights.",
        )
    needed, configured = bool(settings.get("quick_gelu")), bool(architecture.get("quick_gelu"))
    if needed != configured:
        twin = f"{name}-quickgelu" if needed else name.removesuffix("-quickgelu")
        remedy = f"Write open_clip:{twin}/{tag}." if twin in known else "Choose another tag."
        raise activation_mismatch(source, needed, f"the weights {tag}", remedy)
    weights = _download(source, settings)
    tensors = read_weights(weights)
    clip = build_clip(architecture, source)
    fit(clip, tensors, weights)
    return clip, ModelSpec(source, architecture, file_sha256(weights), preprocessing_of(clip, settings, source))


def _download(source: str, settings: dict[str, object]) -> Path:
    try:
        return Path(download_pretrained(settings))
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"the weights of {source} could not be downloaded: {first_line(error)}.",
            "Check the network; where there is none, copy a folder here and use local-dir:PATH.",
        ) from None


def _open_hub(source: str, where: str) -> tuple[nn.Module, ModelSpec]:
    return _open_files(source, HubRepository(where))


def _open_folder(source: str, where: str) -> tuple[nn.Module, ModelSpec]:
    return _open_files(source, Folder(Path(where)))


def _open_run(source: str, where: str) -> tuple[nn.Module, ModelSpec]:
    if between := _BETWEEN.fullmatch(where):
        return _open_between(source, Path(between[1]), between[2])
    run = Folder(Path(where))
    if run.find("run.json") is None:
        raise WeightsError(
            f"{where} holds neither a run (run.json) nor a model ({CONFIG}).",
            "Give the folder of a training run, or local-dir:PATH with a folder in open_clip's layout.",
        )
    if not (run.path / "model").is_dir() and "suite" in (record := read_json(run.path / "run.json")):
        evaluated = record["model"]["source"] if isinstance(record.get("model"), dict) else "what it evaluated"
        raise WeightsError(f"{where} is an evaluation, which holds no model.", f"Give the model itself: {evaluated}")
    if not (run.path / "model").is_dir():
        raise WeightsError(
            f"the run {where} has no model yet.", "Finish it: ironclip train continues a run where it stopped."
        )
    model = Folder(run.path / "model")
    if has_pieces(model.path) and model.find(CONFIG) is None:
        return _open_on_base(source, model.path)
    return _open_files(source, model)


def _open_on_base(source: str, folder: Path) -> tuple[nn.Module, ModelSpec]:
    """Open the model that a folder's prompts or adapters stand on, and put them into it."""
    base, sha256 = base_of(folder)
    clip, spec = _open_recorded(base, folder)
    if spec.sha256 != sha256:
        raise WeightsError(
            f"{base} is no longer the model that {folder} was tuned on: its weights have another sha256.",
            "Put the original weights back.",
        )
    return clip, replace(spec, origin=source, sha256=add_saved_pieces(clip, sha256, folder))


def _open_recorded(source: str, folder: Path) -> tuple[nn.Module, ModelSpec]:
    """Open the model that a folder names; never one of a user's code, since others may have written the folder."""
    kind, where = _split(source)
    if kind == "python":
        raise WeightsError(f"{folder} names {source}, which would run code.", "Load it with load_classifier instead.")
    return _OPENERS[kind](source, where)


def _open_between(source: str, run: Path, weight: str) -> tuple[nn.Module, ModelSpec]:
    """Open weights between a run's result and the model that it began with."""
    try:
        robust_weight = float(weight)
    except ValueError:
        raise ConfigError(f'{source}: "{weight}" is no number.', "Write a robust weight from 0 to 1.") from None
    check_robust_weight(robust_weight)
    _refuse_untuned_towers(run)
    robust = _open_run(str(run), str(run))
    model = read_json(run / "run.json").get("model")
    if not isinstance(model, dict) or not {"source", "sha256"} <= model.keys():
        raise WeightsError(f"{run}/run.json names no original model.", "Give the folder of a run of ironclip train.")
    original = _open_recorded(str(model["source"]), run)
    if original[1].sha256 != model["sha256"]:
        raise WeightsError(
            f"{model['source']} is no longer what the run {run} began with: its weights have another sha256.",
            "Put the original weights back, or interpolate between two models that you name.",
        )
    clip, spec = interpolate(original, robust, robust_weight)
    return clip, replace(spec, origin=source)


def _refuse_untuned_towers(run: Path) -> None:
    """Refuse a run that tuned something beside the towers, which has no way between before and after."""
    tuned = read_json(run / "run.json").get("trains") if (run / "run.json").is_file() else None
    if tuned in ("prompts", "adapters"):
        raise ConfigError(
            f"the run {run} tuned {tuned} beside the weights of its original: there are no weights between the two.",
            "Leave the robust weight out.",
        )


def _open_files(source: str, files: Files) -> tuple[nn.Module, ModelSpec]:
    blueprint, candidates, translate = _read_layout(files)
    architecture = blueprint.architecture
    # Before the weights, which may have to be downloaded.
    check_architecture(architecture, files)
    check_activation(architecture, (files.name, *blueprint.hints), files)
    weights = next((path for path in map(files.find, candidates) if path is not None), None)
    if weights is None:
        raise files.missing(" or ".join(candidates))
    tensors = read_weights(weights)
    if tensors.keys() >= OPENAI_SIZES and not architecture.get("quick_gelu"):
        remedy = f'Write "quick_gelu": true into model_cfg of {CONFIG}.'
        raise activation_mismatch(files, True, "OpenAI's weights", remedy)
    clip = build_clip(architecture, files)
    fit(clip, translate(tensors), weights)
    preprocessing = preprocessing_of(clip, blueprint.preprocess, files)
    sha256 = file_sha256(weights)
    if isinstance(files, Folder) and has_pieces(files.path):
        sha256 = add_saved_pieces(clip, sha256, files.path)
    return clip, ModelSpec(source, architecture, sha256, preprocessing)


def _read_layout(files: Files) -> tuple[Blueprint, tuple[str, str], Callable[[dict[str, Tensor]], dict[str, Tensor]]]:
    """Read the configuration: its content, where weights may lie, and how their names become open_clip's."""
    if (config := files.find(CONFIG)) is not None:
        return read_open_clip(read_json(config), files), (WEIGHTS, "open_clip_pytorch_model.bin"), dict
    if (config := files.find("config.json")) is None:
        raise files.missing(CONFIG)
    processor = files.find("preprocessor_config.json")
    if processor is None:
        logger.warning("%s has no preprocessor_config.json: CLIP's own mean, deviation and kernel are taken.", files)
    blueprint = read_transformers(read_json(config), read_json(processor) if processor else {}, files)
    return blueprint, ("model.safetensors", "pytorch_model.bin"), translate_weights


def _open_tiny(source: str, where: str) -> tuple[nn.Module, ModelSpec]:
    if where:
        raise ConfigError(f'"{source}" says more than "tiny".', "Write tiny.")
    return _open_files(source, Folder(BUNDLED / "tiny"))


_OPENERS: dict[str, Callable[[str, str], tuple[nn.Module, ModelSpec]]] = {
    "hf-hub": _open_hub,
    "local-dir": _open_folder,
    "open_clip": _open_built_in,
    "run": _open_run,
    "tiny": _open_tiny,
}


def _split(source: str) -> tuple[str, str]:
    """Split a source into its kind and what follows; a path alone is a run, or a model's folder."""
    if source == "tiny":
        return "tiny", ""
    kind, colon, where = source.partition(":")
    kinds = [*_OPENERS, "python"]
    if colon and kind in kinds:
        if not where:
            raise ConfigError(f'"{source}" ends after its kind.', f"Write {kind}:… with what to load.")
        return kind, where
    path = Path(source)
    if path.is_dir():
        is_model = (path / CONFIG).is_file() or (path / "config.json").is_file()
        return "local-dir" if is_model and not (path / "run.json").is_file() else "run", source
    if source in open_clip.list_models():
        raise ConfigError(f'"{source}" is an architecture without weights.', f"Write open_clip:{source}/TAG.")
    near = did_you_mean(kind, kinds) if colon else ""
    raise ConfigError(
        f'"{source}" is neither a folder nor a source of a kind that is known: {", ".join(kinds)}.{near}',
        "Write for example open_clip:ViT-B-32/laion2b_s34b_b79k, local-dir:PATH, or the folder of a run.",
    )


def check_device(name: str) -> torch.device:
    """Return a device that is there.

    Raises:
        ConfigError: No such device, or not on this machine.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f'"{name}" is no device.', 'Write "cpu", "cuda" or "cuda:1".') from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f'device "{name}" is not served.', 'Write "cpu", "cuda" or "cuda:1".')
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(f'device "{name}" asked for, this machine has {count} CUDA devices.', 'Use "cpu".')
    return device
