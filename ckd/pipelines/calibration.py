"""A teacher's calibrated temperature, found once from its validation targets and kept beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ckd.config import DistillConfig
from ckd.data.atomic import write_json
from ckd.data.batch import Batches
from ckd.data.described import read_json
from ckd.data.domain import Domain
from ckd.distill.calibration import likeliest_temperature
from ckd.errors import ConfigError
from ckd.nn.device import pick_device
from ckd.pipelines.finetune_teacher import load_teacher, teacher_fingerprint
from ckd.pipelines.workspace import teacher_folder
from ckd.teachers.protocol import Teacher

#: The temperature and what it was found for, in the teacher's folder.
CALIBRATION = "calibration.json"

#: Instances in one forward pass, and items.
ENCODE_BATCH = 1024


def temperature_of(
    work: Path, domain: Domain, teacher: str, config: DistillConfig, stored: float, device: str = "auto"
) -> float:
    """The tau that a teacher's scores are distilled at.

    Args:
        teacher: its run.
        stored: the tau at which its scores were made, which stays where the configuration names none.
        device: where to calibrate, if that was not done before.

    Raises:
        ConfigError: temperatures are given by teacher, and none for this one.
        DataError: as `calibrated_temperature`.
    """
    wanted = config.temperature
    if isinstance(wanted, dict):
        if teacher not in wanted:
            raise ConfigError(f"distill.temperature: none for teacher {teacher!r}; given: {sorted(wanted)}.")
        wanted = wanted[teacher]
    if wanted == "calibrated":
        return calibrated_temperature(work, domain, teacher, device)
    return wanted or stored


def asks_for_calibration(config: DistillConfig, teacher: str) -> bool:
    """Whether this teacher's scores will be distilled at its calibrated temperature."""
    wanted = config.temperature
    return (wanted.get(teacher) if isinstance(wanted, dict) else wanted) == "calibrated"


def calibrated_temperature(work: Path, domain: Domain, run: str, device: str = "auto") -> float:
    """The tau under which the teacher's validation targets are likeliest, every item a candidate.

    Only the first call needs the teacher itself; what it finds is kept for its weights and this domain.

    Raises:
        DataError: no such teacher, it has no vectors for the validation instances, or no tau is likeliest.
    """
    path = teacher_folder(work, domain.name, run) / CALIBRATION
    if path.exists():
        found = read_json(path, "Delete it to calibrate again.")
        bound = {"teacher": teacher_fingerprint(path.parent), "domain": domain.fingerprint}
        if found.get("made_for") == bound:
            return float(found["temperature"])
    teacher, fingerprint, _ = load_teacher(work, domain, run)
    users, items, targets = _encode(teacher, domain, pick_device(device))
    result = likeliest_temperature(users, items, targets, f"{domain.name}: teacher {run}")
    write_json(
        path,
        {
            "made_for": {"teacher": fingerprint, "domain": domain.fingerprint},
            "temperature": result.temperature,
            "nll": result.nll,
            "instances": result.instances,
        },
    )
    return result.temperature


@torch.no_grad()
def _encode(teacher: Teacher, domain: Domain, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(n, d) vectors of the validation instances, (n_items + 1, d) of the items, and the (n,) targets."""
    if isinstance(teacher, nn.Module):
        teacher.to(device)
    instances = domain.instances("valid")
    batches = Batches(domain, instances)

    def finish(vectors: torch.Tensor) -> torch.Tensor:
        vectors = vectors.float().to(device)
        return F.normalize(vectors, dim=-1) if teacher.similarity == "cosine" else vectors

    # Histories of one length go together, so that little is padded.
    order = np.argsort(instances.lengths, kind="stable")
    parts = [order[at : at + ENCODE_BATCH] for at in range(0, len(order), ENCODE_BATCH)]
    numbers = torch.split(torch.arange(1, domain.n_items + 1, device=device), ENCODE_BATCH)
    items = torch.cat([finish(teacher.encode_items(part)) for part in numbers])
    users = [finish(teacher.encode_instances(batches(part).to(device))) for part in parts]
    targets = torch.from_numpy(instances.targets[order].astype(np.int64)).to(device)
    return torch.cat([items[:0], *users]), F.pad(items, (0, 0, 1, 0)), targets
