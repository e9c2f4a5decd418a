"""Students that serve: what training would have left behind, without the training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ckd.config import TrainConfig, parse
from ckd.data.domain import Domain
from ckd.nn.recommender import Recommender
from ckd.nn.weights import write_weights
from ckd.students import STUDENTS

#: Small configurations by student.
CONFIGS: dict[str, dict[str, Any]] = {
    "sasrec": {"hidden_size": 8, "inner_size": 8},
    "bert4rec": {"hidden_size": 8, "inner_size": 8},
    "gru4rec": {"embedding_size": 8, "hidden_size": 12, "n_layers": 2},
    "fmlprec": {"hidden_size": 8},
    "fm": {"embedding_size": 8},
    "deepfm": {"embedding_size": 8, "mlp_sizes": [8]},
    "lightgcn": {"embedding_size": 8},
}

#: Saves a student's run: work folder, domain, student, run's name, keys of the configuration.
SaveRun = Callable[..., Recommender]


@pytest.fixture(scope="session")
def save_run() -> SaveRun:
    """Writes the files of a finished run, of weights drawn at random and made large enough to tell items apart."""

    def save(
        work: Path, domain: Domain, student: str, run: str | None = None, seed: int = 0, **keys: Any
    ) -> Recommender:
        student_class = STUDENTS.get(student)
        config = parse(student_class.Config, {**CONFIGS[student], **keys}, "student")
        torch.manual_seed(seed)
        model: Recommender = student_class.create(config, domain)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight) * 0.3)
        folder = work / "students" / domain.name / (run or student)
        folder.mkdir(parents=True)
        identity = {
            "student": student,
            "config": config.model_dump(mode="json"),
            "train": TrainConfig().model_dump(mode="json", exclude={"device"}),
            "domain": domain.fingerprint,
        }
        write_weights(folder / "best.safetensors", model)
        for name, content in {
            "student.json": {"identity": identity},
            "last.json": {"finished": True},
            "best.json": {"log": {"epoch": 4, "valid_ndcg@10": 0.25}},
        }.items():
            (folder / name).write_text(json.dumps(content))
        return model.eval()

    return save


@pytest.fixture(scope="session")
def serving(
    tmp_path_factory: pytest.TempPathFactory, tiny: dict[str, Domain], save_run: SaveRun
) -> tuple[Path, Domain]:
    """A work folder with one run of every student; nobody may change it."""
    work = tmp_path_factory.mktemp("serving")
    target = list(tiny.values())[-1]
    domain = target.save(work / "domains" / target.name)
    for student in CONFIGS:
        save_run(work, domain, student)
    return work, domain
