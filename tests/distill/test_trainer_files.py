"""What the trainer writes and reads back: log, checkpoints, and those it refuses; and its settings."""

from __future__ import annotations

import csv
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ckd.config import TrainConfig
from ckd.distill.plan import FULL
from ckd.distill.trainer import Trainer, with_defaults
from ckd.errors import ConfigError, DataError
from ckd.nn.device import pick_device

MakeTrainer = Callable[..., Trainer]

TIMING = ("seconds", "instances_per_second", "waiting_share")


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("best.safetensors", "last.safetensors")}


def test_the_log_has_a_row_for_every_epoch(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    rows = make_trainer(tmp_path, teachers=2, validate_every=2, on_epoch=seen.append).fit().rows
    assert seen == rows
    with (tmp_path / "log.csv").open(newline="") as file:
        logged = list(csv.DictReader(file))
    assert len(logged) == len(rows) == 4
    for line, row in zip(logged, rows, strict=True):
        assert {key: value for key, value in line.items() if value} == {key: str(value) for key, value in row.items()}
    assert {"epoch", "stage", "instances", "ce", "kd", "loss", *TIMING} <= logged[0].keys()
    assert {"dropped_teacher-0", "dropped_teacher-1", "valid_ndcg@10", "valid_recall@20"} <= logged[0].keys()
    assert [line["valid_ndcg@10"] == "" for line in logged] == [False, True, False, False]
    assert [row["stage"] for row in rows] == [1, 2, FULL, FULL]
    for row in rows:
        assert 0 <= row["waiting_share"] <= 1
        assert row["instances_per_second"] == pytest.approx(row["instances"] / row["seconds"], rel=0.1)


def test_the_files_of_a_finished_run(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trained = trainer.fit()
    names = ["best.json", "best.safetensors", "last.json", "last.safetensors", "log.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    state = json.loads((tmp_path / "last.json").read_text())
    assert (state["finished"], state["rows"], state["epoch"]) == (True, trained.rows, 4)
    best = json.loads((tmp_path / "best.json").read_text())
    assert best["identity"] == trainer.identity
    assert best["log"] == trained.rows[trained.best_epoch]
    assert load_file(tmp_path / "best.safetensors").keys() == trainer.model.state_dict().keys()


def test_a_finished_run_is_not_trained_on(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    first = make_trainer(tmp_path).fit()
    before = files(tmp_path)
    trainer = make_trainer(tmp_path, on_step=lambda *_: pytest.fail("a step was taken"))
    assert trainer.fit() == first
    assert files(tmp_path) == before


def test_a_checkpoint_of_another_run_is_refused(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    make_trainer(tmp_path, patience=4).fit()
    before = files(tmp_path)
    with pytest.raises(DataError, match=r"last\.safetensors.*run with train\.patience = 4, this one has 5\."):
        make_trainer(tmp_path, patience=5).fit()
    with pytest.raises(DataError, match=r"last\.safetensors.*run with seed = 0, this one has 1\."):
        make_trainer(tmp_path, seed=1, patience=4).fit()
    with pytest.raises(DataError, match=r"train\.clip_norm = null, this one has 1\.0\."):
        make_trainer(tmp_path, patience=4, clip_norm=1.0).fit()
    assert files(tmp_path) == before


@pytest.mark.parametrize("damage", ["empty", "half", "header", "bit", "weights", "text"])
def test_a_damaged_checkpoint_is_refused(make_trainer: MakeTrainer, tmp_path: Path, damage: str) -> None:
    make_trainer(tmp_path).fit()
    last, best = tmp_path / "last.safetensors", tmp_path / "best.safetensors"
    content = last.read_bytes()
    flipped = bytearray(content)
    flipped[4 if damage == "header" else -1] ^= 4
    last.write_bytes(
        {
            "empty": b"",
            "half": content[: len(content) // 2],
            "header": bytes(flipped),
            "bit": bytes(flipped),
            "weights": best.read_bytes(),
            "text": b"not a checkpoint at all",
        }[damage]
    )
    broken, kept = last.read_bytes(), best.read_bytes()
    with pytest.raises(DataError, match=r"last\.safetensors: .*Delete it to train from the start\."):
        make_trainer(tmp_path).fit()
    assert (last.read_bytes(), best.read_bytes()) == (broken, kept)


def test_a_lost_or_damaged_best_checkpoint_is_named(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    make_trainer(tmp_path).fit()
    best = tmp_path / "best.safetensors"
    best.write_bytes(best.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"best\.safetensors"):
        make_trainer(tmp_path).fit()
    best.unlink()
    with pytest.raises(DataError, match=r"best\.safetensors: no such file"):
        make_trainer(tmp_path).fit()


@pytest.mark.parametrize("room", [3000, 12_000])
def test_a_full_disk_keeps_the_checkpoint_before(make_trainer: MakeTrainer, tmp_path: Path, room: int) -> None:
    """A limit on the size of files fails a write in its middle, as a full disk does; the first epoch is complete."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(row: dict[str, Any]) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))

    try:
        with pytest.raises(OSError, match="too large"):
            make_trainer(tmp_path, on_epoch=fill).fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    names = ["best.json", "best.safetensors", "last.json", "last.safetensors", "log.csv"]
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".former.")) == names
    assert json.loads((tmp_path / "last.json").read_text())["epoch"] == 1
    assert len(make_trainer(tmp_path).fit().rows) == 4
    make_trainer(tmp_path / "whole").fit()
    assert files(tmp_path)["best.safetensors"] == files(tmp_path / "whole")["best.safetensors"]
    assert not list(tmp_path.glob(".former.*"))


# --- settings --------------------------------------------------------------------------------------------------------


def test_a_models_defaults_give_way_to_what_the_user_said() -> None:
    said = TrainConfig(lr=0.5)
    assert with_defaults(said, {"lr": 0.1, "patience": 3}) == TrainConfig(lr=0.5, patience=3)
    # Saying the default is saying something.
    assert with_defaults(TrainConfig(patience=10), {"patience": 3}).patience == 10


def test_devices_by_name() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    where = r"Use auto, cpu or a GPU of this machine\."
    for name in ("bogus", "", "cuda:99"):
        with pytest.raises(ConfigError, match=rf"features\.device='{name}': .*{where}"):
            pick_device(name, "features.device")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"train\.device='cuda'"):
            pick_device("cuda")
