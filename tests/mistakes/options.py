"""Mistakes on the command line."""

from __future__ import annotations

from mistakes.case import Mistake

COLOURS = "--suite colours.yaml --data-root DATA"


def evaluated(title: str, options: str, names: str) -> Mistake:
    """Options that `ironclip eval` refuses before it opens anything."""
    return Mistake(title=title, words=f"eval some-model {options}", names=names)


MISTAKES = (
    # Commands
    Mistake(title="a command misspelt", words="trian recipe.yaml", names="trian"),
    Mistake(title="no model", words="eval", names="MODEL"),
    Mistake(title="an unknown option", words="eval some-model --epsilon 4/255", names="--epsilon"),
    Mistake(title="an unknown thing to list", words="list datasets", names="datasets"),
    # Units
    evaluated("eps in levels of 255", "--eps 8", "8"),
    evaluated("eps as a word", "--eps big", "big"),
    evaluated("eps with its unit", "--eps 4px", "4px"),
    evaluated("eps in percent", "--eps 3%", "3%"),
    evaluated("eps with spaces, and in levels", "--eps 2␣/␣255", "2 / 255"),
    evaluated("eps with a comma", "--eps 0,03", "0,03"),
    evaluated("eps that is no number", "--eps nan", "nan"),
    evaluated("eps with a huge exponent", "--eps 1e99999999", "1e99999999"),
    evaluated("an l2 ball without a radius", "--norm l2", "--norm l2"),
    evaluated("a norm in capitals", "--norm Linf", "Linf"),
    # Counts
    evaluated("no samples", "--limit 0", "0"),
    evaluated("samples as a word", "--limit all", "all"),
    evaluated("batches of a negative size", "--batch-size -8", "-8"),
    evaluated("a seed that is no whole number", "--seed 0.5", "0.5"),
    evaluated("a shard counted from one", "--shard 4/4", "4/4"),
    evaluated("a shard as a word", "--shard first", "first"),
    evaluated("a precision that is not served", "--search-dtype float16", "float16"),
    # Names
    evaluated("an attack misspelt on the command line", "--attack pdg", "pdg"),
    evaluated("a setting that the attack has not", "--attack pgd:stepz=3", "stepz"),
    evaluated("a setting without a value", "--attack pgd:steps", "steps"),
    evaluated("steps as words", "--attack pgd:steps=many", "many"),
    evaluated("no restarts", "--attack pgd:restarts=0", "0 restarts"),
    Mistake(
        title="a loss misspelt on the command line",
        words=f"eval local-dir:MODEL {COLOURS} --attack pgd:loss=cross-entropy",
        names="cross-entropy",
        leaves=("runs",),
    ),
    evaluated("settings of a list of attacks", "--attack standard:steps=3", "standard:steps=3"),
    evaluated("a suite misspelt", "--suite natrual", "natrual"),
    evaluated("a suite file that is not there", "--suite mine.yaml", "mine.yaml"),
    evaluated("a data set that the suite has not", "--dataset cifar", "cifar"),
    # Devices
    Mistake(title="a device of another name", words=f"eval local-dir:MODEL {COLOURS} --device gpu", names="gpu"),
    Mistake(
        title="a device that is not there", words=f"eval local-dir:MODEL {COLOURS} --device cuda:99", names="cuda:99"
    ),
    Mistake(
        title="a device that is not served",
        words="train recipe.yaml --data-root DATA --device mps",
        names="mps",
        recipe={},
    ),
    # One image
    Mistake(title="one class to choose from", words="attack photo.png --classes cat", names="cat"),
    Mistake(title="no class to choose from", words="attack photo.png --classes ,", names="0"),
    Mistake(title="a class named twice", words="attack photo.png --classes cat,dog,Cat", names="cat"),
    Mistake(title="an image that is not there", words="attack photo.png --classes cat,dog", names="photo.png"),
    Mistake(title="a folder as image", words="attack DATA --classes cat,dog", names="DATA"),
    Mistake(
        title="a text called .png",
        words="attack text.png --classes cat,dog",
        names="text.png",
        files={"text.png": "a cat"},
    ),
    Mistake(
        title="a web page called .jpg",
        words="attack page.jpg --classes cat,dog",
        names="page.jpg",
        files={"page.jpg": "<!DOCTYPE html><html></html>"},
    ),
    Mistake(
        title="half an image",
        words="attack half.png --classes cat,dog",
        names="half.png",
        before=lambda scene: (scene.here / "half.png").write_bytes(
            (scene.places["DATA"] / "colours/test/red/00.png").read_bytes()[:200]
        ),
    ),
    Mistake(
        title="an image attacked with eps in levels", words="attack photo.png --classes cat,dog --eps 16", names="16"
    ),
    # Export
    Mistake(title="a format that is not served", words="export tiny there --format onnx", names="onnx"),
    Mistake(title="a robust weight above one", words="export tiny there --robust-weight 2 --original tiny", names="2"),
    Mistake(
        title="a robust weight of a model without a past", words="export tiny there --robust-weight 0.5", names="tiny"
    ),
    Mistake(title="a robust weight as a word", words="export tiny there --robust-weight half", names="half"),
    Mistake(title="an original for no weight", words="export tiny there --original tiny", names="--original"),
)
