"""Tests of the repository as figures: pytest runs them in a process of its own, and its report is counted."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from acceptance.claims import ROOT
from acceptance.command_line import environment


@dataclass(frozen=True)
class Case:
    """One test with its parameters.

    Attributes:
        path: Of its file, relative to the repository.
        function: Its name.
        parameters: What stands in brackets, "" where there are none.
        verdict: "passed", "failed" or "skipped".
    """

    path: str
    function: str
    parameters: str
    verdict: str

    def concerns(self, word: str) -> bool:
        """Say whether the parameters name a method, not only one whose name holds this one's."""
        return re.search(rf"(?<![\w-]){re.escape(word)}(?![a-z_])", self.parameters.replace("-", " ")) is not None


def run(nodes: Sequence[str]) -> list[Case]:
    """Run tests by file or node and return what became of each.

    Raises:
        RuntimeError: Pytest could not begin; with the end of what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # xunit1 names the file of a test.
        options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}", "-o", "junit_family=xunit1"]
        command = [sys.executable, "-m", "pytest", *options, *nodes]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
        if done.returncode not in (0, 1):
            said = " ".join((done.stdout + done.stderr).strip().splitlines()[-3:])
            raise RuntimeError(f"pytest ended with {done.returncode}: {said}")
        return [_case(found) for found in ElementTree.parse(report).iter("testcase")]


def _case(found: ElementTree.Element) -> Case:
    function, _, parameters = found.get("name", "").partition("[")
    bad = any(found.find(kind) is not None for kind in ("failure", "error"))
    verdict = "failed" if bad else "passed" if found.find("skipped") is None else "skipped"
    return Case(found.get("file", ""), function, parameters.removesuffix("]"), verdict)
