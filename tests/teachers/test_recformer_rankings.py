"""Recformer's fine-tuning tells its epochs, so that ranking lists of them can be kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckd.baselines.hetcomp_parts.kept import kept_rankings
from ckd.baselines.hetcomp_parts.rankings import ranking_lists
from ckd.config import RunConfig
from ckd.data.domain import Domain
from ckd.data.example import ExampleSize, make_example
from ckd.nn.weights import read_weights
from ckd.pipelines.finetune_teacher import finetune_teacher, load_teacher
from ckd.teachers.recformer_parts import finetune as loop


class Killed(BaseException):
    """What a kill looks like from inside, without the process."""


def test_recformer_keeps_the_lists_of_its_epochs(tiny_backbone: Any, tmp_path: Path, monkeypatch: Any) -> None:
    *_, made = make_example(seed=7, size=ExampleSize(users=24, items=25, mean_length=6.0)).values()
    domain: Domain = made.save(tmp_path / "domains" / made.name)
    config = RunConfig.model_validate(
        {
            "train": {"lr": 2e-3, "batch_size": 16, "epochs": 2, "validate_every": 1, "device": "cpu"},
            "teacher": {
                "backbone": str(tiny_backbone("bert", initializer_range=0.05)),
                "layers": 1,
                "window": 8,
                "max_attribute_length": 6,
                "max_items": 4,
                "max_tokens": 48,
                "warmup_steps": 2,
            },
        }
    )

    def tune(run: str, keep: int | None) -> Any:
        return finetune_teacher(tmp_path, domain.name, "recformer", config, run=run, keep_rankings=keep)

    plain, kept = tune("plain", None), tune("kept", 1)
    assert plain.fingerprint == kept.fingerprint
    found = kept_rankings(kept.folder, domain, kept.fingerprint)
    assert [lists.epoch for lists in found] == list(kept.rankings) == list(range(kept.rankings[-1] + 1))
    assert all(lists.quality is not None for lists in found)
    assert found[-1].quality == kept.metrics["valid"]["ndcg@10"]
    teacher, *_ = load_teacher(tmp_path, domain, "kept")
    assert np.array_equal(found[-1].items, ranking_lists(teacher, domain))
    assert (
        read_weights(kept.folder / "best.safetensors").keys() == read_weights(plain.folder / "best.safetensors").keys()
    )

    # Killed between the lists of an epoch and its checkpoint, and between a checkpoint and what follows.
    for number, name in enumerate(("save_checkpoint", "write_log")):

        def kill(*_: Any) -> None:
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(loop, name, kill)
            with pytest.raises(Killed):
                tune(f"killed-{number}", 1)
        again = tune(f"killed-{number}", 1)
        assert again.rankings == kept.rankings
        contents = [lists.content for lists in kept_rankings(again.folder, domain, kept.fingerprint)]
        assert contents == [lists.content for lists in found]
