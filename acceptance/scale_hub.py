"""A run on its way to the hub: read back by everybody from the hub's cache, and whole whenever it is killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from acceptance.claims import CannotRunError, Claim, Context, Figure, at_least, at_most, exactly, item
from acceptance.command_line import IRONCLIP, environment, ironclip, must
from acceptance.killing import differing_tensors
from acceptance.scale_runs import small_run
from acceptance.tiny_model import SHIPPED
from ironclip.data.fingerprints import file_sha256
from ironclip.publishing import MANIFEST

REPOSITORY = "org/tecoa-tiny"
WEIGHTS = "open_clip_model.safetensors"
COMMIT = "1" * 40
KILLS = 16
MODULES = ("acceptance.command_line", "acceptance.scale_runs", "ironclip.cli.push", "ironclip.cli.exporting")

# Each prints the logits of one made-up image by a stock library; {} is the repository or the folder.
STOCK = {
    "open_clip": """
import open_clip, torch
model, _, _ = open_clip.create_model_and_transforms("hf-hub:{}")
tokens = open_clip.get_tokenizer("hf-hub:{}")(["zero", "a red star"])
""",
    "transformers": """
import torch, transformers
model = transformers.CLIPModel.from_pretrained("{}")
tokens = transformers.CLIPTokenizer.from_pretrained("{}")(
    ["zero", "a red star"], padding="max_length", return_tensors="pt")
""",
}
PIXELS = "pixels = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)\nmodel.eval()\n"
LOGITS = {
    "open_clip": "i, t, s = model(pixels, tokens)\nprint((s * i @ t.T).tolist())",
    "transformers": "print(model(**tokens, pixel_values=pixels).logits_per_image.tolist())",
}


def cached(repository: Path, cache: Path) -> dict[str, str]:
    """Lay a folder into the hub's cache and return an environment that reads nothing else."""
    place = cache / f"models--{REPOSITORY.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    shutil.copytree(repository, place / "snapshots" / COMMIT)
    return {**environment(), "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}


@item(
    "hub",
    claims=[
        Claim("ironclip", "pushed, laid into the hub's cache, offline: weights by hf-hub: that differ", exactly(0)),
        Claim("stock", "… logits of stock open_clip against stock transformers", at_most(1e-3)),
        Claim("card", "… the hub's client reads robust figures in the card's metadata", at_least(2)),
    ],
    modules=MODULES,
    files=SHIPPED,
)
def hub(context: Context) -> Iterator[Figure]:
    shutil.rmtree(context.work / "hub", ignore_errors=True)
    folder = context.work / "hub"
    run = small_run(folder / "run")
    measure = ("--suite", "bundled", "--attack", "fgsm", "--eps", "1/255", "--limit", 64, "--out", folder / "eval")
    must(ironclip("eval", run, *measure))
    pushed = folder / "pushed"
    must(ironclip("push", run, REPOSITORY, "--results", folder / "eval", "--dry-run", "--out", pushed))
    offline = cached(pushed, folder / "cache")
    command = [*IRONCLIP, "export", f"hf-hub:{REPOSITORY}", str(folder / "again")]
    must(subprocess.run(command, env=offline, capture_output=True, text=True))
    different, tensors = differing_tensors(run / "model" / WEIGHTS, folder / "again" / WEIGHTS)
    yield Figure("ironclip", different, f"{different} of {tensors} tensors, bit for bit")
    yield _stock(offline)
    from huggingface_hub import ModelCard

    found = [one for one in ModelCard.load(pushed / "README.md").data.eval_results if "robust" in one.metric_name]
    yield Figure("card", len(found), "; ".join(f"{one.dataset_name} {one.metric_value}" for one in found))


def _stock(offline: dict[str, str]) -> Figure:
    found = {}
    for library, load in STOCK.items():
        code = (
            load.replace("{}", REPOSITORY)
            + PIXELS
            + "with torch.no_grad():\n    "
            + LOGITS[library].replace("\n", "\n    ")
        )
        done = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True)
        if "No module named 'transformers'" in done.stderr:
            return Figure("stock", None, "transformers is not installed")
        found[library] = np.array(json.loads(must(done).stdout.splitlines()[-1]))
    error = float(np.abs(found["open_clip"] - found["transformers"]).max())
    return Figure("stock", error, f"{error:.1e} of logits up to {np.abs(found['open_clip']).max():.0f}")


@item(
    "push_killed",
    claims=[
        Claim("whole", "push killed by SIGKILL at random moments: folders that are there, and not whole", exactly(0)),
        Claim("finished", "… second runs that do not end with the same folder", exactly(0)),
        Claim("left", "… files and folders that these leave beside it", exactly(0)),
    ],
    modules=(*MODULES, "acceptance.killing"),
    files=SHIPPED,
)
def push_killed(context: Context) -> Iterator[Figure]:
    if context.short:
        raise CannotRunError("the short form times nothing")
    shutil.rmtree(context.work / "killed", ignore_errors=True)
    folder = context.work / "killed"
    run, out = small_run(folder / "run"), folder / "push" / "out"
    versions, busy = [], []
    for licence in ("mit", "apache-2.0"):  # a push of the other licence replaces the folder
        began = time.monotonic()
        appeared = _start(run, out, licence, kill_after=None)
        busy.append(time.monotonic() - began - appeared)
        versions.append(_state(out))
        if not versions[-1]:
            raise RuntimeError("a push that nobody killed does not agree with its own manifest")
    broken = unequal = left = 0
    moments = np.random.default_rng(0).uniform(0, max(busy), size=KILLS)
    for number, moment in enumerate(moments):
        licence = ("mit", "apache-2.0")[number % 2]
        _start(run, out, licence, kill_after=float(moment))
        broken += out.exists() and _state(out) not in versions
        _start(run, out, licence, kill_after=None)
        unequal += _state(out) != versions[number % 2]
        left += len(os.listdir(out.parent)) - 1
    shown = f"{len(moments)} kills, 0 to {max(busy):.1f} s after the first file"
    yield Figure("whole", broken, f"{broken}; {shown}")
    yield Figure("finished", unequal)
    yield Figure("left", left)


def _start(run: Path, out: Path, licence: str, *, kill_after: float | None) -> float:
    """Push, killed so many seconds after its work began or not at all; return how long that took to begin."""
    words = ("push", run, REPOSITORY, "--dry-run", "--out", out, "--license", licence)
    unfinished = out.with_name(f".{out.name}.unfinished")
    began = time.monotonic()
    process = subprocess.Popen([*IRONCLIP, *map(str, words)], env=environment(), stdout=subprocess.DEVNULL)
    while process.poll() is None and not unfinished.exists():
        time.sleep(0.002)
    appeared = time.monotonic() - began
    if kill_after is not None:
        time.sleep(kill_after)
        process.kill()
    code = process.wait()
    if kill_after is None and code:
        raise RuntimeError(f"ironclip push ended with {code}")
    return appeared


def _state(folder: Path) -> dict[str, str]:
    """Return the hash of each file; nothing where the folder does not agree with its own manifest."""
    found = {file.name: file_sha256(file) for file in folder.iterdir()}
    manifest = json.loads((folder / MANIFEST).read_text()) if MANIFEST in found else {}
    return found if manifest == {name: sha256 for name, sha256 in found.items() if name != MANIFEST} else {}
