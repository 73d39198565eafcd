"""Pre-training that is killed ends where pre-training that is not ends."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from acceptance.claims import CannotRunError, Claim, Context, Figure, exactly, item
from acceptance.command_line import ironclip, must
from acceptance.killing import differing_steps, differing_tensors, kill_at
from ironclip.data.bundled import shapes

VOCABULARY = "animal anvil apple arrow basket bell boat bridge candle castle cloud coat digit door drum feather field"
SCENES = 60
ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def _recipe(steps: int) -> dict[str, Any]:
    return {
        "title": "A few steps, to be killed",
        "architecture": ARCHITECTURE,
        "language": {
            "wordnet": "{data}/wordnet",
            "encoder": "{data}/encoder",
            "targets": {"kind": "sentence", "width": 16},
            "distillation": {"steps": steps, "batch_size": 16, "warmup_steps": 3, "checkpoint_every": 7},
        },
        "images": {
            "sources": {
                "digits": {"source": "bundled:digits?split=train", "per_batch": 24, "mix": 0.5, "hold_out": 100},
                "scenes": {"source": "wds:{data}/scenes?split=train", "per_batch": 8, "captions": True},
            },
            "steps": steps,
            "warmup_steps": 3,
            "captions_against": 16,
            "checkpoint_every": 7,
            "validate_every": 10,
        },
    }


def _set_the_stage(folder: Path, steps: int) -> None:
    """Write a vocabulary, a sentence encoder that knows nothing, a shard of captioned scenes and a recipe."""
    (folder / "wordnet").mkdir()
    for part, letter in (("noun", "n"), ("adj", "a"), ("verb", "v")):
        lines = [f"{word} {letter} 1 0 1 0 00000000" for word in VOCABULARY.split()]
        (folder / "wordnet" / f"index.{part}").write_text("  1 a licence\n" + "\n".join(lines) + "\n")
    glosses = [f"00000000 03 n 01 {word} 0 000 | no {word} but its picture" for word in VOCABULARY.split()]
    (folder / "wordnet" / "data.noun").write_text("\n".join(["  1 a licence", *glosses]) + "\n")
    _write_encoder(folder / "encoder")
    (folder / "scenes").mkdir()
    with tarfile.open(folder / "scenes" / "train-0000.tar", "w") as shard:
        for number in range(SCENES):
            scene = shapes.scene("scenes_train", number)
            picture = io.BytesIO()
            Image.fromarray(scene.pixels).save(picture, "PNG")
            members = {"png": picture.getvalue(), "json": json.dumps({"captions": [shapes.caption(scene)]}).encode()}
            for suffix, content in members.items():
                entry = tarfile.TarInfo(f"{number:06}.{suffix}")
                entry.size = len(content)
                shard.addfile(entry, io.BytesIO(content))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(_recipe(steps)))


def _write_encoder(folder: Path) -> None:
    """Write a BERT of one layer with random weights that reads single letters."""
    try:
        from transformers import BertConfig, BertModel, BertTokenizer
    except ImportError:
        raise CannotRunError("transformers is not installed") from None
    folder.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)


@item(
    "pretrain_resume",
    claims=[
        Claim(
            "weights",
            "pre-training killed by SIGKILL, in the language and twice in the images, and resumed: weights that differ",
            exactly(0),
        ),
        Claim("log", "… and steps of its logs that differ", exactly(0)),
    ],
    modules=["acceptance.command_line", "acceptance.killing", "ironclip.cli.pretrain", "ironclip.pretraining.pretrain"],
)
def pretrain_resume(context: Context) -> Iterator[Figure]:
    steps = context.pick(100, 20)
    drawn = np.random.default_rng(0).choice(np.arange(1, steps), size=3, replace=False)
    language, *images = (int(step) for step in (drawn[0], *sorted(drawn[1:])))
    kills = [("language", language), *(("images", step) for step in images)]
    with TemporaryDirectory() as name:
        folder = Path(name)
        _set_the_stage(folder, steps)

        def words(out: str) -> tuple[object, ...]:
            return ("pretrain", folder / "recipe.yaml", "--out", folder / out, "--data-root", folder)

        must(ironclip(*words("straight")))
        for part, step in context.pick(kills, kills[1:2]):
            kill_at(step, folder / "killed" / part / "log.jsonl", words("killed"), folder / "output.txt")
        must(ironclip(*words("killed")))
        straight, killed = folder / "straight", folder / "killed"
        weights = (run / "model" / "open_clip_model.safetensors" for run in (straight, killed))
        different, tensors = differing_tensors(*weights)
        when = ", ".join(f"{part} {step}" for part, step in context.pick(kills, kills[1:2]))
        yield Figure(
            "weights", different, f"{different} of {tensors} tensors, bit for bit; {steps} steps each, killed at {when}"
        )
        wrong = sum(
            differing_steps(straight / part / "log.jsonl", killed / part / "log.jsonl", steps)
            for part in ("language", "images")
        )
        yield Figure("log", wrong, f"{wrong} of {2 * steps} steps")
