"""Where artefacts lie below the work folder, and what is written beside each of them."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ckd.data.domain import Domain
from ckd.data.features import list_features, read_feature_info
from ckd.errors import ConfigError, DataError, file_name

#: Packages whose versions are recorded with every result.
RECORDED = ("ckd-mdsr", "torch", "numpy", "polars", "pyarrow", "transformers", "open_clip_torch")


def domain_folder(work: Path, domain: str) -> Path:
    return work / "domains" / domain


def domains_in(data: Path) -> list[str]:
    """Names of the domains in a folder of sources, sorted; hidden folders are none."""
    return sorted(path.name for path in data.iterdir() if path.is_dir() and not path.name.startswith("."))


def teachers_folder(work: Path, domain: str) -> Path:
    return work / "teachers" / domain


def teacher_folder(work: Path, domain: str, run: str) -> Path:
    return teachers_folder(work, domain) / file_name("run", run)


def pretrained_folder(work: Path, run: str) -> Path:
    return work / "pretrained" / file_name("run", run)


def plans_folder(work: Path, domain: str) -> Path:
    return work / "plans" / domain


def scores_folder(work: Path, domain: str, plan: str) -> Path:
    return work / "scores" / domain / plan


def students_folder(work: Path, domain: str) -> Path:
    return work / "students" / domain


def student_folder(work: Path, domain: str, run: str) -> Path:
    return students_folder(work, domain) / file_name("run", run)


def tune_folder(work: Path, domain: str, name: str) -> Path:
    return work / "tune" / domain / file_name("search", name)


def named_features(domain: Domain, config: dict[str, Any]) -> dict[str, str]:
    """Fingerprints of those of a saved domain's features that a configuration names: what a model of it depends on."""
    assert domain.folder is not None
    named = {value for value in config.values() if isinstance(value, str)}
    there = [name for name in list_features(domain.folder) if name in named]
    return {name: read_feature_info(domain.folder, name)["fingerprint"] for name in there}


def versions() -> dict[str, str]:
    """Versions of Python and the packages that a result depends on, and what machine they ran on."""
    found = {"python": platform.python_version(), **machine()}
    for name in RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def machine() -> dict[str, str]:
    """System, processor, usable cores, memory and GPUs of this machine; what it does not tell is left out."""
    found = {"machine": f"{platform.system()} {platform.machine()}", "cpu": platform.processor() or platform.machine()}
    with suppress(OSError):
        if name := re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            found["cpu"] = name[1]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found["cores"] = str(usable or 1)
    with suppress(AttributeError, OSError, ValueError):
        found["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    import torch

    if torch.cuda.is_available():
        found["gpu"] = ", ".join(torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count()))
    return found


def content_hash(*paths: Path) -> str:
    """Hash over the bytes of files, in this order."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest())
    return digest.hexdigest()


def require_files(folder: Path, names: Sequence[str], remedy: str) -> None:
    """Refuse a finished run from which somebody has taken a file.

    Raises:
        DataError: names the first that is not there.
    """
    for name in names:
        if not (folder / name).exists():
            raise DataError(f"{folder / name}: no such file, of a run that is finished. {remedy}")


def claim_name(own: Path, other: Path, kind: str) -> None:
    """Refuse a run's name that a run of the other kind has: commands that take either would find one alone.

    Args:
        own: folder of the run that is to be made.
        other: where a run of the other kind and of this name would lie.
        kind: of the other, for the message.

    Raises:
        ConfigError: it is there.
    """
    if other.exists() and not own.exists():
        raise ConfigError(f"--run {own.name}: {other} is a {kind} of that name. Give another --run.")
