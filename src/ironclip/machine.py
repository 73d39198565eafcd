"""What a machine has, and how fast it multiplies matrices: the floor that every speed is compared with."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F

MATRIX_SHAPES = ((1024, 1024, 1024), (2048, 768, 768), (1600, 3072, 768), (4096, 768, 192))
"""Products (rows, columns, inner) whose best rate counts: a square, and those of CLIP's towers at 32 to 64 images."""

SQUARE = (4096, 4096, 4096)
"""The product (rows, inner, columns) that is in every grid of `product_rate`."""

OPERATIONS_A_ROUND = 100e9
"""So many operations of one shape are timed together: as long as a layer or two of a tower takes."""

EXTRAS = {"hf": ("transformers", "datasets")}
"""Optional packages by the extra that installs them."""

_MATRIX_UNITS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is to compute with; memory and disk in bytes.

    Attributes:
        python: Version and path.
        system: Operating system and architecture.
        torch: Version.
        processor: Name, as the system gives it.
        cores: Logical cores that this process may use.
        threads: Threads that torch computes with.
        instructions: What torch compiled for this processor uses ("AVX512").
        matrix_units: Features of the processor that make matrices fast ("avx512_bf16", "amx_bf16").
        accelerators: One line each, empty without any.
        memory: Of the machine.
        memory_free: Of it, available now; None where the system does not say.
        disk_free: Where `folder` lies.
    """

    python: str
    system: str
    torch: str
    processor: str
    cores: int
    threads: int
    instructions: str
    matrix_units: tuple[str, ...]
    accelerators: tuple[str, ...]
    memory: int
    memory_free: int | None
    disk_free: int


def describe_machine(folder: Path) -> Machine:
    """Look at the machine; measures nothing.

    Args:
        folder: Where results will lie.
    """
    cpu = _colon_file(Path("/proc/cpuinfo"))
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    available = _colon_file(Path("/proc/meminfo")).get("MemAvailable")
    return Machine(
        python=f"{platform.python_version()} ({sys.executable})",
        system=f"{platform.system()} {platform.machine()}",
        torch=torch.__version__,
        processor=cpu.get("model name") or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        matrix_units=tuple(unit for unit in _MATRIX_UNITS if unit in flags),
        accelerators=_accelerators(),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        memory_free=int(available.split()[0]) * 1024 if available else None,
        disk_free=shutil.disk_usage(_nearest_existing(folder)).free,
    )


def missing_packages() -> dict[str, tuple[str, ...]]:
    """Return the absent packages of each extra; an empty tuple where the extra is whole."""
    return {extra: tuple(name for name in names if find_spec(name) is None) for extra, names in EXTRAS.items()}


def matrix_rate(dtype: torch.dtype, *, device: str = "cpu", seconds: float = 0.4) -> float:
    """Measure how many floating point operations a second matrix products reach, the best of `MATRIX_SHAPES`.

    Args:
        dtype: Of both factors.
        device: Where to multiply.
        seconds: To spend, over all shapes; each is run at least three times.

    Returns:
        Operations a second, a multiplication and an addition counted as two.
    """
    best = 0.0
    for rows, columns, inner in MATRIX_SHAPES:
        left = torch.ones(rows, inner, dtype=dtype, device=device)
        right = torch.ones(inner, columns, dtype=dtype, device=device)
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < 3 or time.perf_counter() - began < seconds / len(MATRIX_SHAPES):
            start = time.perf_counter()
            torch.mm(left, right)
            synchronise(device)
            times.append(time.perf_counter() - start)
        best = max(best, 2 * rows * columns * inner / min(times))
    return best


def product_rate(shape: tuple[int, int, int], dtype: torch.dtype = torch.bfloat16, *, device: str = "cpu") -> float:
    """Measure the rate of one product, for a peak that is the best of a grid.

    Args:
        shape: Rows, inner size and columns of `[rows, inner] x [columns, inner]^T`, as a linear map multiplies.
        dtype: Of both factors.
        device: Where to multiply.

    Returns:
        Operations a second, a multiplication and an addition counted as two, over about `OPERATIONS_A_ROUND`.
    """
    rows, inner, columns = shape
    left = torch.randn(rows, inner, device=device).to(dtype)
    weight = torch.randn(columns, inner, device=device).to(dtype)
    operations = 2 * rows * inner * columns
    repeats = max(1, round(OPERATIONS_A_ROUND / operations))
    F.linear(left, weight)
    synchronise(device)
    began = time.perf_counter()
    for _ in range(repeats):
        F.linear(left, weight)
    synchronise(device)
    return repeats * operations / (time.perf_counter() - began)


def synchronise(device: str | torch.device) -> None:
    """Wait until an accelerator has done what it was given; a processor has by then."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: str | torch.device = "cpu") -> int:
    """Return the most memory that this process has held at a time, bytes; on an accelerator what its tensors held."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not ru_maxrss first: a child of a large process inherits that one's.
    high = _colon_file(Path("/proc/self/status")).get("VmHWM")
    if high is not None:
        return int(high.split()[0]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _accelerators() -> tuple[str, ...]:
    return tuple(
        f"cuda:{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        for index in range(torch.cuda.device_count())
        for properties in [torch.cuda.get_device_properties(index)]
    )


def _colon_file(path: Path) -> dict[str, str]:
    """Read `key: value` lines, the first of each key; empty where there is no such file (not Linux)."""
    found: dict[str, str] = {}
    if path.is_file():
        for line in path.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            found.setdefault(key.strip(), value.strip())
    return found


def _nearest_existing(folder: Path) -> Path:
    return next(place for place in [folder.absolute(), *folder.absolute().parents] if place.exists())
