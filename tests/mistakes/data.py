"""Mistakes about images, their folders and their class lists."""

from __future__ import annotations

import yaml

from ironclip.data.classes import words_sha256
from made_up_shards import encoded, labelled, tar_bytes
from mistakes.case import Mistake, Scene
from mistakes.recipes import data


def trained(title: str, source: str, names: str, hold_out: int = 0, **more: object) -> Mistake:
    """A source that `ironclip train` cannot open."""
    return Mistake(
        title=title,
        words="train recipe.yaml --data-root DATA",
        names=names,
        recipe=data(train=source, hold_out=hold_out),
        **more,
    )


def listed(title: str, value: str, *, content: str | None = None, **changes: object) -> Mistake:
    """A suite whose class list is not right."""

    def before(scene: Scene) -> None:
        path = scene.here / "colour-names.yaml"
        path.write_text(content if content is not None else yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))

    return Mistake(
        title=title, words="eval local-dir:MODEL --suite colours.yaml --data-root DATA", names=value, before=before
    )


def suited(
    title: str, names: str, *, classes: tuple[str, ...] = ("red", "green", "blue"), **changes: object
) -> Mistake:
    """A suite whose data set is described wrongly."""

    def before(scene: Scene) -> None:
        path = scene.here / "colours.yaml"
        suite = yaml.safe_load(path.read_text())
        suite["data"][0] |= changes
        path.write_text(yaml.safe_dump(suite))

    return Mistake(
        title=title,
        words="eval local-dir:MODEL --suite colours.yaml --data-root DATA",
        names=names,
        classes=classes,
        before=before,
    )


def names(*words: str) -> dict[str, object]:
    return {"names": list(words), "count": len(words), "sha256": words_sha256(words)}


TEXT = {"images/test/a/1.png": "no image", "images/test/b/2.png": "no image"}
TWO_SIZES = {"sizes/a/1.png": encoded(1, 16), "sizes/b/2.png": encoded(2, 24)}

MISTAKES = (
    # Sources
    trained("a source without its kind", "DATA", "DATA"),
    trained("a kind of source misspelt", "foldr:{data}/colours", "foldr"),
    trained("an option of a source misspelt", "folder:{data}/colours?spilt=test", "spilt"),
    trained("an option of a source without a value", "folder:{data}/colours?split=test&size=", "size="),
    trained("a side of no pixels", "folder:{data}/colours?split=test&size=0", "0"),
    trained("a side as a word", "folder:{data}/colours?split=test&resize=large", "large"),
    trained("both ways to resize", "folder:{data}/colours?split=test&resize=8&size=16", "resize=8"),
    trained("a folder misspelt", "folder:{data}/colors?split=test", "DATA/colors"),
    trained("a split that is not there", "folder:{data}/colours?split=train", "DATA/colours/train"),
    trained("splits taken for classes", "folder:{data}/colours", "DATA/colours"),
    trained(
        "a folder without images", "folder:nothing", "nothing", before=lambda scene: (scene.here / "nothing").mkdir()
    ),
    trained(
        "images beside class folders",
        "folder:mixed",
        "mixed",
        files={"mixed/a/1.png": encoded(1), "mixed/2.png": encoded(2)},
    ),
    trained("texts called .png", "folder:images?split=test", "images", files=TEXT, leaves=("runs",)),
    trained("images of two sizes", "folder:sizes", "sizes", files=TWO_SIZES, leaves=("runs",)),
    trained(
        "labels that a method needs", "folder:flat", "flat", files={f"flat/{n}.png": encoded(n, 16) for n in range(20)}
    ),
    trained(
        "more held out than there is",
        "folder:few",
        "12",
        hold_out=12,
        files={f"few/a/{n}.png": encoded(n, 16) for n in range(3)},
    ),
    trained("a set of torchvision misspelt", "torchvision:CIFAR1000?root=there", "CIFAR1000"),
    trained("a bundled set misspelt", "bundled:shapse", "shapse"),
    # Shards
    trained("shards that are not there", "wds:shards?split=test", "shards"),
    trained(
        "a split of shards misspelt",
        "wds:shards?split=tset",
        "tset",
        files={"shards/test-0000.tar": tar_bytes(labelled(0, 3))},
    ),
    trained(
        "shards of two splits",
        "wds:shards",
        "shards",
        files={f"shards/{s}-0000.tar": tar_bytes(labelled(0, 3)) for s in ("a", "b")},
    ),
    trained("an empty shard", "wds:empty?split=test", "empty", files={"empty/test-0000.tar": b""}),
    trained(
        "a web page as shard",
        "wds:page?split=test",
        "page",
        files={"page/test-0000.tar": "<!DOCTYPE html><html></html>" * 40},
    ),
    trained(
        "shards that repeat keys",
        "wds:twice?split=test",
        "test-0001.tar",
        files={f"twice/test-000{n}.tar": tar_bytes(labelled(0, 3)) for n in (0, 1)},
    ),
    Mistake(
        title="half a shard, strictly",
        words="train recipe.yaml --data-root DATA --strict",
        names="test-0000.tar",
        recipe=data(train="wds:half?split=test"),
        files={"half/test-0000.tar": tar_bytes(labelled(0, 9))[:4000]},
    ),
    # Class lists
    listed("an empty class list", "colour-names.yaml", content=""),
    listed("a class list with a blank name", "1", **names("red", " ", "blue")),
    listed("a class list with one name too few", "2", **names("red", "green")),
    listed("a class list that was changed", "sha256", names=["red", "green", "cyan"]),
    listed("a class list that is miscounted", "count", count=4),
    listed("a class name that is a number", "7", names=["red", 7, "blue"]),
    Mistake(
        title="class names for fewer labels, in a recipe",
        words="train recipe.yaml --data-root DATA",
        names="1 class names",
        recipe=data(class_names=["red"]),
    ),
    Mistake(
        title="a class list that is not UTF-8",
        words="train recipe.yaml --data-root DATA",
        names="classes.txt",
        recipe=data(train="folder:birds", class_names=None, hold_out=0),
        files={"birds/a/1.png": encoded(1), "birds/classes.txt": "Möwe".encode("latin-1")},
    ),
    Mistake(
        title="a class list with a blank line",
        words="train recipe.yaml --data-root DATA",
        names="1",
        recipe=data(train="folder:birds", class_names=None, hold_out=0),
        files={"birds/a/1.png": encoded(1), "birds/classes.txt": "gull\n\nwren\n"},
    ),
    # Suites
    suited("a suite with an unknown key", "sorce", sorce="folder:x"),
    suited("a suite without a metric", "metrics", metrics=[]),
    suited("a suite with a template without place", "a photo", templates=["a photo"]),
    suited("a suite of other data", "59", count=59),
    suited("a suite of data that are not there", "DATA/colors", source="folder:{data}/colors?split=test"),
    Mistake(
        title="a web page as suite",
        words="eval tiny --suite page.yaml",
        names="page.yaml",
        files={"page.yaml": "<!DOCTYPE html>\n<html></html>"},
    ),
    Mistake(
        title="the data root misspelt",
        words="eval local-dir:MODEL --suite colours.yaml --data-root nowhere",
        names="nowhere",
    ),
    Mistake(
        title="captions on a folder that is not there",
        words="train recipe.yaml --data-root nowhere",
        names="nowhere/colours",
        recipe={"method": {"name": "mmcoa"}},
    ),
)
