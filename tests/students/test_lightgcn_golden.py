"""LightGCN against recorded numbers of RecBole's."""

from __future__ import annotations

import pytest
import torch

from ckd.data.batch import Batch
from ckd.students.lightgcn import Graph, LightGCN, LightGCNConfig

NAMES = {"embedding_size": "embedding_size", "n_layers": "n_layers", "reg_weight": "reg_weight"}


@pytest.fixture
def golden(recorded):
    return recorded("lightgcn")


def build(golden, dtype, require_pow: bool = False) -> tuple[LightGCN, Batch]:
    n_users, n_items = golden.config["n_users"], golden.config["n_items"] - 1
    graph = Graph(golden["in.inter_row_user"], golden["in.inter_col_item"], n_users, n_items)
    model = LightGCN(LightGCNConfig(require_pow=require_pow, **golden.rename(NAMES)), graph, n_users, n_items)
    golden.load(model, dtype)
    users, targets = golden["in.user_id"], golden["in.item_id"]
    histories = torch.ones(len(users), 1, dtype=torch.int64)
    return model, Batch.from_histories(histories, histories[:, 0], targets, users)


def test_golden_lightgcn_outputs(golden, dtype) -> None:
    model, batch = build(golden, dtype)
    eye = torch.eye(len(model.graph.scale), dtype=dtype)
    # The mean of a vector and its product with the adjacency.
    golden.check(2 * model.graph(eye, 1) - eye, "norm_adj_dense")
    for forget in (False, True):
        with torch.set_grad_enabled(forget):
            users, items = model.vectors()
            golden.check(users, "user_all_embeddings")
            golden.check(items, "item_all_embeddings")
            golden.check(users @ items.T, "full_sort_scores")
            golden.check((model.encode(batch) * model.item_table()[batch.targets]).sum(1), "predict")


@pytest.mark.parametrize("require_pow", [False, True])
def test_golden_lightgcn_losses(golden, dtype, require_pow: bool) -> None:
    model, batch = build(golden, dtype, require_pow)
    loss = model.pair_loss(batch, *model(batch), golden["in.neg_item_id"])
    golden.check_gradients(model, loss, f"loss_require_pow_{require_pow}")


def test_golden_lightgcn_gradient_is_the_derivative(golden) -> None:
    model, _ = build(golden, torch.float64)
    x = torch.randn(len(model.graph.scale), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda given: model.graph(given, 2), (x.requires_grad_(),))
