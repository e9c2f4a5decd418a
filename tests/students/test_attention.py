"""Attention with the cheap dropout on a CPU, and batches that are encoded in parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ckd.data.batch import Batch
from ckd.nn import transformer
from ckd.nn.transformer import TransformerEncoder, attention, attention_mask, in_parts, initialise
from ckd.students.bert4rec import BERT4Rec
from ckd.students.sasrec import SASRec, SASRecConfig


def parts() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=generator) for _ in range(3))
    sequences = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0]])
    return q, k, v, attention_mask(sequences, causal=True, dtype=torch.float64)


def test_where_nothing_happens_to_be_dropped_it_is_plain_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, mask = parts()
    shares = []
    monkeypatch.setattr("ckd.nn.transformer.dropout", lambda x, p: shares.append(p) or x)
    torch.testing.assert_close(attention(q, k, v, mask, 0.5), F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    assert shares == [0.5]
    attention(q, k, v, mask)
    assert shares == [0.5]


def test_dropped_weights_leave_the_mean_as_it_is() -> None:
    q, k, v, mask = parts()
    torch.manual_seed(0)
    mean = torch.stack([attention(q, k, v, mask, 0.3) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, attention(q, k, v, mask), atol=0.06, rtol=0)
    assert not torch.equal(attention(q, k, v, mask, 0.3), attention(q, k, v, mask, 0.3))


def outcome(encoder: TransformerEncoder, x: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """What the encoder gives, and the gradients of its input and weights."""
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    encoder.zero_grad()
    given = in_parts(encoder, x, mask, training=True)
    torch.autograd.backward((given**2).sum())
    return [given.detach(), *(leaf.grad for leaf in (x, *encoder.parameters()) if leaf.grad is not None)]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_batch_in_parts_has_the_outcome_of_a_whole_one(monkeypatch: pytest.MonkeyPatch, dropout: float) -> None:
    sizes = SASRecConfig(
        hidden_size=8, inner_size=8, n_heads=2, n_layers=2, hidden_dropout=dropout, attention_dropout=dropout
    )
    encoder = TransformerEncoder(sizes).double()
    torch.manual_seed(0)
    initialise(encoder, 0.3)
    sequences = torch.tensor([[1, 2, 3], [4, 5, 0], [6, 0, 0], [7, 8, 9], [1, 1, 1]])
    mask = attention_mask(sequences, causal=True, dtype=torch.float64)
    x = torch.randn(5, 3, 8, dtype=torch.float64)
    whole = outcome(encoder, x, mask)
    monkeypatch.setattr(transformer, "MOST_STATES", x.numel() - 1)
    monkeypatch.setattr(transformer, "PART_STATES", 2 * x[0].numel())
    divided = outcome(encoder, x, mask)
    # Computed again for the gradient, a part must meet the dropout that it met at first.
    monkeypatch.setattr(transformer, "recomputed", lambda f, *args: f(*args))
    kept = outcome(encoder, x, mask)
    assert len(whole) == len(divided) == 2 + len(list(encoder.parameters()))
    for found, expected in zip(divided, kept if dropout else whole, strict=True):
        torch.testing.assert_close(found, expected)
    assert torch.allclose(divided[0], whole[0]) == (dropout == 0.0)


@pytest.mark.parametrize("model", [SASRec, BERT4Rec])
def test_a_model_whose_batch_goes_in_parts_learns_the_same(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    torch.manual_seed(0)
    student = model(
        model.Config(hidden_size=8, inner_size=8, n_heads=2, hidden_dropout=0.0, attention_dropout=0.0), 9, 70
    )
    student = student.double().train()
    lengths = torch.tensor([70, 69, 40, 3, 68])  # four rows, of 70 at least
    histories = torch.randint(1, 10, (5, 70)) * (torch.arange(70) < lengths[:, None])
    batch = Batch.from_histories(histories, lengths, torch.ones(5, dtype=torch.long))

    def learnt() -> dict[str, torch.Tensor]:
        student.zero_grad()
        given = student.encode(batch)
        torch.autograd.backward(given.square().sum() + given.sum())
        return {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}

    whole, calls = learnt(), []
    run = transformer.recomputed
    monkeypatch.setattr(transformer, "MOST_STATES", 1)
    monkeypatch.setattr(transformer, "PART_STATES", 1)
    monkeypatch.setattr(transformer, "recomputed", lambda *a: calls.append(1) or run(*a))
    divided = learnt()
    assert len(calls) > 1
    assert divided.keys() == whole.keys() >= {"item_embedding.weight", "position_embedding.weight"}
    for name, gradient in whole.items():
        torch.testing.assert_close(divided[name], gradient)


def test_an_exceptional_batch_holds_less_for_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TransformerEncoder(SASRecConfig(hidden_size=8, inner_size=8, n_heads=2))
    x, sequences = torch.randn(6, 4, 8), torch.ones(6, 4, dtype=torch.long)

    def held() -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            mask = attention_mask(sequences, causal=True)
            in_parts(encoder, x.requires_grad_(), mask, training=True)
        return sum(sizes)

    before = held()
    monkeypatch.setattr(transformer, "MOST_STATES", 1)
    monkeypatch.setattr(transformer, "PART_STATES", 1)
    assert held() < before / 5
