"""The machine and the versions that numbers were measured with; no name of a host, a user or a path."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("ccassets", "numpy", "h5py", "torch", "dagster", "xxhash", "pillow")


def describe(folder: Path) -> dict[str, str]:
    """What matters for the numbers; `folder` is where the files of the run lie."""
    system = f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}"
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{system}, file system {_file_system(folder)}, Python {platform.python_version()}",
        "versions": ", ".join(f"{library} {_version(library)}" for library in LIBRARIES),
    }


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _file_system(folder: Path) -> str:
    """The type of the file system that holds a folder, by the longest mount point above it."""
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    mounts = [line.split()[1:3] for line in lines]
    above = [(len(point), kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    return max(above)[1] if above else "unknown"
