"""The settings beside a checkpoint of RecBole's, which build the model that its weights are for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml

from ckd.data.domain import Domain
from ckd.pipelines.export import export_student

Serving = tuple[Path, Domain]

#: Of no two keys the same value, so that none can stand in another's place.
ATTENTION = {
    "n_layers": 3,
    "n_heads": 4,
    "hidden_size": 16,
    "inner_size": 20,
    "hidden_dropout": 0.15,
    "attention_dropout": 0.25,
    "layer_norm_eps": 1e-7,
    "initializer_range": 0.03,
}
RECURRENT = {"embedding_size": 8, "hidden_size": 12, "n_layers": 2, "dropout": 0.35}

#: RecBole's names of the same.
NAMES = {
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attn_dropout_prob",
    "dropout": "dropout_prob",
    "last_share": "ft_ratio",
}


def exported(
    serving: Serving, work: Path, save_run: Any, student: str, keys: dict[str, Any], **identity: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and checkpoint of a student, its identity changed so."""
    domain = serving[1].save(work / "domains" / serving[1].name)
    save_run(work, domain, student, **keys)
    path = work / "students" / domain.name / student / "student.json"
    described = json.loads(path.read_text())
    described["identity"] |= identity
    path.write_text(json.dumps(described))
    folder = export_student(work, domain.name, student, "recbole").folder
    settings: dict[str, Any] = yaml.safe_load((folder / "recbole.yaml").read_text())
    checkpoint: dict[str, Any] = torch.load(folder / "model.pth", weights_only=True)
    return settings, checkpoint


@pytest.mark.parametrize(
    ("student", "keys"),
    [
        ("sasrec", ATTENTION),
        ("bert4rec", {**ATTENTION, "drop_first": "always", "mask_ratio": 0.45, "last_share": 0.55}),
        ("gru4rec", RECURRENT),
    ],
)
def test_every_size_and_share_has_recboles_name(
    student: str, keys: dict[str, Any], serving: Serving, tmp_path: Path, save_run: Any
) -> None:
    settings, _ = exported(serving, tmp_path, save_run, student, keys)
    expected = {NAMES.get(key, key): value for key, value in keys.items() if key != "drop_first"}
    if student == "gru4rec":
        expected["num_layers"] = expected.pop("n_layers")
    assert {key: float(settings[key]) for key in expected} == expected


@pytest.mark.parametrize("section", ["train", "settings"])
def test_the_optimiser_is_that_of_the_training(section: str, serving: Serving, tmp_path: Path, save_run: Any) -> None:
    """Of a baseline with a training of its own, its own."""
    said = {"train": None, "settings": None, section: {"lr": 0.003, "weight_decay": 0.02}}
    settings, checkpoint = exported(serving, tmp_path, save_run, "gru4rec", {}, **said)
    assert (settings["learning_rate"], settings["weight_decay"]) == (0.003, 0.02)
    (group,) = checkpoint["optimizer"]["param_groups"]
    assert (group["lr"], group["weight_decay"]) == (0.003, 0.02)


def test_recbole_ranks_all_items_of_the_test_part_by_the_metrics_that_we_do(
    serving: Serving, tmp_path: Path, save_run: Any
) -> None:
    settings, _ = exported(serving, tmp_path, save_run, "gru4rec", {})
    # Its evaluation takes the second file for validation and the third for the test.
    assert settings["benchmark_filename"] == ["train", "valid", "test"]
    assert (settings["topk"], settings["metrics"]) == ([5, 10, 20, 50], ["Recall", "NDCG", "MRR"])
    assert settings["eval_args"]["mode"] == "full"


def test_users_that_recbole_would_misread_become_numbers(serving: Serving, tmp_path: Path, save_run: Any) -> None:
    users = serving[1].user_ids.to_list()
    ids = pl.Series("raw_id", ["two words", *users[1:]])
    exported((serving[0], replace(serving[1], user_ids=ids)), tmp_path, save_run, "gru4rec", {})
    name = serving[1].name
    folder = tmp_path / "students" / name / "gru4rec" / "export-recbole" / name
    rows = (folder / f"{name}.test.inter").read_text().splitlines()[1:]
    assert [row.split("\t")[0] for row in rows] == [str(n + 1) for n in serving[1].instances("test").users.tolist()]
