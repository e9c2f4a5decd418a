"""FMLP-Rec and its variant with attention against recorded numbers of the authors' code."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ckd.data.batch import Batch
from ckd.students.common.losses import pairwise_bce
from ckd.students.fmlprec import FMLPRec, FMLPRecConfig

NAMES = {
    "hidden_size": "hidden_size",
    "n_layers": "num_hidden_layers",
    "dropout": "hidden_dropout_prob",
    "initializer_range": "initializer_range",
    "n_heads": "num_attention_heads",
    "attention_dropout": "attention_probs_dropout_prob",
}


@pytest.fixture(params=["fmlprec_L10", "fmlprec_L7", "fmlp_sasrec_variant"])
def golden(request, recorded):
    return recorded(request.param)


def build(golden, dtype) -> tuple[FMLPRec, Batch]:
    config = FMLPRecConfig(filters=not golden.config["no_filters"], **golden.rename(NAMES))
    model = FMLPRec(config, golden.config["item_size"] - 1, golden.config["max_seq_length"])
    golden.load(model, dtype)
    items = golden["in.input_ids"]
    lengths = (items != 0).sum(1)
    right = torch.stack([row.roll(int(length)) for row, length in zip(items, lengths, strict=True)])
    width = int(lengths.max())
    batch = Batch.from_histories(right[:, :width], lengths, golden["in.answer"])
    assert torch.equal(model.left_padded(batch), items)
    return model, batch


def test_golden_fmlprec_outputs(golden, dtype) -> None:
    model, batch = build(golden, dtype)
    items = golden["in.input_ids"]
    x, mask = model.embed(items), model.mask(items)
    for layer in model.item_encoder.layer:
        x = layer(x, mask)
    # The last layer of `encode` computes one position, by another way.
    encoded, table = model(batch)
    torch.testing.assert_close(encoded, x[:, -1], atol=1e-6 if dtype == torch.float32 else 1e-12, rtol=0)
    golden.check(encoded @ table.T, "full_scores_last")
    if golden.config["no_filters"]:
        # Where padding attends to padding alone, the logits' last digits are lost beside the mask's -10000.
        golden.check(x, "sequence_output", where=items != 0)
    else:
        golden.check(x, "sequence_output")


def test_golden_fmlprec_loss(golden, dtype) -> None:
    model, batch = build(golden, dtype)
    encoded, table = model(batch)
    positive, negative = ((encoded * table[items]).sum(1) for items in (batch.targets, golden["in.neg_answer"]))
    golden.check_gradients(model, pairwise_bce(positive, negative), "loss_bce")


def test_golden_fmlprec_in_one_batch_with_other_lengths(golden) -> None:
    model, batch = build(golden, torch.float64)
    wide = F.pad(batch.sequences, (0, model.max_length - batch.sequences.shape[1]))
    again = Batch.from_histories(wide, batch.lengths, batch.targets)
    torch.testing.assert_close(model.encode(again), model.encode(batch), atol=1e-12, rtol=0)
