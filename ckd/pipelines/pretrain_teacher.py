"""Pre-trains a teacher over several source domains (paper 4.1.1), for fine-tuning to start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckd.config import RunConfig, parse
from ckd.data.atomic import write_json
from ckd.data.described import read_json
from ckd.data.domain import Domain
from ckd.data.run_folder import only_process
from ckd.distill.trainer import with_defaults
from ckd.errors import ConfigError, DataError
from ckd.pipelines.finetune_teacher import RESTART, RESULT, SAVED, teacher_fingerprint
from ckd.pipelines.progress import Progress, silent
from ckd.pipelines.workspace import domain_folder, named_features, pretrained_folder, require_files, versions
from ckd.teachers import TEACHERS
from ckd.teachers.common.identity import as_found, start_content
from ckd.teachers.protocol import Pretrainable


@dataclass(frozen=True)
class Pretrained:
    """Weights to start fine-tuning from.

    Attributes:
        folder: where they lie; fine-tuning takes it as `teacher.start`.
        fingerprint: hash over weights and configuration.
        reused: they were there already, made from the same inputs.
    """

    folder: Path
    fingerprint: str
    reused: bool


def pretrain_teacher(
    work: Path,
    teacher_name: str,
    domain_names: Sequence[str],
    config: RunConfig,
    run: str | None = None,
    progress: Progress = silent,
    restart: bool = False,
) -> Pretrained:
    """Pre-train the teacher over the domains, in the order given.

    A finished run of the same configuration on the same data is returned as it is; an unfinished one goes on.

    Args:
        restart: discard what is in the run's folder.

    Raises:
        ConfigError: unknown teacher, one that has no pre-training, no domain, or an unknown key.
        DataError: a domain or one of its features is missing, or the run's folder holds something else.
    """
    teacher_class = TEACHERS.get(teacher_name)
    if not isinstance(teacher_class, Pretrainable):
        raise ConfigError(f"teacher {teacher_name!r} has no pre-training. Fine-tune it from scratch.")
    if not domain_names:
        raise ConfigError("pre-training needs at least one domain: --domains NAME,NAME.")
    domains = [Domain.load(domain_folder(work, name)) for name in domain_names]
    model_config = parse(pretraining_class(teacher_name), config.teacher, "teacher")
    train = with_defaults(config.train, getattr(teacher_class, "PRETRAIN_DEFAULTS", {}))
    start: Path | None = getattr(model_config, "start", None)
    identity = {
        "teacher": teacher_name,
        "config": model_config.model_dump(mode="json"),
        "train": train.identity(),
        "domains": {domain.name: domain.fingerprint for domain in domains},
        "order": [domain.name for domain in domains],
        "features": {domain.name: named_features(domain, model_config.model_dump()) for domain in domains},
        "seed": config.seed,
        **start_content(start),
    }
    folder = pretrained_folder(work, run or teacher_name)
    if (folder / RESULT).exists() and not restart:
        _check_same(folder, identity)
        return Pretrained(folder, teacher_fingerprint(folder), reused=True)
    if restart and start is not None and start.expanduser().resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"teacher.start: {start} lies in {folder}, which --restart empties. Give another --run.")
    with only_process(folder, restart):
        teacher_class.pretrain(domains, model_config, train, config.seed, folder, progress)
        write_json(folder / RESULT, {"identity": identity, "versions": versions()})
        return Pretrained(folder, teacher_fingerprint(folder), reused=False)


def pretraining_class(teacher_name: str) -> Any:
    """What a teacher's pre-training is validated with."""
    found = TEACHERS.get(teacher_name)
    return getattr(found, "PretrainConfig", None) or found.Config


def _check_same(folder: Path, identity: dict[str, Any]) -> None:
    found = read_json(folder / RESULT, RESTART).get("identity")
    if not isinstance(found, dict):
        raise DataError(f"{folder}: holds an imported teacher. Give another --run, or --restart to discard it.")
    for key, value in as_found(identity, found, added=("order", "start")).items():
        if found.get(key) != value:
            raise DataError(
                f"{folder}: holds a teacher with {key} = {found.get(key)}, this run has {value}. "
                "Give another --run, or --restart to discard it."
            )
    require_files(folder, SAVED, RESTART)
