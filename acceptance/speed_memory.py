"""Peak memory of an evaluation: ten times the samples, a hundred times the classes.

python -m acceptance.speed_memory SUITE.yaml SAMPLES OUT     # what the item starts, a process of its own each time
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from acceptance.claims import ROOT, Bound, Claim, Context, Figure, at_most, item
from acceptance.command_line import environment
from acceptance.speed_tuned import CIFAR10, DATA, TINY
from ironclip.attacks.fgsm import FGSM
from ironclip.attacks.threat_model import ThreatModel
from ironclip.data.classes import words_sha256
from ironclip.evaluation.evaluate import EvaluationRequest, evaluate_suite
from ironclip.suites.suite import load_suite

MODEL = "tiny"
SAMPLES, CLASSES = (1000, 10_000), (10, 1000)


def write_suite(folder: Path, classes: int) -> Path:
    """Write a suite of CIFAR-10 with made-up names beside its own, so that images are told apart by so many words."""
    entry = load_suite("natural", DATA).entry("cifar10")
    names = [*entry.class_names, *(f"thing {number}" for number in range(len(entry.class_names), classes))]
    words = folder / f"classes-{classes}.yaml"
    listed = {"source": "made up", "count": len(names), "sha256": words_sha256(names), "names": names}
    words.write_text(json.dumps(listed))  # JSON is YAML
    spec = {
        "name": "cifar10",
        "title": "CIFAR-10",
        "source": entry.spec.source,
        "classes": str(words),
        "templates": ["a photo of a {}."],
    }
    suite = folder / f"suite-{classes}.yaml"
    suite.write_text(json.dumps({"name": "memory", "version": 1, "title": "Memory", "data": [spec]}))
    return suite


def peak_memory(suite: Path, samples: int, out: Path) -> float:
    """Evaluate in a process of its own and return its peak resident memory in MiB.

    Raises:
        RuntimeError: It failed; with the end of what it said.
    """
    command = [sys.executable, "-m", __name__, str(suite), str(samples), str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])}: {' '.join(done.stderr.strip().splitlines()[-2:])}")
    return float(done.stdout.split()[-1])


def own_peak() -> float:
    """Return the peak resident memory of this process, MiB.

    Not `getrusage`: its figure begins with what the parent held when it started this process.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def growth(before: float, after: float) -> float:
    """Return by how much memory differs, in percent, whichever way."""
    return 100 * abs(after - before) / before


@item(
    "evaluation_memory",
    claims=[
        Claim("samples", "peak memory of an evaluation, 1,000 to 10,000 samples: difference", at_most(10, "%")),
        Claim("classes", "… 10 to 1,000 classes, 1,000 samples", at_most(10, "%")),
        Claim("both", "… 10,000 samples of 1,000 classes, whose logits are stored (reported)", Bound(unit="%")),
    ],
    modules=["ironclip.evaluation.evaluate", "ironclip.attacks.fgsm", "acceptance.command_line"],
    files=[*CIFAR10, TINY],
)
def evaluation_memory(context: Context) -> Iterator[Figure]:
    """FGSM, which is over soon: what memory hangs on is the tile, whatever the attack."""
    few, many = context.pick(SAMPLES, (32, 64))
    small, large = context.pick(CLASSES, (10, 100))
    with TemporaryDirectory() as folder:

        def measured(classes: int, samples: int) -> float:
            return peak_memory(write_suite(Path(folder), classes), samples, Path(folder) / f"run-{classes}-{samples}")

        base = measured(small, few)
        for claim, classes, samples in (("samples", small, many), ("classes", large, few), ("both", large, many)):
            found = measured(classes, samples)
            shown = f"{growth(base, found):.1f} %: {base:,.0f} MiB ({few:,} x {small}) and {found:,.0f} MiB"
            yield Figure(claim, growth(base, found), f"{shown} ({samples:,} x {classes:,})")


def main(arguments: list[str]) -> None:
    """Evaluate as asked and print the peak of this process in MiB."""
    suite, samples, out = arguments
    request = EvaluationRequest(
        model=MODEL,
        suite=suite,
        data_root=DATA,
        attacks=(FGSM(),),
        threats=(ThreatModel(eps="2/255"),),
        out=Path(out),
        limit=int(samples),
    )
    evaluate_suite(request)
    sys.stdout.write(f"{own_peak()}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
