"""A training run as a repository of the Hugging Face hub: its card and the files that stock libraries load.

The folder is made beside its place and renamed into it, so it is there whole or not at all; the upload is one commit.
Whoever is stopped repeats the call: what is there already is found to be the same, and is not made again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol

import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from ironclip.data.fingerprints import file_sha256
from ironclip.errors import ConfigError, RunFailedError, WeightsError
from ironclip.files import hold_folder, write_atomically
from ironclip.models.export import export_model
from ironclip.models.sources import load_model
from ironclip.report.card import CardSource, render_card
from ironclip.report.tables import load_results

Layout = Literal["open_clip", "transformers"]

CARD, RECIPE, MANIFEST = "README.md", "recipe.yaml", "ironclip.json"

# The hub's rule: no "--" or "..", no "-" or "." at either end of a part, no ".git" at the end.
_REPOSITORY = re.compile(r"(?!.*(?:--|\.\.|\.git$))\w(?:[\w.-]*\w)?/\w(?:[\w.-]*\w)?", re.ASCII)
_LONGEST = 96


class Hub(Protocol):
    """What is asked of the hub: two calls of `huggingface_hub.HfApi`."""

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> Any:
        """Make the repository unless it is there."""

    def upload_folder(self, *, repo_id: str, repo_type: str, folder_path: Path, commit_message: str) -> Any:
        """Upload a folder in one commit."""


def check_repository(name: str) -> None:
    """Refuse what is no name of a repository.

    Raises:
        ConfigError: It is not `ORG/NAME`.
    """
    if not _REPOSITORY.fullmatch(name) or len(name.partition("/")[2]) > _LONGEST:
        raise ConfigError(f'"{name}" is no repository of the hub.', "Write ORG/NAME, such as my-name/tecoa-vit-b-32.")


def write_repository(
    run: Path,
    folder: Path,
    *,
    repository: str,
    results: Sequence[Path] = (),
    layouts: Sequence[Layout] = ("open_clip", "transformers"),
    license_id: str | None = None,
) -> Path:
    """Write the repository of a run into a folder; one that is the same already is left as it is.

    Args:
        run: Folder of a finished training run.
        folder: Where to: new, empty, or what an earlier call wrote, which is replaced.
        repository: `ORG/NAME`.
        results: Run folders of evaluations, this model's among them; the first holds the model to compare with.
        layouts: Libraries that shall load it, at least one.
        license_id: The hub's identifier of a licence, such as "mit".

    Returns:
        The folder.

    Raises:
        ConfigError: No repository's name, other things in the folder, evaluations of other models only, or a model
            that a layout cannot express.
        DataError: A folder of `results` is no evaluation.
        WeightsError: `run` is no finished training run.
    """
    check_repository(repository)
    record = _record(run)
    _refuse_foreign(folder)
    measured = load_results(results) if results else None
    unfinished, earlier = (folder.with_name(f".{folder.name}.{word}") for word in ("unfinished", "earlier"))
    with hold_folder(unfinished):
        try:
            _clear(unfinished)  # what a killed process left
            model = load_model(f"run:{run}")
            for layout in layouts:
                # A layout wants a folder of its own, the hub all files in one.
                part = export_model(model, unfinished / layout, layout)
                for file in part.iterdir():
                    file.rename(unfinished / file.name)
                part.rmdir()
            _write_text(unfinished / RECIPE, yaml.safe_dump(record["recipe"], sort_keys=False, allow_unicode=True))
            source = CardSource(
                repository=repository,
                run=record,
                sha256=model.spec.sha256,
                layouts=layouts,
                files=_hashes(unfinished),
                license_id=license_id,
            )
            _write_text(unfinished / CARD, render_card(source, measured))
            manifest = {name: sha256 for name, (_, sha256) in _hashes(unfinished).items()}
            _write_text(unfinished / MANIFEST, json.dumps(manifest, indent=1) + "\n")
            if _is_same(folder, manifest):
                _clear(unfinished)
                unfinished.rmdir()
            else:
                _put_in_place(unfinished, folder, earlier)
            if earlier.exists():
                shutil.rmtree(earlier)
        except BaseException:
            _clear(unfinished)
            raise
    return folder


def upload(folder: Path, repository: str, *, private: bool = False, hub: Hub | None = None) -> str:
    """Upload a folder that `write_repository` wrote, in one commit.

    Args:
        folder: The repository's files.
        repository: `ORG/NAME`; made unless it is there.
        private: Make it visible to its owner only; one that is there stays as it is.
        hub: The client; huggingface_hub's own unless given.

    Returns:
        The source by which IronCLIP loads it: `hf-hub:ORG/NAME`.

    Raises:
        RunFailedError: The hub cannot be reached or refuses.
    """
    client: Hub = HfApi() if hub is None else hub
    try:
        client.create_repo(repository, repo_type="model", private=private, exist_ok=True)
        client.upload_folder(
            repo_id=repository, repo_type="model", folder_path=folder, commit_message="Model and card by IronCLIP"
        )
    except (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        why = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise RunFailedError(
            f"{repository} could not be uploaded: {why}.",
            f"{folder} is complete. Log in (hf auth login), check the network, and repeat the command.",
        ) from None
    return f"hf-hub:{repository}"


def _record(run: Path) -> dict[str, Any]:
    """Read run.json of a finished training run."""
    for name in ("run.json", "result.json"):
        if not (run / name).is_file():
            what = "is no training run" if name == "run.json" else "is a run that is not finished"
            raise WeightsError(f"{run} {what}: it has no {name}.", "Give a folder that ironclip train has finished.")
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    if not isinstance(record, dict) or "resolved" not in record:
        raise WeightsError(f"{run}/run.json is not of a training run.", "Give a folder that ironclip train wrote.")
    return record


def _refuse_foreign(folder: Path) -> None:
    """Refuse a place that holds what no push wrote."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MANIFEST).is_file())):
        what = "holds other files" if folder.is_dir() else "is a file"
        raise ConfigError(f"{folder} {what}.", "Name a new folder with --out.")


def _hashes(folder: Path) -> dict[str, tuple[int, str]]:
    return {file.name: (file.stat().st_size, file_sha256(file)) for file in sorted(folder.iterdir())}


def _is_same(folder: Path, manifest: dict[str, str]) -> bool:
    if not (folder / MANIFEST).is_file():
        return False
    return {name: sha256 for name, (_, sha256) in _hashes(folder).items() if name != MANIFEST} == manifest


def _put_in_place(finished: Path, folder: Path, earlier: Path) -> None:
    """Rename a finished folder into its place; the one before is moved aside first, since no folder replaces another.

    A process that is killed between the two leaves no folder at all, and the next call makes it.
    """
    if folder.exists():
        if earlier.exists():
            shutil.rmtree(earlier)
        folder.rename(earlier)
    finished.rename(folder)
    descriptor = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _clear(folder: Path) -> None:
    """Remove all that is in a folder, if it is there."""
    with suppress(FileNotFoundError):
        for place in list(folder.iterdir()):
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink()


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, text.encode())
