"""SASRec against recorded numbers of RecBole's."""

from __future__ import annotations

import pytest
from torch.nn import functional as F

from ckd.data.batch import Batch
from ckd.students.common.losses import bpr_loss
from ckd.students.sasrec import SASRec, SASRecConfig

NAMES = {
    "hidden_size": "hidden_size",
    "inner_size": "inner_size",
    "n_layers": "n_layers",
    "n_heads": "n_heads",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attn_dropout_prob",
    "layer_norm_eps": "layer_norm_eps",
    "initializer_range": "initializer_range",
}


@pytest.fixture
def golden(recorded):
    return recorded("sasrec")


def build(golden, dtype) -> tuple[SASRec, Batch]:
    model = SASRec(SASRecConfig(**golden.rename(NAMES)), golden.config["n_items"] - 1, golden.config["max_len"])
    golden.load(model, dtype)
    return model, Batch.from_histories(golden["in.item_id_list"], golden["in.item_length"], golden["in.item_id"])


def test_golden_sasrec_outputs(golden, dtype) -> None:
    model, batch = build(golden, dtype)
    encoded, table = model(batch)
    golden.check(encoded, "seq_output")
    golden.check(encoded @ table.T, "full_sort_scores")
    golden.check(model.score_items(encoded, batch.targets).diag(), "predict_item_id")


def test_golden_sasrec_losses(golden, dtype) -> None:
    model, batch = build(golden, dtype)
    encoded, table = model(batch)
    golden.check_gradients(model, F.cross_entropy(encoded @ table.T, batch.targets), "loss_CE")
    encoded, table = model(batch)
    positive, negative = ((encoded * table[items]).sum(1) for items in (batch.targets, golden["in.neg_item_id"]))
    golden.check_gradients(model, bpr_loss(positive, negative), "loss_BPR")
