"""HetComp against recorded numbers of the published program."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from ckd.baselines.hetcomp_parts.knowledge import Curriculum, list_ndcg
from ckd.baselines.hetcomp_parts.losses import clamp_scores, loss_by_rows, overall_loss, rank_loss
from ckd.baselines.mf import MF, MFConfig


@pytest.fixture(scope="session")
def golden(golden_dir) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    with safe_open(golden_dir / "hetcomp_golden.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        return tensors, json.loads(file.metadata()["config"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float", "double"])
@pytest.mark.parametrize(
    ("name", "loss_of"), [("kd_loss_overall", overall_loss), ("kd_loss_rank", rank_loss)], ids=["overall", "rank"]
)
@pytest.mark.parametrize("by_rows", [False, True], ids=["whole", "by-rows"])
def test_golden_hetcomp_losses(golden, dtype, name, loss_of, by_rows) -> None:
    tensors, config = golden
    model = MF(MFConfig(embedding_size=config["dim"]), config["U"], config["I"] - 1)
    model.load_state_dict({k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")})
    model.to(dtype)
    users, items = model.user_emb(tensors["in.batch_users"]), model.item_table()
    lists = tensors["in.pos_items"], tensors["in.top_items"], tensors["in.train_mask"] > 0
    if by_rows:
        loss = loss_by_rows(lambda s, rows: loss_of(clamp_scores(s), *(each[rows] for each in lists)), users, items)
    else:
        loss = loss_of(clamp_scores(users @ items.T), *lists)
    torch.testing.assert_close(loss.float(), tensors[f"out.{name}"], atol=1e-5, rtol=1e-6)
    if dtype == torch.float64:
        torch.testing.assert_close(loss, tensors[f"out64.{name}"], atol=1e-8, rtol=0)
    loss.backward()
    for parameter, weight in model.named_parameters():
        expected = tensors[f"grad.{name}.{parameter}"]
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad.float(), expected, atol=1e-4, rtol=1e-4)


def own_list(ranked: torch.Tensor, training: torch.Tensor) -> np.ndarray:
    """The student's ranking (U, I) without training items, as long as every user has."""
    rows = [items[training[user, items] == 0] for user, items in enumerate(ranked)]
    shortest = min(len(row) for row in rows)
    return np.stack([row[:shortest].numpy() for row in rows])


def trajectories(tensors: dict[str, torch.Tensor]) -> list[list[np.ndarray]]:
    found: list[list[np.ndarray]] = []
    while f"in.dkc.teacher{len(found)}.ckpt0" in tensors:
        prefix = f"in.dkc.teacher{len(found)}.ckpt"
        count = sum(key.startswith(prefix) for key in tensors)
        found.append([tensors[f"{prefix}{v}"].numpy() for v in range(count)])
    return found


def test_golden_hetcomp_ndcg(golden) -> None:
    tensors, _ = golden
    student = own_list(tensors["in.dkc.student_sorted"], tensors["in.train_matrix"])
    found = np.stack([[list_ndcg(student, lists) for lists in teacher] for teacher in trajectories(tensors)])
    np.testing.assert_allclose(found, tensors["out.dkc.ndcg_u"].numpy(), atol=1e-12)


def test_golden_hetcomp_construction(golden) -> None:
    tensors, config = golden
    curriculum = Curriculum(trajectories(tensors), config["alpha"], config["p"])
    steps = sum(key.startswith("out.dkc.step") and key.endswith(".v") for key in tensors)
    assert steps > 1
    for step in range(steps):
        ranked = tensors[f"in.dkc.step{step}.student_sorted" if step else "in.dkc.student_sorted"]
        curriculum.update(own_list(ranked, tensors["in.train_matrix"]), epoch=config["p"] * (step + 1))
        assert torch.equal(curriculum.level.double(), tensors[f"out.dkc.step{step}.v"]), step
        np.testing.assert_allclose(curriculum.distance, tensors[f"out.dkc.step{step}.dist"], atol=1e-12)
    assert curriculum.finished == bool((tensors[f"out.dkc.step{steps - 1}.v"] == curriculum.last).all())
