"""BERT4Rec's mask and cloze, beyond what the recordings show."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ckd.data.batch import Batch, Packed
from ckd.students.bert4rec import BERT4Rec, BERT4RecConfig

MASK = 21


def build(**settings: object) -> BERT4Rec:
    torch.manual_seed(0)
    config = BERT4RecConfig(hidden_size=8, inner_size=8, n_layers=1, **settings)
    return BERT4Rec(config, n_items=MASK - 1, max_length=4)


def batch() -> Batch:
    histories = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 0], [8, 0, 0, 0]])
    return Batch.from_histories(histories, torch.tensor([4, 3, 1]), torch.tensor([9, 10, 11]))


def test_the_mask_pushes_out_the_oldest_item_of_a_full_history_only() -> None:
    sequences, lengths = build().append(batch().histories(), batch().lengths, MASK)
    assert sequences.tolist() == [[2, 3, 4, MASK], [5, 6, 7, MASK], [8, MASK, 0, 0]]
    assert lengths.tolist() == [4, 4, 2]


def test_the_mask_always_pushes_out_an_item_where_so_configured() -> None:
    sequences, lengths = build(drop_first="always").append(batch().histories(), batch().lengths, MASK)
    assert sequences.tolist() == [[2, 3, 4, MASK], [6, 7, MASK, 0], [MASK, 0, 0, 0]]
    assert lengths.tolist() == [4, 3, 1]


def test_histories_narrower_than_the_model_gain_a_column() -> None:
    histories = torch.tensor([[1, 2], [3, 0]])
    sequences, lengths = build().append(histories, torch.tensor([2, 1]), torch.tensor([7, 8]))
    assert sequences.tolist() == [[1, 2, 7], [3, 8, 0]]
    assert lengths.tolist() == [3, 2]


def test_packed_rows_and_rows_of_ones_own_agree() -> None:
    model = build().eval()
    sequences, lengths = model.append(batch().histories(), batch().lengths, MASK)
    packed, single = Packed.of(sequences, lengths), Packed.unpacked(sequences, lengths)
    assert packed.items.shape != single.items.shape
    expected = single.take(model.hidden(single, single.items))
    torch.testing.assert_close(packed.take(model.hidden(packed, packed.items)), expected)


def test_masking_the_last_item_alone_is_what_serving_asks() -> None:
    model = build(last_share=1.0).eval()
    found = model.base_loss(batch(), *model(batch()))
    scores = model.score_items(model.encode(batch()))
    torch.testing.assert_close(found, F.cross_entropy(scores, batch().targets))


def test_a_cloze_of_everything_asks_for_every_item_but_the_oldest_of_a_full_sequence() -> None:
    model = build(last_share=0.0, mask_ratio=1.0).eval()
    found = model.base_loss(batch(), *model(batch()))
    # Every position holds the mask, so that an answer depends on place and length alone.
    sequences = torch.tensor([[2, 3, 4, 9], [5, 6, 7, 10], [8, 11, 0, 0]])
    packed = Packed.unpacked(sequences, torch.tensor([4, 4, 2]))
    vectors = model.head(model.hidden(packed, sequences.masked_fill(sequences != 0, MASK)))[sequences != 0]
    torch.testing.assert_close(found, F.cross_entropy(vectors @ model.item_table().T, sequences[sequences != 0]))


def test_a_batch_in_which_nothing_is_masked_gives_zero() -> None:
    model = build(last_share=0.0, mask_ratio=1e-9)
    loss = model.base_loss(batch(), *model(batch()))
    assert float(loss.detach()) == 0.0
    loss.backward()


def test_half_the_instances_are_clozes_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build().eval()
    asked = []
    monkeypatch.setattr(Packed, "of", classmethod(lambda cls, s, n: asked.append(len(s)) or cls.unpacked(s, n)))
    encoded, table = model(batch())
    asked.clear()
    for _ in range(400):
        model.base_loss(batch(), encoded, table)
    assert 0.45 < sum(asked) / 1200 < 0.55


def test_nonsense_is_refused() -> None:
    for key, value in (("mask_ratio", 0), ("mask_ratio", 1.1), ("last_share", -0.1), ("drop_first", "never")):
        with pytest.raises(ValueError, match=key):
            BERT4RecConfig(**{key: value})
