"""Brings a published checkpoint of a teacher into the workspace, for fine-tuning to start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckd.data.atomic import replace_folder, write_json
from ckd.errors import ConfigError, DataError
from ckd.nn.weights import read_checkpoint
from ckd.pipelines.finetune_teacher import RESULT, teacher_fingerprint
from ckd.pipelines.workspace import content_hash, pretrained_folder, versions
from ckd.teachers import TEACHERS
from ckd.teachers.protocol import Importable


@dataclass(frozen=True)
class ImportedTeacher:
    """Weights to start fine-tuning from.

    Attributes:
        folder: where they lie; fine-tuning takes it as `teacher.start`.
        fingerprint: hash over weights and configuration.
        parameters: number of values imported.
        left_out: the checkpoint's keys that do not transfer, such as tables of another domain's items.
    """

    folder: Path
    fingerprint: str
    parameters: int
    left_out: tuple[str, ...]


def import_teacher(
    work: Path, teacher_name: str, checkpoint: Path, config: dict[str, Any] | None = None, run: str | None = None
) -> ImportedTeacher:
    """Import a checkpoint as `work/pretrained/<run>`, key by key; nothing in it is ever executed.

    Args:
        checkpoint: a safetensors or torch file in the published key layout.
        config: the teacher's own keys, for what no tensor's shape tells.
        run: name of the folder; none: the teacher's name.

    Raises:
        ConfigError: unknown teacher, one without a published layout, or a key that does not fit.
        DataError: the file is missing, no checkpoint or holds pickled objects; keys are missing, unknown or of the
            wrong shape, all named; or the folder is taken.
    """
    teacher_class = TEACHERS.get(teacher_name)
    if not isinstance(teacher_class, Importable):
        raise ConfigError(f"teacher {teacher_name!r} has no published checkpoint layout to import.")
    folder = pretrained_folder(work, run or teacher_name)
    if folder.exists():
        raise DataError(f"{folder}: exists already. Give another --run, or delete the folder.")
    tensors = read_checkpoint(checkpoint)
    with replace_folder(folder) as partial:
        left_out = teacher_class.import_checkpoint(tensors, config or {}, str(checkpoint), partial)
        origin = {"file": checkpoint.name, "content": content_hash(checkpoint), "left_out": left_out}
        write_json(partial / RESULT, {"imported": {"teacher": teacher_name, **origin}, "versions": versions()})
    parameters = sum(value.numel() for key, value in tensors.items() if key not in left_out)
    return ImportedTeacher(folder, teacher_fingerprint(folder), parameters, tuple(left_out))
