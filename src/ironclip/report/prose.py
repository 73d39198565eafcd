"""The sentences of a report, for readers who know nothing of the project; the same in HTML and Markdown."""

from __future__ import annotations

from ironclip.evaluation.records import AttackInfo
from ironclip.report.results import Cell, DatasetTable, Results
from ironclip.report.wording import bounds, count, coverage, listing, percent, plural, points, share


def default_title(results: Results) -> str:
    """Return a title that names the models where there are few."""
    names = [model.name for model in results.models]
    if len(names) > 4:
        return f"How robust are these {len(names)} models?"
    return f"How robust {'is' if len(names) == 1 else 'are'} {listing(names)}?"


def caption(results: Results) -> str:
    """Return the games of the report in one line; games that differ in the radius only are written as one."""
    games: dict[str, list[str]] = {}
    for table in results.datasets:
        for budget in table.budgets:
            shape = budget.caption.replace(budget.eps, "{eps}")
            radii = games.setdefault(shape, [])
            if budget.eps not in radii:
                radii.append(budget.eps)
    lines = [shape.replace("{eps}", ", ".join(radii)) for shape, radii in games.items()]
    return f"{'; '.join(lines)} · {', '.join(results.attacks)}"


def what_was_done(results: Results) -> list[str]:
    """Return two sentences: the task of the models, and that of the adversary."""
    titles = listing([table.info.title for table in results.datasets])
    number = len(results.models)
    who = "The model looked at" if number == 1 else f"Each of {plural(number, 'model')} looked at the same"
    task = f"{who} images of {titles} and picked, from a list of class names, the one that fits."
    knowledge = {budget.knowledge for table in results.datasets for budget in table.budgets}
    adversary = (
        "an adversary who knows everything about the model"
        if knowledge == {"white-box"}
        else f"an adversary ({', '.join(sorted(knowledge))})"
    )
    return [
        task,
        f"Then {adversary} changed every image a little, {_budgets(results)}, in search of a change that makes a "
        "right answer wrong.",
    ]


def verdict(results: Results) -> str:
    """Return the sentence that says how much the table proves."""
    tried = sum(len(attack.members) or 1 for attack in {attack.label: attack for attack in _attacks(results)}.values())
    number = "one attack" if tried == 1 else f"only {plural(tried, 'attack')}"
    be = "was" if tried == 1 else "were"
    return f"This table is an upper bound on robustness: {number} ({', '.join(results.attacks)}) {be} run."


def verdict_explained(results: Results) -> str:
    """Return what that means, and whether anybody looked for a model that only hides from the attack."""
    return (
        "An image counts as robust if these attempts did not break it, which does not prove that nothing can; a "
        f"stronger attack may lower every figure under attack, and none can raise one. {_masks(results)}"
    )


def _masks(results: Results) -> str:
    looked = [row for row in results.verdicts if row.verdict]
    if not looked:
        return "Whether a model merely hides its gradients from the attack was not checked."
    where = "every row" if len(looked) == len(results.verdicts) else f"{len(looked)} of {len(results.verdicts)} rows"
    light = any(row.verdict == ("trusted(light)",) for row in looked)
    search = f"Signs that a model merely hides its gradients from the attack were looked for in {where}"
    suspect = [row for row in looked if row.verdict not in (("trusted",), ("trusted(light)",))]
    if not suspect:
        return f"{search}{' by light checks' if light else ''}, and none was found."
    named = [f"{row.row} ({', '.join(row.verdict)})" for row in suspect[:_NAMED]]
    more = f" and {len(suspect) - _NAMED} more" if len(suspect) > _NAMED else ""
    return f"{search}, and these are not to be believed: {'; '.join(named)}{more}."


_NAMED = 5  # unreadable images that a note names

_READING = (
    (
        "clean",
        "Share of images answered right when nobody interferes.",
    ),
    (
        "ε",
        "Size of the adversary's budget. Linf 2/255: each colour value of each pixel may move by two of its 255 steps, "
        "usually too little to see. The figure is the share of all images that are answered right before and after the "
        "attack.",
    ),
    (
        "[low, high]",
        "95 % interval: the range of true shares that fits what was seen on this many images (Wilson's interval).",
    ),
    (
        "± points",
        "Difference to the first model on the same images, with its 95 % interval (Newcombe, paired). Bold where it is "
        "clear of chance at 5 % (exact McNemar test, Holm's adjustment for all comparisons of the report).",
    ),
    (
        "guessing",
        "What picking a class name blindly would give. A figure under attack can be lower, since the adversary aims.",
    ),
)


_READING_BY_CLASS = (
    "by class",
    "Mean of the shares of the single classes, so that a class with many images counts no more than one with few. "
    "Interval: bootstrap within classes.",
)


def reading(results: Results) -> list[tuple[str, str]]:
    """Return the terms of the table with their meanings."""
    by_class = any(table.info.metric == "mean_per_class" for table in results.datasets)
    return [*_READING, _READING_BY_CLASS] if by_class else list(_READING)


def findings(results: Results) -> list[str]:
    """Return a sentence a data set: the first model with and without attack at the middle budget, then the others."""
    sentences = []
    for table in results.datasets:
        budget = table.budgets[table.reference]
        robust = table.robust[table.reference]
        first_clean, first = table.clean[0], robust[0]
        if not first or not first_clean or first.missing:
            continue
        text = (
            f'{table.info.title} at ε = {budget.eps}: "{results.models[0].name}" falls from '
            f"{percent(first_clean.share.estimate)} % to {share(first.share)}"
        )
        others = [
            f'"{model.name}" keeps {percent(cell.share.estimate)} % ({_versus(cell)})'
            for model, cell in zip(results.models[1:], robust[1:], strict=True)
            if cell and cell.versus_first
        ]
        sentences.append(f"{text}; {listing(others)}." if others else f"{text}.")
    return sentences


def dataset_line(table: DatasetTable) -> str:
    """Return what was looked at: `1,000 of 10,000 images, 10 classes, guessing gives 10.0 %`."""
    classes = len(table.info.class_names)
    declared = coverage(table.record.sample_ids.count, table.record.n_total)
    return f"{declared}, {count(classes)} classes, guessing gives {percent(table.chance)} %"


def dataset_notes(table: DatasetTable, results: Results) -> list[str]:
    """Return what a reader must know of these figures: missing images, equal class names, another protocol."""
    notes = []
    for index, model in enumerate(results.models):
        parts: dict[str, list[str]] = {}
        for label, cells in _columns(table):
            cell = cells[index]
            if cell and cell.missing:
                parts.setdefault(f"{count(cell.n)} of {count(cell.n + cell.missing)}", []).append(label)
        if parts:
            counts = "; ".join(f"{done} images ({listing(labels)})" for done, labels in parts.items())
            notes.append(
                f"* Partial: {model.name} has answered {counts}. Its intervals hold for any outcome of the others, "
                "and it is not compared."
            )
    if table.unreadable:
        named = "; ".join(f"{key} ({reason})" for key, reason in list(table.unreadable.items())[:_NAMED])
        more = " and others" if len(table.unreadable) > _NAMED else ""
        notes.append(f"Images that could not be read, {count(len(table.unreadable))} in all: {named}{more}.")
    if table.record.duplicates:
        notes.append(
            f"Class names that occur twice: {', '.join(table.record.duplicates)}; no model can tell them apart."
        )
    if table.record.parity != "none":
        notes.append(f"Follows the protocol of {table.record.parity}, not our own.")
    return notes


def attack_settings(results: Results) -> list[str]:
    """Return each attack that was run with its settings, of a list those in it: `PGD-20 (steps = 20, restarts = 1)`."""
    return list(dict.fromkeys(_with_settings(attack) for attack in _attacks(results)))


def _attacks(results: Results) -> list[AttackInfo]:
    return [attack for table in results.datasets for budget in table.budgets for attack in budget.attacks]


def _with_settings(attack: AttackInfo) -> str:
    if attack.members:
        return f"{attack.label}: {', then '.join(_with_settings(member) for member in attack.members)}"
    settings = ", ".join(f"{name} = {value}" for name, value in attack.settings.items())
    return f"{attack.label} ({settings or 'no settings'})"


def _columns(table: DatasetTable) -> list[tuple[str, tuple[Cell | None, ...]]]:
    labels = ["clean", *(f"ε = {budget.eps}" for budget in table.budgets)]
    return list(zip(labels, (table.clean, *table.robust), strict=True))


def _versus(cell: Cell) -> str:
    assert cell.versus_first is not None  # callers have looked
    paired = cell.versus_first.paired
    return f"{points(paired.difference)} points {bounds(paired.low, paired.high)}"


def _budgets(results: Results) -> str:
    radii: dict[str, dict[str, None]] = {}
    for table in results.datasets:
        for budget in table.budgets:
            radii.setdefault(budget.norm, {})[budget.eps] = None
    parts = []
    if "linf" in radii:
        parts.append(f"each colour value of each pixel by at most {listing(list(radii['linf']), 'or')} of its range")
    if "l2" in radii:
        parts.append(f"all pixels together by a length of at most {listing(list(radii['l2']), 'or')}")
    return " or ".join(parts)
