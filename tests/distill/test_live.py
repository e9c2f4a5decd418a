"""What people see while an epoch is under way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckd.distill import live
from ckd.distill.trainer import Trainer

MakeTrainer = Callable[..., Trainer]

ROW: dict[str, Any] = {
    "epoch": 7,
    "stage": 2,
    "loss": 6.25,
    "ce": 5.0,
    "instances_per_second": 12345.6,
    "waiting_share": 0.0123,
}


def test_the_note_of_a_base_student() -> None:
    assert live.note(ROW) == "epoch 7 stage 2 · loss 6.2500 (CE 5.0000) · 12,346 inst/s, waiting 1.2%"
    assert live.note({**ROW, "stage": 0}).startswith("epoch 7 full · loss")


def test_the_note_of_a_distilled_student() -> None:
    shares = {"dropped_unisrec": 0.254, "dropped_recformer": 0.0, "dropped_unim2rec": 0.1}
    note = live.note({**ROW, "kd": 0.125, **shares})
    assert " · loss 6.2500 (CE 5.0000, KL 0.1250) · dropped unisrec 25%, unim2rec 10% · " in note
    assert "recformer" not in note


def test_rows_of_steps_lead_up_to_the_epochs(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    seen: list[tuple[int, int, int, dict[str, Any]]] = []
    trainer = make_trainer(tmp_path, teachers=3, on_step=lambda *told: seen.append(told))
    rows = trainer.fit().rows
    for row in rows:
        of_epoch = [told for told in seen if told[0] == row["epoch"]]
        assert [told[1] for told in of_epoch] == list(range(1, of_epoch[-1][2] + 1))
        counts = [told[3]["instances"] for told in of_epoch]
        assert counts == sorted(set(counts))
        last = of_epoch[-1][3]
        assert last == {name: value for name, value in row.items() if not name.startswith("valid_")}
        assert live.note(last).startswith(f"epoch {row['epoch']} ")
    means = [told[3]["loss"] for told in seen if told[0] == 0]
    assert means[0] != pytest.approx(means[-1])
