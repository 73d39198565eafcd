"""What a result was made with: package versions, and the hash of the code that it ran through."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import platform
import sys
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGES = ("ironclip", "torch", "torchvision", "open_clip_torch", "numpy", "safetensors", "pillow", "pyarrow")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that can move a number."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"  # run from a source tree
    return found


@cache
def source_sha256(*modules: str) -> str:
    """Hash the code that importing a module of IronCLIP runs through: it and all of ours that it imports.

    Comments, docstrings and formatting do not count, so that mending a sentence does not make a stored result stale.
    Entries of a registry are found at run time, not by an import: name their modules too where they matter.

    Args:
        modules: Dotted names, such as "ironclip.training.engine".
    """
    digest = hashlib.sha256()
    for name, code in sorted(_closure(modules).items()):
        digest.update(f"{name}\n{code}\n".encode())
    return digest.hexdigest()


def _closure(modules: Sequence[str]) -> dict[str, str]:
    """Return the bare code of modules and of everything of ours that they import, by name."""
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        file = _file_of(name)
        if file is None:
            continue
        tree = _without_docstrings(ast.parse(file.read_text()))
        found[name] = ast.dump(tree)
        waiting += _imports(tree)
        package = name.rpartition(".")[0]
        if package:
            waiting.append(package)  # its __init__ runs first
    return found


def _file_of(module: str) -> Path | None:
    """Return where a module's code is; None for one without a file, such as a method typed at a prompt."""
    if module in sys.modules:  # a script that runs has a file but no spec
        path = getattr(sys.modules[module], "__file__", None)
        return Path(path) if path else None
    spec = importlib.util.find_spec(module)
    return Path(spec.origin) if spec is not None and spec.origin else None


def _imports(tree: ast.AST) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] == "ironclip" and _exists(name)]


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False  # a name inside a module, not a module


def _without_docstrings(tree: ast.Module) -> ast.Module:
    """Drop what does not run: texts that stand by themselves, and imports for the type checker."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [statement for statement in node.body if not _is_idle(statement)] or [ast.Pass()]
    return tree


def _is_idle(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.If):
        return isinstance(statement.test, ast.Name) and statement.test.id == "TYPE_CHECKING"
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
