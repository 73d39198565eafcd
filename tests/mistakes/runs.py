"""Mistakes about run folders, and machines that give out."""

from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path

from ironclip.files import hold_folder
from mistakes.case import Mistake, Scene

COLOURS = "--suite colours.yaml --data-root DATA"
PRETRAIN = "architecture: {}\nimages: {sources: {}}\n"


def failing(what: int, name: str) -> object:
    """A machine on which no file of this name can be written."""

    def before(scene: Scene) -> None:
        written = Path.write_bytes

        def write(path: Path, content: bytes) -> int:
            if name in path.name:
                raise OSError(what, os.strerror(what), str(path))
            return written(path, content)

        scene.monkeypatch.setattr(Path, "write_bytes", write)

    return before


def small_disk(scene: Scene) -> None:
    """No file may grow beyond 100 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    scene.afterwards.callback(resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))


def other_seed(scene: Scene) -> None:
    scene.copy("RUN", "mine")


def damaged(scene: Scene) -> None:
    (scene.copy("RUN", "mine") / "run.json").write_text('{"model": ')


def of_the_future(scene: Scene) -> None:
    path = scene.copy("RUN", "mine") / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))


def held(scene: Scene) -> None:
    """Another process, as far as the lock can tell: a second description of the same folder."""
    for name in ("busy", "taken"):
        scene.afterwards.enter_context(hold_folder(scene.here / name))


MISTAKES = (
    Mistake(title="a report of nothing", words="report nowhere", names="nowhere"),
    Mistake(
        title="a report of an empty folder",
        words="report empty",
        names="empty",
        before=lambda scene: (scene.here / "empty").mkdir(),
    ),
    Mistake(title="a report of a model", words="report MODEL", names="MODEL"),
    Mistake(title="a report of a training run", words="report TUNED", names="TUNED"),
    Mistake(title="a report of a record cut off", words="report mine", names="mine/run.json", before=damaged),
    Mistake(title="a report of a record of another version", words="report mine", names="99", before=of_the_future),
    Mistake(title="a diagnosis of nothing", words="diagnose yesterday", names="yesterday"),
    Mistake(title="a diagnosis of a model", words="diagnose DATA", names="DATA"),
    Mistake(title="a diagnosis with another suite", words="diagnose RUN --suite bundled", names="bundled"),
    Mistake(title="a merge of nothing", words="merge monday --out all", names="monday"),
    Mistake(title="a merge of runs that differ", words="merge RUN OTHER --out all", names="RUN"),
    Mistake(title="a merge into a folder in use", words="merge RUN --out MODEL", names="MODEL"),
    Mistake(title="a merge without a place", words="merge RUN", names="--out"),
    Mistake(
        title="an evaluation into a folder in use", words=f"eval local-dir:MODEL {COLOURS} --out DATA", names="DATA"
    ),
    Mistake(
        title="an evaluation gone on with another seed",
        words=f"eval local-dir:MODEL {COLOURS} --seed 5 --out mine",
        names="5",
        before=other_seed,
    ),
    Mistake(
        title="an evaluation gone on with another model",
        words=f"eval tiny {COLOURS} --out mine",
        names="mine",
        before=other_seed,
    ),
    Mistake(
        title="a training gone on with another seed",
        words="train recipe.yaml --data-root DATA --seed 5 --out mine",
        names="mine",
        recipe={},
        before=lambda scene: scene.copy("TUNED", "mine"),
    ),
    Mistake(
        title="a training gone on from half a checkpoint",
        words="train recipe.yaml --data-root DATA --set optimisation.steps=3 --out mine",
        names="mine",
        recipe={},
        before=lambda scene: (scene.copy("TUNED", "mine") / "checkpoint.safetensors").write_bytes(b"half"),
    ),
    Mistake(
        title="a training into a file",
        words="train recipe.yaml --data-root DATA --out colours.yaml",
        names="colours.yaml",
        recipe={},
    ),
    Mistake(
        title="a training into a folder that is busy",
        words="train recipe.yaml --data-root DATA --out busy",
        names="busy",
        recipe={},
        before=held,
    ),
    Mistake(
        title="an evaluation into a folder that is busy",
        words=f"eval local-dir:MODEL {COLOURS} --out taken",
        names="taken",
        before=held,
    ),
    Mistake(
        title="a disk that is full",
        words="attack DATA/colours/test/red/00.png --classes red,blue --out page.html",
        names="page.html",
        code=1,
        before=failing(errno.ENOSPC, "page.html"),
    ),
    Mistake(
        title="a place where nobody may write",
        words="report RUN --out there",
        names="report.md",
        code=1,
        before=failing(errno.EACCES, "report.md"),
        leaves=("there",),
    ),
    Mistake(
        title="an export onto a full disk",
        words="export local-dir:MODEL there",
        names="open_clip_model.safetensors",
        code=1,
        before=small_disk,
        leaves=("there",),
    ),
    Mistake(
        title="an evaluation on a full disk",
        words=f"eval local-dir:MODEL {COLOURS} --limit 2 --attack fgsm --eps 1/255 --out mine",
        names="run.json",
        code=1,
        before=failing(errno.ENOSPC, "run.json"),
    ),
    Mistake(title="a training recipe for pre-training", words="pretrain recipe.yaml", names="method", recipe={}),
    Mistake(
        title="a pre-training recipe for training",
        words="train pretrain.yaml",
        names="architecture",
        files={"pretrain.yaml": PRETRAIN},
    ),
    Mistake(
        title="a vision-language recipe of no steps",
        words="pretrain vlm.yaml",
        names="0",
        files={"vlm.yaml": "tower: tiny\nsources: {a: {source: 'bundled:shapes', per_batch: 4}}\nsteps: 0\n"},
    ),
    Mistake(
        title="a vision-language recipe without sources",
        words="pretrain vlm.yaml",
        names="sources",
        files={"vlm.yaml": "tower: tiny\nsources: {}\nsteps: 5\n"},
    ),
    Mistake(
        title="a vision-language recipe on a tower that is not there",
        words="pretrain vlm.yaml",
        names="towers/big",
        files={"vlm.yaml": "tower: towers/big\nsources: {a: {source: 'bundled:shapes', per_batch: 4}}\nsteps: 300\n"},
    ),
    Mistake(
        title="data for pre-training that are not there",
        words="pretrain vlm.yaml --data-root nowhere",
        names="nowhere/captions",
        files={"vlm.yaml": "tower: tiny\nsources: {a: {source: 'folder:{data}/captions', per_batch: 4}}\nsteps: 300\n"},
    ),
    Mistake(
        title="a quickstart with a model that is not there",
        words="quickstart --model models/small",
        names="models/small",
    ),
    Mistake(
        title="a teacher cache that is a file",
        words="train recipe.yaml --data-root DATA --teacher-cache colours.yaml",
        names="colours.yaml",
        code=1,
        recipe={"method": {"name": "fare"}},
    ),
)
