"""Pre-training, whole: the language first, then the images, then a model folder that stock open_clip loads."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ironclip.data.bundled.shapes import COLOURS, SHAPES
from ironclip.errors import ConfigError
from ironclip.files import write_atomically
from ironclip.models._architecture import build_clip, check_architecture, preprocessing_of
from ironclip.models._weights import tensors_sha256
from ironclip.models.clip import CLIPModel, ModelSpec, tokenizer_for
from ironclip.models.sources import check_device, save_model
from ironclip.pretraining.corpus import Corpus, read_corpus
from ironclip.pretraining.encoder import SentenceEncoder, encode_once
from ironclip.pretraining.images import ImagesProgress, train_images
from ironclip.pretraining.language import LanguageProgress, distil
from ironclip.pretraining.phrases import Phrases, gather_phrases, read_glosses, read_unseen, read_wordnet
from ironclip.pretraining.recipe import PretrainRecipe
from ironclip.pretraining.short_texts import text_features
from ironclip.pretraining.targets import Targets, make_targets, read_clip_text
from ironclip.provenance import source_sha256, versions

RESULT = "result.json"
"""Written last: a run folder that has it is complete."""

_TEXTS_AT_ONCE = 512


@dataclass(frozen=True)
class PretrainProgress:
    """What a progress display shows: which phase, and how far it is."""

    phase: str
    step: int
    steps: int
    status: str


Show = Callable[[PretrainProgress], None]


def pretrain(
    recipe: PretrainRecipe,
    out: Path,
    *,
    device: str = "cpu",
    data_root: str = "data",
    strict: bool = False,
    command: Sequence[str] = (),
    progress: Show | None = None,
) -> Path:
    """Run a recipe of pre-training, or go on with it where `out` holds its checkpoints; the same bit for bit.

    Args:
        recipe: The run.
        out: The run folder: run.json, language/, images/, and at the end model/ (open_clip's layout, float16).
        device: "cpu", "cuda", "cuda:1".
        data_root: What `{data}` in the recipe stands for.
        strict: An unreadable image is fatal, not only counted.
        command: What the user typed, for the record.
        progress: Called after each step.

    Returns:
        `out`.

    Raises:
        ConfigError, DataError, WeightsError: Something that the recipe names is missing or does not fit.
        ResumeError: `out` holds another run.
        RunFailedError: A loss is not finite.
        KeyboardInterrupt, SystemExit: After SIGINT or SIGTERM, with a checkpoint written first.
    """
    unseen = {} if recipe.unseen is None else read_unseen(Path(_place(recipe.unseen, data_root)).parent)
    model = fresh_model(recipe.architecture, recipe.seed).to(check_device(device))
    corpus = read_corpus(
        recipe.images.sources,
        data_root=data_root,
        resolution=model.input_resolution,
        unseen=unseen,
        seed=recipe.seed,
        strict=strict,
    )
    # Classes that are kept back to compare recipes are to be as unknown as those that must never be met.
    untaught = [word for classes in unseen.values() for words in classes.values() for word in words]
    untaught += [word for part in corpus.unmet for words in part.words for word in words]
    wordnet = Path(_place(recipe.language.wordnet, data_root))
    phrases = corpus_phrases(corpus, words=read_wordnet(wordnet), glosses=read_glosses(wordnet), without=untaught)
    show = progress or (lambda _: None)
    targets = _targets(recipe, phrases, untaught, out / "language", data_root, show)
    _write_record(out, recipe, corpus, targets, command=command, device=device)

    def tell_language(state: LanguageProgress) -> None:
        status = f"loss {state.loss:.4f}, {state.texts_per_second:.0f} texts/s"
        show(PretrainProgress("language", state.step, state.steps, status))

    def tell_images(state: ImagesProgress) -> None:
        accuracy = [f"{name} {100 * share:.1f} %" for name, share in state.accuracy.items() if "per class" not in name]
        status = ", ".join([f"loss {state.loss:.3f}", *accuracy, f"{state.images_per_second:.0f} images/s"])
        show(PretrainProgress("images", state.step, state.steps, status))

    language = distil(
        model, targets, recipe.language.distillation, out / "language", seed=recipe.seed, progress=tell_language
    )
    accuracy = train_images(
        model,
        corpus,
        recipe.images,
        out / "images",
        seed=recipe.seed,
        key=_key(recipe, corpus, model),
        embed=partial(embed_texts, model),
        progress=tell_images,
    )
    weights = save_model(model, out / "model", dtype=torch.float16)
    done = {
        "weights_sha256": weights,
        "language": asdict(language),
        "validation": accuracy,
        "images_per_step": sum(part.settings.per_batch for part in corpus.parts),
        "steps": recipe.images.steps,
        "unreadable": corpus.unreadable,
    }
    write_atomically(out / RESULT, json.dumps(done, indent=1).encode())
    return out


def fresh_model(architecture: dict[str, Any], seed: int) -> CLIPModel:
    """Build a model with random weights: a function of the seed.

    Raises:
        ConfigError: Not a configuration that open_clip knows and IronCLIP serves.
    """
    where = "architecture"
    check_architecture(architecture, where)
    clip = build_clip(architecture, where, seed=seed)
    spec = ModelSpec("pretraining", architecture, tensors_sha256(clip.state_dict()), preprocessing_of(clip, {}, where))
    return CLIPModel(clip, tokenizer_for(architecture), spec)


def corpus_phrases(
    corpus: Corpus, *, words: Sequence[str], glosses: Sequence[str] = (), without: Sequence[str]
) -> Phrases:
    """Gather what the text tower is taught: names of all classes, a vocabulary, coloured things, captions, definitions.

    A vocabulary alone does not teach what an adjective does to a noun: each class is named in each colour of `shapes`
    as well ("red goldfish"), the pairs of `shapes` apart, which are classes or held out.
    """
    names = [word for part in corpus.parts for own in part.words for word in own]
    things = [own[0] for part in corpus.parts for own in part.words if not set(own[0].split()) & set(COLOURS)]
    coloured = [f"{colour} {thing}" for thing in things for colour in COLOURS if thing not in SHAPES]
    captions = [caption for part in corpus.parts for own in part.captions for caption in own]
    return gather_phrases(names, [*words, *coloured], [*captions, *glosses], without=without)


def embed_texts(model: CLIPModel, texts: Sequence[str]) -> Tensor:
    """Embed texts as unit rows `[N, D]`, those of one length together, so that short ones cost little."""
    ids = model.tokenize([text.lower() for text in texts])
    order = (ids != 0).sum(dim=1).argsort(stable=True)
    rows = torch.empty(len(texts), model.spec.architecture["embed_dim"], device=model.device)
    with torch.no_grad():
        for some in order.split(_TEXTS_AT_ONCE):
            rows[some] = text_features(model, ids[some])
    return rows


def _targets(
    recipe: PretrainRecipe, phrases: Phrases, untaught: Sequence[str], cache: Path, data_root: str, show: Show
) -> Targets:
    section = recipe.language
    clip_text = None
    if section.targets.kind != "sentence":
        if section.clip_text is None:
            raise ConfigError(
                f'language.targets.kind is "{section.targets.kind}" without language.clip_text.',
                "Give the folder of CLIP's text embeddings, or kind: sentence.",
            )
        clip_text = read_clip_text(Path(_place(section.clip_text, data_root)), without=untaught)
    encoder = SentenceEncoder(Path(_place(section.encoder, data_root)))

    def tell(done: int, total: int) -> None:
        show(PretrainProgress("phrases", done, total, "where each should lie"))

    return make_targets(phrases, section.targets, lambda texts: encode_once(encoder, texts, cache, tell), clip_text)


def _key(recipe: PretrainRecipe, corpus: Corpus, model: CLIPModel) -> str:
    """Hash what decides the images' part, its length left out; the text tower stands for the language's part."""
    content = recipe.model_dump(mode="json", exclude={"title": True, "language": True, "images": {"steps"}})
    text = tensors_sha256({name: value for name, value in model.clip.state_dict().items() if "visual." not in name})
    return hashlib.sha256(f"{json.dumps(content, sort_keys=True)}\n{corpus.fingerprint}\n{text}".encode()).hexdigest()


def _write_record(
    out: Path, recipe: PretrainRecipe, corpus: Corpus, targets: Targets, *, command: Sequence[str], device: str
) -> None:
    """Write run.json; on a resume it stays as the first sitting wrote it."""
    if (out / "run.json").is_file():
        return
    record = {
        "command": shlex.join(command),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "source_sha256": source_sha256("ironclip.pretraining.pretrain"),
        "device": device,
        "data": {part.name: len(part) for part in corpus.parts},
        "targets": targets.record,
        "recipe": recipe.model_dump(mode="json"),
    }
    write_atomically(out / "run.json", json.dumps(record, indent=1).encode())


def _place(text: str, data_root: str) -> str:
    return text.replace("{data}", data_root)
