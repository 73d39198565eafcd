"""Where the files of a model lie: a folder, or a repository of the hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from ironclip.errors import ConfigError, WeightsError

# A pointer of git-LFS has these two lines first; the real file has to be fetched with git lfs pull.
_LFS_POINTER = re.compile(rb"version \S*git-lfs\S*\s+oid sha256:")
_HTML = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")


class Files(Protocol):
    """The files of one model by name."""

    @property
    def name(self) -> str:
        """How the model is called there; a hint to the weights that it holds."""

    def find(self, filename: str) -> Path | None:
        """Return where the file lies on this machine, None if there is none."""

    def missing(self, wanted: str) -> WeightsError:
        """Return the error that says that a file is missing."""


class Folder:
    """Files in a folder.

    Raises:
        WeightsError: There is no such folder.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            what = "is a file" if path.exists() else "does not exist"
            raise WeightsError(f"the folder {path} {what}.", "Give the folder that holds the model.")
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name

    def find(self, filename: str) -> Path | None:
        """Return the file's path, None if there is none."""
        path = self.path / filename
        return path if path.is_file() else None

    def missing(self, wanted: str) -> WeightsError:
        """Return the error that says what is missing and what is there instead."""
        there = sorted(path.name for path in self.path.iterdir())
        held = f"it holds {', '.join(there[:6])}{', …' if len(there) > 6 else ''}" if there else "it is empty"
        return WeightsError(
            f"{self.path} has no {wanted} ({held}).",
            "Give a folder in open_clip's layout: open_clip_config.json beside open_clip_model.safetensors.",
        )


class HubRepository:
    """Files in a repository of the Hugging Face hub, from the local cache where the hub cannot be reached.

    Args:
        repository: `ORG/NAME`.
    """

    def __init__(self, repository: str) -> None:
        self.repository = repository
        self._why_not = ""

    def __str__(self) -> str:
        return f"hf-hub:{self.repository}"

    @property
    def name(self) -> str:
        """The repository's `ORG/NAME`."""
        return self.repository

    def find(self, filename: str) -> Path | None:
        """Download the file unless the cache has it; None if the repository has no such file.

        Raises:
            ConfigError: Not a name of a repository.
            WeightsError: No such repository, or one that needs a login, or the download failed.
        """
        try:
            return Path(hf_hub_download(self.repository, filename))
        except LocalEntryNotFoundError as error:
            self._why_not = first_line(error.__cause__ or error)
            return None
        except EntryNotFoundError:
            return None
        except HFValidationError as error:
            raise ConfigError(f"{self}: {first_line(error)}", "Write hf-hub:ORG/NAME.") from None
        except RepositoryNotFoundError:
            raise WeightsError(
                f"the hub shows no repository {self.repository}.",
                "Check the spelling; for a private or gated one log in with: hf auth login",
            ) from None
        except (HfHubHTTPError, OSError) as error:
            raise WeightsError(
                f"{filename} of {self} could not be downloaded: {first_line(error)}",
                "Check network and disk, try again.",
            ) from None

    def missing(self, wanted: str) -> WeightsError:
        """Return the error that says what is missing, and why the hub could not be asked where that is so."""
        if self._why_not:
            return WeightsError(
                f"{self} has no {wanted} in the local cache, and the hub gives none: {self._why_not}.",
                "Download it where there is a network (hf download), or use local-dir: with a copied folder.",
            )
        return WeightsError(
            f"{self} has no {wanted}.", "Name a repository in open_clip's or transformers' CLIP layout."
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        WeightsError: It is a web page, a git-LFS pointer, or empty.
        ConfigError: It is not a JSON object.
    """
    refuse_impostor(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # brackets in brackets, by the thousand
        raise ConfigError(f"{path} is not JSON: {error}.", "Fetch the file anew, or mend it.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}, expected a JSON object.", "Fetch the file anew.")
    return content


def refuse_impostor(path: Path) -> None:
    """Refuse what a failed download leaves in place of a file.

    Raises:
        WeightsError: An HTML page, a git-LFS pointer, an empty file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n")
    if size == 0:
        raise WeightsError(f"{path} is empty.", "The download was cut off: fetch the file anew.")
    if head.lower().startswith(_HTML):
        raise WeightsError(
            f"{path} is an HTML page of {size:,} bytes, not the file itself.",
            "The download went wrong: fetch the file behind the page (a direct link, or the hub's own client).",
        )
    if _LFS_POINTER.match(head):
        raise WeightsError(
            f"{path} is a git-LFS pointer of {size:,} bytes, not the file itself.",
            "Fetch the file with: git lfs pull",
        )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text without its full stop, or its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
