"""BERT4Rec against recorded numbers of RecBole's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ckd.data.batch import Batch, Packed
from ckd.students.bert4rec import BERT4Rec, BERT4RecConfig
from ckd.students.common.losses import bpr_loss

NAMES = {
    "hidden_size": "hidden_size",
    "inner_size": "inner_size",
    "n_layers": "n_layers",
    "n_heads": "n_heads",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attn_dropout_prob",
    "layer_norm_eps": "layer_norm_eps",
    "initializer_range": "initializer_range",
    "mask_ratio": "mask_ratio",
}


@pytest.fixture
def golden(recorded):
    return recorded("bert4rec")


def build(golden, dtype) -> tuple[BERT4Rec, Batch]:
    config = BERT4RecConfig(drop_first="always", **golden.rename(NAMES))
    model = BERT4Rec(config, golden.config["n_items"] - 1, golden.config["max_len"])
    golden.load(model, dtype)
    return model, Batch.from_histories(golden["in.item_id_list"], golden["in.item_length"], golden["in.item_id"])


def check_hidden(golden, model: BERT4Rec, sequences: torch.Tensor, name: str) -> None:
    """Compare every position that is no padding, in packed rows, with the recorded padded ones."""
    lengths = (sequences != 0).sum(1)
    packed = Packed.of(sequences, lengths)
    vectors = model.head(model.hidden(packed, packed.items))[..., :-1]
    expected = golden[f"out.{name}"].to(vectors)
    for row, length in enumerate(lengths):
        steps = torch.arange(-int(length), 0) + 1 + packed.last[row]
        assert torch.equal(packed.items.flatten()[steps], sequences[row, :length])
        torch.testing.assert_close(vectors.flatten(0, 1)[steps], expected[row, :length], atol=1e-5, rtol=0)


def test_golden_bert4rec_outputs(golden, dtype) -> None:
    model, batch = build(golden, dtype)
    sequences, lengths = model.append(batch.histories(), batch.lengths, model.mask_item)
    assert torch.equal(sequences, golden["out.reconstructed_test_seq"])
    assert torch.equal(lengths, golden["in.item_length"])
    encoded, table = model(batch)
    golden.check(encoded @ table.T, "full_sort_scores")
    golden.check(model.score_items(encoded, batch.targets).diag(), "predict_item_id")
    check_hidden(golden, model, golden["out.reconstructed_test_seq"], "forward_all_positions")
    check_hidden(golden, model, golden["in.Mask_item_id_list"], "forward_masked")


@pytest.mark.parametrize("name", ["loss_CE", "loss_BPR"])
def test_golden_bert4rec_losses(golden, dtype, name: str) -> None:
    model, _ = build(golden, dtype)
    # RecBole counts a masked item only from position 1 on.
    rows, columns = torch.nonzero(golden["in.MASK_INDEX"], as_tuple=True)
    places = golden["in.MASK_INDEX"][rows, columns]
    masked = golden["in.Mask_item_id_list"]
    packed = Packed.of(masked, (masked != 0).sum(1))
    first = packed.last - (masked != 0).sum(1) + 1
    vectors = model.head(model.hidden(packed, packed.items).flatten(0, 1)[first[rows] + places])
    table, positives = model.item_table(), golden["in.Pos_item_id"][rows, columns]
    if name == "loss_CE":
        loss = F.cross_entropy(vectors @ table.T, positives)
    else:
        negatives = golden["in.Neg_item_id"][rows, columns]
        loss = bpr_loss((vectors * table[positives]).sum(1), (vectors * table[negatives]).sum(1), eps=1e-14)
    golden.check_gradients(model, loss, name)
