"""Mistakes in a recipe."""

from __future__ import annotations

from mistakes.case import Mistake

OPTIMISATION = {"lr": 0.001, "steps": 2, "batch_size": 8, "precision": "float32"}
DATA = {
    "train": "folder:{data}/colours?split=test",
    "templates": ["a photo of a {}."],
    "class_names": ["blue", "green", "red"],
    "hold_out": 12,
}


def optimisation(**changes: object) -> dict[str, object]:
    return {"optimisation": OPTIMISATION | changes}


def data(**changes: object) -> dict[str, object]:
    return {"data": DATA | changes}


def threat(**changes: object) -> dict[str, object]:
    return {"threat": {"norm": "linf", "eps": "2/255"} | changes}


def validated(title: str, names: str, **recipe: object) -> Mistake:
    """A recipe that `ironclip validate` refuses."""
    return Mistake(title=title, words="validate recipe.yaml", names=names, recipe=recipe)


def written(title: str, names: str, content: str | bytes, name: str = "mine.yaml") -> Mistake:
    """A file that is no recipe at all."""
    return Mistake(title=title, words=f"validate {name}", names=names, files={name: content})


def changed(title: str, change: str) -> Mistake:
    """A change on the command line that fits nowhere."""
    words = f"validate recipe.yaml --set {change.replace(' ', '␣')}"
    return Mistake(title=title, words=words, names=change, recipe={})


MISTAKES = (
    # The file
    Mistake(title="a recipe that is not there", words="train nowhere.yaml", names="nowhere.yaml"),
    Mistake(title="a bundled recipe misspelt", words="train quickstart/tecao", names="quickstart/tecao"),
    Mistake(
        title="a folder as recipe",
        words="validate folder.yaml",
        names="folder.yaml",
        before=lambda scene: (scene.here / "folder.yaml").mkdir(),
    ),
    written("a recipe indented with tabs", "mine.yaml", "method:\n\tname: tecoa\n"),
    written("a recipe with an open bracket", "line 3", "title: a\nmethod: [tecoa\nmodel: tiny\n"),
    written("an empty recipe", "empty.yaml", "", "empty.yaml"),
    written("a recipe of comments alone", "comments.yaml", "# method: tecoa\n", "comments.yaml"),
    written("a list as recipe", "list.yaml", "- tecoa\n- fare\n", "list.yaml"),
    written("a sentence as recipe", "words.yaml", "tune my model please\n", "words.yaml"),
    written("an image as recipe", "photo.yaml", b"\x89PNG\r\n\x1a\n\x00\x00", "photo.yaml"),
    written("a web page as recipe", "page.yaml", "<!DOCTYPE html>\n<html><body>Sign in</body></html>", "page.yaml"),
    written("a recipe with a tag", "tag.yaml", "title: !colour red\n", "tag.yaml"),
    written("a run.json cut off", "run.json", '{"command": "ironclip", "recipe": {"method": ', "run.json"),
    written(
        "a recipe from windows without a method",
        "recipe.method",
        b"\xef\xbb\xbfmodel: tiny\r\ndata: {train: 'bundled:shapes'}\r\noptimisation: {lr: 0.1, steps: 1}\r\n",
    ),
    # Keys
    validated("an unknown section", "optimization", optimization={"lr": 1.0}),
    validated("an unknown key in a section", "learning_rate", **optimisation(learning_rate=1.0)),
    validated("a section that is a word", "sgd", optimisation="sgd"),
    validated("a method without a name", "name", method={"clean_weight": 1.0}),
    validated("a method that is a word", "fare", method="fare"),
    validated("a method misspelt", "tecao", method={"name": "tecao"}),
    validated("a setting that the method has not", "weight", method={"name": "tecoa", "weight": 1}),
    validated("a setting of the wrong type", "much", method={"name": "ucat", "weight": "much"}),
    validated("an attack misspelt", "pgdm", attack={"name": "pgdm"}),
    validated("an attack of no steps", "0 steps", attack={"name": "pgd_m", "steps": 0}),
    validated("a loss misspelt", "crossentropy", validation={"attack": {"name": "pgd", "loss": "crossentropy"}}),
    validated("texts attacked that the method leaves alone", "tecoa", text_attack={"name": "leaf"}),
    # Values
    validated("eps in levels", "4", **threat(eps=4)),
    validated("a negative eps", "-2/255", **threat(eps="-2/255")),
    validated("eps of a number over nothing", "1/0", **threat(eps="1/0")),
    validated("an unknown norm", "l1", **threat(norm="l1")),
    validated("a rule of evaluations", "targeted", **threat(goal="targeted")),
    validated("a learning rate as words", "small", **optimisation(lr="small")),
    validated("a learning rate below zero", "-0.1", **optimisation(lr=-0.1)),
    validated("a learning rate that is no number", "nan", **optimisation(lr=float("nan"))),
    validated("an infinite learning rate", "inf", **optimisation(lr=float("inf"))),
    validated("an optimiser that is not served", "lion", **optimisation(optimiser="lion")),
    validated("steps as text", "'20'", **optimisation(steps="20")),
    validated("half a step", "1.5", **optimisation(steps=1.5)),
    validated("steps that are true", "True", **optimisation(steps=True)),
    validated("epochs beside steps", "3", **optimisation(epochs=3)),
    validated("a batch that does not divide", "3", **optimisation(accumulate=3)),
    validated("more warm-up than steps", "50", **optimisation(warmup_steps=50)),
    validated("half precision", "fp16", **optimisation(precision="fp16")),
    validated("a negative part to hold out", "-1", **data(hold_out=-1)),
    validated("no samples at all", "0", **data(limit=0)),
    validated("class names as one text", "cat,dog", **data(class_names="cat,dog")),
    validated("a template without a place", "a photo", **data(templates=["a photo"])),
    validated("a template with another place", "a photo of a {name}.", **data(templates=["a photo of a {name}."])),
    validated("no templates", "template", **data(templates=[])),
    validated("the best of nothing", "select: best", select="best", **data(hold_out=0)),
    validated("one learning rate to choose from", "0.1", sweep={"lr": [0.1], "steps": 1}),
    validated("code as a model", "python:here:make", model="python:here:make"),
    # Changes
    changed("a change without a value", "seed"),
    Mistake(title="a change of an unknown key", words="validate recipe.yaml --set sede=3", names="sede", recipe={}),
    changed("a change of part of a text", "model.name=tiny"),
    changed("a change that is no YAML", "optimisation.lr=[1"),
)
