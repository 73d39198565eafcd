"""`ironclip doctor`: what this machine has."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ironclip.cli.options import DataRoot, Json
from ironclip.cli.output import say, say_json


def doctor_command(
    data_root: DataRoot = "data",
    measure: Annotated[bool, typer.Option("--measure", help="Measure matrix products, for about a second.")] = False,
    json: Json = False,
) -> None:
    """Say what this machine has.

    Processor, accelerators, memory, disk, optional packages, data.
    """
    import torch

    from ironclip.machine import describe_machine, matrix_rate, missing_packages

    machine = describe_machine(Path())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rates: dict[str, float] = {}
    if measure:
        for dtype in (torch.float32, torch.bfloat16):
            rates[f"{device} {str(dtype).removeprefix('torch.')}"] = matrix_rate(dtype, device=device)
    root = Path(data_root)
    folders = sorted(one.name for one in root.iterdir() if one.is_dir()) if root.is_dir() else None
    missing = missing_packages()
    if json:
        found: dict[str, Any] = {"machine": asdict(machine), "missing_packages": missing}
        say_json(found | {"data_root": str(root), "data": folders, "operations_per_second": rates})
        return
    cpu = ", ".join([f"torch uses {machine.instructions}", *machine.matrix_units])
    free = f", {_gib(machine.memory_free)} free" if machine.memory_free is not None else ""
    lines = {
        "python": machine.python,
        "system": machine.system,
        "torch": machine.torch,
        "processor": f"{machine.processor} ({cpu})",
        "cores": f"{machine.cores}, torch computes with {machine.threads} threads",
        "accelerators": "; ".join(machine.accelerators) or "none: everything runs on the processor",
        "memory": _gib(machine.memory) + free,
        "disk": f"{_gib(machine.disk_free)} free here",
    }
    for name, rate in rates.items():
        lines[f"products, {name}"] = f"{rate / 1e9:.0f} GFLOP/s"
    for extra, packages in missing.items():
        install = f'{", ".join(packages)} missing: pip install "ironclip[{extra}]"'
        lines[f"extra {extra}"] = install if packages else "installed"
    if folders is None:
        lines["data"] = f"no folder {root}: name yours with --data-root or IRONCLIP_DATA_ROOT"
    else:
        lines["data"] = f"{root}: {', '.join(folders) or 'empty'}"
    width = max(map(len, lines))
    for name, text in lines.items():
        say(f"{name.ljust(width)}  {text}")


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
