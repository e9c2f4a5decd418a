"""A teacher on disk: `model.safetensors` and, written last, `teacher.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torch import nn

from ckd.data.atomic import write_json
from ckd.data.described import read_json
from ckd.data.domain import Domain
from ckd.errors import DataError
from ckd.nn.weights import write_weights

WEIGHTS = "model.safetensors"
INFO = "teacher.json"
FORMAT = 1

#: pre-trained: weights to start fine-tuning from. fine-tuned: ready to score its domain.
Stage = Literal["pre-trained", "fine-tuned"]


def write_teacher(folder: Path, teacher: str, stage: Stage, model: nn.Module, info: dict[str, Any]) -> None:
    """Write weights and description into an existing folder; without `teacher.json` there is no teacher."""
    (folder / INFO).unlink(missing_ok=True)
    write_weights(folder / WEIGHTS, model)
    write_json(folder / INFO, {"format": FORMAT, "teacher": teacher, "stage": stage, **info})


def read_info(folder: Path, teacher: str, stage: Stage | None = None, domain: Domain | None = None) -> dict[str, Any]:
    """What `write_teacher` put into `teacher.json`.

    Args:
        stage: what is asked for; none: either.
        domain: what it must have been made for, by the fingerprint under `domain`; none: whatever.

    Raises:
        DataError: no teacher lies there, it is another one, of another stage, domain or format.
    """
    path = folder / INFO
    found = read_json(
        path, "Make the teacher again.", missing=f"The folder must hold a finished {teacher} ({WEIGHTS}, {INFO})."
    )
    if found.get("format") != FORMAT:
        raise DataError(f"{path}: format {found.get('format')!r}, this version reads {FORMAT}. Make the teacher again.")
    if found.get("teacher") != teacher:
        raise DataError(f"{path}: describes a {found.get('teacher')!r}, expected a {teacher!r}. Give another folder.")
    if stage is not None and found.get("stage") != stage:
        remedy = (
            f"Fine-tune it first, with teacher.start={folder}."
            if stage == "fine-tuned"
            else "Give the folder that `ckd pretrain-teacher` wrote."
        )
        raise DataError(f"{path}: the teacher is {found.get('stage')}, not {stage}. {remedy}")
    if domain is not None and found.get("domain") != domain.fingerprint:
        raise DataError(
            f"{path}: made for content {found.get('domain')}, domain {domain.name!r} is {domain.fingerprint}. "
            "Make the teacher on this domain."
        )
    return found
