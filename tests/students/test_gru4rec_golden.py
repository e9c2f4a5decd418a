"""GRU4Rec against recorded numbers of RecBole's."""

from __future__ import annotations

import pytest
from torch.nn import functional as F

from ckd.data.batch import Batch
from ckd.students.common.losses import bpr_loss
from ckd.students.gru4rec import GRU4Rec, GRU4RecConfig

NAMES = {"embedding_size": "embedding_size", "hidden_size": "hidden_size", "n_layers": "num_layers"}


@pytest.fixture(params=["gru4rec", "gru4rec_2layer"])
def golden(request, recorded):
    return recorded(request.param)


def build(golden, dtype) -> tuple[GRU4Rec, Batch]:
    config = GRU4RecConfig(dropout=golden.config["dropout_prob"], **golden.rename(NAMES))
    model = GRU4Rec(config, golden.config["n_items"] - 1)
    golden.load(model, dtype)
    return model, Batch.from_histories(golden["in.item_id_list"], golden["in.item_length"], golden["in.item_id"])


def test_golden_gru4rec_outputs(golden, dtype) -> None:
    model, batch = build(golden, dtype)
    encoded, table = model(batch)
    golden.check(encoded, "seq_output")
    golden.check(encoded @ table.T, "full_sort_scores")
    golden.check(model.score_items(encoded, batch.targets).diag(), "predict_item_id")


def test_golden_gru4rec_losses(golden, dtype) -> None:
    model, batch = build(golden, dtype)
    encoded, table = model(batch)
    golden.check_gradients(model, F.cross_entropy(encoded @ table.T, batch.targets), "loss_CE")
    encoded, table = model(batch)
    positive, negative = ((encoded * table[items]).sum(1) for items in (batch.targets, golden["in.neg_item_id"]))
    golden.check_gradients(model, bpr_loss(positive, negative), "loss_BPR")
