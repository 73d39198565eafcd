"""The model card of a published run: the hub's metadata, then data, recipe, measured rows with verdicts, and hashes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ironclip.errors import ConfigError
from ironclip.report import prose
from ironclip.report.markdown import dataset_section, escaped, grid
from ironclip.report.results import Cell, DatasetTable, Results, row_title
from ironclip.report.wording import count, listing, share

_TASK = "zero-shot-image-classification"
_HUB = "hf-hub:"
_USE = {
    "open_clip": 'model, _, preprocess = open_clip.create_model_and_transforms("hf-hub:{}")',
    "transformers": 'model = transformers.CLIPModel.from_pretrained("{}")',
}


@dataclass(frozen=True, kw_only=True)
class CardSource:
    """What a card tells beside measured rows.

    Attributes:
        repository: `ORG/NAME`.
        run: The run's record, as run.json holds it.
        sha256: Of the model, as evaluations record it.
        layouts: Libraries whose files lie beside the card.
        files: Bytes and sha256 hex of each file, by name.
        license_id: The hub's identifier of a licence; None where the author names none.
    """

    repository: str
    run: Mapping[str, Any]
    sha256: str
    layouts: Sequence[str]
    files: Mapping[str, tuple[int, str]]
    license_id: str | None = None

    @property
    def name(self) -> str:
        """The repository's name without its owner."""
        return self.repository.rpartition("/")[2]


def render_card(source: CardSource, results: Results | None) -> str:
    """Write the card; a function of what is stored, so that the same run gives the same card.

    Args:
        source: The run and its files.
        results: Evaluations, this model's among them; None where nobody has measured it.

    Raises:
        ConfigError: None of the evaluations is of this model.
    """
    model = None if results is None else _column(source, results)
    run = source.run
    blocks = [
        f"---\n{yaml.safe_dump(_metadata(source, results, model), sort_keys=False, allow_unicode=True)}---",
        f"# {escaped(source.name)}",
        f"A CLIP model: {_code(run['model']['source'])}, tuned by {_code(run['resolved']['method']['name'])} against "
        f"{escaped(run['threat_caption'])}. Made with IronCLIP.",
        "## Use",
        _fenced(
            "\n".join([*(_USE[name].format(source.repository) for name in source.layouts), _own(source)]), "python"
        ),
        "## How it was made",
        _how(source),
        "The whole recipe, defaults written out (`recipe.yaml` beside this card repeats the run):",
        _fenced(yaml.safe_dump(run["resolved"], sort_keys=False, allow_unicode=True).rstrip(), "yaml"),
        "## How robust it is",
        *(_unmeasured() if results is None or model is None else _measured(results, model)),
        "## Files",
        grid(
            ["file", "bytes", "sha256"],
            [[_code(name), count(size), _code(sha256)] for name, (size, sha256) in sorted(source.files.items())],
        ),
        f"Evaluations know the model as `{source.sha256}`.",
        "## Limits",
        "\n".join(f"- {sentence}" for sentence in _limits(source)),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _column(source: CardSource, results: Results) -> int:
    for index, model in enumerate(results.models):
        if model.sha256 == source.sha256:
            return index
    found = ", ".join(f"{model.name} ({model.sha256[:12]})" for model in results.models)
    raise ConfigError(
        f"none of the evaluations is of this model ({source.sha256[:12]}): they are of {found}.",
        "Evaluate the run itself, ironclip eval RUN, and give that folder.",
    )


def _metadata(source: CardSource, results: Results | None, model: int | None) -> dict[str, Any]:
    """Return what the hub reads: how to load the model, where it comes from, and its figures."""
    found: dict[str, Any] = {
        "library_name": source.layouts[0],
        "pipeline_tag": _TASK,
        "tags": ["clip", "adversarial-robustness", "ironclip", str(source.run["resolved"]["method"]["name"])],
    }
    if source.license_id is not None:
        found["license"] = source.license_id
    origin = str(source.run["model"]["source"])
    if origin.startswith(_HUB):
        found["base_model"] = origin.removeprefix(_HUB)
    if results is not None and model is not None:
        rows = [_index_entry(table, results, model) for table in results.datasets]
        found["model-index"] = [{"name": source.name, "results": [row for row in rows if row["metrics"]]}]
    return found


def _index_entry(table: DatasetTable, results: Results, model: int) -> dict[str, Any]:
    """Return the figures of one data set; those that are not complete stay out, since the hub shows no intervals."""
    named = [("clean accuracy", table.clean[model])]
    for budget, cells in zip(table.budgets, table.robust, strict=True):
        tried = listing([attack.label for attack in budget.attacks])
        named.append((f"robust accuracy, {budget.caption}, {tried}", cells[model]))
    metrics = [
        {"type": "accuracy", "name": f"{name}, {count(cell.n)} images", "value": round(100 * cell.share.estimate, 2)}
        for name, cell in named
        if cell is not None and not cell.missing
    ]
    return {"task": {"type": _TASK}, "dataset": {"type": table.name, "name": table.info.title}, "metrics": metrics}


def _own(source: CardSource) -> str:
    return f'model = ironclip.load_model("{_HUB}{source.repository}")'


def _how(source: CardSource) -> str:
    run, data = source.run, source.run["data"]
    trained_on = f"{count(data['samples'])} images of {_code(run['recipe']['data']['train'])}"
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    lines = [
        f"began as {_code(run['model']['source'])}, weights `{run['model']['sha256']}`",
        f"trained on {trained_on}, fingerprint `{data['fingerprint']}`; {count(data['held_out'])} more were held out",
        f"adversary in training: {escaped(run['threat_caption'])}, {_code(run['resolved']['attack']['name'])}",
        f"{count(run['steps'])} steps, tuned: {run['trains']}; begun {run['created']} on {escaped(run['device'])}",
        f"versions: {escaped(versions)}; source of IronCLIP `{run['source_sha256']}`",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _unmeasured() -> list[str]:
    return ["**Nobody has measured this model yet.** That it was tuned against an attack does not make it robust."]


def _measured(results: Results, model: int) -> list[str]:
    verdicts = {row.row: row.verdict for row in results.verdicts}
    rows = []
    for table in results.datasets:
        for budget, cells in zip(table.budgets, table.robust, strict=True):
            cell = cells[model]
            if cell is None:
                continue
            for attack in budget.attacks:
                title = row_title(results.models[model].name, table.info.title, attack, budget.norm, budget.eps)
                verdict = ", ".join(verdicts.get(title, ())) or "not checked"
                rows.append([escaped(table.info.title), escaped(budget.caption), attack.label, _share(cell), verdict])
    head = ["data set", "game", "attack", "right under all attacks of the game", "verdict on the attack"]
    return [
        f"**{escaped(prose.verdict(results))}** {prose.verdict_explained(results)}",
        *(block for table in results.datasets for block in dataset_section(table, results)),
        "### Verdicts",
        grid(head, rows),
        f"Attacks: {escaped('; '.join(prose.attack_settings(results)))}.",
        "### How to read this",
        "\n".join(f"- **{term}**: {meaning}" for term, meaning in prose.reading(results)),
    ]


def _share(cell: Cell) -> str:
    return f"{share(cell.share)} (partial)" if cell.missing else share(cell.share)


def _limits(source: CardSource) -> list[str]:
    licence = (
        f"Licence, as its author names it: {escaped(source.license_id)}."
        if source.license_id is not None
        else "Its author names no licence; ask before using it."
    )
    return [
        "Robust accuracy is an upper bound: a stronger attack may lower it, and nothing here proves that none exists.",
        f"It was tuned against {escaped(source.run['threat_caption'])}; of larger or other changes this says nothing.",
        "It has the biases of the model and of the data that it was made from.",
        licence,
    ]


def _code(words: str) -> str:
    """Write words as code that stays in its cell of a table, whatever signs are in it."""
    return f"`{' '.join(str(words).split()).replace('`', chr(39)).replace('|', '%7C')}`"


def _fenced(text: str, language: str) -> str:
    """Write a block of code behind a fence that is longer than any within it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
